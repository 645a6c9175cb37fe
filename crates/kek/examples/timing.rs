//! Whether an unwrap that fails tells by its time why it failed: dudect's test (Reparaz, Balasch, Verbauwhede, "Dude, is
//! my code constant time?", 2017). Two kinds of bad ciphertexts take turns in random order; Welch's t of their times should
//! stay under 4.5. `scripts/bench timing` runs it; a figure, never a test.
#![expect(clippy::print_stdout, reason = "a tool for the terminal")]

use custody_kek::{Backend, Batch, MultiBuffer, PrivateKey, Token, TokenSettings};
use custody_types::{KeyType, PublicKey, RsaSize, WrapAlgorithm};
use rsa::BoxedUint;
use sha2::{Digest as _, Sha256};
use std::{
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Instant,
};

const MODULUS_LEN: usize = 256;
const HASH_LEN: usize = 32;
/// dudect's bound: above it there is a leak with near certainty.
const T_MAX: f64 = 4.5;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Why a ciphertext does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// The first byte of the padded message is not zero.
    FirstByte,
    /// The label's hash is wrong.
    LabelHash,
    /// No separator follows the zeros.
    NoSeparator,
    /// Something other than a zero precedes the separator.
    Padding,
}

/// What unwraps.
enum Provider {
    Alone(Backend),
    /// `crypto_mb`, as many at once as there can be.
    AtOnce(Box<Batch>),
    /// The bare operation in a token, its padding taken off here.
    InToken(Arc<Token>),
}

/// The token of SoftHSM's that `scripts/bench` has made, in a directory with its PIN.
fn token() -> Outcome<Option<Token>> {
    let modules = ["/usr/lib/softhsm", "/usr/lib64/pkcs11", "/usr/local/lib/softhsm"];
    let module =
        modules.iter().map(|dir| Path::new(dir).join("libsofthsm2.so")).find(|module| module.exists());
    let pin_file = std::env::args().nth(2).map(|dir| Path::new(&dir).join("pin"));
    let Some((module, pin_file)) = module.zip(pin_file) else { return Ok(None) };
    Ok(Some(Token::open(TokenSettings { module, token: "timing".to_owned(), pin_file })?))
}

impl Provider {
    /// All that can be measured here.
    fn all() -> Outcome<Vec<(&'static str, Self)>> {
        let mut all = vec![
            ("aws-lc-rs", Self::Alone(Backend::AwsLc)),
            ("RustCrypto", Self::Alone(Backend::RustCrypto)),
        ];
        match MultiBuffer::load(Path::new("target/crypto-mb/libcrypto_mb.so")) {
            Ok(library) => {
                all.push(("crypto_mb", Self::AtOnce(Box::new(Batch::new(Some(Arc::new(library)))))));
            }
            Err(e) => println!("crypto_mb is not measured: {e}; scripts/crypto-mb gets it"),
        }
        match token()? {
            Some(token) => all.push(("SoftHSM", Self::InToken(Arc::new(token)))),
            None => println!(
                "a token is not measured: there is no SoftHSM; `scripts/bench timing` makes one where it can"
            ),
        }
        Ok(all)
    }

    fn key(&self) -> Outcome<PrivateKey> {
        let kind = KeyType::Rsa(RsaSize::Bits2048);
        Ok(match self {
            Self::Alone(backend) => PrivateKey::generate(kind, *backend)?,
            Self::AtOnce(_) => PrivateKey::generate(kind, Backend::default())?,
            Self::InToken(token) => PrivateKey::generate_in(token, kind)?,
        })
    }

    /// Ciphertexts of one call.
    fn at_once(&self) -> usize {
        match self {
            Self::Alone(_) | Self::InToken(_) => 1,
            Self::AtOnce(_) => Batch::LEN_MAX,
        }
    }

    /// Unwraps all; whether one opened.
    fn unwrap(&self, key: &PrivateKey, wrapped: &[&[u8]]) -> bool {
        let algorithm = WrapAlgorithm::RsaOaep256;
        let Self::AtOnce(batch) = self else {
            return wrapped.iter().any(|one| key.unwrap_key(algorithm, one).is_ok());
        };
        let mut context = Context::from_waker(Waker::noop());
        let mut opened = false;
        let mut waiting: Vec<Pin<Box<dyn Future<Output = _>>>> = Vec::new();
        for one in wrapped {
            let mut asked = Box::pin(key.unwrap_key_in(batch, algorithm, one));
            match asked.as_mut().poll(&mut context) {
                Poll::Ready(done) => opened |= done.is_ok(),
                Poll::Pending => waiting.push(asked),
            }
        }
        batch.perform();
        for asked in &mut waiting {
            opened |= matches!(asked.as_mut().poll(&mut context), Poll::Ready(Ok(_)) | Poll::Pending);
        }
        opened
    }
}

