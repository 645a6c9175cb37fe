//! The vault over gRPC and REST, audited and durable, beside `aws-lc-rs` called directly and `openssl speed`.

use crate::{
    load::{Load, Process},
    median,
    rest::RestClient,
};
use anyhow::Context as _;
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey, PrivateDecryptingKey,
};
use custody_audit::{FileLimits, Journal, Outcome, Record};
use custody_clients::AuthenticatedChannel;
use custody_proto::vault::{self as kv, key_vault_client::KeyVaultClient};
use custody_testkit::Deployment;
use custody_types::{Caller, Duty, SystemClock};
use std::{
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::block_in_place;

type Client = KeyVaultClient<AuthenticatedChannel>;

/// Private operations a second with every core, by Debian's OpenSSL.
fn openssl(bits: u32, seconds: u32, cores: usize) -> anyhow::Result<f64> {
    let (seconds, cores) = (seconds.to_string(), cores.to_string());
    let output = Command::new("openssl")
        .args(["speed", "-seconds", &seconds, "-multi", &cores, &format!("rsa{bits}")])
        .stdin(Stdio::null())
        .output()
        .context("openssl is not installed")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let line = said.lines().rev().find(|l| l.starts_with("rsa")).context("openssl told no figures")?;
    let mut numbers = line.split_whitespace().rev();
    numbers.next();
    Ok(numbers.next().context("openssl's line is short")?.parse()?)
}

/// OAEP decryptions a second with every core, by `aws-lc-rs` with nothing around it.
fn direct(bits: u32, seconds: u32, cores: usize) -> anyhow::Result<f64> {
    let size = match bits {
        2048 => KeySize::Rsa2048,
        3072 => KeySize::Rsa3072,
        _ => KeySize::Rsa4096,
    };
    let key = PrivateDecryptingKey::generate(size)?;
    let public = OaepPublicEncryptingKey::new(key.public_key())?;
    let mut wrapped = vec![0; public.ciphertext_size()];
    public.encrypt(&OAEP_SHA256_MGF1SHA256, &[7; 32], &mut wrapped, None)?;
    let private = OaepPrivateDecryptingKey::new(key)?;
    let done = AtomicU64::new(0);
    let started = Instant::now();
    let until = started + Duration::from_secs(seconds.into());
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                let mut out = vec![0; private.min_output_size()];
                while Instant::now() < until {
                    if private.decrypt(&OAEP_SHA256_MGF1SHA256, &wrapped, &mut out, None).is_ok() {
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    Ok(done.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64())
}

/// Calls in flight: enough for group commits and both cores.
const CLIENTS: usize = 64;
/// Calls in flight of the tables of latencies.
const LADDER: [usize; 4] = [1, 16, 64, 256];

struct Bench {
    deployment: Deployment,
    client: Client,
    cores: usize,
    rounds: usize,
    seconds: u32,
}

impl Bench {
    fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }

    /// A key of so many bits that the platform's identity may use in every way, and something wrapped by it.
    async fn key(&self, bits: u32) -> anyhow::Result<(String, kv::UnwrapKeyRequest)> {
        let id = format!("bench{bits}");
        let key = format!("vaults/{id}/keys/k");
        block_in_place(|| {
            _ = self.deployment.run(&["vault", "create", &id]);
            _ = self.deployment.run(&["key", "create", &key, "--size", &bits.to_string()]);
            let (who, role) = ("managedIdentities/platform", "Key Vault Crypto User");
            _ = self.deployment.run(&["access", "grant", who, role, &key]);
        });
        let wrapped = self.client.clone().wrap_key(wrap(&key)).await?.into_inner();
        let (algorithm, ciphertext) = (wrapped.algorithm, wrapped.ciphertext);
        Ok((key, kv::UnwrapKeyRequest { name: wrapped.key_version, algorithm, ciphertext }))
    }

    async fn unwraps(&self, clients: usize, request: &kv::UnwrapKeyRequest) -> anyhow::Result<Load> {
        Load::run(clients, self.duration(), |_| {
            let (mut client, request) = (self.client.clone(), request.clone());
            async move || client.unwrap_key(request.clone()).await.map(drop).map_err(anyhow::Error::from)
        })
        .await
    }

    async fn rest_unwraps(&self, bits: u32, request: &kv::UnwrapKeyRequest) -> anyhow::Result<Load> {
        let version = request.name.rsplit('/').next().unwrap_or_default();
        let token = self.deployment.tokens("managedIdentities/platform", "custody-vault")?.text().await?;
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            let mut client = RestClient::connect(&self.deployment, &format!("bench{bits}"), &token).await?;
            client.prepare_unwrap("k", version, &request.ciphertext);
            clients.push(client);
        }
        let mut clients = clients.into_iter();
        Load::run(CLIENTS, self.duration(), |_| {
            let client = clients.next();
            let client = Arc::new(tokio::sync::Mutex::new(client));
            async move || match client.lock().await.as_mut() {
                Some(client) => client.call().await,
                None => anyhow::bail!("a client is missing"),
            }
        })
        .await
    }
}

fn wrap(key: &str) -> kv::WrapKeyRequest {
    kv::WrapKeyRequest { name: key.to_owned(), algorithm: String::new(), plaintext: vec![7; 32] }
}

pub(crate) async fn run(rounds: usize, seconds: u32) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism()?.get();
    let deployment = block_in_place(Deployment::start);
    let client: Client = KeyVaultClient::new(deployment.channel("vault", "managedIdentities/platform")?);
    let bench = Bench { deployment, client, cores, rounds, seconds };
    println!(
        "\nvault: calls a second, audited and durable, over TLS, {CLIENTS} in flight; client and server share {cores} cores; medians of {rounds} rounds of {seconds} s"
    );
    println!(
        "{:20} {:>8} {:>8} {:>8} {:>8} {:>12} {:>12} {:>14}",
        "unwrapKey", "gRPC", "REST", "aws-lc", "openssl", "gRPC/aws-lc", "REST/aws-lc", "vault's CPU"
    );
    let (mut small, mut cost) = (None, f64::NAN);
    for bits in [2048u32, 3072, 4096] {
        let (key, unwrap) = bench.key(bits).await?;
        let cpu = unwraps(&bench, bits, &unwrap).await?;
        if bits == 2048 {
            small = Some((key, unwrap));
            cost = cpu;
        }
    }
    let audit = audit_cost(bench.duration()).await?;
    println!(
        "audit: two durable records and their leaves take {audit:.1} µs of a core an operation, {:.1} % of what RSA-2048's unwrap takes",
        audit / cost * 100.0
    );
    let (key, unwrap) = small.context("no key was made")?;
    latencies(&bench, &key, &unwrap).await?;
    flood(&bench, &key, &unwrap).await
}

