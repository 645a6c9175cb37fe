//! How many extents are in memory, of all volumes together.

use crate::extent::Extent;
use parking_lot::{Mutex, RwLock};
use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, Weak},
};

/// A volume's extents that are in memory.
pub(crate) type ExtentMap = RwLock<HashMap<u32, Arc<Extent>>>;

/// Extents that are looked at for one that can go, each time one comes.
const LOOKS_MAX: usize = 32;

/// How many extents may be in memory, at about 330 KiB each: volumes that share a budget make room for one another. The
/// ones that came first go first; one that is in use, or has writes that are not flushed, stays. A volume that needs
/// another while a quarter too many are there flushes first, so that only what is in use just then is above the budget.
pub struct ExtentBudget {
    max: usize,
    /// In the order in which they came. Those of volumes that are closed go when their turn comes.
    order: Mutex<VecDeque<(Weak<ExtentMap>, u32)>>,
}

impl ExtentBudget {
    /// Of so many extents.
    #[must_use]
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, order: Mutex::default() })
    }

    /// Extents in memory, and such as were until their volume was closed.
    #[must_use]
    pub fn loaded(&self) -> usize {
        self.order.lock().len()
    }

    /// Whether so many cannot go, since they have writes that are not flushed, that one should flush.
    pub(crate) fn exceeded(&self) -> bool {
        self.loaded() > self.max + self.max / 4
    }

    /// Takes an extent into a volume's map, whose lock the caller has as `own`, and lets others go.
    pub(crate) fn admit(
        &self,
        map: &Arc<ExtentMap>,
        own: &mut HashMap<u32, Arc<Extent>>,
        extent: Arc<Extent>,
    ) {
        let mut order = self.order.lock();
        for _ in 0..LOOKS_MAX {
            if order.len() < self.max {
                break;
            }
            let Some((of, index)) = order.pop_front() else { break };
            let Some(other) = of.upgrade() else { continue };
            let gone = if Arc::ptr_eq(&other, map) {
                remove_idle(own, index)
            } else {
                // Never waited for: its holder may wait for the order.
                other.try_write().is_some_and(|mut extents| remove_idle(&mut extents, index))
            };
            if !gone {
                order.push_back((of, index));
            }
        }
        order.push_back((Arc::downgrade(map), extent.index));
        own.insert(extent.index, extent);
    }
}

fn remove_idle(extents: &mut HashMap<u32, Arc<Extent>>, index: u32) -> bool {
    let idle = |e: &Arc<Extent>| {
        Arc::strong_count(e) == 1 && e.state.try_read().is_some_and(|s| !s.dirty && !s.slots.pinned())
    };
    match extents.get(&index) {
        Some(extent) if !idle(extent) => false,
        _ => {
            extents.remove(&index);
            true
        }
    }
}

impl fmt::Debug for ExtentBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExtentBudget").field("max", &self.max).finish_non_exhaustive()
    }
}
