//! Carrying out one step of a plan. Each can be repeated.

use crate::{
    archives,
    engine::{Engine, Platform},
};
use custody_control::{ClusterRecord, EncryptionSpec, NodeRecord, RecoverySpec, Step};
use custody_proto::{
    database::{self as db, Instance, InstanceState},
    identity::{BindManagedIdentityRequest, UnbindManagedIdentityRequest},
    storage::{
        ChangeProtectorRequest, CreateVolumeRequest, DeleteVolumeRequest, GetVolumeRequest,
        ResizeVolumeRequest, SettleProtectorRequest, Volume, VolumeState,
    },
};
use custody_rpc::{
    status::status,
    timestamp::{from_wire, to_wire},
};
use custody_types::PassingReason;
use tonic::{Code, Status};

/// Why a step is not done.
pub(crate) enum StepError {
    /// It was refused, and trying again will not help.
    Refused(Box<Status>),
    /// The other service cannot be asked now.
    NotNow(String),
    /// It is under way; with what keeps it, where something does.
    NotYet(String),
}

/// Bytes of a temp volume.
const TEMP_LEN: i64 = 1 << 30;

impl From<Status> for StepError {
    fn from(e: Status) -> Self {
        match e.code() {
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::Cancelled
            | Code::ResourceExhausted
            | Code::Unknown => Self::NotNow(e.message().to_owned()),
            _ => Self::Refused(Box::new(e)),
        }
    }
}

/// What a look at a cluster's parts found.
pub(crate) struct Seen {
    pub(crate) nodes: Vec<NodeRecord>,
    /// The reason of the first volume whose key cannot be used.
    pub(crate) lost: Option<String>,
    /// Whether every instance serves.
    pub(crate) serving: bool,
}

pub(crate) fn describe(step: &Step) -> String {
    match step {
        Step::BindIdentity => "binding the identity".to_owned(),
        Step::UnbindIdentity => "unbinding the identity".to_owned(),
        Step::ChangeProtector(n) => format!("changing the protector of {}", n.role),
        Step::SettleProtector(n) => format!("settling the protector of {}", n.role),
        Step::UnbindFormerIdentity => "unbinding the former identity".to_owned(),
        Step::GrowVolume(n) => format!("making the volume of {} larger", n.role),
        Step::GrowInstance(n) => format!("starting PostgreSQL of {} with its larger volume", n.role),
        Step::CreateVolume(n) => format!("making the volume of {}", n.role),
        Step::CreateTempVolume(n) => format!("making the temp volume of {}", n.role),
        Step::DeleteVolumes(n) => format!("removing the volumes of {}", n.role),
        Step::CreateInstance(n) => format!("making PostgreSQL of {}", n.role),
        Step::StartInstance(n) => format!("starting PostgreSQL of {}", n.role),
        Step::StopInstance(n) => format!("stopping PostgreSQL of {}", n.role),
        Step::DeleteInstance(n) => format!("removing PostgreSQL of {}", n.role),
        Step::LinkWorkers => "telling the coordinator of its workers".to_owned(),
        Step::DeleteWalArchive => "removing the archive of the log".to_owned(),
        _ => String::new(),
    }
}

