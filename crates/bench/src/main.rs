//! Ratios against real peers, in one run on one machine, with medians. Figures, never tests.
#![expect(clippy::print_stdout, reason = "a tool for the terminal")]

mod backup;
mod backup_peer;
mod database;
mod grpc;
mod leases;
mod load;
mod peer;
mod platform;
mod rest;
mod revocation;
mod start;
mod storage;
mod trust;
mod vault;

use clap::{Parser, ValueEnum};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    All,
    Backup,
    Database,
    Leases,
    Platform,
    Revocation,
    /// Not one of all: it takes half an hour to fill.
    Start,
    Storage,
    Vault,
}

/// As the vault has it, so that the client's half of a call is not what is measured.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Arguments {
    /// What to measure.
    #[arg(value_enum, default_value = "all")]
    what: What,
    /// Rounds; the median of them is told. Peers take turns within a round.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds for each measurement.
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// Of the storage's and the vault's cases, only those whose name has this in it, as "64k", "randwrite 4k qd16", "RSA-2048" or "get 64".
    #[arg(long, default_value = "")]
    case: String,
    /// Keys of the vault that is started.
    #[arg(long, default_value_t = 1_000_000)]
    keys: usize,
    /// Directory of the deployment whose vault is started: filled if it is not there, and kept. A temporary one without it.
    #[arg(long)]
    deployment: Option<std::path::PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let wanted = |what| arguments.what == What::All || arguments.what == what;
    if wanted(What::Storage) {
        storage::run(arguments.rounds, arguments.seconds, &arguments.case).await?;
    }
    if wanted(What::Vault) {
        vault::run(arguments.rounds, arguments.seconds, &arguments.case).await?;
    }
    if wanted(What::Database) {
        tokio::task::block_in_place(|| database::run(arguments.rounds, arguments.seconds.max(10)))?;
    }
    if wanted(What::Backup) {
        backup::run(arguments.rounds).await?;
    }
    if wanted(What::Platform) {
        platform::run(arguments.rounds).await?;
    }
    if wanted(What::Leases) {
        leases::run().await?;
    }
    if wanted(What::Revocation) {
        revocation::run(arguments.rounds).await?;
    }
    if arguments.what == What::Start {
        start::run(arguments.rounds, arguments.keys, arguments.deployment).await?;
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
