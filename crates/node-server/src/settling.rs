//! Writes the headers that flushes of a volume have left for later, and makes them durable, so that an idle volume misses
//! nothing that is damaged and keeps no extent in memory.

use crate::{managed::Managed, node::Node};
use custody_node::{HEADERS_EVERY, Volume};
use std::sync::{Arc, atomic::Ordering};

/// Looks at all volumes, as often as headers are written where flushes come all the time. One that was flushed since the last
/// look is left to its next flush, or to the next look.
pub(crate) async fn settle(node: Arc<Node>) {
    let mut looks = tokio::time::interval(HEADERS_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        for managed in node.volumes() {
            let Some(volume) = managed.volume().filter(|volume| volume.is_unsettled()) else { continue };
            let flushes = volume.flushes();
            if managed.flushes_seen.swap(flushes, Ordering::AcqRel) != flushes {
                continue;
            }
            // A disk that does not answer holds up its own volume alone, and one thread.
            if !managed.settling.swap(true, Ordering::AcqRel) {
                tokio::task::spawn_blocking(move || one(&managed, volume));
            }
        }
    }
}

fn one(managed: &Managed, volume: Arc<Volume>) {
    let settled = volume.settle();
    managed.flushes_seen.store(volume.flushes(), Ordering::Release);
    // Before anything else: whoever ends access waits for the last handle.
    drop(volume);
    managed.settling.store(false, Ordering::Release);
    if let Err(e) = settled {
        tracing::warn!(volume = %managed.name, error = %e, "headers are not written; the next flush tries again");
    }
}
