//! What depends on which version, and that nothing is destroyed that something depends on.

use crate::rig::*;
use custody_types::{Duty, KeyName, KeyVersionName};
use custody_vault::*;

const KEY: &str = "vaults/v/keys/k";
const NODE: &str = "principals/storage";

fn holder() -> Call {
    call(NODE, Duty::Workload)
}

fn second() -> Call {
    call("principals/custodian", Duty::SecurityOfficer)
}

/// A vault without purge protection, and a second officer who may purge.
fn made() -> Rig {
    let rig = rig();
    rig.vault.create_vault(&officer(), "v", parameters(7, false)).unwrap();
    rig.vault
        .create_key(&officer(), "vaults/v", "k", rsa(), Particulars::default(), IfExists::Refuse)
        .unwrap();
    let purge = NewAssignment {
        principal: "principals/custodian".into(),
        role: "Key Vault Purge Operator".into(),
        scope: "vaults/v".into(),
        ..NewAssignment::default()
    };
    rig.vault.create_role_assignment(&officer(), "vaults/v", purge).unwrap();
    rig
}

fn key() -> KeyName {
    KEY.parse().unwrap()
}

fn version(vault: &Vault) -> KeyVersionName {
    vault.get_key(&officer(), KEY).unwrap().current.name
}

fn on(resource: &str, kind: DependentKind, base: &str, version: &KeyVersionName) -> Dependent {
    Dependent::new(resource.into(), version.clone(), kind, base.into(), false).unwrap()
}

fn volume(resource: &str, version: &KeyVersionName) -> Dependent {
    on(resource, DependentKind::Volume, "", version)
}

fn report(rig: &Rig, dependents: Vec<Dependent>, removed: Vec<(&str, &KeyVersionName)>) -> Reported {
    let (_, last) = rig.vault.reported_dependents(&holder()).unwrap();
    let removed =
        removed.into_iter().map(|(resource, version)| (resource.to_owned(), version.clone())).collect();
    let report = DependentReport { dependents, removed, complete: false, sequence: last + 1 };
    rig.vault.report_dependents(&holder(), report).unwrap()
}

fn listed(vault: &Vault) -> Vec<String> {
    vault.list_dependents(&officer(), KEY).unwrap().into_iter().map(|d| d.resource).collect()
}

#[test]
fn a_version_can_be_retired_when_nothing_needs_it() {
    let rig = made();
    let first = version(&rig.vault);
    let answer = |n: usize| rig.vault.lineage(&officer(), &key()).unwrap().versions.swap_remove(n).obstacle();
    assert!(answer(0).unwrap().contains("current version"));
    assert_eq!(report(&rig, vec![volume("volumes/a", &first)], vec![]).records.len(), 1);
    rig.vault.rotate_key(&officer(), KEY).unwrap();
    let next = version(&rig.vault);
    let why = answer(1).unwrap();
    assert!(why.contains("needed by 1 volume") && !why.contains("current"), "{why}");
    report(&rig, vec![volume("volumes/a", &next)], vec![("volumes/a", &first)]);
    assert_eq!(answer(1), None);
    let pinned = Dependent { pinned: true, ..volume("volumes/b", &first) };
    report(&rig, vec![pinned], vec![]);
    assert!(answer(1).unwrap().contains("change-key"));
    // Said again, nothing changes and nothing is recorded; what is not there is not removed.
    let again = report(&rig, vec![volume("volumes/a", &next)], vec![("volumes/z", &first)]);
    assert!(again.records.is_empty());
    assert_eq!(listed(&rig.vault).len(), 2);
}

#[test]
fn what_holders_said_is_kept_over_a_restart() {
    let rig = made();
    let first = version(&rig.vault);
    report(&rig, vec![volume("volumes/a", &first), volume("volumes/b", &first)], vec![]);
    report(&rig, vec![], vec![("volumes/a", &first)]);
    let complete = DependentReport { complete: true, sequence: 9, ..DependentReport::default() };
    rig.vault.report_dependents(&holder(), complete).unwrap();
    let Rig { vault, journal, clock, events, dir } = rig;
    drop((vault, journal));
    let (vault, _journal) = open(dir.path(), &clock, events);
    assert_eq!(listed(&vault), ["volumes/b"]);
    let lineage = vault.lineage(&officer(), &key()).unwrap();
    assert!(lineage.holders.get(NODE).is_some_and(Option::is_some));
}

#[test]
fn a_report_that_comes_late_undoes_nothing() {
    let rig = made();
    let first = version(&rig.vault);
    let send = |dependents, removed, sequence| {
        let report = DependentReport { dependents, removed, complete: false, sequence };
        rig.vault.report_dependents(&holder(), report)
    };
    send(vec![volume("volumes/a", &first)], vec![], 2).unwrap();
    let late = send(vec![], vec![("volumes/a".into(), first.clone())], 1).unwrap_err();
    assert_eq!((late.reason(), late.field()), ("INVALID_FIELD", Some("sequence")));
    assert_eq!(listed(&rig.vault), ["volumes/a"]);
    // Another's is not its to remove.
    let other = call("principals/other", Duty::Workload);
    let removed = vec![("volumes/a".into(), first)];
    rig.vault
        .report_dependents(&other, DependentReport { removed, sequence: 1, ..DependentReport::default() })
        .unwrap();
    assert_eq!(listed(&rig.vault), ["volumes/a"]);
}