/// What the journal takes of a core for an operation's two records, in microseconds, with as many in flight.
async fn audit_cost(time: Duration) -> anyhow::Result<f64> {
    let dir = tempfile::tempdir()?;
    let journal = Arc::new(Journal::open(dir.path(), Arc::new(SystemClock), FileLimits::default())?);
    let caller = Caller {
        principal: "managedIdentities/platform".to_owned(),
        duty: Duty::Workload,
        token_id: "0123456789abcdef".repeat(2),
        address: "127.0.0.1".to_owned(),
    };
    let resource = format!("vaults/bench2048/keys/k/versions/{}", "0".repeat(32));
    let own = Process::of_pid("self");
    let before = own.cpu();
    let numbers = AtomicU64::new(0);
    let load = Load::run(CLIENTS, time, |_| {
        let (journal, caller, resource, numbers) = (&journal, &caller, &resource, &numbers);
        async move || {
            let id = format!("{:032x}", numbers.fetch_add(1, Ordering::Relaxed));
            let record = Record::begin(journal.now(), "KeyUnwrap", &id, caller, resource);
            journal.begin_in_task(record).await?.finish(Outcome::Success, "OK", "an assignment's name");
            Ok(())
        }
    })
    .await?;
    Ok((own.cpu() - before).as_secs_f64() * 1e6 / load.calls() as f64)
}

