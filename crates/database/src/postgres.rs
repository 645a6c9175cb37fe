//! Running PostgreSQL's own programs as an unprivileged user.

use crate::{
    DatabaseError,
    command::{run, run_with_input, start},
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// PostgreSQL 15 or newer is not installed.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("no PostgreSQL 15 or newer under /usr/lib/postgresql; install Debian's `postgresql` package")]
pub struct NoPostgres;

/// The operating-system user that PostgreSQL runs as.
const USER: &str = "postgres";

/// An installed PostgreSQL.
#[derive(Clone, Debug)]
pub struct Installation {
    bin: PathBuf,
    major: u32,
}

impl Installation {
    /// The newest one, from 15 on.
    ///
    /// # Errors
    /// [`NoPostgres`].
    pub fn find() -> Result<Self, NoPostgres> {
        let versions = fs::read_dir("/usr/lib/postgresql").map_err(|_| NoPostgres)?;
        let major = versions
            .filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .filter(|v| *v >= 15)
            .max()
            .ok_or(NoPostgres)?;
        let bin = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
        if bin.join("postgres").exists() { Ok(Self { bin, major }) } else { Err(NoPostgres) }
    }

    fn program(&self, name: &str) -> String {
        self.bin.join(name).display().to_string()
    }

    /// Runs one of its programs as the user.
    fn as_user(&self, name: &str, arguments: &[&str], input: &str) -> Result<String, DatabaseError> {
        let program = self.program(name);
        let mut all = vec!["-u", USER, "--", program.as_str()];
        all.extend_from_slice(arguments);
        Ok(run_with_input("runuser", &all, input)?)
    }

    /// Makes a database cluster in `data`, whole or not at all.
    pub(crate) fn init(&self, data: &Path) -> Result<(), DatabaseError> {
        if data.join("PG_VERSION").exists() {
            return Ok(());
        }
        let partial = data.with_extension("partial");
        _ = fs::remove_dir_all(&partial);
        run("install", &["-d", "-o", USER, "-g", USER, "-m", "0700", &partial.display().to_string()])?;
        let at = partial.display().to_string();
        let arguments = [
            "-D",
            &at,
            "--auth-local=peer",
            "--auth-host=scram-sha-256",
            "-E",
            "UTF8",
            "--no-locale",
            "--data-checksums",
            "--no-instructions",
        ];
        self.as_user("initdb", &arguments, "")?;
        fs::rename(&partial, data)?;
        fs::File::open(data.parent().unwrap_or_else(|| Path::new("/")))?.sync_all()?;
        Ok(())
    }

    /// The folder that this version keeps in a tablespace: `PG_15_202209061` for example.
    pub(crate) fn tablespace_folder(&self, data: &Path) -> Result<String, DatabaseError> {
        let said = self.as_user("pg_controldata", &["-D", &data.display().to_string()], "")?;
        let line = said.lines().find_map(|l| l.strip_prefix("Catalog version number:"));
        let catalog = line
            .ok_or_else(|| DatabaseError::NotServing("pg_controldata tells no catalog version".to_owned()))?;
        Ok(format!("PG_{}_{}", self.major, catalog.trim()))
    }

    /// Starts a server. What it logs is on its own volume; only what it says before that goes to `log`, and never
    /// a statement. `more` settings override others.
    pub(crate) fn start(
        &self,
        data: &Path,
        run_dir: &Path,
        port: u16,
        log: &Path,
        more: &[String],
    ) -> Result<Child, DatabaseError> {
        let log = fs::File::create(log)?;
        let settings = [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={port}"),
            format!("unix_socket_directories={}", run_dir.display()),
            "logging_collector=on".to_owned(),
            "log_directory=log".to_owned(),
            "log_min_error_statement=panic".to_owned(),
            "temp_tablespaces=custody_temp".to_owned(),
            "allow_in_place_tablespaces=on".to_owned(),
            "shared_buffers=64MB".to_owned(),
            "dynamic_shared_memory_type=mmap".to_owned(),
            "password_encryption=scram-sha-256".to_owned(),
        ];
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", USER, "--regid", USER, "--init-groups", "--"])
            .arg(self.bin.join("postgres"))
            .arg("-D")
            .arg(data);
        for setting in settings.iter().chain(more) {
            command.arg("-c").arg(setting);
        }
        use std::os::unix::process::CommandExt as _;
        command.process_group(0).current_dir("/").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(start(&mut command)?)
    }

    /// Waits until a server answers.
    pub(crate) fn wait_until_serving(
        &self,
        child: &mut Child,
        run_dir: &Path,
        port: u16,
        log: &Path,
        timeout: Duration,
    ) -> Result<(), DatabaseError> {
        let until = Instant::now() + timeout;
        let (dir, port) = (run_dir.display().to_string(), port.to_string());
        loop {
            if run(&self.program("pg_isready"), &["-q", "-h", &dir, "-p", &port]).is_ok() {
                return Ok(());
            }
            if child.try_wait()?.is_some() || Instant::now() > until {
                let said = fs::read_to_string(log).unwrap_or_default();
                let tail: String = said.lines().rev().take(8).collect::<Vec<_>>().join("; ");
                return Err(DatabaseError::NotServing(tail));
            }
            sleep(Duration::from_millis(20));
        }
    }

    /// Runs SQL as the superuser, over the local socket. The text goes by standard input, so that no password is
    /// among a process's arguments.
    pub(crate) fn sql(
        &self,
        run_dir: &Path,
        port: u16,
        database: &str,
        text: &str,
    ) -> Result<String, DatabaseError> {
        let (dir, port) = (run_dir.display().to_string(), port.to_string());
        self.as_user(
            "psql",
            &["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", &dir, "-p", &port, "-d", database],
            text,
        )
    }
}
