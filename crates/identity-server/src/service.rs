//! The Identity service on the wire.

use custody_audit::{Entry, Journal};
use custody_audit_server::Trail;
use custody_identity::{IdentityError, IssuedToken, ManagedIdentityRecord, PrincipalRecord, Registry};
use custody_proto::identity::{
    self as wire,
    identity_server::{Identity, IdentityServer},
};
use custody_rpc::{CallContext, page::cut, status::status, timestamp::to_wire, workers::Workers};
use custody_types::{Approval, ApprovalState};
use std::sync::Arc;
use tonic::{Request, Response, Status};

pub(crate) struct IdentityService {
    registry: Arc<Registry>,
    workers: Workers,
}

pub(crate) struct IdentityTrail(pub(crate) Arc<Registry>);

impl Trail for IdentityTrail {
    fn journal(&self) -> &Journal {
        self.0.journal()
    }

    fn read(&self, _: &CallContext, after: u64, max: usize) -> Result<(Vec<Entry>, u64), Status> {
        let entries = self.0.read_audit(after, max).map_err(failed)?;
        let last = entries.last().map_or(after, |e| e.sequence);
        Ok((entries, last))
    }
}

fn failed(e: IdentityError) -> Status {
    let field = match &e {
        IdentityError::Invalid { field, .. } => Some(*field),
        _ => None,
    };
    status(e.status(), e.reason(), &e.to_string(), field)
}

impl IdentityService {
    pub(crate) fn server(registry: Arc<Registry>, workers: Workers) -> IdentityServer<Self> {
        IdentityServer::new(Self { registry, workers })
    }

    async fn run<R: Send + 'static, T: Send + 'static>(
        &self,
        request: Request<R>,
        act: impl FnOnce(&Registry, &CallContext, R) -> Result<T, Status> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let context = CallContext::of(&request)?;
        let request = request.into_inner();
        let registry = self.registry.clone();
        self.workers.run(move || act(&registry, &context, request).map(Response::new)).await
    }
}

fn token(t: IssuedToken) -> wire::Token {
    wire::Token { access_token: t.text, expire_time: Some(to_wire(t.expire_time)) }
}

