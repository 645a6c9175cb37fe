//! Repository checks: `cargo xtask tidy|walls|licenses|metrics`.
#![expect(clippy::print_stdout, reason = "a tool for the terminal")]

mod licenses;
mod metrics;
mod tidy;
mod walls;

use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};

fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    match std::env::args().nth(1).as_deref() {
        Some("tidy") => report("tidy", tidy::check(&root)?),
        Some("walls") => report("walls", walls::check(&root)?),
        Some("licenses") => report("licenses", licenses::check(&root)?),
        Some("metrics") => {
            metrics::print(&root)?;
            Ok(())
        }
        _ => bail!("usage: cargo xtask tidy|walls|licenses|metrics"),
    }
}

fn report(what: &str, problems: Vec<String>) -> anyhow::Result<()> {
    for problem in &problems {
        println!("{problem}");
    }
    if problems.is_empty() {
        println!("{what}: in order");
        return Ok(());
    }
    bail!("{what}: {} problems", problems.len())
}

/// A TOML file of the repository.
fn read_toml(root: &Path, name: &str) -> anyhow::Result<toml::Value> {
    toml::from_str(&std::fs::read_to_string(root.join(name))?).context(name.to_owned())
}

/// Every file below `dir` with this extension, without generated and hidden ones.
fn files(dir: &Path, extension: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(files(&path, extension)?);
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
