//! Clusters, their parts, backups and operations, as they are stored.

use crate::ClusterState;
use custody_types::{ClusterName, KeyName, KeyVersionName, ManagedIdentityName, UnixMillis};
use serde::{Deserialize, Serialize};

/// Most workers of a cluster.
const WORKERS_MAX: u32 = 16;
/// Smallest data volume: PostgreSQL's own files and write-ahead log take some hundred MiB.
const VOLUME_LEN_MIN: u64 = 512 << 20;
/// Largest data volume.
const VOLUME_LEN_MAX: u64 = 4 << 40;

/// What protects a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncryptionSpec {
    /// A key or a key version.
    pub key: String,
    /// The identity that storage nodes act as.
    pub managed_identity: ManagedIdentityName,
    /// Whether the customer manages it.
    pub customer_managed: bool,
}

impl EncryptionSpec {
    /// Checks what a caller asks for. An empty `key` means the service-managed one, which is `service` as key and
    /// identity.
    ///
    /// # Errors
    /// Names the first field that is wrong.
    pub fn check(key: &str, managed_identity: &str, service: (&str, &str)) -> Result<Self, SpecError> {
        let customer_managed = !key.is_empty();
        let (key, identity) = if customer_managed { (key, managed_identity) } else { service };
        if !customer_managed && !managed_identity.is_empty() {
            return Err(SpecError::new("cluster.encryption.key", "is required with `managed_identity`"));
        }
        if key.parse::<KeyName>().is_err() && key.parse::<KeyVersionName>().is_err() {
            let why = format!("must be of the form {} or {}", KeyName::PATTERN, KeyVersionName::PATTERN);
            return Err(SpecError::new("cluster.encryption.key", why));
        }
        let managed_identity =
            identity.parse().map_err(|e| SpecError::new("cluster.encryption.managed_identity", e))?;
        Ok(Self { key: key.to_owned(), managed_identity, customer_managed })
    }
}

/// A change from one protector to another, under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncryptionChange {
    /// What shall protect the cluster.
    pub to: EncryptionSpec,
    /// What it leaves.
    pub from: EncryptionSpec,
}

/// What a caller asks for, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSpec {
    /// Its name.
    pub name: ClusterName,
    /// Number of workers.
    pub workers: u32,
    /// Bytes of each data volume.
    pub volume_size_bytes: u64,
    /// What protects it.
    pub encryption: EncryptionSpec,
    /// The SCRAM verifier of the `dba` role.
    pub password_verifier: String,
    /// A backup to restore: its place.
    pub source_backup: Option<String>,
    /// Where its log is archived, if it is.
    #[serde(default)]
    pub wal_archive: Option<WalArchiveSpec>,
    /// The moment to take the restored backup on to.
    #[serde(default)]
    pub recovery: Option<RecoverySpec>,
}

/// An archive of the logs of a cluster's nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalArchiveSpec {
    /// Unlike that of any other archive ever made: a cluster that takes the name of one that is gone does not add to the
    /// log of that.
    pub place: String,
}

impl WalArchiveSpec {
    /// The archive of one node.
    #[must_use]
    pub fn of(&self, role: &str) -> String {
        format!("{}/{role}", self.place)
    }
}

/// A moment of a source's past.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoverySpec {
    /// Unlike that of any other.
    pub id: String,
    /// The source's archive.
    pub archive: WalArchiveSpec,
    /// What was committed until then is there.
    pub target_time: UnixMillis,
    /// For each node, coordinator first: the last segment archived when the moment was found to be covered.
    pub last_segments: Vec<String>,
}

/// A request for a cluster that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}`: {why}")]
pub struct SpecError {
    /// The field of the request.
    pub field: &'static str,
    /// What is wrong and what is expected.
    pub why: String,
}

impl SpecError {
    fn new(field: &'static str, why: impl ToString) -> Self {
        Self { field, why: why.to_string() }
    }
}

