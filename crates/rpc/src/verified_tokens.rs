//! Tokens that have been verified, until they end: a signature is checked once and not with every call.

use crate::token::VerifiedClaims;
use aws_lc_rs::digest::{SHA256, digest};
use custody_types::UnixMillis;
use parking_lot::RwLock;
use std::{collections::HashMap, fmt};

/// Most tokens remembered; beyond that, what has ended makes room, or everything does.
const TOKENS_MAX: usize = 8192;

type Fingerprint = [u8; 32];

/// Claims by the SHA-256 of the token: a token itself is kept nowhere.
#[derive(Default)]
pub(crate) struct VerifiedTokens(RwLock<HashMap<Fingerprint, VerifiedClaims>>);

fn fingerprint(token: &str) -> Fingerprint {
    let mut out = Fingerprint::default();
    out.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    out
}

impl VerifiedTokens {
    /// The claims of a token that was verified before and has not ended at `now`.
    pub(crate) fn get(&self, token: &str, now: UnixMillis) -> Option<VerifiedClaims> {
        let found = self.0.read().get(&fingerprint(token)).cloned();
        found.filter(|claims| now.as_secs() < claims.exp)
    }

    /// Remembers a token whose signature, issuer, audience and dates have just been found good.
    pub(crate) fn put(&self, token: &str, claims: &VerifiedClaims, now: UnixMillis) {
        let mut tokens = self.0.write();
        if tokens.len() >= TOKENS_MAX {
            tokens.retain(|_, claims| now.as_secs() < claims.exp);
            if tokens.len() >= TOKENS_MAX {
                tokens.clear();
            }
        }
        tokens.insert(fingerprint(token), claims.clone());
    }
}

impl fmt::Debug for VerifiedTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VerifiedTokens(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(exp: u64) -> VerifiedClaims {
        serde_json::from_value(
            serde_json::json!({ "sub": "principals/p", "duty": "auditor", "jti": "t", "exp": exp }),
        )
        .unwrap()
    }

    #[test]
    fn a_token_is_remembered_until_it_ends_and_no_longer() {
        let (tokens, at) = (VerifiedTokens::default(), UnixMillis::from_secs);
        tokens.put("a", &claims(100), at(10));
        assert!(tokens.get("a", at(99)).is_some());
        assert!(tokens.get("a", at(100)).is_none());
        assert!(tokens.get("b", at(10)).is_none());
    }

    #[test]
    fn the_memory_is_bounded() {
        let (tokens, at) = (VerifiedTokens::default(), UnixMillis::from_secs);
        for n in 0..3 * TOKENS_MAX {
            tokens.put(&n.to_string(), &claims(1000), at(1));
        }
        assert!(tokens.0.read().len() <= TOKENS_MAX);
    }
}
