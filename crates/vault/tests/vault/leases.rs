//! Leases, and what becomes of them when access ends.

use crate::{holders::*, rig::*};
use custody_proof::{Outcome, SigningKey, VerifyingKey, verify};
use custody_types::{Duty, KeyVersionName};
use custody_vault::{gate::op, *};
use std::{sync::Arc, time::Duration};

const KEY: &str = "vaults/v/keys/k";
const NODE: &str = "principals/storage";
const SPAN: Duration = Duration::from_secs(15);

/// A vault with a key that the node may use, and its rig.
struct Leased {
    rig: Rig,
    vault: Arc<Vault>,
}

fn leased() -> Leased {
    let mut rig = rig();
    with_key(&rig);
    let spare = tempfile::tempdir().unwrap();
    let (other, _) = open(spare.path(), &rig.clock, Arc::default());
    let vault = Arc::new(std::mem::replace(&mut rig.vault, other));
    Leased { rig, vault }
}

impl Leased {
    fn version(&self) -> KeyVersionName {
        self.vault.get_key(&officer(), KEY).unwrap().current.name
    }

    fn ask(&self, holder: &str, volume: &str, span: Duration) -> Result<SignedLease, VaultError> {
        let version = self.version();
        self.ask_for(&version, holder, volume, span)
    }

    fn ask_for(
        &self,
        version: &KeyVersionName,
        holder: &str,
        volume: &str,
        span: Duration,
    ) -> Result<SignedLease, VaultError> {
        let admitted = wait(self.vault.admit::<op::RenewLease>(node(), version.as_str()));
        let admitted = admitted.map_err(|e| self.vault.lease_refusal(e))?;
        let mut granted = wait(admitted.grant(holder, &[LeaseAsk::new(volume.into(), span)?]).release())?;
        Ok(granted.remove(0))
    }

    fn report(&self, lease: &SignedLease, reason: &str) -> Result<(), VaultError> {
        let receipt = receipt(&lease.lease, reason, custody_types::Clock::now(&self.rig.clock));
        self.vault.take_receipts(&call(&lease.lease.holder, Duty::Workload), &[receipt]).map(drop)
    }

    fn outcomes(&self, name: &str) -> Vec<Outcome> {
        let seen = self.vault.get_revocation(&officer(), name).unwrap();
        seen.revocation.holders.into_iter().map(|h| h.outcome).collect()
    }

    fn key(&self) -> VerifyingKey {
        self.vault.proof_key().unwrap().parse().unwrap()
    }

    fn proof(&self, name: &str) -> String {
        self.vault.get_revocation(&officer(), name).unwrap().proof
    }
}

fn first() -> String {
    format!("{KEY}/revocations/1")
}

#[test]
fn a_lease_is_renewed_under_its_name_and_signed() {
    let leased = leased();
    let lease = leased.ask(NODE, "volumes/a", SPAN).unwrap();
    assert_eq!((lease.lease.duration_ms, lease.lease.grace_ms, lease.lease.epoch), (15_000, 10_000, 0));
    assert!(leased.key().open(&lease.note).unwrap().contains("volumes/a"));
    leased.rig.clock.pass(5000);
    let renewed = leased.ask(NODE, "volumes/a", SPAN).unwrap();
    assert_eq!(renewed.lease.lease, lease.lease.lease);
    assert_ne!(renewed.note, lease.note);
    let other = leased.ask("principals/storage-2", "volumes/a", SPAN).unwrap();
    assert_ne!(other.lease.lease, lease.lease.lease);
    assert_eq!(leased.vault.list_leases(&officer(), KEY).unwrap().len(), 2);
    assert_eq!(leased.vault.list_leases(&officer(), "vaults/v").unwrap().len(), 2);
    leased.rig.clock.pass(15_100);
    assert!(leased.vault.list_leases(&officer(), KEY).unwrap().is_empty(), "they have run out");
}

#[test]
fn who_may_not_unwrap_gets_no_lease() {
    let leased = leased();
    let version = leased.version();
    let stranger = wait(
        leased.vault.admit::<op::RenewLease>(call("managedIdentities/x", Duty::Workload), version.as_str()),
    );
    assert_eq!(stranger.unwrap_err().reason(), "PERMISSION_DENIED");
    leased.vault.revoke_key(&officer(), KEY).unwrap();
    assert_eq!(leased.ask(NODE, "volumes/a", SPAN).unwrap_err().reason(), "KEY_SUSPENDED");
    for (volume, span) in [("", SPAN), ("a b", SPAN), ("v", Duration::ZERO), ("v", Duration::from_secs(3601))]
    {
        assert_eq!(leased.ask(NODE, volume, span).unwrap_err().reason(), "INVALID_FIELD");
    }
}

