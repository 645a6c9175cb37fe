//! Connections to a deployment's services, as one of its principals.

use crate::{
    deployment::{Credentials, Deployment},
    output::Format,
};
use anyhow::Context as _;
pub(crate) use custody_clients::Access;
use custody_clients::{
    Audit, AuthenticatedChannel, Control, Endpoint, FaultInjection, Identity, Leases, Lineage, Operations,
    Seals, Storage, TokenSource, Vault,
};
use custody_rpc::tls;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// A deployment, seen by whoever runs the command.
pub(crate) struct Session {
    dir: PathBuf,
    deployment: Deployment,
    principal: Option<String>,
    pub(crate) format: Format,
}

const DEADLINE: Duration = Duration::from_secs(60);
/// Longest answer with a proof, in bytes: some ten thousand volumes.
const PROOF_LEN_MAX: usize = 64 << 20;

impl Session {
    pub(crate) fn open(dir: &Path, principal: Option<&str>, format: Format) -> anyhow::Result<Self> {
        Ok(Self {
            dir: dir.to_owned(),
            deployment: Deployment::read(dir)?,
            principal: principal.map(str::to_owned),
            format,
        })
    }

    /// Where a service is, or a face of one.
    pub(crate) fn url(&self, service: &str) -> anyhow::Result<&str> {
        let url = self.deployment.endpoints.get(service);
        Ok(url.with_context(|| format!("the deployment has no {service}"))?)
    }

    fn endpoint(&self, service: &str) -> anyhow::Result<Endpoint> {
        let trust = tls::Credentials::trusting(&self.dir.join("pki/ca.pem"))?;
        Ok(Endpoint::new(self.url(service)?, &trust, DEADLINE)?)
    }

    /// A channel to a service as the principal asked for, or else as `default`.
    fn channel(
        &self,
        service: &str,
        audience: &'static str,
        default: &str,
    ) -> anyhow::Result<AuthenticatedChannel> {
        let id = self.principal.as_deref().unwrap_or(default);
        let path = self.dir.join(format!("credentials/{id}.json"));
        let text = std::fs::read(&path)
            .with_context(|| format!("no credentials of `{id}` in `{}`", path.display()))?;
        let held: Credentials = serde_json::from_slice(&text)?;
        let tokens =
            TokenSource::secret(self.endpoint("identity")?, &held.client_id, &held.client_secret, audience);
        Ok(self.endpoint(service)?.authenticated(tokens))
    }

    pub(crate) fn vault(&self, default: &str) -> anyhow::Result<Vault> {
        Ok(Vault::new(self.channel("vault", "custody-vault", default)?))
    }

    pub(crate) fn access(&self, default: &str) -> anyhow::Result<Access> {
        Ok(Access::new(self.channel("vault", "custody-vault", default)?))
    }

    pub(crate) fn seals(&self, default: &str) -> anyhow::Result<Seals> {
        Ok(Seals::new(self.channel("vault", "custody-vault", default)?))
    }

    pub(crate) fn leases(&self, default: &str) -> anyhow::Result<Leases> {
        // A proof has a lease, a receipt and a certificate for each volume.
        let leases = Leases::new(self.channel("vault", "custody-vault", default)?);
        Ok(leases.max_decoding_message_size(PROOF_LEN_MAX))
    }

    pub(crate) fn faults(&self, default: &str) -> anyhow::Result<FaultInjection> {
        Ok(FaultInjection::new(self.channel("vault", "custody-vault", default)?))
    }

    pub(crate) fn lineage(&self, default: &str) -> anyhow::Result<Lineage> {
        Ok(Lineage::new(self.channel("vault", "custody-vault", default)?))
    }

    /// Whose certificates the deployment's processes have.
    pub(crate) fn authority(&self) -> anyhow::Result<custody_proof::Authority> {
        Ok(tls::Credentials::trusting(&self.dir.join("pki/ca.pem"))?.authority()?)
    }

    pub(crate) fn control(&self, default: &str) -> anyhow::Result<Control> {
        Ok(Control::new(self.channel("control", "custody-control", default)?))
    }

    pub(crate) fn operations(&self, default: &str) -> anyhow::Result<Operations> {
        Ok(Operations::new(self.channel("control", "custody-control", default)?))
    }

    pub(crate) fn identity(&self, default: &str) -> anyhow::Result<Identity> {
        Ok(Identity::new(self.channel("identity", "custody-identity", default)?))
    }

    pub(crate) fn storage(&self, default: &str) -> anyhow::Result<Storage> {
        Ok(Storage::new(self.channel("storage", "custody-node", default)?))
    }

    pub(crate) fn audit(&self, service: &str, default: &str) -> anyhow::Result<Audit> {
        let audience = match service {
            "vault" => "custody-vault",
            "control" => "custody-control",
            "identity" => "custody-identity",
            other => anyhow::bail!("`{other}` keeps no trail; one of vault, control, identity"),
        };
        Ok(Audit::new(self.channel(service, audience, default)?))
    }
}

/// A time as people read it.
pub(crate) fn time(t: Option<prost_types::Timestamp>) -> String {
    t.map(|t| prost_types::Timestamp { nanos: 0, ..t }.to_string()).unwrap_or_default()
}
