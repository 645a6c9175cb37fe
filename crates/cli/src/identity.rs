//! Verbs on principals and managed identities.

use crate::{
    output::{line, many, one},
    session::{Session, time},
};
use clap::Subcommand;
use custody_proto::{control::CreateIdentityRequest, identity as wire};
use serde_json::json;

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Makes a managed identity for a cluster (sysadmin).
    Create { id: String },
    /// Lists managed identities and the nodes that may act as them.
    List,
    /// Makes a principal and prints its secret, once (officer).
    CreatePrincipal {
        id: String,
        /// security_officer, system_administrator, database_administrator, auditor, or workload for a program.
        duty: String,
    },
    /// Lists principals.
    ListPrincipals,
    /// Removes a principal (officer).
    DeletePrincipal { name: String },
}

/// The duty of a principal, as the identity service knows it.
pub(crate) async fn duty_of(session: &Session, name: &str) -> Option<String> {
    let request = wire::GetPrincipalRequest { name: name.to_owned() };
    let found = session.identity("officer").ok()?.get_principal(request).await.ok()?;
    Some(found.into_inner().duty)
}

pub(crate) async fn run(session: &Session, verb: Verb) -> anyhow::Result<()> {
    let mut client = session.identity("officer")?;
    match verb {
        Verb::Create { id } => {
            let made = session
                .control("sysadmin")?
                .create_identity(CreateIdentityRequest { identity_id: id })
                .await?
                .into_inner();
            one(session.format, &json!({ "name": made.name }));
        }
        Verb::List => {
            let all = client
                .list_managed_identities(wire::ListManagedIdentitiesRequest {
                    page_size: 1000,
                    page_token: String::new(),
                })
                .await?
                .into_inner();
            let view = |m: wire::ManagedIdentity| json!({ "name": m.name, "nodes": m.nodes, "created": time(m.create_time) });
            many(session.format, all.managed_identities.into_iter().map(view).collect());
        }
        Verb::CreatePrincipal { id, duty } => {
            let made = client
                .create_principal(wire::CreatePrincipalRequest { principal_id: id, duty })
                .await?
                .into_inner();
            let name = made.principal.unwrap_or_default().name;
            one(session.format, &json!({ "client_id": name, "client_secret": made.client_secret }));
        }
        Verb::ListPrincipals => {
            let all = client
                .list_principals(wire::ListPrincipalsRequest { page_size: 1000, page_token: String::new() })
                .await?
                .into_inner();
            let view = |p: wire::Principal| json!({ "name": p.name, "duty": p.duty, "created": time(p.create_time) });
            many(session.format, all.principals.into_iter().map(view).collect());
        }
        Verb::DeletePrincipal { name } => {
            client.delete_principal(wire::DeletePrincipalRequest { name: name.clone() }).await?;
            line(format!("{name} removed"));
        }
    }
    Ok(())
}
