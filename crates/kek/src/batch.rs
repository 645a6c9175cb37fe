//! Private operations of several keys that are done at once.

use crate::{PrivateKey, SignError, UnwrapError, emsa, oaep, private_key::check_sign};
use custody_multi_buffer::{CrtKey, LANES, Lane, Library, Scratch};
use custody_types::{SignatureAlgorithm, WrapAlgorithm};
use std::{
    cell::{Cell, RefCell},
    fmt,
    future::poll_fn,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
};
use zeroize::Zeroizing;

/// How many operations have to wait before doing them at once takes less time than one after the other: eight at once take as
/// long as one to eight. On an AMD EPYC of family 26, eight of 2048 bits take 520 µs and one alone 219, eight of 4096 bits
/// 5.2 ms and one alone 1.34; of 3072 bits eight take as long as eight alone.
const fn worth(bits: u32) -> Option<usize> {
    match bits {
        2048 => Some(3),
        4096 => Some(5),
        _ => None,
    }
}

/// What came of an operation.
enum Outcome {
    /// As many bytes as the modulus has.
    Done(Zeroizing<Vec<u8>>),
    /// It is to be done by itself: too few others waited, or the library's result did not hold.
    Alone,
}

/// An operation that waits.
struct Waiting {
    key: Arc<CrtKey>,
    input: Vec<u8>,
    outcome: Cell<Option<Outcome>>,
}

/// The operations of one thread that wait to be done at once. Without a library each is done by itself when it is asked for.
#[derive(Default)]
pub struct Batch {
    library: Option<Arc<Library>>,
    waiting: RefCell<Vec<Rc<Waiting>>>,
    scratch: RefCell<Scratch>,
    done_at_once: Cell<u64>,
}

impl Batch {
    /// Most operations that wait for [`Batch::perform`] at once with any use.
    pub const LEN_MAX: usize = LANES;

    /// For a thread that computes.
    #[must_use]
    pub fn new(library: Option<Arc<Library>>) -> Self {
        Self { library, ..Self::default() }
    }

    /// Does a use of a key by itself, on this thread.
    pub fn alone<T>(act: impl AsyncFnOnce(&Self) -> T) -> T {
        let batch = Self::default();
        let mut done = pin!(act(&batch));
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(done) = done.as_mut().poll(&mut context) {
                return done;
            }
            batch.perform();
        }
    }

    /// Operations so far that were done at once with others.
    #[must_use]
    pub fn done_at_once(&self) -> u64 {
        self.done_at_once.get()
    }

    /// Does all that waits. Those who wait are to be polled again.
    pub fn perform(&self) {
        let mut waiting = self.waiting.take();
        // Those of one size are done together, and all of those of one key have one size.
        waiting.sort_by_key(|one| one.key.bits());
        for same in waiting.chunk_by(|a, b| a.key.bits() == b.key.bits()) {
            same.chunks(LANES).for_each(|group| self.perform_group(group));
        }
    }

    fn perform_group(&self, group: &[Rc<Waiting>]) {
        let size = group.first().map(|one| one.key.bits());
        let enough = size.and_then(worth).is_some_and(|least| group.len() >= least);
        let results = match &self.library {
            Some(library) if enough => {
                let lanes: Vec<_> =
                    group.iter().map(|one| Lane { key: &one.key, input: &one.input }).collect();
                let results = library.private(&mut self.scratch.borrow_mut(), &lanes);
                if results.iter().any(Option::is_none) {
                    tracing::error!(
                        library = library.version(),
                        "a result does not hold; done again without"
                    );
                }
                results
            }
            _ => Vec::new(),
        };
        let mut results = results.into_iter();
        for one in group {
            let result = results.next().flatten();
            self.done_at_once.update(|n| n + u64::from(result.is_some()));
            one.outcome.set(Some(result.map_or(Outcome::Alone, Outcome::Done)));
        }
    }

    /// The bare private operation on a number that is below the modulus and as long; none where it is to be done alone.
    async fn private(
        &self,
        key: &PrivateKey,
        input: impl FnOnce() -> Option<Vec<u8>>,
    ) -> Option<Zeroizing<Vec<u8>>> {
        self.library.as_ref()?;
        worth(key.kind.bits())?;
        let key = key.crt()?;
        let input = input().filter(|input| key.takes(input))?;
        let one = Rc::new(Waiting { key, input, outcome: Cell::new(None) });
        self.waiting.borrow_mut().push(one.clone());
        let outcome = poll_fn(|_| one.outcome.take().map_or(Poll::Pending, Poll::Ready)).await;
        match outcome {
            Outcome::Done(result) => Some(result),
            Outcome::Alone => None,
        }
    }
}

