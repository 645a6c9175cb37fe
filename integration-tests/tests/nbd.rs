//! The NBD server, judged by QEMU's and libnbd's clients.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_proto::storage::{
    CreateVolumeRequest, ListVolumesRequest, Volume, storage_node_client::StorageNodeClient,
};
use custody_testkit::Deployment;
use std::{fs, os::unix::fs::symlink, path::PathBuf, process::Command};

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|e| unreachable!("{program} is missing ({e}); scripts/test installs it"));
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(said) } else { Err(said) }
}

async fn volume(deployment: &Deployment, id: &str) {
    let volume = Volume {
        size_bytes: 64 << 20,
        key: "vaults/platform/keys/service-managed".into(),
        managed_identity: "managedIdentities/platform".into(),
        ..Volume::default()
    };
    let request =
        CreateVolumeRequest { volume_id: id.into(), volume: Some(volume), source_backup: String::new() };
    StorageNodeClient::new(deployment.channel("storage", "workload:control").unwrap())
        .create_volume(request)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_reads_what_qemu_wrote_also_after_a_restart() {
    let deployment = Deployment::start();
    volume(&deployment, "oracle").await;
    let uri =
        |d: &Deployment| format!("nbd+unix:///oracle?socket={}", d.dir().join("storage/nbd.sock").display());
    let io = |d: &Deployment, commands: &[&str]| {
        let mut arguments = vec!["-f".to_owned(), "raw".to_owned()];
        for command in commands {
            arguments.extend(["-c".to_owned(), (*command).to_owned()]);
        }
        arguments.push(uri(d));
        run("qemu-io", &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let written = io(
        &deployment,
        &[
            "write -P 0x5a 0 1M",
            "write -P 0xa5 1048000 5000",
            "write -z 2M 64k",
            "write -P 7 20M 4k",
            "discard 20M 4k",
            "write -P 9 -f 30M 512",
            "flush",
        ],
    )
    .unwrap();
    assert!(!written.contains("failed"), "{written}");
    let expected = [
        "read -P 0x5a 0 1048000",
        "read -P 0xa5 1048000 5000",
        "read -P 0 2M 64k",
        "read -P 0 20M 4k",
        "read -P 9 30M 512",
        "read -P 0 31457792 3584",
    ];
    let read = io(&deployment, &expected).unwrap();
    assert!(!read.contains("failed") && !read.contains("Pattern"), "{read}");
    let control = io(&deployment, &["read -P 0x11 0 4096"]);
    assert!(
        control.is_err() || control.unwrap().contains("Pattern verification failed"),
        "the oracle can fail"
    );
    tokio::task::block_in_place(|| deployment.kill("storage"));
    let read = tokio::task::block_in_place(|| {
        custody_testkit::eventually("the volume is open again", std::time::Duration::from_secs(10), || {
            io(&deployment, &expected).ok()
        })
    });
    assert!(!read.contains("Pattern"), "{read}");
    let info = run("nbdinfo", &[&uri(&deployment)]).unwrap();
    for line in [
        "export-size: 67108864",
        "can_flush: true",
        "can_fua: true",
        "can_trim: true",
        "can_zero: true",
        "can_multi_conn: true",
        "can_cache: true",
        "can_fast_zero: true",
        "base:allocation",
        "protocol: newstyle-fixed",
    ] {
        assert!(info.contains(line), "{line} is missing: {info}");
    }
    // What holds data, as libnbd and QEMU see it: 1 MiB and a little, a block that was discarded again, and half a block.
    let map: serde_json::Value =
        serde_json::from_str(&run("nbdinfo", &["--map", "--json", &uri(&deployment)]).unwrap()).unwrap();
    let ranges: Vec<_> = map
        .as_array()
        .unwrap()
        .iter()
        .map(|r| (r["offset"].as_u64().unwrap(), r["length"].as_u64().unwrap(), r["type"].as_u64().unwrap()))
        .collect();
    let (data, last) = ((1 << 20) + 8192, 30 << 20);
    let expected =
        [(0, data, 0), (data, last - data, 3), (last, 4096, 0), (last + 4096, (64 << 20) - last - 4096, 3)];
    assert_eq!(ranges, expected);
    let image = run("qemu-img", &["map", "--output=json", "-f", "raw", &uri(&deployment)]).unwrap();
    assert_eq!(image.matches("\"data\": true").count(), 2, "{image}");
    // A copy by libnbd reads what holds data and leaves the rest out; zeros are a hole at once.
    volume(&deployment, "copy").await;
    let copy = uri(&deployment).replace("/oracle?", "/copy?");
    run("nbdcopy", &[&uri(&deployment), &copy]).unwrap();
    let same = run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &uri(&deployment), &copy]).unwrap();
    assert!(same.contains("identical"), "{same}");
    let fast = ["-f", "raw", "-c", "write -P 1 40M 1M", "-c", "write -z -n 40M 1M", &copy];
    assert!(!run("qemu-io", &fast).unwrap().contains("failed"));
    let map = run("nbdinfo", &["--map", &copy]).unwrap();
    assert!(map.lines().any(|l| l.split_whitespace().take(2).eq(["31461376", "35647488"])), "holes: {map}");
    assert!(run("nbdinfo", &["--list", &uri(&deployment)]).unwrap().contains("oracle"));
    let unknown = uri(&deployment).replace("/oracle?", "/none?");
    assert!(run("nbdinfo", &[&unknown]).unwrap_err().contains("none"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_needs_tls_and_the_database_nodes_certificate() {
    let deployment = Deployment::start();
    volume(&deployment, "remote").await;
    let seen = StorageNodeClient::new(deployment.channel("storage", "sysadmin").unwrap())
        .list_volumes(ListVolumesRequest::default())
        .await
        .unwrap()
        .into_inner();
    let address = seen.volumes.first().unwrap().nbd_address.clone();
    let pki = |who: &str| -> PathBuf {
        let dir = deployment.dir().join(format!("tls-{who}"));
        fs::create_dir_all(&dir).unwrap();
        for (from, to) in [
            ("ca.pem".to_owned(), "ca-cert.pem"),
            (format!("{who}.pem"), "client-cert.pem"),
            (format!("{who}.key"), "client-key.pem"),
        ] {
            symlink(deployment.dir().join("pki").join(from), dir.join(to)).unwrap();
        }
        dir
    };
    let address = address.replace("127.0.0.1", "localhost");
    let secure = |who: &str| {
        run("nbdinfo", &[&format!("nbds://{address}/remote?tls-certificates={}", pki(who).display())])
    };
    let good = secure("database").unwrap();
    assert!(good.contains("export-size: 67108864") && good.contains("TLS"), "{good}");
    secure("control").expect_err("a certificate of the authority, but of another service");
    run("nbdinfo", &[&format!("nbd://{address}/remote")]).expect_err("without TLS nothing is told");
    run("nbdinfo", &["--list", &format!("nbd://{address}/")]).expect_err("not even names");
}
