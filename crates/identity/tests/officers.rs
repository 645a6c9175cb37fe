//! Who makes an officer: two of them, as for whatever cannot be undone.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_audit::{FileLimits, Journal};
use custody_identity::{Bootstrap, IdentityError, Registry, Signer};
use custody_store::Store;
use custody_types::{ApprovalState, Caller, Clock, Duty, SystemClock, UnixMillis};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

#[derive(Clone)]
struct TestClock(Arc<AtomicU64>);

impl Clock for TestClock {
    fn now(&self) -> UnixMillis {
        UnixMillis::from_millis(self.0.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }
}

fn open(dir: &Path, clock: &TestClock, officers: &[&str]) -> Registry {
    let store = Store::open(&dir.join("store")).unwrap();
    let journal = Journal::open(&dir.join("audit"), Arc::new(SystemClock), FileLimits::default()).unwrap();
    let signer = Signer::open(dir, "https://identity.test", Duration::from_secs(60)).unwrap();
    let duty = Duty::SecurityOfficer;
    let bootstrap: Vec<Bootstrap> = officers
        .iter()
        .map(|id| Bootstrap { id: (*id).to_owned(), duty, secret_sha256: "00".repeat(32) })
        .collect();
    Registry::open(store, signer, Arc::new(journal), Arc::new(clock.clone()), &bootstrap, &[], &[]).unwrap()
}

fn clock() -> TestClock {
    TestClock(Arc::new(AtomicU64::new(SystemClock.now().as_millis())))
}

fn officer(id: &str) -> Caller {
    Caller {
        principal: format!("principals/{id}"),
        duty: Duty::SecurityOfficer,
        token_id: String::new(),
        address: String::new(),
    }
}

/// What an act asks for.
fn asked<T: std::fmt::Debug>(done: Result<T, IdentityError>) -> String {
    let refused = done.unwrap_err();
    assert_eq!(refused.reason(), "APPROVAL_REQUIRED", "{refused}");
    let IdentityError::ApprovalRequired { approval, .. } = refused else { unreachable!("by its reason") };
    approval
}

#[test]
fn an_officer_is_made_by_two() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let registry = open(dir.path(), &clock, &["a", "b"]);
    let (a, b) = (officer("a"), officer("b"));
    let make = |who: &Caller, id: &str| registry.create_principal(who, id, "security_officer").map(drop);
    let request = asked(make(&a, "puppet"));
    assert_eq!(asked(make(&a, "puppet")), request, "the same request");
    assert_eq!(registry.get_principal("principals/puppet").unwrap_err().reason(), "NOT_FOUND");
    let own = registry.decide_approval(&a, &request, true).unwrap_err();
    assert_eq!(own.reason(), "APPROVAL_NOT_OPEN", "{own}");
    let (_, state) = registry.decide_approval(&b, &request, true).unwrap();
    assert_eq!(state, ApprovalState::Approved);
    // It is for who asked, and for what was asked.
    asked(make(&b, "puppet"));
    asked(make(&a, "another"));
    make(&a, "puppet").unwrap();
    let all = registry.list_approvals().unwrap();
    let (spent, state) = all.iter().find(|(approval, _)| approval.name == request).unwrap();
    assert_eq!((*state, spent.action.as_str()), (ApprovalState::Used, "make principals/puppet an officer"));
    assert_eq!(make(&a, "puppet").unwrap_err().reason(), "ALREADY_EXISTS");
    // Who is no officer is made by one.
    for (n, duty) in ["system_administrator", "auditor", "workload"].into_iter().enumerate() {
        registry.create_principal(&a, &format!("other-{n}"), duty).unwrap();
    }
}

#[test]
fn an_officer_is_removed_by_two_or_by_itself() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let registry = open(dir.path(), &clock, &["a", "b", "c"]);
    let (a, b, c) = (officer("a"), officer("b"), officer("c"));
    let request = asked(registry.delete_principal(&a, "principals/b"));
    registry.decide_approval(&c, &request, true).unwrap();
    registry.delete_principal(&a, "principals/b").unwrap();
    assert_eq!(registry.delete_principal(&b, "principals/b").unwrap_err().reason(), "NOT_FOUND");
    // Alone it cannot become the only one, who would need nobody.
    asked(registry.delete_principal(&a, "principals/c"));
    registry.delete_principal(&c, "principals/c").unwrap();
    // The only one left makes the next alone: nobody could agree.
    registry.create_principal(&a, "d", "security_officer").unwrap();
    asked(registry.create_principal(&a, "e", "security_officer"));
}

#[test]
fn a_request_is_refused_runs_out_and_is_kept_over_a_restart() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let registry = open(dir.path(), &clock, &["a", "b"]);
    let (a, b) = (officer("a"), officer("b"));
    let make = |registry: &Registry| registry.create_principal(&a, "c", "security_officer").map(drop);
    let refused = asked(make(&registry));
    registry.decide_approval(&b, &refused, false).unwrap();
    let late = asked(make(&registry));
    assert_ne!(late, refused);
    clock.0.fetch_add(3_600_000, Ordering::SeqCst);
    assert_eq!(registry.decide_approval(&b, &late, true).unwrap_err().reason(), "APPROVAL_NOT_OPEN");
    let kept = asked(make(&registry));
    registry.decide_approval(&b, &kept, true).unwrap();
    drop(registry);
    let registry = open(dir.path(), &clock, &["a", "b"]);
    make(&registry).unwrap();
    let missing = format!("approvals/{}", "0".repeat(32));
    assert_eq!(registry.decide_approval(&b, &missing, true).unwrap_err().reason(), "NOT_FOUND");
    assert_eq!(registry.decide_approval(&b, "vaults/v", true).unwrap_err().reason(), "INVALID_FIELD");
    // What was over long ago is forgotten with the next request.
    clock.0.fetch_add(32 * 86_400_000, Ordering::SeqCst);
    let next = asked(registry.create_principal(&a, "d", "security_officer"));
    let left: Vec<String> = registry.list_approvals().unwrap().into_iter().map(|(a, _)| a.name).collect();
    assert_eq!(left, [next]);
}

#[test]
fn two_who_take_one_name_at_once_do_not_both_have_it() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let registry = open(dir.path(), &clock, &["a"]);
    for n in 0..20 {
        let made = std::thread::scope(|threads| {
            let makers = [(); 4].map(|()| {
                threads
                    .spawn(|| registry.create_principal(&officer("a"), &format!("p{n}"), "workload").is_ok())
            });
            makers.map(|maker| usize::from(maker.join().unwrap())).iter().sum::<usize>()
        });
        assert_eq!(made, 1);
    }
}
