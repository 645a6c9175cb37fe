//! Which slots of an extent are free, and when a retired one becomes free again.

use crate::layout::{EXTENT_SLOTS, RUN_BLOCKS};

/// Runs of these lengths are worth keeping whole: what is written at once, and a sixteenth of it.
const RUN_CLASSES: [usize; 2] = [RUN_BLOCKS / 16, RUN_BLOCKS];

/// The slots of one extent.
///
/// A slot that a write retires is needed until a header that no longer counts it is on disk. Headers are written
/// after a flush and become durable with the next one, so a slot passes through two lists:
/// `retired` (since the last header) → `waiting` (a header without it is written) → free (that header is durable).
///
/// Slots that were used before are taken first: their pages are in the page cache and their place on the disk is
/// given, where a slot never used costs the file system a new page and a new block.
#[derive(Debug)]
pub(crate) struct Slots {
    free: Box<[u64]>,
    free_len: usize,
    hand: usize,
    /// No slot from here on was ever used.
    fresh: usize,
    retired: Vec<u16>,
    waiting: Vec<u16>,
    pins: u32,
}

impl Slots {
    /// All free.
    pub(crate) fn new() -> Self {
        Self {
            free: vec![u64::MAX; EXTENT_SLOTS / 64].into(),
            free_len: EXTENT_SLOTS,
            hand: 0,
            fresh: 0,
            retired: Vec::new(),
            waiting: Vec::new(),
            pins: 0,
        }
    }

    pub(crate) fn free_len(&self) -> usize {
        self.free_len
    }

    /// Takes a slot that recovery found in use.
    pub(crate) fn claim(&mut self, slot: u16) {
        let at = usize::from(slot);
        if let Some(word) = self.free.get_mut(at / 64)
            && *word >> (at % 64) & 1 == 1
        {
            *word &= !(1 << (at % 64));
            self.free_len -= 1;
            self.fresh = self.fresh.max(at + 1);
        }
    }

    /// The first slot from `at` that is free, or is not, as `free` says; `to` if there is none before it.
    fn next(&self, mut at: usize, to: usize, free: bool) -> usize {
        while at < to {
            let word = self.free.get(at / 64).copied().unwrap_or(0);
            let wanted = if free { word } else { !word } >> (at % 64);
            if wanted != 0 {
                return (at + wanted.trailing_zeros() as usize).min(to);
            }
            at = (at / 64 + 1) * 64;
        }
        to
    }

    /// The first run of free slots within a range that is `len` long, and shorter than `below`.
    fn find(&self, mut at: usize, to: usize, len: usize, below: usize) -> Option<usize> {
        while at < to {
            at = self.next(at, to, true);
            let end = self.next(at, to.min(at.saturating_add(below)), false);
            if (len..below).contains(&(end - at)) {
                return Some(at);
            }
            at = self.next(end, to, false);
        }
        None
    }

    /// Where a run of `len` is taken. First a gap between slots in use that is too short for longer runs, so that
    /// writes of a block leave room for writes of many; then any place used before; then a fresh one.
    fn place(&self, len: usize) -> Option<usize> {
        let fresh = self.fresh;
        let gap = RUN_CLASSES.into_iter().find(|class| *class > len);
        let used =
            |below| self.find(self.hand, fresh, len, below).or_else(|| self.find(0, fresh, len, below));
        gap.and_then(used)
            .or_else(|| used(usize::MAX))
            .or_else(|| (EXTENT_SLOTS - fresh >= len).then_some(fresh))
    }

    /// Takes up to `len` neighbouring slots: as many as wanted if any place has them, else the first that are free.
    pub(crate) fn take_run(&mut self, len: usize) -> Option<(u16, usize)> {
        if self.free_len == 0 {
            return None;
        }
        let start = self.place(len).unwrap_or_else(|| self.next(0, EXTENT_SLOTS, true));
        let end = self.next(start, EXTENT_SLOTS.min(start + len), false);
        let first = u16::try_from(start).ok()?;
        (start..end).for_each(|slot| self.claim(u16::try_from(slot).unwrap_or(u16::MAX)));
        self.hand = end;
        Some((first, end - start))
    }

