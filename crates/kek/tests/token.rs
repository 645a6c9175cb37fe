//! Keys in a token: SoftHSM 2, in a directory of the test's own.
//!
//! The module reads its configuration from the environment, which a test does not change for itself: each runs itself once
//! more with it.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use base64::{Engine as _, engine::general_purpose::STANDARD};
use custody_kek::*;
use custody_types::{Curve, KeyFamily, KeyType, PublicKey, RsaSize, SignatureAlgorithm, WrapAlgorithm};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

const RSA_2048: KeyType = KeyType::Rsa(RsaSize::Bits2048);
const VARIABLE: &str = "SOFTHSM2_CONF";
const MODULES: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];

/// Runs `body` in a process of its own with a new token; answers in the inner one where the token is.
fn with_token(test: &str, body: impl FnOnce(&Path, TokenSettings)) {
    let module = MODULES.iter().map(PathBuf::from).find(|m| m.exists());
    let module = module.expect("SoftHSM is not installed; `scripts/install tests` does it");
    if let Some(configuration) = std::env::var_os(VARIABLE) {
        let dir = Path::new(&configuration).parent().unwrap().to_owned();
        let settings = TokenSettings { module, token: "custody".to_owned(), pin_file: dir.join("pin") };
        return body(&dir, settings);
    }
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("tokens")).unwrap();
    fs::write(dir.path().join("pin"), "73915\n").unwrap();
    fs::set_permissions(dir.path().join("pin"), fs::Permissions::from_mode(0o600)).unwrap();
    let configuration = dir.path().join("softhsm2.conf");
    let tokens = dir.path().join("tokens");
    fs::write(&configuration, format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display()))
        .unwrap();
    let made = Command::new("softhsm2-util")
        .args(["--init-token", "--free", "--label", "custody", "--pin", "73915", "--so-pin", "4711"])
        .env(VARIABLE, &configuration)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let inner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(VARIABLE, &configuration)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&inner.stderr);
    assert!(inner.status.success(), "{}{said}", String::from_utf8_lossy(&inner.stdout));
    assert!(String::from_utf8_lossy(&inner.stdout).contains("1 passed"), "the inner test did not run");
}

/// How many keys the token has.
fn objects(dir: &Path) -> usize {
    let token = fs::read_dir(dir.join("tokens")).unwrap().next().unwrap().unwrap().path();
    let names = fs::read_dir(token).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".object") && name != "token.object").count()
}

fn kinds() -> impl Iterator<Item = KeyType> {
    Curve::ALL.into_iter().map(KeyType::Ec).chain([RSA_2048, KeyType::Rsa(RsaSize::Bits3072)])
}

/// A key does everything that its kind can, and software agrees with it.
fn works(key: &PrivateKey) {
    for algorithm in SignatureAlgorithm::ALL.into_iter().filter(|a| a.fits(key.kind())) {
        let digest = vec![5; algorithm.digest_len()];
        let signature = key.sign(algorithm, &digest).unwrap();
        for backend in [Backend::AwsLc, Backend::RustCrypto] {
            assert!(verify(key.public(), algorithm, &digest, &signature, backend).unwrap(), "{algorithm}");
        }
        let other = vec![6; algorithm.digest_len()];
        assert!(!verify(key.public(), algorithm, &other, &signature, Backend::AwsLc).unwrap());
    }
    if let KeyType::Rsa(_) = key.kind() {
        for algorithm in [WrapAlgorithm::RsaOaep256, WrapAlgorithm::RsaOaep] {
            for len in [1, 32, key.kind().bits() as usize / 8 - algorithm.overhead()] {
                let wrapped = key.wrap_key(algorithm, &vec![7; len]).unwrap();
                assert_eq!(*key.unwrap_key(algorithm, &wrapped).unwrap(), vec![7; len]);
            }
        }
    } else {
        assert!(key.wrap_key(WrapAlgorithm::RsaOaep256, &[1]).is_err());
    }
}

#[test]
fn keys_are_made_in_the_token_and_stay_there() {
    with_token("keys_are_made_in_the_token_and_stay_there", |_, settings| {
        let token = Arc::new(Token::open(settings).unwrap());
        for kind in kinds() {
            let key = PrivateKey::generate_in(&token, kind).unwrap();
            assert!(key.is_in_token() && key.kind() == kind);
            works(&key);
            let root = custody_envelope::SealingKey::generate().unwrap();
            let id = root.open(b"here", &key.seal(&root, b"here").unwrap()).unwrap();
            assert_eq!(id.len(), 16, "what is stored of it is its id");
            assert!(!token.can_leave(&id).unwrap());
            // Found again by its id, as after a restart.
            let again = PrivateKey::in_token(token.clone(), &id, key.public().clone(), kind).unwrap();
            works(&again);
            key.destroy().unwrap();
            let gone =
                again.sign(SignatureAlgorithm::ALL.into_iter().find(|a| a.fits(kind)).unwrap(), &[5; 32]);
            assert!(gone.is_err());
            key.destroy().unwrap();
        }
    });
}

