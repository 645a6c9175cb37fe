//! Bearer tokens. The key is nobody's, so whatever is taken is a forgery.
#![no_main]

use futures_util::FutureExt as _;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|token: &str| {
    let jwks = include_str!("../nobodys.jwks.json");
    let verifier = custody_rpc::token::TokenVerifier::fixed("https://identity.custody.localhost", "custody-vault", jwks);
    let verified = verifier.verify(token).now_or_never();
    assert!(verified.is_some_and(|v| v.is_err()), "a forged token was taken");
});
