//! Making, importing, sealing and using keys.
use custody_envelope::SealingKey;
use custody_kek::*;
use custody_types::{Curve, KeyType, PublicKey, RsaSize, SignatureAlgorithm, WrapAlgorithm};

const RSA_2048: KeyType = KeyType::Rsa(RsaSize::Bits2048);

#[test]
fn backends_open_each_other_and_bound_the_length() {
    let key = PrivateKey::generate(RSA_2048, Backend::AwsLc).unwrap();
    let root = SealingKey::generate().unwrap();
    let sealed = key.seal(&root, b"here").unwrap();
    let twin = PrivateKey::open(&root, b"here", &sealed, RSA_2048, Backend::RustCrypto).unwrap();
    assert_eq!(key.public(), twin.public());
    assert!(PrivateKey::open(&root, b"there", &sealed, RSA_2048, Backend::AwsLc).is_err());
    for algorithm in [WrapAlgorithm::RsaOaep256, WrapAlgorithm::RsaOaep] {
        let len_max = 256 - algorithm.overhead();
        for len in [1, 32, len_max] {
            let plain = vec![7; len];
            let wrapped = key.wrap_key(algorithm, &plain).unwrap();
            assert_eq!(twin.unwrap_key(algorithm, &wrapped).unwrap()[..], plain[..]);
            let wrapped = twin.wrap_key(algorithm, &plain).unwrap();
            assert_eq!(key.unwrap_key(algorithm, &wrapped).unwrap()[..], plain[..]);
        }
        assert_eq!(
            key.wrap_key(algorithm, &vec![7; len_max + 1]),
            Err(WrapError::TooLong { len: len_max + 1, len_max })
        );
        assert_eq!(key.wrap_key(algorithm, &[]), Err(WrapError::Empty));
    }
}

#[test]
fn every_failing_unwrap_says_the_same() {
    let key = PrivateKey::generate(RSA_2048, Backend::AwsLc).unwrap();
    let mut wrapped = key.wrap_key(WrapAlgorithm::RsaOaep256, &[1; 32]).unwrap();
    let other_padding = key.unwrap_key(WrapAlgorithm::RsaOaep, &wrapped).unwrap_err();
    wrapped[17] ^= 1;
    let damaged = key.unwrap_key(WrapAlgorithm::RsaOaep256, &wrapped).unwrap_err();
    let short = key.unwrap_key(WrapAlgorithm::RsaOaep256, &wrapped[1..]).unwrap_err();
    let empty = key.unwrap_key(WrapAlgorithm::RsaOaep256, &[]).unwrap_err();
    assert!(
        [other_padding, damaged, short, empty].iter().all(|e| matches!(e, UnwrapError::Failed(UnwrapFailed)))
    );
}

#[test]
fn rubbish_is_not_imported() {
    for bytes in [
        &b""[..],
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----",
        &[0x30, 0x82, 0xff, 0xff],
        &[0; 20_000],
    ] {
        assert_eq!(PrivateKey::import(bytes, Backend::AwsLc).unwrap_err(), ImportError::Unreadable);
    }
    assert!(RsaSize::try_from(1024).is_err());
}

#[test]
fn an_rsa_key_is_imported_from_each_form_and_others_say_why_not() {
    let pkcs8 = include_bytes!("imports/rsa-2048.pkcs8.pem");
    let key = PrivateKey::import(pkcs8, Backend::AwsLc).unwrap();
    let same = PrivateKey::import(include_bytes!("imports/rsa-2048.pkcs1.pem"), Backend::AwsLc).unwrap();
    assert_eq!((key.kind(), key.public()), (RSA_2048, same.public()));
    let wrapped = key.wrap_key(WrapAlgorithm::RsaOaep256, &[9; 32]).unwrap();
    assert_eq!(same.unwrap_key(WrapAlgorithm::RsaOaep256, &wrapped).unwrap()[..], [9; 32]);
    for (refused, why) in [
        (&include_bytes!("imports/ed25519.pem")[..], ImportError::Unreadable),
        (&include_bytes!("imports/ec-p224.pem")[..], ImportError::Unreadable),
        (&include_bytes!("imports/rsa-2048.encrypted.pem")[..], ImportError::Unreadable),
        (&include_bytes!("imports/rsa-1024.pem")[..], ImportError::Size { bits: 1024 }),
        (&include_bytes!("imports/rsa-2047.pem")[..], ImportError::Size { bits: 2047 }),
        (&include_bytes!("imports/rsa-2048-exponent-3.pem")[..], ImportError::Exponent),
    ] {
        assert_eq!(PrivateKey::import(refused, Backend::AwsLc).unwrap_err(), why);
    }
}