#[test]
fn a_revocation_is_closed_by_receipts_and_its_bundle_verifies() {
    let leased = leased();
    let leases: Vec<_> = ["a", "b"].map(|v| leased.ask(NODE, &format!("volumes/{v}"), SPAN).unwrap()).into();
    let revoked = leased.vault.revoke_key(&officer(), KEY).unwrap();
    assert_eq!(revoked.revocation.revocation, first());
    assert_eq!(revoked.revocation.requested_by, "principals/officer");
    assert_eq!(leased.outcomes(&first()), [Outcome::Waiting, Outcome::Waiting]);
    leased.rig.clock.pass(30);
    leased.report(&leases[0], "KEY_SUSPENDED").unwrap();
    leased.report(&leases[0], "KEY_SUSPENDED").unwrap();
    assert_eq!(leased.proof(&first()), "", "one is missing");
    leased.rig.clock.pass(30);
    leased.report(&leases[1], "KEY_SUSPENDED").unwrap();
    let bundle = leased.proof(&first());
    let verified = verify(&bundle, &leased.key(), &authority()).unwrap();
    let after: Vec<_> = verified.revocation.holders.iter().filter_map(|h| h.outcome.after()).collect();
    assert_eq!(after, [30, 60].map(Duration::from_millis));
    // Access comes back, in a new epoch.
    assert_eq!(leased.vault.reinstate_key(&officer(), KEY).unwrap(), [leased.version()]);
    assert_eq!(leased.ask(NODE, "volumes/a", SPAN).unwrap().lease.epoch, 1);
    assert_eq!(leased.vault.list_revocations(&officer(), KEY).unwrap().len(), 1);
}

#[test]
fn who_does_not_answer_is_waited_for_until_its_lease_has_run_out() {
    let leased = leased();
    leased.ask(NODE, "volumes/a", SPAN).unwrap();
    leased.rig.clock.pass(4000);
    leased.vault.revoke_key(&officer(), KEY).unwrap();
    leased.rig.clock.pass(11_000);
    leased.vault.close_revocations().unwrap();
    assert_eq!(leased.outcomes(&first()), [Outcome::Waiting]);
    leased.rig.clock.pass(100);
    leased.vault.close_revocations().unwrap();
    assert_eq!(leased.outcomes(&first()), [Outcome::Lapsed { after_ms: 11_100 }]);
    verify(&leased.proof(&first()), &leased.key(), &authority()).unwrap();
}

#[test]
fn every_way_to_end_access_ends_leases() {
    type Way = (&'static str, &'static str, fn(&Leased, &str));
    let ways: [Way; 5] = [
        ("ACCESS_CHANGED", "PERMISSION_DENIED", |l, grant| {
            l.vault.delete_role_assignment(&officer(), grant).unwrap();
        }),
        ("DELETED", "KEY_DELETED", |l, _| _ = l.vault.delete_key(&officer(), KEY).unwrap()),
        ("UPDATED", "KEY_SUSPENDED", |l, _| {
            let change = AttributeChange { enabled: Some(false), ..AttributeChange::default() };
            l.vault.update_key(&officer(), KEY, change).unwrap();
        }),
        ("KEY_REVOKED", "KEY_SUSPENDED", |l, _| _ = l.vault.revoke_key(&officer(), KEY).unwrap()),
        ("SEALED", "VAULT_SEALED", |l, _| {
            let passphrase = NewSeal::Passphrase(Passphrase::new("a long enough passphrase".into()));
            l.vault.change_seal(&officer(), "seal", &passphrase).unwrap();
            l.vault.seal(&officer(), "seal").unwrap();
            assert_eq!(l.ask_sealed(), "VAULT_SEALED", "an answer, not an outage");
            let key = UnsealKey::Passphrase(Passphrase::new("a long enough passphrase".into()));
            l.vault.unseal(&officer(), "seal", &key).unwrap();
        }),
    ];
    for (cause, reason, end) in ways {
        let leased = leased();
        let grant = leased.vault.list_role_assignments(&officer(), "vaults/v").unwrap();
        let grant = grant.into_iter().find(|a| a.principal.starts_with("managed")).unwrap().name;
        let lease = leased.ask(NODE, "volumes/a", SPAN).unwrap();
        end(&leased, &grant);
        let seen = leased.vault.get_revocation(&officer(), &first()).unwrap().revocation;
        assert_eq!((seen.cause.as_str(), seen.epoch), (cause, 1));
        assert_eq!(seen.holders[0].reason, reason);
        leased.report(&lease, reason).unwrap();
        verify(&leased.proof(&first()), &leased.key(), &authority()).unwrap();
    }
}

