//! The mask of RSA's paddings.

use sha2::Digest;

/// MGF1 (RFC 8017 §B.2.1), XORed onto `target`.
pub(crate) fn mgf1_xor<D: Digest>(seed: &[u8], target: &mut [u8]) {
    let len = <D as Digest>::output_size();
    for (counter, chunk) in (0u32..).zip(target.chunks_mut(len)) {
        let mask = D::new().chain_update(seed).chain_update(counter.to_be_bytes()).finalize();
        chunk.iter_mut().zip(mask).for_each(|(t, m)| *t ^= m);
    }
}
