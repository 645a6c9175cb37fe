//! What a process that holds keys keeps to itself.

use custody_testkit::Deployment;

#[tokio::test(flavor = "multi_thread")]
async fn processes_with_keys_leave_no_core_dump_and_are_not_swapped() {
    let deployment = Deployment::start();
    for service in ["vault", "identity", "storage"] {
        let pid = deployment.pid(service).as_raw_nonzero();
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap();
        assert!(core.split_whitespace().nth(4) == Some("0"), "{service}: {core}");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let of = |name: &str| -> u64 {
            let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse().unwrap()
        };
        let log = std::fs::read_to_string(deployment.dir().join(format!("logs/{service}.log"))).unwrap();
        // Where the system does not let it, the process says so.
        assert!(
            of("VmLck:") > of("VmRSS:") / 2 || log.contains("memory is not locked"),
            "{service}: {status}"
        );
        assert!(
            of("VmRSS:") < 100 * 1024,
            "{service}: locking does not fill what is only reserved: {status}"
        );
    }
}
