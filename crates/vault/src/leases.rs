//! Leases: who holds which volume's keys in memory, under which version, until when.
//!
//! A row on disk says that there is a lease, and is written when one begins or changes, not when it is renewed. After a
//! restart each is taken for granted at that moment, so that no clock that was set makes one end too soon.

use crate::{
    Call, EventType, Vault, VaultError,
    catalog::Catalog,
    gate::{Permit, op},
    names::new_id,
    revocation::Open,
};
use custody_proof::{Lease, Outcome, Statement as _};
use custody_store::{Batch, Store};
use custody_types::{Caller, Duty, KeyName, KeyOperation, KeyVersionName, Permission, UnixMillis, VaultName};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

pub(crate) const LEASES: &str = "leases";
pub(crate) const EPOCHS: &str = "epochs";
pub(crate) const LEASE_POLICIES: &str = "lease-policies";

/// Bounds of what may be asked for and allowed.
const DURATION: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
/// Longest name of a volume.
const VOLUME_LEN_MAX: usize = 200;
/// How long a lease that has run out is remembered.
const KEPT_AFTER_END: Duration = Duration::from_secs(86_400);
/// Leases of one holder.
const HELD_MAX: usize = 100_000;

/// What a holder asks for one volume.
#[derive(Clone, Debug)]
pub struct LeaseAsk {
    /// The volume.
    pub volume: String,
    /// How long it would keep the keys without an answer.
    pub duration: Duration,
}

impl LeaseAsk {
    /// Of what came over the wire.
    ///
    /// # Errors
    /// Out of bounds.
    pub fn new(volume: String, duration: Duration) -> Result<Self, VaultError> {
        let named =
            (1..=VOLUME_LEN_MAX).contains(&volume.len()) && volume.chars().all(|c| c.is_ascii_graphic());
        if !named {
            let why = "must be a name of 1 to 200 printable ASCII characters";
            return Err(VaultError::invalid("leases.volume", why));
        }
        if !DURATION.contains(&duration) {
            return Err(VaultError::invalid("leases.duration", "must be 1 s to 1 h"));
        }
        Ok(Self { volume, duration })
    }
}

/// A lease, and the note with which the vault states it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SignedLease {
    /// What is stated.
    pub lease: Lease,
    /// As it was signed.
    pub note: String,
    /// Where its holder asks from: conditions of assignments are held against it.
    pub(crate) address: String,
}

impl SignedLease {
    pub(crate) fn key(&self) -> KeyName {
        self.lease.key_version.key()
    }

    /// From when on it has run out if it was granted at a moment, whatever the holder's clock does meanwhile: clocks run apart by
    /// less than this allows.
    pub(crate) fn end(&self, granted: Duration) -> Duration {
        let span = Duration::from_millis(self.lease.duration_ms);
        granted + span + span / 1000 + Duration::from_millis(50)
    }

    /// As whom the key is held.
    fn caller(&self) -> Caller {
        Caller {
            principal: self.lease.managed_identity.clone(),
            duty: Duty::Workload,
            token_id: String::new(),
            address: self.address.clone(),
        }
    }
}

/// How long a key may be held without an answer of the vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeasePolicy {
    /// The key.
    pub key: KeyName,
    /// At most so long; none for what the cluster asks.
    pub duration: Option<Duration>,
    /// How long an outage may last, whenever it begins; none for two thirds of the duration.
    pub grace: Option<Duration>,
    /// When it was set; none for the default.
    pub update_time: Option<UnixMillis>,
}

impl LeasePolicy {
    pub(crate) fn default_of(key: &KeyName) -> Self {
        Self { key: key.clone(), duration: None, grace: None, update_time: None }
    }

    fn check(&self) -> Result<(), VaultError> {
        if self.duration.is_some_and(|d| !DURATION.contains(&d)) {
            return Err(VaultError::invalid("lease_policy.duration", "must be 1 s to 1 h, or none"));
        }
        // What is left of the duration is how often every holder asks.
        let most = self.duration.unwrap_or(*DURATION.end()).mul_f64(0.95);
        if self.grace.is_some_and(|grace| grace > most) {
            let why = "must be at most 95 hundredths of `duration`: holders renew in the rest of it";
            return Err(VaultError::invalid("lease_policy.grace", why));
        }
        Ok(())
    }