fn mgf1_xor(seed: &[u8], target: &mut [u8]) {
    for (counter, chunk) in (0u32..).zip(target.chunks_mut(HASH_LEN)) {
        let mask = Sha256::new().chain_update(seed).chain_update(counter.to_be_bytes()).finalize();
        chunk.iter_mut().zip(mask).for_each(|(t, m)| *t ^= m);
    }
}

fn random_bytes(bytes: &mut [u8]) {
    bytes.iter_mut().for_each(|b| *b = rand::random());
}

/// A padded message (RFC 8017 section 7.1.1) with one thing wrong, under the public key.
fn ciphertext(public: &rsa::PublicKey, cause: Cause) -> Outcome<Vec<u8>> {
    let mut block = [0; MODULUS_LEN];
    let (first, rest) = block.split_first_mut().ok_or("no block")?;
    let (seed, db) = rest.split_at_mut(HASH_LEN);
    random_bytes(seed);
    let (label, tail) = db.split_at_mut(HASH_LEN);
    label.copy_from_slice(&Sha256::digest(b""));
    let (separator, message) = tail.split_at_mut(tail.len() - 32);
    random_bytes(message);
    if let Some(last) = separator.last_mut() {
        *last = 1;
    }
    match cause {
        Cause::FirstByte => *first = 1,
        Cause::LabelHash => label.iter_mut().take(1).for_each(|b| *b ^= 1),
        Cause::NoSeparator => tail.fill(0),
        Cause::Padding => separator.iter_mut().take(1).for_each(|b| *b = 2),
    }
    mgf1_xor(seed, db);
    mgf1_xor(db, seed);
    let number = BoxedUint::from_be_slice(&block, u32::try_from(MODULUS_LEN * 8)?)?;
    let sealed = rsa::hazmat::rsa_encrypt(public, &number)?;
    Ok(sealed.to_be_bytes().to_vec())
}

/// Welch's t of two samples, of which the slowest tenth is left out: interrupts, not arithmetic.
fn welch(mut a: Vec<f64>, mut b: Vec<f64>) -> f64 {
    let mut all: Vec<f64> = a.iter().chain(&b).copied().collect();
    all.sort_by(f64::total_cmp);
    let bound = all.get(all.len() * 9 / 10).copied().unwrap_or(f64::MAX);
    for sample in [&mut a, &mut b] {
        sample.retain(|v| *v <= bound);
    }
    let moments = |s: &[f64]| {
        let n = s.len() as f64;
        let mean = s.iter().sum::<f64>() / n;
        (mean, s.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0) / n)
    };
    let ((mean_a, var_a), (mean_b, var_b)) = (moments(&a), moments(&b));
    (mean_a - mean_b) / (var_a + var_b).sqrt()
}

fn main() -> Outcome<()> {
    let samples: usize = std::env::args().nth(1).map_or(Ok(20_000), |n| n.parse())?;
    println!(
        "unwrap failures, RSA-2048, OAEP with SHA-256, {samples} calls a pair; |t| under {T_MAX} shows no difference"
    );
    println!("{:12} {:34} {:>7}", "provider", "causes", "t");
    let mut worst = 0f64;
    for (name, provider) in Provider::all()? {
        let key = provider.key()?;
        let PublicKey::Rsa { n, e } = key.public() else { return Err("not RSA".into()) };
        let number = |bytes: &[u8]| BoxedUint::from_be_slice_vartime(bytes);
        let public = rsa::PublicKey::new(number(n), number(e))?;
        for other in [Cause::LabelHash, Cause::NoSeparator, Cause::Padding] {
            let causes = [Cause::FirstByte, other];
            let mut times: [Vec<f64>; 2] = Default::default();
            // Many ciphertexts of each kind, so that no single number's time is taken for its kind's.
            let mut sealed: [Vec<Vec<u8>>; 2] = Default::default();
            for (kind, cause) in sealed.iter_mut().zip(causes) {
                *kind = (0..256).map(|_| ciphertext(&public, cause)).collect::<Outcome<_>>()?;
            }
            for _ in 0..samples {
                let class = usize::from(rand::random::<bool>());
                let (Some(kind), Some(times)) = (sealed.get(class), times.get_mut(class)) else { continue };
                let any = |_| kind.get(usize::from(rand::random::<u8>())).map(Vec::as_slice);
                let wrapped: Vec<&[u8]> = (0..provider.at_once()).filter_map(any).collect();
                let started = Instant::now();
                let opened = provider.unwrap(&key, &wrapped);
                let took = started.elapsed();
                if opened {
                    return Err(format!("{:?} opened", causes.get(class)).into());
                }
                times.push(took.as_nanos() as f64);
            }
            let [a, b] = times;
            let t = welch(a, b);
            worst = worst.max(t.abs());
            println!("{name:12} {:34} {t:>7.2}", format!("{:?} / {other:?}", Cause::FirstByte));
        }
    }
    println!("worst |t| {worst:.2}: {}", if worst < T_MAX { "no dependence shown" } else { "A DEPENDENCE" });
    Ok(())
}
