//! A running deployment.

use crate::SoftHsm;
use anyhow::{Context as _, bail, ensure};
use custody_clients::{AuthenticatedChannel, Endpoint, TokenSource};
use custody_proto::identity::{BindManagedIdentityRequest, identity_client::IdentityClient};
use custody_rpc::tls::Credentials;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A deployment, stopped when dropped. Its directory is removed, unless the thread is panicking: then its path is
/// told and it stays, with every log.
#[derive(Debug)]
pub struct Deployment {
    dir: PathBuf,
    supervisor: Child,
}

/// A program of Custody: in the directory that CUSTODY_PROGRAMS names, or beside the test, where `cargo build --workspace` leaves it.
///
/// # Panics
/// It is not built.
#[must_use]
pub fn target_program(name: &str) -> PathBuf {
    let dir = std::env::var_os("CUSTODY_PROGRAMS").map(PathBuf::from).unwrap_or_else(|| {
        let test = std::env::current_exe().expect("a test is a program");
        let mut dir = test.parent().expect("a program lies in a directory").to_owned();
        if dir.ends_with("deps") {
            dir.pop();
        }
        dir
    });
    let program = dir.join(name);
    let build =
        "run `cargo build --workspace` in Custody's repository; CUSTODY_PROGRAMS names its target/debug";
    assert!(program.exists(), "`{}` is not built; {build}", program.display());
    program
}

/// Whether databases can be run here; says what is missing if not.
///
/// # Errors
/// What is missing.
pub fn database_tools() -> anyhow::Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "root is needed to mount volumes");
    ensure!(Path::new("/usr/lib/postgresql").exists(), "PostgreSQL is not installed (Debian: postgresql)");
    ensure!(Path::new("/usr/bin/nbdfuse").exists(), "nbdfuse is not installed (Debian: libnbd-bin)");
    ensure!(Path::new("/dev/fuse").exists(), "/dev/fuse is missing");
    Ok(())
}

/// A directory for a deployment. Not below the target directory: the path of a Unix socket is short.
fn own_dir() -> std::io::Result<PathBuf> {
    Ok(tempfile::Builder::new().prefix("custody-test-").tempdir()?.keep())
}

/// Where the newest PostgreSQL's programs are.
///
/// # Errors
/// It is not installed.
pub fn postgres_programs() -> anyhow::Result<PathBuf> {
    let newest = fs::read_dir("/usr/lib/postgresql")
        .context("PostgreSQL is not installed")?
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .max()
        .context("PostgreSQL is not installed")?;
    Ok(PathBuf::from(format!("/usr/lib/postgresql/{newest}/bin")))
}

