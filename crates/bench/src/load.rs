//! Calls in a closed loop: how many, how long each took, and what a process had of the cores.

use custody_testkit::Deployment;
use std::time::{Duration, Instant};

/// What a load did.
pub(crate) struct Load {
    /// Sorted.
    times: Vec<Duration>,
    took: Duration,
}

impl Load {
    /// Runs `clients` callers for a time; `make` gives each its call.
    pub(crate) async fn run<C>(
        clients: usize,
        time: Duration,
        mut make: impl FnMut(usize) -> C,
    ) -> anyhow::Result<Self>
    where
        C: AsyncFnMut() -> anyhow::Result<()>,
    {
        let started = Instant::now();
        let until = started + time;
        // One task for each would need calls that are `Send`; on this task they are all in flight as well.
        let callers = (0..clients).map(|n| {
            let mut call = make(n);
            async move {
                let mut times = Vec::new();
                while Instant::now() < until {
                    let began = Instant::now();
                    call().await?;
                    times.push(began.elapsed());
                }
                anyhow::Ok(times)
            }
        });
        let mut times = Vec::new();
        for done in futures_util::future::join_all(callers).await {
            times.append(&mut done?);
        }
        Ok(Self::of(times, started.elapsed()))
    }

    /// Of calls that took so long each, and so long together.
    pub(crate) fn of(mut times: Vec<Duration>, took: Duration) -> Self {
        times.sort_unstable();
        Self { times, took }
    }

    /// Of several that ran at once.
    pub(crate) fn of_all(loads: Vec<Self>) -> Self {
        let took = loads.iter().map(|load| load.took).max().unwrap_or_default();
        Self::of(loads.into_iter().flat_map(|load| load.times).collect(), took)
    }

    pub(crate) fn calls(&self) -> usize {
        self.times.len()
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.times.len() as f64 / self.took.as_secs_f64()
    }

    pub(crate) fn quantile(&self, q: f64) -> Duration {
        let at = (self.times.len() as f64 * q) as usize;
        self.times.get(at.min(self.times.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

/// A process of a deployment.
pub(crate) struct Process {
    stat: String,
}

impl Process {
    pub(crate) fn of(deployment: &Deployment, service: &str) -> Self {
        Self::of_pid(deployment.pid(service).as_raw_nonzero())
    }

    pub(crate) fn of_pid(pid: impl std::fmt::Display) -> Self {
        Self { stat: format!("/proc/{pid}/stat") }
    }

    /// Time it has had of the cores, in user and kernel mode.
    pub(crate) fn cpu(&self) -> Duration {
        self.ticks(11, 2)
    }

    /// How long ago it began.
    pub(crate) fn age(&self) -> Duration {
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
        let uptime = uptime.split_whitespace().next().and_then(|s| s.parse().ok()).unwrap_or_default();
        Duration::from_secs_f64(uptime).saturating_sub(self.ticks(19, 1))
    }

    /// The sum of some of the fields of `stat` that count clock ticks (proc(5)), from the one after the program's name on.
    fn ticks(&self, first: usize, count: usize) -> Duration {
        let text = std::fs::read_to_string(&self.stat).unwrap_or_default();
        let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: u64 = fields.skip(first).take(count).filter_map(|f| f.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }
}
