//! The StorageNode service on the wire.

use crate::{
    backup, keeper,
    managed::Managed,
    node::{NewVolume, Node, failed},
    protection::Protection,
    rewrap, spill, wal,
};
use custody_node::{ProtectorKind, SuperblockError, VolumeError};
use custody_proto::storage::{
    self as wire,
    storage_node_server::{StorageNode, StorageNodeServer},
};
use custody_rpc::{
    page::cut,
    server::MESSAGE_LEN_MAX,
    status::{internal, invalid, status},
    timestamp::to_wire,
    workers::Workers,
};
use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

pub(crate) struct StorageService {
    node: Arc<Node>,
    workers: Workers,
}

/// Bytes in one message of a read or write.
const PART_LEN: usize = 1 << 20;

type Parts<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl StorageService {
    pub(crate) fn server(node: Arc<Node>, workers: Workers) -> StorageNodeServer<Self> {
        StorageNodeServer::new(Self { node, workers }).max_decoding_message_size(MESSAGE_LEN_MAX)
    }

    fn view(&self, managed: &Managed) -> wire::Volume {
        let protector = managed.protector();
        let status = managed.status.borrow().clone();
        let state = if status.ready { wire::VolumeState::Ready } else { wire::VolumeState::Inaccessible };
        wire::Volume {
            name: managed.name.to_string(),
            size_bytes: i64::try_from(managed.size_bytes()).unwrap_or(i64::MAX),
            key: protector.key,
            managed_identity: protector.managed_identity,
            customer_managed: protector.kind == ProtectorKind::CustomerManaged,
            ephemeral: protector.kind == ProtectorKind::Ephemeral,
            state: state.into(),
            state_reason: status.reason,
            key_version: protector.wrapped.map(|w| w.key_version.to_string()).unwrap_or_default(),
            nbd_socket: self.node.config.nbd_socket.display().to_string(),
            nbd_address: self.node.config.nbd_address.to_string(),
            data_key_rotation: managed.volume().map(|volume| {
                let progress = managed.rotation();
                wire::DataKeyRotation {
                    retired_extents: progress.retired,
                    extents: progress.extents,
                    retired_before: Some(to_wire(volume.data_keys_retired_before())),
                }
            }),
        }
    }

    fn clone_for_stream(&self) -> Self {
        Self { node: self.node.clone(), workers: self.workers.clone() }
    }
}

/// Carries work out to its end, also when the caller has gone: what changes the disk is not left half done.
async fn unhindered<T: Send + 'static>(
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    tokio::spawn(work.in_current_span()).await.map_err(|_| internal())?
}

fn volume_failed(e: VolumeError) -> Status {
    match e {
        VolumeError::OutOfRange { .. } => {
            status("OUT_OF_RANGE", "OUT_OF_RANGE", &e.to_string(), Some("offset"))
        }
        VolumeError::NoSpace => status("RESOURCE_EXHAUSTED", "DISK_FULL", &e.to_string(), None),
        VolumeError::Corrupt { .. } => status("DATA_LOSS", "BLOCK_CORRUPT", &e.to_string(), None),
        VolumeError::RolledBack { .. } => status("DATA_LOSS", "VOLUME_ROLLED_BACK", &e.to_string(), None),
        other => failed(other),
    }
}

#[tonic::async_trait]
impl StorageNode for StorageService {
    type WatchVolumeStream = Parts<wire::Volume>;
    type ReadBlocksStream = Parts<wire::ReadBlocksResponse>;
    type BackupVolumeStream = Parts<wire::BackupProgress>;
    type RewrapDependentsStream = Parts<wire::RewrapProgress>;
    type ReadSpillStream = Parts<wire::ReadSpillResponse>;
    type RestoreWalStream = Parts<wire::RestoreWalResponse>;

    async fn create_volume(
        &self,
        request: Request<wire::CreateVolumeRequest>,
    ) -> Result<Response<wire::Volume>, Status> {
        let r = request.into_inner();
        let given = r.volume.ok_or_else(|| invalid("volume", "is required"))?;
        let name = format!("volumes/{}", r.volume_id).parse().map_err(|e| invalid("volume_id", e))?;
        let size_bytes =
            u64::try_from(given.size_bytes).map_err(|_| invalid("volume.size_bytes", "must be positive"))?;
        let new = NewVolume {
            name,
            size_bytes,
            protection: Protection {
                key: given.key,
                managed_identity: given.managed_identity,
                customer_managed: given.customer_managed,
                fields: ["volume.key", "volume.managed_identity"],
            },
            ephemeral: given.ephemeral,
            source_backup: r.source_backup,
        };
        let node = self.node.clone();
        let made = unhindered(async move { node.create(new).await }).await?;
        Ok(Response::new(self.view(&made)))
    }

