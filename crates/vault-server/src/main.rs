//! `custody-vault`: the gRPC face of the vault.

mod access;
mod convert;
mod edge;
mod faults;
mod leases;
mod lineage;
mod seal;
mod service;
mod trail;

use access::AccessControlService;
use anyhow::Context as _;
use clap::Parser;
use custody_audit_server::{AuditLogService, AuditSettings, denial_sink};
use custody_rpc::{
    ServerSettings,
    compute::{AtOnce, Compute},
    hardening,
    https::HttpsServer,
    server,
    services::Services,
    settings,
    workers::Workers,
};
use custody_types::{Caller, Clock, Duty, KeyType, RsaSize, SystemClock};
use custody_vault::{
    Batch, Call, IfExists, Material, MultiBuffer, MultiBufferError, NewAssignment, Particulars, RateLimits,
    SealSettings, Token, TokenSettings, Vault, VaultError, VaultOptions, VaultParameters,
    faults::{Faults, Profile},
};

use custody_vault_rest::{Face, FaceSettings};
use edge::EdgeFaults;
use faults::FaultService;
use leases::LeaseService;
use lineage::LineageService;
use seal::SealService;
use serde::Deserialize;
use service::KeyVaultService;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

/// A call makes some hundred small allocations on one thread and frees them on another, where it is a quarter faster than
/// the system's (`docs/design/0006-figures.md`). What is freed is erased: parsing and arithmetic of keys leave copies that
/// their libraries do not erase.
#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<mimalloc::MiMalloc> =
    zeroizing_alloc::ZeroAlloc(mimalloc::MiMalloc);

#[derive(Parser)]
#[command(version, about = "Custody's key vault")]
struct Arguments {
    /// The settings file, TOML.
    #[arg(long)]
    config: PathBuf,
}