/// Waits for a condition, looking every few milliseconds.
///
/// # Panics
/// It does not come about in time.
pub fn eventually<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Deployment {
    /// Starts one with default settings.
    ///
    /// # Panics
    /// It does not come up.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts one with more arguments to `custody up`.
    ///
    /// # Panics
    /// It does not come up.
    #[must_use]
    pub fn start_with(arguments: &[&str]) -> Self {
        let dir = own_dir().expect("a temporary directory");
        Self::start_in(dir, arguments).expect("the deployment starts")
    }

    /// Starts one in a directory, also one that was used before.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_in(dir: PathBuf, arguments: &[&str]) -> anyhow::Result<Self> {
        Self::up(dir, |command| _ = command.arg("up").args(arguments))
    }

    /// Starts one whose vault has an HSM: SoftHSM, with its token below the deployment's directory. `options` are
    /// those of `custody up`.
    ///
    /// # Errors
    /// SoftHSM is not installed, or the deployment does not come up.
    pub fn start_with_hsm(options: &[&str]) -> anyhow::Result<(Self, SoftHsm)> {
        let dir = own_dir()?;
        let hsm = SoftHsm::of(&dir);
        let deployment = Self::up(dir, |command| _ = command.args(["up", "--soft-hsm"]).args(options))?;
        Ok((deployment, hsm))
    }

    /// Starts one whose services have more in their environment.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_with_environment(
        options: &[&str],
        environment: &[(String, String)],
    ) -> anyhow::Result<Self> {
        let dir = own_dir()?;
        let environment = environment.iter().map(|(name, value)| (name, value));
        Self::up(dir, |command| _ = command.arg("up").args(options).envs(environment))
    }

    fn up(dir: PathBuf, arguments: impl FnOnce(&mut Command)) -> anyhow::Result<Self> {
        fs::create_dir_all(&dir)?;
        let log = File::create(dir.join("up.log"))?;
        let mut command = Command::new(target_program("custody"));
        command.arg("--dir").arg(&dir).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        arguments(&mut command);
        let deployment = Self { supervisor: command.spawn()?, dir };
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let said = fs::read_to_string(deployment.dir.join("up.log"))?;
            if said.contains("credentials and certificates are in") {
                return Ok(deployment);
            }
            ensure!(Instant::now() < until && !said.contains("error:"), "custody up: {said}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs a verb of the command and answers its JSON.
    ///
    /// # Errors
    /// It failed: the error has what it said.
    pub fn cli(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let mut command = Command::new(target_program("custody"));
        command
            .arg("--dir")
            .arg(&self.dir)
            .args(["--output", "json"])
            .args(arguments)
            .env("CUSTODY_DBA_PASSWORD", "test-Password-1");
        let output = command.stdin(Stdio::null()).output()?;
        if !output.status.success() {
            bail!("custody {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(serde_json::from_str(&said).unwrap_or(Value::String(said)))
    }

    /// Runs a verb that must succeed.
    ///
    /// # Panics
    /// It failed.
    #[must_use]
    pub fn run(&self, arguments: &[&str]) -> Value {
        self.cli(arguments).expect("the verb succeeds")
    }

    /// The process of a service.
    ///
    /// # Panics
    /// It was never started.
    #[must_use]
    pub fn pid(&self, service: &str) -> Pid {
        let text = fs::read_to_string(self.dir.join(service).join("pid")).expect("the service was started");
        Pid::from_raw(text.trim().parse().expect("a number")).expect("not zero")
    }

    /// Kills a service with SIGKILL and waits until its successor serves.
    ///
    /// # Panics
    /// It does not come back.
    pub fn kill(&self, service: &str) {
        let pid = self.pid(service);
        let address = self.dir.join(service).join("address");
        _ = fs::remove_file(&address);
        kill_process(pid, Signal::KILL).expect("the service runs");
        eventually(&format!("{service} serves again"), Duration::from_secs(60), || {
            (address.exists() && self.pid(service) != pid).then_some(())
        });
    }

    /// Where a service is.
    ///
    /// # Errors
    /// The deployment's file is malformed.
    pub fn url(&self, service: &str) -> anyhow::Result<String> {
        let text: Value = serde_json::from_slice(&fs::read(self.dir.join("deployment.json"))?)?;
        Ok(text
            .pointer(&format!("/endpoints/{service}"))
            .and_then(Value::as_str)
            .context("no such service")?
            .to_owned())
    }

    /// An endpoint without credentials.
    ///
    /// # Errors
    /// The deployment's files are malformed.
    pub fn endpoint(&self, service: &str) -> anyhow::Result<Endpoint> {
        Ok(Endpoint::new(
            &self.url(service)?,
            &Credentials::trusting(&self.dir.join("pki/ca.pem"))?,
            Duration::from_secs(30),
        )?)
    }

    /// An endpoint with a service's certificate.
    ///
    /// # Errors
    /// The deployment's files are malformed.
    pub fn endpoint_as(&self, service: &str, workload: &str) -> anyhow::Result<Endpoint> {
        let pki = self.dir.join("pki");
        let credentials = Credentials::load(
            &pki.join("ca.pem"),
            &pki.join(format!("{workload}.pem")),
            &pki.join(format!("{workload}.key")),
        )?;
        Ok(Endpoint::new(&self.url(service)?, &credentials, Duration::from_secs(30))?)
    }

    /// A token source: of a principal by its secret, of a workload by its certificate, or of a managed identity by
    /// the storage node's.
    ///
    /// # Errors
    /// The deployment's files are malformed.
    pub fn tokens(&self, who: &str, audience: &'static str) -> anyhow::Result<TokenSource> {
        if let Some(workload) = who.strip_prefix("workload:") {
            return Ok(TokenSource::workload(self.endpoint_as("identity", workload)?, "", audience));
        }
        if who.starts_with("managedIdentities/") {
            return Ok(TokenSource::workload(self.endpoint_as("identity", "storage")?, who, audience));
        }
        let held: Value =
            serde_json::from_slice(&fs::read(self.dir.join(format!("credentials/{who}.json")))?)?;
        let field = |name: &str| held.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(TokenSource::secret(
            self.endpoint("identity")?,
            &field("client_id"),
            &field("client_secret"),
            audience,
        ))
    }

    /// A channel to a service as someone: see [`Deployment::tokens`].
    ///
    /// # Errors
    /// The deployment's files are malformed.
    pub fn channel(&self, service: &str, who: &str) -> anyhow::Result<AuthenticatedChannel> {
        let audience = match service {
            "identity" => "custody-identity",
            "vault" => "custody-vault",
            "control" => "custody-control",
            "storage" => "custody-node",
            "database" => "custody-database",
            other => bail!("no service `{other}`"),
        };
        Ok(self.endpoint(service)?.authenticated(self.tokens(who, audience)?))
    }

    /// Makes a principal of a duty, an officer with the approval of the second one, and answers what it proves itself with. Its
    /// credentials lie where `channel` and `--as` find them.
    ///
    /// # Panics
    /// A step failed.
    #[must_use]
    pub fn principal(&self, id: &str, duty: &str) -> Value {
        let make = ["identity", "create-principal", id, duty];
        let made = self.cli(&make).unwrap_or_else(|refused| {
            let refused = refused.to_string();
            let named = refused.split('`').find(|part| part.starts_with("approvals/"));
            let approval = named.expect(&refused);
            _ = self.run(&["--as", "custodian", "access", "approve", approval]);
            self.run(&make)
        });
        let path = self.dir.join(format!("credentials/{id}.json"));
        fs::write(path, made.to_string()).expect("the deployment's directory");
        made
    }

    /// Makes a vault, a key and an identity with rights on it; answers the names of key, identity and assignment.
    ///
    /// # Panics
    /// A step failed.
    #[must_use]
    pub fn key_and_identity(&self, id: &str) -> (String, String, String) {
        self.key_of_kind_and_identity(id, &[])
    }

    /// As [`Deployment::key_and_identity`], of a key that is made with these options.
    pub(crate) fn key_of_kind_and_identity(&self, id: &str, kind: &[&str]) -> (String, String, String) {
        _ = self.run(&["vault", "create", id]);
        let key = format!("vaults/{id}/keys/{id}");
        let identity = format!("managedIdentities/{id}");
        _ = self.run(&[&["key", "create", &key], kind].concat());
        _ = self.run(&["identity", "create", id]);
        let made =
            self.run(&["access", "grant", &identity, "Key Vault Crypto Service Encryption User", &key]);
        (key, identity, made.get("name").and_then(Value::as_str).unwrap_or_default().to_owned())
    }

    /// Lets the storage node act as a managed identity, as the control plane does when it makes a cluster.
    ///
    /// # Errors
    /// The identity does not exist, or the identity service does not answer.
    pub async fn bind(&self, identity: &str) -> anyhow::Result<()> {
        self.bind_to(identity, "principals/storage").await
    }

    /// Lets a further storage node act as a managed identity.
    ///
    /// # Errors
    /// The identity does not exist, or the identity service does not answer.
    pub async fn bind_to(&self, identity: &str, node: &str) -> anyhow::Result<()> {
        let request = BindManagedIdentityRequest { name: identity.to_owned(), node: node.to_owned() };
        let mut client = IdentityClient::new(self.channel("identity", "workload:control")?);
        client.bind_managed_identity(request).await?;
        Ok(())
    }

    /// Makes a cluster and answers its coordinator's endpoint.
    ///
    /// # Panics
    /// It could not be made.
    #[must_use]
    pub fn cluster(&self, id: &str, key: &str, identity: &str, workers: u32) -> String {
        let made = self.run(&[
            "cluster",
            "create",
            id,
            "--key",
            key,
            "--identity",
            identity,
            "--workers",
            &workers.to_string(),
            "--size-mib",
            "512",
        ]);
        made.pointer("/nodes/0/endpoint").and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// Runs SQL as the DBA.
    ///
    /// # Errors
    /// No connection, or PostgreSQL refused.
    pub fn sql(&self, endpoint: &str, text: &str) -> anyhow::Result<String> {
        let (host, port) = endpoint.rsplit_once(':').context("no endpoint")?;
        let output = Command::new("psql")
            .args([
                "-X",
                "-q",
                "-A",
                "-t",
                "-v",
                "ON_ERROR_STOP=1",
                "-h",
                host,
                "-p",
                port,
                "-U",
                "dba",
                "-d",
                "app",
                "-c",
                text,
            ])
            .env("PGPASSWORD", "test-Password-1")
            .env("PGCONNECT_TIMEOUT", "2")
            .stdin(Stdio::null())
            .output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// A cluster's state.
    ///
    /// # Panics
    /// The control plane does not answer.
    #[must_use]
    pub fn cluster_state(&self, id: &str) -> String {
        let seen = self.run(&["cluster", "get", &format!("clusters/{id}")]);
        seen.get("state").and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// Stops everything and answers the directory, which stays.
    #[must_use]
    pub fn stop(mut self) -> PathBuf {
        self.end();
        let dir = self.dir.clone();
        self.dir = PathBuf::new();
        dir
    }

    fn end(&mut self) {
        let pid = i32::try_from(self.supervisor.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|_| self.supervisor.try_wait().is_ok_and(|e| e.is_none())) {
            _ = kill_process(pid, Signal::TERM);
        }
        _ = self.supervisor.wait();
    }
}

impl Drop for Deployment {
    #[expect(clippy::print_stderr, reason = "tells where a failed test's logs are")]
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            eprintln!("the deployment and its logs stay in {}", self.dir.display());
        } else if self.dir.is_absolute() {
            _ = fs::remove_dir_all(&self.dir);
        }
    }
}
