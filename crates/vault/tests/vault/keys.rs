//! Keys: made, used, kept over restarts, destroyed.

use crate::rig::*;
use custody_audit::Outcome;
use custody_types::{
    Clock as _, Curve, Duty, KeyOperation, KeyType, PublicKey, SignatureAlgorithm, SystemClock,
    WrapAlgorithm::RsaOaep256,
};
use custody_vault::*;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

#[test]
fn a_wrapped_key_opens_only_for_whom_it_was_granted() {
    let rig = rig();
    let assignment = with_key(&rig);
    let wrapped = rig.vault.wrap_key(&node(), "vaults/v/keys/k", RsaOaep256, &[7; 32]).unwrap();
    let version = wrapped.key_version.as_str().to_owned();
    assert_eq!(
        rig.vault.unwrap_key(&node(), &version, RsaOaep256, &wrapped.ciphertext).unwrap().plain[..],
        [7; 32]
    );
    for who in
        [officer(), call("principals/x", Duty::Auditor), call("managedIdentities/other", Duty::Workload)]
    {
        let refused = rig.vault.unwrap_key(&who, &version, RsaOaep256, &wrapped.ciphertext).unwrap_err();
        assert_eq!(refused.reason(), "PERMISSION_DENIED");
        let unknown = rig.vault.unwrap_key(&who, "vaults/v/keys/none", RsaOaep256, &[0; 256]).unwrap_err();
        assert_eq!(unknown.reason(), "PERMISSION_DENIED", "the answer tells what exists");
    }
    rig.vault.delete_role_assignment(&officer(), &assignment).unwrap();
    assert_eq!(
        rig.vault.unwrap_key(&node(), &version, RsaOaep256, &wrapped.ciphertext).unwrap_err().reason(),
        "PERMISSION_DENIED"
    );
    assert!(rig.events.lock().unwrap().ends_with(&[EventType::AccessChanged]));
}

#[test]
fn old_versions_unwrap_and_new_ones_wrap() {
    let rig = rig();
    with_key(&rig);
    let old = rig.vault.wrap_key(&node(), "vaults/v/keys/k", RsaOaep256, b"dek").unwrap();
    let rotated = rig.vault.rotate_key(&officer(), "vaults/v/keys/k").unwrap();
    let new = rig.vault.wrap_key(&node(), "vaults/v/keys/k", RsaOaep256, b"dek").unwrap();
    assert_eq!(new.key_version, rotated.current.name);
    assert_ne!(old.key_version, new.key_version);
    assert_eq!(
        &rig.vault.unwrap_key(&node(), old.key_version.as_str(), RsaOaep256, &old.ciphertext).unwrap().plain
            [..],
        b"dek"
    );
    let crossed =
        rig.vault.unwrap_key(&node(), new.key_version.as_str(), RsaOaep256, &old.ciphertext).unwrap_err();
    assert_eq!(crossed.to_string(), "wrapped key does not open under this key version");
    let moved = rig
        .vault
        .rewrap_key(&node(), old.key_version.as_str(), RsaOaep256, &old.ciphertext, "vaults/v/keys/k")
        .unwrap();
    assert_eq!(moved.key_version, new.key_version);
    assert_eq!(rig.vault.list_key_versions(&officer(), "vaults/v/keys/k").unwrap().len(), 2);
}

