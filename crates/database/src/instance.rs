//! One PostgreSQL with its two volumes.

use crate::{
    Attachment, DatabaseError, Installation, Recovery, RecoveryProgress, Source,
    attachment::release,
    command::run,
    filesystem::{mount, unmount},
    whole_file,
};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    net::TcpListener,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Child,
    thread::sleep,
    time::{Duration, Instant},
};

/// What an instance is, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// Its id.
    pub id: String,
    /// The data volume's id.
    pub volume: String,
    /// The temp volume's id.
    pub temp_volume: String,
    /// The SCRAM verifier of the `dba` role.
    pub password_verifier: String,
    /// The TCP port on loopback; 0 until one was chosen.
    pub port: u16,
    /// Whether it shall run.
    pub wanted: bool,
    /// Where its log is archived, if it is.
    #[serde(default)]
    pub archive: Option<String>,
    /// What it recovers to before it first serves; none when that is done.
    #[serde(default)]
    pub recovery: Option<Recovery>,
}

/// How long a server may take to end by itself at revocation, before it is killed.
const END_GRACE: Duration = Duration::from_millis(150);
/// How long a server may take to end at an ordinary stop.
const STOP_GRACE: Duration = Duration::from_secs(30);
/// How long a start, as after a crash, may take.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// A segment that is not full is archived after so long, if anything was written to it.
const ARCHIVE_TIMEOUT_SECONDS: u32 = 60;

/// An instance on this machine: what of it is running is in memory, everything else in its directory.
#[derive(Debug)]
pub struct Instance {
    pub(crate) dir: PathBuf,
    installation: Installation,
    server: Option<Child>,
    data: Option<Attachment>,
    temp: Option<Attachment>,
    wal_program: PathBuf,
    pub(crate) progress: RecoveryProgress,
}

impl InstanceSpec {
    /// Reads the spec in an instance's directory.
    ///
    /// # Errors
    /// Not readable.
    pub fn read(dir: &Path) -> Result<Self, DatabaseError> {
        let bytes = fs::read(dir.join("instance.json"))?;
        serde_json::from_slice(&bytes).map_err(|e| DatabaseError::Io(e.into()))
    }

    /// Stores it, durably.
    ///
    /// # Errors
    /// The file system failed.
    pub fn write(&self, dir: &Path) -> Result<(), DatabaseError> {
        fs::create_dir_all(dir)?;
        let content = serde_json::to_vec(self).map_err(|e| DatabaseError::Io(e.into()))?;
        Ok(whole_file::put(&dir.join("instance.json"), &content)?)
    }
}

impl Instance {
    /// Over its directory. Takes down what an earlier process left running there. `wal_program` carries files of the log
    /// between the server and the socket that [`Instance::wal_socket`] names.
    #[must_use]
    pub fn new(
        dir: PathBuf,
        installation: Installation,
        wal_program: PathBuf,
        progress: RecoveryProgress,
    ) -> Self {
        let mut instance =
            Self { dir, installation, server: None, data: None, temp: None, wal_program, progress };
        instance.kill_leftover();
        instance.take_down();
        instance
    }

    pub(crate) fn pgdata(&self) -> PathBuf {
        self.dir.join("data/pgdata")
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// Where an instance's server reaches the archives of its log.
    #[must_use]
    pub fn wal_socket(dir: &Path) -> PathBuf {
        dir.join("run/wal.sock")
    }

    /// A command for the server to run: a copy of the program lies where the server's user may go.
    pub(crate) fn wal_command(&self, verb: &str, arguments: &str) -> String {
        let quoted = |path: PathBuf| path.display().to_string().replace('%', "%%");
        let (program, socket) = (quoted(self.own_wal_program()), quoted(Self::wal_socket(&self.dir)));
        format!("\"{program}\" {verb} \"{socket}\" {arguments}")
    }

    fn own_wal_program(&self) -> PathBuf {
        self.run_dir().join("custody-wal")
    }

    /// A file with the server's number would not do: between the start and the file, or in the middle of its write,
    /// this process may be killed, and a number may be another program's by now. The kernel's list has no such gap.
    fn kill_leftover(&self) {
        let data = self.pgdata().display().to_string();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry.file_name().to_str().and_then(|n| n.parse().ok()).and_then(Pid::from_raw);
            let Some(pid) = pid else { continue };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            // Not the first argument alone: `setpriv` may not have become the server yet.
            let has = |wanted: &dyn Fn(&[u8]) -> bool| line.split(|b| *b == 0).any(wanted);
            if has(&|a| a.ends_with(b"/postgres")) && has(&|a| a == data.as_bytes()) {
                _ = kill_process_group(pid, Signal::KILL);
            }
        }
    }

