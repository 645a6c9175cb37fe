//! Groups, roles of a vault, conditions, explanations and reviews.

use crate::rig::*;
use custody_authz::{Condition, Verdict};
use custody_types::{Duty, Permission, WrapAlgorithm::RsaOaep256};
use custody_vault::*;

const KEY: &str = "vaults/v/keys/k";

fn give(rig: &Rig, principal: &str, role: &str, condition: Condition) -> Result<String, VaultError> {
    let new =
        NewAssignment { principal: principal.into(), role: role.into(), scope: "vaults/v".into(), condition };
    rig.vault.create_role_assignment(&officer(), "vaults/v", new).map(|a| a.name)
}

fn strings(all: &[&str]) -> Vec<String> {
    all.iter().map(ToString::to_string).collect()
}

#[test]
fn a_role_of_a_vault_gives_what_it_names_and_goes_when_nobody_holds_it() {
    let rig = rig();
    with_key(&rig);
    let make = |permissions: &[&str]| {
        rig.vault.create_role_definition(&officer(), "vaults/v", "signer", &strings(permissions), "Signs.")
    };
    for bad in [&["sign", "delete"][..], &[], &["fly"], &["vault/create"]] {
        assert_eq!(make(bad).unwrap_err().field(), Some("role_definition.permissions"), "{bad:?}");
    }
    let role = make(&["sign", "get"]).unwrap().name;
    assert_eq!(make(&["sign"]).unwrap_err().reason(), "ALREADY_EXISTS");
    let app = call("principals/app", Duty::Workload);
    assert!(give(&rig, "principals/officer", &role, Condition::default()).is_err(), "a conflicting duty");
    let assignment = give(&rig, "principals/app", &role, Condition::default()).unwrap();
    let digest = [0; 32];
    let ps256 = "PS256".parse().unwrap();
    rig.vault.sign(&app, KEY, ps256, &digest).unwrap();
    let refused = rig.vault.wrap_key(&app, KEY, RsaOaep256, &[1]).unwrap_err();
    assert_eq!(refused.reason(), "PERMISSION_DENIED");
    let delete = || rig.vault.delete_role_definition(&officer(), &role);
    assert_eq!(delete().unwrap_err().reason(), "INVALID_KEY_TRANSITION", "it is held");
    rig.vault.delete_role_assignment(&officer(), &assignment).unwrap();
    delete().unwrap();
    assert!(rig.vault.sign(&app, KEY, ps256, &digest).is_err());
    assert_eq!(
        give(&rig, "principals/app", &role, Condition::default()).unwrap_err().field(),
        Some("role_assignment.role")
    );
}

#[test]
fn a_group_gives_and_takes_at_once_and_is_kept_over_a_restart() {
    let rig = rig();
    with_key(&rig);
    let group = rig.vault.create_group(&officer(), "vaults/v", "apps").unwrap().name;
    give(&rig, &group, "Key Vault Crypto User", Condition::default()).unwrap();
    let app = call("principals/app", Duty::Workload);
    let wrap = |vault: &Vault| vault.wrap_key(&app, KEY, RsaOaep256, &[1]).map(drop);
    assert!(wrap(&rig.vault).is_err());
    rig.vault.add_group_member(&officer(), &group, "principals/app").unwrap();
    wrap(&rig.vault).unwrap();
    let conflict = rig.vault.add_group_member(&officer(), &group, "principals/officer").unwrap_err();
    assert_eq!(conflict.reason(), "CONFLICTING_DUTY");
    assert_eq!(rig.vault.delete_group(&officer(), &group).unwrap_err().reason(), "INVALID_KEY_TRANSITION");
    let Rig { vault, journal, clock, events, dir } = rig;
    drop((vault, journal));
    let (vault, _journal) = open(dir.path(), &clock, events);
    wrap(&vault).unwrap();
    vault.remove_group_member(&officer(), &group, "principals/app").unwrap();
    assert!(wrap(&vault).is_err());
    let missing = "vaults/v/groups/none";
    assert_eq!(
        vault.add_group_member(&officer(), missing, "principals/app").unwrap_err().reason(),
        "NOT_FOUND"
    );
    let elsewhere = NewAssignment {
        principal: "vaults/w/groups/g".into(),
        role: "Key Vault Reader".into(),
        scope: "vaults/v".into(),
        ..NewAssignment::default()
    };
    let refused = vault.create_role_assignment(&officer(), "vaults/v", elsewhere).unwrap_err();
    assert_eq!(refused.field(), Some("role_assignment.principal"));
}

#[test]
fn a_condition_holds_from_its_network_and_until_its_time() {
    let rig = rig();
    with_key(&rig);
    let until = custody_types::Clock::now(&rig.clock).plus(std::time::Duration::from_secs(60));
    let condition = Condition {
        expire_time: Some(until),
        source_networks: vec!["10.0.0.0/8".parse().unwrap()],
        ..Condition::default()
    };
    give(&rig, "principals/app", "Key Vault Crypto User", condition).unwrap();
    let mut app = call("principals/app", Duty::Workload);
    let wrap = |app: &Call| rig.vault.wrap_key(app, KEY, RsaOaep256, &[1]).map(drop);
    assert!(wrap(&app).is_err(), "from 127.0.0.1");
    app.caller.address = "10.9.8.7".into();
    wrap(&app).unwrap();
    rig.clock.pass(60_000);
    assert!(wrap(&app).is_err(), "its time is over");
    let reversed = Condition { not_before: Some(until), expire_time: Some(until), ..Condition::default() };
    let refused = give(&rig, "principals/app", "Key Vault Crypto User", reversed).unwrap_err();
    assert_eq!(refused.field(), Some("role_assignment.condition.expire_time"));
}

#[test]
fn explanations_agree_with_what_happens_and_reviews_tell_who_opened_what() {
    let rig = rig();
    let grant = with_key(&rig);
    let wrapped = rig.vault.wrap_key(&node(), KEY, RsaOaep256, &[7; 32]).unwrap();
    let explain = |permission| {
        let who = "managedIdentities/cluster";
        rig.vault.explain_access(&officer(), who, None, "", permission, KEY).unwrap()
    };
    assert_eq!(explain(Permission::UnwrapKey).allowed_by, Some(grant.clone()));
    let denied = explain(Permission::Sign);
    assert_eq!(denied.allowed_by, None);
    assert_eq!(denied.considered[0].verdict, Verdict::LacksPermission);
    let review = || rig.vault.review_access(&officer(), "vaults/v", "", 10).unwrap().0;
    let before = review();
    assert_eq!((before.len(), before[0].last_opened), (1, None));
    rig.vault.unwrap_key(&node(), wrapped.key_version.as_str(), RsaOaep256, &wrapped.ciphertext).unwrap();
    let after = review();
    assert_eq!(after[0].principal, "managedIdentities/cluster");
    assert!(after[0].last_opened.is_some() && after[0].assignment.is_some());
    rig.vault.delete_role_assignment(&officer(), &grant).unwrap();
    let gone = review();
    assert!(gone[0].assignment.is_none() && gone[0].last_opened.is_some(), "it did, and no longer may");
    let stranger = call("principals/s", Duty::SystemAdministrator);
    assert_eq!(
        rig.vault.review_access(&stranger, "vaults/v", "", 10).unwrap_err().reason(),
        "PERMISSION_DENIED"
    );
}
