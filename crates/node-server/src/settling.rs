//! Writes the headers that flushes of a volume have left for later, so that an idle volume misses nothing that is damaged.

use crate::{managed::Managed, node::Node};
use custody_node::{HEADERS_EVERY, Volume};
use std::sync::{Arc, atomic::Ordering};

/// Looks at all volumes, as often as headers are written where flushes come all the time.
pub(crate) async fn settle(node: Arc<Node>) {
    let mut looks = tokio::time::interval(HEADERS_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        for managed in node.volumes() {
            let Some(volume) = managed.volume().filter(|volume| volume.is_unsettled()) else { continue };
            // A disk that does not answer holds up its own volume alone, and one thread.
            if !managed.settling.swap(true, Ordering::AcqRel) {
                tokio::task::spawn_blocking(move || one(&managed, volume));
            }
        }
    }
}

fn one(managed: &Managed, volume: Arc<Volume>) {
    let settled = volume.settle();
    // Before anything else: whoever ends access waits for the last handle.
    drop(volume);
    managed.settling.store(false, Ordering::Release);
    if let Err(e) = settled {
        tracing::warn!(volume = %managed.name, error = %e, "headers are not written; the next flush tries again");
    }
}
