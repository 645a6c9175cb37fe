//! The keeper of one volume: renews its lease, erases its keys when access ends, opens it when access is back.

use crate::{
    managed::{Change, Managed, Nudge, VolumeStatus},
    node::{Node, blocking, failed, key_of, vault_of},
};
use custody_clients::{AccessError, VaultAccess};
use custody_envelope::VolumeKey;
use custody_node::{Lease, LeaseEvent, LeaseState, Protector, RevokeReason, SuperblockError, Volume};
use custody_rpc::status::{reason, status};
use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::{task::JoinHandle, time::MissedTickBehavior};
use tonic::Status;
use tracing::{Instrument as _, Span};

/// Renewals between looks at the key's current version; events make it look at once.
const VERSION_EVERY: u32 = 12;
/// Between looks at which data keys have become too old.
const LOOK_FOR_RETIRED_EVERY: Duration = Duration::from_secs(3600);

/// Runs until the volume is removed.
pub(crate) async fn keep(node: Arc<Node>, managed: Arc<Managed>) {
    let started = Instant::now();
    let open = managed.volume().is_some();
    let span = node.config.lease;
    let mut lease = if open {
        Lease::granted(Duration::ZERO, span)
    } else {
        Lease::waiting(span, RevokeReason::VaultUnreachable)
    };
    let mut protector = managed.protector();
    let Some(mut vault) = vault_of(&protector.key) else { return };
    let mut changes = node.watches.subscribe(&node, vault.as_str(), &protector.managed_identity);
    let mut nudges = managed.nudges.lock().await;
    let mut renewals = tokio::time::interval(node.config.renew_every);
    renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut until_version = 0;
    let mut rotation = None;
    let mut looked = Instant::now();
    loop {
        let mut waiting = None;
        // Whatever wakes it, the answer is the same: ask the vault. Only its answer counts.
        let look_at_version = tokio::select! {
            _ = renewals.tick() => {
                until_version = if until_version == 0 { VERSION_EVERY } else { until_version - 1 };
                until_version == 0
            }
            changed = changes.changed() => {
                if changed.is_err() {
                    changes = node.watches.subscribe(&node, vault.as_str(), &protector.managed_identity);
                }
                true
            }
            nudge = nudges.recv() => {
                waiting = nudge;
                true
            }
        };
        if let Some(Change { next, key, told }) = waiting.as_mut().and_then(|nudge| nudge.change.take()) {
            let changed = change(&node, &managed, next, key).await;
            if changed.is_ok() {
                protector = managed.protector();
                let Some(other) = vault_of(&protector.key) else { return };
                vault = other;
                changes = node.watches.subscribe(&node, vault.as_str(), &protector.managed_identity);
            }
            _ = told.send(changed);
        }
        let span = waiting.as_ref().map_or_else(Span::none, |nudge: &Nudge| nudge.span.clone());
        // An event, or the end of the lease, must not wait for a slow vault.
        let asking = ask(&node, &managed, look_at_version).instrument(span);
        let asked = tokio::time::timeout(node.config.lease, asking).await;
        let (event, opened) = match asked {
            Ok(Ok(opened)) => (LeaseEvent::Granted, opened),
            Ok(Err(AccessError::Refused { reason, .. })) => (LeaseEvent::Refused(reason), None),
            Ok(Err(_)) | Err(_) => (LeaseEvent::Unreachable, None),
        };
        lease.apply(started.elapsed(), event);
        match lease.state() {
            LeaseState::Revoked(reason) => {
                revoke(&managed, reason).await;
                node.access(&protector.managed_identity).forget_keys();
            }
            _ => {
                if let Some(volume) = opened {
                    managed.put(volume);
                    tracing::info!(volume = %managed.name, "volume open");
                }
            }
        }
        if looked.elapsed() >= LOOK_FOR_RETIRED_EVERY {
            looked = Instant::now();
            managed.look_for_retired.store(true, Ordering::Release);
        }
        // Beside this loop, which must hear of a revocation while it runs.
        if rotation.as_ref().is_none_or(JoinHandle::is_finished) {
            rotation = Some(tokio::spawn(rotate_due(node.clone(), managed.clone())));
        }
        if let Some(waiting) = waiting {
            _ = waiting.done.send(());
        }
    }
}

