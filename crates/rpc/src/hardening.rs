//! Keeping a process's memory to itself: no core dumps, no swap.

use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{DumpableBehavior, Resource, Rlimit, geteuid, getrlimit, set_dumpable_behavior, setrlimit},
};

/// For a process that holds keys: it leaves no core dump, no other user's debugger attaches, and its pages are never written
/// to swap. Where the system does not let it lock its memory, the log says so and the process goes on: the machine should
/// have no swap, or encrypted swap, then.
pub fn protect_memory() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(e) =
        setrlimit(Resource::Core, none).and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable))
    {
        tracing::warn!(error = %e, "core dumps cannot be switched off");
    }
    // Under a finite limit a later allocation would fail where it would have been swapped.
    let unlimited = geteuid().is_root() || getrlimit(Resource::Memlock).current.is_none();
    // Pages are locked when they are first touched: what is only reserved takes no memory.
    let all = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    match unlimited.then(|| mlockall(all)) {
        Some(Ok(())) => {}
        Some(Err(e)) => tracing::warn!(error = %e, "memory is not locked: keys may be written to swap"),
        None => tracing::warn!(
            "memory is not locked, since its limit is finite (ulimit -l): keys may be written to swap"
        ),
    }
}
