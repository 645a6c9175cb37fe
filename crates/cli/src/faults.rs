//! Verbs on how the vault misbehaves, for tests.

use crate::{
    output::{Format, line, many, one},
    session::{Session, time},
};
use anyhow::Context as _;
use clap::Subcommand;
use custody_proto::vault::{self as wire, set_fault_profile_request::Profile as Wanted};
use serde_json::{Value, json};
use std::time::Duration;

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Lists the profiles that come with the vault.
    Profiles,
    /// Shows the profile at work.
    Get,
    /// Puts a profile to work: `none`, `azure-standard`, `azure-premium` or `bad-day`.
    Set { profile: String },
    /// Takes the region away: nobody is answered.
    LoseRegion {
        /// For so many seconds; until `restore-region` if not given.
        #[arg(long)]
        for_s: Option<f64>,
    },
    /// Brings the region back.
    RestoreRegion,
    /// Sets a vault's clock so many seconds ahead of the true time; negative for behind.
    ShiftClock {
        vault: String,
        #[arg(allow_hyphen_values = true)]
        seconds: f64,
    },
}

fn seconds(d: Option<prost_types::Duration>) -> Value {
    d.map_or(Value::Null, |d| json!(d.seconds as f64 + f64::from(d.nanos) / 1e9))
}

fn span(s: Option<wire::FaultSpan>) -> Value {
    s.map_or(Value::Null, |s| json!([seconds(s.from), seconds(s.to)]))
}

fn view(p: wire::FaultProfile) -> Value {
    let throttles = p.throttles.map(|t| {
        let of = |l: Option<wire::ThrottleLimits>| {
            let l = l.unwrap_or_default();
            json!({ "create": l.create, "2048": l.rsa_2048, "3072": l.rsa_3072, "4096": l.rsa_4096 })
        };
        json!({ "window_s": seconds(t.window), "software": of(t.software), "hsm": of(t.hsm), "other": t.other })
    });
    let latency = p.latency.map(|l| json!({ "median_s": seconds(l.median), "p99_s": seconds(l.p99) }));
    let bursts = p
        .bursts
        .map(|b| json!({ "every_s": seconds(b.every), "for_s": seconds(b.length), "share": b.share }));
    let outages = p.outages.map(|o| json!({ "every_s": seconds(o.every), "for_s": seconds(o.length) }));
    json!({
        "name": p.name, "throttles": throttles, "latency": latency, "bursts": bursts, "outages": outages,
        "role_delay_s": span(p.role_delay), "delete_delay_s": span(p.delete_delay),
        "recover_delay_s": span(p.recover_delay), "version_lag_s": span(p.version_lag),
        "token_age_s": seconds(p.token_age), "region_lost": p.region_lost, "set": time(p.set_time),
    })
}

pub(crate) async fn run(session: &Session, verb: Verb) -> anyhow::Result<()> {
    let mut client = session.faults("tester")?;
    let show = |p: wire::FaultProfile| match session.format {
        Format::Json => one(session.format, &view(p)),
        Format::Table => {
            // What does not happen is not shown.
            let mut shown = view(p);
            if let Some(fields) = shown.as_object_mut() {
                fields.retain(|_, value| !value.is_null());
            }
            one(session.format, &shown);
        }
    };
    let span = |s: f64| {
        let span = Duration::try_from_secs_f64(s).ok().and_then(|d| prost_types::Duration::try_from(d).ok());
        span.context("must be a number of seconds, not negative")
    };
    match verb {
        Verb::Profiles => {
            let all = client.list_fault_profiles(wire::ListFaultProfilesRequest {}).await?.into_inner();
            many(session.format, all.profiles.into_iter().map(view).collect());
        }
        Verb::Get => show(client.get_fault_profile(wire::GetFaultProfileRequest {}).await?.into_inner()),
        Verb::Set { profile } => {
            let request = wire::SetFaultProfileRequest { profile: Some(Wanted::Named(profile)) };
            show(client.set_fault_profile(request).await?.into_inner());
        }
        Verb::LoseRegion { for_s } => {
            let length = for_s.map(span).transpose()?;
            client.lose_region(wire::LoseRegionRequest { length }).await?;
            line("the vault's region is away");
        }
        Verb::RestoreRegion => {
            client.restore_region(wire::RestoreRegionRequest {}).await?;
            line("the vault's region is back");
        }
        Verb::ShiftClock { vault, seconds } => {
            let shift = span(seconds.abs())?;
            let shift = if seconds < 0.0 {
                prost_types::Duration { seconds: -shift.seconds, nanos: -shift.nanos }
            } else {
                shift
            };
            let request = wire::ShiftClockRequest { vault, shift: Some(shift) };
            show(client.shift_clock(request).await?.into_inner());
        }
    }
    Ok(())
}
