//! The AccessControl service: parse, call the domain on a worker, convert back.

use crate::{convert::failed, service::run};
use custody_authz::{Assignment, Condition, Considered, Group, Role, Unmet, Verdict};
use custody_proto::vault::{
    self as wire,
    access_control_server::{AccessControl, AccessControlServer},
};
use custody_rpc::{
    page::{self, cut},
    server::MESSAGE_LEN_MAX,
    status::invalid,
    timestamp::{from_wire, to_wire},
    workers::Workers,
};
use custody_vault::{AccessReview, Approval, ApprovalState, Call, NewAssignment, Vault};
use std::{sync::Arc, time::Duration};
use tonic::{Request, Response, Status};

pub(crate) struct AccessControlService {
    vault: Arc<Vault>,
    workers: Workers,
}

fn assignment(a: Assignment) -> wire::RoleAssignment {
    let condition = (!a.condition.is_empty()).then(|| wire::AssignmentCondition {
        not_before: a.condition.not_before.map(to_wire),
        expire_time: a.condition.expire_time.map(to_wire),
        source_networks: a.condition.source_networks.iter().map(ToString::to_string).collect(),
    });
    wire::RoleAssignment {
        name: a.name,
        principal: a.principal,
        role: a.role,
        scope: a.scope.to_string(),
        condition,
    }
}

fn condition(given: Option<wire::AssignmentCondition>) -> Result<Condition, Status> {
    let given = given.unwrap_or_default();
    let time = |t: Option<prost_types::Timestamp>, field| t.map(|t| from_wire(&t, field)).transpose();
    let network = |text: &String| {
        let why = "must be networks in CIDR notation, as 10.0.0.0/8 or fd00::/8";
        text.parse().map_err(|_| invalid("role_assignment.condition.source_networks", why))
    };
    Ok(Condition {
        not_before: time(given.not_before, "role_assignment.condition.not_before")?,
        expire_time: time(given.expire_time, "role_assignment.condition.expire_time")?,
        source_networks: given.source_networks.iter().map(network).collect::<Result<_, _>>()?,
    })
}

fn role(r: &Role) -> wire::RoleDefinition {
    wire::RoleDefinition {
        role: r.name.clone(),
        duties: r.duties.iter().map(ToString::to_string).collect(),
        permissions: r.permissions.iter().map(ToString::to_string).collect(),
        description: r.description.clone(),
    }
}

fn group(g: Group) -> wire::Group {
    wire::Group { name: g.name, members: g.members.into_iter().collect() }
}

fn considered(c: Considered) -> wire::ConsideredAssignment {
    let verdict = match c.verdict {
        Verdict::Allows => "allows",
        Verdict::OutOfScope => "is on something else",
        Verdict::LacksPermission => "its role does not have the permission",
        Verdict::OtherDuty => "its role is for another duty",
        Verdict::Unmet(Unmet::NotYet) => "its time has not come",
        Verdict::Unmet(Unmet::Over) => "its time is over",
        Verdict::Unmet(_) => "is for callers in other networks",
        _ => "does not allow",
    };
    wire::ConsideredAssignment {
        role_assignment: Some(assignment(c.assignment)),
        verdict: verdict.to_owned(),
    }
}

fn review(r: AccessReview) -> wire::AccessReview {
    wire::AccessReview {
        key: r.key.to_string(),
        principal: r.principal,
        active: r.assignment.is_some() && r.unmet.is_none(),
        role_assignment: r.assignment.map(assignment),
        last_unwrap_time: r.last_opened.map(to_wire),
    }
}

fn approval((a, state): (Approval, ApprovalState)) -> wire::Approval {
    let state = match state {
        ApprovalState::Pending => wire::ApprovalState::Pending,
        ApprovalState::Approved => wire::ApprovalState::Approved,
        ApprovalState::Rejected => wire::ApprovalState::Rejected,
        ApprovalState::Used => wire::ApprovalState::Used,
        _ => wire::ApprovalState::Expired,
    };
    wire::Approval {
        name: a.name,
        action: a.action,
        resource: a.resource,
        requester: a.requester,
        decider: a.decision.map(|(who, _)| who).unwrap_or_default(),
        state: state.into(),
        create_time: Some(to_wire(a.create_time)),
        expire_time: Some(to_wire(a.expire_time)),
    }
}

