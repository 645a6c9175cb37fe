//! What no officer does alone, and who could do what.

use super::{IDENTITY, KEY, stage::Stage};
use anyhow::Context as _;
use custody_proto::{identity, vault as kv};
use custody_rpc::status::reason;

impl Stage {
    pub(crate) async fn two_officers(&mut self) -> anyhow::Result<()> {
        let mut officer = self.session.vault("officer")?;
        let backup = || kv::BackupKeyRequest { name: KEY.to_owned() };
        self.give_role("principals/custodian", "Key Vault Administrator", "vaults/contoso").await?;
        let alone =
            officer.backup_key(backup()).await.err().context("CHECK FAILED: one officer exported a key")?;
        self.check(reason(&alone) == "APPROVAL_REQUIRED", "one officer alone does not export the key")?;
        let request = kv::ListApprovalsRequest {
            parent: "vaults/contoso".to_owned(),
            ..kv::ListApprovalsRequest::default()
        };
        let mut waiting =
            self.session.access("custodian")?.list_approvals(request).await?.into_inner().approvals;
        let asked = waiting.pop().context("CHECK FAILED: nothing waits for approval")?;
        let own = kv::ApproveApprovalRequest { name: asked.name.clone() };
        let own = self.session.access("officer")?.approve_approval(own).await;
        self.check(
            own.is_err(),
            &format!("nor approves it: \"{}\", asked for by {}", asked.action, asked.requester),
        )?;
        let duty = "security_officer".to_owned();
        let puppet = identity::CreatePrincipalRequest { principal_id: "puppet".to_owned(), duty };
        let made = self.session.identity("officer")?.create_principal(puppet).await.err();
        self.check(
            made.is_some_and(|e| reason(&e) == "APPROVAL_REQUIRED"),
            "nor makes itself another officer who would",
        )?;
        let approve = kv::ApproveApprovalRequest { name: asked.name };
        self.session.access("custodian")?.approve_approval(approve).await?;
        self.check(
            officer.backup_key(backup()).await.is_ok(),
            "with the second officer's approval it is done",
        )?;
        let again = officer.backup_key(backup()).await.err();
        self.check(again.is_some_and(|e| reason(&e) == "APPROVAL_REQUIRED"), "once")?;

        let request = kv::ExplainAccessRequest {
            principal: IDENTITY.to_owned(),
            permission: "unwrapKey".to_owned(),
            resource: KEY.to_owned(),
            ..kv::ExplainAccessRequest::default()
        };
        let said = self.session.access("auditor")?.explain_access(request).await;
        // The auditor has no role in this vault; the officer may ask.
        self.check(said.is_err(), "a stranger to the vault is told nothing of who may do what")?;
        let request = kv::ReviewAccessRequest {
            parent: "vaults/contoso".to_owned(),
            ..kv::ReviewAccessRequest::default()
        };
        let rows = self.session.access("officer")?.review_access(request).await?.into_inner().access_reviews;
        let able: Vec<&str> = rows.iter().filter(|r| r.active).map(|r| r.principal.as_str()).collect();
        self.check(able == [IDENTITY], &format!("the review names who can unwrap {KEY}: {}", able.join(", ")))
    }
}
