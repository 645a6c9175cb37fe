//! What needs two officers is not done by one.

use crate::rig::*;
use custody_types::Duty;
use custody_vault::*;
use std::time::Duration;

const KEY: &str = "vaults/v/keys/k";

fn second() -> Call {
    call("principals/custodian", Duty::SecurityOfficer)
}

/// A vault that asks for two officers, with a key, and a second officer who may do what the first may.
fn two_officers(purge_protection: bool) -> Rig {
    let rig = rig();
    let parameters = VaultParameters { retention_days: 7, purge_protection, ..VaultParameters::default() };
    rig.vault.create_vault(&officer(), "v", parameters).unwrap();
    rig.vault
        .create_key(&officer(), "vaults/v", "k", rsa(), Particulars::default(), IfExists::Refuse)
        .unwrap();
    give(&rig, &officer(), "principals/custodian", "Key Vault Administrator", "vaults/v").unwrap();
    rig
}

fn give(rig: &Rig, call: &Call, principal: &str, role: &str, scope: &str) -> Result<String, VaultError> {
    let new = NewAssignment {
        principal: principal.into(),
        role: role.into(),
        scope: scope.into(),
        ..NewAssignment::default()
    };
    rig.vault.create_role_assignment(call, "vaults/v", new).map(|a| a.name)
}

fn request(done: Result<(), VaultError>) -> String {
    let refused = done.unwrap_err();
    assert_eq!(refused.reason(), "APPROVAL_REQUIRED", "{refused}");
    let VaultError::ApprovalRequired { approval, .. } = refused else { unreachable!("by its reason") };
    approval
}

/// One officer alone fails, however often; with the second it is done, once.
fn needs_two(rig: &Rig, act: impl Fn(&Call) -> Result<(), VaultError>) {
    let asked = request(act(&officer()));
    assert_eq!(request(act(&officer())), asked, "asking again waits for the same approval");
    let own = rig.vault.decide_approval(&officer(), &asked, true).unwrap_err();
    assert_eq!(own.reason(), "INVALID_KEY_TRANSITION", "one's own request");
    let outsider = call("principals/outsider", Duty::SecurityOfficer);
    let refused = rig.vault.decide_approval(&outsider, &asked, true).unwrap_err();
    assert_eq!(refused.reason(), "PERMISSION_DENIED", "an officer who may not do it may not approve it");
    let (_, state) = rig.vault.decide_approval(&second(), &asked, true).unwrap();
    assert_eq!(state, ApprovalState::Approved);
    act(&officer()).unwrap();
    let all = rig.vault.list_approvals(&officer(), "vaults/v").unwrap();
    let (spent, state) = all.iter().find(|(a, _)| a.name.as_str() == asked).unwrap();
    let decider = spent.decision.as_ref().unwrap().0.as_str();
    assert_eq!((*state, decider), (ApprovalState::Used, "principals/custodian"));
    assert!(rig.vault.decide_approval(&second(), &asked, true).is_err(), "it was used");
}

#[test]
fn a_purge_needs_two_officers() {
    let rig = two_officers(false);
    rig.vault.delete_key(&officer(), KEY).unwrap();
    needs_two(&rig, |call| rig.vault.purge_key(call, KEY, false));
    assert!(rig.vault.get_key(&officer(), KEY).is_err());
}

#[test]
fn a_backup_of_a_key_needs_two_officers_each_time() {
    let rig = two_officers(true);
    needs_two(&rig, |call| rig.vault.backup_key(call, KEY).map(drop));
    request(rig.vault.backup_key(&officer(), KEY).map(drop));
}

#[test]
fn a_role_granted_to_oneself_needs_two_officers_also_by_way_of_a_group() {
    let rig = two_officers(true);
    needs_two(&rig, |call| {
        give(&rig, call, "principals/officer", "Key Vault Purge Operator", "vaults/v").map(drop)
    });
    let group = rig.vault.create_group(&officer(), "vaults/v", "g").unwrap().name;
    give(&rig, &officer(), &group, "Key Vault Reader", "vaults/v").unwrap();
    needs_two(&rig, |call| rig.vault.add_group_member(call, &group, "principals/officer").map(drop));
    needs_two(&rig, |call| give(&rig, call, &group, "Key Vault Purge Operator", "vaults/v").map(drop));
    // For others one officer is enough.
    give(&rig, &officer(), "principals/third", "Key Vault Reader", "vaults/v").unwrap();
    rig.vault.add_group_member(&officer(), &group, "principals/third").unwrap();
}

