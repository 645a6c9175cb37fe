//! Sealing of long streams in chunks: the form of backups.

use crate::keys::secret_key;
use crate::{Aead, CryptoProvider, KEY_LEN, Nonce, OpenError, Provider, RandomError, TAG_LEN, random};
use std::fmt;
use zeroize::Zeroizing;

/// Plain bytes in a full chunk.
pub const CHUNK_LEN: usize = 1 << 20;

secret_key!(
    /// The key of one stream, wrapped by a KEK beside it.
    StreamKey
);

/// Seals or opens one stream. Each chunk's tag covers the stream id, its index and whether it is the last, so
/// that chunks cannot be reordered, dropped, repeated, or cut from the end.
pub struct StreamSealer {
    aead: Box<dyn Aead>,
    id: [u8; 16],
    next: u64,
}

impl StreamKey {
    /// Starts sealing, or opening, the stream `id` from its first chunk.
    #[must_use]
    pub fn sealer(&self, provider: Provider, id: [u8; 16]) -> StreamSealer {
        StreamSealer { aead: provider.aead(&self.0), id, next: 0 }
    }
}

impl StreamSealer {
    fn aad(&mut self, last: bool) -> [u8; 32] {
        let mut aad = [0; 32];
        aad[..7].copy_from_slice(b"custody");
        aad[7] = 0x10 + u8::from(last);
        aad[8..24].copy_from_slice(&self.id);
        aad[24..].copy_from_slice(&self.next.to_le_bytes());
        self.next += 1;
        aad
    }

    /// Seals the next chunk into `out`: nonce, ciphertext, tag.
    ///
    /// # Errors
    /// The operating system's random source failed.
    pub fn seal(&mut self, plain: &[u8], last: bool, out: &mut Vec<u8>) -> Result<(), RandomError> {
        let mut nonce = Nonce::default();
        random(&mut nonce)?;
        let aad = self.aad(last);
        out.clear();
        out.extend_from_slice(&nonce);
        out.extend_from_slice(plain);
        let (_, body) = out.split_at_mut(12);
        let tag = self.aead.seal(&nonce, &aad, body);
        out.extend_from_slice(&tag);
        Ok(())
    }

    /// Opens the next chunk.
    ///
    /// # Errors
    /// It is not the next chunk of this stream, or not what was sealed.
    pub fn open(&mut self, sealed: &[u8], last: bool) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let aad = self.aad(last);
        let (nonce, rest) = sealed.split_first_chunk::<12>().ok_or(OpenError)?;
        let (body, tag) = rest.split_last_chunk::<TAG_LEN>().ok_or(OpenError)?;
        let mut plain = Zeroizing::new(vec![0; body.len()]);
        self.aead.open(nonce, &aad, body, tag, &mut plain)?;
        Ok(plain)
    }
}

impl fmt::Debug for StreamSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamSealer(..)")
    }
}
