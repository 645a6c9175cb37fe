//! Uses of keys by tasks: when their answers may be had, and where they are done.

use crate::rig::*;
use custody_audit::{Outcome, Phase};
use custody_types::{Curve, KeyType, SignatureAlgorithm, WrapAlgorithm::RsaOaep256};
use custody_vault::{
    AttributeChange, Batch, IfExists, Material, Particulars, Place, Vault,
    gate::{Operation, op},
};
use std::sync::Arc;

const KEY: &str = "vaults/v/keys/k";

fn place<Op: Operation>(vault: &Arc<Vault>, key: &str) -> Place {
    wait(vault.admit::<Op>(node(), key)).unwrap().place()
}

#[test]
fn an_answer_is_had_when_it_is_on_record_and_a_private_key_is_used_after_that() {
    let rig = rig();
    with_key(&rig);
    let app = user(&rig);
    let (vault, journal) = (Arc::new(rig.vault), rig.journal);
    // Ends that were queued before it are on disk with it.
    vault.get_key(&officer(), KEY).unwrap();
    let before = journal.written();
    let (wraps, unwraps) = (node(), node());

    let admission = wait(vault.admit::<op::WrapKey>(wraps.clone(), KEY)).unwrap();
    let withheld = admission.protect(RsaOaep256, b"d");
    assert_eq!((journal.written(), wraps.recorded.sequence()), (before, None));
    let wrapped = wait(withheld.release()).unwrap();
    assert_eq!((journal.written(), wraps.recorded.sequence()), (before + 1, Some(before + 1)));

    let version = wrapped.key_version.as_str();
    let admission = wait(vault.admit::<op::UnwrapKey>(unwraps.clone(), version)).unwrap();
    assert_eq!((journal.written(), unwraps.recorded.sequence()), (before + 2, Some(before + 2)));
    let unwrap = async |batch: &Batch| admission.unprotect(batch, RsaOaep256, &wrapped.ciphertext).await;
    let opened = wait(Batch::alone(unwrap).release()).unwrap();
    assert_eq!(&opened.plain[..], b"d");

    // Nobody takes this answer: the trail has that it was not given.
    let admission = wait(vault.admit::<op::Encrypt>(app, KEY)).unwrap();
    drop(admission.protect(RsaOaep256, b"d"));
    journal.close();
    let entries = journal.read(before, 10).unwrap();
    let seen: Vec<_> = entries
        .iter()
        .map(|e| (e.record.operation_name.as_str(), e.record.phase, e.record.result_type))
        .collect();
    assert_eq!(
        seen,
        [
            ("KeyWrap", Phase::Finish, Outcome::Success),
            ("KeyUnwrap", Phase::Begin, Outcome::Started),
            ("KeyUnwrap", Phase::Finish, Outcome::Success),
            ("KeyEncrypt", Phase::Finish, Outcome::Failed),
        ]
    );
    let admission = wait(vault.admit::<op::WrapKey>(node(), KEY)).unwrap();
    let unrecorded = wait(admission.protect(RsaOaep256, b"d").release()).unwrap_err();
    assert_eq!(unrecorded.reason(), "AUDIT_UNAVAILABLE");
}

#[test]
fn what_is_over_in_microseconds_is_done_by_the_task_and_nothing_else() {
    let rig = rig();
    with_key(&rig);
    let ec = Material::Generate(KeyType::Ec(Curve::P256));
    let particulars = Particulars::default();
    rig.vault.create_key(&officer(), "vaults/v", "s", ec, particulars, IfExists::Refuse).unwrap();
    let app = user(&rig);
    rig.vault.sign(&app, "vaults/v/keys/s", SignatureAlgorithm::Es256, &[5; 32]).unwrap();
    let vault = Arc::new(rig.vault);
    // Its private half is still sealed: opening and checking it takes its time.
    assert_eq!(place::<op::WrapKey>(&vault, KEY), Place::Compute);
    vault.wrap_key(&node(), KEY, RsaOaep256, b"d").unwrap();
    assert_eq!(place::<op::WrapKey>(&vault, KEY), Place::Here);
    assert_eq!(place::<op::UnwrapKey>(&vault, KEY), Place::Compute);
    let verifies = wait(vault.admit::<op::Verify>(app, "vaults/v/keys/s")).unwrap();
    assert_eq!(verifies.place(), Place::Compute);
    // What is spent of a budget goes to a disk.
    let budget = AttributeChange { budget: Some(Some(1000)), ..AttributeChange::default() };
    vault.update_key(&officer(), KEY, budget).unwrap();
    vault.wrap_key(&node(), KEY, RsaOaep256, b"d").unwrap();
    assert_eq!(place::<op::WrapKey>(&vault, KEY), Place::Compute);
}
