//! Backup programs of others, over the files of one table.

use crate::peer::run;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// MiB in a file of a table.
pub(crate) const SEGMENT_MIB: u64 = 1024;

/// What each is timed at.
pub(crate) trait Peer {
    fn init(&mut self) -> anyhow::Result<()>;
    fn full(&mut self) -> anyhow::Result<()>;
    fn increment(&mut self) -> anyhow::Result<()>;
    fn verify(&mut self) -> anyhow::Result<()>;
    fn restore(&mut self) -> anyhow::Result<()>;
    fn clean(&mut self) -> anyhow::Result<()>;
}

/// restic: a repository of chunks cut by content.
pub(crate) struct Restic {
    repository: PathBuf,
    target: PathBuf,
    source: Vec<String>,
}

impl Restic {
    pub(crate) fn new(dir: &Path, table: &[PathBuf]) -> Self {
        let source = table.iter().map(|t| t.display().to_string()).collect();
        Self { repository: dir.join("restic"), target: dir.join("restic-restored"), source }
    }

    fn restic(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new("restic");
        command.args(["--quiet", "--no-cache", "--repo"]).arg(&self.repository).args(arguments);
        run(command.env("RESTIC_PASSWORD", "benchmark")).map(drop)
    }
}

impl Peer for Restic {
    fn init(&mut self) -> anyhow::Result<()> {
        self.restic(&["init"])
    }

    fn full(&mut self) -> anyhow::Result<()> {
        let mut arguments = vec!["backup", "--compression", "off"];
        arguments.extend(self.source.iter().map(String::as_str));
        self.restic(&arguments)
    }

    fn increment(&mut self) -> anyhow::Result<()> {
        self.full()
    }

    fn verify(&mut self) -> anyhow::Result<()> {
        self.restic(&["check", "--read-data"])
    }

    fn restore(&mut self) -> anyhow::Result<()> {
        self.restic(&["restore", "latest", "--target", &self.target.display().to_string()])
    }

    fn clean(&mut self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.repository)?;
        Ok(fs::remove_dir_all(&self.target)?)
    }
}

/// pgBackRest, offline, on two processes. It takes a changed file of a table whole, in the versions that distributions have.
pub(crate) struct PgBackRest {
    config: PathBuf,
    repository: PathBuf,
    target: PathBuf,
}

impl PgBackRest {
    /// Makes a directory of PostgreSQL's with an empty table of so many MiB; answers the table's files.
    pub(crate) fn make_source(dir: &Path, mib: u64) -> anyhow::Result<Vec<PathBuf>> {
        let data = Self::data(dir);
        run(Command::new("install")
            .args(["-d", "-o", "postgres", "-g", "postgres", "-m", "0700"])
            .arg(&data))?;
        // A server that was stopped; no byte of it is in the way of the figures but 40 MB of catalogs.
        run(crate::database::as_postgres(&custody_testkit::postgres_programs()?.join("initdb"))
            .args(["-N", "--no-instructions", "--auth=trust", "-D"])
            .arg(&data))?;
        let table = |n: u64| match n {
            0 => data.join("base/1/99999"),
            n => data.join(format!("base/1/99999.{n}")),
        };
        let files: Vec<_> = (0..mib.div_ceil(SEGMENT_MIB)).map(table).collect();
        for file in &files {
            fs::File::create_new(file)?;
            run(Command::new("chown").arg("postgres:").arg(file))?;
        }
        Ok(files)
    }

    fn data(dir: &Path) -> PathBuf {
        dir.join("pgdata")
    }

    pub(crate) fn new(dir: &Path) -> anyhow::Result<Self> {
        let (config, repository) = (dir.join("pgbackrest.conf"), dir.join("pgbackrest"));
        let at = dir.display();
        let settings = format!(
            "[global]\nrepo1-path={at}/pgbackrest\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=benchmark\nrepo1-retention-full=100\n\
             compress-type=none\nprocess-max=2\nlog-level-file=off\nlock-path={at}/lock\nlog-level-console=warn\n[bench]\npg1-path={}\n",
            Self::data(dir).display()
        );
        fs::write(&config, settings)?;
        Ok(Self { config, repository, target: dir.join("pgbackrest-restored") })
    }

    fn pgbackrest(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let config = format!("--config={}", self.config.display());
        run(Command::new("pgbackrest").arg(config).arg("--stanza=bench").args(arguments)).map(drop)
    }
}

impl Peer for PgBackRest {
    fn init(&mut self) -> anyhow::Result<()> {
        self.pgbackrest(&["--no-online", "stanza-create"])
    }

    fn full(&mut self) -> anyhow::Result<()> {
        self.pgbackrest(&["--no-online", "--type=full", "backup"])
    }

    fn increment(&mut self) -> anyhow::Result<()> {
        self.pgbackrest(&["--no-online", "--type=incr", "backup"])
    }

    fn verify(&mut self) -> anyhow::Result<()> {
        self.pgbackrest(&["verify"])
    }

    fn restore(&mut self) -> anyhow::Result<()> {
        fs::create_dir_all(&self.target)?;
        let target = format!("--pg1-path={}", self.target.display());
        self.pgbackrest(&[&target, "--type=none", "restore"])
    }

    fn clean(&mut self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.repository)?;
        Ok(fs::remove_dir_all(&self.target)?)
    }
}
