//! Making writes durable, and finding room.

use crate::{
    Volume, VolumeError,
    anchor::Counter,
    extent::{Extent, Header},
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

/// How often headers are written, where flushes come faster. What was flushed since counts without: recovery opens it.
pub const HEADERS_EVERY: Duration = Duration::from_millis(100);

/// And after how many blocks: whose slots are free again only after it.
const HEADERS_EVERY_BLOCKS: u64 = 4096;

/// What is known of the headers of a volume's extents.
#[derive(Default)]
pub(crate) struct Headers {
    /// Extents whose last header is written, and not yet known to be durable. While one is here it is not forgotten, since
    /// whoever loads it again would take the slots for free that the header before still counts.
    pending: Vec<Arc<Extent>>,
    /// When they were written last.
    written: Option<Instant>,
    /// How many blocks had been written then.
    counted: u64,
    /// How many had been at the last flush.
    flushed: u64,
}

impl Headers {
    /// Whether a flush that finds so many blocks written is to write them.
    fn due(&self, written: u64) -> bool {
        self.written.is_none_or(|at| at.elapsed() >= HEADERS_EVERY)
            || written.saturating_sub(self.counted) >= HEADERS_EVERY_BLOCKS
    }
}

/// What a flush saw of one extent.
struct Seen {
    extent: Arc<Extent>,
    sequence: u64,
    set_mac: u128,
    live: u32,
    retired: Vec<u16>,
}

impl Volume {
    /// Makes every write that returned before the call durable. Callers that come while a flush runs share the
    /// next one.
    ///
    /// # Errors
    /// The disk failed. What is on it is then not known, and the volume refuses everything until opened again.
    pub fn flush(&self) -> Result<(), VolumeError> {
        self.flush_with(false)
    }

    /// As [`Volume::flush`], and writes the header of each extent that has changed since its last one: what is flushed is missed
    /// if it is damaged from then on, and no more taken for what was torn.
    ///
    /// # Errors
    /// As [`Volume::flush`].
    pub fn settle(&self) -> Result<(), VolumeError> {
        self.flush_with(true)
    }

    /// Whether flushes have left headers for later, to be written or to become durable: whoever has the volume calls
    /// [`Volume::settle`] a moment after the last, until it has not. An extent whose header is not durable stays in memory.
    #[must_use]
    pub fn is_unsettled(&self) -> bool {
        self.unsettled.load(Ordering::Acquire)
    }

    /// A number that changes with each flush that had something to do.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.flushes_done.load(Ordering::Acquire)
    }

    fn flush_with(&self, settle: bool) -> Result<(), VolumeError> {
        let wanted = self.flushes_begun.load(Ordering::Acquire) + 1;
        let mut headers = self.flush.lock();
        if self.failed.load(Ordering::Acquire) {
            return Err(VolumeError::FlushFailed);
        }
        // Another caller's flush began after this call and has ended: it covers this one.
        if self.flushes_done.load(Ordering::Acquire) >= wanted && !(settle && self.is_unsettled()) {
            return Ok(());
        }
        // Clients send flushes in bursts: fio one for each request that it may have in flight.
        let written = self.written.load(Ordering::Acquire);
        if written == headers.flushed && !settle {
            return Ok(());
        }
        let due = settle || headers.due(written);
        let number = self.flushes_begun.fetch_add(1, Ordering::AcqRel) + 1;
        let seen = self.look(due);
        let synced = self.file.sync_data();
        if let Err(e) = synced {
            self.failed.store(true, Ordering::Release);
            for one in seen {
                one.extent.state.write().slots.flush_failed(one.retired);
            }
            return Err(VolumeError::Io(e));
        }
        headers.flushed = written;
        // Headers that the flush before this one wrote.
        headers.pending.retain(|extent| {
            let mut state = extent.state.write();
            state.header_pending = !state.slots.header_durable();
            extent.room.notify_all();
            state.header_pending
        });
        let anchored = self.anchor.as_ref().map_or(Ok(()), |anchor| anchor.lock().durable(&self.keys));
        // Also where one cannot be written now.
        self.unsettled.store(true, Ordering::Release);
        if due {
            (headers.written, headers.counted) = (Some(Instant::now()), written);
            self.write_headers(seen, &mut headers)?;
        }
        anchored?;
        self.unsettled.store(!due || !headers.pending.is_empty(), Ordering::Release);
        self.flushes_done.store(number, Ordering::Release);
        Ok(())
    }

    /// Notes the dirty extents at one moment between writes: those that get a header, or none where they do not yet.
    fn look(&self, headers: bool) -> Vec<Seen> {
        let _between_writes = self.gate.write();
        let extents = self.extents.read();
        extents
            .values()
            .filter_map(|extent| {
                let mut state = extent.state.write();
                if !state.dirty {
                    return None;
                }
                let sequence = extent.sequence.load(Ordering::Acquire);
                // From here on what it holds is promised.
                state.counted_sequence = sequence;
                if !headers {
                    return None;
                }
                state.dirty = false;
                Some(Seen {
                    extent: extent.clone(),
                    sequence,
                    set_mac: state.set_mac,
                    live: state.live,
                    retired: state.slots.begin_flush(),
                })
            })
            .collect()
    }

    /// Writes the headers of what is now durable; they become durable with the next flush, and until then the
    /// ones before them are as good, since no slot that they count has been given away.
    ///
    /// An extent whose header was not written (a full disk, for example) stays dirty, so that the next flush writes
    /// it; the others are not held back. The first error is told.
    fn write_headers(&self, seen: Vec<Seen>, headers: &mut Headers) -> Result<(), VolumeError> {
        let mut outcome = Ok(());
        for one in seen {
            let mut state = one.extent.state.write();
            let header = Header {
                header_sequence: state.header.header_sequence + 1,
                flushed_sequence: one.sequence,
                live: one.live,
                set_mac: one.set_mac,
                ..state.header
            };
            if let Err(e) = self.loader().write_header(one.extent.index, &header) {
                state.dirty = true;
                state.slots.flush_failed(one.retired);
                outcome = outcome.and(Err(e));
                continue;
            }
            state.header = header;
            state.slots.header_written(one.retired);
            let listed = std::mem::replace(&mut state.header_pending, true);
            drop(state);
            if let Some(anchor) = &self.anchor {
                anchor.lock().wrote(Counter::Extent(one.extent.index), header.header_sequence);
            }
            self.table.lock().add(one.extent.index);
            if !listed {
                headers.pending.push(one.extent);
            }
        }
        let written = self.table.lock().write(&self.file, &self.keys);
        outcome.and(written)
    }

    /// Frees slots of an extent whose writers have used them up: two flushes, or the end of a backup.
    pub(crate) fn make_room(&self, extent: &Extent) -> Result<(), VolumeError> {
        for _ in 0..2 {
            // A clean extent is marked, since its waiting slots need a header and a flush of their own.
            extent.state.write().dirty = true;
            self.settle()?;
        }
        let mut guard = extent.room_lock.lock();
        if extent.state.read().slots.pinned() {
            extent.room.wait_for(&mut guard, Duration::from_millis(100));
        }
        Ok(())
    }
}
