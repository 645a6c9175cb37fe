//! The DBA's part: PostgreSQL's own clients.

use anyhow::{Context as _, ensure};
use custody_proto::control::Cluster;
use prost_types::Timestamp;
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// The `dba` role's password in demonstrations.
pub(crate) const PASSWORD: &str = "demo-Password-1";

fn installed() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let newest = versions
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|v| *v >= 15)
        .max()?;
    Some(PathBuf::from(format!("/usr/lib/postgresql/{newest}/bin")))
}

/// What this machine lacks to run databases.
pub(crate) fn missing_tools() -> Vec<String> {
    let mut missing = Vec::new();
    if !installed().is_some_and(|bin| bin.join("postgres").exists() && bin.join("pgbench").exists()) {
        missing.push("PostgreSQL 15 or newer (Debian: postgresql)".to_owned());
    }
    let there = |name: &str| {
        ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].iter().any(|d| Path::new(d).join(name).exists())
    };
    if !there("nbdfuse") && !there("nbd-client") {
        missing.push("an NBD client (Debian: libnbd-bin)".to_owned());
    }
    if !Path::new("/dev/fuse").exists() && !Path::new("/dev/nbd0").exists() {
        missing.push("/dev/fuse".to_owned());
    }
    if !rustix::process::geteuid().is_root() {
        missing.push("root, to mount volumes".to_owned());
    }
    missing
}

/// A DBA at a cluster's coordinator.
#[derive(Clone)]
pub(crate) struct Dba {
    bin: PathBuf,
    port: String,
    workers: usize,
}

impl Dba {
    pub(crate) fn of(cluster: &Cluster) -> anyhow::Result<Self> {
        let coordinator = cluster.nodes.first().context("the cluster has no nodes")?;
        let (_, port) = coordinator.endpoint.rsplit_once(':').context("the coordinator does not serve")?;
        Ok(Self {
            bin: installed().context("PostgreSQL is not installed")?,
            port: port.to_owned(),
            workers: cluster.nodes.len() - 1,
        })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command
            .args(["-h", "127.0.0.1", "-p", &self.port, "-U", "dba"])
            .env("PGPASSWORD", PASSWORD)
            .env("PGCONNECT_TIMEOUT", "2")
            .stdin(Stdio::null());
        command
    }

    fn run(command: &mut Command) -> anyhow::Result<String> {
        let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{:?} failed: {}", command.get_program(), said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &said)
    }

