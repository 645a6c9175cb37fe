//! A deployment's directory: certificates, credentials, settings, and where each service is.

use crate::{
    pki::{self, VAULT_DOMAIN},
    softhsm::SoftHsm,
};
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
};

/// The services in the order they are stopped in, last first.
pub(crate) const SERVICES: [&str; 5] = ["identity", "vault", "storage", "database", "control"];

/// Those that keep an audit trail.
const WITH_TRAIL: [&str; 3] = ["identity", "vault", "control"];

/// Faces of services in other people's APIs: Azure's REST API of the vault, and OAuth of the identity service.
const FACES: [&str; 2] = ["identity-oauth", "vault-rest"];
/// What OAuth clients call the tenant.
const TENANT: &str = "custody";

/// The principals made at the first start: id and duty.
const PRINCIPALS: [(&str, &str); 5] = [
    ("officer", "security_officer"),
    ("custodian", "security_officer"),
    ("sysadmin", "system_administrator"),
    ("dba", "database_administrator"),
    ("auditor", "auditor"),
];
/// Who has the vault misbehave, where it was started for that.
const TESTER: (&str, &str) = ("tester", "fault_injector");

/// Choices of a start.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) lease_ms: u64,
    pub(crate) renew_every_ms: u64,
    pub(crate) backups: Option<String>,
    pub(crate) otlp: Option<String>,
    pub(crate) hsm: Hsm,
    /// Intel's `crypto_mb`.
    pub(crate) crypto_mb: Option<PathBuf>,
    pub(crate) limits: Limits,
    pub(crate) trails: Trails,
    /// A profile of faults, or a file with one.
    pub(crate) faults: Option<String>,
}

/// How often the vault may be asked, in calls a second; no bounds without them.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Limits {
    /// Of one principal.
    #[arg(long)]
    caller_per_second: Option<u32>,
    /// On one key.
    #[arg(long)]
    key_per_second: Option<u32>,
    /// On one vault.
    #[arg(long)]
    vault_per_second: Option<u32>,
}

/// How audit trails are kept and sent: those of the vault, the control plane and the identity service.
#[derive(Clone, Default, clap::Args)]
pub(crate) struct Trails {
    /// Remove audit records after so many days: whole files, on record, without breaking a proof. Kept for ever without it.
    #[arg(long)]
    audit_retention_days: Option<u32>,
    /// A directory where the files of a trail are copied to before they are removed, a folder for each service.
    #[arg(long, requires = "audit_retention_days")]
    audit_archive: Option<PathBuf>,
    /// An OTLP collector for audit records as logs, `https://host:port`, or `http://` on the same machine.
    #[arg(long)]
    audit_otlp: Option<String>,
    /// The certificates of the authority of the collector's certificate, PEM; the deployment's own without it.
    #[arg(long, requires = "audit_otlp")]
    audit_otlp_ca: Option<PathBuf>,
    /// Headers for the collector, as `authorization=Bearer TOKEN,name=value`: best from the environment.
    #[arg(long, requires = "audit_otlp", env = "CUSTODY_AUDIT_OTLP_HEADERS", hide_env_values = true)]
    audit_otlp_headers: Option<String>,
}