/// Answers what an unwrap takes of a core, in microseconds.
async fn unwraps(bench: &Bench, bits: u32, unwrap: &kv::UnwrapKeyRequest) -> anyhow::Result<f64> {
    let (mut grpc, mut rest, mut lc, mut ssl, mut cpu) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let vault = Process::of(&bench.deployment, "vault");
    for _ in 0..bench.rounds {
        lc.push(block_in_place(|| direct(bits, bench.seconds, bench.cores))?);
        ssl.push(block_in_place(|| openssl(bits, bench.seconds, bench.cores))?);
        let before = vault.cpu();
        let load = bench.unwraps(CLIENTS, unwrap).await?;
        cpu.push((vault.cpu() - before).as_secs_f64() * 1e6 / load.calls() as f64);
        grpc.push(load.per_second());
        rest.push(bench.rest_unwraps(bits, unwrap).await?.per_second());
    }
    let (grpc, rest, lc, ssl, cpu) = (median(grpc), median(rest), median(lc), median(ssl), median(cpu));
    println!(
        "{:20} {grpc:>8.0} {rest:>8.0} {lc:>8.0} {ssl:>8.0} {:>12.2} {:>12.2} {cpu:>11.0} µs",
        format!("RSA-{bits}"),
        grpc / lc,
        rest / lc
    );
    Ok(cpu)
}

async fn latencies(bench: &Bench, key: &str, unwrap: &kv::UnwrapKeyRequest) -> anyhow::Result<()> {
    println!(
        "\n{:12} {:>10} {:>10} {:>10} {:>10} {:>10} {:>14}",
        "over gRPC", "in flight", "calls/s", "p50 ms", "p99 ms", "p99.9 ms", "vault's CPU"
    );
    let vault = Process::of(&bench.deployment, "vault");
    for clients in LADDER {
        for operation in ["get", "wrapKey", "sign", "unwrapKey"] {
            let before = vault.cpu();
            let load = match operation {
                "unwrapKey" => bench.unwraps(clients, unwrap).await?,
                other => {
                    Load::run(clients, bench.duration(), |_| {
                        let (mut client, key) = (bench.client.clone(), key.to_owned());
                        async move || {
                            match other {
                                "get" => {
                                    client.get_key(kv::GetKeyRequest { name: key.clone() }).await.map(drop)
                                }
                                "wrapKey" => client.wrap_key(wrap(&key)).await.map(drop),
                                _ => {
                                    let (algorithm, digest) = ("PS256".to_owned(), vec![7; 32]);
                                    let name = key.clone();
                                    client.sign(kv::SignRequest { name, algorithm, digest }).await.map(drop)
                                }
                            }
                            .map_err(anyhow::Error::from)
                        }
                    })
                    .await?
                }
            };
            let cpu = (vault.cpu() - before).as_secs_f64() * 1e6 / load.calls() as f64;
            let ms = |q| load.quantile(q).as_secs_f64() * 1e3;
            println!(
                "{operation:12} {clients:>10} {:>10.0} {:>10.2} {:>10.2} {:>10.2} {cpu:>11.0} µs",
                load.per_second(),
                ms(0.5),
                ms(0.99),
                ms(0.999)
            );
        }
    }
    Ok(())
}

/// What a lone caller sees while another asks for all it can.
async fn flood(bench: &Bench, key: &str, unwrap: &kv::UnwrapKeyRequest) -> anyhow::Result<()> {
    block_in_place(|| {
        _ = bench.deployment.principal("lone", "workload");
        _ = bench.deployment.run(&["access", "grant", "principals/lone", "Key Vault Crypto User", key]);
    });
    let lone: Client = KeyVaultClient::new(bench.deployment.channel("vault", "lone")?);
    let (mut quiet, mut flooded) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds {
        let ask = |_| {
            let (mut client, request) = (lone.clone(), unwrap.clone());
            async move || client.unwrap_key(request.clone()).await.map(drop).map_err(anyhow::Error::from)
        };
        quiet.push(Load::run(1, bench.duration(), ask).await?.quantile(0.99).as_secs_f64() * 1e3);
        let (one, other) = tokio::join!(Load::run(1, bench.duration(), ask), bench.unwraps(256, unwrap));
        // Of the flood some are refused: that is the point.
        _ = other;
        flooded.push(one?.quantile(0.99).as_secs_f64() * 1e3);
    }
    let (quiet, flooded) = (median(quiet), median(flooded));
    println!(
        "\nunwrapKey RSA-2048 of a lone caller, p99: {quiet:.2} ms alone, {flooded:.2} ms while another caller has 256 in flight ({:.1} times)",
        flooded / quiet
    );
    Ok(())
}
