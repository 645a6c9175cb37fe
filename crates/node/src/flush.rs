//! Making writes durable, and finding room.

use crate::{
    Volume, VolumeError,
    anchor::Counter,
    extent::{Extent, Header},
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

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
        let wanted = self.flushes_begun.load(Ordering::Acquire) + 1;
        let mut headers = self.flush.lock();
        if self.failed.load(Ordering::Acquire) {
            return Err(VolumeError::FlushFailed);
        }
        // Another caller's flush began after this call and has ended: it covers this one.
        if self.flushes_done.load(Ordering::Acquire) >= wanted {
            return Ok(());
        }
        let number = self.flushes_begun.fetch_add(1, Ordering::AcqRel) + 1;
        let seen = self.look();
        let synced = self.file.sync_data();
        if let Err(e) = synced {
            self.failed.store(true, Ordering::Release);
            for one in seen {
                one.extent.state.write().slots.flush_failed(one.retired);
            }
            return Err(VolumeError::Io(e));
        }
        // Headers that the flush before this one wrote.
        headers.retain(|extent| {
            let mut state = extent.state.write();
            state.header_pending = !state.slots.header_durable();
            extent.room.notify_all();
            state.header_pending
        });
        let anchored = self.anchor.as_ref().map_or(Ok(()), |anchor| anchor.lock().durable(&self.keys));
        self.settle(seen, &mut headers)?;
        anchored?;
        self.flushes_done.store(number, Ordering::Release);
        Ok(())
    }

    /// Notes the dirty extents at one moment between writes.
    fn look(&self) -> Vec<Seen> {
        let _between_writes = self.gate.write();
        let extents = self.extents.read();
        extents
            .values()
            .filter_map(|extent| {
                let mut state = extent.state.write();
                if !std::mem::take(&mut state.dirty) {
                    return None;
                }
                let sequence = extent.sequence.load(Ordering::Acquire);
                state.counted_sequence = sequence;
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
    fn settle(&self, seen: Vec<Seen>, headers: &mut Vec<Arc<Extent>>) -> Result<(), VolumeError> {
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
                headers.push(one.extent);
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
            self.flush()?;
        }
        let mut guard = extent.room_lock.lock();
        if extent.state.read().slots.pinned() {
            extent.room.wait_for(&mut guard, Duration::from_millis(100));
        }
        Ok(())
    }
}
