//! The keeper of one volume: renews its lease, erases its keys when it ends, opens it when access is back.

use crate::{
    inventory::volume_facts,
    leases::{Granted, Moment},
    managed::{Change, Managed, Nudge, VolumeStatus},
    node::{Node, blocking, failed, key_of, vault_of},
};
use custody_clients::{AccessError, VaultAccess};
use custody_envelope::VolumeKey;
use custody_node::{Lease, LeaseEvent, LeaseState, Protector, RevokeReason, SuperblockError, Volume};
use custody_rpc::status::{reason, status};
use custody_types::{Clock as _, KeyVersionName, PassingReason, SystemClock, WrappedKey};
use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;
use tonic::Status;
use tracing::{Instrument as _, Span};

/// Renewals between looks at the key's current version; events make it look at once.
const VERSION_EVERY: u32 = 12;
/// Between looks at which data keys have become too old.
const LOOK_FOR_RETIRED_EVERY: Duration = Duration::from_secs(3600);
/// A lease is renewed no more often than this.
const RENEW_EVERY_MIN: Duration = Duration::from_millis(100);
/// After a vault that could not be asked, before it is asked again.
const RETRY_EVERY: Duration = Duration::from_millis(500);
/// A wait for a lease's end is cut into pieces of this length: a machine that slept through it wakes with keys that are
/// too old, and timers that do not know.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// What woke a keeper.
enum Woken {
    /// The lease is to be renewed.
    Due,
    /// Something in the vault may have changed, or somebody wants it looked at.
    Asked(Option<Nudge>),
    /// Time has passed.
    Tick,
}

/// A volume as its keeper sees it.
struct Keeper {
    node: Arc<Node>,
    managed: Arc<Managed>,
    protector: Protector,
    lease: Lease,
    /// When the vault is next asked, by the monotonic clock.
    ask_at: Duration,
    until_version: u32,
}

