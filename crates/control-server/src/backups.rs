//! Backups of clusters: one part for each volume, whole or absent.

use crate::{
    archives,
    engine::{Engine, RETRY, failure, ledger_failed},
    steps::gone_is_fine,
};
use custody_control::{
    BackupRecord, ClusterRecord, ClusterState, OperationRecord, OperationResult, Retention, roles,
};
use custody_proto::storage::{BackupProgress, BackupVolumeRequest, DeleteBackupRequest, VerifyBackupRequest};
use custody_rpc::status::{invalid, reason, status};
use custody_types::{Clock as _, SystemClock};
use std::sync::Arc;
use tonic::Status;
use tracing::Instrument as _;

/// Begins a backup of all volumes of a cluster, or of what has changed since `base`, and answers the operation that
/// makes it.
pub(crate) fn begin(
    engine: &Arc<Engine>,
    id: &str,
    cluster: ClusterRecord,
    base: Option<&str>,
) -> Result<OperationRecord, Status> {
    let name = format!("backups/{id}");
    let mut operation = engine.new_operation(&name)?;
    let mut backup = BackupRecord::new(id, &operation.id, &cluster, SystemClock.now());
    backup.base = base.map(str::to_owned);
    operation.backup = Some(backup.clone());
    let base = {
        let _one_at_a_time = engine.changes.lock();
        let being_made = engine
            .ledger
            .operations()
            .map_err(ledger_failed)?
            .iter()
            .any(|o| o.result.is_none() && o.target == name);
        if being_made || engine.ledger.backup(id).is_ok() {
            let why = format!("`{name}` exists already, or is being made");
            return Err(status("ALREADY_EXISTS", "ALREADY_EXISTS", &why, None));
        }
        let base = base.map(|id| engine.ledger.backup(id)).transpose().map_err(ledger_failed)?;
        if base.as_ref().is_some_and(|b| b.cluster != cluster.spec.name) {
            return Err(invalid("base", "must be a backup of the same cluster"));
        }
        engine.ledger.update(None, Some(&operation)).map_err(ledger_failed)?;
        base
    };
    let span = engine.span(Some(&operation.id));
    tokio::spawn(run(engine.clone(), cluster, backup, base, operation.clone()).instrument(span));
    Ok(operation)
}

async fn run(
    engine: Arc<Engine>,
    cluster: ClusterRecord,
    mut backup: BackupRecord,
    base: Option<BackupRecord>,
    mut operation: OperationRecord,
) {
    for node in &cluster.nodes {
        operation.step = format!("backing up {}", node.role);
        _ = engine.ledger.update(None, Some(&operation));
        let part = |of: &BackupRecord| format!("{}/{}", of.place, node.role);
        let request = BackupVolumeRequest {
            name: format!("volumes/{}", node.id),
            backup: part(&backup),
            base: base.as_ref().map(part).unwrap_or_default(),
        };
        // Before the part is begun: what is archived by then is in it.
        let archived = match &backup.wal_archive {
            Some(archive) => archives::last_segment(&engine, archive, &node.role).await,
            None => Ok(String::new()),
        };
        let done = match archived {
            Ok(segment) => {
                backup.wal_from.push(segment);
                back_up(&engine, request).await
            }
            Err(e) => Err(e),
        };
        if let Err(e) = done {
            return give_up(engine, backup, operation, failure(&e)).await;
        }
    }
    backup.complete_time = SystemClock.now();
    operation.backup = Some(backup.clone());
    operation.step = "done".to_owned();
    operation.result = Some(OperationResult::Success);
    if let Err(e) = engine.ledger.add_backup(&backup, &operation) {
        return give_up(engine, backup, operation, failure(&ledger_failed(e))).await;
    }
    engine.finished.notify_waiters();
    tidy_archive(&engine, &backup).await;
}

/// Removes what no backup needs of the log. What cannot be removed now is when the next backup is made or removed.
async fn tidy_archive(engine: &Engine, backup: &BackupRecord) {
    let Some(archive) = &backup.wal_archive else { return };
    if let Err(e) = archives::tidy(engine, archive, backup.workers, None).await {
        tracing::warn!(archive = archive.place, error = e.message(), "an archive of the log was not pruned");
    }
}

/// Backs one volume up.
async fn back_up(engine: &Engine, request: BackupVolumeRequest) -> Result<(), Status> {
    let mut progress = engine.platform.storage.clone().backup_volume(request).await?.into_inner();
    loop {
        match progress.message().await {
            Ok(Some(BackupProgress { complete: true, .. })) => return Ok(()),
            Ok(Some(_)) => {}
            Err(e) if !reason(&e).is_empty() => return Err(e),
            // The stream ended, or broke off, without a word of the node.
            Ok(None) | Err(_) => {
                let why = "the storage node ended during the backup; take another";
                return Err(status("UNAVAILABLE", "BACKUP_INTERRUPTED", why, None));
            }
        }
    }
}

