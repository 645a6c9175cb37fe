//! Wycheproof's RSAES-OAEP vectors against both backends.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_kek::{Backend, PrivateKey};
use custody_types::WrapAlgorithm;
use wycheproof::rsa_oaep::{TestName, TestSet};

fn run(name: TestName, algorithm: WrapAlgorithm) {
    let set = TestSet::load(name).unwrap();
    let mut ran = 0;
    for group in set.test_groups {
        for backend in [Backend::AwsLc, Backend::RustCrypto] {
            let key = PrivateKey::import(&group.pkcs8, backend).unwrap();
            for test in group.tests.iter().filter(|t| t.label.is_empty()) {
                let opened = key.unwrap_key(algorithm, &test.ct);
                if test.result.must_fail() {
                    assert!(opened.is_err(), "{backend:?} {name:?} case {}", test.tc_id);
                } else {
                    assert_eq!(opened.unwrap()[..], test.pt[..], "{backend:?} {name:?} case {}", test.tc_id);
                }
                ran += 1;
            }
        }
    }
    assert!(ran > 20, "only {ran} vectors were run");
}

#[test]
fn oaep_sha256_2048() {
    run(TestName::Rsa2048Sha256Mgf1Sha256, WrapAlgorithm::RsaOaep256);
}

#[test]
fn oaep_sha256_3072() {
    run(TestName::Rsa3072Sha256Mgf1Sha256, WrapAlgorithm::RsaOaep256);
}

#[test]
fn oaep_sha256_4096() {
    run(TestName::Rsa4096Sha256Mgf1Sha256, WrapAlgorithm::RsaOaep256);
}

#[test]
fn oaep_sha1_2048() {
    run(TestName::Rsa2048Sha1Mgf1Sha1, WrapAlgorithm::RsaOaep);
}