impl AccessControlService {
    pub(crate) fn server(vault: Arc<Vault>, workers: Workers) -> AccessControlServer<Self> {
        AccessControlServer::new(Self { vault, workers }).max_decoding_message_size(MESSAGE_LEN_MAX)
    }

    /// Runs a domain call on a worker.
    async fn run<R: Send + 'static, T: Send + 'static>(
        &self,
        request: Request<R>,
        act: impl FnOnce(&Vault, &Call, R) -> Result<T, Status> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        run(&self.vault, &self.workers, request, act).await
    }
}

#[tonic::async_trait]
impl AccessControl for AccessControlService {
    async fn create_role_assignment(
        &self,
        request: Request<wire::CreateRoleAssignmentRequest>,
    ) -> Result<Response<wire::RoleAssignment>, Status> {
        self.run(request, |vault, call, r| {
            let given = r.role_assignment.ok_or_else(|| invalid("role_assignment", "is required"))?;
            let condition = condition(given.condition)?;
            let new =
                NewAssignment { principal: given.principal, role: given.role, scope: given.scope, condition };
            vault.create_role_assignment(call, &r.parent, new).map(assignment).map_err(failed)
        })
        .await
    }

    async fn list_role_assignments(
        &self,
        request: Request<wire::ListRoleAssignmentsRequest>,
    ) -> Result<Response<wire::ListRoleAssignmentsResponse>, Status> {
        self.run(request, |vault, call, r| {
            let all = vault.list_role_assignments(call, &r.parent).map_err(failed)?;
            let (page, next_page_token) = cut(all, r.page_size, &r.page_token, |a| a.name.clone())?;
            let role_assignments = page.into_iter().map(assignment).collect();
            Ok(wire::ListRoleAssignmentsResponse { role_assignments, next_page_token })
        })
        .await
    }

    async fn delete_role_assignment(
        &self,
        request: Request<wire::DeleteRoleAssignmentRequest>,
    ) -> Result<Response<()>, Status> {
        self.run(request, |vault, call, r| vault.delete_role_assignment(call, &r.name).map_err(failed)).await
    }

    async fn list_role_definitions(
        &self,
        request: Request<wire::ListRoleDefinitionsRequest>,
    ) -> Result<Response<wire::ListRoleDefinitionsResponse>, Status> {
        self.run(request, |vault, call, r| {
            let all = vault.list_role_definitions(call, &r.parent).map_err(failed)?;
            let role_definitions = all.iter().map(|r| role(r)).collect();
            Ok(wire::ListRoleDefinitionsResponse { role_definitions })
        })
        .await
    }

    async fn create_role_definition(
        &self,
        request: Request<wire::CreateRoleDefinitionRequest>,
    ) -> Result<Response<wire::RoleDefinition>, Status> {
        self.run(request, |vault, call, r| {
            let given = r.role_definition.ok_or_else(|| invalid("role_definition", "is required"))?;
            let id = &r.role_definition_id;
            let made =
                vault.create_role_definition(call, &r.parent, id, &given.permissions, &given.description);
            made.map(|r| role(&r)).map_err(failed)
        })
        .await
    }

    async fn delete_role_definition(
        &self,
        request: Request<wire::DeleteRoleDefinitionRequest>,
    ) -> Result<Response<()>, Status> {
        self.run(request, |vault, call, r| vault.delete_role_definition(call, &r.name).map_err(failed)).await
    }

    async fn create_group(
        &self,
        request: Request<wire::CreateGroupRequest>,
    ) -> Result<Response<wire::Group>, Status> {
        self.run(request, |vault, call, r| {
            vault.create_group(call, &r.parent, &r.group_id).map(group).map_err(failed)
        })
        .await
    }

    async fn list_groups(
        &self,
        request: Request<wire::ListGroupsRequest>,
    ) -> Result<Response<wire::ListGroupsResponse>, Status> {
        self.run(request, |vault, call, r| {
            let all = vault.list_groups(call, &r.parent).map_err(failed)?;
            let (page, next_page_token) = cut(all, r.page_size, &r.page_token, |g| g.name.clone())?;
            Ok(wire::ListGroupsResponse { groups: page.into_iter().map(group).collect(), next_page_token })
        })
        .await
    }

