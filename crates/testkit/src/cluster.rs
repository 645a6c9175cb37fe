//! A whole platform with a database cluster under a customer's key: for test suites of whoever depends on one.

use crate::{Deployment, Proxy, SoftHsm, database_tools};
use anyhow::{Context as _, bail, ensure};
use custody_clients::{Access, Audit, Control, FaultInjection, Leases, Lineage, Storage, Vault};
use custody_proto::vault::{
    LoseRegionRequest, RestoreRegionRequest, SetFaultProfileRequest, ShiftClockRequest,
    set_fault_profile_request::Profile,
};
use serde_json::Value;
use std::{
    fmt, fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::spawn_blocking;

/// Between looks at a condition.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The id of everything that is made.
const ID: &str = "sut";

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Caller {
    /// Owns keys.
    Officer,
    /// A second officer.
    Custodian,
    /// Runs clusters.
    Sysadmin,
    /// Reads trails.
    Auditor,
    /// Has the vault misbehave.
    Tester,
    /// A managed identity, by its name.
    Identity(String),
}

impl Caller {
    fn name(&self) -> &str {
        match self {
            Self::Officer => "officer",
            Self::Custodian => "custodian",
            Self::Sysadmin => "sysadmin",
            Self::Auditor => "auditor",
            Self::Tester => "tester",
            Self::Identity(name) => name,
        }
    }
}

/// A process of the platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Service {
    /// Tokens.
    Identity,
    /// Keys.
    Vault,
    /// Volumes.
    Storage,
    /// PostgreSQL.
    Database,
    /// Clusters.
    Control,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Identity => "identity",
            Self::Vault => "vault",
            Self::Storage => "storage",
            Self::Database => "database",
            Self::Control => "control",
        })
    }
}

/// What a cluster can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// It serves.
    Ready,
    /// Its key cannot be used.
    Inaccessible,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Ready => "READY",
            Self::Inaccessible => "INACCESSIBLE",
        }
    }
}

/// What came of a revocation.
#[derive(Clone, Debug)]
pub struct Revocation {
    /// Holders that erased the key and signed that they did.
    pub erased: u64,
    /// Holders that did not answer, whose leases ran out.
    pub lapsed: u64,
    /// From the revocation until the last was known to have ended.
    pub took: Duration,
    /// The proof, a file: for [`Cluster::verify`].
    pub proof: PathBuf,
}

/// Choices of a start.
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    workers: u32,
    lease: Duration,
    renew_every: Duration,
    profile: String,
    in_hsm: bool,
}

impl Builder {
    /// PostgreSQL servers beside the coordinator; none if not set.
    pub fn workers(self, workers: u32) -> Self {
        Self { workers, ..self }
    }

    /// How long a storage node holds keys without the vault's answer, and how often it asks; 3 s and 1 s if not set.
    pub fn lease(self, lease: Duration, renew_every: Duration) -> Self {
        Self { lease, renew_every, ..self }
    }

    /// How the vault misbehaves once the cluster is made: `none` if not set. See `docs/faults.md`.
    pub fn profile(self, name: &str) -> Self {
        Self { profile: name.to_owned(), ..self }
    }

    /// The customer's key is inside an HSM, one of software whose plug can be pulled: [`Cluster::lose_hsm`].
    pub fn in_hsm(self) -> Self {
        Self { in_hsm: true, ..self }
    }

    /// Starts it: five processes and a cluster whose key is a customer's.
    ///
    /// # Errors
    /// PostgreSQL, an NBD client or SoftHSM is missing, or root; the programs are not built; something does not come up.
    pub async fn start(self) -> anyhow::Result<Cluster> {
        database_tools()?;
        let made = spawn_blocking(move || Cluster::make(&self)).await?;
        made.context("the cluster did not come up")
    }
}

/// A cluster under a customer's key, with all that it depends on. Everything ends when it is dropped; its directory, with every log, stays
/// if the thread is panicking.
#[derive(Debug)]
pub struct Cluster {
    deployment: Arc<Deployment>,
    key: String,
    identity: String,
    endpoint: String,
    to_vault: Proxy,
    to_identity: Proxy,
    hsm: Option<SoftHsm>,
}

/// The HSM is away until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct LostHsm<'a>(&'a SoftHsm);

impl Drop for LostHsm<'_> {
    fn drop(&mut self) {
        // Where its directory is gone, so is the deployment.
        _ = self.0.bring_back();
    }
}

/// The storage node is cut off from the vault and the identity service until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Partition<'a>(&'a Cluster);

impl Drop for Partition<'_> {
    fn drop(&mut self) {
        self.0.to_vault.mend();
        self.0.to_identity.mend();
    }
}