    /// Attaches, mounts, makes what is missing, starts, and waits until it serves. Can be repeated.
    ///
    /// # Errors
    /// See [`DatabaseError`]; what was brought up is taken down again.
    pub fn up(&mut self, spec: &mut InstanceSpec, socket: &Path) -> Result<(), DatabaseError> {
        if self.running() {
            return Ok(());
        }
        // The server may run on without its volume, and would answer from its cache beside the new one.
        self.stop_now();
        let done = self.bring_up(spec, socket);
        if done.is_err() {
            self.stop_now();
        }
        done
    }

    fn bring_up(&mut self, spec: &mut InstanceSpec, socket: &Path) -> Result<(), DatabaseError> {
        let source = |export: &str| Source { socket: socket.to_owned(), export: export.to_owned() };
        let data =
            self.data.insert(Attachment::attach(&source(&spec.volume), &self.dir.join("bridge-data"))?);
        mount(&data.device, &self.dir.join("data"))?;
        let temp =
            self.temp.insert(Attachment::attach(&source(&spec.temp_volume), &self.dir.join("bridge-temp"))?);
        mount(&temp.device, &self.dir.join("temp"))?;
        for dir in [self.dir.join("data"), self.dir.join("temp"), self.run_dir()] {
            run(
                "install",
                &["-d", "-o", "postgres", "-g", "postgres", "-m", "0700", &dir.display().to_string()],
            )?;
        }
        self.installation.init(&self.pgdata())?;
        self.prepare_temp()?;
        if spec.port == 0 || TcpListener::bind(("127.0.0.1", spec.port)).is_err() {
            spec.port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            spec.write(&self.dir)?;
        }
        _ = fs::remove_file(self.pgdata().join("postmaster.pid"));
        let mut settings = Vec::new();
        if spec.archive.is_some() || spec.recovery.is_some() {
            let (program, own) = (self.wal_program.display(), self.own_wal_program());
            run("install", &["-m", "0755", &program.to_string(), &own.display().to_string()])?;
        }
        if spec.archive.is_some() {
            settings.push("archive_mode=on".to_owned());
            settings.push(format!("archive_timeout={ARCHIVE_TIMEOUT_SECONDS}"));
            settings.push(format!("archive_command={}", self.wal_command("put", "%f \"%p\"")));
        }
        if let Some(recovery) = &spec.recovery {
            self.recover(recovery, spec.port, &settings)?;
            spec.recovery = None;
            spec.write(&self.dir)?;
            self.prepare_temp()?;
        }
        self.run_server(&settings, spec.port, START_TIMEOUT)?;
        self.set_up_roles(spec)
    }

    /// Starts the server, and waits until it serves.
    pub(crate) fn run_server(
        &mut self,
        settings: &[String],
        port: u16,
        timeout: Duration,
    ) -> Result<(), DatabaseError> {
        let (log, run_dir) = (self.dir.join("start.log"), self.run_dir());
        let started = self.installation.start(&self.pgdata(), &run_dir, port, &log, settings)?;
        let server = self.server.insert(started);
        self.installation.wait_until_serving(server, &run_dir, port, &log, timeout)
    }

    /// The temp volume is empty after every start of its node, and a restored database has links of another machine: both
    /// are put right before PostgreSQL looks. Its log has no such place in it: the tablespace is made in place, and a link
    /// takes that. With a place in it, a copy that replays the log would use the directories of its source.
    fn prepare_temp(&self) -> Result<(), DatabaseError> {
        let space = self.dir.join("temp/space");
        let folder = space.join(self.installation.tablespace_folder(&self.pgdata())?);
        let links = self.pgdata().join("pg_tblspc");
        let known = fs::read_dir(&links)?.filter_map(Result::ok).map(|e| e.path()).collect::<Vec<_>>();
        let own = |path: &Path| {
            run(
                "install",
                &["-d", "-o", "postgres", "-g", "postgres", "-m", "0700", &path.display().to_string()],
            )
        };
        own(&space)?;
        if !known.is_empty() {
            own(&folder)?;
        }
        for link in known {
            match fs::read_link(&link) {
                Ok(there) if there == space => continue,
                Ok(_) => fs::remove_file(&link)?,
                // Made in place, a moment ago or by a replay. What is in it was of no use to anyone but its session.
                Err(_) => fs::remove_dir_all(&link)?,
            }
            symlink(&space, &link)?;
        }
        Ok(())
    }

