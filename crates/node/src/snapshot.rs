//! A volume as it was at one moment, while writes go on: taken at once, and copied extent by extent.
//!
//! Writes never go over a block in place, so what a snapshot needs of an extent is its map, and that none of the slots in
//! it is given away. Both are taken care of when a backup comes to the extent, or before the first write to it after the
//! moment, whichever is first. Nothing else is read or kept in memory, however large the volume.

use crate::{
    Volume, VolumeError,
    extent::{Extent, Live, Sealer, State, of_generation},
    layout::BLOCK_LEN,
};
use parking_lot::{Condvar, Mutex};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

/// Maps that writes have had copied and that wait for the backup, at most: about 80 MiB with their extents.
const COPIES_MAX: usize = 128;
/// How long a write waits for the backup to take one, before it goes on and the snapshot ends.
const COPY_WAIT: Duration = Duration::from_secs(2);

/// A consistent view: what every block held between two writes. No slot that it reads is given away; drop it soon.
pub struct Snapshot {
    /// Dropped before the volume, which whoever ends access waits for: sealers are in it.
    kept: Arc<Kept>,
    /// How many extents there are.
    extents: usize,
    volume: Arc<Volume>,
}

/// What the writes to a volume keep for one snapshot.
pub(crate) struct Kept(Mutex<Places>, Condvar);

struct Places {
    /// Extents of the moment that nobody has written to since, and that were not read yet.
    untouched: BTreeSet<u32>,
    /// Copied before a write, and not read yet.
    copied: BTreeMap<u32, Frozen>,
    /// A write could not wait for the copies that the backup had not come to.
    overtaken: bool,
}

/// One extent of a snapshot. Its slots are given away again when it is dropped.
pub(crate) struct Frozen {
    extent: Arc<Extent>,
    /// The last write that it holds.
    pub(crate) sequence: u64,
    /// Blocks with an entry, in order.
    pub(crate) lives: Vec<Live>,
    sealers: Vec<Arc<Sealer>>,
}

/// What comes next of a snapshot.
pub(crate) enum Next {
    Extent(Frozen),
    /// Every extent was read.
    End,
    /// Writes were faster, and the view is lost.
    Overtaken,
}

impl Frozen {
    fn of(extent: &Arc<Extent>, state: &mut State) -> Self {
        state.slots.pin();
        let sequence = extent.sequence.load(Ordering::Acquire);
        state.counted_sequence = sequence;
        let lives = state.blocks.iter().flatten().copied().collect();
        let sealers = std::iter::once(state.current.clone()).chain(state.previous.clone()).collect();
        Self { extent: extent.clone(), sequence, lives, sealers }
    }

    pub(crate) fn index(&self) -> u32 {
        self.extent.index
    }

    /// Opens neighbouring blocks, all of data or all holes, into `out`.
    pub(crate) fn open(
        &self,
        volume: &Volume,
        run: &[Live],
        sealed: &mut Vec<u8>,
        out: &mut [u8],
    ) -> Result<(), VolumeError> {
        let index = self.extent.index;
        sealed.resize(out.len(), 0);
        volume.fetch(index, run, sealed)?;
        let mut blocks = out.chunks_mut(BLOCK_LEN).zip(sealed.chunks(BLOCK_LEN));
        for Live { entry, .. } in run {
            let sealer = of_generation(&self.sealers, entry.generation);
            let (plain, sealed) =
                if entry.hole { Default::default() } else { blocks.next().unwrap_or_default() };
            volume.loader().open(index, entry, sealer, sealed, plain)?;
        }
        Ok(())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.extent.state.write().slots.unpin();
        self.extent.room.notify_all();
    }
}

impl Kept {
    /// Copies an extent's map before the first write to it since the moment. The caller has the extent's state.
    fn before_write(&self, extent: &Arc<Extent>, state: &mut State) {
        let mut places = self.0.lock();
        if places.untouched.remove(&extent.index) {
            places.copied.insert(extent.index, Frozen::of(extent, state));
        }
    }

    /// Waits until there is room for a copy, if a write to this extent needs one; a while.
    fn wait_for_room(&self, extent: u32) {
        let Self(places, taken) = self;
        let until = Instant::now() + COPY_WAIT;
        let mut places = places.lock();
        while places.untouched.contains(&extent) && places.copied.len() >= COPIES_MAX {
            if taken.wait_until(&mut places, until).timed_out() {
                places.overtaken = true;
                let lost = places.forget();
                drop(places);
                // Each takes its extent's state: not with the lock.
                drop(lost);
                return;
            }
        }
    }
}

