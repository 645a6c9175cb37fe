//! A vault over a directory of its own, with a clock that tests hold.

use custody_audit::{FileLimits, Journal};
use custody_store::Store;
use custody_types::{Caller, Clock, Duty, KeyType, RsaSize, SystemClock, UnixMillis};
use custody_vault::*;
use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// The wall clock and the monotonic one, in milliseconds.
#[derive(Clone)]
pub(crate) struct TestClock(pub(crate) Arc<AtomicU64>, pub(crate) Arc<AtomicU64>);

impl Clock for TestClock {
    fn now(&self) -> UnixMillis {
        UnixMillis::from_millis(self.0.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.1.load(Ordering::SeqCst))
    }
}

impl TestClock {
    /// Time passes, as it does.
    pub(crate) fn pass(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
        self.1.fetch_add(ms, Ordering::SeqCst);
    }
}

pub(crate) struct Rig {
    pub(crate) vault: Vault,
    pub(crate) journal: Arc<Journal>,
    pub(crate) clock: TestClock,
    pub(crate) events: Arc<Mutex<Vec<EventType>>>,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) fn open(
    dir: &Path,
    clock: &TestClock,
    events: Arc<Mutex<Vec<EventType>>>,
) -> (Vault, Arc<Journal>) {
    let journal =
        Arc::new(Journal::open(&dir.join("audit"), Arc::new(SystemClock), FileLimits::default()).unwrap());
    let seal =
        SealSettings { key_file: dir.join("root.key"), anchor: dir.join("anchor"), accept_commit: None };
    let store = Store::open(&dir.join("store")).unwrap();
    // Nothing is in memory at the start: each test brings in what it asks for, beside the threads that bring in all.
    let options = VaultOptions {
        authority: Some(crate::holders::authority()),
        start_time: Some(Duration::ZERO),
        ..VaultOptions::default()
    };
    let tell = move |e: Event| events.lock().unwrap().push(e.kind);
    (Vault::open(store, seal, journal.clone(), Arc::new(clock.clone()), options, tell).unwrap(), journal)
}

pub(crate) fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock(Arc::new(AtomicU64::new(SystemClock.now().as_millis())), Arc::default());
    let events = Arc::default();
    let (vault, journal) = open(dir.path(), &clock, Arc::clone(&events));
    Rig { vault, journal, clock, events, dir }
}

/// What a task would have: other threads answer it.
pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        if let std::task::Poll::Ready(done) = future.as_mut().poll(&mut context) {
            return done;
        }
        std::thread::yield_now();
    }
}

pub(crate) fn call(principal: &str, duty: Duty) -> Call {
    let caller =
        Caller { principal: principal.into(), duty, token_id: "t".into(), address: "127.0.0.1".into() };
    Call::new(caller, format!("{:?}", std::time::Instant::now()))
}

pub(crate) fn officer() -> Call {
    call("principals/officer", Duty::SecurityOfficer)
}

pub(crate) fn node() -> Call {
    call("managedIdentities/cluster", Duty::Workload)
}

pub(crate) fn grant(vault: &Vault) -> String {
    let new = NewAssignment {
        principal: "managedIdentities/cluster".into(),
        role: "Key Vault Crypto Service Encryption User".into(),
        scope: "vaults/v/keys/k".into(),
        ..NewAssignment::default()
    };
    vault.create_role_assignment(&officer(), "vaults/v", new).unwrap().name
}

/// One officer is enough: tests of dual control make their own.
pub(crate) fn parameters(retention_days: u32, purge_protection: bool) -> VaultParameters {
    VaultParameters { retention_days, purge_protection, approvals: ApprovalPolicy::OneOfficer }
}

pub(crate) fn rsa() -> Material {
    Material::Generate(KeyType::Rsa(RsaSize::Bits2048))
}

pub(crate) fn with_key(rig: &Rig) -> String {
    rig.vault.create_vault(&officer(), "v", parameters(7, true)).unwrap();
    rig.vault
        .create_key(&officer(), "vaults/v", "k", rsa(), Particulars::default(), IfExists::Refuse)
        .unwrap();
    grant(&rig.vault)
}

/// An assignment that lets a workload use keys in every way.
pub(crate) fn user(rig: &Rig) -> Call {
    let new = NewAssignment {
        principal: "principals/app".into(),
        role: "Key Vault Crypto User".into(),
        scope: "vaults/v".into(),
        ..NewAssignment::default()
    };
    rig.vault.create_role_assignment(&officer(), "vaults/v", new).unwrap();
    call("principals/app", Duty::Workload)
}
