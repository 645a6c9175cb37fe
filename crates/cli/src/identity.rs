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
    /// Makes a principal and prints its secret, once (officer; two for another officer).
    CreatePrincipal {
        id: String,
        /// security_officer, system_administrator, database_administrator, auditor, or workload for a program.
        duty: String,
    },
    /// Lists principals.
    ListPrincipals,
    /// Removes a principal (officer; two for another officer).
    DeletePrincipal { name: String },
}

/// The duty of a principal, as the identity service knows it.
pub(crate) async fn duty_of(session: &Session, name: &str) -> Option<String> {
    let request = wire::GetPrincipalRequest { name: name.to_owned() };
    let found = session.identity("officer").ok()?.get_principal(request).await.ok()?;
    Some(found.into_inner().duty)
}

/// Whether it is a request in the identity service, and not in a vault.
pub(crate) fn is_approval(name: &str) -> bool {
    name.starts_with("approvals/")
}

fn approval(a: wire::Approval) -> serde_json::Value {
    let state = a.state().as_str_name().trim_start_matches("APPROVAL_STATE_").to_lowercase();
    json!({
        "state": state, "action": a.action, "asked_by": a.requester, "decided_by": a.decider,
        "until": time(a.expire_time), "name": a.name,
    })
}

/// Lists requests for a second officer.
pub(crate) async fn approvals(session: &Session) -> anyhow::Result<()> {
    let request = wire::ListApprovalsRequest { page_size: 1000, page_token: String::new() };
    let all = session.identity("officer")?.list_approvals(request).await?.into_inner();
    many(session.format, all.approvals.into_iter().map(approval).collect());
    Ok(())
}

/// Agrees to a request, or does not.
pub(crate) async fn decide(session: &Session, name: String, agree: bool) -> anyhow::Result<()> {
    let mut client = session.identity("officer")?;
    let done = if agree {
        client.approve_approval(wire::ApproveApprovalRequest { name }).await?
    } else {
        client.reject_approval(wire::RejectApprovalRequest { name }).await?
    };
    one(session.format, &approval(done.into_inner()));
    Ok(())
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
