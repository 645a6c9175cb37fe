//! Holders of leases: an authority, and nodes with its certificates.

use custody_proof::{Authority, Certified, HolderKey, Lease, Receipt, VOLUME_KEY};
use custody_types::UnixMillis;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use std::sync::LazyLock;

struct Made {
    issuer: Issuer<'static, KeyPair>,
    authority: Authority,
}

static MADE: LazyLock<Made> = LazyLock::new(|| {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    Made { issuer: Issuer::new(params, key), authority: Authority::from_pem(pem.as_bytes()).unwrap() }
});

pub(crate) fn authority() -> Authority {
    MADE.authority.clone()
}

/// The certificate's key of a principal.
pub(crate) fn holder(principal: &str) -> HolderKey {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(format!("custody:{principal}").try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let pem = params.signed_by(&key, &MADE.issuer).unwrap().pem();
    HolderKey::from_pem(pem.as_bytes(), key.serialize_pem().as_bytes()).unwrap()
}

/// What an honest holder says of a lease when it has erased the keys.
pub(crate) fn receipt(lease: &Lease, reason: &str, time: UnixMillis) -> Certified {
    let receipt = Receipt {
        lease: lease.lease.clone(),
        epoch: lease.epoch,
        key_version: lease.key_version.clone(),
        holder: lease.holder.clone(),
        volume: lease.volume.clone(),
        reason: reason.into(),
        erased: vec![VOLUME_KEY.into()],
        notice_time: time,
        erase_time: time,
        took_us: 1,
    };
    Certified::sign(&receipt, &holder(&lease.holder)).unwrap()
}
