//! Shamir's secret sharing ("How to share a secret", CACM 1979), byte by byte over GF(2^8) with the polynomial of AES.
//!
//! Written here, since it is a part of the seal and sixty lines: the crates that do it look products up in tables, by
//! indices that are secret.

use super::SealError;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use custody_envelope::{KEY_LEN, SealingKey, checksum, random};
use std::fmt;
use zeroize::Zeroizing;

/// Most shares of a seal.
pub(crate) const NUMBER_MAX: u8 = 16;
/// What the text of a share begins with.
const PREFIX: &str = "custody-share-1.";
/// Seal id, index, threshold, value, checksum.
const LEN: usize = 16 + 1 + 1 + KEY_LEN + 4;

/// One officer's part of a seal's key.
pub(crate) struct Share {
    pub(crate) seal: [u8; 16],
    pub(crate) index: u8,
    threshold: u8,
    value: Zeroizing<[u8; KEY_LEN]>,
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Share({}, ..)", self.index)
    }
}

/// A product in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1 (FIPS 197 §4.2). No branch and no table depends on the factors.
fn product(mut a: u8, b: u8) -> u8 {
    let mut sum = 0;
    for bit in 0..8 {
        sum ^= a & 0u8.wrapping_sub((b >> bit) & 1);
        a = (a << 1) ^ (0x1b & 0u8.wrapping_sub(a >> 7));
    }
    sum
}

/// The inverse: a^254.
fn inverse(a: u8) -> u8 {
    let mut power = a;
    let mut result = 1;
    for _ in 0..7 {
        power = product(power, power);
        result = product(result, power);
    }
    result
}

/// Splits a key into `number` shares of which `threshold` make it again.
pub(crate) fn split(
    key: &SealingKey,
    seal: [u8; 16],
    threshold: u8,
    number: u8,
) -> Result<Vec<Share>, SealError> {
    // The coefficients of one polynomial for each byte, the constant first.
    let mut coefficients = Zeroizing::new(vec![[0; KEY_LEN]; usize::from(threshold)]);
    for (degree, row) in coefficients.iter_mut().enumerate() {
        if degree == 0 {
            row.copy_from_slice(key.expose_to_wrap());
        } else {
            random(row)?;
        }
    }
    let at = |index: u8| {
        let mut value = Zeroizing::new([0; KEY_LEN]);
        for row in coefficients.iter().rev() {
            value.iter_mut().zip(row).for_each(|(v, c)| *v = product(*v, index) ^ c);
        }
        Share { seal, index, threshold, value }
    };
    Ok((1..=number).map(at).collect())
}

/// The key of as many shares as its threshold, each of another index. Of shares that are not of one key it makes another.
pub(crate) fn combine(shares: &[Share]) -> Result<SealingKey, SealError> {
    let mut key = Zeroizing::new([0; KEY_LEN]);
    for share in shares {
        // Lagrange's basis at 0: the product of x / (x - own), where minus is exclusive or.
        let others = shares.iter().filter(|other| other.index != share.index);
        let weight =
            others.fold(1, |w, other| product(w, product(other.index, inverse(other.index ^ share.index))));
        key.iter_mut().zip(share.value.iter()).for_each(|(k, v)| *k ^= product(*v, weight));
    }
    SealingKey::from_bytes(&key[..]).map_err(|_| SealError::WrongKey)
}

impl Share {
    /// As it is given to an officer.
    pub(crate) fn to_text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(LEN));
        bytes.extend_from_slice(&self.seal);
        bytes.extend_from_slice(&[self.index, self.threshold]);
        bytes.extend_from_slice(&self.value[..]);
        let sum = checksum(&bytes);
        bytes.extend_from_slice(sum.first_chunk::<4>().unwrap_or(&[0; 4]));
        let encoded = Zeroizing::new(URL_SAFE_NO_PAD.encode(&*bytes));
        Zeroizing::new([PREFIX, &encoded].concat())
    }

    /// Reads what an officer gives.
    pub(crate) fn parse(text: &str) -> Result<Self, SealError> {
        let encoded = text.trim().strip_prefix(PREFIX).ok_or(SealError::NoShare)?;
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded).map_err(|_| SealError::NoShare)?);
        let (body, sum) = bytes.split_last_chunk::<4>().ok_or(SealError::NoShare)?;
        if bytes.len() != LEN || checksum(body).first_chunk::<4>() != Some(sum) {
            return Err(SealError::NoShare);
        }
        let (seal, rest) = body.split_first_chunk::<16>().ok_or(SealError::NoShare)?;
        let ([index, threshold], value) = rest.split_first_chunk::<2>().ok_or(SealError::NoShare)?;
        let value: &[u8; KEY_LEN] = value.try_into().map_err(|_| SealError::NoShare)?;
        if *index == 0 {
            return Err(SealError::NoShare);
        }
        Ok(Self { seal: *seal, index: *index, threshold: *threshold, value: Zeroizing::new(*value) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_is_that_of_aes() {
        // FIPS 197 §4.2 and §4.2.1.
        assert_eq!(product(0x57, 0x83), 0xc1);
        assert_eq!(product(0x57, 0x13), 0xfe);
        for a in 1..=255 {
            assert_eq!(product(a, inverse(a)), 1);
        }
    }

    #[test]
    fn the_threshold_makes_the_key_and_fewer_make_another() {
        let key = SealingKey::generate().unwrap();
        for (threshold, number) in [(2, 2), (2, 3), (3, 5), (16, 16)] {
            let all = split(&key, [4; 16], threshold, number).unwrap();
            let some = |skip: usize, count: usize| -> Vec<Share> {
                let texts = all.iter().cycle().skip(skip).take(count).map(Share::to_text);
                texts.map(|text| Share::parse(&text).unwrap()).collect()
            };
            for skip in 0..usize::from(number) {
                let whole = combine(&some(skip, threshold.into())).unwrap();
                assert_eq!(whole.expose_to_wrap(), key.expose_to_wrap());
                let less = combine(&some(skip, usize::from(threshold) - 1)).unwrap();
                assert_ne!(less.expose_to_wrap(), key.expose_to_wrap());
            }
        }
    }

    #[test]
    fn a_mistyped_share_is_no_share() {
        let key = SealingKey::generate().unwrap();
        let text = split(&key, [4; 16], 2, 2).unwrap()[0].to_text();
        for at in 0..text.len() {
            let mut other = text.as_bytes().to_vec();
            other[at] = if other[at] == b'A' { b'B' } else { b'A' };
            let other = String::from_utf8(other).unwrap();
            // The last character has bits that mean nothing.
            assert!(Share::parse(&other).is_err() || at == text.len() - 1, "{at}");
        }
        assert!(Share::parse(&text[..text.len() - 2]).is_err());
        assert!(Share::parse("").is_err());
    }
}
