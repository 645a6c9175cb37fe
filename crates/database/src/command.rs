//! Running a program and telling what it said when it failed.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

/// A program that failed.
#[derive(Debug, thiserror::Error)]
#[error("`{program}` failed ({status}): {said}")]
pub struct CommandError {
    program: String,
    status: String,
    said: String,
}

/// Runs a program to its end and answers its standard output.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String, CommandError> {
    run_with_input(program, arguments, "")
}

/// Checks a file system that is not mounted, all of it, and puts right what can be without a loss. e2fsck says so by ending with 1.
pub(crate) fn check_file_system(device: &str) -> Result<(), CommandError> {
    let failed = |status: String, said: String| CommandError { program: "e2fsck".to_owned(), status, said };
    let output = Command::new("e2fsck")
        .args(["-f", "-p", device])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| failed("not started".to_owned(), e.to_string()))?;
    match output.status.code() {
        Some(0 | 1) => Ok(()),
        _ => {
            let said = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            Err(failed(output.status.to_string(), said.trim().chars().take(500).collect()))
        }
    }
}

/// Runs a program with text on its standard input.
pub(crate) fn run_with_input(program: &str, arguments: &[&str], input: &str) -> Result<String, CommandError> {
    let name = format!("{program} {}", arguments.first().copied().unwrap_or_default());
    let failed = |status: String, said: String| CommandError { program: name.clone(), status, said };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed("not started".to_owned(), e.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|e| failed("not awaited".to_owned(), e.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().chars().take(500).collect();
    Err(failed(output.status.to_string(), said))
}
