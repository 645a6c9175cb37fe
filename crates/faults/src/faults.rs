//! When what goes wrong.

use crate::{Profile, Span, Weight, latency::Chances, throttle::Windows};
use custody_types::{Clock, UnixMillis};
use parking_lot::Mutex;
use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

/// What becomes of a call before it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// It is answered, after this time.
    After(Duration),
    /// It fails after this time, as if the service itself had failed.
    Fails(Duration),
    /// Nobody answers, as long as the region is away.
    Lost,
}

/// A change that takes its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// A key is being deleted.
    Delete,
    /// A deleted key is being recovered.
    Recover,
}

/// Whether the region is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// It is there, but for what the profile's outages say.
    There,
    /// It is away until this moment of the monotonic clock; for good without one.
    Away(Option<Duration>),
}

struct State {
    profile: Profile,
    /// When the profile was set: what outages are counted from.
    since: Duration,
    set_time: UnixMillis,
    chances: Chances,
    windows: Windows,
    /// The burst that is under way or next: from and to.
    burst: (Duration, Duration),
    region: Region,
    /// Until when changes of keys are under way.
    changing: HashMap<(String, Change), Duration>,
    /// Until when a new version is not found by all, by the key's name.
    lagging: HashMap<String, Duration>,
    /// What an operation on a key weighs.
    weights: HashMap<String, Weight>,
}

/// A profile at work.
pub struct Faults {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faults({})", self.state.lock().profile.name)
    }
}

/// Entries of changes after which those that are over are forgotten.
const CHANGES_KEPT: usize = 1000;

impl State {
    fn draw(&mut self, span: Option<Span>) -> Option<Duration> {
        let span = span?;
        let draw = self.chances.uniform();
        Some(span.drawn(draw)).filter(|d| !d.is_zero())
    }

    fn is_away(&mut self, now: Duration) -> bool {
        match self.region {
            Region::Away(until) if until.is_none_or(|until| now < until) => return true,
            Region::Away(_) => self.region = Region::There,
            Region::There => {}
        }
        // At the end of each round: a vault that has just been given the profile is there.
        self.profile.outages.is_some_and(|o| {
            let into = now.saturating_sub(self.since).as_millis() % u128::from(o.every_ms.max(1));
            into >= u128::from(o.every_ms - o.for_ms)
        })
    }

    /// Whether a burst is under way; draws the next one when it is over.
    fn is_bursting(&mut self, now: Duration) -> Option<f64> {
        let bursts = self.profile.bursts?;
        while self.burst.1 <= now {
            let pause = self.chances.exponential(Duration::from_millis(bursts.every_ms));
            let from = self.burst.1.max(self.since) + pause;
            self.burst = (from, from + Duration::from_millis(bursts.for_ms.max(1)));
        }
        (self.burst.0 <= now).then_some(bursts.share)
    }
}

impl Faults {
    /// Begins with a profile.
    #[must_use]
    pub fn new(profile: Profile, clock: Arc<dyn Clock>) -> Self {
        let state = begun(profile, clock.as_ref());
        Self { state: Mutex::new(state), clock }
    }

    /// Changes to another profile. What is under way by the one before goes on to its end; the region is there.
    pub fn set(&self, profile: Profile) {
        let mut state = self.state.lock();
        let (changing, lagging) = (std::mem::take(&mut state.changing), std::mem::take(&mut state.lagging));
        let weights = std::mem::take(&mut state.weights);
        *state = State { changing, lagging, weights, ..begun(profile, self.clock.as_ref()) };
    }

    /// The profile at work.
    #[must_use]
    pub fn profile(&self) -> Profile {
        self.state.lock().profile.clone()
    }

    /// When it was put to work.
    #[must_use]
    pub fn set_time(&self) -> UnixMillis {
        self.state.lock().set_time
    }

    /// Takes the region away, for a time or until it is brought back.
    pub fn lose_region(&self, duration: Option<Duration>) {
        let until = duration.map(|d| self.clock.monotonic() + d);
        self.state.lock().region = Region::Away(until);
    }

    /// Brings the region back.
    pub fn restore_region(&self) {
        self.state.lock().region = Region::There;
    }

