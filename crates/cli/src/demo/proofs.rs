//! What the customer can show after a key was taken away.

use super::{KEY, stage::Stage};
use crate::{lease, output::line, proof};
use anyhow::Context as _;
use custody_proto::vault::{GetProofKeyRequest, ListRevocationsRequest};

impl Stage {
    /// The revocation that has just been made: followed to its end, and its proof checked offline.
    pub(crate) async fn prove(&self) -> anyhow::Result<()> {
        let mut client = self.session.leases("officer")?;
        let request =
            ListRevocationsRequest { parent: KEY.to_owned(), page_size: 1, page_token: String::new() };
        let newest = client.list_revocations(request).await?.into_inner().revocations.into_iter().next();
        let name = newest.context("the vault has opened no revocation")?.name;
        line(format!("   {name}:"));
        let closed = lease::follow(&self.session, &name).await?;
        let key = client.get_proof_key(GetProofKeyRequest {}).await?.into_inner().key;
        let authority = self.session.authority()?;
        let (summary, leases) = proof::check(&closed.proof, &key, &authority)?;
        let ms = summary.get("slowest_ms").cloned().unwrap_or_default();
        self.check(
            !leases.is_empty(),
            &format!("the vault closed it after {ms} ms: each of {} leases was answered with a signed receipt or ran out", leases.len()),
        )?;
        let altered = closed.proof.replacen("\"after_ms\":", "\"after_ms\":1", 1);
        self.check(
            proof::check(&altered, &key, &authority).is_err(),
            "the proof verifies offline, and with a digit altered it does not",
        )
    }
}
