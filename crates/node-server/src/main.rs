//! `custody-node`: the gRPC and NBD faces of the storage node.

mod backup;
mod bucket;
mod dependents;
mod export;
mod inventory;
mod keeper;
mod leases;
mod managed;
mod node;
mod protection;
mod rewrap;
mod service;
mod settling;
mod spill;
mod upload;
mod wal;
mod wal_index;
mod watch;

use anyhow::Context as _;
use clap::Parser;
use custody_nbd::{Listener, Server, ServerOptions};
use custody_rpc::{
    ServerSettings, authentication::DenialSink, hardening, server, services::Services, settings,
    tls::principal_of, workers::Workers,
};
use dependents::Inventory;
use leases::Leases;
use node::{Node, NodeConfig};
use serde::Deserialize;
use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

/// What is freed is erased: the answers that bring a volume key pass through buffers of libraries that leave them.
#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<std::alloc::System> =
    zeroizing_alloc::ZeroAlloc(std::alloc::System);

#[derive(Parser)]
#[command(version, about = "Custody's storage node")]
struct Arguments {
    /// The settings file, TOML.
    #[arg(long)]
    config: PathBuf,
}

/// Settings of a storage node.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    server: ServerSettings,
    /// Where the vault is, `https://host:port`.
    vault: String,
    /// Where backups are kept: a directory's path, or `az://CONTAINER/PREFIX` or `s3://BUCKET/PREFIX`. Accounts, keys
    /// and endpoints of the latter are taken from the environment: `AZURE_STORAGE_*`, `AWS_*`.
    backups: String,
    /// Where the anchors of volumes are kept, best on another disk than the volumes; in the data directory if not given.
    anchors: Option<PathBuf>,
    /// The Unix socket for NBD; only its owner may connect.
    nbd_socket: PathBuf,
    /// Where to serve NBD over TLS; port 0 takes a free one.
    nbd_listen: SocketAddr,
    /// How long keys are held without the vault's answer, in milliseconds: 1,000 to 3,600,000. A key's owner may allow less.
    lease_ms: u64,
    /// How long a data key seals before what it sealed is re-encrypted, in days: 1 to 730, which is also the default
    /// (NIST SP 800-57 part 1, table 1).
    #[serde(default = "default_data_key_days")]
    data_key_days: u32,
    /// How much is re-encrypted, in MiB a second: 1 to 100,000; 64 if not given.
    #[serde(default = "default_rotation_mib_per_second")]
    rotation_mib_per_second: u32,
    /// How much may be spilled, in MiB on disk: 4096 if not given.
    #[serde(default = "default_spill_mib")]
    spill_mib: u32,
    /// How often the vault is asked, in milliseconds; less than the lease.
    renew_every_ms: u64,
}

fn default_data_key_days() -> u32 {
    730
}

fn default_rotation_mib_per_second() -> u32 {
    64
}

fn default_spill_mib() -> u32 {
    4096
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings: Settings = settings::read(&Arguments::parse().config)?;
    anyhow::ensure!((1_000..=3_600_000).contains(&settings.lease_ms), "`lease_ms` must be 1000 to 3600000");
    anyhow::ensure!(
        (100..settings.lease_ms).contains(&settings.renew_every_ms),
        "`renew_every_ms` must be 100 or more and less than `lease_ms`"
    );
    anyhow::ensure!((1..=730).contains(&settings.data_key_days), "`data_key_days` must be 1 to 730");
    anyhow::ensure!(
        (1..=100_000).contains(&settings.rotation_mib_per_second),
        "`rotation_mib_per_second` must be 1 to 100000"
    );
    let _telemetry = custody_telemetry::start("custody-node", settings.server.otlp_endpoint.as_deref())?;
    hardening::protect_memory();
    let credentials = server::credentials(&settings.server)?;
    std::fs::create_dir_all(&settings.server.data)?;
    let anchors = settings.anchors.clone().unwrap_or_else(|| settings.server.data.join("anchors"));
    std::fs::create_dir_all(&anchors)?;
    let lock = std::fs::File::create(settings.server.data.join("lock"))?;
    lock.try_lock().with_context(|| {
        format!("the data directory `{}` is in use by another process", settings.server.data.display())
    })?;
    let nbd_tcp = std::net::TcpListener::bind(settings.nbd_listen).context("nbd_listen")?;
    let vault = custody_rpc::Endpoint::new(&settings.vault, &credentials, Duration::from_secs(3))?;
    let identity = server::identity_endpoint(&settings.server)?;
    let lease = Duration::from_millis(settings.lease_ms);
    let leases = Leases::start(&vault, &identity, credentials.holder_key()?, lease)?;
    let config = NodeConfig {
        data: settings.server.data.clone(),
        anchors,
        backups: bucket::open(&settings.backups).context("backups")?,
        identity,
        vault,
        extent_pace: Duration::from_secs(custody_node::layout::EXTENT_LEN >> 20)
            / settings.rotation_mib_per_second,
        data_key_age_max: Duration::from_secs(u64::from(settings.data_key_days) * 86_400),
        renew_every: Duration::from_millis(settings.renew_every_ms),
        spill_bytes_max: u64::from(settings.spill_mib) << 20,
        nbd_socket: settings.nbd_socket.clone(),
        nbd_address: nbd_tcp.local_addr()?,
    };
    let node = Node::open(config, leases).await?;
    let looked_at = Arc::downgrade(&node);
    let look = move || looked_at.upgrade().map_or_else(|| Ok(Inventory::new()), |node| node.look());
    node.dependents.start(&node.config.vault, &node.config.identity, Arc::new(look));
    let sweep = tokio::spawn(spill::sweep(node.clone()));
    let settling = tokio::spawn(settling::settle(node.clone()));
    let exports: Arc<dyn custody_nbd::Exports> = Arc::new(export::NodeExports(node.clone()));
    _ = std::fs::remove_file(&settings.nbd_socket);
    let unix = std::os::unix::net::UnixListener::bind(&settings.nbd_socket).context("nbd_socket")?;
    std::fs::set_permissions(&settings.nbd_socket, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let options = ServerOptions {
        tls: Some(credentials.mutual_server()?),
        admits: Arc::new(|certificate| principal_of(certificate).as_deref() == Some("principals/database")),
        ..ServerOptions::default()
    };
    let local = Server::start(Listener::Unix(unix), exports.clone(), options.clone())?;
    let remote = Server::start(Listener::Tcp(nbd_tcp), exports, options)?;
    let services = Services::default().with(service::StorageService::server(node.clone(), Workers::new(512)));
    let verifier = server::verifier(&settings.server, "custody-node")?;
    server::serve(&settings.server, services, verifier, Some(denials()), server::terminated()).await?;
    tokio::task::spawn_blocking(move || drop((local, remote))).await?;
    sweep.abort();
    settling.abort();
    node.close().await;
    drop(lock);
    Ok(())
}

/// A storage node keeps no trail: its refusals are in its log, its key operations in the vault's trail.
fn denials() -> DenialSink {
    Arc::new(|context, path| {
        tracing::warn!(principal = context.caller.principal, duty = %context.caller.duty, path, "call refused");
        true
    })
}
