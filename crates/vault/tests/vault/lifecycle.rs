//! What dates, policies and budgets do by themselves.

use crate::rig::*;
use custody_types::{Clock as _, KeyName, KeyOperation, UnixMillis, WrapAlgorithm::RsaOaep256};
use custody_vault::*;
use std::time::Duration;

const KEY: &str = "vaults/v/keys/k";
const DAY_MS: u64 = 86_400_000;

fn policy(rotate: Option<Trigger>, expire_after: Option<&str>) -> RotationPolicy {
    let key: KeyName = KEY.parse().unwrap();
    let expire_after = expire_after.map(|text| text.parse().unwrap());
    RotationPolicy { rotate, expire_after, ..RotationPolicy::default_of(key) }
}

fn after(text: &str) -> Option<Trigger> {
    Some(Trigger::AfterCreation(text.parse().unwrap()))
}

fn before(text: &str) -> Option<Trigger> {
    Some(Trigger::BeforeExpiry(text.parse().unwrap()))
}

fn versions(rig: &Rig) -> usize {
    rig.vault.list_key_versions(&officer(), KEY).unwrap().len()
}

fn count(rig: &Rig, kind: EventType) -> usize {
    rig.events.lock().unwrap().iter().filter(|k| **k == kind).count()
}

#[test]
fn a_policy_rotates_by_itself_and_gives_new_versions_their_expiry() {
    let rig = rig();
    with_key(&rig);
    assert_eq!(rig.vault.get_rotation_policy(&officer(), KEY).unwrap().update_time, None, "the default");
    rig.vault.set_rotation_policy(&officer(), policy(after("P30D"), Some("P60D"))).unwrap();
    rig.vault.tick().unwrap();
    assert_eq!(versions(&rig), 1, "nothing is due");
    rig.clock.pass(30 * DAY_MS);
    rig.vault.tick().unwrap();
    rig.vault.tick().unwrap();
    assert_eq!(versions(&rig), 2, "once");
    let current = rig.vault.get_key(&officer(), KEY).unwrap().current;
    let life = current.attributes.expire_time.unwrap().since(current.create_time);
    assert_eq!(life, Duration::from_millis(60 * DAY_MS));
    let trail = rig.journal.read(0, 10_000).unwrap();
    assert!(trail.iter().any(|e| e.record.operation_name == "KeyRotateIfDue"), "it has its record");
    rig.vault.rotate_key(&officer(), KEY).unwrap();
    assert!(rig.vault.get_key(&officer(), KEY).unwrap().current.attributes.expire_time.is_some());
}

#[test]
fn a_policy_is_kept_over_a_restart_and_makes_up_for_the_time_it_was_off() {
    let rig = rig();
    with_key(&rig);
    rig.vault.set_rotation_policy(&officer(), policy(after("P30D"), None)).unwrap();
    let Rig { vault, journal, clock, events, dir } = rig;
    drop((vault, journal));
    clock.pass(100 * DAY_MS);
    let (vault, _journal) = open(dir.path(), &clock, events);
    // What is due of a vault is done once it is in memory.
    vault.get_key(&officer(), KEY).unwrap();
    vault.tick().unwrap();
    vault.tick().unwrap();
    assert_eq!(vault.list_key_versions(&officer(), KEY).unwrap().len(), 2);
}

#[test]
fn expiries_are_told_before_and_when_they_come_and_a_rotation_before_them_is_done() {
    let rig = rig();
    with_key(&rig);
    let expiry = rig.clock.now().plus(Duration::from_millis(100 * DAY_MS));
    let change = AttributeChange { expire_time: Some(Some(expiry)), ..AttributeChange::default() };
    rig.vault.update_key(&officer(), KEY, change).unwrap();
    rig.clock.pass(70 * DAY_MS);
    rig.vault.tick().unwrap();
    rig.vault.tick().unwrap();
    assert_eq!(count(&rig, EventType::NearExpiry), 1, "30 days before, once");
    rig.clock.pass(30 * DAY_MS);
    rig.vault.tick().unwrap();
    assert_eq!((count(&rig, EventType::NearExpiry), count(&rig, EventType::Expired)), (1, 1));
    rig.vault.set_rotation_policy(&officer(), policy(before("P10D"), Some("P90D"))).unwrap();
    rig.vault.tick().unwrap();
    assert_eq!(versions(&rig), 2, "what the policy makes due at once is done");
    rig.clock.pass(80 * DAY_MS);
    rig.vault.tick().unwrap();
    assert_eq!(versions(&rig), 3);
}

#[test]
fn a_key_that_is_off_or_deleted_is_not_rotated() {
    let rig = rig();
    with_key(&rig);
    rig.vault.set_rotation_policy(&officer(), policy(after("P30D"), None)).unwrap();
    let enable = |enabled| AttributeChange { enabled: Some(enabled), ..AttributeChange::default() };
    rig.vault.update_key(&officer(), KEY, enable(false)).unwrap();
    rig.clock.pass(31 * DAY_MS);
    rig.vault.tick().unwrap();
    assert_eq!(versions(&rig), 1);
    rig.vault.delete_key(&officer(), KEY).unwrap();
    rig.vault.tick().unwrap();
    rig.vault.undelete_key(&officer(), KEY).unwrap();
    rig.vault.update_key(&officer(), KEY, enable(true)).unwrap();
    rig.vault.tick().unwrap();
    assert_eq!(versions(&rig), 2, "back on, it is made up for");
}