impl Places {
    fn forget(&mut self) -> BTreeMap<u32, Frozen> {
        self.untouched.clear();
        std::mem::take(&mut self.copied)
    }
}

impl Snapshot {
    /// Takes a snapshot, for which nothing is copied. Then all of the moment is made durable: what an increment counts on
    /// is never lost and its numbers never used again.
    ///
    /// # Errors
    /// The disk failed.
    pub fn take(volume: Arc<Volume>) -> Result<Self, VolumeError> {
        let alone = volume.gate.write();
        // What is not flushed is in memory alone, and stays there until it is.
        let untouched = volume.known_extents();
        let extents = untouched.len();
        let places = Places { untouched, copied: BTreeMap::new(), overtaken: false };
        let kept = Arc::new(Kept(Mutex::new(places), Condvar::new()));
        volume.snapshots.add(&kept);
        drop(alone);
        let snapshot = Self { kept, extents, volume };
        snapshot.volume.settle()?;
        Ok(snapshot)
    }

    pub(crate) fn volume(&self) -> &Volume {
        &self.volume
    }

    /// How many extents it has.
    pub(crate) fn extents(&self) -> usize {
        self.extents
    }

    /// Whether it has all of these. Before the first was read.
    pub(crate) fn has_all<'a>(&self, mut indexes: impl Iterator<Item = &'a u32>) -> bool {
        let places = self.kept.0.lock();
        indexes.all(|index| places.untouched.contains(index) || places.copied.contains_key(index))
    }

    /// The next extent: first those that writes have had copied.
    ///
    /// # Errors
    /// It does not authenticate, or the disk failed.
    pub(crate) fn next(&self) -> Result<Next, VolumeError> {
        let Kept(places, taken) = self.kept.as_ref();
        loop {
            let index = {
                let mut places = places.lock();
                if places.overtaken {
                    return Ok(Next::Overtaken);
                }
                if let Some((_, frozen)) = places.copied.pop_first() {
                    taken.notify_all();
                    return Ok(Next::Extent(frozen));
                }
                match places.untouched.first() {
                    Some(index) => *index,
                    None => return Ok(Next::End),
                }
            };
            let found = self.volume.existing(index)?;
            let Some(extent) = found else {
                // Made for a write that failed, and gone from memory since.
                places.lock().untouched.remove(&index);
                continue;
            };
            let mut state = extent.state.write();
            // A write may have had it copied meanwhile.
            if places.lock().untouched.remove(&index) {
                return Ok(Next::Extent(Frozen::of(&extent, &mut state)));
            }
        }
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        self.volume.snapshots.remove(&self.kept);
        let lost = self.kept.0.lock().forget();
        self.kept.1.notify_all();
        drop(lost);
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("extents", &self.extents).finish_non_exhaustive()
    }
}

/// The snapshots of a volume that are not yet read.
#[derive(Default)]
pub(crate) struct Snapshots {
    /// Whether there is any: all that a write looks at while there is none. The gate orders it.
    any: std::sync::atomic::AtomicBool,
    all: Mutex<Vec<Arc<Kept>>>,
}

impl Snapshots {
    fn add(&self, kept: &Arc<Kept>) {
        let mut all = self.all.lock();
        all.push(kept.clone());
        self.any.store(true, Ordering::Release);
    }

    fn remove(&self, kept: &Arc<Kept>) {
        let mut all = self.all.lock();
        all.retain(|other| !Arc::ptr_eq(other, kept));
        self.any.store(!all.is_empty(), Ordering::Release);
    }

    fn each(&self, act: impl FnMut(Arc<Kept>)) {
        if self.any.load(Ordering::Acquire) {
            // A copy: a write may wait in there.
            let all = self.all.lock().clone();
            all.into_iter().for_each(act);
        }
    }

    /// Before a write to an extent whose state the caller has.
    pub(crate) fn before_write(&self, extent: &Arc<Extent>, state: &mut State) {
        self.each(|kept| kept.before_write(extent, state));
    }

    /// Before that, while the caller has nothing that a backup could need.
    pub(crate) fn wait_for_room(&self, extent: u32) {
        self.each(|kept| kept.wait_for_room(extent));
    }
}