/// Does one step and answers the nodes as they are then.
pub(crate) async fn carry_out(
    platform: &Platform,
    engine: &Engine,
    cluster: &ClusterRecord,
    step: &Step,
) -> Result<Vec<NodeRecord>, StepError> {
    let mut nodes = cluster.nodes.clone();
    let encryption = cluster.encryption();
    let identity = encryption.managed_identity.to_string();
    match step {
        Step::BindIdentity => {
            let request =
                BindManagedIdentityRequest { name: identity, node: platform.storage_principal.clone() };
            platform.identity.clone().bind_managed_identity(request).await?;
        }
        Step::UnbindIdentity => {
            unbind(platform, engine, cluster, encryption).await?;
            // A cluster that is removed in the middle of a change has two.
            if let Some(change) = &cluster.encryption_change {
                unbind(platform, engine, cluster, &change.from).await?;
            }
        }
        Step::UnbindFormerIdentity => {
            let former = cluster.encryption_change.as_ref().map(|change| &change.from);
            if let Some(former) = former.filter(|f| f.managed_identity != encryption.managed_identity) {
                // Its backups are read as who it was when they were made.
                let backups = engine.ledger.backups().map_err(|e| StepError::NotNow(e.to_string()))?;
                let name = former.managed_identity.as_str();
                if !backups.iter().any(|b| b.managed_identity == name) {
                    unbind(platform, engine, cluster, former).await?;
                }
            }
        }
        Step::SettleProtector(node) => {
            let request = SettleProtectorRequest { name: format!("volumes/{}", node.id) };
            platform.storage.clone().settle_protector(request).await?;
        }
        Step::ChangeProtector(node) => {
            let request = ChangeProtectorRequest {
                name: format!("volumes/{}", node.id),
                key: encryption.key.clone(),
                managed_identity: identity,
                customer_managed: encryption.customer_managed,
            };
            let changed = platform.storage.clone().change_protector(request).await?.into_inner();
            take_key_version(&mut nodes, node, &changed);
        }
        Step::GrowVolume(node) => {
            let request =
                ResizeVolumeRequest { name: format!("volumes/{}", node.id), size_bytes: growth(cluster) };
            platform.storage.clone().resize_volume(request).await?;
        }
        Step::GrowInstance(node) => {
            let request = db::GetInstanceRequest { name: format!("instances/{}", node.id) };
            let now = platform.database.clone().get_instance(request).await?.into_inner();
            if now.state == i32::from(InstanceState::Inaccessible) {
                if PassingReason::find(&now.state_reason).is_some() {
                    return Err(StepError::NotYet(now.state_reason));
                }
                let why = format!(
                    "the volume of {} became inaccessible: {}; it has grown, and PostgreSQL takes it so when it is back",
                    node.role, now.state_reason
                );
                return Err(status("FAILED_PRECONDITION", "VOLUME_INACCESSIBLE", &why, None).into());
            }
            if now.volume_size_bytes < growth(cluster) {
                return Err(StepError::NotYet(String::new()));
            }
            take_endpoint(&mut nodes, node, &now)?;
        }
        Step::CreateVolume(node) => {
            let volume = Volume {
                size_bytes: i64::try_from(cluster.spec.volume_size_bytes).unwrap_or(i64::MAX),
                key: encryption.key.clone(),
                managed_identity: identity,
                customer_managed: encryption.customer_managed,
                ..Volume::default()
            };
            let source_backup =
                cluster.spec.source_backup.as_ref().map(|b| format!("{b}/{}", node.role)).unwrap_or_default();
            let request =
                CreateVolumeRequest { volume_id: node.id.clone(), volume: Some(volume), source_backup };
            let made = platform.storage.clone().create_volume(request).await?.into_inner();
            take_key_version(&mut nodes, node, &made);
        }
        Step::CreateTempVolume(node) => {
            let volume = Volume { size_bytes: TEMP_LEN, ephemeral: true, ..Volume::default() };
            let request = CreateVolumeRequest {
                volume_id: node.temp_id(),
                volume: Some(volume),
                source_backup: String::new(),
            };
            platform.storage.clone().create_volume(request).await?;
        }
        Step::DeleteVolumes(node) => {
            for id in [node.id.clone(), node.temp_id()] {
                let request = DeleteVolumeRequest { name: format!("volumes/{id}") };
                gone_is_fine(platform.storage.clone().delete_volume(request).await.map(drop))?;
            }
        }
        Step::CreateInstance(node) => {
            let instance = Instance {
                volume: format!("volumes/{}", node.id),
                temp_volume: format!("volumes/{}", node.temp_id()),
                password_verifier: cluster.spec.password_verifier.clone(),
                wal_archive: cluster.spec.wal_archive.as_ref().map(|a| a.of(&node.role)).unwrap_or_default(),
                recovery: cluster.spec.recovery.as_ref().map(|r| recovery(cluster, r, node)),
                ..Instance::default()
            };
            let request =
                db::CreateInstanceRequest { instance_id: node.id.clone(), instance: Some(instance) };
            let made = platform.database.clone().create_instance(request).await?.into_inner();
            take_endpoint(&mut nodes, node, &made)?;
        }
        Step::StartInstance(node) => {
            let name = format!("instances/{}", node.id);
            let mut now = platform
                .database
                .clone()
                .get_instance(db::GetInstanceRequest { name: name.clone() })
                .await?
                .into_inner();
            if now.state == i32::from(InstanceState::Stopped) {
                now = platform
                    .database
                    .clone()
                    .start_instance(db::StartInstanceRequest { name })
                    .await?
                    .into_inner();
            }
            take_endpoint(&mut nodes, node, &now)?;
        }
        Step::StopInstance(node) => {
            let request = db::StopInstanceRequest { name: format!("instances/{}", node.id) };
            platform.database.clone().stop_instance(request).await?;
            nodes.iter_mut().filter(|n| n.id == node.id).for_each(|n| n.endpoint.clear());
        }
        Step::DeleteInstance(node) => {
            let request = db::DeleteInstanceRequest { name: format!("instances/{}", node.id) };
            gone_is_fine(platform.database.clone().delete_instance(request).await.map(drop))?;
        }
        Step::LinkWorkers => link_workers(platform, cluster).await?,
        Step::DeleteWalArchive => {
            if let Some(archive) = &cluster.spec.wal_archive {
                archives::tidy(engine, archive, cluster.spec.workers, Some(cluster)).await?;
            }
        }
        _ => {}
    }
    Ok(nodes)
}