impl Trails {
    /// `[audit]` of a service's settings.
    fn settings(&self, service: &str) -> anyhow::Result<serde_json::Value> {
        let absolute = |path: &PathBuf| {
            std::path::absolute(path).with_context(|| format!("`{}` is no path", path.display()))
        };
        let archive = self.audit_archive.as_ref().map(absolute).transpose()?.map(|dir| dir.join(service));
        let headers = self.audit_otlp_headers.iter().flat_map(|all| all.split(',')).map(|header| {
            let (name, value) = header
                .split_once('=')
                .context("--audit-otlp-headers is of the form name=value,name=value")?;
            Ok((name.trim().to_owned(), json!(value.trim())))
        });
        let headers: serde_json::Map<_, _> = headers.collect::<anyhow::Result<_>>()?;
        let ca = self.audit_otlp_ca.as_ref().map(absolute).transpose()?;
        let given = |fields: [(&str, Option<serde_json::Value>); 3]| -> serde_json::Map<_, _> {
            fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
        };
        let otlp = self.audit_otlp.as_ref().map(|endpoint| {
            let ca = ca.map(|ca| json!(ca));
            given([("endpoint", Some(json!(endpoint))), ("ca", ca), ("headers", Some(json!(headers)))])
        });
        let days = self.audit_retention_days.map(|days| json!(days));
        let (archive, otlp) = (archive.map(|archive| json!(archive)), otlp.map(|otlp| json!(otlp)));
        Ok(given([("retention_days", days), ("archive", archive), ("otlp", otlp)]).into())
    }
}

impl std::fmt::Debug for Trails {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Headers may be secrets.
        f.write_str("Trails(..)")
    }
}

/// The vault's HSM, a PKCS#11 token: all three, or none.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Hsm {
    /// The HSM's PKCS#11 module, as /usr/lib/softhsm/libsofthsm2.so.
    #[arg(long, requires = "hsm_token", requires = "hsm_pin_file")]
    hsm_module: Option<PathBuf>,
    /// The token's label.
    #[arg(long, requires = "hsm_module")]
    hsm_token: Option<String>,
    /// A file of mode 0600 with the user's PIN.
    #[arg(long, requires = "hsm_module")]
    hsm_pin_file: Option<PathBuf>,
    /// An HSM of software (SoftHSM 2) with a token in the deployment's directory, to try out what an HSM is for. It protects
    /// nothing: its keys are files.
    #[arg(long, conflicts_with = "hsm_module")]
    soft_hsm: bool,
}

impl Hsm {
    /// One of software, or none.
    pub(crate) fn of_software(soft_hsm: bool) -> Self {
        Self { soft_hsm, ..Self::default() }
    }

    /// What SoftHSM in the vault's process is to be told, where it is one of software.
    pub(crate) fn configuration(&self, deployment: &Path) -> Option<PathBuf> {
        self.soft_hsm.then(|| SoftHsm::of(deployment).configuration())
    }

    /// What the vault is told of it, if there is one.
    fn settings(&self, deployment: &Path) -> anyhow::Result<Option<serde_json::Value>> {
        let given = || {
            let (token, pin_file) = (&self.hsm_token, &self.hsm_pin_file);
            Some(json!({ "module": self.hsm_module.as_ref()?, "token": token, "pin_file": pin_file }))
        };
        if self.soft_hsm { SoftHsm::of(deployment).ensure().map(Some) } else { Ok(given()) }
    }
}

/// Where everything is: what clients read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Deployment {
    /// Service to `https://host:port`.
    pub(crate) endpoints: BTreeMap<String, String>,
    /// The storage node's Unix socket for NBD.
    pub(crate) nbd_socket: PathBuf,
    /// The process that runs the services.
    pub(crate) supervisor_pid: u32,
}

/// Client credentials of a principal.
#[derive(Serialize, Deserialize)]
pub(crate) struct Credentials {
    pub(crate) client_id: String,
    pub(crate) client_secret: String,
}