    /// Gives back slots that were taken and not used.
    pub(crate) fn give_back(&mut self, slots: impl Iterator<Item = u16>) {
        for slot in slots {
            let at = usize::from(slot);
            if let Some(word) = self.free.get_mut(at / 64)
                && *word >> (at % 64) & 1 == 0
            {
                *word |= 1 << (at % 64);
                self.free_len += 1;
            }
        }
    }

    /// A write has made this slot's block stale.
    pub(crate) fn retire(&mut self, slot: u16) {
        self.retired.push(slot);
    }

    /// A write has replaced a block that no header counts: its slot is free at once. If power is cut now, the
    /// block is what the last flush promised, or newer.
    pub(crate) fn release(&mut self, slot: u16) {
        self.give_back(std::iter::once(slot));
    }

    /// What was retired up to now: taken when a flush begins, given to [`Slots::header_written`] when it has ended.
    pub(crate) fn begin_flush(&mut self) -> Vec<u16> {
        std::mem::take(&mut self.retired)
    }

    /// A header that does not count these is written.
    pub(crate) fn header_written(&mut self, retired: Vec<u16>) {
        self.waiting.extend(retired);
    }

    /// The last header that was written is durable. False where a backup still reads what it does not count.
    pub(crate) fn header_durable(&mut self) -> bool {
        if self.pins > 0 {
            return false;
        }
        let free = std::mem::take(&mut self.waiting);
        self.give_back(free.into_iter());
        true
    }

    /// A flush failed: what it took is retired still.
    pub(crate) fn flush_failed(&mut self, retired: Vec<u16>) {
        self.retired.extend(retired);
    }

    /// While pinned, no slot becomes free: a backup reads from them.
    pub(crate) fn pin(&mut self) {
        self.pins += 1;
    }

    pub(crate) fn unpin(&mut self) {
        self.pins = self.pins.saturating_sub(1);
    }

    pub(crate) fn pinned(&self) -> bool {
        self.pins > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retired_slot_is_free_only_after_two_flushes() {
        let mut slots = Slots::new();
        let (first, run) = slots.take_run(EXTENT_SLOTS).unwrap();
        assert_eq!((first, run), (0, EXTENT_SLOTS));
        assert!(slots.take_run(1).is_none());
        slots.retire(7);
        let retired = slots.begin_flush();
        slots.header_written(retired);
        assert!(slots.take_run(1).is_none(), "its header is not durable yet");
        assert!(slots.header_durable());
        assert_eq!(slots.take_run(4), Some((7, 1)));
    }

    #[test]
    fn slots_used_before_are_taken_first_and_runs_stay_whole() {
        let mut slots = Slots::new();
        assert_eq!(slots.take_run(100), Some((0, 100)));
        slots.release(10);
        slots.release(50);
        slots.release(51);
        assert_eq!(slots.take_run(2), Some((50, 2)));
        assert_eq!(slots.take_run(2), Some((100, 2)), "a single slot is not split off a run of two");
        assert_eq!(slots.take_run(1), Some((10, 1)));
        (20..60).for_each(|slot| slots.release(slot));
        slots.release(80);
        assert_eq!(slots.take_run(1), Some((80, 1)), "a gap before a run that many blocks fit into");
        assert_eq!(slots.take_run(16), Some((20, 16)));
        assert_eq!(
            slots.take_run(EXTENT_SLOTS),
            Some((36, 24)),
            "the first that are free, if nowhere has enough"
        );
        slots.take_run(EXTENT_SLOTS);
        assert_eq!(slots.free_len(), 0);
    }

    #[test]
    fn pinned_slots_stay() {
        let mut slots = Slots::new();
        slots.take_run(EXTENT_SLOTS);
        slots.pin();
        slots.retire(1);
        let retired = slots.begin_flush();
        slots.header_written(retired);
        assert!(!slots.header_durable());
        assert!(slots.take_run(1).is_none());
        slots.unpin();
        assert!(slots.header_durable());
        assert_eq!(slots.take_run(1), Some((1, 1)));
    }
}
