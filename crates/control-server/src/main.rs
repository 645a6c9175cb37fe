//! `custody-control`: the gRPC face of the control plane.

mod archives;
mod backups;
mod convert;
mod engine;
mod operations;
mod service;
mod steps;

use clap::Parser;
use custody_audit_server::{AuditLogService, AuditSettings, denial_sink};
use custody_clients::{Database, Endpoint, Identity, Storage, TokenSource};
use custody_control::Ledger;
use custody_rpc::{ServerSettings, server, services::Services, settings, workers::Workers};
use custody_store::Store;
use custody_types::SystemClock;
use engine::{Engine, Platform};
use serde::Deserialize;
use std::{path::PathBuf, sync::Arc, time::Duration};

#[derive(Parser)]
#[command(version, about = "Custody's control plane")]
struct Arguments {
    /// The settings file, TOML.
    #[arg(long)]
    config: PathBuf,
}

/// Settings of the control plane.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    server: ServerSettings,
    /// How the trail is kept and sent.
    #[serde(default)]
    audit: AuditSettings,
    /// The storage node, `https://host:port`.
    storage: String,
    /// The storage node's principal, which identities are bound to.
    storage_principal: String,
    /// The database node, `https://host:port`.
    database: String,
    /// The key and the identity of service-managed encryption.
    service_key: String,
    /// The identity that may use it.
    service_identity: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings: Settings = settings::read(&Arguments::parse().config)?;
    let _telemetry = custody_telemetry::start("custody-control", settings.server.otlp_endpoint.as_deref())?;
    let credentials = server::credentials(&settings.server)?;
    let identity = server::identity_endpoint(&settings.server)?;
    let tokens = |audience| TokenSource::workload(identity.clone(), "", audience);
    // Making a volume restores a backup within the call, so its deadline is long.
    let endpoint = |url: &str| Endpoint::new(url, &credentials, Duration::from_secs(600));
    let platform = Platform {
        identity: Identity::new(identity.authenticated(tokens("custody-identity"))),
        storage: Storage::new(endpoint(&settings.storage)?.authenticated(tokens("custody-node"))),
        database: Database::new(endpoint(&settings.database)?.authenticated(tokens("custody-database"))),
        storage_principal: settings.storage_principal,
        service_key: settings.service_key,
        service_identity: settings.service_identity,
    };
    let ledger = Ledger::new(Store::open(&settings.server.data.join("store"))?);
    let (journal, keeper) = custody_audit_server::open(
        &settings.server,
        &settings.audit,
        "custody-control",
        Arc::new(SystemClock),
    )?;
    let engine = Engine::start(ledger, platform)?;
    let workers = Workers::new(256);
    let services = Services::default()
        .with(service::ClusterService::server(engine.clone(), journal.clone()))
        .with(operations::OperationsService::server(engine))
        .with(AuditLogService::server(Arc::new(service::ControlTrail(journal.clone())), workers, &keeper));
    let verifier = server::verifier(&settings.server, "custody-control")?;
    server::serve(
        &settings.server,
        services,
        verifier,
        Some(denial_sink(journal.clone())),
        server::terminated(),
    )
    .await?;
    keeper.stop().await;
    tokio::task::spawn_blocking(move || journal.close()).await?;
    Ok(())
}
