//! `custody-database`: the gRPC face of the database node.

mod service;
mod supervisor;
mod wal;

use anyhow::Context as _;
use clap::Parser;
use custody_clients::{Endpoint, Storage, TokenSource};
use custody_database::Installation;
use custody_rpc::{ServerSettings, authentication::DenialSink, server, services::Services, settings};
use serde::Deserialize;
use std::{path::PathBuf, sync::Arc, time::Duration};
use supervisor::Fleet;

#[derive(Parser)]
#[command(version, about = "Custody's database node")]
struct Arguments {
    /// The settings file, TOML.
    #[arg(long)]
    config: PathBuf,
}

/// Settings of a database node.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    server: ServerSettings,
    /// Where the storage node is, `https://host:port`.
    storage: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings: Settings = settings::read(&Arguments::parse().config)?;
    let _telemetry = custody_telemetry::start("custody-database", settings.server.otlp_endpoint.as_deref())?;
    std::fs::create_dir_all(&settings.server.data)?;
    let lock = std::fs::File::create(settings.server.data.join("lock"))?;
    lock.try_lock().with_context(|| {
        format!("the data directory `{}` is in use by another process", settings.server.data.display())
    })?;
    let endpoint =
        Endpoint::new(&settings.storage, &server::credentials(&settings.server)?, Duration::from_secs(10))?;
    let tokens = TokenSource::workload(server::identity_endpoint(&settings.server)?, "", "custody-node");
    let fleet = Fleet::open(
        settings.server.data.clone(),
        Installation::find().ok(),
        Storage::new(endpoint.authenticated(tokens)),
        std::env::current_exe()?.with_file_name("custody-wal"),
    )?;
    let services = Services::default().with(service::DatabaseService::server(fleet.clone()));
    let verifier = server::verifier(&settings.server, "custody-database")?;
    server::serve(&settings.server, services, verifier, Some(denials()), server::terminated()).await?;
    fleet.close().await;
    drop(lock);
    Ok(())
}

/// A database node keeps no trail; its refusals are in its log.
fn denials() -> DenialSink {
    Arc::new(|context, path| {
        tracing::warn!(principal = context.caller.principal, duty = %context.caller.duty, path, "call refused");
        true
    })
}