/// Settings of the vault.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    server: ServerSettings,
    /// How the trail is kept and sent.
    #[serde(default)]
    audit: AuditSettings,
    /// The file of the default seal; made at the first start.
    root_key: PathBuf,
    /// Holds the number of the store's last commit, so that a store that was put back is found: best on another disk.
    /// `anchor` in the data directory without it.
    anchor: Option<PathBuf>,
    /// The commit to go on from although the anchor knows of a later one: for an older store that is restored on purpose.
    accept_commit: Option<u64>,
    /// The platform's own key for service-managed encryption; made at the first start.
    service_managed: Option<ServiceManaged>,
    /// How often callers, keys and vaults may be asked; no bounds without it.
    #[serde(default)]
    limits: RateLimits,
    /// The HSM, a PKCS#11 token: for keys of type RSA-HSM and EC-HSM, and for the seal. None without it.
    hsm: Option<TokenSettings>,
    /// Intel's `crypto_mb`, a shared library, which does private RSA operations eight at a time on processors with AVX-512 IFMA.
    /// Without it, and on other processors, each is done by itself.
    crypto_mb: Option<PathBuf>,
    /// Azure's REST API; not served without it.
    rest: Option<Rest>,
    /// How the vault misbehaves, where it stands for a cloud's in tests: the name of a profile, or a file's path. Without it the vault does
    /// not, and nobody can have it do so.
    faults: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rest {
    /// Where to listen; port 0 takes a free one.
    listen: SocketAddr,
    /// A file to write the listening address to, once ready.
    address_file: Option<PathBuf>,
    /// The domain below which each vault has a host: `NAME.vault.localhost`.
    domain: String,
    /// Where clients get tokens, `https://host:port/TENANT`.
    authority: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceManaged {
    vault: String,
    key: String,
    managed_identity: String,
}

/// Between tries to make the platform's key.
const SERVICE_KEY_PAUSE: Duration = Duration::from_millis(500);

/// Jobs at once, running and waiting.
const JOBS_MAX: usize = 1024;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings: Settings = settings::read(&Arguments::parse().config)?;
    let _telemetry = custody_telemetry::start("custody-vault", settings.server.otlp_endpoint.as_deref())?;
    hardening::protect_memory();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    std::fs::create_dir_all(&settings.server.data)?;
    let store_dir = settings.server.data.join("store");
    // With a million keys each of the two takes a part of a second.
    let opening = std::thread::spawn(move || custody_store::Store::open(&store_dir));
    let (journal, keeper) =
        custody_audit_server::open(&settings.server, &settings.audit, "custody-vault", clock.clone())?;
    let store = opening.join().map_err(|_| anyhow::anyhow!("opening the store failed"))??;
    let (events, _) = tokio::sync::broadcast::channel(1024);
    let sender = events.clone();
    let token = settings.hsm.clone().map(Token::open).transpose().context("`hsm`")?.map(Arc::new);
    let authority = Some(server::credentials(&settings.server)?.authority()?);
    let profile = settings.faults.as_deref().map(fault_profile).transpose().context("`faults`")?;
    // It begins when the platform's own key is made.
    let faults = profile.as_ref().map(|_| Arc::new(Faults::new(Profile::default(), clock.clone())));
    let options = VaultOptions {
        limits: settings.limits,
        token,
        authority,
        faults: faults.clone(),
        ..VaultOptions::default()
    };
    let seal = SealSettings {
        key_file: settings.root_key.clone(),
        anchor: settings.anchor.clone().unwrap_or_else(|| settings.server.data.join("anchor")),
        accept_commit: settings.accept_commit,
    };
    let vault = Arc::new(Vault::open(store, seal, journal.clone(), clock, options, move |event| {
        _ = sender.send(event)
    })?);
    if vault.is_sealed() {
        tracing::warn!("the vault is sealed; its officers unseal it with `custody vault unseal`");
    }
    let mut later = None;
    if let Some(service) = settings.service_managed.map(Arc::new)
        && !try_service_key(&vault, &service).await
    {
        later = Some(tokio::spawn(keep_service_key(vault.clone(), service)));
    }
    let verifier = server::verifier(&settings.server, "custody-vault")?;
    if let (Some(profile), Some(faults)) = (profile, &faults) {
        tracing::warn!(profile = profile.name, "this vault misbehaves, for tests: never a production's");
        verifier.limit_age(profile.token_age_ms.map(Duration::from_millis));
        faults.set(profile);
    }
    let edge = faults.map(EdgeFaults::start);
    // A store that is found altered or unreadable while the vault serves ends it, as it does a start.
    let (refuse, refused) = watch::channel(None);
    let ticking = tokio::spawn(tick(vault.clone(), refuse));
    let closing = tokio::spawn(leases::close_due(vault.clone(), settings.server.data.join("proof.pub")));
    let workers = Workers::new(JOBS_MAX);
    let library =
        settings.crypto_mb.as_deref().map(multi_buffer).transpose().context("`crypto_mb`")?.flatten();
    let compute = Compute::start(AtOnce {
        make: Box::new(move || Batch::new(library.clone())),
        len_max: Batch::LEN_MAX,
        perform: Batch::perform,
    })?;
    let trail = Arc::new(trail::VaultTrail(vault.clone()));
    let https = match &settings.rest {
        Some(rest) => {
            let server = HttpsServer::bind(rest.listen, &server::credentials(&settings.server)?).await?;
            server.announce(rest.address_file.as_deref())?;
            let face = FaceSettings { domain: rest.domain.clone(), authority: rest.authority.clone() };
            let face = Face::new(vault.clone(), workers.clone(), compute.clone(), verifier.clone(), face);
            let router = custody_vault_rest::router(Arc::new(face));
            let router = match &edge {
                Some(edge) => edge.before(router, edge::Face::Rest),
                None => router,
            };
            Some(tokio::spawn(server.serve(router)))
        }
        None => None,
    };
    let mut services = Services::default()
        .with(KeyVaultService::server(vault.clone(), events.clone(), workers.clone(), compute))
        .with(LineageService::server(vault.clone(), workers.clone()))
        .with(LeaseService::server(vault.clone(), events, verifier.clone(), workers.clone()))
        .with(AccessControlService::server(vault.clone(), workers.clone()))
        .with(SealService::server(vault.clone(), workers.clone()))
        .with(AuditLogService::server(trail, workers.clone(), &keeper));
    if let Some(edge) = edge {
        services = services.with(FaultService::server(vault.clone(), verifier.clone(), workers));
        services = services.wrapped(|service| edge.before_service(service));
    }
    server::serve(
        &settings.server,
        services,
        verifier,
        Some(denial_sink(journal.clone())),
        ended(refused.clone()),
    )
    .await?;
    keeper.stop().await;
    ticking.abort();
    closing.abort();
    if let Some(later) = later {
        later.abort();
    }
    if let Some(https) = https {
        https.abort();
    }
    let closed = tokio::task::spawn_blocking(move || {
        let done = vault.close();
        journal.close();
        done
    });
    let closed = closed.await?;
    if let Some(why) = refused.borrow().as_deref() {
        anyhow::bail!("{why}");
    }
    Ok(closed?)
}

