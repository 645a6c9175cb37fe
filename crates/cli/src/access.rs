//! Verbs on who may do what: roles, groups, explanations, and what needs two officers.

use crate::{
    identity,
    output::{Format, line, many, one},
    session::{Access, Session, time},
};
use anyhow::Context as _;
use clap::Subcommand;
use custody_proto::vault as wire;
use serde_json::{Value, json};

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Gives a role.
    Grant {
        /// Who: principals/ID, managedIdentities/ID, or a group of the vault.
        grantee: String,
        /// Which role: see `custody access roles`.
        role: String,
        /// On what: a vault or a key.
        scope: String,
        /// Not from then on: a time as 2027-01-31T00:00:00Z.
        #[arg(long)]
        until: Option<String>,
        /// Only for callers in this network, as 10.0.0.0/8. May be given more than once.
        #[arg(long = "network")]
        networks: Vec<String>,
    },
    /// Takes a role away.
    Revoke { name: String },
    /// Lists a vault's role assignments.
    List { vault: String },
    /// Lists the roles: the built-in ones, and those of a vault.
    Roles { vault: Option<String> },
    /// Makes a role of a vault.
    CreateRole {
        vault: String,
        id: String,
        /// What it allows: names as `custody access roles` shows them.
        #[arg(required = true)]
        permissions: Vec<String>,
    },
    /// Removes a role of a vault that nobody holds.
    DeleteRole { name: String },
    /// Makes a group, without members.
    CreateGroup { vault: String, id: String },
    /// Lists a vault's groups.
    Groups { vault: String },
    /// Removes a group that holds no role.
    DeleteGroup { name: String },
    /// Puts someone into a group.
    Join { group: String, member: String },
    /// Takes someone out of a group.
    Leave { group: String, member: String },
    /// Says which assignment lets a principal do something, or why none does.
    Explain {
        /// Who: principals/ID or managedIdentities/ID.
        who: String,
        /// What: a permission, as unwrapKey.
        permission: String,
        /// On what: a vault, a key or a version.
        resource: String,
        /// The principal's duty; asked of the identity service if not given.
        #[arg(long)]
        duty: Option<String>,
        /// From where it would call.
        #[arg(long, default_value = "")]
        address: String,
    },
    /// Lists who can unwrap each key of a vault, and when each last did.
    Review { vault: String },
    /// Takes emergency rights in a vault, with a second officer.
    BreakGlass {
        vault: String,
        /// Why; the second officer sees it.
        reason: String,
        /// For how long, in minutes.
        #[arg(long, default_value_t = 60)]
        minutes: i64,
    },
    /// Lists what waits for a second officer, and what came of it.
    Approvals {
        /// Of which vault; without it those of the identity service, which are on officers.
        vault: Option<String>,
    },
    /// Agrees to what another officer asked for, in a vault or in the identity service.
    Approve { name: String },
    /// Does not agree, or takes one's own request back.
    Reject { name: String },
}

fn assignment(a: wire::RoleAssignment) -> Value {
    let mut out = json!({ "principal": a.principal, "role": a.role, "scope": a.scope, "name": a.name });
    if let (Some(condition), Some(fields)) = (a.condition, out.as_object_mut()) {
        fields.insert("until".to_owned(), json!(time(condition.expire_time)));
        fields.insert("networks".to_owned(), json!(condition.source_networks.join(" ")));
    }
    out
}

fn group(g: wire::Group) -> Value {
    json!({ "name": g.name, "members": g.members })
}

fn role(r: wire::RoleDefinition) -> Value {
    json!({ "role": r.role, "duties": r.duties, "permissions": r.permissions })
}

fn approval(a: wire::Approval) -> Value {
    let state = a.state().as_str_name().trim_start_matches("APPROVAL_STATE_").to_lowercase();
    json!({
        "state": state, "action": a.action, "asked_by": a.requester, "decided_by": a.decider,
        "until": time(a.expire_time), "name": a.name,
    })
}

