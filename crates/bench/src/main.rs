//! Ratios against real peers, in one run on one machine, with medians. Figures, never tests.
#![expect(clippy::print_stdout, reason = "a tool for the terminal")]

mod storage;
mod vault;

use clap::{Parser, ValueEnum};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    All,
    Storage,
    Vault,
}

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
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if arguments.what != What::Vault {
        storage::run(arguments.rounds, arguments.seconds).await?;
    }
    if arguments.what != What::Storage {
        vault::run(arguments.rounds, arguments.seconds).await?;
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