/// The library that does private operations eight at a time, where this machine's processor can: settings may be those of many
/// machines.
fn multi_buffer(path: &Path) -> Result<Option<Arc<MultiBuffer>>, MultiBufferError> {
    match MultiBuffer::load(path) {
        Ok(library) => {
            tracing::info!(
                library = library.version(),
                "private RSA operations that wait together are done at once"
            );
            Ok(Some(Arc::new(library)))
        }
        Err(e @ MultiBufferError::Processor { .. }) => {
            tracing::warn!(error = %e, "private RSA operations are done one by one");
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// A profile by its name, or of a file.
fn fault_profile(name: &str) -> anyhow::Result<Profile> {
    if Profile::NAMES.contains(&name) || !Path::new(name).exists() {
        return Ok(Profile::named(name)?);
    }
    Ok(Profile::parse(&std::fs::read_to_string(name).with_context(|| format!("`{name}`"))?)?)
}

/// Makes the platform's key if it can be made now.
async fn try_service_key(vault: &Arc<Vault>, service: &Arc<ServiceManaged>) -> bool {
    if vault.is_sealed() {
        return false;
    }
    let (vault, service) = (vault.clone(), service.clone());
    match tokio::task::spawn_blocking(move || make_service_key(&vault, &service)).await {
        Ok(Ok(())) => true,
        Ok(Err(e)) => {
            tracing::error!(error = %e, "the service-managed key cannot be made yet");
            false
        }
        Err(_) => false,
    }
}

/// Makes the platform's key as soon as it can be made: the vault may be sealed, and its disks full.
async fn keep_service_key(vault: Arc<Vault>, service: Arc<ServiceManaged>) {
    while !try_service_key(&vault, &service).await {
        tokio::time::sleep(SERVICE_KEY_PAUSE).await;
    }
}

/// The platform's vault, its key and its one grant. Repeating it changes nothing.
fn make_service_key(vault: &Vault, service: &ServiceManaged) -> Result<(), VaultError> {
    let caller = Caller {
        principal: "principals/vault".to_owned(),
        duty: Duty::SecurityOfficer,
        token_id: String::new(),
        address: String::new(),
    };
    let call = |n: u32| Call::new(caller.clone(), format!("start-{}-{n}", SystemClock.now().as_millis()));
    let parent = format!("vaults/{}", service.vault);
    let key = format!("{parent}/keys/{}", service.key);
    if vault.get_vault(&call(1), &parent).is_ok() && vault.get_key(&call(2), &key).is_ok() {
        return Ok(());
    }
    let parameters = VaultParameters { purge_protection: true, ..VaultParameters::default() };
    let exists = |e: VaultError| if e.reason() == "ALREADY_EXISTS" { Ok(()) } else { Err(e) };
    vault.create_vault(&call(3), &service.vault, parameters).map(drop).or_else(exists)?;
    vault
        .create_key(
            &call(4),
            &parent,
            &service.key,
            Material::Generate(KeyType::Rsa(RsaSize::Bits2048)),
            Particulars::default(),
            IfExists::Refuse,
        )
        .map(drop)
        .or_else(exists)?;
    let grant = NewAssignment {
        principal: service.managed_identity.clone(),
        role: "Key Vault Crypto Service Encryption User".to_owned(),
        scope: key,
        ..NewAssignment::default()
    };
    vault.create_role_assignment(&call(5), &parent, grant).map(drop).or_else(exists)
}

/// Returns when the process is told to end, or has to.
async fn ended(mut refused: watch::Receiver<Option<String>>) {
    tokio::select! {
        () = server::terminated() => {}
        Ok(_) = refused.wait_for(Option::is_some) => {}
    }
}

/// Does what time has made due. Ends where not all vaults could be brought into memory, and says so.
async fn tick(vault: Arc<Vault>, refuse: watch::Sender<Option<String>>) {
    let mut every = tokio::time::interval(Duration::from_secs(10));
    loop {
        every.tick().await;
        if let Some(why) = vault.failure() {
            tracing::error!(error = %why, "the vault ends");
            refuse.send_replace(Some(why.to_string()));
            return;
        }
        let vault = vault.clone();
        match tokio::task::spawn_blocking(move || vault.tick()).await {
            Ok(Err(e)) => tracing::error!(error = %e, "something due was not done"),
            Err(_) => tracing::error!("doing what is due failed"),
            Ok(Ok(())) => {}
        }
    }
}