pub(crate) async fn run(session: &Session, verb: Verb) -> anyhow::Result<()> {
    let mut client = session.access("officer")?;
    match verb {
        Verb::Grant { grantee: principal, role, scope, until, networks } => {
            let parent = scope.split('/').take(2).collect::<Vec<_>>().join("/");
            let expire_time = until.map(|t| t.parse()).transpose().context("--until is not a time")?;
            let condition = (expire_time.is_some() || !networks.is_empty()).then(|| {
                let source_networks = networks;
                wire::AssignmentCondition { not_before: None, expire_time, source_networks }
            });
            let name = String::new();
            let role_assignment = Some(wire::RoleAssignment { name, principal, role, scope, condition });
            let request = wire::CreateRoleAssignmentRequest { parent, role_assignment };
            one(session.format, &assignment(client.create_role_assignment(request).await?.into_inner()));
        }
        Verb::Revoke { name } => {
            client.delete_role_assignment(wire::DeleteRoleAssignmentRequest { name: name.clone() }).await?;
            line(format!("{name} removed"));
        }
        Verb::List { vault: parent } => {
            let request =
                wire::ListRoleAssignmentsRequest { parent, page_size: 1000, page_token: String::new() };
            let all = client.list_role_assignments(request).await?.into_inner();
            many(session.format, all.role_assignments.into_iter().map(assignment).collect());
        }
        Verb::Roles { vault } => {
            let parent = vault.unwrap_or_default();
            let all = client.list_role_definitions(wire::ListRoleDefinitionsRequest { parent }).await?;
            many(session.format, all.into_inner().role_definitions.into_iter().map(role).collect());
        }
        Verb::CreateRole { vault: parent, id: role_definition_id, permissions } => {
            let role_definition =
                Some(wire::RoleDefinition { permissions, ..wire::RoleDefinition::default() });
            let request = wire::CreateRoleDefinitionRequest { parent, role_definition_id, role_definition };
            one(session.format, &role(client.create_role_definition(request).await?.into_inner()));
        }
        Verb::DeleteRole { name } => {
            client.delete_role_definition(wire::DeleteRoleDefinitionRequest { name: name.clone() }).await?;
            line(format!("{name} removed"));
        }
        Verb::CreateGroup { vault: parent, id: group_id } => {
            let made = client.create_group(wire::CreateGroupRequest { parent, group_id }).await?;
            one(session.format, &group(made.into_inner()));
        }
        Verb::Groups { vault: parent } => {
            let request = wire::ListGroupsRequest { parent, page_size: 1000, page_token: String::new() };
            let all = client.list_groups(request).await?.into_inner();
            many(session.format, all.groups.into_iter().map(group).collect());
        }
        Verb::DeleteGroup { name } => {
            client.delete_group(wire::DeleteGroupRequest { name: name.clone() }).await?;
            line(format!("{name} removed"));
        }
        Verb::Join { group: name, member } => {
            let changed = client.add_group_member(wire::AddGroupMemberRequest { name, member }).await?;
            one(session.format, &group(changed.into_inner()));
        }
        Verb::Leave { group: name, member } => {
            let changed = client.remove_group_member(wire::RemoveGroupMemberRequest { name, member }).await?;
            one(session.format, &group(changed.into_inner()));
        }
        verb => questions(session, &mut client, verb).await?,
    }
    Ok(())
}

/// What looks at access, and what two officers do.
async fn questions(session: &Session, client: &mut Access, verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Explain { who: principal, permission, resource, duty, address } => {
            let duty = match duty {
                Some(duty) => duty,
                None => identity::duty_of(session, &principal).await.unwrap_or_default(),
            };
            let request = wire::ExplainAccessRequest { principal, permission, resource, duty, address };
            let said = client.explain_access(request).await?.into_inner();
            let row = |c: wire::ConsideredAssignment| {
                let a = c.role_assignment.unwrap_or_default();
                json!({ "verdict": c.verdict, "role": a.role, "scope": a.scope, "given_to": a.principal, "name": a.name })
            };
            let considered: Vec<Value> = said.considered.into_iter().map(row).collect();
            if session.format == Format::Table {
                line(if said.allowed {
                    format!("allowed by {}", said.decided_by)
                } else {
                    "denied".to_owned()
                });
                many(session.format, considered);
            } else {
                let out = json!({ "allowed": said.allowed, "decided_by": said.decided_by, "considered": considered, "groups": said.groups });
                one(session.format, &out);
            }
        }
        Verb::Review { vault: parent } => {
            let mut rows = Vec::new();
            let mut page_token = String::new();
            loop {
                let request =
                    wire::ReviewAccessRequest { parent: parent.clone(), page_size: 1000, page_token };
                let page = client.review_access(request).await?.into_inner();
                rows.extend(page.access_reviews.into_iter().map(|r| {
                    let a = r.role_assignment.unwrap_or_default();
                    json!({
                        "key": r.key, "principal": r.principal, "may": r.active, "role": a.role,
                        "last_unwrap": time(r.last_unwrap_time), "given_to": a.principal,
                    })
                }));
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    break;
                }
            }
            many(session.format, rows);
        }
        Verb::BreakGlass { vault: parent, reason, minutes } => {
            let duration = Some(prost_types::Duration { seconds: minutes.saturating_mul(60), nanos: 0 });
            let made = client.break_glass(wire::BreakGlassRequest { parent, reason, duration }).await?;
            one(session.format, &assignment(made.into_inner()));
        }
        Verb::Approvals { vault: None } => identity::approvals(session).await?,
        Verb::Approve { name } if identity::is_approval(&name) => {
            identity::decide(session, name, true).await?;
        }
        Verb::Reject { name } if identity::is_approval(&name) => {
            identity::decide(session, name, false).await?;
        }
        Verb::Approvals { vault: Some(parent) } => {
            let request = wire::ListApprovalsRequest { parent, page_size: 1000, page_token: String::new() };
            let all = client.list_approvals(request).await?.into_inner();
            many(session.format, all.approvals.into_iter().map(approval).collect());
        }
        Verb::Approve { name } => {
            let done = client.approve_approval(wire::ApproveApprovalRequest { name }).await?;
            one(session.format, &approval(done.into_inner()));
        }
        Verb::Reject { name } => {
            let done = client.reject_approval(wire::RejectApprovalRequest { name }).await?;
            one(session.format, &approval(done.into_inner()));
        }
        _ => {}
    }
    Ok(())
}
