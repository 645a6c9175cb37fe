//! The key hierarchy below the KEK: a volume key, what is derived from it, and one data key an extent.

use crate::{
    Aead, BlockSealer, CryptoProvider, KEY_LEN, Mac, Nonce, OpenError, Provider, RandomError, TAG_LEN, Tag,
    random,
};
use std::fmt;
use zeroize::Zeroizing;

macro_rules! secret_key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        pub struct $name(Box<Zeroizing<[u8; KEY_LEN]>>);

        impl $name {
            /// A new key from the operating system's random source.
            ///
            /// # Errors
            /// The source failed.
            pub fn generate() -> Result<Self, RandomError> {
                let mut key = Box::new(Zeroizing::new([0; KEY_LEN]));
                random(&mut key[..])?;
                Ok(Self(key))
            }

            /// Takes a key that a vault unwrapped. The caller's copy stays the caller's to erase.
            ///
            /// # Errors
            /// It has not 32 bytes.
            pub fn from_bytes(bytes: &[u8]) -> Result<Self, OpenError> {
                if bytes.len() != KEY_LEN {
                    return Err(OpenError);
                }
                let mut key = Box::new(Zeroizing::new([0; KEY_LEN]));
                key.copy_from_slice(bytes);
                Ok(Self(key))
            }

            /// The key bytes, for one purpose: to be sent to a vault and wrapped there.
            #[must_use]
            pub fn expose_to_wrap(&self) -> &[u8; KEY_LEN] {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    };
}
pub(crate) use secret_key;

secret_key!(
    /// A volume's AES-256 key: wrapped by the KEK on disk, plain only in memory and only while its lease runs.
    VolumeKey
);

/// What is derived from a volume key. Dropping it erases the key schedules.
pub struct VolumeKeys {
    provider: Provider,
    dek_wrap: Box<dyn Aead>,
    header_mac: Box<dyn Mac>,
    entry_mac: Box<dyn Mac>,
}

impl VolumeKey {
    /// Derives the keys that protect the volume's own structures (HKDF-SHA-256, one label each).
    #[must_use]
    pub fn derive(&self, provider: Provider) -> VolumeKeys {
        let sub = |info: &[u8]| provider.derive(&self.0, info);
        VolumeKeys {
            provider,
            dek_wrap: provider.aead(&sub(b"custody volume v1 dek wrap")),
            header_mac: provider.mac(&sub(b"custody volume v1 header mac")),
            entry_mac: provider.mac(&sub(b"custody volume v1 entry mac")),
        }
    }
}

/// Which data key: the extent it belongs to and its generation there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DekAddress {
    /// The volume's random id.
    pub volume: [u8; 16],
    /// The extent's index in the volume.
    pub extent: u32,
    /// Counts the extent's data keys from 1.
    pub generation: u16,
}

impl DekAddress {
    fn aad(&self) -> [u8; 32] {
        let mut aad = [0; 32];
        aad[..10].copy_from_slice(b"custodyDEK");
        aad[10..26].copy_from_slice(&self.volume);
        aad[26..30].copy_from_slice(&self.extent.to_le_bytes());
        aad[30..].copy_from_slice(&self.generation.to_le_bytes());
        aad
    }
}

/// A data key wrapped by its volume's key: safe to store.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct WrappedDek([u8; WrappedDek::LEN]);

impl WrappedDek {
    /// Nonce, ciphertext, tag.
    pub const LEN: usize = 12 + KEY_LEN + TAG_LEN;

    /// From its stored form. Nothing is checked until it is unwrapped.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The stored form.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl fmt::Debug for WrappedDek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WrappedDek(..)")
    }
}

/// A data key: AES-256, one an extent and generation.
pub struct Dek(Box<Zeroizing<[u8; KEY_LEN]>>);

impl Dek {
    /// A new data key.
    ///
    /// # Errors
    /// The operating system's random source failed.
    pub fn generate() -> Result<Self, RandomError> {
        let mut key = Box::new(Zeroizing::new([0; KEY_LEN]));
        random(&mut key[..])?;
        Ok(Self(key))
    }
}

impl fmt::Debug for Dek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dek(..)")
    }
}

impl VolumeKeys {
    /// Wraps a data key for its place.
    ///
    /// # Errors
    /// The operating system's random source failed.
    pub fn wrap_dek(&self, address: DekAddress, dek: &Dek) -> Result<WrappedDek, RandomError> {
        let mut nonce = Nonce::default();
        random(&mut nonce)?;
        let mut body = Zeroizing::new(**dek.0);
        let tag = self.dek_wrap.seal(&nonce, &address.aad(), &mut body[..]);
        let mut out = [0; WrappedDek::LEN];
        out[..12].copy_from_slice(&nonce);
        out[12..44].copy_from_slice(&body[..]);
        out[44..].copy_from_slice(&tag);
        Ok(WrappedDek(out))
    }

    /// Opens a data key and makes its sealer; the key bytes are gone afterwards, the schedule stays in the sealer.
    ///
    /// # Errors
    /// It was not wrapped by this volume for this place.
    pub fn unwrap_dek(&self, address: DekAddress, wrapped: &WrappedDek) -> Result<BlockSealer, OpenError> {
        let (nonce, rest) = wrapped.0.split_first_chunk::<12>().ok_or(OpenError)?;
        let (body, tag) = rest.split_last_chunk::<TAG_LEN>().ok_or(OpenError)?;
        let tag: &Tag = tag;
        let mut key = Zeroizing::new([0; KEY_LEN]);
        self.dek_wrap.open(nonce, &address.aad(), body, tag, &mut key[..])?;
        Ok(BlockSealer::new(self.provider.aead(&key)))
    }

    /// Authenticates an extent header.
    #[must_use]
    pub fn header_tag(&self, header: &[u8]) -> [u8; 32] {
        self.header_mac.tag(&[header])
    }

    /// The pseudo-random value of one block entry. A header stores the XOR of those of its live entries, so that
    /// an entry removed, altered or replayed shows. The key is of this volume alone, so that what is computed over
    /// fits into one block of SHA-256.
    #[must_use]
    pub fn entry_value(&self, extent: u32, entry: &[u8]) -> u128 {
        let tag = self.entry_mac.tag(&[&extent.to_le_bytes(), entry]);
        let mut half = [0; 16];
        half.copy_from_slice(tag.first_chunk::<16>().unwrap_or(&[0; 16]));
        u128::from_le_bytes(half)
    }
}

impl fmt::Debug for VolumeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VolumeKeys(..)")
    }
}
