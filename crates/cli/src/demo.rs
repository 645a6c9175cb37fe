//! The story, with checks: any that fails ends it non-zero.

mod azure;
mod faults;
mod hsm;
mod lineage;
mod officers;
mod proofs;
mod scan;
mod seals;
mod sql;
mod stage;

use crate::{deployment, output::line, softhsm, supervisor::Running};
use clap::Args;
use sql::Dba;
use stage::Stage;
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

/// Choices of a demonstration.
#[derive(Args)]
pub(crate) struct Options {
    /// Keep the deployment's directory afterwards.
    #[arg(long)]
    keep: bool,
    /// pgbench's scale: 10 is a million accounts.
    #[arg(long, default_value_t = 10)]
    scale: u32,
    /// Seconds of load around the rotation.
    #[arg(long, default_value_t = 6)]
    load_s: u32,
    /// A Python that has Azure's SDK: azure-identity and azure-keyvault-keys.
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    azure_python: PathBuf,
}

/// Planted in the database, searched for everywhere else.
const PLANTED: &str = "PLANTED-9f31c7-SALARY-OF-ADA-LOVELACE";
const KEY: &str = "vaults/contoso/keys/payroll";
const IDENTITY: &str = "managedIdentities/payroll";
const ROLE: &str = "Key Vault Crypto Service Encryption User";

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let started = Instant::now();
    let home = tempfile::Builder::new().prefix("custody-demo-").tempdir()?;
    let dir = if options.keep { home.keep() } else { home.path().to_owned() };
    let machine = Machine {
        for_databases: sql::missing_tools(),
        for_hsm: softhsm::missing(),
        azure: azure::Sdk::find(&options.azure_python).await,
    };
    let running = Running::start(
        &dir,
        &deployment::Options {
            lease_ms: 15_000,
            renew_every_ms: 5_000,
            backups: None,
            otlp: None,
            hsm: deployment::Hsm::of_software(machine.for_hsm.is_none()),
            crypto_mb: None,
            limits: deployment::Limits::default(),
            trails: deployment::Trails::default(),
            // It behaves until it is told not to.
            faults: Some("none".to_owned()),
        },
    )
    .await?;
    line(format!(
        "   five services, each its own process, healthy after {} ms",
        started.elapsed().as_millis()
    ));
    let told = tell(&options, dir.clone(), &machine).await;
    running.stop().await;
    told?;
    line("");
    let skipped = machine.skipped();
    if skipped.is_empty() {
        line(format!("All checks passed in {} s; nothing was skipped.", started.elapsed().as_secs()));
    } else {
        line(format!("The checks that ran have passed. SKIPPED: {}.", skipped.join("; and ")));
    }
    if options.keep {
        line(format!(
            "The deployment is in {}; `custody --dir {} up` starts it again.",
            dir.display(),
            dir.display()
        ));
    }
    Ok(())
}

/// What this machine lacks, and has.
struct Machine {
    for_databases: Vec<String>,
    for_hsm: Option<String>,
    azure: Option<azure::Sdk>,
}

impl Machine {
    fn skipped(&self) -> Vec<String> {
        let lacks = |what: &str, missing: &str| format!("{what}, because this machine lacks: {missing}");
        let databases = Some(self.for_databases.join("; ")).filter(|missing| !missing.is_empty());
        let databases = databases.map(|missing| lacks("everything with PostgreSQL", &missing));
        let hsm = self.for_hsm.as_ref().map(|missing| lacks("the key inside an HSM", missing));
        let azure = self.azure.is_none().then(|| {
            lacks(
                "the program with Azure's SDK",
                "a Python with azure-identity and azure-keyvault-keys (--azure-python)",
            )
        });
        databases.into_iter().chain(hsm).chain(azure).collect()
    }
}

async fn tell(options: &Options, dir: PathBuf, machine: &Machine) -> anyhow::Result<()> {
    let mut stage = Stage::open(dir)?;
    stage.scene(
        "The security officer makes a key; the sysadmin makes an identity; the officer lets it use the key",
    );
    stage.make_key().await?;
    stage.note_checkpoint().await?;
    if machine.for_databases.is_empty() {
        with_database(options, &mut stage, machine).await?;
    } else {
        stage.scene("Each duty tries what it may not do");
        stage.forbidden().await?;
        stage.scene("What no officer does alone");
        stage.two_officers().await?;
        with_azure(&mut stage, machine).await?;
        stage.scene("The customer seals its vault, which only its two officers can open");
        stage.give_own_seal().await?;
        stage.seal().await?;
        stage.unseal().await?;
        if machine.for_hsm.is_none() {
            stage.scene("The officer makes a key inside an HSM, which is lost for a moment");
            stage.make_hsm_key().await?;
            stage.lose_hsm(None).await?;
        }
    }
    stage.scene("The auditor verifies the trail, offline, from its files");
    stage.verify_trails().await
}

async fn with_azure(stage: &mut Stage, machine: &Machine) -> anyhow::Result<()> {
    let Some(sdk) = &machine.azure else { return Ok(()) };
    stage.scene("A program written for Azure Key Vault, with Azure's own SDK, uses the vault as it is");
    stage.azure_program(sdk).await
}

