//! Archives of write-ahead logs: what a recovery to a moment needs of them, and what no backup needs any more.

use crate::{
    engine::{Engine, ledger_failed},
    steps::gone_is_fine,
};
use custody_control::{BackupRecord, ClusterRecord, RecoverySpec, WalArchiveSpec, roles};
use custody_proto::storage::{
    DeleteWalArchiveRequest, GetWalArchiveRequest, PruneWalArchiveRequest, WalArchive,
};
use custody_rpc::{
    status::invalid,
    timestamp::{from_wire, to_wire},
};
use custody_types::UnixMillis;
use tonic::Status;

async fn look(engine: &Engine, archive: String) -> Result<WalArchive, Status> {
    let request = GetWalArchiveRequest { archive };
    Ok(engine.platform.storage.clone().get_wal_archive(request).await?.into_inner())
}

/// The last segment that is archived of one node's log: a backup that begins now needs none before it.
pub(crate) async fn last_segment(
    engine: &Engine,
    archive: &WalArchiveSpec,
    role: &str,
) -> Result<String, Status> {
    Ok(look(engine, archive.of(role)).await?.last_segment)
}

/// Checks that a backup can be taken on to a moment, and how.
pub(crate) async fn recovery(
    engine: &Engine,
    backup: &BackupRecord,
    id: &str,
    target_time: UnixMillis,
) -> Result<RecoverySpec, Status> {
    let Some(archive) = &backup.wal_archive else {
        let why = format!(
            "needs an archive of the log, and `{}` is of a cluster without one; make clusters with `wal_archiving`",
            backup.id
        );
        return Err(invalid("restore_time", why));
    };
    if target_time < backup.complete_time {
        let why = format!(
            "must be {} or later, when `{}` was complete; give an earlier backup, or none of it",
            to_wire(backup.complete_time),
            backup.id
        );
        return Err(invalid("restore_time", why));
    }
    let mut last_segments = Vec::new();
    for role in roles(backup.workers) {
        let found = look(engine, archive.of(&role)).await?;
        let reaches = found.reaches.as_ref().map(|t| from_wire(t, "reaches")).transpose()?;
        if reaches.is_none_or(|reaches| reaches < target_time) {
            let until = found.reaches.map_or_else(|| "nowhere".to_owned(), |t| format!("to {t}"));
            let why = format!(
                "lies beyond the archived log of {role}, which reaches {until}; what is committed is archived within a minute, and at once after `SELECT pg_switch_wal()`"
            );
            return Err(invalid("restore_time", why));
        }
        last_segments.push(found.last_segment);
    }
    Ok(RecoverySpec { id: id.to_owned(), archive: archive.clone(), target_time, last_segments })
}

/// Removes what no backup needs of an archive: all of it, where its cluster is gone and so are its backups; else what
/// is older than the oldest of them. An archive that a backup is being made for stays as it is.
pub(crate) async fn tidy(
    engine: &Engine,
    archive: &WalArchiveSpec,
    workers: u32,
    leaving: Option<&ClusterRecord>,
) -> Result<(), Status> {
    let of_it = |b: &BackupRecord| b.wal_archive.as_ref() == Some(archive);
    let operations = engine.ledger.operations().map_err(ledger_failed)?;
    if operations.iter().any(|o| o.result.is_none() && o.backup.as_ref().is_some_and(of_it)) {
        return Ok(());
    }
    let mut backups = engine.ledger.backups().map_err(ledger_failed)?;
    backups.retain(of_it);
    let clusters = engine.ledger.clusters().map_err(ledger_failed)?;
    let living = clusters
        .iter()
        .filter(|c| leaving.is_none_or(|gone| gone.spec.name != c.spec.name))
        .any(|c| c.spec.wal_archive.as_ref() == Some(archive));
    let mut storage = engine.platform.storage.clone();
    if backups.is_empty() && !living {
        let request = DeleteWalArchiveRequest { archive: archive.place.clone() };
        return gone_is_fine(storage.delete_wal_archive(request).await.map(drop));
    }
    for (n, role) in roles(workers).enumerate() {
        let needed = |b: &BackupRecord| b.wal_from.get(n).cloned().unwrap_or_default();
        let first_segment = match backups.iter().map(needed).min() {
            Some(first) => first,
            None => last_segment(engine, archive, &role).await?,
        };
        if !first_segment.is_empty() {
            let request = PruneWalArchiveRequest { archive: archive.of(&role), first_segment };
            _ = storage.prune_wal_archive(request).await?;
        }
    }
    Ok(())
}
