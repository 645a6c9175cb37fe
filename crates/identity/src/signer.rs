//! Signing tokens: ES256 JWTs (RFC 7519, RFC 7518 §3.4), verified by JWKS (RFC 7517).

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use custody_types::{Duty, UnixMillis};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::Duration,
};

/// The audiences that tokens are issued for, each the name of a service.
pub const AUDIENCES: [&str; 5] =
    ["custody-control", "custody-database", "custody-identity", "custody-node", "custody-vault"];

/// How a principal proved itself (RFC 8176 §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proof {
    /// By the private key of a certificate.
    #[serde(rename = "swk")]
    Certificate,
    /// By a secret.
    #[serde(rename = "pwd")]
    Secret,
}

/// Whom a token is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    /// A principal or a managed identity.
    pub(crate) name: &'a str,
    pub(crate) duty: Duty,
    pub(crate) proof: Proof,
    /// The workload that acts, where `name` is a managed identity.
    pub(crate) actor: Option<&'a str>,
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Issuer.
    pub iss: String,
    /// The principal or managed identity.
    pub sub: String,
    /// The one service it is for.
    pub aud: String,
    /// The one duty of the principal.
    pub duty: Duty,
    /// Issued at, seconds.
    pub iat: u64,
    /// Not before, seconds.
    pub nbf: u64,
    /// Expiry, seconds.
    pub exp: u64,
    /// The token's id.
    pub jti: String,
    /// How the principal proved itself.
    pub amr: [Proof; 1],
    /// The workload that acts, where `sub` is a managed identity (RFC 8693 §4.1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub act: Option<String>,
}

/// A token. Its text does not print.
pub struct IssuedToken {
    /// The JWT.
    pub text: String,
    /// When it ends.
    pub expire_time: UnixMillis,
    /// Its id.
    pub id: String,
}

impl fmt::Debug for IssuedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IssuedToken({})", self.id)
    }
}

/// The signing key cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignerError {
    /// Not a P-256 key in PKCS#8.
    #[error("`signing.key` is not a P-256 private key in PKCS#8")]
    Malformed,
    /// The file system failed.
    #[error("the signing key's file failed")]
    Io(#[from] io::Error),
}

/// Signs tokens with one key.
pub struct Signer {
    key: EncodingKey,
    kid: String,
    jwks: String,
    issuer: String,
    lifetime: Duration,
}

impl Signer {
    /// Loads the key in `dir`, or makes it.
    ///
    /// # Errors
    /// See [`SignerError`].
    pub fn open(dir: &Path, issuer: &str, lifetime: Duration) -> Result<Self, SignerError> {
        let path = dir.join("signing.key");
        let pkcs8 = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let made =
                    EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
                        .map_err(|_| SignerError::Malformed)?;
                let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
                file.write_all(made.as_ref())?;
                file.sync_all()?;
                made.as_ref().to_vec()
            }
            Err(e) => return Err(e.into()),
        };
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8)
            .map_err(|_| SignerError::Malformed)?;
        let point = pair.public_key().as_ref();
        let (x, y) = point.get(1..33).zip(point.get(33..65)).ok_or(SignerError::Malformed)?;
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        // RFC 7638: the thumbprint of the required members names the key.
        let thumb = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        let kid =
            URL_SAFE_NO_PAD.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, thumb.as_bytes()));
        let jwks = format!(
            r#"{{"keys":[{{"kty":"EC","crv":"P-256","alg":"ES256","use":"sig","kid":"{kid}","x":"{x}","y":"{y}"}}]}}"#
        );
        Ok(Self { key: EncodingKey::from_ec_der(&pkcs8), kid, jwks, issuer: issuer.to_owned(), lifetime })
    }

    /// The public half, as a JWK set.
    #[must_use]
    pub fn jwks(&self) -> &str {
        &self.jwks
    }

    /// Signs a token that begins now.
    pub(crate) fn sign(
        &self,
        subject: Subject<'_>,
        audience: &str,
        now: UnixMillis,
        id: String,
    ) -> Option<IssuedToken> {
        let expire_time = now.plus(self.lifetime);
        let claims = Claims {
            iss: self.issuer.clone(),
            sub: subject.name.to_owned(),
            aud: audience.to_owned(),
            duty: subject.duty,
            iat: now.as_secs(),
            nbf: now.as_secs(),
            exp: expire_time.as_secs(),
            jti: id.clone(),
            amr: [subject.proof],
            act: subject.actor.map(str::to_owned),
        };
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(Algorithm::ES256) };
        let text = jsonwebtoken::encode(&header, &claims, &self.key).ok()?;
        Some(IssuedToken { text, expire_time, id })
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("kid", &self.kid).finish_non_exhaustive()
    }
}