async fn with_database(options: &Options, stage: &mut Stage, machine: &Machine) -> anyhow::Result<()> {
    stage.scene("The sysadmin makes a cluster under the customer's key: a coordinator and two workers");
    let cluster = stage.make_cluster("payroll", None).await?;
    let dba = Dba::of(&cluster)?;

    stage.scene("The DBA loads data, plants a secret in it, and runs a sort that spills to the temp volume");
    dba.load(options.scale)?;
    stage.check(true, &format!("pgbench loaded at scale {}", options.scale))?;
    dba.plant(PLANTED)?;
    stage.check(dba.workers_answer(PLANTED)?, "the secret is on the coordinator and on both workers")?;
    stage.check(dba.sort_spills()?, "a sort spilled to temporary files")?;

    stage.scene("The sysadmin takes a backup");
    let before = dba.accounts()?;
    stage.back_up("payroll", "nightly", "").await?;

    stage.scene("Everything at rest is searched for the secret: volumes, backups, temp, logs, stores");
    stage.search(PLANTED)?;

    stage.scene("Each duty tries what it may not do");
    stage.forbidden().await?;

    stage.scene("What no officer does alone");
    stage.two_officers().await?;
    with_azure(stage, machine).await?;

    stage.scene("The officer rotates the key while pgbench runs");
    let load = dba.start_load(options.load_s)?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    stage.rotate("payroll").await?;
    let transactions = tokio::task::spawn_blocking(move || load.finish()).await??;
    stage
        .check(transactions > 0, &format!("pgbench went on without an error: {transactions} transactions"))?;
    stage.check(dba.history()? == transactions, "every acknowledged transaction is in the table")?;

    stage.scene("The vault has a bad day, as a cloud's has, while the database works");
    stage.bad_day(&dba).await?;

    stage.scene("The officer takes the identity's access away, and proves that the key is gone everywhere");
    let prober = dba.start_prober()?;
    let revoked = Instant::now();
    stage.revoke().await?;
    let gone = tokio::task::spawn_blocking(move || prober.until_gone(Duration::from_secs(10))).await??;
    let time = gone.saturating_duration_since(revoked);
    stage.check(
        time < Duration::from_secs(1),
        &format!("PostgreSQL was gone {} ms after the command began", time.as_millis()),
    )?;
    stage.expect_state("payroll", "INACCESSIBLE", Duration::from_secs(5)).await?;
    stage.prove().await?;

    stage.scene("The officer gives it back");
    let returned = Instant::now();
    stage.grant().await?;
    stage.expect_state("payroll", "READY", Duration::from_secs(60)).await?;
    stage.check(
        true,
        &format!("the cluster came back by itself after {} ms", returned.elapsed().as_millis()),
    )?;
    let dba = Dba::of(&stage.cluster("payroll").await?)?;
    stage.check(dba.accounts()? == before && dba.history()? == transactions, "every row is there")?;
    stage.check(dba.workers_answer(PLANTED)?, "the workers answer too")?;

    stage.scene("The customer seals its vault, which only its two officers can open");
    stage.give_own_seal().await?;
    stage.seal().await?;
    stage.expect_state("payroll", "INACCESSIBLE", Duration::from_secs(5)).await?;
    stage.unseal().await?;
    stage.expect_state("payroll", "READY", Duration::from_secs(60)).await?;
    let dba = Dba::of(&stage.cluster("payroll").await?)?;
    stage.check(dba.accounts()? == before, "every row is there")?;

    stage.scene(
        "The sysadmin adds an increment, and has it verified; then the DBA drops the accounts by mistake",
    );
    dba.note("written after the full backup")?;
    stage.back_up("payroll", "hourly", "backups/nightly").await?;
    stage.verify_backup("hourly").await?;
    dba.note("written after every backup")?;
    let moment = dba.drop_accounts()?;
    stage.check(dba.accounts().is_err(), "the accounts are gone")?;
    dba.switch_wal()?;
    stage.expect_archived("payroll", &moment).await?;

    stage.scene("The sysadmin restores it to a second cluster, as it was a moment before");
    let second = stage.make_cluster("payroll-restored", Some(("backups/hourly", moment))).await?;
    let restored = Dba::of(&second)?;
    stage.check(restored.accounts()? == before, "the restored cluster has every account")?;
    stage.check(
        restored.noted("written after the full backup")?,
        "and what was written after the full backup",
    )?;
    stage
        .check(restored.noted("written after every backup")?, "and after every backup: that is in the log")?;
    stage.check(restored.has(PLANTED)?, "and the secret, for those who may read it")?;

    stage.scene(
        "The second cluster changes to the service-managed key, and back to the customer's, while it serves",
    );
    stage.change_key("payroll-restored", None).await?;
    stage.check(restored.accounts()? == before, "every account is there under the service's key")?;
    stage.change_key("payroll-restored", Some(KEY)).await?;
    stage.check(restored.accounts()? == before, "and under the customer's; PostgreSQL never stopped")?;

    if machine.for_hsm.is_none() {
        stage.scene("It moves to a key inside an HSM, which is lost for a moment");
        stage.move_into_hsm("payroll-restored", &restored, before).await?;
    }

    stage.scene("The officer asks whether the key's first version can be retired");
    stage.retire_first_version().await?;
    stage.verify_backup("hourly").await
}
