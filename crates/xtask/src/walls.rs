//! The walls of `deny.toml`, checked against the dependency graph of `Cargo.lock`: without the network, and without a
//! crate that only another platform needs. The lock file has every edge, optional and development ones included, and
//! every build here runs with `--locked`, so it is true.

use std::path::Path;
use toml::Value;

/// Each edge that goes through a wall.
pub(crate) fn check(root: &Path) -> anyhow::Result<Vec<String>> {
    let (rules, lock) = (crate::read_toml(root, "deny.toml")?, crate::read_toml(root, "Cargo.lock")?);
    let denied = list(rules.get("bans").and_then(|b| b.get("deny")));
    anyhow::ensure!(denied.len() > 10, "deny.toml has lost its walls");
    let packages = list(lock.get("package"));
    anyhow::ensure!(packages.len() > 100, "Cargo.lock is not what it was");
    let mut problems = Vec::new();
    for rule in &denied {
        let krate = text(rule.get("crate"));
        let allowed: Vec<String> = list(rule.get("wrappers")).iter().map(|w| text(Some(w))).collect();
        if !packages.iter().any(|p| text(p.get("name")) == krate) {
            problems
                .push(format!("deny.toml: `{krate}` is in nobody's dependencies; the wall guards nothing"));
        }
        for package in &packages {
            let parent = text(package.get("name"));
            // `name`, or `name version` where there are two of it.
            let enters = list(package.get("dependencies"))
                .iter()
                .any(|d| text(Some(d)).split(' ').next() == Some(krate.as_str()));
            if enters && !allowed.contains(&parent) {
                problems.push(format!("`{parent}` depends on `{krate}`: {}", text(rule.get("reason"))));
            }
        }
    }
    Ok(problems)
}

fn list(value: Option<&Value>) -> Vec<Value> {
    value.and_then(Value::as_array).cloned().unwrap_or_default()
}

fn text(value: Option<&Value>) -> String {
    value.and_then(Value::as_str).unwrap_or_default().to_owned()
}
