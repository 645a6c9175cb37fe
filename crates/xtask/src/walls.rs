//! The walls of `deny.toml`, checked against the dependency graph without the network.

use anyhow::Context as _;
use serde_json::Value;
use std::{collections::HashMap, path::Path, process::Command};

/// Each edge that goes through a wall.
pub(crate) fn check(root: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(root.join("deny.toml"))?;
    let rules: toml::Value = toml::from_str(&text).context("deny.toml")?;
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--all-features", "--locked", "--offline"])
        .current_dir(root)
        .output()?;
    anyhow::ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let list = |value: &Value, pointer: &str| {
        value.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let text_of =
        |value: &Value, field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let names: HashMap<String, String> =
        list(&metadata, "/packages").iter().map(|p| (text_of(p, "id"), text_of(p, "name"))).collect();
    let name = |id: &str| names.get(id).cloned().unwrap_or_default();
    let mut problems = Vec::new();
    let denied = rules
        .get("bans")
        .and_then(|b| b.get("deny"))
        .and_then(toml::Value::as_array)
        .cloned()
        .unwrap_or_default();
    anyhow::ensure!(denied.len() > 10, "deny.toml has lost its walls");
    for rule in denied {
        let field = |f: &str| rule.get(f).and_then(toml::Value::as_str).unwrap_or_default().to_owned();
        let krate = field("crate");
        let allowed: Vec<String> = rule
            .get("wrappers")
            .and_then(toml::Value::as_array)
            .map(|a| a.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect())
            .unwrap_or_default();
        if !names.values().any(|n| *n == krate) {
            problems
                .push(format!("deny.toml: `{krate}` is in nobody's dependencies; the wall guards nothing"));
        }
        for node in list(&metadata, "/resolve/nodes") {
            let parent = name(&text_of(&node, "id"));
            let enters = list(&node, "/deps").iter().any(|d| name(&text_of(d, "pkg")) == krate);
            if enters && !allowed.contains(&parent) {
                problems.push(format!("`{parent}` depends on `{krate}`: {}", field("reason")));
            }
        }
    }
    Ok(problems)
}