    /// Whether the region is away.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.state.lock().is_away(self.clock.monotonic())
    }

    /// Sets how far the clock of a vault is ahead.
    pub fn shift_clock(&self, vault: &str, shift_ms: i64) {
        self.state.lock().profile.clock_shift_ms.insert(vault.to_owned(), shift_ms);
    }

    /// What becomes of a call.
    #[must_use]
    pub fn edge(&self) -> Edge {
        let now = self.clock.monotonic();
        let mut state = self.state.lock();
        if state.is_away(now) {
            return Edge::Lost;
        }
        let takes = match state.profile.latency {
            Some(latency) => latency.drawn(state.chances.normal()),
            None => Duration::ZERO,
        };
        let share = state.is_bursting(now);
        let fails = share.is_some_and(|share| state.chances.uniform() < share);
        if fails { Edge::Fails(takes) } else { Edge::After(takes) }
    }

    /// Notes what an operation on a key weighs.
    pub fn weigh(&self, key: &str, weight: Weight) {
        self.state.lock().weights.insert(key.to_owned(), weight);
    }

    /// Notes where a key that is to be made shall be, unless one of that name is known.
    pub fn weigh_new(&self, key: &str, hsm: bool) {
        self.state.lock().weights.entry(key.to_owned()).or_insert(Weight::Key { hsm, rsa_bits: 0 });
    }

    /// Takes room in a vault for an operation on a key, which makes one where `makes` is set, or on none; or answers how long
    /// it is until there is some.
    ///
    /// # Errors
    /// The time until there is room.
    pub fn admit(&self, vault: &str, key: Option<&str>, makes: bool) -> Result<(), Duration> {
        let now = self.clock.monotonic();
        let mut state = self.state.lock();
        let State { profile, windows, weights, .. } = &mut *state;
        let software = Weight::Key { hsm: false, rsa_bits: 0 };
        let weight = match (key.map(|key| weights.get(key).copied().unwrap_or(software)), makes) {
            (Some(Weight::Key { hsm, .. }), true) => Weight::Create { hsm },
            (Some(weight), _) => weight,
            (None, _) => Weight::Other,
        };
        profile.throttles.as_ref().map_or(Ok(()), |throttles| windows.take(throttles, vault, weight, now))
    }

    /// How long a change of role assignments takes to count; none where it counts at once.
    #[must_use]
    pub fn role_delay(&self) -> Option<Duration> {
        let mut state = self.state.lock();
        let span = state.profile.role_delay;
        state.draw(span)
    }

    /// A change of a key begins.
    pub fn begin(&self, key: &str, change: Change) {
        let now = self.clock.monotonic();
        let mut state = self.state.lock();
        let span = match change {
            Change::Delete => state.profile.delete_delay,
            Change::Recover => state.profile.recover_delay,
        };
        if let Some(takes) = state.draw(span) {
            if state.changing.len() >= CHANGES_KEPT {
                state.changing.retain(|_, until| *until > now);
            }
            state.changing.insert((key.to_owned(), change), now + takes);
        }
    }

    /// Whether a change of a key is still under way.
    #[must_use]
    pub fn is_changing(&self, key: &str, change: Change) -> bool {
        let now = self.clock.monotonic();
        self.state.lock().changing.get(&(key.to_owned(), change)).is_some_and(|until| now < *until)
    }

    /// A key has a new version.
    pub fn rotated(&self, key: &str) {
        let now = self.clock.monotonic();
        let mut state = self.state.lock();
        let span = state.profile.version_lag;
        if let Some(takes) = state.draw(span) {
            if state.lagging.len() >= CHANGES_KEPT {
                state.lagging.retain(|_, until| *until > now);
            }
            state.lagging.insert(key.to_owned(), now + takes);
        }
    }

    /// Whether this call meets a copy of the vault that does not know a key's newest version yet: every second one, while it lags.
    #[must_use]
    pub fn misses_newest(&self, key: &str) -> bool {
        let now = self.clock.monotonic();
        let mut state = self.state.lock();
        let lags = state.lagging.get(key).is_some_and(|until| now < *until);
        lags && state.chances.uniform() < 0.5
    }

    /// How old a token may be.
    #[must_use]
    pub fn token_age(&self) -> Option<Duration> {
        self.state.lock().profile.token_age_ms.map(Duration::from_millis)
    }

    /// The time as the vault of this id has it.
    #[must_use]
    pub fn time_of(&self, vault: &str, now: UnixMillis) -> UnixMillis {
        let shift = self.state.lock().profile.clock_shift_ms.get(vault).copied().unwrap_or_default();
        UnixMillis::from_millis(now.as_millis().saturating_add_signed(shift))
    }
}