    fn set_up_roles(&self, spec: &InstanceSpec) -> Result<(), DatabaseError> {
        let sql =
            |database: &str, text: &str| self.installation.sql(&self.run_dir(), spec.port, database, text);
        let there = |query: &str| sql("postgres", query).map(|said| !said.trim().is_empty());
        if !there("SELECT 1 FROM pg_tablespace WHERE spcname = 'custody_temp'")? {
            sql("postgres", "CREATE TABLESPACE custody_temp LOCATION ''")?;
            self.prepare_temp()?;
            sql("postgres", "GRANT CREATE ON TABLESPACE custody_temp TO PUBLIC")?;
        }
        let verifier = spec.password_verifier.replace('\'', "''");
        if !there("SELECT 1 FROM pg_roles WHERE rolname = 'dba'")? {
            sql("postgres", "CREATE ROLE dba LOGIN CREATEDB CREATEROLE")?;
        }
        if !verifier.is_empty() {
            sql("postgres", &format!("ALTER ROLE dba PASSWORD '{verifier}'"))?;
        }
        if !there("SELECT 1 FROM pg_database WHERE datname = 'app'")? {
            sql("postgres", "CREATE DATABASE app OWNER dba")?;
        }
        if spec.archive.is_some() {
            // Who is to know that the archive has what was committed need not wait for the timeout.
            sql("app", "GRANT EXECUTE ON FUNCTION pg_switch_wal() TO dba")?;
        }
        Ok(())
    }

    /// Makes foreign servers for workers on a coordinator; the DBA maps users to them.
    ///
    /// # Errors
    /// A worker's endpoint is malformed, or PostgreSQL refused.
    pub fn link_workers(
        &self,
        spec: &InstanceSpec,
        workers: &[(String, String)],
    ) -> Result<(), DatabaseError> {
        let mut text = "CREATE EXTENSION IF NOT EXISTS postgres_fdw;\nGRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO dba;\n".to_owned();
        for (server, endpoint) in workers {
            let good = !server.is_empty() && server.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            let parts = endpoint
                .rsplit_once(':')
                .and_then(|(h, p)| Some((h.parse::<std::net::IpAddr>().ok()?, p.parse::<u16>().ok()?)));
            let (Some((host, port)), true) = (parts, good) else {
                return Err(DatabaseError::NotServing(format!(
                    "worker `{server}` at `{endpoint}` is malformed"
                )));
            };
            text += &format!(
                "CREATE SERVER IF NOT EXISTS {server} FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '{host}', port '{port}', dbname 'app');\n\
                 ALTER SERVER {server} OPTIONS (SET host '{host}', SET port '{port}');\nGRANT USAGE ON FOREIGN SERVER {server} TO dba;\n"
            );
        }
        self.installation.sql(&self.run_dir(), spec.port, "app", &text).map(drop)
    }

    /// Whether the server and its volumes are there.
    pub fn running(&mut self) -> bool {
        let server = self.server.as_mut().is_some_and(|s| s.try_wait().is_ok_and(|e| e.is_none()));
        server
            && [&mut self.data, &mut self.temp].into_iter().all(|a| a.as_mut().is_some_and(Attachment::alive))
    }

    /// Ends the server in the ordinary way, with a checkpoint, and detaches.
    pub fn stop(&mut self) {
        self.end_server(Signal::INT, STOP_GRACE);
        self.take_down();
    }

    /// Ends the server at once: its volume is gone, and nothing it holds may be served any more. First the
    /// server, so that no client is answered from its cache; then everything else.
    pub fn stop_now(&mut self) {
        self.end_server(Signal::QUIT, END_GRACE);
        self.take_down();
    }

    pub(crate) fn end_server(&mut self, signal: Signal, grace: Duration) {
        let Some(mut server) = self.server.take() else { return };
        let Some(pid) = i32::try_from(server.id()).ok().and_then(Pid::from_raw) else { return };
        _ = kill_process(pid, signal);
        let until = Instant::now() + grace;
        while Instant::now() < until && server.try_wait().is_ok_and(|e| e.is_none()) {
            sleep(Duration::from_millis(2));
        }
        _ = kill_process_group(pid, Signal::KILL);
        _ = server.wait();
    }

    /// Unmounts and detaches, also what an earlier process left.
    fn take_down(&mut self) {
        for name in ["data", "temp"] {
            unmount(&self.dir.join(name));
        }
        (self.data, self.temp) = (None, None);
        for name in ["bridge-data", "bridge-temp"] {
            release(&self.dir.join(name));
        }
    }

    /// Removes the instance's directory; its volumes are not touched.
    ///
    /// # Errors
    /// The file system failed.
    pub fn remove(mut self) -> Result<(), DatabaseError> {
        self.stop();
        Ok(fs::remove_dir_all(&self.dir)?)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.stop();
    }
}
