//! The licences and sources that `deny.toml` allows, checked against what is built here.

use anyhow::Context as _;
use std::{collections::BTreeSet, path::Path, process::Command};
use toml::Value;

/// Each crate with a licence that is not allowed, or from elsewhere.
pub(crate) fn check(root: &Path) -> anyhow::Result<Vec<String>> {
    let rules = crate::read_toml(root, "deny.toml")?;
    let allowed = rules.get("licenses").and_then(|l| l.get("allow")).and_then(Value::as_array);
    let allowed: BTreeSet<&str> =
        allowed.context("deny.toml allows no licences")?.iter().filter_map(Value::as_str).collect();
    let mut problems = Vec::new();
    let lock = crate::read_toml(root, "Cargo.lock")?;
    let packages = lock.get("package").and_then(Value::as_array).context("Cargo.lock has no packages")?;
    // The workspace's own have no source; all others come from one registry, and nothing from a repository.
    let sources: BTreeSet<&str> =
        packages.iter().filter_map(|p| p.get("source").and_then(Value::as_str)).collect();
    if sources.len() != 1 || sources.iter().any(|s| !s.starts_with("registry+")) {
        problems.push(format!("crates come from elsewhere than one registry: {sources:?}"));
    }
    for (name, licence) in licences(root)? {
        if !Expression::holds(&licence, &allowed) {
            problems.push(format!("`{name}` is under `{licence}`, which deny.toml does not allow"));
        }
    }
    Ok(problems)
}

/// Name and licence of every crate that is built on this platform: those are at hand, others need the network.
fn licences(root: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let version = Command::new("rustc").arg("-vV").output()?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let host = version.lines().find_map(|l| l.strip_prefix("host: ")).context("rustc tells no host")?;
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", host])
        .current_dir(root)
        .output()?;
    anyhow::ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata.get("packages").and_then(|p| p.as_array()).context("no packages")?;
    anyhow::ensure!(packages.len() > 100, "cargo metadata tells of {} crates only", packages.len());
    let text = |p: &serde_json::Value, field: &str| {
        p.get(field).and_then(|v| v.as_str()).unwrap_or("no licence").to_owned()
    };
    Ok(packages.iter().map(|p| (text(p, "name"), text(p, "license"))).collect())
}

/// An SPDX expression, read from left to right: OR over AND over names and parentheses.
struct Expression<'a> {
    tokens: std::iter::Peekable<std::vec::IntoIter<String>>,
    allowed: &'a BTreeSet<&'a str>,
}

impl Expression<'_> {
    fn holds(text: &str, allowed: &BTreeSet<&str>) -> bool {
        // `MIT/Apache-2.0` is how OR was written once.
        let spaced = text.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
        let tokens: Vec<String> = spaced.split_whitespace().map(str::to_owned).collect();
        let mut expression = Expression { tokens: tokens.into_iter().peekable(), allowed };
        expression.any() && expression.tokens.next().is_none()
    }

    fn takes(&mut self, word: &str) -> bool {
        self.tokens.next_if(|t| t == word).is_some()
    }

    fn any(&mut self) -> bool {
        let mut holds = self.all();
        while self.takes("OR") {
            holds |= self.all();
        }
        holds
    }

    fn all(&mut self) -> bool {
        let mut holds = self.one();
        while self.takes("AND") {
            holds &= self.one();
        }
        holds
    }

    fn one(&mut self) -> bool {
        if self.takes("(") {
            let holds = self.any();
            return self.takes(")") && holds;
        }
        let mut name = self.tokens.next().unwrap_or_default();
        if self.takes("WITH") {
            name = format!("{name} WITH {}", self.tokens.next().unwrap_or_default());
        }
        self.allowed.contains(name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_read_as_spdx_means_them() {
        let allowed: BTreeSet<&str> = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"].into();
        for good in [
            "MIT",
            "MIT OR GPL-3.0",
            "GPL-3.0/MIT",
            "MIT AND Apache-2.0",
            "(GPL-3.0 OR MIT) AND Apache-2.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-3.0",
        ] {
            assert!(Expression::holds(good, &allowed), "{good}");
        }
        for bad in
            ["", "GPL-3.0", "MIT AND GPL-3.0", "MIT WITH GCC-exception", "(MIT", "MIT MIT", "no licence"]
        {
            assert!(!Expression::holds(bad, &allowed), "{bad}");
        }
    }
}
