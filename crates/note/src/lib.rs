//! Signed notes, <https://c2sp.org/signed-note>: a text, and a line for who says so.

use aws_lc_rs::{
    digest::{SHA256, digest},
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use std::fmt;
use zeroize::Zeroizing;

/// The signature type of Ed25519 in a key's id.
const ED25519_TYPE: u8 = 0x01;
/// What a signature line begins with.
const DASH: &str = "\u{2014} ";

/// A note or a key that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoteError {
    /// Not a text, an empty line and one signature.
    #[error("not a signed note with one signature")]
    Malformed,
    /// Signed by another key, or by a key of another name.
    #[error("the note is signed by another key than `{0}`")]
    OtherKey(String),
    /// The signature is not over this text.
    #[error("the signature does not hold: the text is not as it was signed")]
    Signature,
    /// A public key's text that does not parse.
    #[error("not the text of a public key (NAME+ID+BASE64, c2sp.org/signed-note)")]
    Key,
    /// A key's name that cannot stand in a note.
    #[error("a key's name has no spaces and no `+`, and is not empty")]
    Name,
}

/// The first four bytes of a hash over a key and its name: which key is meant.
#[must_use]
pub fn key_id(name: &str, kind: &[u8], public: &[u8]) -> [u8; 4] {
    let hash = digest(&SHA256, &[name.as_bytes(), b"\n", kind, public].concat());
    hash.as_ref().first_chunk().copied().unwrap_or_default()
}

/// A note of `text`, which ends with a new line.
#[must_use]
pub fn lay_out(text: &str, name: &str, id: [u8; 4], signature: &[u8]) -> String {
    format!("{text}\n{DASH}{name} {}\n", STANDARD.encode([&id, signature].concat()))
}

/// The text, the signer's name, the key's id and the signature of a note that has one signature.
///
/// # Errors
/// It has not.
pub fn take_apart(note: &str) -> Result<(&str, &str, [u8; 4], Vec<u8>), NoteError> {
    let split = note.rfind(&format!("\n\n{DASH}")).ok_or(NoteError::Malformed)?;
    let (text, signed) = note.split_at_checked(split + 1).ok_or(NoteError::Malformed)?;
    let line = signed.strip_prefix('\n').and_then(|s| s.strip_prefix(DASH)).ok_or(NoteError::Malformed)?;
    let line = line.strip_suffix('\n').ok_or(NoteError::Malformed)?;
    let (name, encoded) = line.split_once(' ').ok_or(NoteError::Malformed)?;
    // Decodes the one encoding of these bytes and no other.
    let bytes = STANDARD.decode(encoded).map_err(|_| NoteError::Malformed)?;
    let (id, signature) = bytes.split_first_chunk::<4>().ok_or(NoteError::Malformed)?;
    if text.chars().any(|c| c.is_ascii_control() && c != '\n') || name.is_empty() {
        return Err(NoteError::Malformed);
    }
    Ok((text, name, *id, signature.to_vec()))
}

/// An Ed25519 key that signs notes under a name.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    verifying: VerifyingKey,
}

impl SigningKey {
    /// A new seed, for [`SigningKey::from_seed`]; erased on drop.
    ///
    /// # Errors
    /// The random source failed.
    pub fn new_seed() -> Result<Zeroizing<[u8; 32]>, NoteError> {
        let mut seed = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(&mut *seed).map_err(|_| NoteError::Key)?;
        Ok(seed)
    }

    /// The key of a seed (RFC 8032).
    ///
    /// # Errors
    /// The name cannot stand in a note, or the seed has not 32 bytes.
    pub fn from_seed(name: &str, seed: &[u8]) -> Result<Self, NoteError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| NoteError::Key)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| NoteError::Key)?;
        let verifying = VerifyingKey::new(name, public)?;
        Ok(Self { pair, verifying })
    }

    /// A key in PKCS#8, under a name that may be made from its public half.
    ///
    /// # Errors
    /// As [`SigningKey::from_seed`].
    pub fn from_pkcs8(pkcs8: &[u8], name: impl FnOnce(&[u8; 32]) -> String) -> Result<Self, NoteError> {
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|_| NoteError::Key)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| NoteError::Key)?;
        let verifying = VerifyingKey::new(&name(&public), public)?;
        Ok(Self { pair, verifying })
    }

    /// The public half.
    #[must_use]
    pub fn verifying_key(&self) -> &VerifyingKey {
        &self.verifying
    }

    /// A note of `text`, which ends with a new line.
    #[must_use]
    pub fn sign(&self, text: &str) -> String {
        lay_out(text, &self.verifying.name, self.verifying.id(), self.pair.sign(text.as_bytes()).as_ref())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("name", &self.verifying.name).finish_non_exhaustive()
    }
}

