//! A sealed vault answers nothing; what opens it does; what was put back is found.

use crate::rig::*;
use custody_audit::{FileLimits, Journal};
use custody_types::{Duty, SignatureAlgorithm, WrapAlgorithm};
use custody_vault::*;
use std::{path::Path, process::Command, sync::Arc};

const KEY: &str = "vaults/v/keys/k";
const PASSPHRASE: &str = "correct horse battery staple";

fn second() -> Call {
    call("principals/custodian", Duty::SecurityOfficer)
}

fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(text.to_owned())
}

fn share(text: &str) -> UnsealKey {
    UnsealKey::Share(ShareText::new(text.to_owned()))
}

fn change(vault: &Vault, name: &str, method: NewSeal) -> Vec<String> {
    let changed = vault.change_seal(&officer(), name, &method).unwrap();
    changed.shares.iter().map(|s| s.to_string()).collect()
}

fn wrap(vault: &Vault, by: &Call) -> Result<custody_types::WrappedKey, VaultError> {
    vault.wrap_key(by, KEY, WrapAlgorithm::RsaOaep256, b"data key")
}

fn opens(vault: &Vault, by: &Call, wrapped: &custody_types::WrappedKey) -> Result<(), VaultError> {
    let opened =
        vault.unwrap_key(by, wrapped.key_version.as_str(), WrapAlgorithm::RsaOaep256, &wrapped.ciphertext)?;
    assert_eq!(*opened.plain, b"data key");
    Ok(())
}

/// Ends a vault, and starts it over the same directory.
fn restart(rig: Rig) -> Rig {
    let Rig { vault, journal, clock, events, dir } = rig;
    vault.close().unwrap();
    drop((vault, journal));
    let (vault, journal) = open(dir.path(), &clock, Arc::clone(&events));
    Rig { vault, journal, clock, events, dir }
}

#[test]
fn shares_of_several_officers_open_the_deployment() {
    let rig = rig();
    with_key(&rig);
    let wrapped = wrap(&rig.vault, &node()).unwrap();
    assert!(rig.vault.seal(&officer(), "seal").is_err(), "the key file would open it again");
    let stranger = call("principals/dba", Duty::DatabaseAdministrator);
    let method = NewSeal::Shares { number: 3, threshold: 2 };
    assert_eq!(rig.vault.change_seal(&stranger, "seal", &method).unwrap_err().reason(), "PERMISSION_DENIED");
    let earlier = change(&rig.vault, "seal", NewSeal::Shares { number: 2, threshold: 2 });
    let shares = change(&rig.vault, "seal", method);
    assert_eq!(shares.len(), 3);
    opens(&rig.vault, &node(), &wrapped).unwrap();

    // The key file opens nothing any more, and a restart does not open it.
    let rig = restart(rig);
    let vault = &rig.vault;
    assert!(vault.is_sealed());
    assert_eq!(opens(vault, &node(), &wrapped).unwrap_err().reason(), "SEALED");
    assert_eq!(vault.get_key(&officer(), KEY).unwrap_err().status(), "UNAVAILABLE");
    assert_eq!(vault.list_vaults(&officer()).unwrap_err().reason(), "SEALED");
    vault.tick().unwrap();
    let unseal = |by: &Call, text: &str| vault.unseal(by, "seal", &share(text));
    assert!(unseal(&stranger, &shares[0]).is_err());
    assert_eq!(unseal(&officer(), &earlier[0]).unwrap_err().field(), Some("share"));
    assert_eq!(unseal(&officer(), &shares[0][..40]).unwrap_err().field(), Some("share"));
    let wrong = UnsealKey::Passphrase(passphrase(PASSPHRASE));
    assert_eq!(vault.unseal(&officer(), "seal", &wrong).unwrap_err().field(), Some("key"));
    let status = unseal(&officer(), &shares[0]).unwrap();
    assert!(status.sealed && status.shares_given == 1);
    // One officer is not two, and one share is not two.
    assert_eq!(unseal(&officer(), &shares[1]).unwrap_err().field(), Some("share"));
    assert_eq!(unseal(&second(), &shares[0]).unwrap_err().field(), Some("share"));
    // Shares are to be given within a time.
    rig.clock.pass(601_000);
    assert_eq!(vault.system_seal().unwrap().shares_given, 0);
    assert!(unseal(&second(), &shares[2]).unwrap().sealed);
    assert!(!unseal(&officer(), &shares[0]).unwrap().sealed);
    opens(vault, &node(), &wrapped).unwrap();
    assert!(unseal(&officer(), &shares[0]).is_err(), "it is open");

    // Rotated, the same shares open it; sealed while it runs, they do too.
    assert_eq!(vault.rotate_root_key(&officer(), "seal").unwrap().generation, 4);
    assert!(vault.seal(&officer(), "seal").unwrap().sealed);
    assert_eq!(opens(vault, &node(), &wrapped).unwrap_err().reason(), "SEALED");
    unseal(&officer(), &shares[1]).unwrap();
    unseal(&second(), &shares[2]).unwrap();
    opens(vault, &node(), &wrapped).unwrap();
    rig.vault.rotate_key(&officer(), KEY).unwrap();
    let rig = restart(rig);
    assert!(rig.vault.is_sealed());
    rig.journal.close();
    let mut story = String::new();
    for file in std::fs::read_dir(rig.dir.path().join("audit")).unwrap() {
        story += &std::fs::read_to_string(file.unwrap().path()).unwrap_or_default();
    }
    assert!(["SealChange", "Unseal", "RootKeyRotate"].iter().all(|op| story.contains(op)));
    assert!(shares.iter().all(|share| !story.contains(share)), "a share stands in the trail");
}

