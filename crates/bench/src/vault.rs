//! The vault over gRPC and REST, audited and durable, beside `aws-lc-rs` called directly and `openssl speed`.

use crate::{
    grpc::{GrpcClient, Prepared},
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
use prost::Message as _;
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
    public.encrypt(&OAEP_SHA256_MGF1SHA256, &WRAPPED, &mut wrapped, None)?;
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

/// What is wrapped.
const WRAPPED: [u8; 32] = [7; 32];
/// Bits of the key that all sorts of operations are measured with.
const SMALL: u32 = 2048;
/// Calls in flight: enough for group commits and both cores.
const CLIENTS: usize = 64;
/// Most calls in flight on one connection: more are asked over several, as several clients do.
const CALLS_OF_CONNECTION: usize = 64;
/// Calls in flight of the tables of latencies.
const LADDER: [usize; 4] = [1, 16, 64, 256];

/// Where `scripts/crypto-mb` puts the library.
const CRYPTO_MB: &str = "target/crypto-mb/libcrypto_mb.so";

struct Bench {
    deployment: Deployment,
    client: Client,
    cores: usize,
    rounds: usize,
    seconds: u32,
    /// Only cases with this in their names.
    case: String,
}

impl Bench {
    fn start(options: &[&str], rounds: usize, seconds: u32, case: &str) -> anyhow::Result<Self> {
        let cores = std::thread::available_parallelism()?.get();
        let deployment = block_in_place(|| Deployment::start_with(options));
        let client = KeyVaultClient::new(deployment.channel("vault", "managedIdentities/platform")?);
        Ok(Self { deployment, client, cores, rounds, seconds, case: case.to_owned() })
    }

    fn wants(&self, case: &str) -> bool {
        case.contains(&self.case)
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }

    /// A key of so many bits, in a vault of its own, that the platform's identity may use in every way, and something wrapped by it.
    async fn key(&self, id: &str, bits: u32) -> anyhow::Result<(String, kv::UnwrapKeyRequest)> {
        let key = format!("vaults/{id}/keys/k");
        block_in_place(|| {
            _ = self.deployment.run(&["vault", "create", id]);
            _ = self.deployment.run(&["key", "create", &key, "--size", &bits.to_string()]);
            let (who, role) = ("managedIdentities/platform", "Key Vault Crypto User");
            _ = self.deployment.run(&["access", "grant", who, role, &key]);
        });
        let wrapped = self.client.clone().wrap_key(wrap(&key)).await?.into_inner();
        let (algorithm, ciphertext) = (wrapped.algorithm, wrapped.ciphertext);
        Ok((key, kv::UnwrapKeyRequest { name: wrapped.key_version, algorithm, ciphertext }))
    }

    /// Calls by the client that costs next to nothing.
    async fn calls(&self, in_flight: usize, call: &Prepared) -> anyhow::Result<Load> {
        let token = self.token().await?;
        let connections = in_flight.div_ceil(CALLS_OF_CONNECTION);
        block_in_place(|| {
            let clients: Vec<_> = (0..connections)
                .map(|_| GrpcClient::connect(&self.deployment, &token))
                .collect::<Result<_, _>>()?;
            let loads = std::thread::scope(|scope| {
                let run = |client: GrpcClient| {
                    scope.spawn(move || client.run(in_flight / connections, self.duration(), call))
                };
                let running: Vec<_> = clients.into_iter().map(run).collect();
                let ended = |_| anyhow::anyhow!("a client ended early");
                running.into_iter().map(|one| one.join().map_err(ended)?).collect::<Result<_, _>>()
            })?;
            Ok(Load::of_all(loads))
        })
    }

    async fn token(&self) -> anyhow::Result<String> {
        Ok(self.deployment.tokens("managedIdentities/platform", "custody-vault")?.text().await?)
    }

    /// Unwraps by the client that the cluster's own services have.
    async fn tonic_unwraps(&self, clients: usize, request: &kv::UnwrapKeyRequest) -> anyhow::Result<Load> {
        Load::run(clients, self.duration(), |_| {
            let (mut client, request) = (self.client.clone(), request.clone());
            async move || client.unwrap_key(request.clone()).await.map(drop).map_err(anyhow::Error::from)
        })
        .await
    }

    async fn rest_unwraps(&self, bits: u32, request: &kv::UnwrapKeyRequest) -> anyhow::Result<Load> {
        let version = request.name.rsplit('/').next().unwrap_or_default();
        let token = self.token().await?;
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
    kv::WrapKeyRequest { name: key.to_owned(), algorithm: String::new(), plaintext: WRAPPED.to_vec() }
}

/// A method's path.
macro_rules! path {
    ($method:literal) => {
        concat!("/custody.vault.v1.KeyVault/", $method)
    };
}

fn prepared_unwrap(request: &kv::UnwrapKeyRequest) -> anyhow::Result<Prepared> {
    let answer = kv::UnwrapKeyResponse { plaintext: WRAPPED.to_vec() }.encode_to_vec();
    Prepared::new(path!("UnwrapKey"), request, Some(answer))
}

pub(crate) async fn run(rounds: usize, seconds: u32, case: &str) -> anyhow::Result<()> {
    let start = |options: &[&str]| Bench::start(options, rounds, seconds, case);
    let mut benches = vec![start(&[])?];
    let with = std::path::absolute(CRYPTO_MB)?;
    if with.exists() {
        benches.push(start(&["--crypto-mb", &with.display().to_string()])?);
    } else {
        println!("crypto_mb is not measured: {CRYPTO_MB} is missing, scripts/crypto-mb gets it");
    }
    println!(
        "\nvault: calls a second, audited and durable, over TLS, {CLIENTS} in flight; client and server share all cores; medians of {rounds} rounds of {seconds} s, of the rounds' ratios where one is told; a line each without and with crypto_mb"
    );
    println!(
        "{:12} {:>8} {:>8} {:>8} {:>8} {:>8} {:>12} {:>12} {:>13} {:>14}",
        "unwrapKey",
        "gRPC",
        "tonic",
        "REST",
        "aws-lc",
        "openssl",
        "gRPC/aws-lc",
        "REST/aws-lc",
        "tonic/aws-lc",
        "vault's CPU"
    );
    for bits in [SMALL, 3072, 4096] {
        if benches.iter().any(|bench| bench.wants(&format!("RSA-{bits}"))) {
            unwraps(&benches, bits).await?;
        }
    }
    for bench in &benches {
        let (key, unwrap) = bench.key("ladder", SMALL).await?;
        latencies(bench, &key, &unwrap).await?;
        if bench.wants("flood") {
            flood(bench, &key, &unwrap).await?;
        }
    }
    Ok(())
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

/// Calls a second of one round, and what a call took of the vault's cores in microseconds.
struct Round {
    grpc: f64,
    tonic: f64,
    rest: f64,
    lc: f64,
    ssl: f64,
    cpu: f64,
}

/// One line for each vault. They take turns within a round.
async fn unwraps(benches: &[Bench], bits: u32) -> anyhow::Result<()> {
    let mut lines = Vec::new();
    for bench in benches {
        let (_, unwrap) = bench.key(&format!("bench{bits}"), bits).await?;
        lines.push((bench, prepared_unwrap(&unwrap)?, unwrap, Vec::new()));
    }
    let rounds = benches.first().map_or(0, |bench| bench.rounds);
    for _ in 0..rounds {
        for (bench, prepared, unwrap, rounds) in &mut lines {
            let vault = Process::of(&bench.deployment, "vault");
            // A machine of a cloud is faster now and slower then: the peer runs before and after, and ratios are a round's own.
            let alone = || block_in_place(|| direct(bits, bench.seconds, bench.cores));
            let earlier = alone()?;
            let before = vault.cpu();
            let load = bench.calls(CLIENTS, prepared).await?;
            let cpu = (vault.cpu() - before).as_secs_f64() * 1e6 / load.calls() as f64;
            let rest = bench.rest_unwraps(bits, unwrap).await?.per_second();
            let lc = f64::midpoint(earlier, alone()?);
            let tonic = bench.tonic_unwraps(CLIENTS, unwrap).await?.per_second();
            let ssl = block_in_place(|| openssl(bits, bench.seconds, bench.cores))?;
            rounds.push(Round { grpc: load.per_second(), tonic, rest, lc, ssl, cpu });
        }
    }
    for (index, (bench, _, _, rounds)) in lines.iter().enumerate() {
        let of = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure).collect());
        let cpu = of(|r| r.cpu);
        println!(
            "{:12} {:>8.0} {:>8.0} {:>8.0} {:>8.0} {:>8.0} {:>12.2} {:>12.2} {:>13.2} {cpu:>11.0} µs",
            format!("RSA-{bits}"),
            of(|r| r.grpc),
            of(|r| r.tonic),
            of(|r| r.rest),
            of(|r| r.lc),
            of(|r| r.ssl),
            of(|r| r.grpc / r.lc),
            of(|r| r.rest / r.lc),
            of(|r| r.tonic / r.lc)
        );
        if (index, bits) == (0, SMALL) {
            let audit = audit_cost(bench.duration()).await?;
            println!(
                "audit: two durable records and their leaves take {audit:.1} µs of a core an operation, {:.1} % of such an unwrap",
                audit / cpu * 100.0
            );
        }
    }
    Ok(())
}

async fn latencies(bench: &Bench, key: &str, unwrap: &kv::UnwrapKeyRequest) -> anyhow::Result<()> {
    println!(
        "\n{:12} {:>10} {:>10} {:>10} {:>10} {:>10} {:>14}",
        "over gRPC", "in flight", "calls/s", "p50 ms", "p99 ms", "p99.9 ms", "vault's CPU"
    );
    let sign = kv::SignRequest { name: key.to_owned(), algorithm: "PS256".to_owned(), digest: vec![7; 32] };
    let get = kv::GetKeyRequest { name: key.to_owned() };
    let operations = [
        ("get", Prepared::new(path!("GetKey"), &get, None)?),
        ("wrapKey", Prepared::new(path!("WrapKey"), &wrap(key), None)?),
        ("sign", Prepared::new(path!("Sign"), &sign, None)?),
        ("unwrapKey", prepared_unwrap(unwrap)?),
    ];
    let vault = Process::of(&bench.deployment, "vault");
    for clients in LADDER {
        for (operation, call) in &operations {
            if !bench.wants(&format!("{operation} {clients}")) {
                continue;
            }
            let before = vault.cpu();
            let load = bench.calls(clients, call).await?;
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
    let lone = bench.deployment.tokens("lone", "custody-vault")?.text().await?;
    let other = bench.token().await?;
    let call = prepared_unwrap(unwrap)?;
    // Each on a connection and a thread of its own: neither waits for the other but at the vault.
    let asks = |token, in_flight| {
        GrpcClient::connect(&bench.deployment, token)?.run(in_flight, bench.duration(), &call)
    };
    let p99 = |load: Load| load.quantile(0.99).as_secs_f64() * 1e3;
    let (mut quiet, mut flooded) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds {
        quiet.push(p99(block_in_place(|| asks(&lone, 1))?));
        let (one, flood) = block_in_place(|| {
            std::thread::scope(|scope| {
                let flood = scope.spawn(|| asks(&other, 256));
                (asks(&lone, 1), flood.join())
            })
        });
        flood.map_err(|_| anyhow::anyhow!("the flood ended early"))??;
        flooded.push(p99(one?));
    }
    let (quiet, flooded) = (median(quiet), median(flooded));
    println!(
        "\nunwrapKey RSA-2048 of a lone caller, p99: {quiet:.2} ms alone, {flooded:.2} ms while another caller has 256 in flight ({:.1} times)",
        flooded / quiet
    );
    Ok(())
}
