//! Verbs on clusters and backups.

use crate::{
    output::{line, many, note, one},
    session::{Session, time},
};
use anyhow::Context as _;
use clap::Subcommand;
use custody_proto::{
    control as wire,
    longrunning::{Operation, WaitOperationRequest, operation},
};
use serde_json::{Value, json};
use tonic::{Code, Status};

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Makes a cluster and waits until it serves.
    Create {
        id: String,
        /// Number of workers beside the coordinator.
        #[arg(long, default_value_t = 0)]
        workers: i32,
        /// The customer's key or key version; the service-managed key if not given.
        #[arg(long, requires = "identity")]
        key: Option<String>,
        /// The managed identity that has rights on the key.
        #[arg(long)]
        identity: Option<String>,
        /// MiB of each data volume.
        #[arg(long, default_value_t = 2048)]
        size_mib: i64,
        /// A file with the `dba` role's password; the environment's CUSTODY_DBA_PASSWORD if not given.
        #[arg(long)]
        password_file: Option<std::path::PathBuf>,
        /// A backup to restore: backups/ID.
        #[arg(long)]
        from: Option<String>,
        /// A moment to take the backup on to, 2026-11-25T12:00:00.000Z: what was committed until then, and nothing later.
        #[arg(long, requires = "from")]
        to_time: Option<prost_types::Timestamp>,
        /// Archives the write-ahead log beside the backups, sealed, so that each can be taken on to later moments.
        #[arg(long)]
        archive_wal: bool,
    },
    /// Shows a cluster.
    Get { name: String },
    /// Lists clusters.
    List,
    /// Removes a cluster with its volumes.
    Delete { name: String },
    /// Starts a stopped cluster.
    Start { name: String },
    /// Stops a cluster.
    Stop { name: String },
    /// Makes the data volumes larger, and the file systems on them; each PostgreSQL starts again once.
    Resize {
        name: String,
        /// MiB of each data volume.
        #[arg(long)]
        size_mib: i64,
    },
    /// Moves the wrapped volume keys to the key's current version now.
    Rewrap { name: String },
    /// Changes the cluster to another key while it serves; to the service-managed one if none is given. From a customer's
    /// key, as the officer.
    ChangeKey {
        name: String,
        /// The customer's key or key version.
        #[arg(long, requires = "identity")]
        key: Option<String>,
        /// The managed identity that has rights on the key.
        #[arg(long, requires = "key")]
        identity: Option<String>,
    },
}

#[derive(Subcommand)]
pub(crate) enum BackupVerb {
    /// Backs a cluster up.
    Create {
        cluster: String,
        id: String,
        /// An earlier backup, backups/ID: only what was written since is backed up, and restoring needs both.
        #[arg(long)]
        base: Option<String>,
    },
    /// Reads a backup, and what it adds to, without restoring it.
    Verify { name: String },
    /// Removes a backup for good.
    Delete { name: String },
    /// Removes a cluster's backups but the newest, and those of a span before now; with a backup stays what it adds to.
    Prune {
        cluster: String,
        /// Keep so many of the newest.
        #[arg(long, default_value_t = 0)]
        keep_last: i32,
        /// Keep all of so many days.
        #[arg(long, default_value_t = 0)]
        keep_days: u32,
        /// Only tell what would be removed.
        #[arg(long)]
        dry_run: bool,
    },
    /// Lists backups.
    List,
}

pub(crate) fn state(c: &wire::Cluster) -> String {
    wire::ClusterState::try_from(c.state)
        .map(|s| s.as_str_name().trim_start_matches("CLUSTER_STATE_").to_owned())
        .unwrap_or_default()
}

fn view(c: wire::Cluster) -> Value {
    let state = state(&c);
    let encryption = c.encryption.unwrap_or_default();
    let protector = if encryption.key.is_empty() { "service-managed".to_owned() } else { encryption.key };
    let nodes: Vec<Value> = c.nodes.iter().map(|n| json!({ "role": n.role, "endpoint": n.endpoint, "key_version": n.key_version.rsplit('/').next().unwrap_or_default(), "archived_to": time(n.wal_reaches), "archiving_failure": n.wal_failure })).collect();
    json!({ "name": c.name, "state": state, "reason": c.state_reason, "workers": c.worker_count, "mib": c.volume_size_bytes >> 20, "key": protector, "nodes": nodes, "created": time(c.create_time) })
}

fn backup_view(b: wire::Backup) -> Value {
    let restorable_from = if b.wal_archiving { time(b.complete_time) } else { String::new() };
    json!({ "name": b.name, "cluster": b.cluster, "workers": b.worker_count, "base": b.base, "created": time(b.create_time), "restorable_from": restorable_from })
}

/// Waits for an operation, telling of its steps.
pub(crate) async fn wait(
    session: &Session,
    mut operation: Operation,
    quiet: bool,
) -> anyhow::Result<Operation> {
    use prost::Message as _;
    let mut client = session.operations("sysadmin")?;
    let mut told = String::new();
    loop {
        let metadata = operation
            .metadata
            .as_ref()
            .and_then(|m| wire::OperationMetadata::decode(m.value.as_slice()).ok())
            .unwrap_or_default();
        if !quiet && metadata.step != told && !operation.done {
            note(format!("  {}", metadata.step));
            told = metadata.step;
        }
        match operation.result {
            Some(operation::Result::Error(e)) => {
                return Err(Status::new(Code::from_i32(e.code), e.message).into());
            }
            Some(operation::Result::Response(_)) => return Ok(operation),
            None => {}
        }
        let timeout = Some(prost_types::Duration { seconds: 0, nanos: 200_000_000 });
        operation =
            client.wait_operation(WaitOperationRequest { name: operation.name, timeout }).await?.into_inner();
    }
}