    /// Duration and grace for a holder that asks for `asked`.
    fn terms(&self, asked: Duration) -> (Duration, Duration) {
        let duration = self.duration.map_or(asked, |most| most.min(asked));
        let usual = duration * 2 / 3;
        (duration, self.grace.map_or(usual, |grace| grace.min(duration.mul_f64(0.95))))
    }
}

/// A lease that was granted.
pub(crate) struct Held {
    pub(crate) signed: SignedLease,
    /// When, by the monotonic clock.
    granted: Duration,
}

impl Held {
    /// From when on it has run out.
    pub(crate) fn end(&self) -> Duration {
        self.signed.end(self.granted)
    }
}

/// A holder and a volume: there is one lease for the two.
pub(crate) type Place = (String, String);

fn row((holder, volume): &Place) -> String {
    format!("{holder} {volume}")
}

/// All leases, and the revocations that wait for answers.
#[derive(Default)]
pub(crate) struct Register {
    pub(crate) held: BTreeMap<Place, Held>,
    pub(crate) open: BTreeMap<String, Open>,
    pub(crate) epochs: BTreeMap<KeyName, u64>,
}

impl Register {
    /// As it is stored.
    pub(crate) fn load(store: &Store, now: Duration, wall: UnixMillis) -> Result<Self, VaultError> {
        let mut register = Self::default();
        for (_, signed) in store.scan::<SignedLease>(LEASES, "")? {
            let place = (signed.lease.holder.clone(), signed.lease.volume.clone());
            register.held.insert(place, Held { signed, granted: now });
        }
        for (key, epoch) in store.scan::<u64>(EPOCHS, "")? {
            register.epochs.insert(key.parse()?, epoch);
        }
        register.open = Open::load(store, now, wall)?;
        Ok(register)
    }

    pub(crate) fn epoch(&self, key: &KeyName) -> u64 {
        self.epochs.get(key).copied().unwrap_or_default()
    }

    pub(crate) fn forget(&mut self, place: &Place, batch: &mut Batch) -> Option<Held> {
        batch.delete(LEASES, &row(place));
        self.held.remove(place)
    }

    /// Removes the rows of leases that are over, unless their places are taken again.
    pub(crate) fn delete_rows(&self, over: &[Place], batch: &mut Batch) {
        for place in over.iter().filter(|place| !self.held.contains_key(place)) {
            batch.delete(LEASES, &row(place));
        }
    }
}

impl Vault {
    /// Whether the identity may have what this version opens in memory now, and until when at most.
    pub(crate) fn holdable(
        &self,
        caller: &Caller,
        version: &KeyVersionName,
    ) -> Result<Option<UnixMillis>, VaultError> {
        let permission = Permission::UnwrapKey;
        if self.is_sealed() {
            return Err(self.sealed_error());
        }
        self.loader.ensure(version.as_str())?;
        if !self.gate.allows(caller, permission, version.as_str()) {
            return Err(VaultError::PermissionDenied { permission, resource: version.to_string() });
        }
        let expire = {
            let catalog = self.catalog.read();
            let found = catalog.version(version)?;
            let state = catalog.state(found, self.now());
            let (name, operation) = (version.to_string(), KeyOperation::UnwrapKey);
            if !state.allows_use() {
                return Err(VaultError::KeyUnusable { name, state, operation });
            }
            if !found.record.key_ops.contains(&operation) {
                return Err(VaultError::OperationForbidden { name, operation });
            }
            found.record.attributes.expire_time
        };
        self.keyring.vault(&version.key().vault())?;
        Ok(expire)
    }

