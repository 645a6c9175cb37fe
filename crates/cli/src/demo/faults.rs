//! A bad day of the cloud that the vault stands for.

use super::{sql::Dba, stage::Stage};
use custody_proto::vault::{
    GetFaultProfileRequest, LoseRegionRequest, SetFaultProfileRequest, set_fault_profile_request::Profile,
};
use std::time::{Duration, Instant};

/// How long it lasts here.
const DAY: Duration = Duration::from_secs(8);
/// How long the region is away in it: less than the grace of a lease.
const AWAY_S: i64 = 3;

impl Stage {
    /// The vault throttles, fails, is slow, and its region goes away; the databases notice nothing.
    pub(crate) async fn bad_day(&self, dba: &Dba) -> anyhow::Result<()> {
        let mut client = self.session.faults("tester")?;
        let named = |name: &str| SetFaultProfileRequest { profile: Some(Profile::Named(name.to_owned())) };
        client.set_fault_profile(named("bad-day")).await?;
        let length = Some(prost_types::Duration { seconds: AWAY_S, nanos: 0 });
        client.lose_region(LoseRegionRequest { length }).await?;
        let lost = client.get_fault_profile(GetFaultProfileRequest {}).await?.into_inner().region_lost;
        self.check(
            lost,
            "by the profile `bad-day`: throttled, failing, slow; and its region is away for three seconds",
        )?;
        let (began, mut answers) = (Instant::now(), 0);
        while began.elapsed() < DAY {
            dba.history()?;
            answers += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        client.set_fault_profile(named("none")).await?;
        self.check(
            answers > 10,
            &format!("the database answered {answers} queries meanwhile, and failed none"),
        )
    }
}