#[test]
fn a_policy_has_azures_bounds() {
    let rig = rig();
    with_key(&rig);
    for (bad, field) in [
        (policy(after("P6D"), None), "rotation_policy.rotate_after_creation"),
        (policy(after("P50D"), Some("P28D")), "rotation_policy.rotate_after_creation"),
        (policy(before("P6D"), Some("P60D")), "rotation_policy.rotate_before_expiry"),
        (policy(before("P55D"), Some("P60D")), "rotation_policy.rotate_before_expiry"),
        (policy(before("P30D"), None), "rotation_policy.expire_after"),
        (policy(None, Some("P27D")), "rotation_policy.expire_after"),
    ] {
        assert_eq!(rig.vault.set_rotation_policy(&officer(), bad).unwrap_err().field(), Some(field));
    }
    let refused = rig.vault.set_rotation_policy(&node(), policy(None, None)).unwrap_err();
    assert_eq!(refused.reason(), "PERMISSION_DENIED");
}

#[test]
fn a_budget_is_never_exceeded_also_not_over_restarts() {
    let rig = rig();
    with_key(&rig);
    let budget = |budget| AttributeChange { budget: Some(budget), ..AttributeChange::default() };
    rig.vault.update_key(&officer(), KEY, budget(Some(100))).unwrap();
    let wrap = |vault: &Vault| vault.wrap_key(&node(), KEY, RsaOaep256, &[1]).map(drop);
    for _ in 0..10 {
        wrap(&rig.vault).unwrap();
    }
    let uses = rig.vault.get_key(&officer(), KEY).unwrap().current.uses;
    assert_eq!(uses.operations.get(&KeyOperation::WrapKey), Some(&10));
    let Rig { vault, journal, clock, events, dir } = rig;
    drop((vault, journal));
    let (vault, _journal) = open(dir.path(), &clock, events);
    let mut more = 0;
    let spent = loop {
        match wrap(&vault) {
            Ok(()) => more += 1,
            Err(e) => break e,
        }
    };
    assert_eq!(spent.reason(), "KEY_BUDGET_SPENT");
    assert!((20..=90).contains(&more), "a kill spends a block of 64 at most: {more}");
    vault.update_key(&officer(), KEY, budget(None)).unwrap();
    wrap(&vault).unwrap();
    vault.close().unwrap();
}

#[test]
fn a_budget_does_not_come_back_with_a_backup_or_by_storing_counts() {
    let rig = rig();
    rig.vault.create_vault(&officer(), "v", parameters(7, false)).unwrap();
    let bounded = Particulars {
        attributes: custody_types::KeyAttributes { budget: Some(100), ..Default::default() },
        ..Particulars::default()
    };
    rig.vault.create_key(&officer(), "vaults/v", "k", rsa(), bounded, IfExists::Refuse).unwrap();
    grant(&rig.vault);
    let wrap = |vault: &Vault| vault.wrap_key(&node(), KEY, RsaOaep256, &[1]).map(drop);
    for n in 0..70 {
        wrap(&rig.vault).unwrap();
        if n % 9 == 0 {
            rig.vault.tick().unwrap();
        }
    }
    let copy = rig.vault.backup_key(&officer(), KEY).unwrap();
    rig.vault.delete_key(&officer(), KEY).unwrap();
    rig.vault.purge_key(&officer(), KEY, false).unwrap();
    rig.vault.restore_key(&officer(), "vaults/v", &copy).unwrap();
    assert!(wrap(&rig.vault).is_err(), "both blocks were given out");
    let Rig { vault, journal, clock, events, dir } = rig;
    drop((vault, journal));
    let (vault, _journal) = open(dir.path(), &clock, events);
    assert_eq!(wrap(&vault).unwrap_err().reason(), "KEY_BUDGET_SPENT");
}

#[test]
fn counts_are_stored_with_each_tick() {
    let rig = rig();
    with_key(&rig);
    rig.vault.wrap_key(&node(), KEY, RsaOaep256, &[1]).unwrap();
    rig.vault.tick().unwrap();
    let Rig { vault, journal, clock, events, dir } = rig;
    drop((vault, journal));
    let (vault, _journal) = open(dir.path(), &clock, events);
    let uses = vault.get_key(&officer(), KEY).unwrap().current.uses;
    assert_eq!(uses.operations.values().sum::<u64>(), 1);
    assert!(uses.last_used > Some(UnixMillis::from_millis(0)));
}

#[test]
fn random_bytes_are_random_and_bounded() {
    let rig = rig();
    with_key(&rig);
    let draw = |count| rig.vault.random_bytes(&officer(), "vaults/v", count);
    let (one, other) = (draw(32).unwrap(), draw(32).unwrap());
    assert!(one.len() == 32 && one != other);
    for bad in [0, 129] {
        assert_eq!(draw(bad).unwrap_err().field(), Some("count"));
    }
    assert_eq!(rig.vault.random_bytes(&node(), "vaults/v", 1).unwrap_err().reason(), "PERMISSION_DENIED");
}
