//! The KeyLineage service: parse, call the domain on a worker, convert back.

use crate::{
    convert::{failed, key_state},
    leases::{ASKED_MAX, holder_of, too_many},
    service::run,
};
use custody_proto::vault::{
    self as wire,
    key_lineage_server::{KeyLineage, KeyLineageServer},
};
use custody_rpc::{
    page::cut, server::MESSAGE_LEN_MAX, status::invalid, timestamp::to_wire, workers::Workers,
};
use custody_types::{Caller, KeyName, KeyVersionName};
use custody_vault::{
    Call, Dependent, DependentKind, DependentReport, Lineage, Vault, VaultError, VersionLineage,
};
use futures_util::future::join_all;
use std::sync::Arc;
use tonic::{Request, Response, Status};

pub(crate) struct LineageService {
    vault: Arc<Vault>,
    workers: Workers,
}

impl LineageService {
    pub(crate) fn server(vault: Arc<Vault>, workers: Workers) -> KeyLineageServer<Self> {
        KeyLineageServer::new(Self { vault, workers }).max_decoding_message_size(MESSAGE_LEN_MAX)
    }

    async fn run<R: Send + 'static, T: Send + 'static>(
        &self,
        request: Request<R>,
        act: impl FnOnce(&Vault, &Call, R) -> Result<T, Status> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        run(&self.vault, &self.workers, request, act).await
    }
}

/// A call of a holder, as the principal of its certificate.
fn of_holder<R>(request: Request<R>) -> Result<(Call, R), Status> {
    let (context, holder) = holder_of(&request)?;
    let caller = Caller { principal: holder, ..context.caller };
    Ok((Call::new(caller, context.correlation_id), request.into_inner()))
}

fn key_below(name: &str, what: &str) -> Result<KeyName, Status> {
    let key = name.strip_suffix(what).and_then(|key| key.strip_suffix('/')).and_then(|key| key.parse().ok());
    key.ok_or_else(|| invalid("name", format!("must be vaults/VAULT/keys/KEY/{what}")))
}

fn kind_from_wire(kind: i32) -> Result<DependentKind, Status> {
    use wire::DependentKind as Wire;
    Ok(match Wire::try_from(kind) {
        Ok(Wire::Volume) => DependentKind::Volume,
        Ok(Wire::FormerProtector) => DependentKind::FormerProtector,
        Ok(Wire::Backup) => DependentKind::Backup,
        Ok(Wire::Increment) => DependentKind::Increment,
        Ok(Wire::WalArchive) => DependentKind::WalArchive,
        _ => return Err(invalid("dependents.kind", "is required")),
    })
}

fn kind_to_wire(kind: DependentKind) -> wire::DependentKind {
    match kind {
        DependentKind::FormerProtector => wire::DependentKind::FormerProtector,
        DependentKind::Backup => wire::DependentKind::Backup,
        DependentKind::Increment => wire::DependentKind::Increment,
        DependentKind::WalArchive => wire::DependentKind::WalArchive,
        _ => wire::DependentKind::Volume,
    }
}

fn version(name: &str, field: &'static str) -> Result<KeyVersionName, Status> {
    name.parse().map_err(|e| invalid(field, e))
}

fn from_wire(given: wire::Dependent) -> Result<Dependent, Status> {
    let (kind, version) =
        (kind_from_wire(given.kind)?, version(&given.key_version, "dependents.key_version")?);
    Dependent::new(given.resource, version, kind, given.base, given.pinned).map_err(failed)
}

fn dependent(d: Dependent) -> wire::Dependent {
    wire::Dependent {
        resource: d.resource,
        key_version: d.key_version.to_string(),
        kind: kind_to_wire(d.kind).into(),
        base: d.base,
        pinned: d.pinned,
        holder: d.holder,
        report_time: Some(to_wire(d.report_time)),
    }
}

fn of_version(v: VersionLineage) -> wire::VersionLineage {
    let obstacle = v.obstacle();
    let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let count = |(kind, (count, pinned)): (DependentKind, (usize, usize))| wire::DependentCount {
        kind: kind_to_wire(kind).into(),
        count: number(count),
        pinned: number(pinned),
    };
    wire::VersionLineage {
        key_version: v.name.to_string(),
        state: key_state(v.state).into(),
        current: v.current,
        create_time: Some(to_wire(v.create_time)),
        dependents: v.dependents.into_iter().map(count).collect(),
        indirect: number(v.indirect),
        leases: number(v.leases),
        retirable: obstacle.is_none(),
        obstacle: obstacle.unwrap_or_default(),
    }
}