#[test]
fn a_passphrase_opens_the_deployment_and_another_does_not() {
    let rig = rig();
    with_key(&rig);
    let wrapped = wrap(&rig.vault, &node()).unwrap();
    let short = NewSeal::Passphrase(passphrase("too short"));
    assert_eq!(rig.vault.change_seal(&officer(), "seal", &short).unwrap_err().field(), Some("passphrase"));
    change(&rig.vault, "seal", NewSeal::Passphrase(passphrase(PASSPHRASE)));
    let rig = restart(rig);
    let unseal = |text: &str| rig.vault.unseal(&officer(), "seal", &UnsealKey::Passphrase(passphrase(text)));
    assert_eq!(unseal("incorrect horse battery staple").unwrap_err().reason(), "UNSEAL_FAILED");
    assert!(rig.vault.is_sealed());
    assert!(!unseal(PASSPHRASE).unwrap().sealed);
    opens(&rig.vault, &node(), &wrapped).unwrap();
    // And back: the key file opens it at the next start.
    change(&rig.vault, "seal", NewSeal::Default);
    let rig = restart(rig);
    opens(&rig.vault, &node(), &wrapped).unwrap();
}

#[test]
fn a_vaults_owner_seals_it_and_nobody_else_opens_it() {
    let rig = rig();
    with_key(&rig);
    let app = user(&rig);
    let wrapped = wrap(&rig.vault, &node()).unwrap();
    assert!(rig.vault.seal(&officer(), "vaults/v/seal").is_err(), "it has no seal of its own");
    let shares = change(&rig.vault, "vaults/v/seal", NewSeal::Shares { number: 2, threshold: 2 });
    opens(&rig.vault, &node(), &wrapped).unwrap();
    rig.events.lock().unwrap().clear();
    assert!(rig.vault.seal(&officer(), "vaults/v/seal").unwrap().sealed);
    assert_eq!(*rig.events.lock().unwrap(), [EventType::Sealed]);

    let refused = |vault: &Vault| {
        let sealed =
            |e: VaultError| assert_eq!((e.reason(), e.status()), ("VAULT_SEALED", "FAILED_PRECONDITION"));
        sealed(opens(vault, &node(), &wrapped).unwrap_err());
        sealed(wrap(vault, &node()).unwrap_err());
        let digest = [1; 32];
        sealed(vault.sign(&app, KEY, SignatureAlgorithm::Ps256, &digest).unwrap_err());
        // Also what needs no private half.
        sealed(vault.verify(&app, KEY, SignatureAlgorithm::Ps256, &digest, &[0; 256]).unwrap_err());
        sealed(vault.rotate_key(&officer(), KEY).map(drop).unwrap_err());
        sealed(vault.backup_key(&officer(), KEY).map(drop).unwrap_err());
        sealed(vault.rotate_root_key(&officer(), "vaults/v/seal").map(drop).unwrap_err());
        let method = NewSeal::Default;
        sealed(vault.change_seal(&officer(), "vaults/v/seal", &method).map(drop).unwrap_err());
        let none = Particulars::default;
        sealed(
            vault
                .create_key(&officer(), "vaults/v", "other", rsa(), none(), IfExists::Refuse)
                .map(drop)
                .unwrap_err(),
        );
    };
    refused(&rig.vault);
    // What is not secret is read, and other vaults are used.
    rig.vault.get_key(&officer(), KEY).unwrap();
    rig.vault.create_vault(&officer(), "w", parameters(7, true)).unwrap();
    let none = Particulars::default();
    rig.vault.create_key(&officer(), "vaults/w", "k", rsa(), none, IfExists::Refuse).unwrap();
    // The deployment's root key changes under a sealed vault, which its operator cannot open.
    rig.vault.rotate_root_key(&officer(), "seal").unwrap();
    let rig = restart(rig);
    assert!(!rig.vault.is_sealed());
    refused(&rig.vault);

    let new = NewAssignment {
        principal: "principals/custodian".into(),
        role: "Key Vault Administrator".into(),
        scope: "vaults/v".into(),
        ..NewAssignment::default()
    };
    let unseal = |by: &Call, n: usize| rig.vault.unseal(by, "vaults/v/seal", &share(&shares[n]));
    assert_eq!(unseal(&second(), 1).unwrap_err().reason(), "PERMISSION_DENIED");
    rig.vault.create_role_assignment(&officer(), "vaults/v", new).unwrap();
    unseal(&officer(), 0).unwrap();
    assert!(!unseal(&second(), 1).unwrap().sealed);
    opens(&rig.vault, &node(), &wrapped).unwrap();
    // Without a seal of its own it opens with the deployment again.
    change(&rig.vault, "vaults/v/seal", NewSeal::Default);
    let rig = restart(rig);
    opens(&rig.vault, &node(), &wrapped).unwrap();
}