/// Unwraps the volume key: proof of access now. Opens the volume if it is closed, and follows the key to a new
/// version if it must.
async fn ask(
    node: &Node,
    managed: &Arc<Managed>,
    look_at_version: bool,
) -> Result<Option<Volume>, AccessError> {
    let protector = managed.protector();
    let access = node.access(&protector.managed_identity);
    let Some(wrapped) = &protector.wrapped else { return Ok(None) };
    let plain = access.unwrap_key(wrapped).await?;
    let mut opened = None;
    if managed.volume().is_none() {
        // A volume that is damaged is not open, whatever the vault says.
        let damaged = |e: Status| AccessError::Refused {
            reason: reason(&e),
            message: e.message().to_owned(),
            status: "DATA_LOSS".to_owned(),
        };
        let key = VolumeKey::from_bytes(&plain).map_err(|e| damaged(failed(e)))?;
        opened = Some(open(node, managed, key).await.map_err(damaged)?);
    }
    let follows = !protector.key.contains("/versions/");
    if look_at_version && follows {
        // The key has just opened: a new version that cannot be followed takes nothing away, and is tried again.
        if let Err(e) = follow(&access, managed, opened.as_ref(), &protector, &plain).await {
            tracing::warn!(volume = %managed.name, error = %e, "the key's current version was not followed");
        }
    }
    Ok(opened)
}

/// Moves the wrapped volume key to the key's current version, where that is another one and may be used.
async fn follow(
    access: &VaultAccess,
    managed: &Arc<Managed>,
    opened: Option<&Volume>,
    protector: &Protector,
    plain: &[u8],
) -> Result<(), AccessError> {
    let (Some(key), Some(wrapped)) = (key_of(&protector.key), &protector.wrapped) else { return Ok(()) };
    let facts = access.get_key(key.as_str()).await?;
    if facts.active && facts.current_version != wrapped.key_version {
        let moved = access.wrap_key(facts.current_version.as_str(), plain).await?;
        rewrap(managed, opened, Protector { wrapped: Some(moved), ..protector.clone() }).await;
    }
    Ok(())
}

/// Opens the volume's file.
async fn open(node: &Node, managed: &Arc<Managed>, key: VolumeKey) -> Result<Volume, Status> {
    let (path, options) = (managed.path.clone(), node.options.clone());
    blocking(move || {
        let opened = Volume::open(&path, &key, options);
        // The state's reason is a word; what to do about it is in the text.
        opened.inspect_err(|e| tracing::error!(error = %e, "a volume cannot be opened")).map_err(
            |e| match e {
                SuperblockError::RolledBack(_)
                | SuperblockError::AnchorMissing(_)
                | SuperblockError::AnchorDamaged(_) => {
                    status("DATA_LOSS", "VOLUME_ROLLED_BACK", &e.to_string(), None)
                }
                e => status("DATA_LOSS", "VOLUME_DAMAGED", &e.to_string(), None),
            },
        )
    })
    .await
}

/// Puts another protector in place of the volume's. A volume that its present protector keeps closed is opened with the key.
async fn change(node: &Node, managed: &Arc<Managed>, next: Protector, key: VolumeKey) -> Result<(), Status> {
    let stored = next.clone();
    match managed.volume() {
        Some(volume) => blocking(move || volume.change_protector(stored).map_err(failed)).await?,
        None => {
            let volume = open(node, managed, key).await?;
            let volume = blocking(move || {
                volume.change_protector(stored).map_err(failed)?;
                Ok(volume)
            })
            .await?;
            managed.put(volume);
        }
    }
    tracing::info!(volume = %managed.name, custody.key.name = next.key, "the volume has another protector");
    managed.set_protector(next);
    Ok(())
}

