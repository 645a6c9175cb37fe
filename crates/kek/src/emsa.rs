//! Encoding a digest for an RSA signature, where the bare private operation is done by itself.

use crate::mgf1::mgf1_xor;
use custody_envelope::{RandomError, random};
use custody_hsm::DIGEST_INFO;
use custody_types::SignatureAlgorithm;
use sha2::{Digest, Sha256, Sha384, Sha512};

/// A digest, as long as the algorithm asks, encoded in `len` bytes: those of a modulus whose uppermost bit is set, and of 2048
/// bits or more, so that every encoding fits. None for the algorithms of EC keys.
pub(crate) fn encode(
    algorithm: SignatureAlgorithm,
    digest: &[u8],
    len: usize,
) -> Result<Option<Vec<u8>>, RandomError> {
    use SignatureAlgorithm::*;
    let [sha256, sha384, sha512] = DIGEST_INFO;
    Ok(Some(match algorithm {
        Rs256 => pkcs1(&sha256, digest, len),
        Rs384 => pkcs1(&sha384, digest, len),
        Rs512 => pkcs1(&sha512, digest, len),
        Ps256 => pss::<Sha256>(digest, len)?,
        Ps384 => pss::<Sha384>(digest, len)?,
        Ps512 => pss::<Sha512>(digest, len)?,
        Es256 | Es256K | Es384 | Es512 => return Ok(None),
    }))
}

/// EMSA-PKCS1-v1_5 (RFC 8017 §9.2).
fn pkcs1(info: &[u8], digest: &[u8], len: usize) -> Vec<u8> {
    let padding = vec![0xff; len.saturating_sub(info.len() + digest.len() + 3)];
    [&[0, 1], padding.as_slice(), &[0], info, digest].concat()
}

/// EMSA-PSS with a salt as long as the digest (RFC 8017 §9.1.1).
fn pss<D: Digest>(digest: &[u8], len: usize) -> Result<Vec<u8>, RandomError> {
    let mut salt = vec![0; digest.len()];
    random(&mut salt)?;
    let hash = D::new().chain_update([0; 8]).chain_update(digest).chain_update(&salt).finalize();
    let zeros = vec![0; len.saturating_sub(2 * digest.len() + 2)];
    let mut encoded = [zeros.as_slice(), &[1], &salt].concat();
    mgf1_xor::<D>(&hash, &mut encoded);
    // The encoding has one bit less than the modulus.
    if let Some(first) = encoded.first_mut() {
        *first &= 0x7f;
    }
    encoded.extend_from_slice(&hash);
    encoded.push(0xbc);
    Ok(encoded)
}
