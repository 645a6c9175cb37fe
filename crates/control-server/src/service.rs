//! The ClusterManager service on the wire.

use crate::{
    archives, backups, convert,
    engine::{Engine, ledger_failed},
};
use custody_audit::{Entry, Journal, Outcome, Record};
use custody_audit_server::Trail;
use custody_control::{
    BackupRecord, ClusterRecord, ClusterSpec, ClusterState, EncryptionChange, EncryptionSpec, Event,
    Retention, WalArchiveSpec,
};
use custody_proto::{
    control::{
        self as wire,
        cluster_manager_server::{ClusterManager, ClusterManagerServer},
    },
    identity::CreateManagedIdentityRequest,
    longrunning::Operation,
    storage::RewrapVolumeRequest,
};
use custody_rpc::{
    CallContext,
    page::cut,
    status::{code_name, invalid, status},
    timestamp::from_wire,
};
use custody_types::{Clock as _, ClusterName, Duty, SystemClock};
use std::sync::Arc;
use tonic::{Request, Response, Status};

pub(crate) struct ClusterService {
    engine: Arc<Engine>,
    journal: Arc<Journal>,
}

pub(crate) struct ControlTrail(pub(crate) Arc<Journal>);

impl Trail for ControlTrail {
    fn journal(&self) -> &Journal {
        &self.0
    }

    fn read(&self, _: &CallContext, after: u64, max: usize) -> Result<(Vec<Entry>, u64), Status> {
        let broken = |_| status("UNAVAILABLE", "AUDIT_UNAVAILABLE", "the audit trail cannot be read", None);
        let entries = self.0.read(after, max).map_err(broken)?;
        let last = entries.last().map_or(after, |e| e.sequence);
        Ok((entries, last))
    }
}

/// Characters of an administrator's password.
const PASSWORD_LEN: std::ops::RangeInclusive<usize> = 8..=128;

/// The id of a backup's name. The grammar of an id is the same everywhere.
fn backup_id<'a>(field: &'static str, name: &'a str) -> Result<&'a str, Status> {
    name.strip_prefix("backups/")
        .filter(|id| format!("clusters/{id}").parse::<ClusterName>().is_ok())
        .ok_or_else(|| {
            let rule = "an id is 1 to 63 of a-z, 0-9 and -, begins with a letter and does not end with -";
            invalid(field, format!("must be of the form backups/{{backup}}; {rule}"))
        })
}

impl ClusterService {
    pub(crate) fn server(engine: Arc<Engine>, journal: Arc<Journal>) -> ClusterManagerServer<Self> {
        ClusterManagerServer::new(Self { engine, journal })
    }

    /// Runs a call with its record: durable before, finished after.
    async fn audited<T>(
        &self,
        context: &CallContext,
        operation: &str,
        resource: &str,
        act: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let unavailable =
            |_| status("UNAVAILABLE", "AUDIT_UNAVAILABLE", "the audit journal cannot be written", None);
        let begin =
            Record::begin(SystemClock.now(), operation, &context.correlation_id, &context.caller, resource);
        let (journal, record) = (self.journal.clone(), begin.clone());
        tokio::task::spawn_blocking(move || journal.append(&record))
            .await
            .map_err(|_| custody_rpc::status::internal())?
            .map_err(unavailable)?;
        let done = act.await;
        let end = match &done {
            Ok(_) => begin.finish(SystemClock.now(), Outcome::Success, "OK", ""),
            Err(e) => begin.finish(SystemClock.now(), Outcome::Failed, code_name(e.code()), e.message()),
        };
        let journal = self.journal.clone();
        _ = tokio::task::spawn_blocking(move || journal.append(&end)).await;
        done
    }

    async fn transition(
        &self,
        context: &CallContext,
        operation: &str,
        name: &str,
        event: Event,
    ) -> Result<Response<Operation>, Status> {
        let name: ClusterName = name.parse().map_err(|e| invalid("name", e))?;
        self.audited(context, operation, name.as_str(), async {
            let record = self.engine.request(name.as_str(), event)?;
            Ok(Response::new(convert::operation(&record, None)))
        })
        .await
    }