#[test]
fn states_and_dates_stop_use_and_their_end_brings_it_back() {
    let rig = rig();
    with_key(&rig);
    let use_it = || rig.vault.wrap_key(&node(), "vaults/v/keys/k", RsaOaep256, b"d").map_err(|e| e.reason());
    let change = |c: AttributeChange| rig.vault.update_key(&officer(), "vaults/v/keys/k", c).unwrap();
    change(AttributeChange { enabled: Some(false), ..AttributeChange::default() });
    assert_eq!(use_it().unwrap_err(), "KEY_SUSPENDED");
    change(AttributeChange { enabled: Some(true), ..AttributeChange::default() });
    use_it().unwrap();
    let now = rig.clock.now();
    change(AttributeChange {
        not_before: Some(Some(now.plus(Duration::from_secs(60)))),
        ..AttributeChange::default()
    });
    assert_eq!(use_it().unwrap_err(), "KEY_PRE_ACTIVE");
    let reversed = AttributeChange { expire_time: Some(Some(now)), ..AttributeChange::default() };
    assert_eq!(
        rig.vault.update_key(&officer(), "vaults/v/keys/k", reversed).unwrap_err().field(),
        Some("attributes.expire_time")
    );
    change(AttributeChange {
        not_before: Some(None),
        expire_time: Some(Some(now)),
        ..AttributeChange::default()
    });
    assert_eq!(use_it().unwrap_err(), "KEY_EXPIRED");
    change(AttributeChange { expire_time: Some(None), ..AttributeChange::default() });
    use_it().unwrap();
    rig.vault.delete_key(&officer(), "vaults/v/keys/k").unwrap();
    assert_eq!(use_it().unwrap_err(), "KEY_DELETED");
    assert_eq!(
        rig.vault.rotate_key(&officer(), "vaults/v/keys/k").unwrap_err().reason(),
        "INVALID_KEY_TRANSITION"
    );
    rig.vault.undelete_key(&officer(), "vaults/v/keys/k").unwrap();
    use_it().unwrap();
}

#[test]
fn purge_protection_holds_until_the_time_comes_and_the_name_is_retired() {
    let rig = rig();
    with_key(&rig);
    assert_eq!(
        rig.vault.purge_key(&officer(), "vaults/v/keys/k", false).unwrap_err().reason(),
        "INVALID_KEY_TRANSITION"
    );
    rig.vault.delete_key(&officer(), "vaults/v/keys/k").unwrap();
    assert_eq!(
        rig.vault.purge_key(&officer(), "vaults/v/keys/k", false).unwrap_err().reason(),
        "INVALID_KEY_TRANSITION"
    );
    let again = |id| {
        rig.vault.create_key(&officer(), "vaults/v", id, rsa(), Particulars::default(), IfExists::Refuse)
    };
    assert_eq!(again("k").unwrap_err().reason(), "NAME_HELD");
    rig.clock.pass(7 * 86_400_000 - 1000);
    rig.vault.tick().unwrap();
    assert_eq!(rig.vault.list_keys(&officer(), "vaults/v", true, "", 100).unwrap().len(), 1);
    rig.clock.pass(2000);
    rig.vault.tick().unwrap();
    assert!(rig.vault.list_keys(&officer(), "vaults/v", true, "", 100).unwrap().is_empty());
    assert_eq!(rig.vault.get_key(&officer(), "vaults/v/keys/k").unwrap_err().reason(), "NOT_FOUND");
    assert_eq!(again("k").unwrap_err().reason(), "NAME_HELD");
}