impl ClusterSpec {
    /// Checks a request. An empty `key` means the service-managed one, which is `service` as key and identity.
    ///
    /// # Errors
    /// Names the first field that is wrong.
    pub fn check(
        id: &str,
        workers: i32,
        volume_size_bytes: i64,
        key: &str,
        managed_identity: &str,
        service: (&str, &str),
    ) -> Result<Self, SpecError> {
        let name = format!("clusters/{id}").parse().map_err(|e| SpecError::new("cluster_id", e))?;
        let workers = u32::try_from(workers).ok().filter(|w| *w <= WORKERS_MAX);
        let workers = workers
            .ok_or_else(|| SpecError::new("cluster.worker_count", format!("must be 0 to {WORKERS_MAX}")))?;
        let size = match volume_size_bytes {
            0 => 2 << 30,
            given => offered_size(given).ok_or_else(|| {
                let why = "must be a multiple of 4096 from 512 MiB to 4 TiB, or 0 for 2 GiB";
                SpecError::new("cluster.volume_size_bytes", why)
            })?,
        };
        let encryption = EncryptionSpec::check(key, managed_identity, service)?;
        Ok(Self {
            name,
            workers,
            volume_size_bytes: size,
            encryption,
            password_verifier: String::new(),
            source_backup: None,
            wal_archive: None,
            recovery: None,
        })
    }
}

/// One PostgreSQL of a cluster, and where it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// `coordinator` or `worker-{n}`.
    pub role: String,
    /// The id of its volume and instance; its temp volume has `-temp` after it.
    pub id: String,
    /// Where it was last seen serving.
    pub endpoint: String,
    /// The version that wraps its volume key.
    pub key_version: String,
    /// What was committed before is archived.
    #[serde(default)]
    pub wal_reaches: Option<UnixMillis>,
    /// Why its log cannot be archived.
    #[serde(default)]
    pub wal_failure: String,
}

impl NodeRecord {
    /// The temp volume's id.
    #[must_use]
    pub fn temp_id(&self) -> String {
        format!("{}-temp", self.id)
    }
}

/// A cluster as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// What was asked for.
    pub spec: ClusterSpec,
    /// Where it is in its life.
    pub state: ClusterState,
    /// Why, where it is inaccessible.
    pub state_reason: String,
    /// Coordinator first.
    pub nodes: Vec<NodeRecord>,
    /// The operation that its state belongs to, until that is done.
    pub operation: Option<String>,
    /// Why its making, or a change of its protector, failed: told when what was done has been undone.
    pub failure: Option<OperationResult>,
    /// The change of its protector that is under way.
    #[serde(default)]
    pub encryption_change: Option<EncryptionChange>,
    /// Bytes that its data volumes are growing to.
    #[serde(default)]
    pub growth: Option<u64>,
    /// When it was made.
    pub create_time: UnixMillis,
}

impl ClusterRecord {
    /// A new cluster, about to be made.
    #[must_use]
    pub fn new(spec: ClusterSpec, operation: String, now: UnixMillis) -> Self {
        let node = |role: String| NodeRecord {
            id: format!("{}-{role}", spec.name.id()),
            role,
            endpoint: String::new(),
            key_version: String::new(),
            wal_reaches: None,
            wal_failure: String::new(),
        };
        let nodes = roles(spec.workers).map(node).collect();
        Self {
            spec,
            state: ClusterState::Creating,
            state_reason: String::new(),
            nodes,
            operation: Some(operation),
            failure: None,
            encryption_change: None,
            growth: None,
            create_time: now,
        }
    }
}

impl ClusterRecord {
    /// Checks a size for its data volumes to grow to.
    ///
    /// # Errors
    /// It is not offered, or not larger than they are.
    pub fn check_growth(&self, volume_size_bytes: i64) -> Result<u64, SpecError> {
        let now = self.spec.volume_size_bytes;
        offered_size(volume_size_bytes).filter(|size| *size > now).ok_or_else(|| {
            let why = format!("must be a multiple of 4096, more than the {now} of now, and 4 TiB at most: volumes never shrink");
            SpecError::new("volume_size_bytes", why)
        })
    }

    /// What shall protect it: the new protector while it changes.
    #[must_use]
    pub fn encryption(&self) -> &EncryptionSpec {
        self.encryption_change.as_ref().map_or(&self.spec.encryption, |change| &change.to)
    }
}