    /// Checks a request; answers the backup that it is to begin with as well.
    fn check(&self, r: &wire::CreateClusterRequest) -> Result<(ClusterSpec, Option<BackupRecord>), Status> {
        let given = r.cluster.clone().unwrap_or_default();
        let encryption = given.encryption.unwrap_or_default();
        let mut spec = ClusterSpec::check(
            &r.cluster_id,
            given.worker_count,
            given.volume_size_bytes,
            &encryption.key,
            &encryption.managed_identity,
            self.engine.platform.service(),
        )
        .map_err(|e| invalid(e.field, e.why))?;
        if !PASSWORD_LEN.contains(&r.administrator_password.chars().count()) {
            return Err(invalid("administrator_password", "must have 8 to 128 characters"));
        }
        spec.password_verifier =
            postgres_protocol::password::scram_sha_256(r.administrator_password.as_bytes());
        let mut source = None;
        if !r.source_backup.is_empty() {
            let id = backup_id("source_backup", &r.source_backup)?;
            let backup = self.engine.ledger.backup(id).map_err(ledger_failed)?;
            if backup.workers != spec.workers || backup.volume_size_bytes > spec.volume_size_bytes {
                let why = format!(
                    "has {} workers and volumes of {} bytes; ask for as many, and no smaller ones",
                    backup.workers, backup.volume_size_bytes
                );
                return Err(invalid("source_backup", why));
            }
            spec.source_backup = Some(backup.place.clone());
            source = Some(backup);
        }
        Ok((spec, source))
    }
}

#[tonic::async_trait]
impl ClusterManager for ClusterService {
    async fn create_cluster(
        &self,
        request: Request<wire::CreateClusterRequest>,
    ) -> Result<Response<Operation>, Status> {
        let context = CallContext::of(&request)?;
        let (mut spec, source) = self.check(request.get_ref())?;
        let archived = request.get_ref().cluster.as_ref().is_some_and(|c| c.wal_archiving);
        let until = request.get_ref().restore_time.as_ref();
        let until = until.map(|time| from_wire(time, "restore_time")).transpose()?;
        let name = spec.name.clone();
        self.audited(&context, "ClusterCreate", name.as_str(), async {
            let operation = self.engine.new_operation(name.as_str())?;
            spec.wal_archive = archived.then(|| WalArchiveSpec::new(name.id(), &operation.id));
            spec.recovery = match (until, source) {
                (None, _) => None,
                (Some(_), None) => return Err(invalid("source_backup", "is required with `restore_time`")),
                (Some(time), Some(backup)) => {
                    Some(archives::recovery(&self.engine, &backup, &operation.id, time).await?)
                }
            };
            let cluster = ClusterRecord::new(spec, operation.id.clone(), SystemClock.now());
            self.engine.create(&cluster, &operation)?;
            Ok(Response::new(convert::operation(&operation, None)))
        })
        .await
    }

    async fn get_cluster(
        &self,
        request: Request<wire::GetClusterRequest>,
    ) -> Result<Response<wire::Cluster>, Status> {
        let name: ClusterName = request.get_ref().name.parse().map_err(|e| invalid("name", e))?;
        Ok(Response::new(convert::cluster(
            &self.engine.ledger.cluster(name.as_str()).map_err(ledger_failed)?,
        )))
    }

    async fn list_clusters(
        &self,
        request: Request<wire::ListClustersRequest>,
    ) -> Result<Response<wire::ListClustersResponse>, Status> {
        let r = request.into_inner();
        let all = self.engine.ledger.clusters().map_err(ledger_failed)?;
        let (page, next_page_token) = cut(all, r.page_size, &r.page_token, |c| c.spec.name.to_string())?;
        Ok(Response::new(wire::ListClustersResponse {
            clusters: page.iter().map(convert::cluster).collect(),
            next_page_token,
        }))
    }

    async fn delete_cluster(
        &self,
        request: Request<wire::DeleteClusterRequest>,
    ) -> Result<Response<Operation>, Status> {
        let context = CallContext::of(&request)?;
        self.transition(&context, "ClusterDelete", &request.get_ref().name, Event::Delete).await
    }

