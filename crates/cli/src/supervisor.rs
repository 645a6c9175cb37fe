//! Running the services: each its own process, started together, started again if one ends.

use crate::{
    deployment::{Deployment, Options, SERVICES},
    output, softhsm,
};
use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::process::{Child, Command};

/// How long a service may take to begin to serve.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to end when asked.
const STOP_TIMEOUT: Duration = Duration::from_secs(45);

pub(crate) struct Running {
    dir: PathBuf,
    children: Vec<(&'static str, Child)>,
    /// SoftHSM's configuration, where it is the vault's HSM.
    soft_hsm: Option<PathBuf>,
    _lock: File,
}

fn program(service: &str) -> anyhow::Result<PathBuf> {
    let name = if service == "storage" { "custody-node".to_owned() } else { format!("custody-{service}") };
    let beside = std::env::current_exe()?.with_file_name(&name);
    anyhow::ensure!(beside.exists(), "`{}` is missing; build the workspace first", beside.display());
    Ok(beside)
}

fn spawn(dir: &Path, service: &str, soft_hsm: Option<&Path>) -> anyhow::Result<Child> {
    let log = OpenOptions::new().create(true).append(true).open(dir.join(format!("logs/{service}.log")))?;
    let mut command = Command::new(program(service)?);
    if let ("vault", Some(file)) = (service, soft_hsm) {
        command.env(softhsm::CONFIGURATION, file);
    }
    let child = command
        .arg("--config")
        .arg(dir.join(service).join("settings.toml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .with_context(|| format!("custody-{service} cannot be started"))?;
    let pid = child.id().unwrap_or(0).to_string();
    custody_rpc::server::write_whole(&dir.join(service).join("pid"), &pid)?;
    Ok(child)
}

impl Running {
    /// Starts everything and waits until all serve.
    pub(crate) async fn start(dir: &Path, options: &Options) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let lock = File::create(dir.join("lock"))?;
        lock.try_lock().with_context(|| {
            format!(
                "a deployment is running in `{}` already; stop it, or choose another --dir",
                dir.display()
            )
        })?;
        Deployment::prepare(dir, options)?;
        let dir = dir.canonicalize()?;
        let soft_hsm = options.hsm.configuration(&dir);
        let mut running = Self { dir: dir.clone(), children: Vec::new(), soft_hsm, _lock: lock };
        for service in SERVICES {
            let child = spawn(&dir, service, running.soft_hsm.as_deref())?;
            running.children.push((service, child));
        }
        let until = Instant::now() + START_TIMEOUT;
        for at in 0..running.children.len() {
            let Some((service, child)) = running.children.get_mut(at) else { continue };
            let address = dir.join(*service).join("address");
            while !address.exists() {
                let ended = child.try_wait()?.is_some();
                if ended || Instant::now() > until {
                    let log = dir.join(format!("logs/{service}.log"));
                    let said = std::fs::read_to_string(&log).unwrap_or_default();
                    let tail: Vec<&str> = said.lines().rev().take(5).collect();
                    let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n  ");
                    let service = *service;
                    running.stop().await;
                    anyhow::bail!(
                        "custody-{service} did not begin to serve; its log `{}` ends with:\n  {tail}",
                        log.display()
                    );
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Ok(running)
    }

    /// Looks for services that have ended, and starts them again.
    pub(crate) fn revive(&mut self) -> anyhow::Result<()> {
        for (service, child) in &mut self.children {
            if let Some(status) = child.try_wait()? {
                output::note(format!("custody-{service} ended ({status}); starting it again"));
                *child = spawn(&self.dir, service, self.soft_hsm.as_deref())?;
            }
        }
        Ok(())
    }

    /// Ends everything, in an order in which nothing misses what it needs.
    pub(crate) async fn stop(mut self) {
        for wanted in SERVICES.iter().rev() {
            let Some((_, child)) = self.children.iter_mut().find(|(s, _)| s == wanted) else { continue };
            let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
            if let Some(pid) = pid {
                _ = kill_process(pid, Signal::TERM);
            }
            if tokio::time::timeout(STOP_TIMEOUT, child.wait()).await.is_err() {
                _ = child.kill().await;
            }
        }
    }
}

/// Runs a deployment until interrupted.
pub(crate) async fn up(dir: &Path, options: Options) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut running = Running::start(dir, &options).await?;
    let deployment = Deployment::read(dir)?;
    output::line(format!("all services healthy after {} ms", started.elapsed().as_millis()));
    for (service, endpoint) in &deployment.endpoints {
        output::line(format!("  {service:9} {endpoint}"));
    }
    output::line(format!("credentials and certificates are in {}", dir.display()));
    let mut looks = tokio::time::interval(Duration::from_millis(50));
    let terminated = custody_rpc::server::terminated();
    tokio::pin!(terminated);
    loop {
        tokio::select! {
            () = &mut terminated => break,
            _ = looks.tick() => running.revive()?,
        }
    }
    running.stop().await;
    Ok(())
}
