//! A bundle verifies offline; altered in any byte, or with anything missing, it does not.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_proof::*;
use custody_types::UnixMillis;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};

struct World {
    vault: SigningKey,
    authority: Authority,
    nodes: Vec<HolderKey>,
}

fn now() -> u64 {
    1_790_000_000_000
}

fn authority() -> (Issuer<'static, KeyPair>, Authority) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), Authority::from_pem(pem.as_bytes()).unwrap())
}

fn holder(issuer: &Issuer<'static, KeyPair>, principal: &str) -> HolderKey {
    let mut params = CertificateParams::default();
    let uri = format!("custody:{principal}");
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let pem = params.signed_by(&key, issuer).unwrap().pem();
    HolderKey::from_pem(pem.as_bytes(), key.serialize_pem().as_bytes()).unwrap()
}

fn world() -> World {
    let (issuer, authority) = authority();
    let nodes = (1..=3).map(|n| holder(&issuer, &format!("principals/storage-{n}"))).collect();
    World { vault: SigningKey::from_seed("custody-vault", &[3; 32]).unwrap(), authority, nodes }
}

impl World {
    fn lease(&self, n: usize) -> Lease {
        Lease {
            lease: format!("vaults/v/keys/k/leases/{n}"),
            key_version: format!("vaults/v/keys/k/versions/{:032}", 1).parse().unwrap(),
            epoch: 2,
            holder: self.nodes.get(n).unwrap().principal().unwrap(),
            managed_identity: "managedIdentities/m".into(),
            volume: format!("volumes/{n}"),
            grant_time: UnixMillis::from_millis(now() - 4000),
            duration_ms: 15_000,
            grace_ms: 10_000,
        }
    }

    fn receipt(&self, n: usize) -> Receipt {
        let lease = self.lease(n);
        Receipt {
            lease: lease.lease,
            epoch: lease.epoch,
            key_version: lease.key_version,
            holder: lease.holder,
            volume: lease.volume,
            reason: "KEY_SUSPENDED".into(),
            erased: vec![VOLUME_KEY.into(), "data keys".into()],
            notice_time: UnixMillis::from_millis(now() + 10),
            erase_time: UnixMillis::from_millis(now() + 11),
            took_us: 800,
        }
    }

    fn erased(&self, n: usize, receipt: &Receipt) -> Holder {
        let receipt = Certified::sign(receipt, self.nodes.get(n).unwrap()).unwrap();
        self.holder(n, Outcome::Erased { after_ms: 42, receipt })
    }

    fn holder(&self, n: usize, outcome: Outcome) -> Holder {
        let lease = self.vault.sign(&self.lease(n).text().unwrap());
        Holder { lease, reason: "KEY_SUSPENDED".into(), outcome }
    }

    /// Two that answered, one that ran out.
    fn revocation(&self) -> Revocation {
        Revocation {
            revocation: "vaults/v/keys/k/revocations/3".into(),
            key: "vaults/v/keys/k".parse().unwrap(),
            epoch: 3,
            cause: "KEY_REVOKED".into(),
            requested_by: "principals/officer".into(),
            revoke_time: UnixMillis::from_millis(now()),
            close_time: Some(UnixMillis::from_millis(now() + 11_300)),
            holders: vec![
                self.erased(0, &self.receipt(0)),
                self.erased(1, &self.receipt(1)),
                self.holder(2, Outcome::Lapsed { after_ms: 11_300 }),
            ],
        }
    }

    fn verify(&self, revocation: &Revocation) -> Result<Verified, ProofError> {
        self.check(&self.vault.sign(&revocation.text().unwrap()))
    }

    fn check(&self, bundle: &str) -> Result<Verified, ProofError> {
        verify(bundle, self.vault.verifying_key(), &self.authority)
    }
}

#[test]
fn a_whole_bundle_verifies() {
    let world = world();
    let verified = world.verify(&world.revocation()).unwrap();
    assert_eq!(verified.revocation, world.revocation_of(&verified));
    let receipts: Vec<bool> = verified.leases.iter().map(|(_, receipt)| receipt.is_some()).collect();
    assert_eq!(receipts, [true, true, false]);
}

