//! Sealing blocks: the place and the sequence number are authenticated with the bytes.

use crate::{Aead, Nonce, OpenError, Tag};
use std::fmt;

/// Where a block lives and which write of it this is. All of it goes into the tag, so that a block moved to
/// another place, extent, volume, or passed off as a later write, does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockAddress {
    /// The volume's random id.
    pub volume: [u8; 16],
    /// The extent in the volume.
    pub extent: u32,
    /// The block in the extent.
    pub block: u16,
    /// The data key's generation in the extent.
    pub generation: u16,
    /// Counts the writes of the extent.
    pub sequence: u64,
    /// Whether this marks a block as zeros, with no bytes stored.
    pub hole: bool,
}

impl BlockAddress {
    /// The associated data; its layout is part of the format (docs/formats/volume.md).
    #[must_use]
    pub fn aad(&self) -> [u8; 40] {
        let mut aad = [0; 40];
        aad[..7].copy_from_slice(b"custody");
        aad[7] = 1 + u8::from(self.hole);
        aad[8..24].copy_from_slice(&self.volume);
        aad[24..28].copy_from_slice(&self.extent.to_le_bytes());
        aad[28..30].copy_from_slice(&self.block.to_le_bytes());
        aad[30..32].copy_from_slice(&self.generation.to_le_bytes());
        aad[32..].copy_from_slice(&self.sequence.to_le_bytes());
        aad
    }
}

/// Seals and opens the blocks of one extent under one data key.
pub struct BlockSealer(Box<dyn Aead>);

impl BlockSealer {
    pub(crate) fn new(aead: Box<dyn Aead>) -> Self {
        Self(aead)
    }

    /// Seals a block in place. `nonce` comes from a [`crate::NonceSource`].
    pub fn seal(&self, address: &BlockAddress, nonce: &Nonce, block: &mut [u8]) -> Tag {
        self.0.seal(nonce, &address.aad(), block)
    }

    /// Opens a block into `out`, which has its length.
    ///
    /// # Errors
    /// The bytes were not sealed for this address; `out` holds zeros.
    pub fn open(
        &self,
        address: &BlockAddress,
        nonce: &Nonce,
        sealed: &[u8],
        tag: &Tag,
        out: &mut [u8],
    ) -> Result<(), OpenError> {
        self.0.open(nonce, &address.aad(), sealed, tag, out)
    }
}

impl fmt::Debug for BlockSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlockSealer(..)")
    }
}
