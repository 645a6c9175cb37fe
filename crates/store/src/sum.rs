//! Sums of hashes: of rows, and of the tags of parts (MSet-Add-Hash, see `integrity`).

use aws_lc_rs::hmac;

/// A sum of hashes of rows, modulo 2^256: least significant part first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum([u64; 4]);

impl Sum {
    pub(crate) const ZERO: Self = Self([0; 4]);

    /// Of one row: its key and its value, each told from the other.
    pub(crate) fn of_row(key: &hmac::Key, row: &[u8], value: &[u8]) -> Self {
        let mut context = hmac::Context::with_key(key);
        context.update(&(row.len() as u64).to_le_bytes());
        context.update(row);
        context.update(value);
        let mut parts = [0; 4];
        for (part, bytes) in parts.iter_mut().zip(context.sign().as_ref().chunks_exact(8)) {
            *part = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        }
        Self(parts)
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        let mut carry = false;
        let mut parts = [0; 4];
        for ((part, a), b) in parts.iter_mut().zip(self.0).zip(other.0) {
            let (sum, over) = a.overflowing_add(b);
            let (sum, over_again) = sum.overflowing_add(u64::from(carry));
            (*part, carry) = (sum, over | over_again);
        }
        Self(parts)
    }

    pub(crate) fn minus(self, other: Self) -> Self {
        // -x = !x + 1 in two's complement.
        self.plus(Self(other.0.map(|part| !part))).plus(Self([1, 0, 0, 0]))
    }

    pub(crate) fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (chunk, part) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&part.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_can_be_taken_away() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]);
        let some: Vec<Sum> = (0..200u8).map(|n| Sum::of_row(&key, &[n], b"value")).collect();
        let all = some.iter().fold(Sum::ZERO, |sum, h| sum.plus(*h));
        let less = some.iter().skip(1).fold(all, |sum, h| sum.minus(*h));
        assert_eq!(less, some[0]);
        assert_eq!(Sum::ZERO.minus(Sum([1, 0, 0, 0])), Sum([u64::MAX; 4]));
        assert_eq!(Sum([u64::MAX; 4]).plus(Sum([1, 0, 0, 0])), Sum::ZERO);
        // A row's end and its value's beginning are not the same.
        assert_ne!(Sum::of_row(&key, b"ab", b"c"), Sum::of_row(&key, b"a", b"bc"));
    }
}