    async fn start_cluster(
        &self,
        request: Request<wire::StartClusterRequest>,
    ) -> Result<Response<Operation>, Status> {
        let context = CallContext::of(&request)?;
        self.transition(&context, "ClusterStart", &request.get_ref().name, Event::Start).await
    }

    async fn stop_cluster(
        &self,
        request: Request<wire::StopClusterRequest>,
    ) -> Result<Response<Operation>, Status> {
        let context = CallContext::of(&request)?;
        self.transition(&context, "ClusterStop", &request.get_ref().name, Event::Stop).await
    }

    async fn change_encryption(
        &self,
        request: Request<wire::ChangeEncryptionRequest>,
    ) -> Result<Response<Operation>, Status> {
        let context = CallContext::of(&request)?;
        let r = request.into_inner();
        let name: ClusterName = r.name.parse().map_err(|e| invalid("name", e))?;
        let asked = r.encryption.unwrap_or_default();
        let to = EncryptionSpec::check(&asked.key, &asked.managed_identity, self.engine.platform.service())
            .map_err(|e| invalid(e.field, e.why))?;
        self.audited(&context, "ClusterChangeEncryption", name.as_str(), async {
            let record = self.engine.request_with(name.as_str(), Event::Update, |cluster| {
                let from = cluster.spec.encryption.clone();
                // Or whoever runs the platform could take the data out of the customer's hands.
                if from.customer_managed && to != from && context.caller.duty != Duty::SecurityOfficer {
                    let why = format!(
                        "`{name}` is under a customer's key, which a security officer alone takes it from"
                    );
                    return Err(status("PERMISSION_DENIED", "OFFICER_REQUIRED", &why, None));
                }
                cluster.encryption_change = Some(EncryptionChange { to, from });
                Ok(())
            })?;
            Ok(Response::new(convert::operation(&record, None)))
        })
        .await
    }

    async fn resize_cluster(
        &self,
        request: Request<wire::ResizeClusterRequest>,
    ) -> Result<Response<Operation>, Status> {
        let context = CallContext::of(&request)?;
        let r = request.into_inner();
        let name: ClusterName = r.name.parse().map_err(|e| invalid("name", e))?;
        self.audited(&context, "ClusterResize", name.as_str(), async {
            let record = self.engine.request_with(name.as_str(), Event::Update, |cluster| {
                let size = cluster.check_growth(r.volume_size_bytes).map_err(|e| invalid(e.field, e.why))?;
                cluster.growth = Some(size);
                Ok(())
            })?;
            Ok(Response::new(convert::operation(&record, None)))
        })
        .await
    }

    async fn rewrap_cluster(
        &self,
        request: Request<wire::RewrapClusterRequest>,
    ) -> Result<Response<wire::Cluster>, Status> {
        let context = CallContext::of(&request)?;
        let name: ClusterName = request.get_ref().name.parse().map_err(|e| invalid("name", e))?;
        self.audited(&context, "ClusterRewrap", name.as_str(), async {
            let mut cluster = self.engine.ledger.cluster(name.as_str()).map_err(ledger_failed)?;
            for node in &mut cluster.nodes {
                let request = RewrapVolumeRequest { name: format!("volumes/{}", node.id) };
                node.key_version = self
                    .engine
                    .platform
                    .storage
                    .clone()
                    .rewrap_volume(request)
                    .await?
                    .into_inner()
                    .key_version;
            }
            Ok(Response::new(convert::cluster(&cluster)))
        })
        .await
    }

