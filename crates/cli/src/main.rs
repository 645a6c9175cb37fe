//! `custody`: starts a whole deployment as real processes, and has a verb for everything the services do.

mod access;
mod audit;
mod cluster;
mod demo;
mod deployment;
mod faults;
mod identity;
mod inclusion;
mod key;
mod lease;
mod lineage;
mod output;
mod pki;
mod proof;
mod public_key;
mod seal;
mod session;
mod softhsm;
mod supervisor;
mod vault;
mod volume;
mod witness;

use clap::{Parser, Subcommand};
use output::Format;
use session::Session;
use std::path::PathBuf;

#[derive(Parser)]
#[command(
    version,
    about = "Customer-managed encryption at rest for a database cluster",
    max_term_width = 110
)]
struct Arguments {
    /// The deployment's directory.
    #[arg(long, global = true, env = "CUSTODY_DIR", default_value = ".custody")]
    dir: PathBuf,
    /// Act as this principal instead of the one whose duty the verb is: officer, custodian
    /// (a second officer), sysadmin, dba, auditor.
    #[arg(long = "as", global = true, value_name = "PRINCIPAL")]
    principal: Option<String>,
    /// Tables for people, JSON for programs.
    #[arg(long, global = true, value_enum, default_value = "table")]
    output: Format,
    /// An OTLP collector for traces of this command, `http://host:port`.
    #[arg(long, global = true, env = "CUSTODY_OTLP")]
    otlp: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Starts every service, each its own process, and runs until interrupted.
    Up {
        /// How long storage nodes hold keys without the vault's answer, in milliseconds.
        #[arg(long, default_value_t = 15_000)]
        lease_ms: u64,
        /// How often they ask, in milliseconds.
        #[arg(long, default_value_t = 5_000)]
        renew_every_ms: u64,
        /// Where backups are kept: a directory, `az://CONTAINER/PREFIX` or `s3://BUCKET/PREFIX`, whose accounts and
        /// endpoints are in the environment (AZURE_STORAGE_*, AWS_*); in the deployment's directory if not given.
        #[arg(long)]
        backups: Option<String>,
        #[command(flatten)]
        hsm: deployment::Hsm,
        /// Intel's crypto_mb, a shared library, with which the vault does private RSA operations eight at a time on processors
        /// with AVX-512 IFMA; `scripts/crypto-mb` gets it.
        #[arg(long)]
        crypto_mb: Option<PathBuf>,
        #[command(flatten)]
        limits: deployment::Limits,
        #[command(flatten)]
        trails: deployment::Trails,
        /// For tests: the vault misbehaves as a cloud's does, by this profile (`azure-standard`, `azure-premium`, `bad-day`, `none` until it is
        /// told otherwise) or this file; the principal `tester` changes it (`custody faults`).
        #[arg(long)]
        faults: Option<String>,
    },
    /// Plays the whole story with checks.
    Demo(demo::Options),
    /// Vaults.
    #[command(subcommand)]
    Vault(vault::Verb),
    /// Keys in a vault.
    #[command(subcommand)]
    Key(key::Verb),
    /// Who may use which key, and what needs two officers.
    #[command(subcommand)]
    Access(access::Verb),
    /// Principals and managed identities.
    #[command(subcommand)]
    Identity(identity::Verb),
    /// Clusters.
    #[command(subcommand)]
    Cluster(cluster::Verb),
    /// Backups.
    #[command(subcommand)]
    Backup(cluster::BackupVerb),
    /// Volumes of the storage node.
    #[command(subcommand)]
    Volume(volume::Verb),
    /// Audit trails.
    #[command(subcommand)]
    Audit(audit::Verb),
    /// How the vault misbehaves, for tests: only where it was started with `--faults`.
    #[command(subcommand)]
    Faults(faults::Verb),
    /// Proofs of revocations.
    #[command(subcommand)]
    Proof(proof::Verb),
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    match run(arguments).await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            output::error(&e);
            std::process::ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let _telemetry = match (&arguments.verb, &arguments.otlp) {
        (Verb::Up { .. } | Verb::Demo(_), _) | (_, None) => None,
        (_, Some(endpoint)) => Some(custody_telemetry::start("custody-cli", Some(endpoint))?),
    };
    let session = || Session::open(&arguments.dir, arguments.principal.as_deref(), arguments.output);
    let work = async {
        match arguments.verb {
            Verb::Up { lease_ms, renew_every_ms, backups, hsm, crypto_mb, limits, trails, faults } => {
                let otlp = arguments.otlp.clone();
                let options = deployment::Options {
                    lease_ms,
                    renew_every_ms,
                    backups,
                    otlp,
                    hsm,
                    crypto_mb: crypto_mb.map(|path| path.canonicalize().unwrap_or(path)),
                    limits,
                    trails,
                    faults,
                };
                supervisor::up(&arguments.dir, options).await
            }
            Verb::Demo(options) => demo::run(options).await,
            Verb::Vault(verb) => vault::run(&session()?, verb).await,
            Verb::Access(verb) => access::run(&session()?, verb).await,
            Verb::Faults(verb) => faults::run(&session()?, verb).await,
            Verb::Key(verb) => key::run(&session()?, verb).await,
            Verb::Identity(verb) => identity::run(&session()?, verb).await,
            Verb::Cluster(verb) => cluster::run(&session()?, verb).await,
            Verb::Backup(verb) => cluster::run_backup(&session()?, verb).await,
            Verb::Volume(verb) => volume::run(&session()?, verb).await,
            Verb::Audit(verb) => audit::run(&arguments.dir, arguments.output, session, verb).await,
            Verb::Proof(verb) => proof::run(&arguments.dir, arguments.output, session, verb).await,
        }
    };
    use tracing::Instrument as _;
    work.instrument(tracing::info_span!("custody")).await
}
