//! Backups of clusters: one part for each volume, whole or absent.

use crate::{
    engine::{Engine, RETRY, failure, ledger_failed},
    steps::gone_is_fine,
};
use custody_control::{BackupRecord, ClusterRecord, ClusterState, OperationRecord, OperationResult};
use custody_proto::storage::{BackupProgress, BackupVolumeRequest, DeleteBackupRequest};
use custody_rpc::status::{reason, status};
use custody_types::{Clock as _, SystemClock};
use std::sync::Arc;
use tonic::Status;
use tracing::Instrument as _;

/// Begins a backup of all volumes of a cluster, and answers the operation that makes it.
pub(crate) fn begin(
    engine: &Arc<Engine>,
    id: &str,
    cluster: ClusterRecord,
) -> Result<OperationRecord, Status> {
    let name = format!("backups/{id}");
    let mut operation = engine.new_operation(&name)?;
    let backup = BackupRecord::new(id, &operation.id, &cluster, SystemClock.now());
    operation.backup = Some(backup.clone());
    {
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
        engine.ledger.update(None, Some(&operation)).map_err(ledger_failed)?;
    }
    let span = engine.span(Some(&operation.id));
    tokio::spawn(run(engine.clone(), cluster, backup, operation.clone()).instrument(span));
    Ok(operation)
}

async fn run(
    engine: Arc<Engine>,
    cluster: ClusterRecord,
    backup: BackupRecord,
    mut operation: OperationRecord,
) {
    for node in &cluster.nodes {
        operation.step = format!("backing up {}", node.role);
        _ = engine.ledger.update(None, Some(&operation));
        if let Err(e) = back_up(&engine, &node.id, &format!("{}/{}", backup.place, node.role)).await {
            return give_up(engine, backup, operation, failure(&e)).await;
        }
    }
    operation.step = "done".to_owned();
    operation.result = Some(OperationResult::Success);
    if let Err(e) = engine.ledger.add_backup(&backup, &operation) {
        return give_up(engine, backup, operation, failure(&ledger_failed(e))).await;
    }
    engine.finished.notify_waiters();
}

/// Backs one volume up.
async fn back_up(engine: &Engine, volume: &str, part: &str) -> Result<(), Status> {
    let request = BackupVolumeRequest { name: format!("volumes/{volume}"), backup: part.to_owned() };
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

/// Ends a backup that an earlier process of the control plane began.
pub(crate) async fn end_interrupted(engine: Arc<Engine>, backup: BackupRecord, operation: OperationRecord) {
    let why = "the control plane ended during the backup; take another";
    let result = failure(&status("ABORTED", "BACKUP_INTERRUPTED", why, None));
    give_up(engine, backup, operation, result).await;
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
    operation.step = "done".to_owned();
    operation.result = Some(result);
    while let Err(e) = engine.ledger.update(None, Some(&operation)) {
        tracing::error!(backup = backup.id, error = %e, "a backup's end was not stored");
        tokio::time::sleep(RETRY).await;
    }
    engine.finished.notify_waiters();
}

async fn remove_parts(engine: &Engine, backup: &BackupRecord) -> Result<(), Status> {
    let request = DeleteBackupRequest { backup: backup.place.clone() };
    gone_is_fine(engine.platform.storage.clone().delete_backup(request).await.map(drop))
}

/// Removes a backup: its parts first, then its record, so that a failure between them can be repeated.
pub(crate) async fn delete(engine: &Engine, id: &str) -> Result<(), Status> {
    let backup = engine.ledger.backup(id).map_err(ledger_failed)?;
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
    engine.ledger.remove_backup(id).map_err(ledger_failed)
}