    async fn get_volume(
        &self,
        request: Request<wire::GetVolumeRequest>,
    ) -> Result<Response<wire::Volume>, Status> {
        Ok(Response::new(self.view(&*self.node.volume(&request.get_ref().name)?)))
    }

    async fn list_volumes(
        &self,
        request: Request<wire::ListVolumesRequest>,
    ) -> Result<Response<wire::ListVolumesResponse>, Status> {
        let r = request.into_inner();
        let (page, next_page_token) =
            cut(self.node.volumes(), r.page_size, &r.page_token, |m| m.name.to_string())?;
        Ok(Response::new(wire::ListVolumesResponse {
            volumes: page.iter().map(|m| self.view(m)).collect(),
            next_page_token,
        }))
    }

    async fn delete_volume(
        &self,
        request: Request<wire::DeleteVolumeRequest>,
    ) -> Result<Response<()>, Status> {
        let node = self.node.clone();
        unhindered(async move { node.delete(&request.get_ref().name).await }).await.map(Response::new)
    }

    async fn watch_volume(
        &self,
        request: Request<wire::WatchVolumeRequest>,
    ) -> Result<Response<Self::WatchVolumeStream>, Status> {
        let managed = self.node.volume(&request.get_ref().name)?;
        let mut status = managed.status.subscribe();
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let view = self.clone_for_stream();
        tokio::spawn(async move {
            loop {
                status.mark_unchanged();
                if sender.send(Ok(view.view(&managed))).await.is_err() {
                    return;
                }
                tokio::select! {
                    changed = status.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn revalidate_volume(
        &self,
        request: Request<wire::RevalidateVolumeRequest>,
    ) -> Result<Response<wire::Volume>, Status> {
        let managed = self.node.volume(&request.get_ref().name)?;
        keeper::nudge(&managed).await?;
        Ok(Response::new(self.view(&managed)))
    }

    async fn rewrap_volume(
        &self,
        request: Request<wire::RewrapVolumeRequest>,
    ) -> Result<Response<wire::Volume>, Status> {
        let managed = self.node.volume(&request.get_ref().name)?;
        keeper::nudge(&managed).await?;
        managed.volume().ok_or_else(|| managed.refusal())?;
        Ok(Response::new(self.view(&managed)))
    }

    async fn change_protector(
        &self,
        request: Request<wire::ChangeProtectorRequest>,
    ) -> Result<Response<wire::Volume>, Status> {
        let r = request.into_inner();
        let by = Protection {
            key: r.key,
            managed_identity: r.managed_identity,
            customer_managed: r.customer_managed,
            fields: ["key", "managed_identity"],
        };
        let node = self.node.clone();
        let changed = unhindered(async move { node.change_protector(&r.name, by).await }).await?;
        Ok(Response::new(self.view(&changed)))
    }

    async fn settle_protector(
        &self,
        request: Request<wire::SettleProtectorRequest>,
    ) -> Result<Response<wire::Volume>, Status> {
        let managed = self.node.volume(&request.get_ref().name)?;
        let not_now = || status("UNAVAILABLE", "VOLUME_INACCESSIBLE", "the volume is inaccessible now", None);
        let volume = managed.volume().ok_or_else(not_now)?;
        let (node, name) = (self.node.clone(), managed.name.clone());
        let settle = move || {
            let settled = volume.settle_protector().map_err(failed);
            node.note_volume(&name);
            settled
        };
        self.workers.run(settle).await?;
        Ok(Response::new(self.view(&managed)))
    }

    async fn resize_volume(
        &self,
        request: Request<wire::ResizeVolumeRequest>,
    ) -> Result<Response<wire::Volume>, Status> {
        let r = request.into_inner();
        let managed = self.node.volume(&r.name)?;
        let size = u64::try_from(r.size_bytes).map_err(|_| invalid("size_bytes", "must be positive"))?;
        let volume = managed.volume().ok_or_else(|| managed.refusal())?;
        let grow = move || {
            volume.grow(size).map_err(|e| match e {
                SuperblockError::Size(_) | SuperblockError::Shrink { .. } => invalid("size_bytes", e),
                other => failed(other),
            })
        };
        self.workers.run(grow).await?;
        managed.set_size(size);
        tracing::info!(volume = %managed.name, size, "volume grown");
        Ok(Response::new(self.view(&managed)))
    }

    async fn rotate_data_keys(
        &self,
        request: Request<wire::RotateDataKeysRequest>,
    ) -> Result<Response<wire::Volume>, Status> {
        let managed = self.node.volume(&request.get_ref().name)?;
        let volume = managed.volume().ok_or_else(|| managed.refusal())?;
        if managed.protector().key.is_empty() {
            return Err(invalid("name", "the keys of an ephemeral volume end with the node's process"));
        }
        let found = managed.clone();
        let retire = move || {
            volume.retire_data_keys().map_err(failed)?;
            found.find_retired(&volume).map_err(volume_failed)
        };
        _ = self.workers.run(retire).await?;
        managed.look_for_retired.store(true, Ordering::Release);
        keeper::nudge(&managed).await?;
        Ok(Response::new(self.view(&managed)))
    }

    async fn rotate_extent_key(
        &self,
        request: Request<wire::RotateExtentKeyRequest>,
    ) -> Result<Response<wire::RotateExtentKeyResponse>, Status> {
        let r = request.into_inner();
        let managed = self.node.volume(&r.name)?;
        let volume = managed.volume().ok_or_else(|| managed.refusal())?;
        self.workers
            .run(move || {
                if u64::from(r.extent) * custody_node::layout::EXTENT_LEN >= volume.size_bytes() {
                    return Err(invalid("extent", "lies beyond the volume"));
                }
                volume.rotate_extent(r.extent).map_err(volume_failed)?;
                let generation = volume.dek_generation(r.extent).map_err(volume_failed)?;
                Ok(Response::new(wire::RotateExtentKeyResponse { generation: u32::from(generation) }))
            })
            .await
    }

    async fn read_blocks(
        &self,
        request: Request<wire::ReadBlocksRequest>,
    ) -> Result<Response<Self::ReadBlocksStream>, Status> {
        let r = request.into_inner();
        let managed = self.node.volume(&r.name)?;
        let end = r.offset.checked_add(r.length).filter(|end| *end <= managed.size_bytes());
        let end = end.ok_or_else(|| {
            status("OUT_OF_RANGE", "OUT_OF_RANGE", "`length` reaches beyond the volume", Some("length"))
        })?;
        managed.volume().ok_or_else(|| managed.refusal())?;
        let (sender, receiver) = tokio::sync::mpsc::channel(2);
        let workers = self.workers.clone();
        tokio::spawn(async move {
            let mut at = r.offset;
            while at < end {
                let len = PART_LEN.min(usize::try_from(end - at).unwrap_or(PART_LEN));
                let managed = managed.clone();
                // The volume is looked up for each part, so that a revocation ends a long read.
                let part = workers
                    .run(move || {
                        let mut data = vec![0; len];
                        managed
                            .volume()
                            .ok_or_else(|| managed.refusal())?
                            .read_at(at, &mut data)
                            .map_err(volume_failed)?;
                        Ok(wire::ReadBlocksResponse { data })
                    })
                    .await;
                let failed = part.is_err();
                if sender.send(part).await.is_err() || failed {
                    return;
                }
                at += len as u64;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn write_blocks(
        &self,
        request: Request<Streaming<wire::WriteBlocksRequest>>,
    ) -> Result<Response<wire::WriteBlocksResponse>, Status> {
        let mut parts = request.into_inner();
        let mut managed: Option<Arc<Managed>> = None;
        let (mut written_bytes, mut flush) = (0, false);
        while let Some(part) = parts.message().await? {
            let target = match &managed {
                Some(target) => target.clone(),
                None => managed.insert(self.node.volume(&part.name)?).clone(),
            };
            if part.data.len() > PART_LEN {
                return Err(invalid("data", "must be 1 MiB or less in a message"));
            }
            flush = part.flush;
            written_bytes += part.data.len() as u64;
            self.workers
                .run(move || {
                    target
                        .volume()
                        .ok_or_else(|| target.refusal())?
                        .write_at(part.offset, &part.data)
                        .map_err(volume_failed)
                })
                .await?;
        }
        let target = managed.ok_or_else(|| invalid("name", "is required in the first message"))?;
        if flush {
            self.workers
                .run(move || target.volume().ok_or_else(|| target.refusal())?.flush().map_err(volume_failed))
                .await?;
        }
        Ok(Response::new(wire::WriteBlocksResponse { written_bytes }))
    }

    async fn flush_volume(&self, request: Request<wire::FlushVolumeRequest>) -> Result<Response<()>, Status> {
        let managed = self.node.volume(&request.get_ref().name)?;
        self.workers
            .run(move || managed.volume().ok_or_else(|| managed.refusal())?.flush().map_err(volume_failed))
            .await
            .map(Response::new)
    }

    async fn backup_volume(
        &self,
        request: Request<wire::BackupVolumeRequest>,
    ) -> Result<Response<Self::BackupVolumeStream>, Status> {
        let r = request.into_inner();
        let managed = self.node.volume(&r.name)?;
        let progress = backup::begin(&self.node, managed, &r.backup, &r.base).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(progress))))
    }

    async fn delete_backup(
        &self,
        request: Request<wire::DeleteBackupRequest>,
    ) -> Result<Response<()>, Status> {
        backup::delete(&self.node, &request.get_ref().backup).await.map(Response::new)
    }

    async fn verify_backup(
        &self,
        request: Request<wire::VerifyBackupRequest>,
    ) -> Result<Response<()>, Status> {
        let r = request.get_ref();
        backup::verify(&self.node, &r.backup, &r.managed_identity).await.map(Response::new)
    }

    async fn rewrap_dependents(
        &self,
        request: Request<wire::RewrapDependentsRequest>,
    ) -> Result<Response<Self::RewrapDependentsStream>, Status> {
        let r = request.get_ref();
        let progress = rewrap::begin(&self.node, &r.key, &r.managed_identity, r.per_second)?;
        Ok(Response::new(Box::pin(ReceiverStream::new(progress))))
    }

    async fn write_spill(
        &self,
        request: Request<Streaming<wire::WriteSpillRequest>>,
    ) -> Result<Response<wire::Spill>, Status> {
        spill::write(&self.node, &self.workers, request.into_inner()).await.map(Response::new)
    }

    async fn read_spill(
        &self,
        request: Request<wire::ReadSpillRequest>,
    ) -> Result<Response<Self::ReadSpillStream>, Status> {
        let parts = spill::read(&self.node, &self.workers, request.into_inner()).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(parts))))
    }

    async fn delete_spill(&self, request: Request<wire::DeleteSpillRequest>) -> Result<Response<()>, Status> {
        spill::delete(&self.node, &request.get_ref().name).map(Response::new)
    }

    async fn archive_wal(
        &self,
        request: Request<Streaming<wire::ArchiveWalRequest>>,
    ) -> Result<Response<()>, Status> {
        wal::archive(&self.node, &self.workers, request.into_inner()).await.map(Response::new)
    }

    async fn restore_wal(
        &self,
        request: Request<wire::RestoreWalRequest>,
    ) -> Result<Response<Self::RestoreWalStream>, Status> {
        let parts = wal::restore(&self.node, &self.workers, request.into_inner()).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(parts))))
    }

    async fn get_wal_archive(
        &self,
        request: Request<wire::GetWalArchiveRequest>,
    ) -> Result<Response<wire::WalArchive>, Status> {
        wal::describe(&self.node, &self.workers, &request.get_ref().archive).await.map(Response::new)
    }

    async fn prune_wal_archive(
        &self,
        request: Request<wire::PruneWalArchiveRequest>,
    ) -> Result<Response<wire::PruneWalArchiveResponse>, Status> {
        let r = request.get_ref();
        let removed = wal::prune(&self.node, &self.workers, &r.archive, &r.first_segment).await?;
        Ok(Response::new(wire::PruneWalArchiveResponse { removed }))
    }

    async fn delete_wal_archive(
        &self,
        request: Request<wire::DeleteWalArchiveRequest>,
    ) -> Result<Response<()>, Status> {
        wal::delete(&self.node, &self.workers, &request.get_ref().archive).await.map(Response::new)
    }
}