fn begun(profile: Profile, clock: &dyn Clock) -> State {
    let now = clock.monotonic();
    State {
        set_time: clock.now(),
        chances: Chances::new(profile.seed),
        profile,
        since: now,
        windows: Windows::default(),
        burst: (now, now),
        region: Region::There,
        changing: HashMap::new(),
        lagging: HashMap::new(),
        weights: HashMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Held(AtomicU64);

    impl Clock for Held {
        fn now(&self) -> UnixMillis {
            UnixMillis::from_millis(self.0.load(Ordering::Relaxed))
        }

        fn monotonic(&self) -> Duration {
            Duration::from_millis(self.0.load(Ordering::Relaxed))
        }
    }

    fn held(text: &str) -> (Faults, Arc<Held>) {
        let clock = Arc::new(Held(AtomicU64::new(5000)));
        (Faults::new(Profile::parse(text).unwrap(), clock.clone()), clock)
    }

    #[test]
    fn no_profile_does_nothing() {
        let (faults, _) = held("");
        for _ in 0..100 {
            assert_eq!(faults.edge(), Edge::After(Duration::ZERO));
            faults.admit("v", Some("k"), true).unwrap();
        }
        faults.begin("k", Change::Delete);
        faults.rotated("k");
        assert!(!faults.is_changing("k", Change::Delete) && !faults.misses_newest("k"));
        assert!(faults.role_delay().is_none() && faults.token_age().is_none());
    }

    #[test]
    fn bursts_come_and_go_and_fail_their_share() {
        let (faults, clock) = held("bursts = { every_ms = 1000, for_ms = 500, share = 0.5 }");
        let (mut failed, mut bursting, mut was) = (0, 0, false);
        for _ in 0..30_000 {
            clock.0.fetch_add(1, Ordering::Relaxed);
            let is = faults.state.lock().is_bursting(clock.monotonic()).is_some();
            bursting += u32::from(is && !was);
            was = is;
            failed += u32::from(matches!(faults.edge(), Edge::Fails(_)));
        }
        // Some 20 of 500 ms in 30 s, and half of the calls in them.
        assert!((12..=28).contains(&bursting), "{bursting}");
        assert!((3000..=7000).contains(&failed), "{failed}");
    }

    #[test]
    fn a_region_goes_and_comes_by_order_and_by_profile() {
        let (faults, clock) = held("outages = { every_ms = 100, for_ms = 20 }");
        let pass = |ms| _ = clock.0.fetch_add(ms, Ordering::Relaxed);
        assert_ne!(faults.edge(), Edge::Lost);
        pass(79);
        assert_ne!(faults.edge(), Edge::Lost);
        pass(1);
        assert_eq!(faults.edge(), Edge::Lost);
        pass(20);
        assert_ne!(faults.edge(), Edge::Lost);
        faults.lose_region(Some(Duration::from_millis(30)));
        assert_eq!(faults.edge(), Edge::Lost);
        pass(30);
        assert_ne!(faults.edge(), Edge::Lost);
        faults.lose_region(None);
        pass(10_000_000);
        assert!(faults.is_away());
        faults.restore_region();
        assert!(!faults.is_away());
    }

    #[test]
    fn changes_take_their_time_and_new_versions_are_missed_by_some() {
        let (faults, clock) = held(
            "delete_delay = { from_ms = 10, to_ms = 10 }\nversion_lag = { from_ms = 50, to_ms = 50 }\nclock_shift_ms = { v = -1000 }",
        );
        faults.begin("k", Change::Delete);
        assert!(faults.is_changing("k", Change::Delete) && !faults.is_changing("k", Change::Recover));
        faults.rotated("k");
        let missed = (0..1000).filter(|_| faults.misses_newest("k")).count();
        assert!((400..600).contains(&missed), "{missed}");
        clock.0.fetch_add(50, Ordering::Relaxed);
        assert!(!faults.is_changing("k", Change::Delete) && !faults.misses_newest("k"));
        assert_eq!(faults.time_of("v", clock.now()).as_millis(), 4050);
        assert_eq!(faults.time_of("other", clock.now()).as_millis(), 5050);
    }
}