    pub(crate) fn sql(&self, text: &str) -> anyhow::Result<String> {
        Self::run(self.command("psql").args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            "app",
            "-c",
            text,
        ]))
    }

    pub(crate) fn load(&self, scale: u32) -> anyhow::Result<()> {
        Self::run(self.command("pgbench").args(["-i", "-q", "-I", "dtgp", "-s", &scale.to_string(), "app"]))
            .map(drop)?;
        self.sql("CREATE INDEX ON pgbench_accounts (abalance)").map(drop)
    }

    /// Plants the secret in a table of the coordinator and in one of each worker, through foreign tables.
    pub(crate) fn plant(&self, secret: &str) -> anyhow::Result<()> {
        self.sql(&format!("CREATE TABLE salaries AS SELECT g AS id, '{secret} ' || g AS note FROM generate_series(1, 20000) g"))?;
        for worker in 1..=self.workers {
            self.sql(&format!("CREATE USER MAPPING FOR dba SERVER worker_{worker} OPTIONS (user 'dba', password '{PASSWORD}')"))?;
            let on_worker = self.on_worker(worker)?;
            on_worker.sql("CREATE TABLE salaries (id int, note text)")?;
            self.sql(&format!("CREATE FOREIGN TABLE salaries_{worker} (id int, note text) SERVER worker_{worker} OPTIONS (table_name 'salaries')"))?;
            self.sql(&format!(
                "INSERT INTO salaries_{worker} SELECT * FROM salaries WHERE id % {} = {}",
                self.workers,
                worker - 1
            ))?;
        }
        Ok(())
    }

    fn on_worker(&self, worker: usize) -> anyhow::Result<Self> {
        let options = self.sql(&format!("SELECT option_value FROM pg_foreign_server, pg_options_to_table(srvoptions) WHERE srvname = 'worker_{worker}' AND option_name = 'port'"))?;
        Ok(Self { port: options.trim().to_owned(), ..self.clone() })
    }

    pub(crate) fn workers_answer(&self, secret: &str) -> anyhow::Result<bool> {
        for worker in 1..=self.workers {
            let count =
                self.sql(&format!("SELECT count(*) FROM salaries_{worker} WHERE note LIKE '{secret}%'"))?;
            if count.trim().parse::<usize>()? != 20_000 / self.workers {
                return Ok(false);
            }
        }
        self.has(secret)
    }

    pub(crate) fn has(&self, secret: &str) -> anyhow::Result<bool> {
        Ok(self.sql(&format!("SELECT count(*) FROM salaries WHERE note LIKE '{secret}%'"))?.trim() == "20000")
    }

    /// Writes a row that an earlier backup has not.
    pub(crate) fn note(&self, text: &str) -> anyhow::Result<()> {
        self.sql(&format!(
            "CREATE TABLE IF NOT EXISTS notes (note text); INSERT INTO notes VALUES ('{text}')"
        ))
        .map(drop)
    }

    pub(crate) fn noted(&self, text: &str) -> anyhow::Result<bool> {
        Ok(self.sql("SELECT note FROM notes")?.lines().any(|line| line.trim() == text))
    }

    /// Drops the accounts, and answers the moment before.
    pub(crate) fn drop_accounts(&self) -> anyhow::Result<Timestamp> {
        let now = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')";
        let moment = self.sql(&format!("{now}; SELECT pg_sleep(0.01); DROP TABLE pgbench_accounts"))?;
        Ok(moment.lines().next().unwrap_or_default().trim().parse()?)
    }

    /// Has what was written so far archived now, on every node.
    pub(crate) fn switch_wal(&self) -> anyhow::Result<()> {
        // A transaction first: an empty segment is not switched.
        let switch = |node: &Self| node.sql("SELECT pg_current_xact_id(); SELECT pg_switch_wal()").map(drop);
        switch(self)?;
        (1..=self.workers).try_for_each(|worker| switch(&self.on_worker(worker)?))
    }

    pub(crate) fn sort_spills(&self) -> anyhow::Result<bool> {
        let plan = self.sql(
            "SET work_mem = '64kB'; EXPLAIN (ANALYZE, COSTS OFF) SELECT * FROM salaries ORDER BY note DESC",
        )?;
        Ok(plan.contains("external merge"))
    }

    pub(crate) fn accounts(&self) -> anyhow::Result<u64> {
        Ok(self.sql("SELECT count(*) FROM pgbench_accounts")?.trim().parse()?)
    }

    pub(crate) fn history(&self) -> anyhow::Result<u64> {
        Ok(self.sql("SELECT count(*) FROM pgbench_history")?.trim().parse()?)
    }

    /// Load from four clients.
    pub(crate) fn start_load(&self, seconds: u32) -> anyhow::Result<Load> {
        let mut command = self.command("pgbench");
        command
            .args(["-n", "-c", "4", "-j", "2", "-T", &seconds.to_string(), "app"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(Load(command.spawn()?))
    }

    /// One connection that asks again and again.
    pub(crate) fn start_prober(&self) -> anyhow::Result<Prober> {
        let mut command = self.command("psql");
        command.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-d",
            "app",
            "-c",
            "SELECT count(*) FROM salaries",
            "-c",
            "\\watch 0.01",
        ]);
        Ok(Prober(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?, self.clone()))
    }
}

/// A running pgbench.
pub(crate) struct Load(Child);

impl Load {
    /// Waits for its end and answers the transactions that were acknowledged.
    pub(crate) fn finish(self) -> anyhow::Result<u64> {
        let output = self.0.wait_with_output()?;
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success() && said.contains("number of failed transactions: 0"),
            "pgbench met an error: {said}"
        );
        let line = said.lines().find_map(|l| l.strip_prefix("number of transactions actually processed: "));
        Ok(line.context("pgbench told no count")?.trim().parse()?)
    }
}

/// A client whose connection ends when PostgreSQL does, or when a read fails before that.
pub(crate) struct Prober(Child, Dba);

impl Prober {
    /// When its connection had ended and a new one was refused: from then on nothing was answered.
    pub(crate) fn until_gone(mut self, limit: Duration) -> anyhow::Result<Instant> {
        let until = Instant::now() + limit;
        while self.0.try_wait()?.is_none() {
            ensure!(Instant::now() < until, "PostgreSQL still answers after {limit:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut gone = Instant::now();
        while self.1.sql("SELECT 1").is_ok() {
            gone = Instant::now();
            ensure!(gone < until, "PostgreSQL still takes connections after {limit:?}");
        }
        ensure!(self.1.sql("SELECT 1").is_err(), "PostgreSQL was gone, and came back without the key");
        Ok(gone)
    }
}