    async fn create_backup(
        &self,
        request: Request<wire::CreateBackupRequest>,
    ) -> Result<Response<Operation>, Status> {
        let context = CallContext::of(&request)?;
        let r = request.into_inner();
        let name: ClusterName = r.parent.parse().map_err(|e| invalid("parent", e))?;
        backup_id("backup_id", &format!("backups/{}", r.backup_id))?;
        let base = match r.base.as_str() {
            "" => None,
            name => Some(backup_id("base", name)?),
        };
        self.audited(&context, "BackupCreate", name.as_str(), async {
            let cluster = self.engine.ledger.cluster(name.as_str()).map_err(ledger_failed)?;
            if cluster.state != ClusterState::Ready && cluster.state != ClusterState::Stopped {
                let why = format!("`{name}` is {}; it can be backed up when READY or STOPPED", cluster.state);
                return Err(status("FAILED_PRECONDITION", "INVALID_CLUSTER_TRANSITION", &why, None));
            }
            let operation = backups::begin(&self.engine, &r.backup_id, cluster, base)?;
            Ok(Response::new(convert::operation(&operation, None)))
        })
        .await
    }

    async fn delete_backup(
        &self,
        request: Request<wire::DeleteBackupRequest>,
    ) -> Result<Response<()>, Status> {
        let context = CallContext::of(&request)?;
        let name = request.into_inner().name;
        let id = backup_id("name", &name)?;
        self.audited(&context, "BackupDelete", &name, async {
            backups::delete(&self.engine, id).await.map(Response::new)
        })
        .await
    }

    async fn prune_backups(
        &self,
        request: Request<wire::PruneBackupsRequest>,
    ) -> Result<Response<wire::PruneBackupsResponse>, Status> {
        let context = CallContext::of(&request)?;
        let r = request.into_inner();
        let name: ClusterName = r.parent.parse().map_err(|e| invalid("parent", e))?;
        let keep_last =
            usize::try_from(r.keep_last).map_err(|_| invalid("keep_last", "must not be negative"))?;
        let keep_within = r.keep_within.unwrap_or_default();
        let keep_within =
            keep_within.try_into().map_err(|_| invalid("keep_within", "must not be negative"))?;
        let retention = Retention { keep_last, keep_within };
        if retention.keep_last == 0 && retention.keep_within.is_zero() {
            let why = "or `keep_within` is required: to remove every backup, delete each";
            return Err(invalid("keep_last", why));
        }
        self.audited(&context, "BackupPrune", name.as_str(), async {
            let removed = backups::prune(&self.engine, name.as_str(), retention, r.validate_only).await?;
            let removed = removed.iter().map(convert::backup).collect();
            Ok(Response::new(wire::PruneBackupsResponse { removed }))
        })
        .await
    }

    async fn verify_backup(
        &self,
        request: Request<wire::VerifyBackupRequest>,
    ) -> Result<Response<Operation>, Status> {
        let context = CallContext::of(&request)?;
        let name = request.into_inner().name;
        let id = backup_id("name", &name)?;
        self.audited(&context, "BackupVerify", &name, async {
            let operation = backups::begin_verification(&self.engine, id)?;
            Ok(Response::new(convert::operation(&operation, None)))
        })
        .await
    }

    async fn list_backups(
        &self,
        request: Request<wire::ListBackupsRequest>,
    ) -> Result<Response<wire::ListBackupsResponse>, Status> {
        let r = request.into_inner();
        let all = self.engine.ledger.backups().map_err(ledger_failed)?;
        let (page, next_page_token) = cut(all, r.page_size, &r.page_token, |b| b.id.clone())?;
        Ok(Response::new(wire::ListBackupsResponse {
            backups: page.iter().map(convert::backup).collect(),
            next_page_token,
        }))
    }

    async fn create_identity(
        &self,
        request: Request<wire::CreateIdentityRequest>,
    ) -> Result<Response<wire::ClusterIdentity>, Status> {
        let context = CallContext::of(&request)?;
        let id = request.into_inner().identity_id;
        self.audited(
            &context,
            "IdentityCreate",
            &format!("managedIdentities/{}", id.chars().take(63).collect::<String>()),
            async {
                let request = CreateManagedIdentityRequest { managed_identity_id: id };
                let made = self
                    .engine
                    .platform
                    .identity
                    .clone()
                    .create_managed_identity(request)
                    .await?
                    .into_inner();
                Ok(Response::new(wire::ClusterIdentity { name: made.name }))
            },
        )
        .await
    }
}