impl Deployment {
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("deployment.json");
        let text = fs::read(&path).with_context(|| {
            format!(
                "no deployment in `{}`; start one with `custody up`, or name its directory with --dir",
                dir.display()
            )
        })?;
        serde_json::from_slice(&text).with_context(|| format!("`{}` is malformed", path.display()))
    }

    /// Prepares a directory: makes what is missing, writes every service's settings anew with free ports.
    pub(crate) fn prepare(dir: &Path, options: &Options) -> anyhow::Result<Self> {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
        let dir = dir.canonicalize()?;
        pki::ensure(&dir.join("pki"), &SERVICES)?;
        let bootstrap = credentials(&dir, options.faults.is_some())?;
        // All bound before any is released, so that no two services get the same port.
        let holders =
            SERVICES.iter().chain(&FACES).map(|_| free_port()).collect::<anyhow::Result<Vec<_>>>()?;
        let ports = holders.iter().map(|h| Ok(h.local_addr()?.port())).collect::<anyhow::Result<Vec<_>>>()?;
        let ports: BTreeMap<&str, u16> = SERVICES.iter().chain(&FACES).copied().zip(ports).collect();
        let endpoints: BTreeMap<String, String> = ports
            .iter()
            .map(|(name, port)| {
                let host = match *name {
                    "vault-rest" => VAULT_DOMAIN,
                    "identity-oauth" => "localhost",
                    _ => "127.0.0.1",
                };
                ((*name).to_owned(), format!("https://{host}:{port}"))
            })
            .collect();
        let nbd_socket = dir.join("storage/nbd.sock");
        anyhow::ensure!(
            nbd_socket.as_os_str().len() < 100,
            "`{}` is too long for a Unix socket; choose a shorter --dir",
            dir.display()
        );
        let deployment = Self { endpoints, nbd_socket, supervisor_pid: std::process::id() };
        let hsm = options.hsm.settings(&dir)?;
        for service in SERVICES {
            let home = dir.join(service);
            fs::create_dir_all(&home)?;
            _ = fs::remove_file(home.join("address"));
            let mut settings = deployment.settings(&dir, service, &ports, &bootstrap, options);
            if let (true, Some(fields)) = (WITH_TRAIL.contains(&service), settings.as_object_mut()) {
                fields.insert("audit".to_owned(), options.trails.settings(service)?);
            }
            if let ("vault", Some(hsm), Some(fields)) = (service, &hsm, settings.as_object_mut()) {
                fields.insert("hsm".to_owned(), hsm.clone());
            }
            pki::write_secret(&home.join("settings.toml"), &toml::to_string(&settings)?)?;
        }
        fs::create_dir_all(dir.join("logs"))?;
        pki::write_secret(&dir.join("deployment.json"), &serde_json::to_string_pretty(&deployment)?)?;
        Ok(deployment)
    }

    fn settings(
        &self,
        dir: &Path,
        service: &str,
        ports: &BTreeMap<&str, u16>,
        bootstrap: &[serde_json::Value],
        options: &Options,
    ) -> serde_json::Value {
        let at = |name: &str| dir.join(name).display().to_string();
        let home = dir.join(service);
        let url = |name: &str| self.endpoints.get(name).cloned().unwrap_or_default();
        let listen = |name: &str| format!("127.0.0.1:{}", ports.get(name).copied().unwrap_or(0));
        let mut server = json!({
            "listen": listen(service),
            "ca": at("pki/ca.pem"),
            "certificate": at(&format!("pki/{service}.pem")),
            "private_key": at(&format!("pki/{service}.key")),
            "identity": url("identity"),
            "issuer": "https://identity.custody.localhost",
            "data": home.join("data"),
            "address_file": home.join("address"),
            "reflection": true,
        });
        if let (Some(endpoint), Some(fields)) = (&options.otlp, server.as_object_mut()) {
            fields.insert("otlp_endpoint".to_owned(), json!(endpoint));
        }
        let mut settings = match service {
            "identity" => {
                json!({
                    "token_lifetime_s": 300,
                    "managed": [["platform", "principals/storage"]],
                    "server": server,
                    "bootstrap": bootstrap,
                    "services": SERVICES,
                    "oauth": {
                        "listen": listen("identity-oauth"),
                        "tenant": TENANT,
                        "resources": {
                            url("vault-rest"): "custody-vault",
                            // As clients write it that leave the port out, and those that know Azure's name alone.
                            format!("https://{VAULT_DOMAIN}"): "custody-vault",
                            "https://vault.azure.net": "custody-vault",
                        },
                    },
                })
            }
            "vault" => json!({
                "root_key": home.join("root.key"),
                "server": server,
                "rest": {
                    "listen": listen("vault-rest"),
                    "domain": VAULT_DOMAIN,
                    "authority": format!("{}/{TENANT}", url("identity-oauth")),
                },
                "service_managed": { "vault": "platform", "key": "service-managed", "managed_identity": "managedIdentities/platform" },
            }),
            "storage" => json!({
                "vault": url("vault"),
                "backups": options.backups.clone().unwrap_or_else(|| dir.join("backups").display().to_string()),
                "nbd_socket": self.nbd_socket,
                "nbd_listen": "127.0.0.1:0",
                "lease_ms": options.lease_ms,
                "renew_every_ms": options.renew_every_ms,
                "server": server,
            }),
            "database" => json!({ "storage": url("storage"), "server": server }),
            _ => json!({
                "storage": url("storage"),
                "storage_principal": "principals/storage",
                "database": url("database"),
                "service_key": "vaults/platform/keys/service-managed",
                "service_identity": "managedIdentities/platform",
                "server": server,
            }),
        };
        if let ("vault", Some(fields)) = (service, settings.as_object_mut()) {
            let limits = [
                ("caller_per_second", options.limits.caller_per_second),
                ("key_per_second", options.limits.key_per_second),
                ("vault_per_second", options.limits.vault_per_second),
            ];
            let limits = limits.into_iter().filter_map(|(name, n)| Some((name.to_owned(), json!(n?))));
            fields.insert("limits".to_owned(), serde_json::Value::Object(limits.collect()));
            if let Some(faults) = &options.faults {
                fields.insert("faults".to_owned(), json!(faults));
            }
            if let Some(library) = &options.crypto_mb {
                fields.insert("crypto_mb".to_owned(), json!(library));
            }
        }
        settings
    }
}