/// Bytes that a cluster's data volumes are growing to.
fn growth(cluster: &ClusterRecord) -> i64 {
    i64::try_from(cluster.growth.unwrap_or(cluster.spec.volume_size_bytes)).unwrap_or(i64::MAX)
}

/// What one node recovers to.
fn recovery(cluster: &ClusterRecord, spec: &RecoverySpec, node: &NodeRecord) -> db::Recovery {
    let place = cluster.nodes.iter().position(|n| n.id == node.id);
    db::Recovery {
        id: spec.id.clone(),
        archive: spec.archive.of(&node.role),
        target_time: Some(to_wire(spec.target_time)),
        last_segment: place.and_then(|n| spec.last_segments.get(n)).cloned().unwrap_or_default(),
    }
}

/// Takes back that the storage node acts as an identity, unless another cluster needs it.
async fn unbind(
    platform: &Platform,
    engine: &Engine,
    cluster: &ClusterRecord,
    encryption: &EncryptionSpec,
) -> Result<(), StepError> {
    let clusters = engine.ledger.clusters().map_err(|e| StepError::NotNow(e.to_string()))?;
    let uses = |e: &EncryptionSpec| e.managed_identity == encryption.managed_identity;
    let needed = clusters
        .iter()
        .any(|c| c.spec.name != cluster.spec.name && (uses(&c.spec.encryption) || uses(c.encryption())));
    if encryption.customer_managed && !needed {
        let name = encryption.managed_identity.to_string();
        let request = UnbindManagedIdentityRequest { name, node: platform.storage_principal.clone() };
        gone_is_fine(platform.identity.clone().unbind_managed_identity(request).await.map(drop))?;
    }
    Ok(())
}

pub(crate) fn gone_is_fine(done: Result<(), Status>) -> Result<(), Status> {
    done.or_else(|e| if e.code() == Code::NotFound { Ok(()) } else { Err(e) })
}

/// Notes which version wraps a volume's key.
fn take_key_version(nodes: &mut [NodeRecord], node: &NodeRecord, volume: &Volume) {
    nodes.iter_mut().filter(|n| n.id == node.id).for_each(|n| n.key_version.clone_from(&volume.key_version));
}

/// Waits for an instance to serve, and notes where.
fn take_endpoint(nodes: &mut [NodeRecord], node: &NodeRecord, instance: &Instance) -> Result<(), StepError> {
    let why = || instance.state_reason.clone();
    match instance.state() {
        InstanceState::Running => {
            let own = nodes.iter_mut().filter(|n| n.id == node.id);
            own.for_each(|n| n.endpoint.clone_from(&instance.endpoint));
            Ok(())
        }
        InstanceState::RecoveryFailed => {
            Err(status("FAILED_PRECONDITION", "RECOVERY_FAILED", &why(), None).into())
        }
        InstanceState::Failed => Err(StepError::NotYet(why())),
        _ => Err(StepError::NotYet(String::new())),
    }
}

async fn link_workers(platform: &Platform, cluster: &ClusterRecord) -> Result<(), StepError> {
    let Some((coordinator, workers)) = cluster.nodes.split_first() else { return Ok(()) };
    if workers.is_empty() {
        return Ok(());
    }
    let workers = workers
        .iter()
        .map(|w| db::Worker { server: w.role.replace('-', "_"), endpoint: w.endpoint.clone() })
        .collect();
    let request = db::LinkWorkersRequest { name: format!("instances/{}", coordinator.id), workers };
    match platform.database.clone().link_workers(request).await {
        Err(e) if e.code() == Code::FailedPrecondition => Err(StepError::NotNow(e.message().to_owned())),
        done => Ok(done.map(drop)?),
    }
}

/// Looks at every volume and instance of a cluster.
pub(crate) async fn observe(platform: &Platform, cluster: &ClusterRecord) -> Result<Seen, Status> {
    let mut seen = Seen { nodes: cluster.nodes.clone(), lost: None, serving: true };
    for node in &mut seen.nodes {
        let volume = platform
            .storage
            .clone()
            .get_volume(GetVolumeRequest { name: format!("volumes/{}", node.id) })
            .await?
            .into_inner();
        if volume.state != i32::from(VolumeState::Ready) && seen.lost.is_none() {
            seen.lost = Some(volume.state_reason);
        }
        node.key_version = volume.key_version;
        let instance = platform
            .database
            .clone()
            .get_instance(db::GetInstanceRequest { name: format!("instances/{}", node.id) })
            .await?
            .into_inner();
        seen.serving &= instance.state == i32::from(InstanceState::Running);
        node.endpoint = instance.endpoint;
        let archiving = instance.wal_archiving.unwrap_or_default();
        // After a restart it has archived nothing yet: what was known holds.
        let reaches = archiving.reaches.as_ref().and_then(|t| from_wire(t, "reaches").ok());
        node.wal_reaches = reaches.or(node.wal_reaches);
        node.wal_failure = archiving.failure;
    }
    Ok(seen)
}
