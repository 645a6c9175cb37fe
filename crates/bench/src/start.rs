//! How long a vault with a million keys takes until it serves, and what it serves while it brings the others in.

use crate::{
    backup::forget_files,
    load::{Load, Process},
    median,
    platform::resident_mib,
};
use custody_clients::AuthenticatedChannel;
use custody_proto::vault::{
    self as kv, access_control_client::AccessControlClient, key_vault_client::KeyVaultClient,
};
use custody_testkit::Deployment;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::task::block_in_place;

/// Keys of a vault, each with an assignment.
const KEYS_OF_A_VAULT: usize = 100;
/// Identities that the keys of all vaults are given to.
const IDENTITIES: usize = 100_000;
/// Calls in flight while it is filled.
const FILLERS: usize = 64;
/// Calls that are timed while the others are brought in, each to another vault.
const ASKED: usize = 200;
const LIMIT: Duration = Duration::from_secs(120);

type Keys = KeyVaultClient<AuthenticatedChannel>;
type Access = AccessControlClient<AuthenticatedChannel>;

fn vault_id(v: usize) -> String {
    format!("v{v:05}")
}

fn vault_name(n: usize) -> String {
    format!("vaults/{}", vault_id(n / KEYS_OF_A_VAULT))
}

fn key_id(n: usize) -> String {
    format!("k{:02}", n % KEYS_OF_A_VAULT)
}

fn key_name(n: usize) -> String {
    format!("{}/keys/{}", vault_name(n), key_id(n))
}

async fn make_key(keys: &Keys, access: &Access, n: usize) -> anyhow::Result<()> {
    let parent = vault_name(n);
    let key = kv::CreateKeyRequest {
        parent: parent.clone(),
        key_id: key_id(n),
        key_type: "EC".to_owned(),
        ..kv::CreateKeyRequest::default()
    };
    keys.clone().create_key(key).await?;
    let assignment = kv::RoleAssignment {
        principal: format!("managedIdentities/m{}", n % IDENTITIES),
        role: "Key Vault Crypto Service Encryption User".to_owned(),
        scope: key_name(n),
        ..kv::RoleAssignment::default()
    };
    let request = kv::CreateRoleAssignmentRequest { parent, role_assignment: Some(assignment) };
    access.clone().create_role_assignment(request).await?;
    Ok(())
}

/// Vaults, keys and assignments, by the vault's own API.
async fn fill(deployment: &Deployment, keys: usize) -> anyhow::Result<()> {
    let channel = deployment.channel("vault", "officer")?;
    let (client, access) = (KeyVaultClient::new(channel.clone()), AccessControlClient::new(channel));
    let started = Instant::now();
    let vaults = (0..keys.div_ceil(KEYS_OF_A_VAULT)).map(|v| {
        let mut client = client.clone();
        let request = kv::CreateVaultRequest { vault_id: vault_id(v), vault: None };
        async move { client.create_vault(request).await.map(drop) }
    });
    stream::iter(vaults).buffer_unordered(FILLERS).try_collect::<()>().await?;
    let (client, access) = (&client, &access);
    for first in (0..keys).step_by(100_000) {
        let some = first..keys.min(first + 100_000);
        let made = some.map(|n| make_key(client, access, n));
        stream::iter(made).buffer_unordered(FILLERS).try_collect::<()>().await?;
        println!(
            "filled: {} keys and assignments after {:.0} s",
            keys.min(first + 100_000),
            started.elapsed().as_secs_f64()
        );
    }
    Ok(())
}

/// Bytes of the files in a directory and below.
fn size(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let sizes = entries
        .map(|e| if e.path().is_dir() { size(&e.path()) } else { e.metadata().map_or(0, |m| m.len()) });
    sizes.sum()
}

/// What a start took, in seconds and milliseconds.
struct Started {
    serves: f64,
    p50: f64,
    worst: f64,
    all: f64,
    resident: f64,
}

