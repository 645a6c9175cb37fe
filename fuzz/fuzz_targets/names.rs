//! Resource names: what parses prints back as it was.
#![no_main]

use custody_types::{KeyName, KeyVersionName, PrincipalName, VaultName};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(name) = text.parse::<VaultName>() {
        assert_eq!(name.as_str(), text);
    }
    if let Ok(name) = text.parse::<KeyName>() {
        assert!(text.starts_with(name.vault().as_str()));
    }
    if let Ok(name) = text.parse::<KeyVersionName>() {
        assert!(text.starts_with(name.key().as_str()));
    }
    _ = text.parse::<PrincipalName>();
});
