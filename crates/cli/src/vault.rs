//! Verbs on vaults; those on seals are in `seal`.

use crate::{
    output::{many, one},
    seal,
    session::{Session, time},
};
use clap::Subcommand;
use custody_proto::vault as wire;
use serde_json::{Value, json};

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Makes a vault.
    Create {
        /// Its id.
        id: String,
        /// Days that deleted keys can be recovered, 7 to 90.
        #[arg(long, default_value_t = 90)]
        retention_days: i32,
        /// Let deleted keys be purged before their time. A key of such a vault cannot protect a cluster.
        #[arg(long)]
        no_purge_protection: bool,
        /// Let one officer purge and back up keys and take roles, as in Azure Key Vault. Two have to agree otherwise.
        #[arg(long)]
        one_officer: bool,
    },
    /// Changes a vault's settings. What weakens it needs a second officer.
    Update {
        name: String,
        /// Whether deleted keys are kept for all of their time.
        #[arg(long)]
        purge_protection: Option<bool>,
        /// Whether two officers have to agree to what cannot be undone.
        #[arg(long)]
        two_officers: Option<bool>,
    },
    /// Shows a vault.
    Get { name: String },
    /// Lists the vaults you may read.
    List,
    #[command(flatten)]
    Seals(seal::Verb),
}

fn policy(two_officers: bool) -> i32 {
    if two_officers { wire::ApprovalPolicy::TwoOfficers } else { wire::ApprovalPolicy::OneOfficer }.into()
}

fn view(v: wire::Vault) -> Value {
    let two = v.approval_policy() == wire::ApprovalPolicy::TwoOfficers;
    json!({ "name": v.name, "two_officers": two, "retention_days": v.soft_delete_retention_days, "purge_protection": v.purge_protection, "created": time(v.create_time) })
}

pub(crate) async fn run(session: &Session, verb: Verb) -> anyhow::Result<()> {
    let mut client = session.vault("officer")?;
    match verb {
        Verb::Seals(verb) => seal::run(session, verb).await?,
        Verb::Create { id, retention_days, no_purge_protection, one_officer } => {
            let vault = wire::Vault {
                soft_delete_retention_days: retention_days,
                purge_protection: !no_purge_protection,
                approval_policy: policy(!one_officer),
                ..wire::Vault::default()
            };
            let made =
                client.create_vault(wire::CreateVaultRequest { vault_id: id, vault: Some(vault) }).await?;
            one(session.format, &view(made.into_inner()));
        }
        Verb::Update { name, purge_protection, two_officers } => {
            let mut paths = Vec::new();
            let mut vault = wire::Vault { name, ..wire::Vault::default() };
            if let Some(on) = purge_protection {
                vault.purge_protection = on;
                paths.push("purge_protection".to_owned());
            }
            if let Some(two) = two_officers {
                vault.approval_policy = policy(two);
                paths.push("approval_policy".to_owned());
            }
            let update_mask = Some(prost_types::FieldMask { paths });
            let changed =
                client.update_vault(wire::UpdateVaultRequest { vault: Some(vault), update_mask }).await?;
            one(session.format, &view(changed.into_inner()));
        }
        Verb::Get { name } => {
            one(session.format, &view(client.get_vault(wire::GetVaultRequest { name }).await?.into_inner()))
        }
        Verb::List => {
            let all = client
                .list_vaults(wire::ListVaultsRequest { page_size: 1000, page_token: String::new() })
                .await?
                .into_inner();
            many(session.format, all.vaults.into_iter().map(view).collect());
        }
    }
    Ok(())
}
