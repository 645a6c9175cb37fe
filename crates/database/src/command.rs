//! Running a program and telling what it said when it failed.

use std::{
    io::{ErrorKind, Write as _},
    process::{Child, Command, Stdio},
};

/// A program that failed.
#[derive(Debug, thiserror::Error)]
#[error("`{program}` failed ({status}): {said}")]
pub struct CommandError {
    program: String,
    status: String,
    said: String,
}

impl CommandError {
    /// What a program said, cut to what an error may carry.
    pub(crate) fn new(program: &str, status: String, said: &str) -> Self {
        Self { program: program.to_owned(), status, said: said.trim().chars().take(SAID_MAX).collect() }
    }
}

/// Characters of what a program said that an error has.
const SAID_MAX: usize = 500;

/// Starts a program.
pub(crate) fn start(command: &mut Command) -> Result<Child, CommandError> {
    command.spawn().map_err(|e| {
        let program = command.get_program().to_string_lossy().into_owned();
        let said = match e.kind() {
            ErrorKind::NotFound => "it is not installed, or not on the PATH of the database node".to_owned(),
            _ => e.to_string(),
        };
        CommandError::new(&program, "not started".to_owned(), &said)
    })
}

/// Runs a program to its end and answers its standard output.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String, CommandError> {
    run_with_input(program, arguments, "")
}

/// Runs a program with text on its standard input.
pub(crate) fn run_with_input(program: &str, arguments: &[&str], input: &str) -> Result<String, CommandError> {
    let name = format!("{program} {}", arguments.first().copied().unwrap_or_default());
    let failed = |status: String, said: &str| CommandError::new(&name, status, said);
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = start(&mut command)?;
    if let Some(mut stdin) = child.stdin.take() {
        _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|e| failed("not awaited".to_owned(), &e.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failed(output.status.to_string(), &String::from_utf8_lossy(&output.stderr)))
}
