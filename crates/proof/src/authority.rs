//! Holders prove who they are by certificates, the same as in TLS.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use custody_note::{self as note, NoteError};
use custody_types::UnixMillis;
use rustls::{SignatureScheme, crypto::aws_lc_rs, sign::SigningKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, UnixTime, pem::PemObject as _};
use std::{fmt, sync::Arc, time::Duration};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::{extensions::GeneralName, prelude::FromDer as _, prelude::X509Certificate};

/// How a principal stands in a certificate: a URI among the subject's alternative names.
const URI_PREFIX: &str = "custody:";
/// A signature type without an assignment (c2sp.org/signed-note): 0xff and a name.
const TYPE: &[u8] = b"\xffcustody x509";

/// A certificate, or what was signed with its key, that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// Not PEM, DER or base64 as it should be.
    #[error("a certificate or a key is malformed")]
    Malformed,
    /// Not of this authority, or not good at that time.
    #[error("the certificate is not of the authority, or was not good at that time: {0}")]
    Untrusted(String),
    /// It names no principal, or more than one.
    #[error("the certificate names no principal")]
    Nameless,
    /// Not a signed note with a statement of this kind.
    #[error("not a statement that is signed with a certificate")]
    Note,
    /// Signed by another than the statement says.
    #[error("the statement is of `{0}`, who has not signed it")]
    Holder(String),
    /// The signature does not hold, or cannot be made.
    #[error("the signature does not hold: the statement is not as it was signed")]
    Signature,
}

impl From<NoteError> for CertificateError {
    fn from(_: NoteError) -> Self {
        Self::Note
    }
}

/// The principal that a verified certificate names, if it names exactly one.
#[must_use]
pub fn principal_of(certificate: &[u8]) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let mut found = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(URI_PREFIX),
        _ => None,
    });
    let first = found.next()?.to_owned();
    found.next().is_none().then_some(first)
}

/// The private key of a holder's certificate.
#[derive(Clone)]
pub struct HolderKey {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<dyn SigningKey>,
}

/// The schemes that a holder may sign with, best first.
const SCHEMES: [SignatureScheme; 4] = [
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::RSA_PSS_SHA256,
];

impl HolderKey {
    /// From the certificate and its private key, both PEM.
    ///
    /// # Errors
    /// They do not parse.
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let chain = CertificateDer::pem_slice_iter(certificates)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| CertificateError::Malformed)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| CertificateError::Malformed)?;
        let key = aws_lc_rs::sign::any_supported_type(&key).map_err(|_| CertificateError::Malformed)?;
        Ok(Self { chain, key })
    }

    /// The certificates in base64.
    pub(crate) fn certificates(&self) -> Vec<String> {
        self.chain.iter().map(|c| STANDARD.encode(c)).collect()
    }

    /// The principal that the certificate names.
    ///
    /// # Errors
    /// It names none.
    pub fn principal(&self) -> Result<String, CertificateError> {
        self.chain.first().and_then(|c| principal_of(c)).ok_or(CertificateError::Nameless)
    }

    /// A note of `text` by `name`.
    pub(crate) fn sign(&self, name: &str, text: &str) -> Result<String, CertificateError> {
        let own = self.chain.first().ok_or(CertificateError::Malformed)?;
        let signer = self.key.choose_scheme(&SCHEMES).ok_or(CertificateError::Signature)?;
        let signature = signer.sign(text.as_bytes()).map_err(|_| CertificateError::Signature)?;
        let scheme = u16::from(signer.scheme()).to_be_bytes();
        let id = note::key_id(name, TYPE, own);
        Ok(note::lay_out(text, name, id, &[scheme.as_slice(), &signature].concat()))
    }
}

impl fmt::Debug for HolderKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HolderKey(..)")
    }
}

/// Whom to believe that a certificate is a holder's.
#[derive(Clone, Debug)]
pub struct Authority(Vec<TrustAnchor<'static>>);

impl Authority {
    /// From its certificates, PEM.
    ///
    /// # Errors
    /// They do not parse, or there is none.
    pub fn from_pem(pem: &[u8]) -> Result<Self, CertificateError> {
        let bad = |_| CertificateError::Malformed;
        let mut anchors = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|_| CertificateError::Malformed)?;
            anchors.push(anchor_from_trusted_cert(&certificate).map_err(bad)?.to_owned());
        }
        if anchors.is_empty() { Err(CertificateError::Malformed) } else { Ok(Self(anchors)) }
    }

    fn chain(certificates: &[String]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
        let decode = |c: &String| STANDARD.decode(c).map(CertificateDer::from);
        certificates.iter().map(decode).collect::<Result<_, _>>().map_err(|_| CertificateError::Malformed)
    }

    /// The text of a note, and the principal whose certificate's key signed it. Whether the certificate is to be
    /// believed depends on when: [`Authority::check_time`].
    pub(crate) fn open<'a>(
        &self,
        note: &'a str,
        certificates: &[String],
    ) -> Result<(&'a str, String), CertificateError> {
        let (text, note::Signature { name, id, bytes: signed }) = note::take_apart_sole(note)?;
        let chain = Self::chain(certificates)?;
        let own = chain.first().ok_or(CertificateError::Malformed)?;
        let principal = principal_of(own).ok_or(CertificateError::Nameless)?;
        if name != principal || id != note::key_id(name, TYPE, own) {
            return Err(CertificateError::Holder(name.to_owned()));
        }
        let (scheme, signature) = signed.split_first_chunk::<2>().ok_or(CertificateError::Note)?;
        let scheme = SignatureScheme::from(u16::from_be_bytes(*scheme));
        let known = aws_lc_rs::default_provider().signature_verification_algorithms.mapping;
        let algorithms = known.iter().find(|(s, _)| *s == scheme && SCHEMES.contains(s));
        let (_, algorithms) = algorithms.ok_or(CertificateError::Signature)?;
        let certificate = EndEntityCert::try_from(own).map_err(|_| CertificateError::Malformed)?;
        let holds = |a: &&dyn rustls_pki_types::SignatureVerificationAlgorithm| {
            certificate.verify_signature(*a, text.as_bytes(), signature).is_ok()
        };
        if algorithms.iter().any(holds) { Ok((text, principal)) } else { Err(CertificateError::Signature) }
    }

    /// Whether the authority vouched for the first of the certificates at a time.
    pub(crate) fn check_time(
        &self,
        certificates: &[String],
        time: UnixMillis,
    ) -> Result<(), CertificateError> {
        let chain = Self::chain(certificates)?;
        let (own, between) = chain.split_first().ok_or(CertificateError::Malformed)?;
        let certificate = EndEntityCert::try_from(own).map_err(|_| CertificateError::Malformed)?;
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
        let time = UnixTime::since_unix_epoch(Duration::from_secs(time.as_secs()));
        certificate
            .verify_for_usage(algorithms, &self.0, between, time, KeyUsage::client_auth(), None, None)
            .map(drop)
            .map_err(|e| CertificateError::Untrusted(e.to_string()))
    }
}
