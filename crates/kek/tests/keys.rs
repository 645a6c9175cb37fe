//! Making, importing, sealing and using keys.
use custody_envelope::RootKey;
use custody_kek::*;
use custody_types::WrapAlgorithm;

#[test]
fn backends_open_each_other_and_bound_the_length() {
    let key = KekPrivateKey::generate(RsaSize::Bits2048, Backend::AwsLc).unwrap();
    let root = RootKey::generate().unwrap();
    let sealed = key.seal(&root, b"here").unwrap();
    let twin = KekPrivateKey::open(&root, b"here", &sealed, Backend::RustCrypto).unwrap();
    assert_eq!(key.public(), twin.public());
    assert!(KekPrivateKey::open(&root, b"there", &sealed, Backend::AwsLc).is_err());
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
    let key = KekPrivateKey::generate(RsaSize::Bits2048, Backend::AwsLc).unwrap();
    let mut wrapped = key.wrap_key(WrapAlgorithm::RsaOaep256, &[1; 32]).unwrap();
    let other_padding = key.unwrap_key(WrapAlgorithm::RsaOaep, &wrapped).unwrap_err();
    wrapped[17] ^= 1;
    let damaged = key.unwrap_key(WrapAlgorithm::RsaOaep256, &wrapped).unwrap_err();
    let short = key.unwrap_key(WrapAlgorithm::RsaOaep256, &wrapped[1..]).unwrap_err();
    let empty = key.unwrap_key(WrapAlgorithm::RsaOaep256, &[]).unwrap_err();
    assert!([other_padding, damaged, short, empty].iter().all(|e| *e == UnwrapFailed));
}

#[test]
fn rubbish_is_not_imported() {
    for bytes in [
        &b""[..],
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----",
        &[0x30, 0x82, 0xff, 0xff],
        &[0; 20_000],
    ] {
        assert_eq!(KekPrivateKey::import(bytes, Backend::AwsLc).unwrap_err(), ImportError::Unreadable);
    }
    assert!(RsaSize::try_from(1024).is_err());
}

#[test]
fn an_rsa_key_is_imported_from_each_form_and_others_say_why_not() {
    let pkcs8 = include_bytes!("imports/rsa-2048.pkcs8.pem");
    let key = KekPrivateKey::import(pkcs8, Backend::AwsLc).unwrap();
    let same = KekPrivateKey::import(include_bytes!("imports/rsa-2048.pkcs1.pem"), Backend::AwsLc).unwrap();
    assert_eq!((key.size(), key.public()), (RsaSize::Bits2048, same.public()));
    let wrapped = key.wrap_key(WrapAlgorithm::RsaOaep256, &[9; 32]).unwrap();
    assert_eq!(same.unwrap_key(WrapAlgorithm::RsaOaep256, &wrapped).unwrap()[..], [9; 32]);
    for (refused, why) in [
        (&include_bytes!("imports/ec-p256.pem")[..], ImportError::Unreadable),
        (&include_bytes!("imports/ed25519.pem")[..], ImportError::Unreadable),
        (&include_bytes!("imports/rsa-2048.encrypted.pem")[..], ImportError::Unreadable),
        (&include_bytes!("imports/rsa-1024.pem")[..], ImportError::Size { bits: 1024 }),
        (&include_bytes!("imports/rsa-2047.pem")[..], ImportError::Size { bits: 2047 }),
        (&include_bytes!("imports/rsa-2048-exponent-3.pem")[..], ImportError::Exponent),
    ] {
        assert_eq!(KekPrivateKey::import(refused, Backend::AwsLc).unwrap_err(), why);
    }
}

#[test]
fn a_private_key_does_not_print() {
    let key = KekPrivateKey::generate(RsaSize::Bits2048, Backend::AwsLc).unwrap();
    assert_eq!(format!("{key:?}"), "KekPrivateKey(2048 bits, ..)");
}
