//! Sizes of files and functions, to be watched.

use crate::files;
use std::{collections::BTreeMap, fs, path::Path};

pub(crate) fn print(root: &Path) -> anyhow::Result<()> {
    let mut by_crate: BTreeMap<String, (Vec<usize>, Vec<usize>, usize)> = BTreeMap::new();
    for path in files(&root.join("crates"), "rs")? {
        let text = fs::read_to_string(&path)?;
        let name = path
            .strip_prefix(root.join("crates"))?
            .components()
            .next()
            .map(|c| c.as_os_str().to_string_lossy().into_owned())
            .unwrap_or_default();
        let entry = by_crate.entry(name).or_default();
        if path.components().any(|c| c.as_os_str() == "tests") {
            entry.2 += text.lines().count();
            continue;
        }
        let code: Vec<&str> = text.lines().take_while(|l| l.trim() != "#[cfg(test)]").collect();
        entry.2 += text.lines().count() - code.len();
        entry.0.push(code.len());
        let mut open: Option<(usize, usize)> = None;
        for (number, line) in code.iter().enumerate() {
            let indent = line.len() - line.trim_start().len();
            match open {
                None if line.contains("fn ")
                    && !line.trim_start().starts_with("//")
                    && line.trim_end().ends_with('{') =>
                {
                    open = Some((indent, number))
                }
                Some((at, start)) if indent == at && line.trim() == "}" => {
                    entry.1.push(number - start + 1);
                    open = None;
                }
                _ => {}
            }
        }
    }
    println!(
        "{:16} {:>6} {:>6} {:>9} {:>7} {:>8} {:>8}",
        "crate", "lines", "tests", "file med", "fn med", "fn p90", "fn > 70"
    );
    for (name, (mut files, mut functions, tests)) in by_crate {
        files.sort_unstable();
        functions.sort_unstable();
        let at = |list: &[usize], share: usize| list.get(list.len() * share / 100).copied().unwrap_or(0);
        let long = functions.iter().filter(|n| **n > 70).count();
        println!(
            "{name:16} {:>6} {tests:>6} {:>9} {:>7} {:>8} {long:>8}",
            files.iter().sum::<usize>(),
            at(&files, 50),
            at(&functions, 50),
            at(&functions, 90)
        );
    }
    Ok(())
}
