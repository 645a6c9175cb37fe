//! A customer's own seal: its officers close the vault, and nobody else opens it.

use super::stage::Stage;
use anyhow::Context as _;
use custody_proto::vault::{self as kv, unseal_vault_request::Key};
use custody_rpc::status::reason;

const SEAL: &str = "vaults/contoso/seal";

impl Stage {
    /// The contoso vault gets a seal that takes both officers.
    pub(crate) async fn give_own_seal(&mut self) -> anyhow::Result<()> {
        let mut seals = self.session.seals("officer")?;
        let request = || kv::ChangeSealRequest {
            name: SEAL.to_owned(),
            r#type: kv::SealType::Shares.into(),
            share_count: 2,
            share_threshold: 2,
            ..kv::ChangeSealRequest::default()
        };
        let alone = seals.change_seal(request()).await.err().context("CHECK FAILED: one officer did it")?;
        self.check(
            reason(&alone) == "APPROVAL_REQUIRED",
            "one officer alone does not change the vault's seal",
        )?;
        let parent = "vaults/contoso".to_owned();
        let waiting = kv::ListApprovalsRequest { parent, ..kv::ListApprovalsRequest::default() };
        let mut second = self.session.access("custodian")?;
        let asked = second.list_approvals(waiting).await?.into_inner().approvals;
        let pending = |a: &kv::Approval| {
            a.state() == kv::ApprovalState::Pending && a.action.starts_with("change the seal")
        };
        let name = asked.into_iter().find(pending).context("CHECK FAILED: nothing waits for approval")?.name;
        second.approve_approval(kv::ApproveApprovalRequest { name }).await?;
        self.shares = seals.change_seal(request()).await?.into_inner().shares;
        let two = self.shares.len() == 2;
        self.check(two, "the customer's vault has a seal of its own: two officers, a share each")?;
        let rotate = kv::RotateRootKeyRequest { name: "seal".to_owned() };
        let rotated = seals.rotate_root_key(rotate).await?.into_inner();
        self.check(rotated.generation == 2, "the deployment's root key is rotated meanwhile; nobody notices")
    }

    pub(crate) async fn seal(&self) -> anyhow::Result<()> {
        let request = kv::SealVaultRequest { name: SEAL.to_owned() };
        let sealed = self.session.seals("officer")?.seal_vault(request).await?.into_inner().sealed;
        self.check(sealed, "the vault is sealed: its keys have left the memory")
    }

    pub(crate) async fn unseal(&self) -> anyhow::Result<()> {
        for (officer, share) in ["officer", "custodian"].into_iter().zip(&self.shares) {
            let key = Some(Key::Share(share.clone()));
            let request = kv::UnsealVaultRequest { name: SEAL.to_owned(), key };
            let seal = self.session.seals(officer)?.unseal_vault(request).await?.into_inner();
            let said = if seal.sealed { "one share opens nothing" } else { "both together open it" };
            self.check(seal.sealed == (officer == "officer"), said)?;
        }
        Ok(())
    }
}
