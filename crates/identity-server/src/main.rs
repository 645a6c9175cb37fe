//! `custody-identity`: the gRPC face of the identity service.

mod oauth;
mod service;

use clap::Parser;
use custody_audit_server::{AuditLogService, AuditSettings, denial_sink};
use custody_identity::{Bootstrap, Registry, Signer};
use custody_rpc::{
    ServerSettings, hardening, https::HttpsServer, server, services::Services, settings,
    token::TokenVerifier, workers::Workers,
};
use custody_types::{Clock, SystemClock};
use serde::Deserialize;
use std::{path::PathBuf, sync::Arc, time::Duration};

#[derive(Parser)]
#[command(version, about = "Custody's identity service")]
struct Arguments {
    /// The settings file, TOML.
    #[arg(long)]
    config: PathBuf,
}

/// Settings of the identity service.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    server: ServerSettings,
    /// How the trail is kept and sent.
    #[serde(default)]
    audit: AuditSettings,
    /// How long a token is valid, in seconds: 10 to 3,600.
    token_lifetime_s: u64,
    /// Principals that exist from the first start on.
    #[serde(default)]
    bootstrap: Vec<Bootstrap>,
    /// The OAuth face, for clients of other people's APIs; none without it.
    #[serde(default)]
    oauth: Option<oauth::OauthSettings>,
    /// Ids of the workloads that prove themselves by certificates: no other principal may have such a name.
    services: Vec<String>,
    /// Managed identities that exist from the first start on, each with a node that may act as it.
    #[serde(default)]
    managed: Vec<(String, String)>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings: Settings = settings::read(&Arguments::parse().config)?;
    anyhow::ensure!(
        (10..=3600).contains(&settings.token_lifetime_s),
        "`token_lifetime_s` must be 10 to 3600"
    );
    let _telemetry = custody_telemetry::start("custody-identity", settings.server.otlp_endpoint.as_deref())?;
    hardening::protect_memory();
    let data = &settings.server.data;
    let store = custody_store::Store::open(&data.join("store"))?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let (journal, keeper) =
        custody_audit_server::open(&settings.server, &settings.audit, "custody-identity", clock.clone())?;
    let signer = Signer::open(data, &settings.server.issuer, Duration::from_secs(settings.token_lifetime_s))?;
    let registry = Arc::new(Registry::open(
        store,
        signer,
        journal.clone(),
        clock,
        &settings.bootstrap,
        &settings.managed,
        &settings.services,
    )?);
    let verifier =
        Arc::new(TokenVerifier::fixed(&settings.server.issuer, "custody-identity", registry.jwks()));
    let workers = Workers::new(512);
    let oauth_router = |face: &oauth::OauthSettings| oauth::router(registry.clone(), workers.clone(), face);
    let faces = settings.oauth.as_ref().map(|face| (face, oauth_router(face)));
    let https = match faces {
        Some((face, router)) => {
            let server = HttpsServer::bind(face.listen, &server::credentials(&settings.server)?).await?;
            server.announce(face.address_file.as_deref())?;
            Some(tokio::spawn(server.serve(router)))
        }
        None => None,
    };
    let services = Services::default()
        .with(service::IdentityService::server(registry.clone(), workers.clone()))
        .with(AuditLogService::server(Arc::new(service::IdentityTrail(registry)), workers, &keeper));
    server::serve(
        &settings.server,
        services,
        verifier,
        Some(denial_sink(journal.clone())),
        server::terminated(),
    )
    .await?;
    keeper.stop().await;
    if let Some(https) = https {
        https.abort();
    }
    tokio::task::spawn_blocking(move || journal.close()).await?;
    Ok(())
}
