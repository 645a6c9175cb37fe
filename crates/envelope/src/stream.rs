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

/// Seals or opens the chunks of one stream, in any order. Each chunk's tag covers the stream id, its index and
/// whether it is the last, so that chunks cannot be reordered, dropped, repeated, or cut from the end.
pub struct StreamSealer {
    aead: Box<dyn Aead>,
    id: [u8; 16],
}

/// Bytes that a sealed chunk has before its ciphertext: the nonce.
pub const CHUNK_HEAD_LEN: usize = 12;
/// Bytes that a sealed chunk is longer than its plain bytes.
pub const CHUNK_OVERHEAD_LEN: usize = CHUNK_HEAD_LEN + TAG_LEN;

impl StreamKey {
    /// For the stream `id`.
    #[must_use]
    pub fn sealer(&self, provider: Provider, id: [u8; 16]) -> StreamSealer {
        StreamSealer { aead: provider.aead(&self.0), id }
    }
}

impl StreamSealer {
    fn aad(&self, index: u64, last: bool) -> [u8; 32] {
        let mut aad = [0; 32];
        aad[..7].copy_from_slice(b"custody");
        aad[7] = 0x10 + u8::from(last);
        aad[8..24].copy_from_slice(&self.id);
        aad[24..].copy_from_slice(&index.to_le_bytes());
        aad
    }

    /// Seals a chunk in place: `chunk` has [`CHUNK_HEAD_LEN`] bytes of any content and then the plain bytes; it has
    /// nonce, ciphertext and tag afterwards.
    ///
    /// # Errors
    /// The operating system's random source failed.
    pub fn seal(&self, index: u64, last: bool, chunk: &mut Vec<u8>) -> Result<(), RandomError> {
        let mut nonce = Nonce::default();
        random(&mut nonce)?;
        let (head, body) = chunk.split_at_mut(CHUNK_HEAD_LEN);
        head.copy_from_slice(&nonce);
        let tag = self.aead.seal(&nonce, &self.aad(index, last), body);
        chunk.extend_from_slice(&tag);
        Ok(())
    }

    /// Opens a chunk into `plain`, whose earlier bytes are lost.
    ///
    /// # Errors
    /// It is not this chunk of this stream, or not what was sealed; `plain` is empty.
    pub fn open(
        &self,
        index: u64,
        last: bool,
        sealed: &[u8],
        plain: &mut Zeroizing<Vec<u8>>,
    ) -> Result<(), OpenError> {
        plain.clear();
        let (nonce, rest) = sealed.split_first_chunk::<CHUNK_HEAD_LEN>().ok_or(OpenError)?;
        let (body, tag) = rest.split_last_chunk::<TAG_LEN>().ok_or(OpenError)?;
        plain.resize(body.len(), 0);
        let opened = self.aead.open(nonce, &self.aad(index, last), body, tag, plain);
        if opened.is_err() {
            plain.clear();
        }
        opened
    }
}

impl fmt::Debug for StreamSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamSealer(..)")
    }
}