impl PrivateKey {
    /// As [`PrivateKey::unwrap_key`], at once with others.
    ///
    /// # Errors
    /// As [`PrivateKey::unwrap_key`].
    pub async fn unwrap_key_in(
        &self,
        batch: &Batch,
        algorithm: WrapAlgorithm,
        wrapped: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, UnwrapError> {
        match batch.private(self, || Some(wrapped.to_vec())).await {
            Some(mut padded) => Ok(oaep::decode(algorithm, &mut padded)?),
            None => self.unwrap_key(algorithm, wrapped),
        }
    }

    /// As [`PrivateKey::sign`], at once with others.
    ///
    /// # Errors
    /// As [`PrivateKey::sign`].
    pub async fn sign_in(
        &self,
        batch: &Batch,
        algorithm: SignatureAlgorithm,
        digest: &[u8],
    ) -> Result<Vec<u8>, SignError> {
        check_sign(self.kind, algorithm, digest)?;
        let len = self.kind.bits() as usize / 8;
        match batch.private(self, || emsa::encode(algorithm, digest, len).ok().flatten()).await {
            Some(signature) => Ok(signature.to_vec()),
            None => self.sign(algorithm, digest),
        }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({:?}, ..)", self.library)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backend, private_key::Held};
    use custody_types::{KeyType, RsaSize};
    use rsa::{
        pkcs8::DecodePrivateKey as _,
        traits::{PrivateKeyParts as _, PublicKeyParts as _},
    };

    /// The numbers of a key with one bit of the first exponent flipped: as a fault in the middle of an operation would have it.
    fn faulty(key: &PrivateKey) -> CrtKey {
        let Held::Here(pkcs8) = &key.held else { panic!("it is here") };
        let key = rsa::PrivateKey::from_pkcs8_der(pkcs8).unwrap();
        let bytes = |n: &rsa::BoxedUint| n.to_be_bytes_trimmed_vartime().to_vec();
        let (p, q) = (bytes(&key.primes()[0]), bytes(&key.primes()[1]));
        let mut dp = bytes(key.dp().unwrap());
        *dp.last_mut().unwrap() ^= 4;
        let q_inv = key.qinv().unwrap().retrieve();
        let numbers = custody_multi_buffer::CrtNumbers {
            n: &key.n_bytes(),
            p: &p,
            q: &q,
            dp: &dp,
            dq: &bytes(key.dq().unwrap()),
            q_inv: &bytes(&q_inv),
        };
        CrtKey::new(&numbers).unwrap()
    }

    #[test]
    fn a_result_with_a_fault_in_it_is_given_to_nobody() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/crypto-mb/libcrypto_mb.so");
        let library = Library::load(path.as_ref()).ok().map(Arc::new);
        let at_once = if library.is_some() { 7 } else { 0 };
        let batch = Batch::new(library);
        let keys =
            [(); 8].map(|()| PrivateKey::generate(KeyType::Rsa(RsaSize::Bits2048), Backend::AwsLc).unwrap());
        assert!(keys[3].crt.set(Some(Arc::new(faulty(&keys[3])))).is_ok());
        let digest = [5; 32];
        let mut all =
            keys.each_ref().map(|key| Box::pin(key.sign_in(&batch, SignatureAlgorithm::Rs256, &digest)));
        let mut context = Context::from_waker(Waker::noop());
        let early = all.each_mut().map(|one| one.as_mut().poll(&mut context));
        batch.perform();
        for ((key, one), early) in keys.iter().zip(&mut all).zip(early) {
            let late = if early.is_pending() { one.as_mut().poll(&mut context) } else { early };
            let Poll::Ready(signature) = late else { panic!("all was performed") };
            // The faulty one was done again, alone, and by the numbers as they are.
            assert_eq!(signature.unwrap(), key.sign(SignatureAlgorithm::Rs256, &digest).unwrap());
        }
        assert_eq!(batch.done_at_once(), at_once);
    }
}
