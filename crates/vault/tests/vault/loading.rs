//! A start that serves before all vaults are in memory.

use crate::rig::{Rig, call, officer, open, parameters, rig};
use custody_store::Store;
use custody_types::{Curve, Duty, KeyType};
use custody_vault::*;

const VAULTS: usize = 12;
const KEYS: usize = 30;

fn create(vault: &Vault, parent: &str, id: &str) {
    let ec = Material::Generate(KeyType::Ec(Curve::P256));
    vault.create_key(&officer(), parent, id, ec, Particulars::default(), IfExists::Refuse).unwrap();
}

fn give(vault: &Vault, principal: &str, role: &str, scope: &str) -> Result<(), VaultError> {
    let new = NewAssignment {
        principal: principal.into(),
        role: role.into(),
        scope: scope.into(),
        ..NewAssignment::default()
    };
    vault.create_role_assignment(&officer(), scope, new).map(drop)
}

/// Vaults with keys, each with a reader of its own.
fn filled() -> Rig {
    let rig = rig();
    for v in 0..VAULTS {
        let parent = format!("vaults/v{v}");
        rig.vault.create_vault(&officer(), &format!("v{v}"), parameters(7, false)).unwrap();
        (0..KEYS).for_each(|k| create(&rig.vault, &parent, &format!("k{k}")));
        give(&rig.vault, &format!("principals/reader{v}"), "Key Vault Reader", &parent).unwrap();
    }
    rig
}

fn reopen(rig: Rig, between: impl FnOnce(&Store)) -> Rig {
    let Rig { vault, journal, clock, events, dir } = rig;
    drop((vault, journal));
    between(&Store::open(&dir.path().join("store")).unwrap());
    let (vault, journal) = open(dir.path(), &clock, events.clone());
    Rig { vault, journal, clock, events, dir }
}

fn reader(v: usize) -> Call {
    call(&format!("principals/reader{v}"), Duty::Auditor)
}

#[test]
fn whatever_is_asked_first_is_there() {
    let mut rig = filled();
    for round in 0..4 {
        rig = reopen(rig, |_| ());
        let vault = &rig.vault;
        std::thread::scope(|threads| {
            for v in 0..VAULTS {
                threads.spawn(move || {
                    let v = (v * 5 + round) % VAULTS;
                    let (parent, reader) = (format!("vaults/v{v}"), reader(v));
                    vault.get_key(&reader, &format!("{parent}/keys/k{}", KEYS - 1)).unwrap();
                    assert!(vault.list_keys(&reader, &parent, false, "", 1000).unwrap().len() >= KEYS);
                    let other = format!("vaults/v{}/keys/k0", (v + 1) % VAULTS);
                    assert_eq!(vault.get_key(&reader, &other).unwrap_err().reason(), "PERMISSION_DENIED");
                });
            }
            threads.spawn(|| assert_eq!(vault.list_vaults(&officer()).unwrap().len(), VAULTS));
            threads.spawn(move || create(vault, "vaults/v1", &format!("more{round}")));
        });
        let keys = vault.list_keys(&reader(1), "vaults/v1", false, "", 1000).unwrap();
        assert_eq!(keys.len(), KEYS + round + 1);
    }
}

#[test]
fn what_is_decided_over_all_vaults_waits_for_all() {
    let rig = filled();
    give(&rig.vault, "principals/app", "Key Vault Crypto User", "vaults/v11").unwrap();
    let rig = reopen(rig, |_| ());
    let refused = give(&rig.vault, "principals/app", "Key Vault Crypto Officer", "vaults/v0").unwrap_err();
    assert_eq!(refused.reason(), "CONFLICTING_DUTY");
    let rig = reopen(rig, |_| ());
    let time = std::time::Duration::from_secs(600);
    let app = call("principals/app", Duty::SecurityOfficer);
    let refused = rig.vault.break_glass(&app, "vaults/v0", "a test", time).unwrap_err();
    assert_eq!(refused.reason(), "CONFLICTING_DUTY");
    let rig = reopen(rig, |_| ());
    assert_eq!(rig.vault.list_vaults(&officer()).unwrap().len(), VAULTS);
}

#[test]
fn a_row_that_was_altered_ends_all_once_it_is_found() {
    let key = "vaults/v7/keys/k3";
    let tampered = |store: &Store| store.tamper("keys", key, "{}").unwrap();
    // By who asks for it.
    let rig = reopen(filled(), tampered);
    assert_eq!(rig.vault.get_key(&reader(7), "vaults/v7/keys/k0").unwrap_err().reason(), "STORE_INTEGRITY");
    assert_eq!(rig.vault.get_key(&reader(2), "vaults/v2/keys/k0").unwrap_err().reason(), "STORE_INTEGRITY");
    assert_eq!(
        rig.vault.create_vault(&officer(), "more", parameters(7, false)).unwrap_err().reason(),
        "STORE_INTEGRITY"
    );
    // By the threads that bring in all, whoever asks; and a row in a table that no vault's memory has.
    for (table, key) in [("keys", key), ("strange", "vaults/v7/x")] {
        let rig = reopen(filled(), |store| store.tamper(table, key, "{}").unwrap());
        let failed = (0..10_000).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            rig.vault.failure()
        });
        assert_eq!(failed.unwrap().reason(), "STORE_INTEGRITY");
        assert_eq!(
            rig.vault.get_key(&reader(2), "vaults/v2/keys/k0").unwrap_err().reason(),
            "STORE_INTEGRITY"
        );
        drop(rig);
    }
}
