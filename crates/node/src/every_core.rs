//! Work that every core takes part in.

use parking_lot::Mutex;
use std::{
    num::NonZero,
    sync::atomic::{AtomicBool, Ordering},
};

/// Runs `work` on a thread for each core until all have returned, and answers the first failure. `work` asks the
/// function that it is given whether another has failed, and ends then.
pub(crate) fn on_every_core<E: Send>(
    work: impl Fn(&dyn Fn() -> bool) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let (failed, failure) = (AtomicBool::new(false), Mutex::new(None));
    let run = || {
        if let Err(e) = work(&|| failed.load(Ordering::Acquire)) {
            failed.store(true, Ordering::Release);
            failure.lock().get_or_insert(e);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
    failure.into_inner().map_or(Ok(()), Err)
}