#[test]
fn a_private_key_does_not_print() {
    let key = PrivateKey::generate(RSA_2048, Backend::AwsLc).unwrap();
    assert_eq!(format!("{key:?}"), "PrivateKey(RSA, 2048 bits, ..)");
}

#[test]
fn each_kind_signs_in_both_backends_and_each_checks_the_other() {
    let root = SealingKey::generate().unwrap();
    let kinds = Curve::ALL.map(KeyType::Ec).into_iter().chain([RSA_2048]);
    for kind in kinds {
        let made = PrivateKey::generate(kind, Backend::RustCrypto).unwrap();
        let sealed = made.seal(&root, b"k").unwrap();
        let twin = PrivateKey::open(&root, b"k", &sealed, kind, Backend::AwsLc).unwrap();
        assert_eq!(made.public(), twin.public());
        for algorithm in SignatureAlgorithm::ALL {
            let digest = vec![7; algorithm.digest_len()];
            if !algorithm.fits(kind) {
                let refused = made.sign(algorithm, &digest).unwrap_err();
                assert!(matches!(refused, SignError::NotForThisKey(a) if a == algorithm));
                continue;
            }
            assert!(matches!(made.sign(algorithm, &digest[1..]), Err(SignError::DigestLength { .. })));
            for signer in [&made, &twin] {
                let mut signed = signer.sign(algorithm, &digest).unwrap();
                for backend in [Backend::AwsLc, Backend::RustCrypto] {
                    let holds = |s: &[u8]| verify(made.public(), algorithm, &digest, s, backend).unwrap();
                    assert!(holds(&signed), "{algorithm} {backend:?}");
                    signed[9] ^= 1;
                    assert!(!holds(&signed), "{algorithm} {backend:?} altered");
                    signed[9] ^= 1;
                    assert!(!holds(&signed[1..]) && !holds(&[]));
                }
            }
        }
        if let KeyType::Ec(_) = kind {
            assert_eq!(made.wrap_key(WrapAlgorithm::RsaOaep256, &[1]), Err(WrapError::NotForThisKey));
            let refused = made.unwrap_key(WrapAlgorithm::RsaOaep256, &[1]).unwrap_err();
            assert!(matches!(refused, UnwrapError::Failed(_)));
        }
        assert!(
            PrivateKey::open(&root, b"k", &sealed, KeyType::Rsa(RsaSize::Bits4096), Backend::AwsLc).is_err()
        );
    }
}

#[test]
fn an_ec_key_is_imported_and_a_point_of_another_is_not() {
    let pem = include_bytes!("imports/ec-p256.pem");
    let key = PrivateKey::import(pem, Backend::AwsLc).unwrap();
    assert_eq!(key.kind(), KeyType::Ec(Curve::P256));
    // RFC 7517 appendix A.2's key.
    let b64 = |text: &str| {
        use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
        URL_SAFE_NO_PAD.decode(text).unwrap()
    };
    let x = b64("MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4");
    let y = b64("4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM");
    let d = b64("870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE");
    let jwk = |x: &[u8], y: &[u8], d: &[u8]| PrivateJwk::Ec {
        crv: Curve::P256,
        d: d.to_vec().into(),
        x: x.to_vec(),
        y: y.to_vec(),
    };
    let key = PrivateKey::import_jwk(jwk(&x, &y, &d), Backend::AwsLc).unwrap();
    assert_eq!(key.public(), &PublicKey::Ec { crv: Curve::P256, x: x.clone(), y: y.clone() });
    let import = |j| PrivateKey::import_jwk(j, Backend::AwsLc).unwrap_err();
    assert_eq!(import(jwk(&y, &x, &d)), ImportError::Inconsistent);
    assert_eq!(import(jwk(&x, &y, &[0; 32])), ImportError::Inconsistent);
    assert_eq!(import(jwk(&x[1..], &y, &d)), ImportError::Coordinate { len: 32 });
}
