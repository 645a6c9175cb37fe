//! One volume: its file, whether it is open, and who wants to know.

use crate::{leases::Granted, wal::WalKeys};
use custody_envelope::VolumeKey;
use custody_node::{Protector, Superblock, Volume, VolumeError};
use custody_rpc::status::status;
use custody_types::{PassingReason, VolumeName};
use parking_lot::{Mutex, RwLock};
use std::{
    fs::File,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use tonic::Status;
use tracing::Span;

/// Whether a volume can be used, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeStatus {
    pub(crate) ready: bool,
    pub(crate) reason: String,
}

impl VolumeStatus {
    pub(crate) fn ready() -> Self {
        Self { ready: true, reason: String::new() }
    }

    pub(crate) fn inaccessible(reason: &str) -> Self {
        Self { ready: false, reason: reason.to_owned() }
    }
}

/// Asks the keeper to look at the vault now.
pub(crate) struct Nudge {
    /// Told when it has looked.
    pub(crate) done: oneshot::Sender<()>,
    /// A change of the volume's protector.
    pub(crate) change: Option<Change>,
    /// The call that asks, so that the vault's answer is in its trace.
    pub(crate) span: Span,
}

/// A protector to put in place of the volume's.
pub(crate) struct Change {
    pub(crate) next: Protector,
    /// Opens the volume, where the present protector does not let it be open.
    pub(crate) key: VolumeKey,
    pub(crate) told: oneshot::Sender<Result<(), Status>>,
}

pub(crate) struct Managed {
    pub(crate) name: VolumeName,
    pub(crate) path: PathBuf,
    size_bytes: AtomicU64,
    protector: RwLock<Protector>,
    volume: RwLock<Option<Arc<Volume>>>,
    pub(crate) status: watch::Sender<VolumeStatus>,
    pub(crate) nudge: mpsc::Sender<Nudge>,
    pub(crate) nudges: tokio::sync::Mutex<mpsc::Receiver<Nudge>>,
    task: Mutex<Option<JoinHandle<()>>>,
    /// Whether headers that flushes left are being written.
    pub(crate) settling: AtomicBool,
    /// The last flush that whoever writes them knows of.
    pub(crate) flushes_seen: AtomicU64,
    /// Whether headers are to be looked through for retired data keys.
    pub(crate) look_for_retired: AtomicBool,
    rotation: Mutex<RotationProgress>,
    pub(crate) wal_keys: WalKeys,
    /// The lease that the keys are held under.
    pub(crate) lease: Mutex<Option<Granted>>,
}

/// How many extents are under a retired data key, of how many.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RotationProgress {
    pub(crate) retired: u32,
    pub(crate) extents: u32,
}

impl Managed {
    fn new(
        name: VolumeName,
        path: PathBuf,
        size_bytes: u64,
        protector: Protector,
        volume: Option<Volume>,
    ) -> Self {
        let status = if volume.is_some() {
            VolumeStatus::ready()
        } else {
            VolumeStatus::inaccessible(PassingReason::Starting.as_str())
        };
        let (nudge, nudges) = mpsc::channel(16);
        Self {
            name,
            path,
            size_bytes: AtomicU64::new(size_bytes),
            protector: RwLock::new(protector),
            volume: RwLock::new(volume.map(Arc::new)),
            status: watch::Sender::new(status),
            nudge,
            nudges: tokio::sync::Mutex::new(nudges),
            task: Mutex::default(),
            settling: AtomicBool::new(false),
            flushes_seen: AtomicU64::new(0),
            look_for_retired: AtomicBool::new(true),
            rotation: Mutex::default(),
            wal_keys: WalKeys::default(),
            lease: Mutex::default(),
        }
    }

    /// A volume whose key is at hand.
    pub(crate) fn open(name: VolumeName, path: PathBuf, volume: Volume) -> Self {
        Self::new(name, path, volume.size_bytes(), volume.protector(), Some(volume))
    }

