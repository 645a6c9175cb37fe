//! Wycheproof's AES key wrap vectors against both backends.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_kek::{Backend, Padding, aes_unwrap, aes_wrap};
use wycheproof::TestResult;
use wycheproof::keywrap::{TestName, TestSet};

fn run(name: TestName, padding: Padding) {
    let set = TestSet::load(name).unwrap();
    let mut ran = 0;
    for test in set.test_groups.iter().flat_map(|g| &g.tests) {
        for backend in [Backend::AwsLc, Backend::RustCrypto] {
            let what = format!("{backend:?} {name:?} case {}: {}", test.tc_id, test.comment);
            let opened = aes_unwrap(backend, &test.key, padding, &test.ct);
            if test.result.must_fail() {
                assert!(opened.is_err(), "{what}");
            } else if test.result == TestResult::Acceptable {
                // A single block: SP 800-38F wraps two at least.
                assert!(opened.is_err(), "{what}");
            } else {
                assert_eq!(opened.unwrap()[..], test.pt[..], "{what}");
                assert_eq!(aes_wrap(backend, &test.key, padding, &test.pt).unwrap(), test.ct[..], "{what}");
            }
            ran += 1;
        }
    }
    assert!(ran > 100, "only {ran} vectors were run");
}

#[test]
fn aes_kw() {
    run(TestName::AesKeyWrap, Padding::None);
}

#[test]
fn aes_kwp() {
    run(TestName::AesKeyWrapWithPadding, Padding::Padded);
}

#[test]
fn lengths_that_a_mode_does_not_take_are_refused() {
    for backend in [Backend::AwsLc, Backend::RustCrypto] {
        for (padding, len) in
            [(Padding::None, 0), (Padding::None, 8), (Padding::None, 17), (Padding::Padded, 0)]
        {
            assert!(aes_wrap(backend, &[1; 32], padding, &vec![2; len]).is_err(), "{padding:?} {len}");
        }
        assert!(aes_wrap(backend, &[1; 31], Padding::Padded, &[2; 16]).is_err(), "no AES key");
        assert!(aes_wrap(backend, &[1; 32], Padding::Padded, &vec![2; 20_000]).is_err(), "too long");
        for len in [0, 8, 16, 23, 25] {
            assert!(aes_unwrap(backend, &[1; 32], Padding::Padded, &vec![2; len]).is_err(), "{len}");
        }
    }
}