/// Runs until the volume is removed.
pub(crate) async fn keep(node: Arc<Node>, managed: Arc<Managed>) {
    let granted = managed.lease.lock().as_ref().map(|granted| granted.until);
    let protector = managed.protector();
    let Some(mut vault) = vault_of(&protector.key) else { return };
    let mut keeper = Keeper {
        lease: match granted {
            Some(until) => Lease::granted(until),
            None => Lease::waiting(RevokeReason::Unavailable(PassingReason::VaultUnreachable)),
        },
        protector,
        ask_at: Duration::ZERO,
        until_version: 0,
        node,
        managed,
    };
    let (node, managed) = (keeper.node.clone(), keeper.managed.clone());
    let mut changes = node.watches.subscribe(&node, vault.as_str(), &keeper.protector.managed_identity);
    let mut nudges = managed.nudges.lock().await;
    let mut rotation = None;
    let mut looked = Instant::now();
    loop {
        // Whatever wakes it, the answer is the same: ask the vault. Only its answer counts.
        let woken = tokio::select! {
            woken = keeper.time_passes() => woken,
            changed = changes.changed() => {
                if changed.is_err() {
                    let identity = &keeper.protector.managed_identity;
                    changes = node.watches.subscribe(&node, vault.as_str(), identity);
                }
                Woken::Asked(None)
            }
            nudge = nudges.recv() => Woken::Asked(nudge),
        };
        let (mut waiting, look_at_version) = match woken {
            Woken::Tick => {
                keeper.apply(LeaseEvent::Tick, None, node.leases.now()).await;
                continue;
            }
            Woken::Due => {
                keeper.until_version =
                    if keeper.until_version == 0 { VERSION_EVERY } else { keeper.until_version - 1 };
                (None, keeper.until_version == 0)
            }
            Woken::Asked(nudge) => {
                // Once more with the next renewal: a change may be told of before every copy of a vault knows it.
                keeper.until_version = 1;
                (nudge, true)
            }
        };
        if let Some(Change { next, key, told }) = waiting.as_mut().and_then(|nudge| nudge.change.take()) {
            let changed = change(&node, &managed, next, key).await;
            if changed.is_ok() {
                keeper.protector = managed.protector();
                let Some(other) = vault_of(&keeper.protector.key) else { return };
                vault = other;
                changes = node.watches.subscribe(&node, vault.as_str(), &keeper.protector.managed_identity);
            }
            _ = told.send(changed);
        }
        let span = waiting.as_ref().map_or_else(Span::none, |nudge: &Nudge| nudge.span.clone());
        keeper.ask(look_at_version).instrument(span).await;
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

impl Keeper {
    /// How long keys may still be held.
    fn left(&self) -> Option<Duration> {
        match self.lease.state() {
            LeaseState::Held { until } => Some(until.saturating_sub(SystemClock.monotonic())),
            _ => None,
        }
    }

    /// Returns when the vault is to be asked, or the lease may have ended.
    async fn time_passes(&self) -> Woken {
        let now = SystemClock.monotonic();
        let due = self.ask_at.saturating_sub(now);
        let end = self.left().map_or(due, |left| left.min(SLEEP_MAX));
        tokio::time::sleep(due.min(end)).await;
        if due <= end { Woken::Due } else { Woken::Tick }
    }

    /// Asks the vault, but no longer than the lease lasts: its end must not wait for a slow vault. A volume that is
    /// being opened is waited for, since nothing can be said of its keys meanwhile; nobody can use it before.
    async fn ask(&mut self, look_at_version: bool) {
        let asking = ask(&self.node, &self.managed, look_at_version);
        let asked = match self.left() {
            Some(left) => tokio::time::timeout(left, asking).await,
            None => Ok(asking.await),
        };
        let noticed = self.node.leases.now();
        let now = SystemClock.monotonic();
        let every = self.node.config.renew_every;
        let (event, opened) = match asked {
            Ok(Ok(Answer { granted, opened, follow_again })) => {
                if follow_again {
                    self.until_version = 1;
                }
                let renew_after = granted.renew_after.min(every).max(RENEW_EVERY_MIN);
                self.ask_at = self.node.together(now, renew_after);
                let until = granted.until;
                *self.managed.lease.lock() = Some(granted);
                (LeaseEvent::Granted(until), opened)
            }
            Ok(Err(AccessError::Refused { reason, .. })) => {
                self.ask_at = self.node.together(now, every);
                (LeaseEvent::Refused(reason), None)
            }
            failed => {
                self.ask_at = now + RETRY_EVERY.min(every);
                let why = match failed {
                    Ok(Err(AccessError::HsmUnavailable(_))) => PassingReason::HsmUnavailable,
                    _ => PassingReason::VaultUnreachable,
                };
                (LeaseEvent::Unavailable(why), None)
            }
        };
        self.apply(event, opened, noticed).await;
    }

    /// Takes in what was learned: erases, or lets the volume be used.
    async fn apply(&mut self, event: LeaseEvent, opened: Option<Volume>, noticed: Moment) {
        self.lease.apply(SystemClock.monotonic(), event);
        match self.lease.state() {
            LeaseState::Revoked(reason) => {
                drop(opened);
                self.revoke(&reason.clone(), noticed).await;
            }
            _ => {
                if let Some(volume) = opened {
                    self.managed.put(volume);
                    tracing::info!(volume = %self.managed.name, "volume open");
                }
            }
        }
    }

    async fn revoke(&self, reason: &RevokeReason, noticed: Moment) {
        let (node, managed) = (self.node.clone(), self.managed.clone());
        let status = VolumeStatus::inaccessible(&reason.to_string());
        let lease = managed.lease.lock().take();
        if managed.volume().is_none() && lease.is_none() {
            managed.status.send_if_modified(|s| std::mem::replace(s, status.clone()) != status);
            return;
        }
        tracing::warn!(volume = %managed.name, %reason, "access revoked; erasing keys");
        let reason = reason.to_string();
        _ = blocking(move || {
            let file = managed.erase(status);
            if let Some(lease) = lease {
                node.leases.report(&lease, &reason, noticed);
            }
            if let Some(file) = file {
                managed.settle(&file);
            }
            Ok(())
        })
        .await;
    }
}

/// What the vault said.
struct Answer {
    granted: Granted,
    opened: Option<Volume>,
    /// Whether a new version of the key could not be followed, and is to be looked for with the next renewal.
    follow_again: bool,
}

/// Asks for the lease: access now. Opens the volume if it is closed, and follows the key to a new version if it must.
async fn ask(node: &Arc<Node>, managed: &Arc<Managed>, look_at_version: bool) -> Result<Answer, AccessError> {
    let protector = managed.protector();
    let access = node.access(&protector.managed_identity);
    let nothing = || AccessError::Unreachable("the volume has no wrapped key".to_owned());
    let wrapped = protector.wrapped.as_ref().ok_or_else(nothing)?;
    let mut granted = node.leases.ask(&access, &managed.name, &wrapped.key_version).await?;
    let mut opened = None;
    if managed.volume().is_none() {
        // A volume that is damaged is not open, whatever the vault says.
        let damaged = |e: Status| AccessError::Refused {
            reason: reason(&e),
            message: e.message().to_owned(),
            status: "DATA_LOSS".to_owned(),
        };
        // Kept from here on: what a failure leaves in memory is answered for.
        *managed.lease.lock() = Some(granted.clone());
        let plain = access.unwrap_key(wrapped).await?;
        let key = VolumeKey::from_bytes(&plain).map_err(|e| damaged(failed(e)))?;
        opened = Some(open(node, managed, key).await.map_err(damaged)?);
    }
    let (follows, mut follow_again) = (!protector.key.contains("/versions/"), false);
    if look_at_version && follows {
        // The key may be held: a new version that cannot be followed takes nothing away, and is tried again.
        match follow(node, &access, managed, opened.as_ref(), wrapped).await {
            Ok(None) => {}
            Ok(Some(version)) => granted = node.leases.ask(&access, &managed.name, &version).await?,
            Err(e) => {
                tracing::warn!(volume = %managed.name, error = %e, "the key's current version was not followed");
                follow_again = true;
            }
        }
    }
    Ok(Answer { granted, opened, follow_again })
}

/// Moves the wrapped volume key to the key's current version, where that is another one and may be used; answers it.
async fn follow(
    node: &Arc<Node>,
    access: &VaultAccess,
    managed: &Arc<Managed>,
    opened: Option<&Volume>,
    wrapped: &WrappedKey,
) -> Result<Option<KeyVersionName>, AccessError> {
    let protector = managed.protector();
    let Some(key) = key_of(&protector.key) else { return Ok(None) };
    let facts = access.get_key(key.as_str()).await?;
    if !facts.active || facts.current_version == wrapped.key_version {
        return Ok(None);
    }
    let plain = access.unwrap_key(wrapped).await?;
    let moved = access.wrap_key(facts.current_version.as_str(), &plain).await?;
    let next = Protector { wrapped: Some(moved), ..protector };
    let declared =
        node.dependents.declare(managed.name.as_str(), &facts.current_version, volume_facts(&next)).await?;
    let stored = rewrap(managed, opened, next).await;
    node.note_declared(&managed.name, declared).await;
    Ok(stored.then_some(facts.current_version))
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

/// Puts the new protector on disk; answers whether it is there. A failure changes nothing, and the next look tries again.
async fn rewrap(managed: &Arc<Managed>, opened: Option<&Volume>, next: Protector) -> bool {
    let done = match (opened, managed.volume()) {
        (Some(volume), _) => volume.set_protector(next.clone()).map_err(failed),
        (None, Some(volume)) => {
            let next = next.clone();
            blocking(move || volume.set_protector(next).map_err(failed)).await
        }
        (None, None) => return false,
    };
    match done {
        Ok(()) => {
            let version = next.wrapped.as_ref().map(|w| w.key_version.to_string()).unwrap_or_default();
            tracing::info!(volume = %managed.name, custody.key.version = version, "volume key re-wrapped");
            managed.set_protector(next);
            true
        }
        Err(e) => {
            tracing::error!(volume = %managed.name, error = e.message(), "the re-wrapped key was not stored");
            false
        }
    }
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
