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
/// Signatures of a note.
const SIGNATURES_MAX: usize = 16;
/// The signature type of a witness (c2sp.org/tlog-cosignature).
const COSIGNATURE_TYPE: u8 = 0x04;

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

/// A line of a note that says who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature<'a> {
    /// The signer's name.
    pub name: &'a str,
    /// Which key.
    pub id: [u8; 4],
    /// What it signed with it, by the key's type.
    pub bytes: Vec<u8>,
}

/// The text of a note and its signatures, none of which is checked: at least one, at most 16.
///
/// # Errors
/// It is none.
pub fn take_apart(note: &str) -> Result<(&str, Vec<Signature<'_>>), NoteError> {
    let bad = || NoteError::Malformed;
    let split = note.rfind(&format!("\n\n{DASH}")).ok_or_else(bad)?;
    let (text, signed) = note.split_at_checked(split + 1).ok_or_else(bad)?;
    let lines = signed.strip_prefix('\n').and_then(|s| s.strip_suffix('\n')).ok_or_else(bad)?;
    let signature = |line| -> Option<Signature<'_>> {
        let (name, encoded) = str::strip_prefix(line, DASH)?.split_once(' ')?;
        // Decodes the one encoding of these bytes and no other.
        let bytes = STANDARD.decode(encoded).ok()?;
        let (id, bytes) = bytes.split_first_chunk::<4>()?;
        (!name.is_empty()).then(|| Signature { name, id: *id, bytes: bytes.to_vec() })
    };
    let signatures = lines.split('\n').map(signature).collect::<Option<Vec<_>>>().ok_or_else(bad)?;
    if text.chars().any(|c| c.is_ascii_control() && c != '\n') || signatures.len() > SIGNATURES_MAX {
        return Err(NoteError::Malformed);
    }
    Ok((text, signatures))
}

/// As [`take_apart`], of a note that has one signature.
///
/// # Errors
/// It has not.
pub fn take_apart_sole(note: &str) -> Result<(&str, Signature<'_>), NoteError> {
    let (text, mut signatures) = take_apart(note)?;
    match (signatures.pop(), signatures.is_empty()) {
        (Some(sole), true) => Ok((text, sole)),
        _ => Err(NoteError::Malformed),
    }
}

/// What a witness signs.
fn cosigned(text: &str, time: u64) -> String {
    format!("cosignature/v1\ntime {time}\n{text}")
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

    /// A checkpoint with this key's signature as a witness's added (c2sp.org/tlog-cosignature): that it has seen the log go on
    /// to there, at a time in seconds since 1970.
    ///
    /// # Errors
    /// It is no note.
    pub fn cosign(&self, note: &str, time: u64) -> Result<String, NoteError> {
        let (text, _) = take_apart(note)?;
        let signature = self.pair.sign(cosigned(text, time).as_bytes());
        let bytes = [&time.to_be_bytes(), signature.as_ref()].concat();
        let line = lay_out("", &self.verifying.name, self.verifying.cosigning_id(), &bytes);
        Ok(format!("{note}{}", line.trim_start_matches('\n')))
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
        let (text, sole) = take_apart_sole(note)?;
        self.check(text, std::slice::from_ref(&sole)).map(|()| text)
    }

    /// The text of a note that this key has signed, and others may have as well.
    ///
    /// # Errors
    /// See [`NoteError`].
    pub fn open_among<'a>(&self, note: &'a str) -> Result<&'a str, NoteError> {
        let (text, signatures) = take_apart(note)?;
        self.check(text, &signatures).map(|()| text)
    }

    fn check(&self, text: &str, signatures: &[Signature<'_>]) -> Result<(), NoteError> {
        let own = signatures.iter().find(|s| s.name == self.name && s.id == self.id());
        let own = own.ok_or_else(|| NoteError::OtherKey(self.name.clone()))?;
        self.verify(text.as_bytes(), &own.bytes)
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), NoteError> {
        let key = UnparsedPublicKey::new(&ED25519, self.public);
        key.verify(message, signature).map_err(|_| NoteError::Signature)
    }

    fn cosigning_id(&self) -> [u8; 4] {
        key_id(&self.name, &[COSIGNATURE_TYPE], &self.public)
    }

    /// The key as a witness's, as others take it.
    #[must_use]
    pub fn witness(&self) -> String {
        let id = u32::from_be_bytes(self.cosigning_id());
        let key = STANDARD.encode([&[COSIGNATURE_TYPE], self.public.as_slice()].concat());
        format!("{}+{id:08x}+{key}", self.name)
    }

    /// When this key, as a witness's, has cosigned a checkpoint (c2sp.org/tlog-cosignature): in seconds since 1970.
    ///
    /// # Errors
    /// See [`NoteError`].
    pub fn cosigned_at(&self, note: &str) -> Result<u64, NoteError> {
        let (text, signatures) = take_apart(note)?;
        let own = signatures.iter().find(|s| s.name == self.name && s.id == self.cosigning_id());
        let own = own.ok_or_else(|| NoteError::OtherKey(self.name.clone()))?;
        let (time, signature) = own.bytes.split_first_chunk::<8>().ok_or(NoteError::Malformed)?;
        let time = u64::from_be_bytes(*time);
        self.verify(cosigned(text, time).as_bytes(), signature)?;
        Ok(time)
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
    fn a_witness_signs_beside_the_log() {
        let log = SigningKey::from_seed("log", &[1; 32]).unwrap();
        let witness = SigningKey::from_seed("witness", &[2; 32]).unwrap();
        let note = log.sign("log\n3\nAAAA\n");
        let both = witness.cosign(&note, 1_790_000_000).unwrap();
        assert_eq!(both.lines().count(), note.lines().count() + 1);
        assert_eq!(witness.verifying_key().cosigned_at(&both), Ok(1_790_000_000));
        assert_eq!(log.verifying_key().open_among(&both).unwrap(), "log\n3\nAAAA\n");
        assert_eq!(log.verifying_key().open(&both), Err(NoteError::Malformed), "it is not the log's alone");
        let altered = both.replace("3", "4");
        assert!(witness.verifying_key().cosigned_at(&altered).is_err());
        assert!(log.verifying_key().cosigned_at(&both).is_err(), "a log's signature is no witness's");
        assert!(witness.verifying_key().open_among(&both).is_err(), "nor the other way round");
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
