//! kill -9 of the storage node under two loads at once, judged by others: fio's verifying load on a volume of its own,
//! and pgbench on a cluster with data checksums, looked over by `pg_amcheck`. Nothing acknowledged may be lost.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_proto::storage::{
    CreateVolumeRequest, Volume, WriteBlocksRequest, storage_node_client::StorageNodeClient,
};
use custody_testkit::{Deployment, database_tools, eventually, postgres_programs};
use serde_json::Value;
use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::task::block_in_place;

/// Kills. The slow suite has as many as a release needs; every change is tried with fewer.
const ROUNDS: usize = if cfg!(feature = "slow") { 200 } else { 8 };
/// Rounds between two looks of `pg_amcheck` at every page.
const ROUNDS_PER_CHECK: usize = if cfg!(feature = "slow") { 20 } else { 4 };
/// Each writes its own part, one block at a time: then fio knows of each block whether it was acknowledged.
const JOBS: u64 = 8;
const LONG: Duration = Duration::from_secs(90);

/// A program that runs beside us, ended with the test.
struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

struct Bench<'a> {
    deployment: &'a Deployment,
    dir: PathBuf,
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| {
        unreachable!("{:?} is missing ({e}); scripts/install tests installs it", command.get_program())
    });
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(said) } else { Err(said) }
}

fn postgres_program(name: &str) -> PathBuf {
    postgres_programs().unwrap().join(name)
}

