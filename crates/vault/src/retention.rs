//! How much time has really passed, so that a clock set forward does not end the retention of deleted keys.
//!
//! While the vault runs, the machine's monotonic clock counts. While it does not run, only the wall clock can tell, so
//! what it says is believed up to a bound: a vault that was off for longer keeps deleted keys for longer.

use custody_store::{Batch, Store, StoreError};
use custody_types::UnixMillis;
use serde::{Deserialize, Serialize};
use std::time::Duration;

const TABLE: &str = "retention";
const ENTRY: &str = "clock";
/// Most that a stop of the vault counts for.
pub(crate) const STOP_MAX: Duration = Duration::from_secs(86_400);

/// As it is stored.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Reading {
    passed_ms: u64,
    wall: UnixMillis,
}

/// Counts up while the vault runs, and over its stops.
#[derive(Debug)]
pub(crate) struct RetentionClock {
    /// What it showed when the process began.
    base_ms: u64,
    /// The monotonic clock then.
    start: Duration,
}

impl RetentionClock {
    /// Goes on from what was last stored.
    pub(crate) fn load(store: &Store, wall: UnixMillis, monotonic: Duration) -> Result<Self, StoreError> {
        let stored = store.get::<Reading>(TABLE, ENTRY)?;
        let base_ms = stored.map_or(0, |reading| {
            let stopped = wall.since(reading.wall).min(STOP_MAX);
            reading.passed_ms.saturating_add(u64::try_from(stopped.as_millis()).unwrap_or(u64::MAX))
        });
        Ok(Self { base_ms, start: monotonic })
    }

    /// Milliseconds that have passed since the store was made.
    pub(crate) fn passed_ms(&self, monotonic: Duration) -> u64 {
        let running = monotonic.saturating_sub(self.start).as_millis();
        self.base_ms.saturating_add(u64::try_from(running).unwrap_or(u64::MAX))
    }

    /// Stores what it shows. What is lost with a process that is killed between two calls is retained the longer.
    pub(crate) fn save(&self, store: &Store, passed_ms: u64, wall: UnixMillis) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        batch.put(TABLE, ENTRY, &Reading { passed_ms, wall });
        store.commit(batch)
    }
}
