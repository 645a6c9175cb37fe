//! Which slots of an extent are free, and when a retired one becomes free again.

use crate::layout::EXTENT_SLOTS;

/// The slots of one extent.
///
/// A slot that a write retires is needed until a header that no longer counts it is on disk. Headers are written
/// after a flush and become durable with the next one, so a slot passes through two lists:
/// `retired` (since the last flush) → `waiting` (its header is written) → free (its header is durable).
#[derive(Debug)]
pub(crate) struct Slots {
    free: Box<[u64]>,
    free_len: usize,
    hand: usize,
    retired: Vec<u16>,
    waiting: Vec<u16>,
    /// The lowest slot released since the last run was taken: the next run begins there, in pages still warm.
    released: Option<usize>,
    pins: u32,
}

impl Slots {
    /// All free.
    pub(crate) fn new() -> Self {
        Self {
            free: vec![u64::MAX; EXTENT_SLOTS / 64].into(),
            free_len: EXTENT_SLOTS,
            hand: 0,
            retired: Vec::new(),
            waiting: Vec::new(),
            released: None,
            pins: 0,
        }
    }

    pub(crate) fn free_len(&self) -> usize {
        self.free_len
    }

    fn is_free(&self, slot: usize) -> bool {
        self.free.get(slot / 64).is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }

    /// Takes a slot that recovery found in use.
    pub(crate) fn claim(&mut self, slot: u16) {
        let at = usize::from(slot);
        if self.is_free(at) {
            if let Some(word) = self.free.get_mut(at / 64) {
                *word &= !(1 << (at % 64));
            }
            self.free_len -= 1;
        }
    }

    /// Takes up to `len` neighbouring slots, the next free ones from where the last run ended.
    pub(crate) fn take_run(&mut self, len: usize) -> Option<(u16, usize)> {
        if self.free_len == 0 {
            return None;
        }
        let mut at = self.released.take().unwrap_or(self.hand);
        while !self.is_free(at % EXTENT_SLOTS) {
            at += 1;
        }
        let start = at % EXTENT_SLOTS;
        let mut run = 0;
        while run < len && start + run < EXTENT_SLOTS && self.is_free(start + run) {
            run += 1;
        }
        let first = u16::try_from(start).ok()?;
        (start..start + run).for_each(|slot| self.claim(u16::try_from(slot).unwrap_or(u16::MAX)));
        self.hand = (start + run) % EXTENT_SLOTS;
        Some((first, run))
    }

    /// Gives back slots that were taken and not used.
    pub(crate) fn give_back(&mut self, slots: impl Iterator<Item = u16>) {
        for slot in slots {
            let at = usize::from(slot);
            if !self.is_free(at)
                && let Some(word) = self.free.get_mut(at / 64)
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
        let at = usize::from(slot);
        self.released = Some(self.released.map_or(at, |lowest| lowest.min(at)));
    }

    /// What was retired up to now: taken when a flush begins, given to [`Slots::flushed`] when it has ended.
    pub(crate) fn begin_flush(&mut self) -> Vec<u16> {
        std::mem::take(&mut self.retired)
    }

    /// A flush ended, so the header before the one now written is durable.
    pub(crate) fn flushed(&mut self, retired: Vec<u16>) {
        if self.pins > 0 {
            self.waiting.extend(retired);
            return;
        }
        let durable = std::mem::replace(&mut self.waiting, retired);
        self.give_back(durable.into_iter());
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
        slots.flushed(retired);
        assert!(slots.take_run(1).is_none(), "its header is not durable yet");
        let retired = slots.begin_flush();
        slots.flushed(retired);
        assert_eq!(slots.take_run(4), Some((7, 1)));
    }

    #[test]
    fn pinned_slots_stay() {
        let mut slots = Slots::new();
        slots.take_run(EXTENT_SLOTS);
        slots.pin();
        slots.retire(1);
        for _ in 0..3 {
            let retired = slots.begin_flush();
            slots.flushed(retired);
        }
        assert!(slots.take_run(1).is_none());
        slots.unpin();
        for _ in 0..2 {
            let retired = slots.begin_flush();
            slots.flushed(retired);
        }
        assert_eq!(slots.take_run(1), Some((1, 1)));
    }
}