impl Bench<'_> {
    fn fio(&self, round: usize) -> Command {
        let mut command = Command::new("fio");
        let uri =
            format!("nbd+unix:///raw?socket={}", self.deployment.dir().join("storage/nbd.sock").display());
        command
            .args(["--name=raw", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--size=32M", "--thread"])
            .args(["--offset_increment=32M", "--iodepth=1", "--verify=crc32c", "--verify_state_save=1"])
            .args(["--fsync=256", "--group_reporting", "--output-format=json"])
            .arg(format!("--numjobs={JOBS}"))
            // Other bytes each time: the last round's must not pass for this one's.
            .arg(format!("--randseed={}", round + 1))
            .arg(format!("--uri={uri}"))
            .arg(format!("--aux-path={}", self.dir.display()))
            .current_dir(&self.dir);
        command
    }

    /// Verifies what was acknowledged before the kill; answers how many blocks that were.
    fn verify(&self, round: usize) -> Result<u64, String> {
        let said = run(self.fio(round).args(["--verify_only=1", "--verify_state_load=1"]))?;
        let json =
            said.find('{').and_then(|at| serde_json::Deserializer::from_str(&said[at..]).into_iter().next());
        let report: Value = json.unwrap().map_err(|e| format!("{e}: {said}"))?;
        Ok(report.pointer("/jobs/0/read/total_ios").and_then(Value::as_u64).unwrap())
    }

    fn pgbench(&self, endpoint: &str, arguments: &[&str]) -> Command {
        let (host, port) = endpoint.rsplit_once(':').unwrap();
        let mut command = Command::new(postgres_program("pgbench"));
        command.args(["-h", host, "-p", port, "-U", "dba"]).args(arguments).arg("app");
        command.env("PGPASSWORD", "test-Password-1").current_dir(&self.dir);
        command
    }

    /// As the superuser, over the local socket.
    fn check_every_page(&self) {
        let (dir, port) = local_socket(self.deployment);
        let said = run(Command::new("runuser")
            .args(["-u", "postgres", "--"])
            .arg(postgres_program("pg_amcheck"))
            .arg("-h")
            .arg(dir)
            .args(["-p", &port, "--all", "--install-missing"])
            .args(["--heapallindexed", "--parent-check"])
            .current_dir("/"));
        said.unwrap_or_else(|e| unreachable!("pg_amcheck: {e}"));
    }
}

/// The directory of the coordinator's socket, and its port.
fn local_socket(deployment: &Deployment) -> (PathBuf, String) {
    let dir = deployment.dir().join("database/data/killed-coordinator/run");
    let names = fs::read_dir(&dir).unwrap().flatten().map(|f| f.file_name().to_string_lossy().into_owned());
    let port = names.filter_map(|n| n.strip_prefix(".s.PGSQL.")?.parse::<u16>().ok()).next().unwrap();
    (dir, port.to_string())
}

/// Where the cluster is served, once it is.
fn serving(deployment: &Deployment) -> String {
    eventually("the cluster is served", LONG, || {
        let seen = deployment.cli(&["cluster", "get", "clusters/killed"]).ok()?;
        let at = seen.pointer("/nodes/0/endpoint")?.as_str().filter(|e| !e.is_empty())?.to_owned();
        deployment.sql(&at, "SELECT 1").is_ok().then_some(at)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fio_and_pgbench_were_told_is_written_stays() {
    database_tools().expect("scripts/test installs what this needs");
    let deployment = block_in_place(Deployment::start);
    let volume = Volume {
        size_bytes: i64::try_from(JOBS * (32 << 20)).unwrap(),
        key: "vaults/platform/keys/service-managed".into(),
        managed_identity: "managedIdentities/platform".into(),
        ..Volume::default()
    };
    let request =
        CreateVolumeRequest { volume_id: "raw".into(), volume: Some(volume), source_backup: String::new() };
    StorageNodeClient::new(deployment.channel("storage", "workload:control").unwrap())
        .create_volume(request)
        .await
        .unwrap();
    let bench = Bench { deployment: &deployment, dir: deployment.dir().join("fio") };
    fs::create_dir_all(&bench.dir).unwrap();
    let (key, identity, _) = block_in_place(|| deployment.key_and_identity("killed"));
    let first = block_in_place(|| deployment.cluster("killed", &key, &identity, 0));
    run(&mut bench.pgbench(&first, &["-i", "-q", "-s", "2"])).unwrap();

    let (mut blocks, mut acknowledged) = (0, 0u64);
    for round in 0..ROUNDS {
        let endpoint = block_in_place(|| serving(&deployment));
        // pgbench tells each acknowledged transaction in a file, about a hundred at a time.
        for file in fs::read_dir(&bench.dir).unwrap().flatten() {
            fs::remove_file(file.path()).unwrap();
        }
        let mut load = bench.pgbench(&endpoint, &["-n", "-c", "4", "-T", "600", "-l", "--log-prefix=told"]);
        let told = fs::File::create(bench.dir.join("pgbench.out")).unwrap();
        let mut database = Load(load.stdout(told).stderr(Stdio::null()).spawn().unwrap());
        block_in_place(|| {
            let size = |prefix: &str| {
                let files = fs::read_dir(&bench.dir).unwrap().flatten();
                let of = files.filter(|f| f.file_name().to_string_lossy().starts_with(prefix));
                of.map(|f| f.metadata().map_or(0, |m| m.len())).sum::<u64>()
            };
            eventually("pgbench is under way", LONG, || {
                (size("told") > 4096 * (round as u64 % 5 + 1)).then_some(())
            });
            let mut command = bench.fio(round);
            command.args(["--do_verify=0"]).stdout(Stdio::null()).stderr(Stdio::null());
            let mut writing = Load(command.spawn().unwrap());
            // fio tells nothing while it runs; the volume's file does.
            let volume = deployment.dir().join("storage/data/raw.volume");
            let changed = || fs::metadata(&volume).unwrap().modified().unwrap();
            let (mut last, mut changes) = (changed(), 0);
            eventually("fio is under way", LONG, || {
                changes += usize::from(std::mem::replace(&mut last, changed()) < last);
                (changes > 20).then_some(())
            });
            deployment.kill("storage");
            writing.0.wait().unwrap();
            database.0.wait().unwrap();
        });
        let verified = block_in_place(|| {
            eventually("the volume is open again", LONG, || match bench.verify(round) {
                Ok(blocks) => Some(blocks),
                // Not yet served: everything else is a loss.
                Err(said) if !said.contains("verify:") && said.contains("nbd_connect") => None,
                Err(said) => unreachable!("round {round}: {said}"),
            })
        });
        blocks += verified;

        let told = fs::read_to_string(bench.dir.join("pgbench.out")).unwrap();
        let line = told.lines().find_map(|l| l.strip_prefix("number of transactions actually processed: "));
        acknowledged += line.unwrap().split('/').next().unwrap().trim().parse::<u64>().unwrap();
        let endpoint = block_in_place(|| serving(&deployment));
        let balances =
            "SELECT count(*), sum(delta), (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance)
            FROM pgbench_tellers), (SELECT sum(bbalance) FROM pgbench_branches) FROM pgbench_history";
        let seen = deployment.sql(&endpoint, balances).unwrap();
        let seen: Vec<i64> = seen.split('|').map(|n| n.parse().unwrap()).collect();
        let [there, delta, accounts, tellers, branches] = seen.try_into().unwrap();
        assert!(
            there.unsigned_abs() >= acknowledged,
            "round {round}: {acknowledged} acknowledged, {there} are there"
        );
        assert_eq!([delta; 3], [accounts, tellers, branches], "round {round}: half a transaction");
        if round % ROUNDS_PER_CHECK == ROUNDS_PER_CHECK - 1 {
            block_in_place(|| bench.check_every_page());
        }
    }
    assert!(blocks > ROUNDS as u64 * JOBS && acknowledged > ROUNDS as u64 * 50);

    // The judge can fail: one of the blocks that it read last is another now.
    let mut client = StorageNodeClient::new(deployment.channel("storage", "workload:database").unwrap());
    let parts: Vec<_> = (0..JOBS * 32)
        .map(|mib| WriteBlocksRequest {
            name: "volumes/raw".into(),
            offset: mib << 20,
            data: vec![7; 1 << 20],
            flush: false,
        })
        .collect();
    client.write_blocks(tokio_stream::iter(parts)).await.unwrap();
    let said = block_in_place(|| bench.verify(ROUNDS - 1)).unwrap_err();
    assert!(said.contains("verify"), "{said}");
}
