//! Watching vaults: one stream for each vault and identity, shared by all volumes that depend on it.

use crate::node::Node;
use custody_proto::vault::WatchKeysRequest;
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::sync::watch;

type Place = (String, String);

#[derive(Default)]
pub(crate) struct Watches {
    streams: Mutex<HashMap<Place, watch::Receiver<u64>>>,
}

/// After a stream has ended, before it is begun again.
const PAUSE: Duration = Duration::from_millis(500);

impl Watches {
    /// A counter that changes whenever something in the vault may have changed.
    pub(crate) fn subscribe(&self, node: &Arc<Node>, vault: &str, identity: &str) -> watch::Receiver<u64> {
        let mut streams = self.streams.lock();
        let place = (vault.to_owned(), identity.to_owned());
        if let Some(found) = streams.get(&place).filter(|r| r.has_changed().is_ok()) {
            return found.clone();
        }
        let (sender, receiver) = watch::channel(0);
        streams.insert(place, receiver.clone());
        tokio::spawn(run(node.clone(), vault.to_owned(), identity.to_owned(), sender));
        receiver
    }
}

async fn run(node: Arc<Node>, vault: String, identity: String, changed: watch::Sender<u64>) {
    // One receiver is in the table; when only that is left, nobody depends on the vault.
    while changed.receiver_count() > 1 {
        let mut client = node.access(&identity).client();
        if let Ok(stream) = client.watch_keys(WatchKeysRequest { parent: vault.clone() }).await {
            let mut stream = stream.into_inner();
            while let Ok(Some(_)) = stream.message().await {
                changed.send_modify(|n| *n += 1);
            }
        }
        // The end of a stream says nothing; what it would have said is asked for.
        changed.send_modify(|n| *n += 1);
        tokio::time::sleep(PAUSE).await;
    }
}