#[test]
fn an_approval_is_for_the_very_act_that_was_asked_for_and_for_who_asked() {
    let rig = two_officers(true);
    let asked = request(rig.vault.backup_key(&officer(), KEY).map(drop));
    rig.vault.decide_approval(&second(), &asked, true).unwrap();
    request(rig.vault.backup_key(&second(), KEY).map(drop));
    let take = |until: Option<u64>| {
        let new = NewAssignment {
            principal: "principals/officer".into(),
            role: "Key Vault Purge Operator".into(),
            scope: "vaults/v".into(),
            condition: custody_authz::Condition {
                expire_time: until.map(custody_types::UnixMillis::from_secs),
                ..custody_authz::Condition::default()
            },
        };
        rig.vault.create_role_assignment(&officer(), "vaults/v", new).map(drop)
    };
    let asked = request(take(Some(4_000_000_000)));
    rig.vault.decide_approval(&second(), &asked, true).unwrap();
    assert_ne!(request(take(None)), asked, "without its end it is another act");
    take(Some(4_000_000_000)).unwrap();
}

#[test]
fn what_weakens_a_vault_needs_two_officers() {
    let rig = two_officers(true);
    let change = |call: &Call, change| rig.vault.update_vault(call, "vaults/v", change).map(drop);
    needs_two(&rig, |call| {
        change(call, VaultChange { purge_protection: Some(false), ..VaultChange::default() })
    });
    assert!(!rig.vault.get_vault(&officer(), "vaults/v").unwrap().purge_protection);
    change(&officer(), VaultChange { purge_protection: Some(true), ..VaultChange::default() }).unwrap();
    let one = VaultChange { approvals: Some(ApprovalPolicy::OneOfficer), ..VaultChange::default() };
    needs_two(&rig, |call| change(call, one));
    // Where one officer is enough, nobody takes purge protection away.
    let unprotect = VaultChange { purge_protection: Some(false), ..VaultChange::default() };
    assert_eq!(change(&officer(), unprotect).unwrap_err().reason(), "INVALID_KEY_TRANSITION");
    rig.vault.delete_key(&officer(), KEY).unwrap();
    assert_eq!(rig.vault.purge_key(&officer(), KEY, false).unwrap_err().reason(), "INVALID_KEY_TRANSITION");
}

#[test]
fn break_glass_needs_two_officers_whatever_the_policy_and_ends_by_itself() {
    let rig = rig();
    rig.vault
        .create_vault(&call("principals/gone", Duty::SecurityOfficer), "v", parameters(7, true))
        .unwrap();
    let hour = Duration::from_secs(3600);
    let act = |call: &Call| rig.vault.break_glass(call, "vaults/v", "the owner left", hour).map(drop);
    let asked = request(act(&officer()));
    assert!(rig.vault.decide_approval(&officer(), &asked, true).is_err());
    let admin = call("principals/s", Duty::SystemAdministrator);
    assert_eq!(rig.vault.decide_approval(&admin, &asked, true).unwrap_err().reason(), "PERMISSION_DENIED");
    rig.vault.decide_approval(&second(), &asked, true).unwrap();
    act(&officer()).unwrap();
    let key = |id| {
        rig.vault.create_key(&officer(), "vaults/v", id, rsa(), Particulars::default(), IfExists::Refuse)
    };
    key("a").unwrap();
    rig.clock.pass(3_600_001);
    assert_eq!(key("b").unwrap_err().reason(), "PERMISSION_DENIED");
    rig.vault.tick().unwrap();
    assert!(rig.events.lock().unwrap().contains(&EventType::AccessChanged), "its end is told");
    for (reason, time) in [("", hour), ("two\nlines", hour), ("x", Duration::ZERO), ("x", hour * 25)] {
        assert!(rig.vault.break_glass(&officer(), "vaults/v", reason, time).unwrap_err().field().is_some());
    }
}

#[test]
fn an_approval_that_is_rejected_or_late_serves_nothing() {
    let rig = two_officers(true);
    let act = || rig.vault.backup_key(&officer(), KEY).map(drop);
    let asked = request(act());
    let (_, state) = rig.vault.decide_approval(&second(), &asked, false).unwrap();
    assert_eq!(state, ApprovalState::Rejected);
    let again = request(act());
    assert_ne!(again, asked);
    rig.clock.pass(3_600_001);
    assert!(rig.vault.decide_approval(&second(), &again, true).is_err(), "its time is over");
    let third = request(act());
    rig.vault.decide_approval(&second(), &third, true).unwrap();
    rig.clock.pass(3_600_001);
    assert_ne!(request(act()), third, "an approval is used within its time");
    // An approval can be taken back, by who gave it or by who asked.
    let fourth = request(act());
    rig.vault.decide_approval(&second(), &fourth, true).unwrap();
    rig.vault.decide_approval(&officer(), &fourth, false).unwrap();
    request(act());
}

#[test]
fn approvals_are_kept_over_a_restart() {
    let rig = two_officers(true);
    let asked = request(rig.vault.backup_key(&officer(), KEY).map(drop));
    rig.vault.decide_approval(&second(), &asked, true).unwrap();
    let Rig { vault, journal, clock, events, dir } = rig;
    drop((vault, journal));
    let (vault, _journal) = open(dir.path(), &clock, events);
    vault.backup_key(&officer(), KEY).unwrap();
}
