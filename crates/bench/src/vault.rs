//! The vault over gRPC, audited and durable, beside `openssl speed` on the same cores.

use crate::median;
use anyhow::Context as _;
use custody_clients::AuthenticatedChannel;
use custody_proto::vault::{self as kv, key_vault_client::KeyVaultClient};
use custody_testkit::Deployment;
use std::{
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

type Client = KeyVaultClient<AuthenticatedChannel>;

/// Private operations a second with every core, by Debian's OpenSSL.
fn openssl(bits: u32, seconds: u32, cores: usize) -> anyhow::Result<f64> {
    let output = Command::new("openssl")
        .args([
            "speed",
            "-seconds",
            &seconds.to_string(),
            "-multi",
            &cores.to_string(),
            &format!("rsa{bits}"),
        ])
        .stdin(Stdio::null())
        .output()
        .context("openssl is not installed")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let line = said.lines().rev().find(|l| l.starts_with("rsa")).context("openssl told no figures")?;
    let mut numbers = line.split_whitespace().rev();
    numbers.next();
    Ok(numbers.next().context("openssl's line is short")?.parse()?)
}

/// Calls a second, with `clients` calls in flight.
async fn throughput<F, Fut>(clients: usize, seconds: u32, call: F) -> anyhow::Result<f64>
where
    F: Fn() -> Fut + Send + Sync + Clone + 'static,
    Fut: Future<Output = Result<(), tonic::Status>> + Send,
{
    let done = Arc::new(AtomicU64::new(0));
    let until = Instant::now() + Duration::from_secs(seconds.into());
    let started = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let (call, done) = (call.clone(), done.clone());
            tokio::spawn(async move {
                while Instant::now() < until {
                    call().await?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<(), tonic::Status>(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(done.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64())
}

/// Calls in flight: enough for group commits and both cores.
const CLIENTS: usize = 64;

pub(crate) async fn run(rounds: usize, seconds: u32) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism()?.get();
    let deployment = tokio::task::block_in_place(Deployment::start);
    println!(
        "\nvault: calls a second over gRPC with TLS, audited and durable, {CLIENTS} in flight; client and server share {cores} cores; medians of {rounds} rounds of {seconds} s"
    );
    println!("{:26} {:>10} {:>22} {:>7}", "case", "custody", "openssl private ops/s", "ratio");
    for bits in [2048u32, 3072, 4096] {
        let id = format!("bench{bits}");
        _ = tokio::task::block_in_place(|| deployment.run(&["vault", "create", &id]));
        let key = format!("vaults/{id}/keys/k");
        _ = tokio::task::block_in_place(|| {
            deployment.run(&["key", "create", &key, "--size", &bits.to_string()])
        });
        _ = tokio::task::block_in_place(|| {
            deployment.run(&["access", "grant", "managedIdentities/platform", "Key Vault Crypto User", &key])
        });
        let client: Client = KeyVaultClient::new(deployment.channel("vault", "managedIdentities/platform")?);
        let wrap = kv::WrapKeyRequest { name: key.clone(), algorithm: String::new(), plaintext: vec![7; 32] };
        let wrapped = client.clone().wrap_key(wrap.clone()).await?.into_inner();
        let unwrap = kv::UnwrapKeyRequest {
            name: wrapped.key_version,
            algorithm: wrapped.algorithm,
            ciphertext: wrapped.ciphertext,
        };
        let (mut own, mut peer, mut wraps, mut gets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            peer.push(tokio::task::block_in_place(|| openssl(bits, seconds, cores))?);
            let (c, r) = (client.clone(), unwrap.clone());
            own.push(
                throughput(CLIENTS, seconds, move || {
                    let (mut c, r) = (c.clone(), r.clone());
                    async move { c.unwrap_key(r).await.map(drop) }
                })
                .await?,
            );
            if bits == 2048 {
                let (c, r) = (client.clone(), wrap.clone());
                wraps.push(
                    throughput(CLIENTS, seconds, move || {
                        let (mut c, r) = (c.clone(), r.clone());
                        async move { c.wrap_key(r).await.map(drop) }
                    })
                    .await?,
                );
                let (c, r) = (client.clone(), kv::GetKeyRequest { name: key.clone() });
                gets.push(
                    throughput(CLIENTS, seconds, move || {
                        let (mut c, r) = (c.clone(), r.clone());
                        async move { c.get_key(r).await.map(drop) }
                    })
                    .await?,
                );
            }
        }
        let (own, peer) = (median(own), median(peer));
        println!("{:26} {own:>10.0} {peer:>22.0} {:>7.2}", format!("unwrapKey RSA-{bits}"), own / peer);
        if bits == 2048 {
            println!("{:26} {:>10.0}", "wrapKey RSA-2048", median(wraps));
            println!("{:26} {:>10.0}", "get", median(gets));
        }
    }
    Ok(())
}