#[test]
fn what_something_depends_on_is_destroyed_by_two_officers_who_see_what_it_costs() {
    let rig = made();
    let first = version(&rig.vault);
    // The increment opens with another key, and is of no use without what it adds to; nor is what adds to that.
    rig.vault
        .create_key(&officer(), "vaults/v", "other", rsa(), Particulars::default(), IfExists::Refuse)
        .unwrap();
    let other = rig.vault.get_key(&officer(), "vaults/v/keys/other").unwrap().current.name;
    let increment = |n: u8, base: u8| {
        on(&format!("backups/{n}"), DependentKind::Increment, &format!("backups/{base}"), &other)
    };
    let full = on("backups/1", DependentKind::Backup, "", &first);
    let all = vec![
        volume("volumes/a", &first),
        increment(3, 2),
        full,
        increment(2, 1),
        volume("volumes/b", &other),
    ];
    report(&rig, all, vec![]);
    rig.vault.delete_key(&officer(), KEY).unwrap();
    let refused = rig.vault.purge_key(&officer(), KEY, false).unwrap_err();
    assert_eq!(refused.reason(), "KEY_HAS_DEPENDENTS");
    assert!(refused.to_string().contains("1 volume, 1 backup, 2 incremental backups"), "{refused}");
    // The vault asks for one officer only; this needs two all the same.
    let asked = |rig: &Rig| match rig.vault.purge_key(&officer(), KEY, true) {
        Err(VaultError::ApprovalRequired { approval, action }) => (approval, action),
        other => panic!("{other:?}"),
    };
    let (approval, action) = asked(&rig);
    assert!(action.contains("1 volume, 1 backup, 2 incremental backups"), "{action}");
    rig.vault.decide_approval(&second(), &approval, true).unwrap();
    // Where more would be lost than the second officer saw, it is asked for again.
    report(&rig, vec![volume("volumes/c", &first)], vec![]);
    let (again, _) = asked(&rig);
    assert_ne!(again, approval);
    report(&rig, vec![], vec![("volumes/c", &first)]);
    rig.vault.purge_key(&officer(), KEY, true).unwrap();
    let shred = rig.vault.shred_report(&officer(), &key()).unwrap();
    let lost: Vec<_> = shred.unreadable.iter().map(|d| d.resource.as_str()).collect();
    assert_eq!(lost, ["backups/1", "backups/2", "backups/3", "volumes/a"]);
    assert_eq!((&*shred.requester, &*shred.approver), ("principals/officer", "principals/custodian"));
    // Nothing is stored under it any more.
    let late = report(&rig, vec![volume("volumes/d", &first)], vec![]);
    assert_eq!(late.unknown.into_iter().collect::<Vec<_>>(), [first]);
    let (known, _) = rig.vault.reported_dependents(&holder()).unwrap();
    assert!(known.iter().all(|d| d.key_version == other), "{known:?}");
}

#[test]
fn the_end_of_its_retention_destroys_no_key_that_something_depends_on() {
    let rig = rig();
    with_key(&rig);
    let first = version(&rig.vault);
    report(&rig, vec![volume("volumes/a", &first)], vec![]);
    rig.vault.delete_key(&officer(), KEY).unwrap();
    rig.clock.pass(8 * 86_400_000);
    for _ in 0..3 {
        rig.vault.tick().unwrap();
    }
    rig.vault.get_key(&officer(), KEY).unwrap();
    let entries = rig.journal.read(0, 1000).unwrap();
    let held = entries.iter().filter(|e| e.record.operation_name == "KeyPurgeHeld");
    let said: Vec<_> = held.map(|e| e.record.result_description.clone()).collect();
    assert!(said.len() == 1 && said[0].contains("needed by 1 volume"), "{said:?}");
    report(&rig, vec![], vec![("volumes/a", &first)]);
    rig.vault.tick().unwrap();
    assert!(rig.vault.get_key(&officer(), KEY).is_err());
}

#[test]
fn under_purge_protection_two_officers_shred_only_after_the_retention() {
    let rig = rig();
    with_key(&rig);
    let purge = NewAssignment {
        principal: "principals/custodian".into(),
        role: "Key Vault Purge Operator".into(),
        scope: "vaults/v".into(),
        ..NewAssignment::default()
    };
    rig.vault.create_role_assignment(&officer(), "vaults/v", purge).unwrap();
    report(&rig, vec![volume("volumes/a", &version(&rig.vault))], vec![]);
    rig.vault.delete_key(&officer(), KEY).unwrap();
    assert_eq!(rig.vault.purge_key(&officer(), KEY, true).unwrap_err().reason(), "INVALID_KEY_TRANSITION");
    rig.clock.pass(8 * 86_400_000);
    let VaultError::ApprovalRequired { approval, .. } =
        rig.vault.purge_key(&officer(), KEY, true).unwrap_err()
    else {
        panic!("one officer alone")
    };
    rig.vault.decide_approval(&second(), &approval, true).unwrap();
    rig.vault.purge_key(&officer(), KEY, true).unwrap();
    assert!(rig.vault.get_key(&officer(), KEY).is_err());
}
