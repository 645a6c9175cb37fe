//! Taking OAEP padding off in constant time, for backends that give the bare RSA result.

use crate::{UnwrapFailed, mgf1::mgf1_xor};
use custody_types::WrapAlgorithm;
use sha2::Digest;
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};
use zeroize::Zeroizing;

/// Takes the padding of an algorithm off.
pub(crate) fn decode(
    algorithm: WrapAlgorithm,
    padded: &mut [u8],
) -> Result<Zeroizing<Vec<u8>>, UnwrapFailed> {
    match algorithm {
        WrapAlgorithm::RsaOaep => decode_with::<sha1::Sha1>(padded),
        _ => decode_with::<sha2::Sha256>(padded),
    }
}

/// EME-OAEP decoding with an empty label (RFC 8017 §7.1.2 step 3). Every check is made whatever the ones before
/// found, and only their conjunction is branched on.
fn decode_with<D: Digest>(padded: &mut [u8]) -> Result<Zeroizing<Vec<u8>>, UnwrapFailed> {
    let hash_len = <D as Digest>::output_size();
    if padded.len() < 2 * hash_len + 2 {
        return Err(UnwrapFailed);
    }
    let (first, masked) = padded.split_first_mut().ok_or(UnwrapFailed)?;
    let (seed, db) = masked.split_at_mut(hash_len);
    mgf1_xor::<D>(db, seed);
    mgf1_xor::<D>(seed, db);
    let (label_hash, rest) = db.split_at(hash_len);

    let mut good = first.ct_eq(&0) & label_hash.ct_eq(&D::digest(b""));
    let mut looking = Choice::from(1);
    let mut start = 0u32;
    for (index, byte) in (1u32..).zip(rest) {
        let one = byte.ct_eq(&1);
        start.conditional_assign(&index, looking & one);
        good &= !(looking & !one & !byte.ct_eq(&0));
        looking &= !one;
    }
    good &= !looking;
    if bool::from(good) {
        Ok(Zeroizing::new(rest.get(start as usize..).ok_or(UnwrapFailed)?.to_vec()))
    } else {
        Err(UnwrapFailed)
    }
}
