//! The FaultInjection service: parse, call the domain, convert back.

use crate::{convert::failed, leases::span_to_wire, service::run};
use custody_proto::vault::{
    self as wire,
    fault_injection_server::{FaultInjection, FaultInjectionServer},
    set_fault_profile_request::Profile as Wanted,
};
use custody_rpc::{status::invalid, timestamp::to_wire, token::TokenVerifier, workers::Workers};
use custody_types::{UnixMillis, VaultName};
use custody_vault::{
    Call, Vault,
    faults::{Bursts, Latency, Limits, Outages, Profile, Span, Throttles},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tonic::{Request, Response, Status};

pub(crate) struct FaultService {
    vault: Arc<Vault>,
    verifier: Arc<TokenVerifier>,
    workers: Workers,
}

impl FaultService {
    pub(crate) fn server(
        vault: Arc<Vault>,
        verifier: Arc<TokenVerifier>,
        workers: Workers,
    ) -> FaultInjectionServer<Self> {
        FaultInjectionServer::new(Self { vault, verifier, workers })
    }

    async fn run<R: Send + 'static, T: Send + 'static>(
        &self,
        request: Request<R>,
        act: impl FnOnce(&Vault, &Call, R) -> Result<T, Status> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        run(&self.vault, &self.workers, request, act).await
    }
}

fn wire_ms(ms: u64) -> Option<prost_types::Duration> {
    span_to_wire(Duration::from_millis(ms))
}

fn signed_ms(ms: i64) -> prost_types::Duration {
    let nanos = i32::try_from(ms % 1000 * 1_000_000).unwrap_or_default();
    prost_types::Duration { seconds: ms / 1000, nanos }
}

fn to_signed_ms(d: prost_types::Duration) -> i64 {
    d.seconds.saturating_mul(1000).saturating_add(i64::from(d.nanos) / 1_000_000)
}

fn ms(d: Option<prost_types::Duration>, field: &'static str) -> Result<u64, Status> {
    let d = Duration::try_from(d.unwrap_or_default()).map_err(|_| invalid(field, "must not be negative"))?;
    u64::try_from(d.as_millis()).map_err(|_| invalid(field, "is too long"))
}

fn limits_to_wire(l: Limits) -> wire::ThrottleLimits {
    wire::ThrottleLimits {
        create: l.create,
        rsa_2048: l.rsa_2048,
        rsa_3072: l.rsa_3072,
        rsa_4096: l.rsa_4096,
    }
}

fn limits(l: Option<wire::ThrottleLimits>, field: &'static str) -> Result<Limits, Status> {
    let l = l.ok_or_else(|| invalid(field, "is required"))?;
    Ok(Limits { create: l.create, rsa_2048: l.rsa_2048, rsa_3072: l.rsa_3072, rsa_4096: l.rsa_4096 })
}

fn profile_to_wire(p: Profile, set_time: Option<UnixMillis>, region_lost: bool) -> wire::FaultProfile {
    let span =
        |s: Option<Span>| s.map(|s| wire::FaultSpan { from: wire_ms(s.from_ms), to: wire_ms(s.to_ms) });
    let float = |ms: f64| span_to_wire(Duration::from_secs_f64(ms / 1e3));
    wire::FaultProfile {
        name: p.name,
        throttles: p.throttles.map(|t| wire::Throttles {
            window: wire_ms(t.window_ms),
            software: Some(limits_to_wire(t.software)),
            hsm: Some(limits_to_wire(t.hsm)),
            other: t.other,
            all_vaults: t.all_vaults,
        }),
        latency: p.latency.map(|l| wire::LatencyProfile {
            median: float(l.median_ms),
            p99: float(l.p99_ms),
            max: float(l.max_ms),
        }),
        bursts: p.bursts.map(|b| wire::ErrorBursts {
            every: wire_ms(b.every_ms),
            length: wire_ms(b.for_ms),
            share: b.share,
        }),
        outages: p
            .outages
            .map(|o| wire::RegionOutages { every: wire_ms(o.every_ms), length: wire_ms(o.for_ms) }),
        role_delay: span(p.role_delay),
        delete_delay: span(p.delete_delay),
        recover_delay: span(p.recover_delay),
        version_lag: span(p.version_lag),
        token_age: p.token_age_ms.and_then(wire_ms),
        clock_shifts: p.clock_shift_ms.into_iter().map(|(vault, ms)| (vault, signed_ms(ms))).collect(),
        seed: p.seed,
        set_time: set_time.map(to_wire),
        region_lost,
    }
}

fn profile(p: wire::FaultProfile) -> Result<Profile, Status> {
    let span = |s: Option<wire::FaultSpan>, field| {
        s.map(|s| Ok::<_, Status>(Span { from_ms: ms(s.from, field)?, to_ms: ms(s.to, field)? })).transpose()
    };
    let float = |d: Option<prost_types::Duration>| {
        Duration::try_from(d.unwrap_or_default())
            .map(|d| d.as_secs_f64() * 1e3)
            .map_err(|_| invalid("custom.latency", "must not be negative"))
    };
    let throttles = p.throttles.map(|t| {
        Ok::<_, Status>(Throttles {
            window_ms: ms(t.window, "custom.throttles.window")?,
            software: limits(t.software, "custom.throttles.software")?,
            hsm: limits(t.hsm, "custom.throttles.hsm")?,
            other: t.other,
            all_vaults: t.all_vaults,
        })
    });
    let latency = p.latency.map(|l| {
        Ok::<_, Status>(Latency { median_ms: float(l.median)?, p99_ms: float(l.p99)?, max_ms: float(l.max)? })
    });
    let bursts = p.bursts.map(|b| {
        Ok::<_, Status>(Bursts {
            every_ms: ms(b.every, "custom.bursts.every")?,
            for_ms: ms(b.length, "custom.bursts.length")?,
            share: b.share,
        })
    });
    let outages = p.outages.map(|o| {
        Ok::<_, Status>(Outages {
            every_ms: ms(o.every, "custom.outages.every")?,
            for_ms: ms(o.length, "custom.outages.length")?,
        })
    });
    let shifts: BTreeMap<String, i64> =
        p.clock_shifts.into_iter().map(|(vault, shift)| (vault, to_signed_ms(shift))).collect();
    Ok(Profile {
        name: p.name,
        throttles: throttles.transpose()?,
        latency: latency.transpose()?,
        bursts: bursts.transpose()?,
        outages: outages.transpose()?,
        role_delay: span(p.role_delay, "custom.role_delay")?,
        delete_delay: span(p.delete_delay, "custom.delete_delay")?,
        recover_delay: span(p.recover_delay, "custom.recover_delay")?,
        version_lag: span(p.version_lag, "custom.version_lag")?,
        token_age_ms: p.token_age.map(|age| ms(Some(age), "custom.token_age")).transpose()?,
        clock_shift_ms: shifts,
        seed: p.seed,
    })
}

fn shown(vault: &Vault) -> Result<wire::FaultProfile, Status> {
    let (profile, set_time, away) = vault.fault_profile().map_err(failed)?;
    Ok(profile_to_wire(profile, Some(set_time), away))
}

#[tonic::async_trait]
impl FaultInjection for FaultService {
    async fn list_fault_profiles(
        &self,
        _: Request<wire::ListFaultProfilesRequest>,
    ) -> Result<Response<wire::ListFaultProfilesResponse>, Status> {
        let all = Profile::NAMES.into_iter().filter_map(|name| Profile::named(name).ok());
        let profiles = all.map(|p| profile_to_wire(p, None, false)).collect();
        Ok(Response::new(wire::ListFaultProfilesResponse { profiles }))
    }

    async fn get_fault_profile(
        &self,
        _: Request<wire::GetFaultProfileRequest>,
    ) -> Result<Response<wire::FaultProfile>, Status> {
        shown(&self.vault).map(Response::new)
    }

    async fn set_fault_profile(
        &self,
        request: Request<wire::SetFaultProfileRequest>,
    ) -> Result<Response<wire::FaultProfile>, Status> {
        let verifier = self.verifier.clone();
        self.run(request, move |vault, call, r| {
            let wanted = match r.profile.ok_or_else(|| invalid("named", "or `custom` is required"))? {
                Wanted::Named(name) => Profile::named(&name).map_err(|e| invalid("named", e))?,
                Wanted::Custom(custom) => profile(custom)?,
            };
            wanted.check().map_err(|e| invalid("custom", e))?;
            let token_age = wanted.token_age_ms.map(Duration::from_millis);
            vault.set_fault_profile(call, wanted).map_err(failed)?;
            verifier.limit_age(token_age);
            shown(vault)
        })
        .await
    }

    async fn lose_region(&self, request: Request<wire::LoseRegionRequest>) -> Result<Response<()>, Status> {
        self.run(request, |vault, call, r| {
            let length = r.length.map(|length| ms(Some(length), "length")).transpose()?;
            vault.lose_region(call, length.map(Duration::from_millis)).map_err(failed)
        })
        .await
    }

    async fn restore_region(
        &self,
        request: Request<wire::RestoreRegionRequest>,
    ) -> Result<Response<()>, Status> {
        self.run(request, |vault, call, _| vault.restore_region(call).map_err(failed)).await
    }

    async fn shift_clock(
        &self,
        request: Request<wire::ShiftClockRequest>,
    ) -> Result<Response<wire::FaultProfile>, Status> {
        self.run(request, |vault, call, r| {
            let name: VaultName = r.vault.parse().map_err(|e| invalid("vault", e))?;
            let shift = to_signed_ms(r.shift.unwrap_or_default());
            vault.shift_clock(call, &name, shift).map_err(failed)?;
            shown(vault)
        })
        .await
    }
}
