//! How long a decision takes, and what assignments take of memory: `scripts/bench decision` runs it. A figure, never a
//! test.
#![expect(clippy::print_stdout, reason = "a tool for the terminal")]

use custody_authz::{Assignment, Assignments, Condition, Decision};
use custody_types::{Caller, Duty, Permission, UnixMillis};
use std::{hint::black_box, time::Instant};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Bytes that the process has in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn assignment(n: usize, principal: String, scope: &str) -> Outcome<Assignment> {
    Ok(Assignment {
        name: format!("vaults/v{}/roleAssignments/{n:032x}", n % 10_000),
        principal,
        role: "Key Vault Crypto Service Encryption User".to_owned(),
        scope: scope.parse()?,
        condition: Condition::default(),
    })
}

/// Median nanoseconds of a decision, over the first `scopes` keys of the caller.
fn measure(
    all: &Assignments,
    principal: &str,
    resource: impl Fn(usize) -> String,
    allowed: bool,
) -> Outcome<f64> {
    let duty = Duty::Workload;
    let caller =
        Caller { principal: principal.to_owned(), duty, token_id: String::new(), address: String::new() };
    let resources: Vec<String> = (0..1024).map(resource).collect();
    let now = UnixMillis::from_secs(1);
    let mut rounds = Vec::new();
    for _ in 0..31 {
        let started = Instant::now();
        for resource in &resources {
            let decision = all.decide(&caller, Permission::UnwrapKey, black_box(resource), now);
            if (decision != Decision::Deny) != allowed {
                return Err(format!("{resource}: {decision:?}").into());
            }
        }
        rounds.push(started.elapsed().as_nanos() as f64 / resources.len() as f64);
    }
    rounds.sort_by(f64::total_cmp);
    Ok(rounds.get(rounds.len() / 2).copied().unwrap_or(f64::NAN))
}

fn main() -> Outcome<()> {
    let mut one = Assignments::default();
    for n in 0..1000 {
        one.insert(assignment(n, "managedIdentities/m".to_owned(), &format!("vaults/v/keys/k{n}"))?)?;
    }
    let version = |n: usize| format!("vaults/v/keys/k{}/versions/{:032x}", n % 1000, n);
    let stranger = |n: usize| format!("vaults/w/keys/k{n}/versions/{n:032x}");
    println!("1,000 assignments of one principal:");
    println!(
        "  allowed {:>6.0} ns, denied {:>6.0} ns",
        measure(&one, "managedIdentities/m", version, true)?,
        measure(&one, "managedIdentities/m", stranger, false)?
    );

    let before = resident();
    let started = Instant::now();
    let mut all = Assignments::default();
    for n in 0..1_000_000 {
        let scope = format!("vaults/v{}/keys/k{}", n % 10_000, n / 10_000);
        all.insert(assignment(n, format!("managedIdentities/m{}", n % 50_000), &scope)?)?;
    }
    let took = started.elapsed();
    let version = |n: usize| format!("vaults/v7/keys/k{}/versions/{n:032x}", (n % 20) * 5);
    println!("1,000,000 assignments of 50,000 principals on keys of 10,000 vaults:");
    println!("  allowed {:>6.0} ns", measure(&all, "managedIdentities/m7", version, true)?);
    println!("  {} bytes each, made in {} ms", (resident() - before) / 1_000_000, took.as_millis());
    Ok(())
}