/// The public half of a [`SigningKey`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyingKey {
    name: String,
    public: [u8; 32],
}

impl VerifyingKey {
    /// Of a name and a public key.
    ///
    /// # Errors
    /// The name cannot stand in a note.
    pub fn new(name: &str, public: [u8; 32]) -> Result<Self, NoteError> {
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '+') {
            return Err(NoteError::Name);
        }
        Ok(Self { name: name.to_owned(), public })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn id(&self) -> [u8; 4] {
        key_id(&self.name, &[ED25519_TYPE], &self.public)
    }

    /// The text of a note that this key alone has signed.
    ///
    /// # Errors
    /// See [`NoteError`].
    pub fn open<'a>(&self, note: &'a str) -> Result<&'a str, NoteError> {
        let (text, name, id, signature) = take_apart(note)?;
        if name != self.name || id != self.id() {
            return Err(NoteError::OtherKey(self.name.clone()));
        }
        let key = UnparsedPublicKey::new(&ED25519, self.public);
        key.verify(text.as_bytes(), &signature).map_err(|_| NoteError::Signature)?;
        Ok(text)
    }
}

impl fmt::Display for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = u32::from_be_bytes(self.id());
        let key = STANDARD.encode([&[ED25519_TYPE], self.public.as_slice()].concat());
        write!(f, "{}+{id:08x}+{key}", self.name)
    }
}

impl std::str::FromStr for VerifyingKey {
    type Err = NoteError;

    fn from_str(text: &str) -> Result<Self, NoteError> {
        let mut parts = text.trim().splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::Key);
        };
        let bytes = STANDARD.decode(key).map_err(|_| NoteError::Key)?;
        let [ED25519_TYPE, public @ ..] = bytes.as_slice() else { return Err(NoteError::Key) };
        let public = public.try_into().map_err(|_| NoteError::Key)?;
        let key = Self { name: name.to_owned(), public };
        let right = u32::from_str_radix(id, 16).is_ok_and(|id| id.to_be_bytes() == key.id());
        if right && id.len() == 8 { Ok(key) } else { Err(NoteError::Key) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of Go's `golang.org/x/mod/sumdb/note`, which the format comes from.
    const KEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    const NOTE: &str = "If you think cryptography is the answer to your problem,\n\
        then you don't know what your problem is.\n\
        \n\
        \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

    #[test]
    fn go_s_example_opens_and_is_written_alike() {
        let key: VerifyingKey = KEY.parse().unwrap();
        assert_eq!(key.to_string(), KEY);
        assert!(key.open(NOTE).unwrap().ends_with("what your problem is.\n"));
        let secret = STANDARD.decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz").unwrap();
        let signer = SigningKey::from_seed("PeterNeumann", secret.get(1..).unwrap()).unwrap();
        assert_eq!(signer.verifying_key(), &key);
        assert_eq!(signer.sign(key.open(NOTE).unwrap()), NOTE);
    }

    #[test]
    fn a_note_altered_in_any_byte_does_not_open() {
        let key: VerifyingKey = KEY.parse().unwrap();
        for at in 0..NOTE.len() {
            for bit in 0..8 {
                let mut bytes = NOTE.as_bytes().to_vec();
                *bytes.get_mut(at).unwrap() ^= 1 << bit;
                let Ok(altered) = String::from_utf8(bytes) else { continue };
                assert!(key.open(&altered).is_err(), "bit {bit} of byte {at}: {altered}");
            }
        }
        assert!(key.open(NOTE.trim_end()).is_err());
        assert!(key.open(&format!("{NOTE}{}", NOTE.lines().last().unwrap())).is_err());
    }

    #[test]
    fn another_key_is_told_apart() {
        let other = SigningKey::from_seed("PeterNeumann", &[7; 32]).unwrap();
        let error = other.verifying_key().open(NOTE).unwrap_err();
        assert_eq!(error, NoteError::OtherKey("PeterNeumann".into()));
        assert_eq!(SigningKey::from_seed("a b", &[7; 32]).unwrap_err(), NoteError::Name);
        assert_eq!(KEY.replace("c74f20a3", "c74f20a4").parse::<VerifyingKey>(), Err(NoteError::Key));
    }
}