impl Cluster {
    /// Starts one with the usual choices.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub async fn start() -> anyhow::Result<Self> {
        Self::builder().start().await
    }

    /// To choose.
    pub fn builder() -> Builder {
        let (lease, renew_every) = (Duration::from_secs(3), Duration::from_secs(1));
        Builder { workers: 0, lease, renew_every, profile: "none".to_owned(), in_hsm: false }
    }

    fn make(of: &Builder) -> anyhow::Result<Self> {
        let (lease, renew) = (of.lease.as_millis().to_string(), of.renew_every.as_millis().to_string());
        let arguments = ["--faults", "none", "--lease-ms", &lease, "--renew-every-ms", &renew];
        let (with_hsm, kind): (&[_], &[_]) =
            if of.in_hsm { (&["--soft-hsm"], &["--hsm"]) } else { (&[], &[]) };
        let deployment = Deployment::start_with_environment(&[&arguments, with_hsm].concat(), &[])?;
        let hsm = of.in_hsm.then(|| SoftHsm::of(deployment.dir()));
        let to = |service: &str| -> anyhow::Result<Proxy> {
            Ok(Proxy::start(deployment.url(service)?.trim_start_matches("https://"))?)
        };
        let (to_vault, to_identity) = (to("vault")?, to("identity")?);
        // The storage node's way to both is one that can be cut.
        let settings = deployment.dir().join("storage/settings.toml");
        let mut text = fs::read_to_string(&settings)?;
        for (service, proxy) in [("vault", &to_vault), ("identity", &to_identity)] {
            text = text.replace(&deployment.url(service)?, &proxy.url());
        }
        fs::write(&settings, text)?;
        deployment.kill("storage");
        let (key, identity, _) = deployment.key_of_kind_and_identity(ID, kind);
        let endpoint = deployment.cluster(ID, &key, &identity, of.workers);
        _ = deployment.cli(&["faults", "set", &of.profile])?;
        Ok(Self { deployment: Arc::new(deployment), key, identity, endpoint, to_vault, to_identity, hsm })
    }

    /// The customer's key: `vaults/sut/keys/sut`.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// As whom the cluster uses it.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// All that runs: for what this has no word for.
    #[must_use]
    pub fn deployment(&self) -> &Deployment {
        &self.deployment
    }

    /// Runs a verb of the command, and answers what it says, JSON where it is.
    ///
    /// # Errors
    /// It failed: the error has what it said.
    pub async fn command(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let deployment = self.deployment.clone();
        let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        spawn_blocking(move || {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            deployment.cli(&arguments)
        })
        .await?
    }

    /// The vault, as someone.
    ///
    /// # Errors
    /// There is no such caller.
    pub fn vault(&self, who: &Caller) -> anyhow::Result<Vault> {
        Ok(Vault::new(self.deployment.channel("vault", who.name())?))
    }

    /// Who may use which key, as someone.
    ///
    /// # Errors
    /// There is no such caller.
    pub fn access(&self, who: &Caller) -> anyhow::Result<Access> {
        Ok(Access::new(self.deployment.channel("vault", who.name())?))
    }

    /// Leases and revocations, as someone.
    ///
    /// # Errors
    /// There is no such caller.
    pub fn leases(&self, who: &Caller) -> anyhow::Result<Leases> {
        Ok(Leases::new(self.deployment.channel("vault", who.name())?))
    }

    /// What needs which version of a key, as someone.
    ///
    /// # Errors
    /// There is no such caller.
    pub fn lineage(&self, who: &Caller) -> anyhow::Result<Lineage> {
        Ok(Lineage::new(self.deployment.channel("vault", who.name())?))
    }

    /// The vault's trail, as someone.
    ///
    /// # Errors
    /// There is no such caller.
    pub fn audit(&self, who: &Caller) -> anyhow::Result<Audit> {
        Ok(Audit::new(self.deployment.channel("vault", who.name())?))
    }

    /// The control plane, as someone.
    ///
    /// # Errors
    /// There is no such caller.
    pub fn control(&self, who: &Caller) -> anyhow::Result<Control> {
        Ok(Control::new(self.deployment.channel("control", who.name())?))
    }

    /// The storage node, as someone.
    ///
    /// # Errors
    /// There is no such caller.
    pub fn storage(&self, who: &Caller) -> anyhow::Result<Storage> {
        Ok(Storage::new(self.deployment.channel("storage", who.name())?))
    }

    fn faults(&self) -> anyhow::Result<FaultInjection> {
        Ok(FaultInjection::new(self.deployment.channel("vault", Caller::Tester.name())?))
    }

    /// Runs SQL in the cluster's database.
    ///
    /// # Errors
    /// No connection, or PostgreSQL refused.
    pub async fn query(&self, sql: &str) -> anyhow::Result<String> {
        let (deployment, endpoint, sql) = (self.deployment.clone(), self.endpoint.clone(), sql.to_owned());
        spawn_blocking(move || deployment.sql(&endpoint, &sql)).await?
    }

    /// Takes the customer's key away, and follows each holder until its copy is gone.
    ///
    /// # Errors
    /// The vault refused.
    pub async fn revoke(&self) -> anyhow::Result<Revocation> {
        let name = format!("proof-{:?}", Instant::now()).replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let proof = self.deployment.dir().join(name);
        let shown = proof.display().to_string();
        let said = self.command(&["key", "revoke", &self.key, "--prove", "--bundle", &shown]).await?;
        let number = |field: &str| said.get(field).and_then(Value::as_u64).with_context(|| field.to_owned());
        let ms = said.get("ms").and_then(Value::as_f64).context("ms")?;
        let (erased, lapsed) = (number("erased")?, number("lapsed")?);
        Ok(Revocation { erased, lapsed, took: Duration::from_secs_f64(ms / 1e3), proof })
    }

    /// Checks the proof of a revocation, offline.
    ///
    /// # Errors
    /// It does not hold.
    pub async fn verify(&self, revocation: &Revocation) -> anyhow::Result<()> {
        let proof = revocation.proof.display().to_string();
        self.command(&["proof", "verify", &proof]).await.map(drop)
    }

    /// Gives back what [`Cluster::revoke`] took.
    ///
    /// # Errors
    /// The vault refused.
    pub async fn reinstate(&self) -> anyhow::Result<()> {
        self.command(&["key", "reinstate", &self.key]).await.map(drop)
    }

    /// Makes a new version of the customer's key.
    ///
    /// # Errors
    /// The vault refused.
    pub async fn rotate(&self) -> anyhow::Result<()> {
        self.command(&["key", "rotate", &self.key]).await.map(drop)
    }

    /// Has the vault misbehave by a profile from now on; by `none`, not any more.
    ///
    /// # Errors
    /// There is no such profile.
    pub async fn profile(&self, name: &str) -> anyhow::Result<()> {
        let profile = Some(Profile::Named(name.to_owned()));
        self.faults()?.set_fault_profile(SetFaultProfileRequest { profile }).await?;
        Ok(())
    }

    /// The vault's region is away for a time: nobody is answered. Returns at once.
    ///
    /// # Errors
    /// The vault does not run.
    pub async fn vault_outage(&self, length: Duration) -> anyhow::Result<()> {
        let length = Some(prost_types::Duration::try_from(length)?);
        self.faults()?.lose_region(LoseRegionRequest { length }).await?;
        Ok(())
    }

    /// The vault's region is back.
    ///
    /// # Errors
    /// The vault does not run.
    pub async fn end_outage(&self) -> anyhow::Result<()> {
        self.faults()?.restore_region(RestoreRegionRequest {}).await?;
        Ok(())
    }

    /// The clock that the key's dates are held against is so many seconds ahead of the true time; behind, where that is negative.
    ///
    /// # Errors
    /// More than a year.
    pub async fn clock_jump(&self, seconds: i64) -> anyhow::Result<()> {
        let shift = Some(prost_types::Duration { seconds, nanos: 0 });
        let request = ShiftClockRequest { vault: format!("vaults/{ID}"), shift };
        self.faults()?.shift_clock(request).await?;
        Ok(())
    }

    /// Kills a process; returns when its successor serves.
    ///
    /// # Errors
    /// It does not come back.
    pub async fn kill(&self, service: Service) -> anyhow::Result<()> {
        let deployment = self.deployment.clone();
        Ok(spawn_blocking(move || deployment.kill(&service.to_string())).await?)
    }

    /// Cuts the storage node off from the vault and the identity service, as a network that loses every packet.
    pub fn partition(&self) -> Partition<'_> {
        self.to_vault.cut();
        self.to_identity.cut();
        Partition(self)
    }

    /// Pulls the plug of the HSM that has the customer's key, until what this gives is dropped.
    ///
    /// # Errors
    /// The key is in none: [`Builder::in_hsm`].
    pub fn lose_hsm(&self) -> anyhow::Result<LostHsm<'_>> {
        let hsm = self.hsm.as_ref().context("the key is in no HSM; start the cluster with `in_hsm()`")?;
        hsm.take_away()?;
        Ok(LostHsm(hsm))
    }

    /// Waits until the cluster is in a state.
    ///
    /// # Errors
    /// It is not within the limit; the error has what it is instead.
    pub async fn wait_for(&self, state: State, limit: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + limit;
        loop {
            let seen = self.command(&["cluster", "get", &format!("clusters/{ID}")]).await?;
            let is = seen.get("state").and_then(Value::as_str).unwrap_or_default().to_owned();
            if is == state.name() {
                return Ok(());
            }
            ensure!(Instant::now() < until, "not {} within {limit:?}, but {is}", state.name());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Asks the database until it answers.
    ///
    /// # Errors
    /// It does not within the limit; the error is the last.
    pub async fn wait_for_answer(&self, sql: &str, limit: Duration) -> anyhow::Result<String> {
        let until = Instant::now() + limit;
        loop {
            match self.query(sql).await {
                Ok(answer) => return Ok(answer),
                Err(e) if Instant::now() >= until => bail!("no answer within {limit:?}: {e}"),
                Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }
}
