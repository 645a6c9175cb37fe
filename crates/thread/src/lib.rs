//! How the system schedules a thread among others: its niceness and its slice. `sched_setattr(2)` is in no library, so this crate
//! makes the call; with `custody-multi-buffer` it is the only one with `unsafe` code.

use std::{io, time::Duration};

/// `struct sched_attr` in its first version.
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    /// Of an ordinary thread its slice, since Linux 6.12; not looked at before.
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// What of the system's time a thread gets beside others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// By its niceness: of 10, a tenth of what an ordinary thread gets.
    Niceness(i32),
    /// What nobody else wants: beside one ordinary thread a three-hundredth (`SCHED_IDLE`).
    Rest,
}

/// Lets the calling thread give way to others: it has this share, and where it has run for `slice` since it was last chosen, it may be
/// interrupted by any that wakes up. The system's own slice is some milliseconds.
///
/// # Errors
/// The system does not allow it: a process without privileges does not get back from [`Share::Rest`].
pub fn give_way(share: Share, slice: Duration) -> io::Result<()> {
    let (policy, nice) = match share {
        Share::Niceness(niceness) => (libc::SCHED_OTHER, niceness),
        Share::Rest => (libc::SCHED_IDLE, 0),
    };
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: policy as u32,
        flags: 0,
        nice,
        priority: 0,
        runtime: slice.as_nanos() as u64,
        deadline: 0,
        period: 0,
    };
    // SAFETY: the call reads as many bytes as `size` says, which are there until it returns, and changes nothing in this process's
    // memory. 0 is the calling thread.
    #[expect(unsafe_code, reason = "a system call that no library offers")]
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field of what the system tells of the calling thread.
    fn told(field: &str) -> String {
        let all = std::fs::read_to_string("/proc/thread-self/sched").unwrap();
        let line = all.lines().find(|line| line.starts_with(field));
        line.and_then(|line| line.rsplit(':').next()).unwrap_or_default().trim().to_owned()
    }

    #[test]
    fn a_thread_gives_way_and_no_other_does() {
        let before = told("prio");
        let prio = std::thread::spawn(|| {
            give_way(Share::Niceness(7), Duration::from_micros(100)).unwrap();
            (told("prio"), told("se.slice"))
        });
        let (prio, slice) = prio.join().unwrap();
        assert_eq!(prio, "127", "120 and the niceness");
        // Told since the version that looks at it.
        assert!(slice.is_empty() || slice == "100000", "{slice}");
        assert_eq!(told("prio"), before);
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_or_bounded() {
        std::thread::spawn(|| {
            give_way(Share::Niceness(99), Duration::from_micros(100)).unwrap();
            assert_eq!(told("prio"), "139");
        })
        .join()
        .unwrap();
    }

    #[test]
    fn the_rest_is_a_policy_of_its_own_and_back_is_a_privilege() {
        std::thread::spawn(|| {
            give_way(Share::Rest, Duration::from_micros(100)).unwrap();
            assert_eq!(told("policy"), libc::SCHED_IDLE.to_string());
            match give_way(Share::Niceness(10), Duration::from_micros(100)) {
                Ok(()) => assert_eq!((told("policy"), told("prio")), ("0".to_owned(), "130".to_owned())),
                Err(e) => assert_eq!(e.kind(), io::ErrorKind::PermissionDenied),
            }
        })
        .join()
        .unwrap();
    }
}
