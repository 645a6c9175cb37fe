//! Heads of requests to the REST face, a header a line.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|head: &str| {
    _ = custody_vault_rest::judge_head(head);
});