    /// Grants or renews leases of `holder` on one version. What the holder asks as is in `call`. Answers what the trail shall
    /// have of it as well: which volumes have a new lease.
    pub(crate) fn do_grant(
        &self,
        _: &Permit<op::RenewLease>,
        call: &Call,
        version: &KeyVersionName,
        holder: &str,
        asks: &[LeaseAsk],
    ) -> Result<(Vec<SignedLease>, String), VaultError> {
        let key = version.key();
        let policy = self.lease_policy(&key);
        let mut register = self.leases.lock();
        // Looked at under this lock: whatever ends access looks through the register after it.
        let expire = self.holdable(&call.caller, version)?;
        let (now, moment) = (self.now(), self.clock.monotonic());
        let signer = self.keyring.signer()?;
        let (mut batch, mut changed, mut granted) = (Batch::new(), Vec::new(), Vec::new());
        for ask in asks {
            let (duration, grace) = policy.terms(ask.duration);
            // A key that expires is not held beyond that.
            let duration = expire.map_or(duration, |expire| duration.min(expire.since(now)));
            let place = (holder.to_owned(), ask.volume.clone());
            let same = register.held.get(&place).map(|held| &held.signed).filter(|held| {
                held.lease.key_version == *version && held.lease.managed_identity == call.caller.principal
            });
            let lease = Lease {
                lease: match same {
                    Some(same) => same.lease.lease.clone(),
                    None => format!("{key}/leases/{}", new_id()?),
                },
                key_version: version.clone(),
                epoch: register.epoch(&key),
                holder: holder.to_owned(),
                managed_identity: call.caller.principal.clone(),
                volume: ask.volume.clone(),
                grant_time: now,
                duration_ms: millis(duration),
                grace_ms: millis(grace.min(duration)),
            };
            let stands = same.is_some_and(|same| {
                same.lease.epoch == lease.epoch
                    && same.lease.duration_ms >= lease.duration_ms
                    && same.address == call.caller.address
            });
            let note = signer.sign(&lease.text().map_err(|_| VaultError::Backend)?);
            let signed = SignedLease { lease, note, address: call.caller.address.clone() };
            if !stands {
                batch.put(LEASES, &row(&place), &signed);
                changed.push(format!("{} on the keys of {}", signed.lease.lease, signed.lease.volume));
            }
            granted.push((place, signed));
        }
        let new = granted.iter().filter(|(place, _)| !register.held.contains_key(place)).count();
        if new > 0 && register.held.keys().filter(|(h, _)| h == holder).count() + new > HELD_MAX {
            return Err(VaultError::invalid("leases", "a holder has at most 100,000 leases"));
        }
        if !changed.is_empty() {
            self.store.commit(batch)?;
        }
        for (place, signed) in &granted {
            register.returned(place, &signed.lease.lease, moment);
            register.held.insert(place.clone(), Held { signed: signed.clone(), granted: moment });
        }
        drop(register);
        self.close_revocations()?;
        let said =
            if changed.is_empty() { String::new() } else { format!("{holder} has {}", changed.join(", ")) };
        Ok((granted.into_iter().map(|(_, signed)| signed).collect(), said))
    }

    pub(crate) fn lease_policy(&self, key: &KeyName) -> LeasePolicy {
        let catalog = self.catalog.read();
        catalog.lease_policies.get(key).cloned().unwrap_or_else(|| LeasePolicy::default_of(key))
    }

    /// Reads how long a key may be held.
    ///
    /// # Errors
    /// Not allowed, or it does not exist.
    pub fn get_lease_policy(&self, call: &Call, key: &KeyName) -> Result<LeasePolicy, VaultError> {
        self.gate.run::<op::GetLeasePolicy, _>(call, key.as_str(), |_| {
            self.catalog.read().key(key)?;
            Ok(self.lease_policy(key))
        })
    }

    /// Sets how long a key may be held. Its holders are told, and renew.
    ///
    /// # Errors
    /// Not allowed, out of bounds, does not exist, or is deleted.
    pub fn set_lease_policy(&self, call: &Call, policy: LeasePolicy) -> Result<LeasePolicy, VaultError> {
        policy.check()?;
        let key = policy.key.clone();
        self.gate.run(call, key.as_str(), |permit| self.do_set_lease_policy(&permit, policy))
    }