#[test]
fn failing_unwraps_say_the_same_and_the_token_stays() {
    with_token("failing_unwraps_say_the_same_and_the_token_stays", |_, settings| {
        let token = Arc::new(Token::open(settings).unwrap());
        let key = PrivateKey::generate_in(&token, RSA_2048).unwrap();
        let wrapped = key.wrap_key(WrapAlgorithm::RsaOaep256, &[1; 32]).unwrap();
        let PublicKey::Rsa { n, .. } = key.public() else { unreachable!("an RSA key") };
        let mut damaged = wrapped.clone();
        damaged[100] ^= 1;
        let less_than_n = {
            let mut number = n.clone();
            number[255] ^= 1;
            number
        };
        for bad in [&damaged[..], &wrapped[1..], &[], &[0xff; 256], n, &less_than_n, &[0; 256]] {
            let refused = key.unwrap_key(WrapAlgorithm::RsaOaep256, bad).unwrap_err();
            assert!(matches!(refused, UnwrapError::Failed(UnwrapFailed)), "{refused}");
        }
        assert!(key.unwrap_key(WrapAlgorithm::RsaOaep, &wrapped).is_err());
        // More callers than sessions.
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..40)
                .map(|_| scope.spawn(|| key.unwrap_key(WrapAlgorithm::RsaOaep256, &wrapped).unwrap().len()))
                .collect();
            assert!(all.into_iter().all(|one| one.join().unwrap() == 32));
        });
    });
}

#[test]
fn keys_are_moved_into_the_token() {
    with_token("keys_are_moved_into_the_token", |_, settings| {
        let token = Arc::new(Token::open(settings).unwrap());
        let brought = || {
            let rsa = include_bytes!("imports/rsa-2048.pkcs8.pem");
            PrivateKey::import(rsa, Backend::AwsLc).unwrap()
        };
        let inside = brought().move_into(&token).unwrap();
        assert_eq!(inside.public(), brought().public());
        works(&inside);
        let ec = PrivateKey::import(include_bytes!("imports/ec-p256.pem"), Backend::AwsLc).unwrap();
        works(&ec.move_into(&token).unwrap());
    });
}

/// As a transfer file has it: an AES key under the exchange key, the private key under the AES key.
fn transfer(exchange: &PrivateKey, pkcs8: &[u8]) -> Vec<u8> {
    let head = exchange.wrap_key(WrapAlgorithm::RsaOaep, &[9; 32]).unwrap();
    let tail = aes_wrap(Backend::AwsLc, &[9; 32], Padding::Padded, pkcs8).unwrap();
    [head, tail].concat()
}

#[test]
fn keys_are_transferred_into_the_token() {
    with_token("keys_are_transferred_into_the_token", |dir, settings| {
        let token = Arc::new(Token::open(settings).unwrap());
        let exchange = PrivateKey::generate_in(&token, RSA_2048).unwrap();
        let root = custody_envelope::SealingKey::generate().unwrap();
        let transferred = |file: &[u8], family| PrivateKey::transfer_into(&token, &exchange, file, family);
        for kind in kinds() {
            let outside = PrivateKey::generate(kind, Backend::AwsLc).unwrap();
            let pkcs8 = root.open(b"", &outside.seal(&root, b"").unwrap()).unwrap();
            let file = transfer(&exchange, &pkcs8);
            let before = objects(dir);
            for family in [Some(kind.family()), None] {
                let inside = transferred(&file, family).unwrap();
                assert_eq!((inside.public(), inside.kind()), (outside.public(), kind));
                works(&inside);
                assert!(!token.can_leave(inside.token_id().unwrap()).unwrap());
            }
            assert_eq!(objects(dir), before + 2);
            let other = if kind.family() == KeyFamily::Ec { KeyFamily::Rsa } else { KeyFamily::Ec };
            let refused = transferred(&file, Some(other)).unwrap_err();
            assert!(matches!(refused, TokenKeyError::Unwrap(UnwrapFailed)), "{refused}");
            for at in [0, 100, 300, file.len() - 1] {
                let mut damaged = file.clone();
                damaged[at] ^= 4;
                let refused = transferred(&damaged, None).unwrap_err();
                assert!(matches!(refused, TokenKeyError::Unwrap(UnwrapFailed)), "{at}: {refused}");
            }
            let outside = PrivateKey::transfer_into(&token, &outside, &file, None).unwrap_err();
            assert!(matches!(outside, TokenKeyError::ExchangeOutside));
            assert_eq!(objects(dir), before + 2, "nothing is left of what was refused");
        }
        // What is inside is found out when it is there; then it has to go.
        let before = objects(dir);
        for (pem, why) in [
            (include_str!("imports/ec-p224.pem"), ImportError::Unreadable),
            (include_str!("imports/rsa-1024.pem"), ImportError::Size { bits: 1024 }),
            (include_str!("imports/rsa-2048-exponent-3.pem"), ImportError::Exponent),
        ] {
            let der: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
            let refused =
                transferred(&transfer(&exchange, &STANDARD.decode(der).unwrap()), None).unwrap_err();
            assert!(matches!(&refused, TokenKeyError::Import(e) if *e == why), "{why}: {refused}");
        }
        assert_eq!(objects(dir), before, "nothing is left of what was refused");
        works(&exchange);
    });
}