impl Leased {
    fn ask_sealed(&self) -> &'static str {
        let version = format!("{KEY}/versions/{:032}", 1);
        let admitted = wait(self.vault.admit::<op::RenewLease>(node(), &version));
        self.vault.lease_refusal(admitted.unwrap_err()).reason()
    }
}

#[test]
fn what_others_may_still_hold_is_not_ended() {
    let leased = leased();
    leased.ask(NODE, "volumes/a", SPAN).unwrap();
    let new = NewAssignment {
        principal: "managedIdentities/other".into(),
        role: "Key Vault Crypto Service Encryption User".into(),
        scope: KEY.into(),
        ..NewAssignment::default()
    };
    let other = leased.vault.create_role_assignment(&officer(), "vaults/v", new).unwrap().name;
    leased.vault.delete_role_assignment(&officer(), &other).unwrap();
    leased.vault.rotate_key(&officer(), KEY).unwrap();
    assert!(leased.vault.list_revocations(&officer(), KEY).unwrap().is_empty());
    assert_eq!(leased.vault.list_leases(&officer(), KEY).unwrap().len(), 1);
}

#[test]
fn access_that_came_back_too_soon_is_said_to_have() {
    let leased = leased();
    leased.ask(NODE, "volumes/a", SPAN).unwrap();
    leased.vault.revoke_key(&officer(), KEY).unwrap();
    leased.vault.reinstate_key(&officer(), KEY).unwrap();
    leased.rig.clock.pass(70);
    leased.ask(NODE, "volumes/a", SPAN).unwrap();
    assert_eq!(leased.outcomes(&first()), [Outcome::Returned { after_ms: 70 }]);
    assert!(verify(&leased.proof(&first()), &leased.key(), &authority()).is_err());
}

#[test]
fn a_restart_forgets_no_lease_and_believes_no_clock() {
    let leased = leased();
    let lease = leased.ask(NODE, "volumes/a", SPAN).unwrap();
    leased.ask(NODE, "volumes/b", SPAN).unwrap();
    let Leased { rig, vault } = leased;
    rig.journal.close();
    drop(vault);
    // Somebody set the wall clock a day ahead meanwhile.
    rig.clock.0.fetch_add(86_400_000, std::sync::atomic::Ordering::SeqCst);
    let (vault, _journal) = open(rig.dir.path(), &rig.clock, Arc::default());
    let leased = Leased { rig, vault: Arc::new(vault) };
    leased.vault.revoke_key(&officer(), KEY).unwrap();
    leased.report(&lease, "KEY_SUSPENDED").unwrap();
    leased.rig.clock.pass(14_900);
    leased.vault.close_revocations().unwrap();
    let outcomes = leased.outcomes(&first());
    assert!(matches!(outcomes[0], Outcome::Erased { .. }), "{outcomes:?}");
    assert_eq!(outcomes[1], Outcome::Waiting);
    leased.rig.clock.pass(200);
    leased.vault.close_revocations().unwrap();
    verify(&leased.proof(&first()), &leased.key(), &authority()).unwrap();
}

#[test]
fn a_revocation_goes_on_after_a_restart() {
    let leased = leased();
    let lease = leased.ask(NODE, "volumes/a", SPAN).unwrap();
    leased.rig.clock.pass(10_000);
    leased.vault.revoke_key(&officer(), KEY).unwrap();
    let Leased { rig, vault } = leased;
    rig.journal.close();
    drop(vault);
    rig.clock.pass(700);
    let (vault, _journal) = open(rig.dir.path(), &rig.clock, Arc::default());
    let leased = Leased { rig, vault: Arc::new(vault) };
    assert_eq!(leased.outcomes(&first()), [Outcome::Waiting]);
    leased.report(&lease, "KEY_SUSPENDED").unwrap();
    let outcomes = leased.outcomes(&first());
    assert!(matches!(outcomes[0], Outcome::Erased { after_ms: 700, .. }), "{outcomes:?}");
    verify(&leased.proof(&first()), &leased.key(), &authority()).unwrap();
}