/// What shall protect a cluster: none is the service-managed key.
fn encryption(key: Option<String>, identity: Option<String>) -> Option<wire::Encryption> {
    key.map(|key| wire::Encryption { key, managed_identity: identity.unwrap_or_default() })
}

fn password(file: Option<std::path::PathBuf>) -> anyhow::Result<String> {
    match file {
        Some(file) => Ok(std::fs::read_to_string(&file)
            .with_context(|| format!("`{}` cannot be read", file.display()))?
            .trim_end()
            .to_owned()),
        None => std::env::var("CUSTODY_DBA_PASSWORD").context(
            "give the dba role's password: --password-file, or CUSTODY_DBA_PASSWORD in the environment",
        ),
    }
}

pub(crate) async fn run(session: &Session, verb: Verb) -> anyhow::Result<()> {
    let mut client = session.control("sysadmin")?;
    let operation = match verb {
        Verb::Create { id, workers, key, identity, size_mib, password_file, from, to_time, archive_wal } => {
            let encryption = encryption(key, identity);
            let size = size_mib.checked_mul(1 << 20).context("--size-mib is too large")?;
            let cluster = wire::Cluster {
                worker_count: workers,
                volume_size_bytes: size,
                encryption,
                wal_archiving: archive_wal,
                ..wire::Cluster::default()
            };
            let request = wire::CreateClusterRequest {
                cluster_id: id.clone(),
                cluster: Some(cluster),
                administrator_password: password(password_file)?,
                source_backup: from.unwrap_or_default(),
                restore_time: to_time,
            };
            let operation = client.create_cluster(request).await?.into_inner();
            wait(session, operation, false).await?;
            let made = client
                .get_cluster(wire::GetClusterRequest { name: format!("clusters/{id}") })
                .await?
                .into_inner();
            one(session.format, &view(made));
            return Ok(());
        }
        Verb::Get { name } => {
            one(
                session.format,
                &view(client.get_cluster(wire::GetClusterRequest { name }).await?.into_inner()),
            );
            return Ok(());
        }
        Verb::List => {
            let all = client
                .list_clusters(wire::ListClustersRequest { page_size: 1000, page_token: String::new() })
                .await?
                .into_inner();
            many(session.format, all.clusters.into_iter().map(view).collect());
            return Ok(());
        }
        Verb::Rewrap { name } => {
            one(
                session.format,
                &view(client.rewrap_cluster(wire::RewrapClusterRequest { name }).await?.into_inner()),
            );
            return Ok(());
        }
        Verb::ChangeKey { name, key, identity } => {
            let encryption = encryption(key, identity);
            let now = client.get_cluster(wire::GetClusterRequest { name: name.clone() }).await?.into_inner();
            // From a customer's key only the officer takes it.
            let under_customers = now.encryption.is_some_and(|e| !e.key.is_empty());
            let who = if under_customers { "officer" } else { "sysadmin" };
            let request = wire::ChangeEncryptionRequest { name, encryption };
            session.control(who)?.change_encryption(request).await?
        }
        Verb::Resize { name, size_mib } => {
            let request =
                wire::ResizeClusterRequest { name, volume_size_bytes: size_mib.saturating_mul(1 << 20) };
            client.resize_cluster(request).await?
        }
        Verb::Delete { name } => client.delete_cluster(wire::DeleteClusterRequest { name }).await?,
        Verb::Start { name } => client.start_cluster(wire::StartClusterRequest { name }).await?,
        Verb::Stop { name } => client.stop_cluster(wire::StopClusterRequest { name }).await?,
    };
    wait(session, operation.into_inner(), false).await?;
    line("done");
    Ok(())
}

pub(crate) async fn run_backup(session: &Session, verb: BackupVerb) -> anyhow::Result<()> {
    let mut client = session.control("sysadmin")?;
    match verb {
        BackupVerb::Create { cluster, id, base } => {
            let base = base.unwrap_or_default();
            let request = wire::CreateBackupRequest { parent: cluster, backup_id: id, base };
            let operation = client.create_backup(request).await?.into_inner();
            wait(session, operation, false).await?;
            line("done");
        }
        BackupVerb::Verify { name } => {
            let operation = client.verify_backup(wire::VerifyBackupRequest { name }).await?.into_inner();
            wait(session, operation, false).await?;
            line("every chunk authenticates");
        }
        BackupVerb::Delete { name } => {
            client.delete_backup(wire::DeleteBackupRequest { name }).await?;
            line("done");
        }
        BackupVerb::Prune { cluster, keep_last, keep_days, dry_run } => {
            let keep_within = prost_types::Duration { seconds: i64::from(keep_days) * 86_400, nanos: 0 };
            let request = wire::PruneBackupsRequest {
                parent: cluster,
                keep_last,
                keep_within: Some(keep_within),
                validate_only: dry_run,
            };
            let removed = client.prune_backups(request).await?.into_inner().removed;
            many(session.format, removed.into_iter().map(backup_view).collect());
        }
        BackupVerb::List => {
            let all = client
                .list_backups(wire::ListBackupsRequest { page_size: 1000, page_token: String::new() })
                .await?
                .into_inner();
            many(session.format, all.backups.into_iter().map(backup_view).collect());
        }
    }
    Ok(())
}