/// A data volume's size, if it is one that can be had.
fn offered_size(bytes: i64) -> Option<u64> {
    let size = u64::try_from(bytes).ok()?;
    (size.is_multiple_of(4096) && (VOLUME_LEN_MIN..=VOLUME_LEN_MAX).contains(&size)).then_some(size)
}

/// The roles of a cluster's nodes: the coordinator first.
pub fn roles(workers: u32) -> impl Iterator<Item = String> {
    std::iter::once("coordinator".to_owned()).chain((1..=workers).map(|n| format!("worker-{n}")))
}

/// A backup of a whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupRecord {
    /// `backups/{id}`: the id.
    pub id: String,
    /// Where storage nodes keep its parts: a directory of its own, unlike that of any other backup ever made, so
    /// that what a failure leaves behind can be removed without a doubt.
    pub place: String,
    /// The cluster it was taken of.
    pub cluster: ClusterName,
    /// Number of workers.
    pub workers: u32,
    /// Bytes of each data volume.
    pub volume_size_bytes: u64,
    /// When.
    pub create_time: UnixMillis,
    /// The backup that it adds to, by id; none if it is full.
    #[serde(default)]
    pub base: Option<String>,
    /// Who may unwrap its keys.
    #[serde(default)]
    pub managed_identity: String,
    /// The archive that takes it on to later moments.
    #[serde(default)]
    pub wal_archive: Option<WalArchiveSpec>,
    /// For each node, coordinator first: the segment that was archived last when its part began. None before it is needed.
    #[serde(default)]
    pub wal_from: Vec<String>,
    /// When it was whole: the first moment that it can be taken on to.
    #[serde(default)]
    pub complete_time: UnixMillis,
}

/// Characters of an id that its place repeats, for people who look at the disk.
const PLACE_ID_LEN: usize = 40;

/// A name at the storage nodes for what an operation makes.
fn place(id: &str, operation: &str) -> String {
    let shown: String = id.chars().take(PLACE_ID_LEN).collect();
    format!("{shown}-{}", operation.trim_start_matches("op-"))
}

impl WalArchiveSpec {
    /// The archive of a cluster, by id, that `operation` makes.
    #[must_use]
    pub fn new(cluster: &str, operation: &str) -> Self {
        Self { place: place(cluster, operation) }
    }
}

impl BackupRecord {
    /// A backup of `cluster` under `id`, which `operation`, by id, makes.
    #[must_use]
    pub fn new(id: &str, operation: &str, cluster: &ClusterRecord, now: UnixMillis) -> Self {
        Self {
            id: id.to_owned(),
            place: place(id, operation),
            cluster: cluster.spec.name.clone(),
            workers: cluster.spec.workers,
            volume_size_bytes: cluster.spec.volume_size_bytes,
            create_time: now,
            base: None,
            managed_identity: cluster.spec.encryption.managed_identity.to_string(),
            wal_archive: cluster.spec.wal_archive.clone(),
            wal_from: Vec::new(),
            complete_time: now,
        }
    }
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OperationResult {
    /// With an error: canonical status, reason, text.
    Error {
        /// google.rpc.Code by name.
        status: String,
        /// `ErrorInfo.reason`.
        reason: String,
        /// For people.
        message: String,
    },
    /// With the thing it worked on.
    Success,
}

/// A long-running operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationRecord {
    /// `operations/{id}`: the id.
    pub id: String,
    /// The cluster or backup it works on, as a resource name.
    pub target: String,
    /// What it is doing.
    pub step: String,
    /// How it ended.
    pub result: Option<OperationResult>,
    /// When it began.
    pub create_time: UnixMillis,
    /// The call that asked for it, as a W3C `traceparent`, so that its work is in the caller's trace, also after a
    /// restart; empty where the caller is not traced.
    #[serde(default)]
    pub trace_parent: String,
    /// The backup that it makes: its parts are removed if the operation does not succeed.
    #[serde(default)]
    pub backup: Option<BackupRecord>,
}
