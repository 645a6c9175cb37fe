//! A private key as the library reads it.

use std::fmt;
use zeroize::Zeroizing;

/// The numbers of an RSA private key (RFC 8017 §3.2), each with its most significant byte first. The public exponent is 65537.
#[derive(Clone, Copy)]
pub struct CrtNumbers<'a> {
    /// The modulus.
    pub n: &'a [u8],
    /// The first factor.
    pub p: &'a [u8],
    /// The second factor.
    pub q: &'a [u8],
    /// The first factor's exponent.
    pub dp: &'a [u8],
    /// The second factor's exponent.
    pub dq: &'a [u8],
    /// The inverse of the second factor modulo the first.
    pub q_inv: &'a [u8],
}

impl fmt::Debug for CrtNumbers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CrtNumbers(..)")
    }
}

/// A private key in words of 64 bits, the least significant first. Erased when it is dropped.
pub struct CrtKey {
    bits: u32,
    /// p, q, dp, dq and the inverse, each half as long as the modulus, and the modulus.
    words: Zeroizing<Vec<u64>>,
}

/// Where in the words a number begins, in halves of a modulus.
#[derive(Clone, Copy)]
pub(crate) enum Part {
    P,
    Q,
    Dp,
    Dq,
    QInv,
    N,
}

/// Appends a number in `len` words; it has no more than that.
fn push(words: &mut Vec<u64>, number: &[u8], len: usize) -> Option<()> {
    let start = number.iter().position(|&b| b != 0).unwrap_or(number.len());
    let number = number.get(start..)?;
    if number.len() > len * 8 {
        return None;
    }
    let mut written = 0;
    for chunk in number.rchunks(8) {
        words.push(chunk.iter().fold(0, |word, &byte| (word << 8) | u64::from(byte)));
        written += 1;
    }
    words.extend(std::iter::repeat_n(0, len - written));
    Some(())
}

impl CrtKey {
    /// A key, if it is one that the library takes: of 2048, 3072 or 4096 bits, with factors of half of them each.
    #[must_use]
    pub fn new(numbers: &CrtNumbers<'_>) -> Option<Self> {
        let CrtNumbers { n, p, q, dp, dq, q_inv } = *numbers;
        let len = n.len();
        let top_is_set = |number: &[u8]| number.first().is_some_and(|b| b & 0x80 != 0);
        let fits = matches!(len, 256 | 384 | 512) && [p, q].iter().all(|f| f.len() == len / 2);
        if !fits || ![n, p, q].into_iter().all(top_is_set) {
            return None;
        }
        let half = len / 16;
        let mut words = Zeroizing::new(Vec::with_capacity(7 * half));
        for number in [p, q, dp, dq, q_inv] {
            push(&mut words, number, half)?;
        }
        push(&mut words, n, 2 * half)?;
        Some(Self { bits: u32::try_from(len * 8).ok()?, words })
    }

    /// The size of the modulus.
    #[must_use]
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// Bytes of the modulus, and so of what goes in and comes out.
    pub(crate) fn len(&self) -> usize {
        self.bits as usize / 8
    }

    /// A number's words: half as many as the modulus has, and all of the modulus itself.
    pub(crate) fn part(&self, part: Part) -> &[u64] {
        let half = self.bits as usize / 128;
        self.words.get(part as usize * half..).unwrap_or_default()
    }

    /// Whether a number with its most significant byte first, as long as the modulus, is below it.
    #[must_use]
    pub fn takes(&self, input: &[u8]) -> bool {
        if input.len() != self.len() {
            return false;
        }
        let modulus = self.part(Part::N).iter().rev().flat_map(|word| word.to_be_bytes());
        input.iter().copied().lt(modulus)
    }
}

impl fmt::Debug for CrtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CrtKey({} bits, ..)", self.bits)
    }
}