#[test]
fn bad_input_names_the_field() {
    let rig = rig();
    with_key(&rig);
    let key = |parent, id, material| {
        rig.vault
            .create_key(&officer(), parent, id, material, Particulars::default(), IfExists::Refuse)
            .unwrap_err()
            .field()
    };
    assert_eq!(key("vault/v", "a", rsa()), Some("parent"));
    assert_eq!(key("vaults/v", "A_b", rsa()), Some("key_id"));
    assert_eq!(
        key("vaults/v", "a", Material::Import(zeroize::Zeroizing::new(b"nonsense".to_vec()))),
        Some("private_key")
    );
    assert_eq!(
        rig.vault.create_vault(&officer(), "w", parameters(3, true)).unwrap_err().field(),
        Some("vault.soft_delete_retention_days")
    );
    assert_eq!(
        rig.vault
            .create_vault(&call("principals/s", Duty::SystemAdministrator), "w", parameters(0, true))
            .unwrap_err()
            .reason(),
        "PERMISSION_DENIED"
    );
    assert_eq!(
        rig.vault.wrap_key(&node(), "vaults/v/keys/k", RsaOaep256, &[0; 191]).unwrap_err().field(),
        Some("plaintext")
    );
    let role = |principal: &str, role: &str, scope: &str| {
        let new = NewAssignment {
            principal: principal.into(),
            role: role.into(),
            scope: scope.into(),
            ..NewAssignment::default()
        };
        rig.vault.create_role_assignment(&officer(), "vaults/v", new).unwrap_err()
    };
    assert_eq!(role("someone", "Key Vault Reader", "vaults/v").field(), Some("role_assignment.principal"));
    assert_eq!(role("principals/p", "King", "vaults/v").field(), Some("role_assignment.role"));
    assert_eq!(role("principals/p", "Key Vault Reader", "vaults/w").field(), Some("role_assignment.scope"));
    assert_eq!(
        role("managedIdentities/m", "Key Vault Administrator", "vaults/v").reason(),
        "CONFLICTING_DUTY"
    );
}

#[test]
fn everything_is_kept_over_a_restart_and_every_operation_has_its_record() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock(Arc::new(AtomicU64::new(SystemClock.now().as_millis())), Arc::default());
    let (vault, journal) = open(dir.path(), &clock, Arc::default());
    let rig = Rig {
        vault,
        journal,
        clock: clock.clone(),
        events: Arc::default(),
        dir: tempfile::tempdir().unwrap(),
    };
    with_key(&rig);
    let wrapped = rig.vault.wrap_key(&node(), "vaults/v/keys/k", RsaOaep256, b"d").unwrap();
    rig.vault
        .unwrap_key(&officer(), wrapped.key_version.as_str(), RsaOaep256, &wrapped.ciphertext)
        .unwrap_err();
    drop(rig);
    let (vault, journal) = open(dir.path(), &clock, Arc::default());
    assert_eq!(
        &vault
            .unwrap_key(&node(), wrapped.key_version.as_str(), RsaOaep256, &wrapped.ciphertext)
            .unwrap()
            .plain[..],
        b"d"
    );
    drop(vault);
    // The end of an operation is queued, not waited for.
    journal.close();
    let entries = journal.read(0, 100).unwrap();
    let names: Vec<_> = entries
        .iter()
        .filter(|e| e.record.result_type != Outcome::Started)
        .map(|e| (e.record.operation_name.as_str(), e.record.result_type))
        .collect();
    assert_eq!(
        names,
        [
            ("VaultPut", Outcome::Success),
            ("KeyCreate", Outcome::Success),
            ("RoleAssignmentCreate", Outcome::Success),
            ("KeyWrap", Outcome::Success),
            ("KeyUnwrap", Outcome::Denied),
            ("KeyUnwrap", Outcome::Success),
        ]
    );
}

#[test]
fn without_a_journal_nothing_is_done() {
    let rig = rig();
    with_key(&rig);
    rig.journal.close();
    let refused = rig.vault.wrap_key(&node(), "vaults/v/keys/k", RsaOaep256, b"d").unwrap_err();
    assert_eq!(refused.reason(), "AUDIT_UNAVAILABLE");
    let refused = rig.vault.get_key(&officer(), "vaults/v/keys/k").unwrap_err();
    assert_eq!(refused.reason(), "AUDIT_UNAVAILABLE");
    assert_eq!(
        rig.vault.delete_key(&officer(), "vaults/v/keys/k").unwrap_err().reason(),
        "AUDIT_UNAVAILABLE"
    );
}