/// Ends what an earlier process of the control plane began with a backup: making it, or reading it.
pub(crate) async fn end_interrupted(engine: Arc<Engine>, operation: OperationRecord) {
    let ended = |why| failure(&status("ABORTED", "BACKUP_INTERRUPTED", why, None));
    match operation.backup.clone() {
        Some(backup) => {
            let result = ended("the control plane ended during the backup; take another");
            give_up(engine, backup, operation, result).await;
        }
        None => end(&engine, operation, ended("the control plane ended meanwhile; verify it again")).await,
    }
}

/// Removes what was made, however long the storage node is away, and tells of the failure then.
async fn give_up(
    engine: Arc<Engine>,
    backup: BackupRecord,
    mut operation: OperationRecord,
    result: OperationResult,
) {
    operation.step = "removing what was made".to_owned();
    _ = engine.ledger.update(None, Some(&operation));
    while let Err(e) = remove_parts(&engine, &backup).await {
        tracing::warn!(backup = backup.id, error = e.message(), "parts of a failed backup remain for now");
        tokio::time::sleep(RETRY).await;
    }
    end(&engine, operation, result).await;
}

async fn remove_parts(engine: &Engine, backup: &BackupRecord) -> Result<(), Status> {
    let request = DeleteBackupRequest { backup: backup.place.clone() };
    gone_is_fine(engine.platform.storage.clone().delete_backup(request).await.map(drop))
}

/// Begins to have every part of a backup read, and answers the operation that does it.
pub(crate) fn begin_verification(engine: &Arc<Engine>, id: &str) -> Result<OperationRecord, Status> {
    let backup = engine.ledger.backup(id).map_err(ledger_failed)?;
    let operation = engine.new_operation(&format!("backups/{id}"))?;
    engine.ledger.update(None, Some(&operation)).map_err(ledger_failed)?;
    let span = engine.span(Some(&operation.id));
    tokio::spawn(verify(engine.clone(), backup, operation.clone()).instrument(span));
    Ok(operation)
}

async fn verify(engine: Arc<Engine>, backup: BackupRecord, mut operation: OperationRecord) {
    let mut result = OperationResult::Success;
    for role in roles(backup.workers) {
        operation.step = format!("reading {role}");
        _ = engine.ledger.update(None, Some(&operation));
        let request = VerifyBackupRequest {
            backup: format!("{}/{role}", backup.place),
            managed_identity: backup.managed_identity.clone(),
        };
        if let Err(e) = engine.platform.storage.clone().verify_backup(request).await {
            result = failure(&e);
            break;
        }
    }
    end(&engine, operation, result).await;
}

/// Stores how an operation ended, however long that takes.
async fn end(engine: &Engine, mut operation: OperationRecord, result: OperationResult) {
    operation.step = "done".to_owned();
    operation.result = Some(result);
    while let Err(e) = engine.ledger.update(None, Some(&operation)) {
        tracing::error!(operation = operation.id, error = %e, "an operation's end was not stored");
        tokio::time::sleep(RETRY).await;
    }
    engine.finished.notify_waiters();
}

/// Removes a backup: its parts first, then its record, so that a failure between them can be repeated.
pub(crate) async fn delete(engine: &Engine, id: &str) -> Result<(), Status> {
    let backup = engine.ledger.backup(id).map_err(ledger_failed)?;
    let making = engine.ledger.operations().map_err(ledger_failed)?.into_iter();
    let making = making.filter(|o| o.result.is_none()).filter_map(|o| o.backup);
    let made = engine.ledger.backups().map_err(ledger_failed)?.into_iter();
    if let Some(increment) = made.chain(making).find(|b| b.base.as_deref() == Some(id)) {
        let why = format!(
            "`backups/{}` adds to it and could not be restored any more; delete that first",
            increment.id
        );
        return Err(status("FAILED_PRECONDITION", "BACKUP_IN_USE", &why, None));
    }
    let clusters = engine.ledger.clusters().map_err(ledger_failed)?;
    let reads = |c: &&ClusterRecord| {
        c.state == ClusterState::Creating && c.spec.source_backup.as_deref() == Some(&backup.place)
    };
    if let Some(reader) = clusters.iter().find(reads) {
        let why = format!(
            "`backups/{id}` is being restored to `{}`; try again when that is done",
            reader.spec.name
        );
        return Err(status("ABORTED", "OPERATION_IN_PROGRESS", &why, None));
    }
    remove_parts(engine, &backup).await?;
    engine.ledger.remove_backup(id).map_err(ledger_failed)?;
    tidy_archive(engine, &backup).await;
    Ok(())
}

/// Removes the backups of a cluster that a retention does not keep, and answers them. If one cannot be removed, those
/// before it are gone, and calling it again goes on.
pub(crate) async fn prune(
    engine: &Engine,
    cluster: &str,
    retention: Retention,
    validate_only: bool,
) -> Result<Vec<BackupRecord>, Status> {
    let mut backups = engine.ledger.backups().map_err(ledger_failed)?;
    backups.retain(|b| b.cluster.as_str() == cluster);
    let gone = retention.prunable(&backups, SystemClock.now());
    if !validate_only {
        for backup in &gone {
            delete(engine, &backup.id).await?;
        }
    }
    Ok(gone.into_iter().cloned().collect())
}