    /// A volume that waits for the vault.
    pub(crate) fn sealed(name: VolumeName, path: PathBuf, superblock: Superblock) -> Self {
        Self::new(name, path, superblock.size_bytes, superblock.protector, None)
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    /// The volume has grown: whoever watches it is told.
    pub(crate) fn set_size(&self, size_bytes: u64) {
        self.size_bytes.fetch_max(size_bytes, Ordering::AcqRel);
        self.status.send_modify(|_| ());
    }

    pub(crate) fn protector(&self) -> Protector {
        self.protector.read().clone()
    }

    /// The open volume. Whoever holds it does one request with it and lets it go.
    pub(crate) fn volume(&self) -> Option<Arc<Volume>> {
        self.volume.read().clone()
    }

    pub(crate) fn set_protector(&self, protector: Protector) {
        *self.protector.write() = protector;
    }

    pub(crate) fn put(&self, volume: Volume) {
        *self.volume.write() = Some(Arc::new(volume));
        self.look_for_retired.store(true, Ordering::Release);
        self.status.send_replace(VolumeStatus::ready());
    }

    /// Flushes, and takes the keys out of memory. Blocks until they are gone.
    pub(crate) fn close(&self, status: VolumeStatus) {
        if let Some(volume) = self.volume() {
            self.told(volume.settle_down());
        }
        if let Some(file) = self.erase(status) {
            self.settle(&file);
        }
    }

    /// Takes the keys out of memory at once: no new request finds the volume, the running ones end, and the last
    /// handle erases the keys. Blocks until they are gone. What was written is made durable after that, by
    /// [`Managed::settle`], since a slow disk must not keep keys. Recovery reads it.
    pub(crate) fn erase(&self, status: VolumeStatus) -> Option<File> {
        let taken = self.volume.write().take();
        self.status.send_replace(status);
        let file = last(taken?).erase_keys();
        self.wal_keys.erase();
        Some(file)
    }

    /// The last flush.
    pub(crate) fn settle(&self, file: &File) {
        self.told(file.sync_data());
    }

    fn told(&self, flushed: Result<(), impl std::fmt::Display>) {
        if let Err(e) = flushed {
            tracing::warn!(volume = %self.name, error = %e, "the last flush failed; recovery will read what reached the disk");
        }
    }

    /// Why it cannot be used, for a caller: to be tried again where nobody refuses it.
    pub(crate) fn refusal(&self) -> Status {
        let reason = self.status.borrow().reason.clone();
        let code = match PassingReason::find(&reason) {
            Some(_) => "UNAVAILABLE",
            None => "PERMISSION_DENIED",
        };
        let why = format!("`{}` is inaccessible: {reason}", self.name);
        status(code, "VOLUME_INACCESSIBLE", &why, None)
    }

    /// Returns when it cannot be used.
    pub(crate) async fn inaccessible(&self) {
        _ = self.status.subscribe().wait_for(|status| !status.ready).await;
    }

    pub(crate) fn rotation(&self) -> RotationProgress {
        *self.rotation.lock()
    }

    /// Looks through the headers of the volume; answers the extents under a retired data key.
    pub(crate) fn find_retired(&self, volume: &Volume) -> Result<Vec<u32>, VolumeError> {
        let (found, extents) = volume.retired_extents(|| self.volume.read().is_none())?;
        *self.rotation.lock() =
            RotationProgress { retired: u32::try_from(found.len()).unwrap_or(u32::MAX), extents };
        Ok(found)
    }

    /// One of those that were found is done.
    pub(crate) fn one_rotated(&self) {
        let mut rotation = self.rotation.lock();
        rotation.retired = rotation.retired.saturating_sub(1);
    }

    pub(crate) fn set_task(&self, task: JoinHandle<()>) {
        *self.task.lock() = Some(task);
    }

    pub(crate) fn stop_task(&self) {
        let task = self.task.lock().take();
        if let Some(task) = task {
            task.abort();
        }
    }
}

/// Waits for the last user of something to let go of it.
pub(crate) fn last<T>(mut shared: Arc<T>) -> T {
    loop {
        match Arc::try_unwrap(shared) {
            Ok(last) => return last,
            // A request is still running with it; it takes no longer than its input and output.
            Err(still) => shared = still,
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
}