#[test]
fn an_ec_key_signs_and_its_owner_says_what_it_may() {
    let rig = rig();
    with_key(&rig);
    let app = user(&rig);
    let ec = Material::Generate(KeyType::Ec(Curve::P256));
    let only_sign = Particulars { key_ops: vec![KeyOperation::Sign], ..Particulars::default() };
    let made = rig.vault.create_key(&officer(), "vaults/v", "s", ec, only_sign, IfExists::Refuse).unwrap();
    assert!(matches!(made.current.public, PublicKey::Ec { crv: Curve::P256, .. }));
    let digest = [5; 32];
    let name = "vaults/v/keys/s";
    let (version, signature) = rig.vault.sign(&app, name, SignatureAlgorithm::Es256, &digest).unwrap();
    assert_eq!(version, made.current.name);
    let verify = || rig.vault.verify(&app, name, SignatureAlgorithm::Es256, &digest, &signature);
    assert_eq!(verify().unwrap_err().reason(), "KEY_OPERATION_FORBIDDEN");
    let all = AttributeChange { key_ops: Some(Vec::new()), ..AttributeChange::default() };
    rig.vault.update_key(&officer(), name, all).unwrap();
    assert!(verify().unwrap().1);
    let wrong = |algorithm, digest: &[u8]| rig.vault.sign(&app, name, algorithm, digest).unwrap_err().field();
    assert_eq!(wrong(SignatureAlgorithm::Rs256, &digest), Some("algorithm"));
    assert_eq!(wrong(SignatureAlgorithm::Es256, &[1; 20]), Some("digest"));
    assert_eq!(
        rig.vault.wrap_key(&app, name, RsaOaep256, &[1; 32]).unwrap_err().reason(),
        "KEY_OPERATION_FORBIDDEN"
    );
    let cannot = Particulars { key_ops: vec![KeyOperation::WrapKey], ..Particulars::default() };
    let ec = Material::Generate(KeyType::Ec(Curve::P384));
    let refused = rig.vault.create_key(&officer(), "vaults/v", "t", ec, cannot, IfExists::Refuse);
    assert_eq!(refused.unwrap_err().field(), Some("key_ops"));
    assert_eq!(
        rig.vault.sign(&node(), name, SignatureAlgorithm::Es256, &digest).unwrap_err().reason(),
        "PERMISSION_DENIED"
    );
}

#[test]
fn encrypting_is_a_right_of_its_own() {
    let rig = rig();
    with_key(&rig);
    let app = user(&rig);
    let sealed = rig.vault.encrypt(&app, "vaults/v/keys/k", RsaOaep256, b"small").unwrap();
    let opened =
        rig.vault.decrypt(&app, sealed.key_version.as_str(), RsaOaep256, &sealed.ciphertext).unwrap();
    assert_eq!(opened.plain[..], b"small"[..]);
    let refused = rig.vault.decrypt(&node(), sealed.key_version.as_str(), RsaOaep256, &sealed.ciphertext);
    assert_eq!(refused.unwrap_err().reason(), "PERMISSION_DENIED");
}

#[test]
fn a_backup_brings_a_purged_key_back_and_nothing_else_does() {
    let rig = rig();
    rig.vault.create_vault(&officer(), "v", parameters(7, false)).unwrap();
    rig.vault.create_vault(&officer(), "other", parameters(7, false)).unwrap();
    rig.vault
        .create_key(&officer(), "vaults/v", "k", rsa(), Particulars::default(), IfExists::Refuse)
        .unwrap();
    let app = user(&rig);
    let name = "vaults/v/keys/k";
    let wrapped = rig.vault.wrap_key(&app, name, RsaOaep256, &[7; 32]).unwrap();
    rig.vault.rotate_key(&officer(), name).unwrap();
    let backup = rig.vault.backup_key(&officer(), name).unwrap();
    assert_eq!(rig.vault.backup_key(&app, name).unwrap_err().reason(), "PERMISSION_DENIED");
    let restore = |vault: &str, bytes: &[u8]| rig.vault.restore_key(&officer(), vault, bytes);
    assert_eq!(restore("vaults/v", &backup).unwrap_err().reason(), "ALREADY_EXISTS");
    rig.vault.delete_key(&officer(), name).unwrap();
    assert_eq!(restore("vaults/v", &backup).unwrap_err().reason(), "NAME_HELD");
    rig.vault.purge_key(&officer(), name, false).unwrap();
    assert_eq!(restore("vaults/other", &backup).unwrap_err().field(), Some("backup"));
    for at in [0, 30, backup.len() - 1] {
        let mut altered = backup.clone();
        altered[at] ^= 1;
        assert_eq!(restore("vaults/v", &altered).unwrap_err().field(), Some("backup"));
    }
    assert_eq!(restore("vaults/v", &backup[..40]).unwrap_err().field(), Some("backup"));
    restore("vaults/v", &backup).unwrap();
    assert_eq!(rig.vault.list_key_versions(&officer(), name).unwrap().len(), 2);
    let opened =
        rig.vault.unwrap_key(&app, wrapped.key_version.as_str(), RsaOaep256, &wrapped.ciphertext).unwrap();
    assert_eq!(opened.plain[..], [7; 32]);
}

