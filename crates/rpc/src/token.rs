//! Verifying tokens by the issuer's JWKS.

use crate::{channel::Endpoint, status::status, verified_tokens::VerifiedTokens};
use custody_proto::identity::identity_client::IdentityClient;
use custody_types::{Clock as _, Duty, SystemClock};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};
use parking_lot::RwLock;
use serde::Deserialize;
use std::{
    collections::HashMap,
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};
use tonic::Status;

/// What is read of a token.
#[derive(Clone, Debug, Deserialize)]
pub struct VerifiedClaims {
    /// The principal or managed identity.
    pub sub: String,
    /// Its duty.
    pub duty: Duty,
    /// The token's id.
    pub jti: String,
    /// When it ends, in seconds since 1970.
    pub(crate) exp: u64,
    /// When it was issued, in seconds since 1970.
    #[serde(default)]
    iat: u64,
    /// How it proved itself (RFC 8176).
    #[serde(default)]
    amr: Vec<String>,
}

impl VerifiedClaims {
    /// Whether it proved itself by the private key of a certificate.
    #[must_use]
    pub fn by_certificate(&self) -> bool {
        self.amr.iter().any(|method| method == "swk")
    }
}

/// An unknown key id makes the verifier ask the issuer again, but not more often than this.
const REFRESH_PAUSE: Duration = Duration::from_secs(1);
/// Seconds that clocks may differ.
const LEEWAY_S: u64 = 5;

enum Source {
    Remote(Endpoint),
    Fixed,
}

struct Keys {
    by_id: HashMap<String, DecodingKey>,
    asked: Option<Instant>,
}

/// Verifies tokens for one audience.
pub struct TokenVerifier {
    issuer: String,
    audience: &'static str,
    source: Source,
    keys: RwLock<Keys>,
    verified: VerifiedTokens,
    /// Milliseconds that a token may be old, whatever it says; 0 for no bound.
    age_max_ms: AtomicU64,
}

impl TokenVerifier {
    /// Asks the identity service for its keys, as needed.
    #[must_use]
    pub fn remote(issuer: &str, audience: &'static str, identity: Endpoint) -> Self {
        Self {
            issuer: issuer.to_owned(),
            audience,
            source: Source::Remote(identity),
            keys: RwLock::new(Keys { by_id: HashMap::new(), asked: None }),
            verified: VerifiedTokens::default(),
            age_max_ms: AtomicU64::new(0),
        }
    }

    /// With keys that are at hand: for the issuer itself.
    #[must_use]
    pub fn fixed(issuer: &str, audience: &'static str, jwks: &str) -> Self {
        let keys = Keys { by_id: parse(jwks), asked: None };
        let verified = VerifiedTokens::default();
        let (source, age_max_ms) = (Source::Fixed, AtomicU64::new(0));
        Self { issuer: issuer.to_owned(), audience, source, keys: RwLock::new(keys), verified, age_max_ms }
    }

    fn rejected(why: &str) -> Status {
        status("UNAUTHENTICATED", "INVALID_TOKEN", &format!("the bearer token is not valid: {why}"), None)
    }

    fn expired() -> Status {
        status("UNAUTHENTICATED", "TOKEN_EXPIRED", "the bearer token has expired; get a new one", None)
    }

    /// Verifies signature, issuer, audience and times.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` for a bad token; `UNAVAILABLE` where the issuer's keys cannot be had.
    pub async fn verify(&self, token: &str) -> Result<VerifiedClaims, Status> {
        if let Some(claims) = self.verified.get(token, SystemClock.now()) {
            return self.young(claims);
        }
        let claims = self.verify_signature(token).await?;
        self.verified.put(token, &claims, SystemClock.now());
        self.young(claims)
    }

    /// Takes no token that is older than this, whatever it says itself; none for no bound.
    pub fn limit_age(&self, age_max: Option<Duration>) {
        let ms = age_max.map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        self.age_max_ms.store(ms, Ordering::Relaxed);
    }

    fn young(&self, claims: VerifiedClaims) -> Result<VerifiedClaims, Status> {
        let age_max_ms = self.age_max_ms.load(Ordering::Relaxed);
        let age_ms = SystemClock.now().as_millis().saturating_sub(claims.iat * 1000);
        if age_max_ms > 0 && age_ms > age_max_ms {
            return Err(Self::expired());
        }
        Ok(claims)
    }

    async fn verify_signature(&self, token: &str) -> Result<VerifiedClaims, Status> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| Self::rejected("it is not a JWT"))?;
        if header.alg != Algorithm::ES256 {
            return Err(Self::rejected("its algorithm is not ES256"));
        }
        let kid = header.kid.ok_or_else(|| Self::rejected("it names no key"))?;
        if let Some(done) = self.check(&kid, token) {
            return done;
        }
        self.refresh().await?;
        self.check(&kid, token).unwrap_or_else(|| Err(Self::rejected("its key is not the issuer's")))
    }

    fn check(&self, kid: &str, token: &str) -> Option<Result<VerifiedClaims, Status>> {
        let keys = self.keys.read();
        let key = keys.by_id.get(kid)?;
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[self.audience]);
        validation.set_required_spec_claims(&["iss", "sub", "aud", "exp", "nbf"]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY_S;
        let decoded = jsonwebtoken::decode::<VerifiedClaims>(token, key, &validation);
        Some(decoded.map(|d| d.claims).map_err(|e| {
            use jsonwebtoken::errors::ErrorKind;
            Self::rejected(match e.kind() {
                ErrorKind::ExpiredSignature => return Self::expired(),
                ErrorKind::ImmatureSignature => "it is not valid yet",
                ErrorKind::InvalidAudience => "it is for another audience",
                ErrorKind::InvalidIssuer => "it is of another issuer",
                ErrorKind::InvalidSignature => "its signature does not verify",
                _ => "it is malformed",
            })
        }))
    }

    async fn refresh(&self) -> Result<(), Status> {
        let Source::Remote(endpoint) = &self.source else { return Ok(()) };
        {
            let mut keys = self.keys.write();
            if !keys.by_id.is_empty() && keys.asked.is_some_and(|t| t.elapsed() < REFRESH_PAUSE) {
                return Ok(());
            }
            keys.asked = Some(Instant::now());
        }
        let unavailable = |_| {
            status(
                "UNAVAILABLE",
                "IDENTITY_UNAVAILABLE",
                "the identity service cannot be asked for its keys",
                None,
            )
        };
        let mut client = IdentityClient::new(endpoint.channel());
        let jwks = client.get_jwks(()).await.map_err(unavailable)?.into_inner().json;
        self.keys.write().by_id = parse(&jwks);
        Ok(())
    }
}

fn parse(jwks: &str) -> HashMap<String, DecodingKey> {
    let Ok(set) = serde_json::from_str::<JwkSet>(jwks) else { return HashMap::new() };
    set.keys
        .iter()
        .filter_map(|jwk| Some((jwk.common.key_id.clone()?, DecodingKey::from_jwk(jwk).ok()?)))
        .collect()
}

impl fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenVerifier").field("audience", &self.audience).finish_non_exhaustive()
    }
}
