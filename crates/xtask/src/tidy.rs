//! What is asked of every file.

use crate::files;
use std::{collections::BTreeSet, fs, path::Path, process::Command};

/// Lines of a file, its tests left out.
const FILE_LINES_MAX: usize = 600;

pub(crate) fn check(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut problems = Vec::new();
    for path in
        files(&root.join("crates"), "rs")?.into_iter().chain(files(&root.join("integration-tests"), "rs")?)
    {
        let text = fs::read_to_string(&path)?;
        let shown = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        if !text.starts_with("//!") {
            problems.push(format!("{shown}: does not begin with `//!`: what is it for?"));
        }
        let lines = text.lines().take_while(|l| l.trim() != "#[cfg(test)]").count();
        if lines > FILE_LINES_MAX {
            problems.push(format!("{shown}: {lines} lines; split it at the noun (at most {FILE_LINES_MAX})"));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if ["utils.rs", "util.rs", "helpers.rs", "misc.rs", "common.rs"].contains(&name.as_str()) {
            problems.push(format!("{shown}: a name that says nothing"));
        }
    }
    problems.extend(lints(root)?);
    problems.extend(locks(root)?);
    problems.extend(protos(root)?);
    problems.extend(reasons(root)?);
    problems.extend(invariants(root)?);
    Ok(problems)
}

/// Every crate takes the workspace's lints. The two that call what is in no library of Rust say all of them themselves but that on
/// `unsafe`, which cannot be lifted where it is forbidden; generated code has its own.
fn lints(root: &Path) -> anyhow::Result<Vec<String>> {
    let workspace = fs::read_to_string(root.join("Cargo.toml"))?;
    let all = workspace.split("[workspace.lints.").skip(1);
    let all: Vec<&str> = all
        .flat_map(|table| table.lines().skip(1).take_while(|line| !line.starts_with('[')))
        .filter(|line| line.contains(" = ") && !line.starts_with("unsafe_code"))
        .collect();
    let mut problems = Vec::new();
    for path in files(&root.join("crates"), "toml")?.into_iter().filter(|path| path.ends_with("Cargo.toml")) {
        let text = fs::read_to_string(&path)?;
        let takes = if path.ends_with("proto/Cargo.toml") {
            true
        } else if ["multi-buffer/Cargo.toml", "thread/Cargo.toml"].iter().any(|own| path.ends_with(own)) {
            all.iter().all(|lint| text.lines().any(|line| line == *lint))
        } else {
            text.contains("[lints]\nworkspace = true")
        };
        if !takes {
            problems.push(format!("{}: does not take the workspace's lints", path.display()));
        }
    }
    Ok(problems)
}

/// Every project has the lock file that its dependencies ask for, also those outside the workspace: a change of a crate's
/// dependencies changes theirs.
fn locks(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut problems = Vec::new();
    for lock in files(root, "lock")?.iter().filter(|path| path.ends_with("Cargo.lock")) {
        let manifest = lock.with_extension("toml");
        let answer = Command::new("cargo")
            .args(["tree", "--locked", "--quiet", "--depth", "0", "--manifest-path"])
            .arg(&manifest)
            .output()?;
        if !answer.status.success() {
            let said = String::from_utf8_lossy(&answer.stderr);
            let why = said.lines().next().unwrap_or_default();
            let shown = manifest.strip_prefix(root).unwrap_or(&manifest).display().to_string();
            let remedy =
                format!("`cargo update --workspace --manifest-path {shown}` where it is not as they ask");
            problems.push(format!("{shown}: its lock file cannot be used ({why}); {remedy}"));
        }
    }
    Ok(problems)
}

/// Every field, message, value and RPC of a schema has a comment.
fn protos(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut problems = Vec::new();
    for path in files(&root.join("proto"), "proto")? {
        let text = fs::read_to_string(&path)?;
        let mut before = "";
        for (number, line) in text.lines().enumerate() {
            let t = line.trim();
            let declares = t.starts_with("rpc ")
                || t.starts_with("message ")
                || t.starts_with("enum ")
                || t.starts_with("service ")
                || t.starts_with("oneof ")
                || (t.ends_with(';')
                    && t.contains(" = ")
                    && !t.starts_with("syntax")
                    && !t.starts_with("import"));
            if declares && !before.starts_with("//") {
                problems.push(format!(
                    "{}:{}: no comment on `{t}`",
                    path.strip_prefix(root).unwrap_or(&path).display(),
                    number + 1
                ));
            }
            before = t;
        }
    }
    Ok(problems)
}

/// Every `ErrorInfo.reason` has its entry in docs/errors.
fn reasons(root: &Path) -> anyhow::Result<Vec<String>> {
    let page = fs::read_to_string(root.join("docs/errors/README.md"))?;
    let mut found = BTreeSet::new();
    for path in files(&root.join("crates"), "rs")? {
        if path
            .components()
            .any(|c| c.as_os_str() == "xtask" || c.as_os_str() == "tests" || c.as_os_str() == "cli")
        {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        // `status("CODE", "REASON", ...)`, and the arms of `fn reason`.
        for part in text.split("status(\"").skip(1) {
            found.extend(part.split('"').nth(2).map(str::to_owned));
        }
        if let Some(body) = text.split("fn reason(&self) -> &'static str {").nth(1) {
            let body = body.split("\n    }\n").next().unwrap_or_default();
            found.extend(body.split("=> \"").skip(1).filter_map(|p| p.split('"').next()).map(str::to_owned));
        }
    }
    found.retain(|r| {
        r.len() > 3 && r.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    });
    Ok(found
        .into_iter()
        .filter(|r| !page.contains(&format!("`{r}`")))
        .map(|r| format!("docs/errors/README.md: no entry for `{r}`"))
        .collect())
}

/// Every invariant in ARCHITECTURE.md names a check that exists.
fn invariants(root: &Path) -> anyhow::Result<Vec<String>> {
    let page = fs::read_to_string(root.join("ARCHITECTURE.md"))?;
    let mut problems = Vec::new();
    for line in page.lines().filter(|l| l.contains("**Invariant:**")) {
        let named: Vec<&str> =
            line.split('`').skip(1).step_by(2).filter(|p| p.contains('/') || p.ends_with(".toml")).collect();
        match named.last() {
            None => problems.push(format!("ARCHITECTURE.md: this invariant names no check: {line}")),
            Some(path) if !root.join(path).exists() => {
                problems.push(format!("ARCHITECTURE.md: `{path}` does not exist"))
            }
            Some(_) => {}
        }
    }
    Ok(problems)
}
