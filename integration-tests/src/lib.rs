//! Integration tests live in `tests/`, one file per promise. Here is what several of them need that is not a deployment's.

use std::path::{Path, PathBuf};

/// A directory for PYTHONPATH, with which names below `localhost` are resolved whatever the system does.
pub const NAMES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/cli/src/demo/names");

/// The Python that has the clients which the tests run (`sdk/python/requirements.txt`).
///
/// # Panics
/// It is not installed.
#[must_use]
pub fn python() -> PathBuf {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/sdk/python/bin/python");
    assert!(python.exists(), "`{}` is missing; scripts/test installs it", python.display());
    python
}
