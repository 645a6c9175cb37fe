//! A further storage node beside a deployment's own.

use crate::{
    Proxy,
    deployment::{Deployment, eventually, target_program},
};
use anyhow::Context as _;
use custody_clients::{AuthenticatedChannel, Endpoint};
use custody_rpc::tls::Credentials;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustix::process::Pid;
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// A storage node with a certificate of its own. Killed when dropped.
#[derive(Debug)]
pub struct StorageNode {
    id: String,
    dir: PathBuf,
    process: Child,
}

/// A storage node that can be cut off from the vault and the identity service.
#[derive(Debug)]
pub struct CutNode {
    /// The node.
    pub node: StorageNode,
    /// Its way to the vault.
    pub vault: Proxy,
    /// Its way to the identity service.
    pub identity: Proxy,
}

impl CutNode {
    /// Nothing reaches it from there any more, and nothing of it gets there.
    pub fn cut(&self) {
        self.vault.cut();
        self.identity.cut();
    }

    /// As before.
    pub fn mend(&self) {
        self.vault.mend();
        self.identity.mend();
    }
}

impl Deployment {
    /// Starts a storage node `id` that can be cut off.
    ///
    /// # Errors
    /// It does not come up.
    pub fn node_behind_proxies(&self, id: &str) -> anyhow::Result<CutNode> {
        let proxy = |service: &str| -> anyhow::Result<Proxy> {
            Ok(Proxy::start(self.url(service)?.trim_start_matches("https://"))?)
        };
        let (vault, identity) = (proxy("vault")?, proxy("identity")?);
        let node = self.storage_node(id, Some(&vault.url()), Some(&identity.url()))?;
        Ok(CutNode { node, vault, identity })
    }

    /// Starts a storage node `id`, with a certificate that makes it its principal. `vault` and `identity` are where it finds them, if not where they
    /// are.
    ///
    /// # Errors
    /// It does not come up.
    pub fn storage_node(
        &self,
        id: &str,
        vault: Option<&str>,
        identity: Option<&str>,
    ) -> anyhow::Result<StorageNode> {
        certify(self, id)?;
        let dir = self.dir().join(id);
        fs::create_dir_all(&dir)?;
        let own = fs::read_to_string(self.dir().join("storage/settings.toml"))?;
        let mut settings: toml::Table = toml::from_str(&own)?;
        let path = |name: &str| self.dir().join(name).display().to_string();
        let mut server: Value = serde_json::to_value(settings.get("server").context("server")?)?;
        for (field, value) in [
            ("listen", json!("127.0.0.1:0")),
            ("certificate", json!(path(&format!("pki/{id}.pem")))),
            ("private_key", json!(path(&format!("pki/{id}.key")))),
            ("data", json!(path(&format!("{id}/data")))),
            ("address_file", json!(path(&format!("{id}/address")))),
        ] {
            server.as_object_mut().context("server")?.insert(field.to_owned(), value);
        }
        if let (Some(identity), Some(fields)) = (identity, server.as_object_mut()) {
            fields.insert("identity".to_owned(), json!(identity));
        }
        settings.insert("server".to_owned(), toml::Value::try_from(server)?);
        settings.insert("nbd_socket".to_owned(), path(&format!("{id}/nbd.sock")).into());
        if let Some(vault) = vault {
            settings.insert("vault".to_owned(), vault.into());
        }
        fs::write(dir.join("settings.toml"), toml::to_string(&settings)?)?;
        let log = File::create(self.dir().join(format!("logs/{id}.log")))?;
        let process = Command::new(target_program("custody-node"))
            .arg("--config")
            .arg(dir.join("settings.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let node = StorageNode { id: id.to_owned(), dir, process };
        eventually(&format!("{id} serves"), Duration::from_secs(30), || {
            node.dir.join("address").exists().then_some(())
        });
        Ok(node)
    }

    /// A channel to a further storage node, as one of the deployment's services.
    ///
    /// # Errors
    /// Its files are malformed.
    pub fn channel_to(&self, node: &StorageNode, service: &str) -> anyhow::Result<AuthenticatedChannel> {
        let url = format!("https://{}", fs::read_to_string(node.dir.join("address"))?.trim());
        let trust = Credentials::trusting(&self.dir().join("pki/ca.pem"))?;
        let endpoint = Endpoint::new(&url, &trust, Duration::from_secs(30))?;
        Ok(endpoint.authenticated(self.tokens(service, "custody-node")?))
    }
}

/// A certificate of the deployment's authority for a node.
fn certify(deployment: &Deployment, id: &str) -> anyhow::Result<()> {
    let pki = deployment.dir().join("pki");
    let ca_key = KeyPair::from_pem(&fs::read_to_string(pki.join("ca.key"))?)?;
    let issuer = Issuer::from_ca_cert_pem(&fs::read_to_string(pki.join("ca.pem"))?, ca_key)?;
    let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
    params.subject_alt_names.push(SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()));
    params.subject_alt_names.push(SanType::URI(format!("custody:principals/{id}").try_into()?));
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let key_file = pki.join(format!("{id}.key"));
    fs::write(&key_file, key.serialize_pem())?;
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600))?;
    fs::write(pki.join(format!("{id}.pem")), params.signed_by(&key, &issuer)?.pem())?;
    Ok(())
}

impl StorageNode {
    /// Its principal.
    #[must_use]
    pub fn principal(&self) -> String {
        format!("principals/{}", self.id)
    }

    /// Its process.
    ///
    /// # Panics
    /// The kernel gave a number that is none.
    #[must_use]
    pub fn pid(&self) -> Pid {
        i32::try_from(self.process.id()).ok().and_then(Pid::from_raw).expect("a process has a number")
    }
}

impl Drop for StorageNode {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}