fn principal(p: PrincipalRecord) -> wire::Principal {
    wire::Principal {
        name: p.name.to_string(),
        duty: p.duty.to_string(),
        create_time: Some(to_wire(p.create_time)),
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

fn managed(m: ManagedIdentityRecord) -> wire::ManagedIdentity {
    wire::ManagedIdentity {
        name: m.name.to_string(),
        nodes: m.nodes.iter().map(ToString::to_string).collect(),
        create_time: Some(to_wire(m.create_time)),
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn issue_token(
        &self,
        request: Request<wire::IssueTokenRequest>,
    ) -> Result<Response<wire::Token>, Status> {
        self.run(request, |registry, context, r| {
            registry
                .issue_token(&r.client_id, &r.client_secret, &r.audience, &context.caller.address)
                .map(token)
                .map_err(failed)
        })
        .await
    }

    async fn issue_workload_token(
        &self,
        request: Request<wire::IssueWorkloadTokenRequest>,
    ) -> Result<Response<wire::Token>, Status> {
        self.run(request, |registry, context, r| {
            let bad = || {
                status(
                    "UNAUTHENTICATED",
                    "CLIENT_CERTIFICATE_REQUIRED",
                    "the client certificate names no principal",
                    None,
                )
            };
            let workload = context.certificate.principal().and_then(|c| c.parse().ok()).ok_or_else(bad)?;
            registry
                .issue_workload_token(&workload, &r.managed_identity, &r.audience, &context.caller.address)
                .map(token)
                .map_err(failed)
        })
        .await
    }

    async fn get_jwks(&self, _: Request<()>) -> Result<Response<wire::Jwks>, Status> {
        Ok(Response::new(wire::Jwks { json: self.registry.jwks().to_owned() }))
    }

    async fn create_principal(
        &self,
        request: Request<wire::CreatePrincipalRequest>,
    ) -> Result<Response<wire::CreatePrincipalResponse>, Status> {
        self.run(request, |registry, context, r| {
            let (made, client_secret) =
                registry.create_principal(&context.caller, &r.principal_id, &r.duty).map_err(failed)?;
            Ok(wire::CreatePrincipalResponse { principal: Some(principal(made)), client_secret })
        })
        .await
    }

    async fn get_principal(
        &self,
        request: Request<wire::GetPrincipalRequest>,
    ) -> Result<Response<wire::Principal>, Status> {
        self.run(request, |registry, _, r| registry.get_principal(&r.name).map(principal).map_err(failed))
            .await
    }

    async fn list_principals(
        &self,
        request: Request<wire::ListPrincipalsRequest>,
    ) -> Result<Response<wire::ListPrincipalsResponse>, Status> {
        self.run(request, |registry, _, r| {
            let all = registry.list_principals().map_err(failed)?;
            let (page, next_page_token) = cut(all, r.page_size, &r.page_token, |p| p.name.to_string())?;
            Ok(wire::ListPrincipalsResponse {
                principals: page.into_iter().map(principal).collect(),
                next_page_token,
            })
        })
        .await
    }

    async fn delete_principal(
        &self,
        request: Request<wire::DeletePrincipalRequest>,
    ) -> Result<Response<()>, Status> {
        self.run(request, |registry, context, r| {
            registry.delete_principal(&context.caller, &r.name).map_err(failed)
        })
        .await
    }

    async fn list_approvals(
        &self,
        request: Request<wire::ListApprovalsRequest>,
    ) -> Result<Response<wire::ListApprovalsResponse>, Status> {
        self.run(request, |registry, _, r| {
            let all = registry.list_approvals().map_err(failed)?;
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
        self.run(request, |registry, context, r| {
            registry.decide_approval(&context.caller, &r.name, true).map(approval).map_err(failed)
        })
        .await
    }

    async fn reject_approval(
        &self,
        request: Request<wire::RejectApprovalRequest>,
    ) -> Result<Response<wire::Approval>, Status> {
        self.run(request, |registry, context, r| {
            registry.decide_approval(&context.caller, &r.name, false).map(approval).map_err(failed)
        })
        .await
    }

    async fn create_managed_identity(
        &self,
        request: Request<wire::CreateManagedIdentityRequest>,
    ) -> Result<Response<wire::ManagedIdentity>, Status> {
        self.run(request, |registry, context, r| {
            registry
                .create_managed_identity(&context.caller, &r.managed_identity_id)
                .map(managed)
                .map_err(failed)
        })
        .await
    }

    async fn get_managed_identity(
        &self,
        request: Request<wire::GetManagedIdentityRequest>,
    ) -> Result<Response<wire::ManagedIdentity>, Status> {
        self.run(request, |registry, _, r| {
            registry.get_managed_identity(&r.name).map(managed).map_err(failed)
        })
        .await
    }

    async fn list_managed_identities(
        &self,
        request: Request<wire::ListManagedIdentitiesRequest>,
    ) -> Result<Response<wire::ListManagedIdentitiesResponse>, Status> {
        self.run(request, |registry, _, r| {
            let all = registry.list_managed_identities().map_err(failed)?;
            let (page, next_page_token) = cut(all, r.page_size, &r.page_token, |m| m.name.to_string())?;
            Ok(wire::ListManagedIdentitiesResponse {
                managed_identities: page.into_iter().map(managed).collect(),
                next_page_token,
            })
        })
        .await
    }

    async fn delete_managed_identity(
        &self,
        request: Request<wire::DeleteManagedIdentityRequest>,
    ) -> Result<Response<()>, Status> {
        self.run(request, |registry, context, r| {
            registry.delete_managed_identity(&context.caller, &r.name).map_err(failed)
        })
        .await
    }

    async fn bind_managed_identity(
        &self,
        request: Request<wire::BindManagedIdentityRequest>,
    ) -> Result<Response<wire::ManagedIdentity>, Status> {
        self.run(request, |registry, context, r| {
            registry.bind(&context.caller, &r.name, &r.node, true).map(managed).map_err(failed)
        })
        .await
    }

    async fn unbind_managed_identity(
        &self,
        request: Request<wire::UnbindManagedIdentityRequest>,
    ) -> Result<Response<wire::ManagedIdentity>, Status> {
        self.run(request, |registry, context, r| {
            registry.bind(&context.caller, &r.name, &r.node, false).map(managed).map_err(failed)
        })
        .await
    }
}
