//! Spills on the wire.

use crate::{
    node::{Node, failed},
    upload::next,
};
use custody_node::{SpillError, SpillId};
use custody_proto::storage::{ReadSpillRequest, ReadSpillResponse, Spill, WriteSpillRequest};
use custody_rpc::{
    status::{invalid, status},
    workers::Workers,
};
use std::{sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use zeroize::Zeroizing;

/// How long the next part of a spill may take.
const PART_TIMEOUT: Duration = Duration::from_secs(60);
/// Between looks at which are too old.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Bytes of a part, at most.
const PART_LEN: usize = 1 << 20;

fn spill_failed(e: SpillError) -> Status {
    match e {
        SpillError::Missing => status("NOT_FOUND", "NOT_FOUND", &e.to_string(), Some("name")),
        SpillError::Full(_) => status("RESOURCE_EXHAUSTED", "SPILL_FULL", &e.to_string(), None),
        SpillError::Corrupt => status("DATA_LOSS", "BLOCK_CORRUPT", &e.to_string(), None),
        SpillError::Io(io) if io.kind() == std::io::ErrorKind::StorageFull => {
            status("RESOURCE_EXHAUSTED", "DISK_FULL", "the disk that holds the spills is full", None)
        }
        e => failed(e),
    }
}

fn id(name: &str) -> Result<SpillId, Status> {
    let mut id = SpillId::default();
    name.strip_prefix("spills/")
        .and_then(|text| hex::decode_to_slice(text, &mut id).ok())
        .map(|()| id)
        .ok_or_else(|| invalid("name", "must be of the form spills/{spill}, as WriteSpill answered it"))
}

/// Takes a spill. Nothing of one that is not ended stays.
pub(crate) async fn write(
    node: &Arc<Node>,
    workers: &Workers,
    mut parts: Streaming<WriteSpillRequest>,
) -> Result<Spill, Status> {
    let (sender, mut received) = mpsc::channel::<Result<Zeroizing<Vec<u8>>, Status>>(2);
    let own = node.clone();
    let sealing = workers.run(move || {
        let mut writer = own.spills.create().map_err(spill_failed)?;
        while let Some(part) = received.blocking_recv() {
            let part = part?;
            if part.len() > PART_LEN {
                return Err(invalid("data", "must be 1 MiB or less in a message"));
            }
            writer.write(&part).map_err(spill_failed)?;
        }
        let (id, size_bytes) = writer.finish(own.started.elapsed()).map_err(spill_failed)?;
        Ok(Spill { name: format!("spills/{}", hex::encode(id)), size_bytes })
    });
    let feeding = async move {
        loop {
            let part = match next(&mut parts, PART_TIMEOUT).await {
                Ok(None) => return,
                Ok(Some(message)) => Ok(Zeroizing::new(message.data)),
                Err(e) => Err(e),
            };
            let failed = part.is_err();
            // Where this fails, the other side has, and tells why.
            if sender.send(part).await.is_err() || failed {
                return;
            }
        }
    };
    tokio::join!(sealing, feeding).0
}

/// Gives a spill, or a part of it.
pub(crate) async fn read(
    node: &Arc<Node>,
    workers: &Workers,
    request: ReadSpillRequest,
) -> Result<mpsc::Receiver<Result<ReadSpillResponse, Status>>, Status> {
    let id = id(&request.name)?;
    let len = node.spills.len(&id).map_err(spill_failed)?;
    let beyond = |field| {
        let why = format!("`{field}` lies beyond the spill's {len} bytes");
        status("OUT_OF_RANGE", "OUT_OF_RANGE", &why, Some(field))
    };
    let rest = len.checked_sub(request.offset).ok_or_else(|| beyond("offset"))?;
    let mut left = if request.length == 0 { rest } else { request.length };
    if left > rest {
        return Err(beyond("length"));
    }
    let (sender, receiver) = mpsc::channel(2);
    let (node, workers, mut at) = (node.clone(), workers.clone(), request.offset);
    tokio::spawn(async move {
        while left > 0 {
            let own = node.clone();
            let part = workers.run(move || {
                let mut plain = Zeroizing::default();
                own.spills.read(&id, at, &mut plain, own.started.elapsed()).map_err(spill_failed)?;
                plain.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                Ok(ReadSpillResponse { data: std::mem::take(&mut *plain) })
            });
            let part = part.await;
            let read = part.as_ref().map_or(0, |part| part.data.len() as u64);
            if sender.send(part).await.is_err() || read == 0 {
                return;
            }
            (at, left) = (at + read, left - read);
        }
    });
    Ok(receiver)
}

/// Removes a spill.
pub(crate) fn delete(node: &Node, name: &str) -> Result<(), Status> {
    node.spills.remove(&id(name)?).map_err(spill_failed)
}

/// Removes those that nobody reads, as long as the node lives.
pub(crate) async fn sweep(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    loop {
        ticks.tick().await;
        node.spills.expire(node.started.elapsed());
    }
}