#[test]
fn a_lost_token_is_said_to_be_lost_and_comes_back() {
    with_token("a_lost_token_is_said_to_be_lost_and_comes_back", |dir, settings| {
        let token = Arc::new(Token::open(settings.clone()).unwrap());
        let key = PrivateKey::generate_in(&token, RSA_2048).unwrap();
        let wrapped = key.wrap_key(WrapAlgorithm::RsaOaep256, &[1; 32]).unwrap();
        let away = dir.join("away");
        fs::rename(dir.join("tokens"), &away).unwrap();
        fs::create_dir(dir.join("tokens")).unwrap();
        let lost = key.unwrap_key(WrapAlgorithm::RsaOaep256, &wrapped).unwrap_err();
        assert!(matches!(lost, UnwrapError::Token(TokenError::Lost(_) | TokenError::NoKey(_))), "{lost}");
        let lost = PrivateKey::generate_in(&token, RSA_2048).unwrap_err();
        assert!(matches!(lost, TokenKeyError::Token(TokenError::Lost(_))), "{lost}");
        // What needs the public half alone still works.
        key.wrap_key(WrapAlgorithm::RsaOaep256, &[1; 32]).unwrap();
        fs::remove_dir(dir.join("tokens")).unwrap();
        fs::rename(&away, dir.join("tokens")).unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while key.unwrap_key(WrapAlgorithm::RsaOaep256, &wrapped).is_err() {
            assert!(std::time::Instant::now() < until, "the token does not come back");
            std::thread::yield_now();
        }
        works(&key);
    });
}

#[test]
fn settings_that_are_wrong_say_so() {
    with_token("settings_that_are_wrong_say_so", |dir, settings| {
        let open = |settings: TokenSettings| Token::open(settings).err();
        let module = TokenSettings { module: "/nowhere/module.so".into(), ..settings.clone() };
        assert!(matches!(open(module), Some(TokenError::Module { .. })));
        let none = TokenSettings { pin_file: dir.join("none"), ..settings.clone() };
        assert!(matches!(open(none), Some(TokenError::PinFile { .. })));
        fs::write(dir.join("open-pin"), "73915").unwrap();
        fs::set_permissions(dir.join("open-pin"), fs::Permissions::from_mode(0o644)).unwrap();
        let others = TokenSettings { pin_file: dir.join("open-pin"), ..settings.clone() };
        assert!(matches!(open(others), Some(TokenError::PinFile { .. })));
        fs::write(dir.join("wrong-pin"), "11111").unwrap();
        fs::set_permissions(dir.join("wrong-pin"), fs::Permissions::from_mode(0o600)).unwrap();
        let wrong = TokenSettings { pin_file: dir.join("wrong-pin"), ..settings.clone() };
        let refused = open(wrong).unwrap();
        assert!(matches!(refused, TokenError::Pin), "{refused}");
        assert!(!format!("{refused:?}{refused}").contains("11111"));
        // A token that is away is no mistake of the settings: it may come.
        let away = Arc::new(Token::open(TokenSettings { token: "other".to_owned(), ..settings }).unwrap());
        let lost = PrivateKey::generate_in(&away, RSA_2048).unwrap_err();
        assert!(matches!(lost, TokenKeyError::Token(TokenError::Lost(_))));
    });
}
