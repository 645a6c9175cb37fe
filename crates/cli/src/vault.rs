//! Verbs on vaults and on who may use their keys.

use crate::{
    output::{line, many, one},
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
    },
    /// Shows a vault.
    Get { name: String },
    /// Lists the vaults you may read.
    List,
}

#[derive(Subcommand)]
pub(crate) enum AccessVerb {
    /// Gives a role.
    Grant {
        /// Who: principals/ID or managedIdentities/ID.
        grantee: String,
        /// Which role: see `custody access roles`.
        role: String,
        /// On what: a vault or a key.
        scope: String,
    },
    /// Takes a role away.
    Revoke { name: String },
    /// Lists a vault's role assignments.
    List { vault: String },
    /// Lists the roles.
    Roles,
}

fn view(v: wire::Vault) -> Value {
    json!({ "name": v.name, "retention_days": v.soft_delete_retention_days, "purge_protection": v.purge_protection, "created": time(v.create_time) })
}

pub(crate) async fn run(session: &Session, verb: Verb) -> anyhow::Result<()> {
    let mut client = session.vault("officer")?;
    match verb {
        Verb::Create { id, retention_days, no_purge_protection } => {
            let vault = wire::Vault {
                soft_delete_retention_days: retention_days,
                purge_protection: !no_purge_protection,
                ..wire::Vault::default()
            };
            let made =
                client.create_vault(wire::CreateVaultRequest { vault_id: id, vault: Some(vault) }).await?;
            one(session.format, &view(made.into_inner()));
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

fn assignment(a: wire::RoleAssignment) -> Value {
    json!({ "principal": a.principal, "role": a.role, "scope": a.scope, "name": a.name })
}

pub(crate) async fn run_access(session: &Session, verb: AccessVerb) -> anyhow::Result<()> {
    let mut client = session.vault("officer")?;
    match verb {
        AccessVerb::Grant { grantee: principal, role, scope } => {
            let parent = scope.split('/').take(2).collect::<Vec<_>>().join("/");
            let role_assignment =
                Some(wire::RoleAssignment { principal, role, scope, ..wire::RoleAssignment::default() });
            let made = client
                .create_role_assignment(wire::CreateRoleAssignmentRequest { parent, role_assignment })
                .await?;
            one(session.format, &assignment(made.into_inner()));
        }
        AccessVerb::Revoke { name } => {
            client.delete_role_assignment(wire::DeleteRoleAssignmentRequest { name: name.clone() }).await?;
            line(format!("{name} removed"));
        }
        AccessVerb::List { vault } => {
            let request = wire::ListRoleAssignmentsRequest {
                parent: vault,
                page_size: 1000,
                page_token: String::new(),
            };
            let all = client.list_role_assignments(request).await?.into_inner();
            many(session.format, all.role_assignments.into_iter().map(assignment).collect());
        }
        AccessVerb::Roles => {
            let all = client.list_role_definitions(()).await?.into_inner();
            let view = |r: wire::RoleDefinition| json!({ "role": r.role, "duties": r.duties, "permissions": r.permissions });
            many(session.format, all.role_definitions.into_iter().map(view).collect());
        }
    }
    Ok(())
}
