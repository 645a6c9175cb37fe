//! Imported private keys: PKCS#8 and PKCS#1, PEM and DER.
#![no_main]

use custody_kek::{Backend, PrivateKey};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    for backend in [Backend::AwsLc, Backend::RustCrypto] {
        _ = PrivateKey::import(input, backend);
    }
});