async fn restart(deployment: &Deployment, keys: usize, round: usize) -> anyhow::Result<Started> {
    // The files cold, where this process may say so.
    _ = forget_files();
    let officer: Keys = KeyVaultClient::new(deployment.channel("vault", "officer")?);
    let get = |n: usize| {
        let mut officer = officer.clone();
        async move { officer.get_key(kv::GetKeyRequest { name: key_name(n) }).await }
    };
    // A token, and a connection that knows it has to begin anew.
    get(0).await?;
    block_in_place(|| deployment.kill("vault"));
    let vault = Process::of(deployment, "vault");
    let until = Instant::now() + LIMIT;
    // The last of all, so that it is the last that comes by itself.
    while get(keys - 1).await.is_err() {
        anyhow::ensure!(Instant::now() < until, "the vault does not serve");
    }
    let serves = vault.age().as_secs_f64();
    let vaults = keys / KEYS_OF_A_VAULT;
    let asked = (0..ASKED.min(vaults)).map(|n| (n * 7919 + round * 31) % vaults * KEYS_OF_A_VAULT);
    let mut times = Vec::new();
    for key in asked {
        let began = Instant::now();
        get(key).await?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    // It is answered when every vault is in memory.
    let mut lists = officer.clone();
    let listed =
        lists.list_vaults(kv::ListVaultsRequest { page_size: 1, ..kv::ListVaultsRequest::default() });
    listed.await?;
    let all = vault.age().as_secs_f64();
    let worst = times.iter().copied().fold(0.0, f64::max);
    Ok(Started { serves, p50: median(times), worst, all, resident: resident_mib(deployment, &["vault"]) })
}

/// Starts a vault of so many keys again and again; `dir` is a deployment's directory, filled if it is not there.
pub(crate) async fn run(rounds: usize, keys: usize, dir: Option<PathBuf>) -> anyhow::Result<()> {
    let (own, kept) = (tempfile::tempdir()?, dir.is_some());
    let dir = dir.unwrap_or_else(|| own.path().join("deployment"));
    let fresh = !dir.join("vault/data").exists();
    let deployment = block_in_place(|| Deployment::start_in(dir.clone(), &[]))?;
    if fresh {
        fill(&deployment, keys).await?;
    }
    let mut all = Vec::new();
    for round in 0..rounds {
        all.push(restart(&deployment, keys, round).await?);
    }
    let officer: Keys = KeyVaultClient::new(deployment.channel("vault", "officer")?);
    let load = Load::run(64, Duration::from_secs(2), |n| {
        let (mut officer, mut next) = (officer.clone(), n);
        async move || {
            next = (next + 7919 * KEYS_OF_A_VAULT + 1) % keys;
            officer
                .get_key(kv::GetKeyRequest { name: key_name(next) })
                .await
                .map(drop)
                .map_err(anyhow::Error::from)
        }
    })
    .await?;
    let of = |field: fn(&Started) -> f64| median(all.iter().map(field).collect());
    println!(
        "\nstart: {} vaults, {keys} keys, {keys} assignments; store {} MiB, trail {} MiB; medians of {rounds} kills",
        keys / KEYS_OF_A_VAULT,
        size(&dir.join("vault/data/store")) >> 20,
        size(&dir.join("vault/data/audit")) >> 20
    );
    println!(
        "the process serves the last key after {:.2} s; of {ASKED} vaults asked for then, one after another, a key after {:.1} ms, at worst {:.1} ms",
        of(|s| s.serves),
        of(|s| s.p50),
        of(|s| s.worst)
    );
    println!(
        "all in memory after {:.1} s; {:.0} MiB resident; then {:.0} gets a second of keys of all vaults, 64 in flight, p99 {:.1} ms",
        of(|s| s.all),
        all.last().map_or(f64::NAN, |s| s.resident),
        load.per_second(),
        load.quantile(0.99).as_secs_f64() * 1e3
    );
    if kept {
        println!("the deployment stays in {}", deployment.stop().display());
    }
    Ok(())
}