/// Puts the new protector on disk. A failure changes nothing, and the next look tries again.
async fn rewrap(managed: &Arc<Managed>, opened: Option<&Volume>, next: Protector) {
    let done = match (opened, managed.volume()) {
        (Some(volume), _) => volume.set_protector(next.clone()).map_err(failed),
        (None, Some(volume)) => {
            let next = next.clone();
            blocking(move || volume.set_protector(next).map_err(failed)).await
        }
        (None, None) => return,
    };
    match done {
        Ok(()) => {
            let version = next.wrapped.as_ref().map(|w| w.key_version.to_string()).unwrap_or_default();
            tracing::info!(volume = %managed.name, custody.key.version = version, "volume key re-wrapped");
            managed.set_protector(next);
        }
        Err(e) => {
            tracing::error!(volume = %managed.name, error = e.message(), "the re-wrapped key was not stored")
        }
    }
}

async fn revoke(managed: &Arc<Managed>, reason: &RevokeReason) {
    let status = VolumeStatus::inaccessible(&reason.to_string());
    if managed.volume().is_none() {
        managed.status.send_if_modified(|s| std::mem::replace(s, status.clone()) != status);
        return;
    }
    tracing::warn!(volume = %managed.name, %reason, "access revoked; erasing keys");
    let closing = managed.clone();
    _ = blocking(move || {
        closing.revoke(status);
        Ok(())
    })
    .await;
}

/// Rotates data keys that are due, at the node's rate: first those of extents that are in use, then the others whose
/// key is retired.
async fn rotate_due(node: Arc<Node>, managed: Arc<Managed>) {
    let mut retired = BTreeSet::new();
    let mut in_use = Vec::new();
    loop {
        // Taken anew for each, so that it is let go when access ends. What is not done is found due again.
        let Some(volume) = managed.volume() else { return };
        if managed.look_for_retired.swap(false, Ordering::AcqRel) {
            let (managed, volume) = (managed.clone(), volume.clone());
            match blocking(move || managed.find_retired(&volume).map_err(failed)).await {
                Ok(found) => retired = found.into_iter().collect(),
                Err(_) => return,
            }
        }
        in_use.extend(volume.take_rotations_due());
        let Some(extent) = in_use.pop().or_else(|| retired.first().copied()) else { return };
        let was_retired = retired.remove(&extent);
        match blocking(move || volume.rotate_due(extent).map_err(failed)).await {
            Ok(rotated) => {
                if was_retired {
                    managed.one_rotated();
                }
                if rotated {
                    tokio::time::sleep(node.config.extent_pace).await;
                }
            }
            Err(e) => {
                tracing::error!(volume = %managed.name, extent, error = e.message(), "a data key was not rotated");
            }
        }
    }
}

/// Asks the keeper to look now, and waits until it has.
pub(crate) async fn nudge(managed: &Managed) -> Result<(), Status> {
    let (done, looked) = tokio::sync::oneshot::channel();
    let nudge = Nudge { done, change: None, span: Span::current() };
    managed.nudge.send(nudge).await.map_err(|_| gone())?;
    looked.await.map_err(|_| gone())
}

/// Has the keeper, which owns the lease, put another protector in place; returns when the vault was asked with it.
pub(crate) async fn change_protector(
    managed: &Managed,
    next: Protector,
    key: VolumeKey,
) -> Result<(), Status> {
    let (done, looked) = tokio::sync::oneshot::channel();
    let (told, answer) = tokio::sync::oneshot::channel();
    let nudge = Nudge { done, change: Some(Change { next, key, told }), span: Span::current() };
    managed.nudge.send(nudge).await.map_err(|_| gone())?;
    answer.await.map_err(|_| gone())??;
    looked.await.map_err(|_| gone())
}

fn gone() -> Status {
    status("ABORTED", "VOLUME_GONE", "the volume was removed", None)
}