#[test]
fn receipts_of_others_are_not_taken() {
    let leased = leased();
    let lease = leased.ask(NODE, "volumes/a", SPAN).unwrap();
    leased.vault.revoke_key(&officer(), KEY).unwrap();
    let given = receipt(&lease.lease, "KEY_SUSPENDED", custody_types::Clock::now(&leased.rig.clock));
    let as_another = call("principals/storage-2", Duty::Workload);
    let refused = leased.vault.take_receipts(&as_another, std::slice::from_ref(&given)).unwrap_err();
    assert_eq!((refused.reason(), refused.field()), ("INVALID_FIELD", Some("receipts")));
    let mut altered = given.clone();
    altered.note = altered.note.replace("volumes/a", "volumes/b");
    let own = call(NODE, Duty::Workload);
    assert!(leased.vault.take_receipts(&own, &[altered]).is_err());
    // Signed by the vault's kind of key under the holder's name.
    let forger = SigningKey::from_seed(NODE, &[1; 32]).unwrap();
    let text = given.note.split_once("\n\n").unwrap().0.to_owned() + "\n";
    let forged = custody_proof::Certified { note: forger.sign(&text), ..given };
    assert!(leased.vault.take_receipts(&own, &[forged]).is_err());
    assert_eq!(leased.outcomes(&first()), [Outcome::Waiting]);
}

#[test]
fn the_owner_bounds_how_long_a_key_is_held() {
    let leased = leased();
    let key: custody_types::KeyName = KEY.parse().unwrap();
    let policy = |duration, grace| LeasePolicy {
        key: key.clone(),
        duration: Some(Duration::from_millis(duration)),
        grace: Some(Duration::from_millis(grace)),
        update_time: None,
    };
    for (duration, grace) in [(999, 0), (3_600_001, 0), (10_000, 9_501)] {
        let refused = leased.vault.set_lease_policy(&officer(), policy(duration, grace)).unwrap_err();
        assert_eq!(refused.reason(), "INVALID_FIELD", "{duration} {grace}");
    }
    leased.vault.set_lease_policy(&officer(), policy(3000, 1000)).unwrap();
    let lease = leased.ask(NODE, "volumes/a", SPAN).unwrap().lease;
    assert_eq!((lease.duration_ms, lease.grace_ms), (3000, 1000));
    // The cluster asks for less.
    let lease = leased.ask(NODE, "volumes/a", Duration::from_secs(1)).unwrap().lease;
    assert_eq!((lease.duration_ms, lease.grace_ms), (1000, 950));
    assert_eq!(leased.vault.get_lease_policy(&officer(), &key).unwrap().grace, Some(Duration::from_secs(1)));
    // A key that expires is held no longer than that.
    let now = custody_types::Clock::now(&leased.rig.clock);
    let expire = AttributeChange {
        expire_time: Some(Some(now.plus(Duration::from_millis(700)))),
        ..AttributeChange::default()
    };
    leased.vault.update_key(&officer(), KEY, expire).unwrap();
    assert_eq!(leased.ask(NODE, "volumes/a", SPAN).unwrap().lease.duration_ms, 700);
}

#[test]
fn a_holder_that_never_came_back_is_forgotten_after_a_day() {
    let leased = leased();
    leased.ask(NODE, "volumes/a", SPAN).unwrap();
    leased.rig.clock.pass(86_400_000);
    leased.vault.tick().unwrap();
    leased.ask("principals/storage-2", "volumes/b", SPAN).unwrap();
    leased.rig.clock.pass(20_000);
    leased.vault.tick().unwrap();
    let revoked = leased.vault.revoke_key(&officer(), KEY).unwrap();
    let volumes: Vec<_> = revoked.leases.iter().map(|lease| lease.volume.as_str()).collect();
    assert_eq!(volumes, ["volumes/b"], "the one that has just run out is told of, the old one is not");
}

#[test]
fn what_is_given_back_is_not_waited_for() {
    let leased = leased();
    let lease = leased.ask(NODE, "volumes/a", SPAN).unwrap();
    leased.report(&lease, "RELEASED").unwrap();
    assert!(leased.vault.list_leases(&officer(), KEY).unwrap().is_empty());
    let revoked = leased.vault.revoke_key(&officer(), KEY).unwrap();
    assert!(revoked.revocation.close_time.is_some());
    verify(&leased.proof(&first()), &leased.key(), &authority()).unwrap();
}