impl World {
    /// Signatures of EC keys differ each time: the bundle's own, with the rest made anew.
    fn revocation_of(&self, verified: &Verified) -> Revocation {
        Revocation { holders: verified.revocation.holders.clone(), ..self.revocation() }
    }
}

#[test]
fn a_bundle_altered_in_any_byte_does_not_verify() {
    let world = world();
    let bundle = world.vault.sign(&world.revocation().text().unwrap());
    world.check(&bundle).unwrap();
    for at in 0..bundle.len() {
        let mut bytes = bundle.clone().into_bytes();
        let byte = bytes.get_mut(at).unwrap();
        *byte = if *byte == b'A' { b'B' } else { b'A' };
        if let Ok(altered) = String::from_utf8(bytes) {
            assert!(world.check(&altered).is_err(), "byte {at}");
        }
        // And cut short there.
        if let Some(cut) = bundle.get(..at) {
            assert!(world.check(cut).is_err(), "cut at {at}");
        }
    }
}

#[test]
fn a_vault_that_leaves_something_out_is_found() {
    let world = world();
    let with = |n: usize, holder: Holder| {
        let mut revocation = world.revocation();
        *revocation.holders.get_mut(n).unwrap() = holder;
        world.verify(&revocation).unwrap_err()
    };
    let missing = |e: &ProofError| matches!(e, ProofError::Missing { .. });
    assert!(missing(&with(0, world.holder(0, Outcome::Waiting))));
    assert!(missing(&with(0, world.holder(0, Outcome::Returned { after_ms: 5 }))));
    // 4 s of the 15 had passed: it cannot have run out 10.9 s later.
    assert!(missing(&with(2, world.holder(2, Outcome::Lapsed { after_ms: 10_900 }))));
    // A receipt of another volume, by another node, of an earlier lease, or that says less.
    assert!(matches!(with(0, world.erased(0, &world.receipt(1))), ProofError::Receipt { .. }));
    assert!(matches!(with(0, world.erased(1, &world.receipt(0))), ProofError::Receipt { .. }));
    let other = |change: fn(&mut Receipt)| {
        let mut receipt = world.receipt(0);
        change(&mut receipt);
        with(0, world.erased(0, &receipt))
    };
    let is_other = |e: &ProofError| matches!(e, ProofError::OtherReceipt { .. });
    assert!(is_other(&other(|r| r.lease = "vaults/v/keys/k/leases/9".into())));
    assert!(is_other(&other(|r| r.volume = "volumes/9".into())));
    assert!(is_other(&other(|r| r.epoch = 1)));
    assert!(is_other(&other(|r| r.erased = vec!["data keys".into()])));
    // A lease twice, in place of another.
    assert_eq!(with(1, world.erased(0, &world.receipt(0))), ProofError::Lease(2));
    let mut open = world.revocation();
    open.close_time = None;
    assert_eq!(world.verify(&open).unwrap_err(), ProofError::Open);
}

#[test]
fn receipts_of_strangers_prove_nothing() {
    let world = world();
    let (issuer, _) = authority();
    let stranger = holder(&issuer, "principals/storage-1");
    let receipt = Certified::sign(&world.receipt(0), &stranger).unwrap();
    let mut revocation = world.revocation();
    *revocation.holders.first_mut().unwrap() = world.holder(0, Outcome::Erased { after_ms: 1, receipt });
    let error = world.verify(&revocation).unwrap_err();
    assert!(error.to_string().contains("not of the authority"), "{error}");
    // The vault's key, under its name, by someone else.
    let forger = SigningKey::from_seed("custody-vault", &[4; 32]).unwrap();
    let forged = forger.sign(&world.revocation().text().unwrap());
    assert!(matches!(world.check(&forged).unwrap_err(), ProofError::Note(NoteError::OtherKey(_))));
    // A note that states something else.
    let lease = world.vault.sign(&world.lease(0).text().unwrap());
    assert!(matches!(world.check(&lease).unwrap_err(), ProofError::Statement(_)));
}
