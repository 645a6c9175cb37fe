//! Backing volumes up and restoring them.

use crate::{
    managed::Managed,
    node::{Node, blocking, failed, key_of, refused},
};
use custody_envelope::{OpenError, StreamKey, random};
use custody_node::{BackupError, BackupManifest, Snapshot, Volume, read_backup, remove_backup, write_backup};
use custody_proto::storage::BackupProgress;
use custody_rpc::status::{invalid, status};
use custody_types::{Clock as _, SystemClock};
use parking_lot::Mutex;
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::mpsc;
use tonic::Status;

/// A backup whose key is at hand.
pub(crate) struct Restore {
    dir: PathBuf,
    manifest: BackupManifest,
    key: StreamKey,
}

/// Backups that are being made, by directory.
#[derive(Default)]
pub(crate) struct Writing(Mutex<Vec<PathBuf>>);

struct BeingWritten(Arc<Writing>, PathBuf);

impl Writing {
    fn enter(self: &Arc<Self>, dir: &Path) -> Result<BeingWritten, Status> {
        let mut dirs = self.0.lock();
        if dirs.iter().any(|d| d == dir) {
            return Err(in_progress());
        }
        dirs.push(dir.to_owned());
        Ok(BeingWritten(self.clone(), dir.to_owned()))
    }

    fn any_in(&self, dir: &Path) -> bool {
        self.0.lock().iter().any(|d| d.starts_with(dir))
    }
}

impl Drop for BeingWritten {
    fn drop(&mut self) {
        let Self(writing, dir) = self;
        writing.0.lock().retain(|d| d != dir);
    }
}

fn in_progress() -> Status {
    status("ABORTED", "OPERATION_IN_PROGRESS", "the backup is being made; try again", None)
}

fn backup_failed(e: BackupError) -> Status {
    match e {
        BackupError::Exists => status("ALREADY_EXISTS", "ALREADY_EXISTS", &e.to_string(), None),
        BackupError::GivenUp => status("CANCELLED", "BACKUP_INTERRUPTED", &e.to_string(), None),
        BackupError::Corrupt | BackupError::Manifest => {
            status("DATA_LOSS", "BACKUP_CORRUPT", &e.to_string(), None)
        }
        other => failed(other),
    }
}

impl Restore {
    pub(crate) fn new(dir: PathBuf, manifest: BackupManifest, plain: &[u8]) -> Result<Self, Status> {
        let key = StreamKey::from_bytes(plain)
            .map_err(|OpenError| invalid("source_backup", "its key is malformed"))?;
        Ok(Self { dir, manifest, key })
    }

    /// Writes everything into a new volume and makes it durable.
    pub(crate) fn fill(self, volume: &Volume) -> Result<(), Status> {
        read_backup(&self.dir, &self.manifest, &self.key, |offset, block| volume.write_at(offset, block))
            .map_err(backup_failed)?;
        volume.flush().map_err(failed)
    }
}

/// Begins a backup; progress comes on the channel, an error ends it.
pub(crate) async fn begin(
    node: &Arc<Node>,
    managed: Arc<Managed>,
    backup: &str,
) -> Result<mpsc::Receiver<Result<BackupProgress, Status>>, Status> {
    let dir = node.backup_dir(backup)?;
    let being_written = node.writing.enter(&dir)?;
    if dir.exists() {
        return Err(backup_failed(BackupError::Exists));
    }
    let inaccessible = || {
        status(
            "FAILED_PRECONDITION",
            "VOLUME_INACCESSIBLE",
            &format!("`{}` is inaccessible", managed.name),
            None,
        )
    };
    let volume = managed.volume().ok_or_else(inaccessible)?;
    let protector = managed.protector();
    let key_name =
        key_of(&protector.key).ok_or_else(|| invalid("name", "an ephemeral volume is not backed up"))?;
    // A backup has a key of its own, wrapped by the KEK version of this moment.
    let key = StreamKey::generate().map_err(failed)?;
    let target =
        if protector.key.contains("/versions/") { protector.key.clone() } else { key_name.to_string() };
    let wrapped = node
        .access(&protector.managed_identity)
        .wrap_key(&target, key.expose_to_wrap())
        .await
        .map_err(refused)?;
    let mut backup_id = [0; 16];
    random(&mut backup_id).map_err(failed)?;
    let manifest = BackupManifest {
        version: 1,
        backup_id,
        source: managed.name.to_string(),
        size_bytes: managed.size_bytes(),
        create_time: SystemClock.now(),
        wrapped,
    };
    if let Some(parent) = dir.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        let _being_written = being_written;
        let progress = sender.clone();
        let done = blocking(move || {
            let snapshot = Snapshot::take(volume).map_err(failed)?;
            let total = snapshot.blocks();
            let tell = |done_blocks, total_blocks| {
                _ = progress.try_send(Ok(BackupProgress { done_blocks, total_blocks, complete: false }));
                if progress.is_closed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            write_backup(&dir, &manifest, &key, snapshot, tell).map_err(backup_failed)?;
            Ok(total)
        })
        .await;
        let last =
            done.map(|total| BackupProgress { done_blocks: total, total_blocks: total, complete: true });
        _ = sender.send(last).await;
    });
    Ok(receiver)
}

/// Removes a backup, or a directory of them.
pub(crate) async fn delete(node: &Node, backup: &str) -> Result<(), Status> {
    let dir = node.backup_dir(backup)?;
    if node.writing.any_in(&dir) {
        return Err(in_progress());
    }
    let none = status("NOT_FOUND", "NOT_FOUND", &format!("the backup `{backup}` does not exist"), None);
    blocking(move || if remove_backup(&dir).map_err(failed)? { Ok(()) } else { Err(none) }).await
}