#[test]
fn a_vaults_key_is_rotated_and_older_backups_open() {
    let rig = rig();
    with_key(&rig);
    let wrapped = wrap(&rig.vault, &node()).unwrap();
    let copy = rig.vault.backup_key(&officer(), KEY).unwrap();
    change(&rig.vault, "vaults/v/seal", NewSeal::Passphrase(passphrase(PASSPHRASE)));
    // More versions than are moved at once would take long to make: two turns are enough with one.
    assert_eq!(rig.vault.rotate_root_key(&officer(), "vaults/v/seal").unwrap().generation, 2);
    assert_eq!(rig.vault.rotate_root_key(&officer(), "vaults/v/seal").unwrap().generation, 3);
    opens(&rig.vault, &node(), &wrapped).unwrap();
    let rig = restart(rig);
    let key = UnsealKey::Passphrase(passphrase(PASSPHRASE));
    rig.vault.unseal(&officer(), "vaults/v/seal", &key).unwrap();
    opens(&rig.vault, &node(), &wrapped).unwrap();
    rig.vault.delete_key(&officer(), KEY).unwrap();
    rig.clock.pass(8 * 86_400_000);
    rig.vault.tick().unwrap();
    assert!(rig.vault.get_key(&officer(), KEY).is_err());
    rig.vault.restore_key(&officer(), "vaults/v", &copy).unwrap();
    opens(&rig.vault, &node(), &wrapped).unwrap();
}

#[test]
fn a_vaults_seal_is_changed_by_two_officers() {
    let rig = rig();
    rig.vault.create_vault(&officer(), "v", VaultParameters::default()).unwrap();
    let method = NewSeal::Shares { number: 2, threshold: 2 };
    let alone = rig.vault.change_seal(&officer(), "vaults/v/seal", &method).unwrap_err();
    let VaultError::ApprovalRequired { approval, action } = alone else { unreachable!("{alone}") };
    assert_eq!(action, "change the seal of vaults/v to 2 of 2 shares");
    assert!(rig.vault.decide_approval(&officer(), &approval, true).is_err());
    let new = NewAssignment {
        principal: "principals/custodian".into(),
        role: "Key Vault Administrator".into(),
        scope: "vaults/v".into(),
        ..NewAssignment::default()
    };
    rig.vault.create_role_assignment(&officer(), "vaults/v", new).unwrap();
    rig.vault.decide_approval(&second(), &approval, true).unwrap();
    assert_eq!(change(&rig.vault, "vaults/v/seal", method).len(), 2);
}

fn copy(from: &Path, to: &Path) {
    _ = std::fs::remove_dir_all(to);
    assert!(Command::new("cp").arg("-r").args([from, to]).status().unwrap().success());
}

#[test]
fn a_store_that_was_put_back_stays_sealed() {
    let rig = rig();
    with_key(&rig);
    let Rig { vault, journal, clock, events, dir } = rig;
    drop((vault, journal));
    let (store, older) = (dir.path().join("store"), dir.path().join("older"));
    copy(&store, &older);
    let (vault, journal) = open(dir.path(), &clock, Arc::clone(&events));
    vault.delete_key(&officer(), KEY).unwrap();
    drop((vault, journal));
    copy(&store, &dir.path().join("newer"));

    // The key that was deleted would be there again.
    copy(&older, &store);
    let start = |accept_commit: Option<u64>| {
        let journal =
            Journal::open(&dir.path().join("audit"), Arc::new(clock.clone()), FileLimits::default()).unwrap();
        let store = custody_store::Store::open(&store).unwrap();
        let (key_file, anchor) = (dir.path().join("root.key"), dir.path().join("anchor"));
        let seal = SealSettings { key_file, anchor, accept_commit };
        let clock = Arc::new(clock.clone());
        Vault::open(store, seal, Arc::new(journal), clock, VaultOptions::default(), |_| ())
    };
    let refused = start(None).unwrap_err().to_string();
    let said = refused.split("accept_commit = ").nth(1).unwrap().trim_end_matches('`').parse().unwrap();
    assert!(refused.contains("was put back"), "{refused}");
    copy(&dir.path().join("newer"), &store);
    drop(start(None).unwrap());
    // Where it is meant, it is said by number.
    copy(&older, &store);
    assert!(start(Some(said + 1)).is_err());
    let vault = start(Some(said)).unwrap();
    vault.get_key(&officer(), KEY).unwrap();
    drop(vault);
    assert!(start(None).is_ok(), "it is the newest now");
    // Without its key file it does not open, and no other is made.
    std::fs::rename(dir.path().join("root.key"), dir.path().join("kept")).unwrap();
    assert!(start(None).unwrap_err().to_string().contains("is missing"));
    assert!(!dir.path().join("root.key").exists());
}