/// First port that may be given to a service: those below have known owners.
const PORT_MIN: u16 = 10_000;

/// A port that nothing listens on, held until dropped. A service keeps its port when it is started again, and while
/// it is down the kernel may give a port of its ephemeral range to any connection; so it is one below that range.
fn free_port() -> anyhow::Result<TcpListener> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first_ephemeral = range.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(32_768u16);
    let span = first_ephemeral.checked_sub(PORT_MIN).filter(|span| *span >= 1024);
    for _ in 0..64 {
        let port = match span {
            Some(span) => {
                let mut draw = [0; 2];
                getrandom::fill(&mut draw).map_err(|e| anyhow::anyhow!("no random bytes: {e}"))?;
                PORT_MIN + u16::from_le_bytes(draw) % span
            }
            // The range was widened here: any free port must do.
            None => 0,
        };
        if let Ok(held) = TcpListener::bind(("127.0.0.1", port)) {
            return Ok(held);
        }
    }
    anyhow::bail!("no port of 127.0.0.1 is free for a service")
}

/// Makes the principals' secrets that are missing; answers what the identity service is told: hashes only.
fn credentials(dir: &Path, tester: bool) -> anyhow::Result<Vec<serde_json::Value>> {
    let home = dir.join("credentials");
    fs::create_dir_all(&home)?;
    PRINCIPALS
        .iter()
        .chain(tester.then_some(&TESTER))
        .map(|(id, duty)| {
            let path = home.join(format!("{id}.json"));
            let held = match fs::read(&path) {
                Ok(text) => serde_json::from_slice(&text).with_context(|| format!("`{}` is malformed", path.display()))?,
                Err(_) => {
                    let mut secret = [0; 32];
                    getrandom::fill(&mut secret).map_err(|e| anyhow::anyhow!("no random bytes: {e}"))?;
                    let made = Credentials { client_id: format!("principals/{id}"), client_secret: hex::encode(secret) };
                    pki::write_secret(&path, &serde_json::to_string(&made)?)?;
                    made
                }
            };
            Ok(json!({ "id": id, "duty": duty, "secret_sha256": hex::encode(Sha256::digest(held.client_secret)) }))
        })
        .collect()
}