    fn do_set_lease_policy(
        &self,
        _: &Permit<op::SetLeasePolicy>,
        mut policy: LeasePolicy,
    ) -> Result<LeasePolicy, VaultError> {
        let _one_at_a_time = self.changes.lock();
        self.catalog.read().live_key(&policy.key)?;
        policy.update_time = Some(self.now());
        let mut batch = Batch::new();
        batch.put(LEASE_POLICIES, policy.key.as_str(), &policy);
        let set = |catalog: &mut Catalog| {
            catalog.lease_policies.insert(policy.key.clone(), policy.clone());
        };
        self.commit(batch, set)?;
        self.tell(EventType::Updated, policy.key.as_str());
        Ok(policy)
    }

    /// The leases on a key, or in a vault, by holder and volume.
    ///
    /// # Errors
    /// Not allowed, or it does not exist.
    pub fn list_leases(&self, call: &Call, parent: &str) -> Result<Vec<SignedLease>, VaultError> {
        let (vault, key) = match parent.parse::<KeyName>() {
            Ok(key) => (key.vault(), Some(key)),
            Err(_) => {
                let vault: Result<VaultName, _> = parent.parse();
                (vault.map_err(|e| VaultError::invalid("parent", e))?, None)
            }
        };
        self.gate.run::<op::ListLeases, _>(call, parent, |_| {
            {
                let catalog = self.catalog.read();
                catalog.vault(&vault)?;
                key.as_ref().map(|key| catalog.key(key)).transpose()?;
            }
            let now = self.clock.monotonic();
            let register = self.leases.lock();
            let of = |held: &&Held| match &key {
                Some(key) => held.signed.key() == *key,
                None => held.signed.key().vault() == vault,
            };
            let live = register.held.values().filter(|held| held.end() > now);
            Ok(live.filter(of).map(|held| held.signed.clone()).collect())
        })
    }

    /// Forgets leases that ran out long ago: their holders are gone, and came back under no other.
    pub(crate) fn forget_leases(&self) -> Result<(), VaultError> {
        let now = self.clock.monotonic();
        let mut register = self.leases.lock();
        let over = register.held.iter().filter(|(_, held)| held.end() + KEPT_AFTER_END < now);
        let over: Vec<Place> = over.map(|(place, _)| place.clone()).collect();
        if over.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        over.iter().for_each(|place| _ = register.forget(place, &mut batch));
        Ok(self.store.commit(batch)?)
    }

    /// The text of the public key that leases and revocations are signed with.
    ///
    /// # Errors
    /// The deployment has been sealed since its start.
    pub fn proof_key(&self) -> Result<String, VaultError> {
        Ok(self.keyring.signer()?.verifying_key().to_string())
    }

    /// Why each lease that is held may be held no more.
    pub(crate) fn no_longer_held(
        &self,
        register: &Register,
    ) -> BTreeMap<KeyName, Vec<(Place, &'static str)>> {
        let mut ended: BTreeMap<KeyName, Vec<_>> = BTreeMap::new();
        for (place, held) in &register.held {
            if let Err(why) = self.holdable(&held.signed.caller(), &held.signed.lease.key_version) {
                ended.entry(held.signed.key()).or_default().push((place.clone(), why.reason()));
            }
        }
        ended
    }
}

impl Register {
    /// Access is given again to whom a revocation waits for: what it holds, it holds under another lease.
    fn returned(&mut self, place: &Place, lease: &str, now: Duration) {
        for open in self.open.values_mut() {
            let after_ms = millis(now.saturating_sub(open.began));
            for waits in open.leases.iter_mut().filter(|w| w.place == *place && w.lease != lease) {
                if matches!(waits.outcome, Outcome::Waiting) {
                    waits.outcome = Outcome::Returned { after_ms };
                    open.unsaved = true;
                }
            }
        }
    }
}

pub(crate) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