fn lineage(key: &KeyName, of: Lineage) -> wire::Lineage {
    let holder = |(holder, told): (String, Option<custody_types::UnixMillis>)| wire::DependentHolder {
        holder,
        complete_time: told.map(to_wire),
    };
    wire::Lineage {
        name: format!("{key}/lineage"),
        versions: of.versions.into_iter().map(of_version).collect(),
        holders: of.holders.into_iter().map(holder).collect(),
    }
}

#[tonic::async_trait]
impl KeyLineage for LineageService {
    async fn report_dependents(
        &self,
        request: Request<wire::ReportDependentsRequest>,
    ) -> Result<Response<wire::ReportDependentsResponse>, Status> {
        let (call, given) = of_holder(request)?;
        if given.dependents.len() > ASKED_MAX || given.removed.len() > ASKED_MAX {
            return Err(too_many(if given.removed.len() > ASKED_MAX { "removed" } else { "dependents" }));
        }
        let removed = given
            .removed
            .into_iter()
            .map(|d| Ok((d.resource, version(&d.key_version, "removed.key_version")?)));
        let report = DependentReport {
            dependents: given.dependents.into_iter().map(from_wire).collect::<Result<_, _>>()?,
            removed: removed.collect::<Result<_, Status>>()?,
            complete: given.complete,
            sequence: given.sequence,
        };
        let vault = self.vault.clone();
        let taken = move || vault.report_dependents(&call, report).map_err(failed);
        let reported = self.workers.run(taken).await?;
        // Answered when the trail has them.
        let recorded =
            join_all(reported.records.iter().map(|record| self.vault.record_in_task(record))).await;
        recorded.into_iter().collect::<Result<Vec<()>, VaultError>>().map_err(failed)?;
        let unknown_key_versions = reported.unknown.iter().map(ToString::to_string).collect();
        Ok(Response::new(wire::ReportDependentsResponse { unknown_key_versions }))
    }

    async fn list_reported_dependents(
        &self,
        request: Request<wire::ListReportedDependentsRequest>,
    ) -> Result<Response<wire::ListReportedDependentsResponse>, Status> {
        let (call, r) = of_holder(request)?;
        let vault = self.vault.clone();
        let look = move || vault.reported_dependents(&call).map_err(failed);
        let (all, last_sequence) = self.workers.run(look).await?;
        let place = |d: &Dependent| format!("{} {}", d.resource, d.key_version);
        let (page, next_page_token) = cut(all, r.page_size, &r.page_token, place)?;
        let dependents = page.into_iter().map(dependent).collect();
        Ok(Response::new(wire::ListReportedDependentsResponse { dependents, next_page_token, last_sequence }))
    }

    async fn get_lineage(
        &self,
        request: Request<wire::GetLineageRequest>,
    ) -> Result<Response<wire::Lineage>, Status> {
        self.run(request, |vault, call, r| {
            let key = key_below(&r.name, "lineage")?;
            vault.lineage(call, &key).map(|of| lineage(&key, of)).map_err(failed)
        })
        .await
    }

    async fn list_dependents(
        &self,
        request: Request<wire::ListDependentsRequest>,
    ) -> Result<Response<wire::ListDependentsResponse>, Status> {
        self.run(request, |vault, call, r| {
            let all = vault.list_dependents(call, &r.parent).map_err(failed)?;
            let place = |d: &Dependent| format!("{} {} {}", d.key_version, d.holder, d.resource);
            let (page, next_page_token) = cut(all, r.page_size, &r.page_token, place)?;
            let dependents = page.into_iter().map(dependent).collect();
            Ok(wire::ListDependentsResponse { dependents, next_page_token })
        })
        .await
    }

    async fn get_shred_report(
        &self,
        request: Request<wire::GetShredReportRequest>,
    ) -> Result<Response<wire::ShredReport>, Status> {
        self.run(request, |vault, call, r| {
            let key = key_below(&r.name, "shredReport")?;
            let shred = vault.shred_report(call, &key).map_err(failed)?;
            Ok(wire::ShredReport {
                name: r.name,
                requester: shred.requester,
                approver: shred.approver,
                shred_time: Some(to_wire(shred.shred_time)),
                unreadable: shred.unreadable.into_iter().map(dependent).collect(),
            })
        })
        .await
    }
}
