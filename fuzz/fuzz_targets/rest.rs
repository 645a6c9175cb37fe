//! Requests to the REST face: a line with method and target, then the body.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut parts = input.splitn(2, |b| *b == b'\n');
    let line = std::str::from_utf8(parts.next().unwrap_or_default()).unwrap_or_default();
    if let Some((method, target)) = line.split_once(' ') {
        _ = custody_vault_rest::judge(method, target, parts.next().unwrap_or_default());
    }
});