    async fn delete_group(&self, request: Request<wire::DeleteGroupRequest>) -> Result<Response<()>, Status> {
        self.run(request, |vault, call, r| vault.delete_group(call, &r.name).map_err(failed)).await
    }

    async fn add_group_member(
        &self,
        request: Request<wire::AddGroupMemberRequest>,
    ) -> Result<Response<wire::Group>, Status> {
        self.run(request, |vault, call, r| {
            vault.add_group_member(call, &r.name, &r.member).map(group).map_err(failed)
        })
        .await
    }

    async fn remove_group_member(
        &self,
        request: Request<wire::RemoveGroupMemberRequest>,
    ) -> Result<Response<wire::Group>, Status> {
        self.run(request, |vault, call, r| {
            vault.remove_group_member(call, &r.name, &r.member).map(group).map_err(failed)
        })
        .await
    }

    async fn explain_access(
        &self,
        request: Request<wire::ExplainAccessRequest>,
    ) -> Result<Response<wire::ExplainAccessResponse>, Status> {
        self.run(request, |vault, call, r| {
            let permission = r.permission.parse().map_err(|e| invalid("permission", e))?;
            let duty = if r.duty.is_empty() {
                None
            } else {
                Some(r.duty.parse().map_err(|e: custody_types::UnknownDuty| invalid("duty", e))?)
            };
            let said = vault.explain_access(call, &r.principal, duty, &r.address, permission, &r.resource);
            let said = said.map_err(failed)?;
            Ok(wire::ExplainAccessResponse {
                allowed: said.allowed_by.is_some(),
                decided_by: said.allowed_by.unwrap_or_default(),
                considered: said.considered.into_iter().map(considered).collect(),
                groups: said.groups,
            })
        })
        .await
    }

    async fn review_access(
        &self,
        request: Request<wire::ReviewAccessRequest>,
    ) -> Result<Response<wire::ReviewAccessResponse>, Status> {
        self.run(request, |vault, call, r| {
            let (after, keys) = (page::after(&r.page_token)?, page::size(r.page_size)?);
            let (all, next) = vault.review_access(call, &r.parent, &after, keys).map_err(failed)?;
            let access_reviews = all.into_iter().map(review).collect();
            Ok(wire::ReviewAccessResponse { access_reviews, next_page_token: page::token(next.as_deref()) })
        })
        .await
    }

    async fn break_glass(
        &self,
        request: Request<wire::BreakGlassRequest>,
    ) -> Result<Response<wire::RoleAssignment>, Status> {
        self.run(request, |vault, call, r| {
            let seconds = r.duration.map(|d| d.seconds).and_then(|s| u64::try_from(s).ok());
            let time = seconds.map(Duration::from_secs).ok_or_else(|| invalid("duration", "is required"))?;
            vault.break_glass(call, &r.parent, &r.reason, time).map(assignment).map_err(failed)
        })
        .await
    }

    async fn list_approvals(
        &self,
        request: Request<wire::ListApprovalsRequest>,
    ) -> Result<Response<wire::ListApprovalsResponse>, Status> {
        self.run(request, |vault, call, r| {
            let all = vault.list_approvals(call, &r.parent).map_err(failed)?;
            let (page, next_page_token) = cut(all, r.page_size, &r.page_token, |(a, _)| a.name.clone())?;
            let approvals = page.into_iter().map(approval).collect();
            Ok(wire::ListApprovalsResponse { approvals, next_page_token })
        })
        .await
    }

    async fn approve_approval(
        &self,
        request: Request<wire::ApproveApprovalRequest>,
    ) -> Result<Response<wire::Approval>, Status> {
        self.run(request, |vault, call, r| {
            vault.decide_approval(call, &r.name, true).map(approval).map_err(failed)
        })
        .await
    }

    async fn reject_approval(
        &self,
        request: Request<wire::RejectApprovalRequest>,
    ) -> Result<Response<wire::Approval>, Status> {
        self.run(request, |vault, call, r| {
            vault.decide_approval(call, &r.name, false).map(approval).map_err(failed)
        })
        .await
    }
}