#[test]
fn azures_way_of_making_a_key_that_exists_adds_a_version() {
    let rig = rig();
    with_key(&rig);
    let again = |if_exists| {
        rig.vault.create_key(&officer(), "vaults/v", "k", rsa(), Particulars::default(), if_exists)
    };
    assert_eq!(again(IfExists::Refuse).unwrap_err().reason(), "ALREADY_EXISTS");
    let before = rig.vault.get_key(&officer(), "vaults/v/keys/k").unwrap().current.name;
    assert_ne!(again(IfExists::AddVersion).unwrap().current.name, before);
    let ec = Material::Generate(KeyType::Ec(Curve::P256));
    let other =
        rig.vault.create_key(&officer(), "vaults/v", "k", ec, Particulars::default(), IfExists::AddVersion);
    assert_eq!(other.unwrap_err().field(), Some("key_type"), "a version of another type");
    rig.vault.delete_key(&officer(), "vaults/v/keys/k").unwrap();
    assert_eq!(again(IfExists::AddVersion).unwrap_err().reason(), "NAME_HELD");
}

const DAY_MS: u64 = 86_400_000;

#[test]
fn a_clock_set_forward_ends_no_retention_and_a_stop_counts_for_a_day_at_most() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock(Arc::new(AtomicU64::new(SystemClock.now().as_millis())), Arc::default());
    let (vault, journal) = open(dir.path(), &clock, Arc::default());
    vault.create_vault(&officer(), "v", parameters(7, true)).unwrap();
    vault.create_key(&officer(), "vaults/v", "k", rsa(), Particulars::default(), IfExists::Refuse).unwrap();
    vault.delete_key(&officer(), "vaults/v/keys/k").unwrap();
    let kept = |vault: &Vault| {
        vault.tick().unwrap();
        vault.list_keys(&officer(), "vaults/v", true, "", 100).unwrap().len() == 1
    };
    clock.0.fetch_add(365 * DAY_MS, Ordering::SeqCst);
    assert!(kept(&vault), "the wall clock was set a year forward");
    clock.pass(3 * DAY_MS);
    assert!(kept(&vault));
    drop((vault, journal));
    // Off, for a year as the wall clock says.
    clock.0.fetch_add(365 * DAY_MS, Ordering::SeqCst);
    clock.1.store(0, Ordering::SeqCst);
    let (vault, journal) = open(dir.path(), &clock, Arc::default());
    assert!(kept(&vault), "three days and one for the stop have passed");
    clock.pass(3 * DAY_MS - 1000);
    assert!(kept(&vault));
    // Set back, before the time of the deletion: that ends nothing either.
    let wall = clock.0.swap(1000, Ordering::SeqCst);
    clock.1.fetch_add(2000, Ordering::SeqCst);
    assert!(kept(&vault));
    clock.0.store(wall, Ordering::SeqCst);
    assert!(!kept(&vault), "seven days have really passed, and the wall clock says so");
    drop((vault, journal));
}
