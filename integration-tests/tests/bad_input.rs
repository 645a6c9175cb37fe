//! What is malformed, forged, cut or too much gets a clear answer, and the service goes on.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_proto::{
    control::{Cluster, CreateClusterRequest, Encryption, cluster_manager_client::ClusterManagerClient},
    longrunning::{
        WaitOperationRequest, operation::Result as OperationResult, operations_client::OperationsClient,
    },
    storage::{
        CreateVolumeRequest, ReadBlocksRequest, Volume, WriteBlocksRequest,
        storage_node_client::StorageNodeClient,
    },
    vault::{GetKeyRequest, WrapKeyRequest, key_vault_client::KeyVaultClient},
};
use custody_rpc::status::reason;
use custody_testkit::{Deployment, eventually, target_program};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::{fs::FileExt as _, net::UnixStream},
    process::Command,
    time::Duration,
};
use tonic::{Code, Request};

async fn with_token(deployment: &Deployment, token: &str) -> tonic::Status {
    let mut client = KeyVaultClient::new(deployment.endpoint("vault").unwrap().channel());
    let mut request = Request::new(GetKeyRequest { name: "vaults/a/keys/b".into() });
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    client.get_key(request).await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_forged_altered_or_for_another_audience_are_refused() {
    let deployment = Deployment::start();
    let good = deployment.tokens("officer", "custody-vault").unwrap().text().await.unwrap();
    assert_eq!(
        with_token(&deployment, &good).await.code(),
        Code::PermissionDenied,
        "a good token reaches the gate"
    );
    let other = deployment.tokens("officer", "custody-control").unwrap().text().await.unwrap();
    let refused = with_token(&deployment, &other).await;
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unauthenticated, "INVALID_TOKEN"));
    assert!(refused.message().contains("another audience"), "{}", refused.message());

    let mut parts: Vec<String> = good.split('.').map(str::to_owned).collect();
    parts[1].replace_range(10..12, "AA");
    assert_eq!(
        with_token(&deployment, &parts.join(".")).await.code(),
        Code::Unauthenticated,
        "an altered claim"
    );
    // A token that is right in every word, but signed by another key of the same id.
    let header: jsonwebtoken::Header = jsonwebtoken::decode_header(&good).unwrap();
    let claims: serde_json::Value = serde_json::json!({"iss": "https://identity.custody.localhost", "sub": "principals/officer", "aud": "custody-vault", "duty": "security_officer", "jti": "x", "iat": 0, "nbf": 0, "exp": 4_000_000_000u64});
    let key = rcgen::KeyPair::generate().unwrap();
    let forged =
        jsonwebtoken::encode(&header, &claims, &jsonwebtoken::EncodingKey::from_ec_der(&key.serialize_der()))
            .unwrap();
    assert_eq!(with_token(&deployment, &forged).await.code(), Code::Unauthenticated, "another signer");
    // The service's own key is at hand here, so an expired token can be made that is genuine otherwise.
    let own = fs::read(deployment.dir().join("identity/data/signing.key")).unwrap();
    let sign = |claims: &serde_json::Value| {
        jsonwebtoken::encode(&header, claims, &jsonwebtoken::EncodingKey::from_ec_der(&own)).unwrap()
    };
    assert_eq!(
        with_token(&deployment, &sign(&claims)).await.code(),
        Code::PermissionDenied,
        "genuine, to show that the next two differ by their dates only"
    );
    let mut dated = claims.clone();
    dated["exp"] = 1_000_000_000u64.into();
    assert!(with_token(&deployment, &sign(&dated)).await.message().contains("expired"));
    let mut dated = claims.clone();
    dated["nbf"] = 3_900_000_000u64.into();
    assert!(with_token(&deployment, &sign(&dated)).await.message().contains("not valid yet"));
    for rubbish in ["", "a.b.c", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJwcmluY2lwYWxzL29mZmljZXIifQ."] {
        assert_eq!(with_token(&deployment, rubbish).await.code(), Code::Unauthenticated);
    }
}

/// Whoever makes principals chooses names; a service proves itself by its certificate.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_not_enough_to_be_a_service() {
    let deployment = Deployment::start();
    let named = deployment.cli(&["identity", "create-principal", "control", "workload"]).unwrap_err();
    assert!(named.to_string().contains("name of a service"), "{named}");
    // A token that is genuine in every way, but was given for a secret.
    let good = deployment.tokens("officer", "custody-node").unwrap().text().await.unwrap();
    let header = jsonwebtoken::decode_header(&good).unwrap();
    let own = fs::read(deployment.dir().join("identity/data/signing.key")).unwrap();
    let refused = async |amr: &str| {
        let claims = serde_json::json!({"iss": "https://identity.custody.localhost", "sub": "principals/control", "aud": "custody-node", "duty": "workload", "jti": "x", "amr": [amr], "iat": 0, "nbf": 0, "exp": 4_000_000_000u64});
        let key = jsonwebtoken::EncodingKey::from_ec_der(&own);
        let token = jsonwebtoken::encode(&header, &claims, &key).unwrap();
        let mut client = StorageNodeClient::new(deployment.endpoint("storage").unwrap().channel());
        let mut request = Request::new(CreateVolumeRequest::default());
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        client.create_volume(request).await.unwrap_err()
    };
    assert_eq!(reason(&refused("pwd").await), "DUTY_NOT_ALLOWED");
    assert_eq!(refused("swk").await.code(), Code::InvalidArgument, "the same by certificate is let through");
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_every_port_harms_nothing() {
    let deployment = Deployment::start();
    let mut seed = 0x1234_5678_9abc_def1u64;
    let mut garbage = || -> Vec<u8> {
        (0..4096)
            .map(|_| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                seed as u8
            })
            .collect()
    };
    for service in ["identity", "vault", "control", "storage", "database"] {
        let address = deployment.url(service).unwrap().trim_start_matches("https://").to_owned();
        for _ in 0..20 {
            let mut stream = TcpStream::connect(&address).unwrap();
            _ = stream.write_all(&garbage());
            _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        }
    }
    let socket = deployment.dir().join("storage/nbd.sock");
    for n in 0..40usize {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut hello = [0; 18];
        stream.read_exact(&mut hello).unwrap();
        assert_eq!(&hello[..8], b"NBDMAGIC");
        // Some with good flags first, so that options are parsed too; some options that claim to be huge.
        if n % 2 == 0 {
            stream.write_all(&[0, 0, 0, 3]).unwrap();
        }
        if n % 4 == 0 {
            stream.write_all(b"IHAVEOPT").unwrap();
            stream.write_all(&7u32.to_be_bytes()).unwrap();
            stream.write_all(&[u32::MAX, 5, 0][n / 4 % 3].to_be_bytes()).unwrap();
        }
        _ = stream.write_all(&garbage());
        _ = stream.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        _ = stream.read_to_end(&mut rest);
    }
    for service in ["identity", "vault", "control", "storage", "database"] {
        let log = fs::read_to_string(deployment.dir().join(format!("logs/{service}.log"))).unwrap();
        assert!(!log.contains("panicked"), "{service}: {log}");
        let pid = deployment.pid(service);
        assert!(rustix::process::test_kill_process(pid).is_ok(), "{service} has ended");
    }
    _ = deployment.run(&["vault", "create", "still-works"]);
}

/// Asks for a cluster under a key and waits until it is made or given up; `Err` is the operation's error.
async fn create_and_wait(deployment: &Deployment, id: &str, key: &str, identity: &str) -> Result<(), String> {
    let channel = deployment.channel("control", "sysadmin").unwrap();
    let request = CreateClusterRequest {
        cluster_id: id.into(),
        cluster: Some(Cluster {
            volume_size_bytes: 512 << 20,
            encryption: Some(Encryption { key: key.into(), managed_identity: identity.into() }),
            ..Cluster::default()
        }),
        administrator_password: "long-enough-1".into(),
        source_backup: String::new(),
        restore_time: None,
    };
    let begun = ClusterManagerClient::new(channel.clone()).create_cluster(request).await.unwrap();
    let timeout = Some(prost_types::Duration { seconds: 30, nanos: 0 });
    let wait = WaitOperationRequest { name: begun.into_inner().name, timeout };
    let ended = OperationsClient::new(channel).wait_operation(wait).await.unwrap().into_inner();
    assert!(ended.done, "{ended:?}");
    match ended.result.unwrap() {
        OperationResult::Error(e) => Err(e.message),
        OperationResult::Response(_) => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_name_the_field_and_leave_nothing() {
    let deployment = Deployment::start();
    let (key, identity, _) = deployment.key_and_identity("fields");
    let refused = |arguments: &[&str]| deployment.cli(arguments).unwrap_err().to_string();
    assert!(refused(&["key", "create", "vaults/fields/keys/Upper"]).contains("`key_id`"));
    assert!(
        refused(&["key", "create", "vaults/fields/keys/small", "--size", "1024"])
            .contains("2048, 3072 or 4096")
    );
    assert!(refused(&["vault", "get", "vaults/fields/"]).contains("vaults/{vault}"));
    assert!(refused(&["key", "get", "vaults/fields/keys/none"]).contains("does not exist"));
    assert!(refused(&["key", "purge", &key]).contains("is not deleted"));
    assert!(
        refused(&["access", "grant", &identity, "Key Vault Administrator", "vaults/fields"])
            .contains("no single duty may hold")
    );
    assert!(refused(&["cluster", "get", "clusters/none"]).contains("does not exist"));
    assert!(refused(&["cluster", "create", "c", "--workers", "99"]).contains("`cluster.worker_count`"));

    // A key that may not protect: disabled, expired, not yet valid, in a vault without purge protection.
    _ = deployment.run(&["vault", "create", "loose", "--no-purge-protection"]);
    let loose = "vaults/loose/keys/k";
    _ = deployment.run(&["key", "create", loose]);
    _ = deployment.run(&["access", "grant", &identity, "Key Vault Crypto Service Encryption User", loose]);
    let refused_cluster = async |id: &str, key: &str, why: &str| {
        let outcome = create_and_wait(&deployment, id, key, &identity).await;
        let error = outcome.unwrap_err();
        assert!(error.contains(why), "{id}: {error}");
        assert!(deployment.cli(&["cluster", "get", &format!("clusters/{id}")]).is_err(), "{id} exists");
        let left: Vec<_> = fs::read_dir(deployment.dir().join("storage/data"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .filter(|n| n.to_string_lossy().contains(id))
            .collect();
        assert!(left.is_empty(), "{left:?} is left behind");
    };
    _ = deployment.run(&["key", "disable", &key]);
    refused_cluster("disabled", &key, "enable it").await;
    _ = deployment.run(&["key", "enable", &key]);
    _ = deployment.run(&["key", "dates", &key, "--until", "2020-01-01T00:00:00Z"]);
    refused_cluster("expired", &key, "check its dates").await;
    _ = deployment.run(&[
        "key",
        "dates",
        &key,
        "--from",
        "2100-01-01T00:00:00Z",
        "--until",
        "2101-01-01T00:00:00Z",
    ]);
    refused_cluster("early", &key, "check its dates").await;
    refused_cluster("purgeable", loose, "purge protection").await;

    // Too much in one message.
    let mut vault = KeyVaultClient::new(deployment.channel("vault", "officer").unwrap());
    let huge = WrapKeyRequest { name: key, algorithm: String::new(), plaintext: vec![0; 8 << 20] };
    let refused = vault.wrap_key(huge).await.unwrap_err();
    assert!(
        matches!(refused.code(), Code::OutOfRange | Code::ResourceExhausted | Code::Unknown | Code::Internal),
        "{refused:?}"
    );
    let mut database = StorageNodeClient::new(deployment.channel("storage", "workload:database").unwrap());
    let nowhere =
        WriteBlocksRequest { name: "volumes/none".into(), data: vec![1], ..WriteBlocksRequest::default() };
    assert_eq!(
        database.write_blocks(tokio_stream::iter([nowhere])).await.unwrap_err().code(),
        Code::NotFound
    );
}

#[test]
fn a_second_process_on_the_same_data_is_refused() {
    let deployment = Deployment::start();
    for (service, program) in [
        ("identity", "custody-identity"),
        ("vault", "custody-vault"),
        ("control", "custody-control"),
        ("storage", "custody-node"),
        ("database", "custody-database"),
    ] {
        let output = Command::new(target_program(program))
            .arg("--config")
            .arg(deployment.dir().join(service).join("settings.toml"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("in use by another process"), "{program}: {said}");
    }
    let second = Command::new(target_program("custody"))
        .arg("--dir")
        .arg(deployment.dir())
        .arg("up")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && said.contains("running in") && said.contains("already"), "{said}");
    _ = deployment.run(&["vault", "create", "goes-on"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_cut_or_altered_is_refused_and_others_are_served() {
    let deployment = Deployment::start();
    let mut control = StorageNodeClient::new(deployment.channel("storage", "workload:control").unwrap());
    for id in ["whole", "cut", "altered", "put-back"] {
        let volume = Volume {
            size_bytes: 16 << 20,
            key: "vaults/platform/keys/service-managed".into(),
            managed_identity: "managedIdentities/platform".into(),
            ..Volume::default()
        };
        control
            .create_volume(CreateVolumeRequest {
                volume_id: id.into(),
                volume: Some(volume),
                source_backup: String::new(),
            })
            .await
            .unwrap();
    }
    let mut database = StorageNodeClient::new(deployment.channel("storage", "workload:database").unwrap());
    for (id, byte) in [("whole", 7), ("cut", 7), ("altered", 7), ("put-back", 7), ("put-back", 8)] {
        let name = format!("volumes/{id}");
        let part = WriteBlocksRequest { name, offset: 0, data: vec![byte; 8192], flush: true };
        database.write_blocks(tokio_stream::iter([part])).await.unwrap();
        let file = deployment.dir().join(format!("storage/data/{id}.volume"));
        if byte == 7 {
            fs::copy(&file, file.with_extension("earlier")).unwrap();
        }
    }
    let dir = deployment.stop();
    let data = dir.join("storage/data");
    fs::rename(data.join("put-back.earlier"), data.join("put-back.volume")).unwrap();
    fs::OpenOptions::new().write(true).open(data.join("cut.volume")).unwrap().set_len(50_000).unwrap();
    let file = fs::OpenOptions::new().read(true).write(true).open(data.join("altered.volume")).unwrap();
    for copy in [0, 16 * 1024] {
        let mut byte = [0];
        file.read_exact_at(&mut byte, copy + 60).unwrap();
        file.write_all_at(&[byte[0] ^ 1], copy + 60).unwrap();
    }
    let deployment = Deployment::start_in(dir, &[]).unwrap();
    let seen = || deployment.run(&["volume", "list"]);
    let state = |id: &str| {
        seen()
            .as_array()
            .unwrap()
            .iter()
            .find(|v| v["name"] == format!("volumes/{id}"))
            .map(|v| v["state"].as_str().unwrap().to_owned())
    };
    eventually("the whole volume is served", Duration::from_secs(10), || {
        (state("whole").as_deref() == Some("READY")).then_some(())
    });
    let mut database = StorageNodeClient::new(deployment.channel("storage", "workload:database").unwrap());
    let first = |name: &str| ReadBlocksRequest { name: name.into(), offset: 0, length: 4096 };
    let good = database.read_blocks(first("volumes/whole")).await.unwrap().into_inner().message().await;
    assert_eq!(good.unwrap().unwrap().data, [7; 4096]);
    eventually("the volume is open", Duration::from_secs(10), || {
        (state("put-back").as_deref() == Some("READY")).then_some(())
    });
    let old = database.read_blocks(first("volumes/put-back")).await.unwrap().into_inner().message().await;
    assert_eq!(reason(&old.unwrap_err()), "VOLUME_ROLLED_BACK");
    assert_ne!(state("cut").as_deref(), Some("READY"));
    assert_ne!(state("altered").as_deref(), Some("READY"));
    let log = fs::read_to_string(deployment.dir().join("logs/storage.log")).unwrap();
    assert!(log.contains("damaged") || log.contains("cannot be used"), "{log}");
    assert!(!log.contains("panicked"));
}

/// A disk that fills up: what does not fit is refused, what fitted is there, and with room again it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing() {
    let dir = tempfile::Builder::new().prefix("custody-full-").tempdir().unwrap();
    let mount =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "none"]).arg(dir.path()).status();
    assert!(mount.is_ok_and(|s| s.success()), "root is needed to mount a small disk");
    let deployment = Deployment::start_in(dir.path().join("d"), &[]).unwrap();
    let mut control = StorageNodeClient::new(deployment.channel("storage", "workload:control").unwrap());
    let volume = Volume {
        size_bytes: 64 << 20,
        key: "vaults/platform/keys/service-managed".into(),
        managed_identity: "managedIdentities/platform".into(),
        ..Volume::default()
    };
    control
        .create_volume(CreateVolumeRequest {
            volume_id: "full".into(),
            volume: Some(volume),
            source_backup: String::new(),
        })
        .await
        .unwrap();
    let mut client = StorageNodeClient::new(deployment.channel("storage", "workload:database").unwrap());
    let (mut written, mut refused) = (0u64, None);
    for n in 0..64u64 {
        let part = WriteBlocksRequest {
            name: "volumes/full".into(),
            offset: n << 20,
            data: vec![n as u8 + 1; 1 << 20],
            flush: false,
        };
        match client.write_blocks(tokio_stream::iter([part])).await {
            Ok(_) => written += 1,
            Err(e) => {
                refused = Some(e);
                break;
            }
        }
    }
    let refused = refused.expect("the disk is smaller than the volume");
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::ResourceExhausted, "DISK_FULL"),
        "{refused:?}"
    );
    assert!(written > 2);
    for n in 0..written {
        let mut stream = client
            .read_blocks(ReadBlocksRequest { name: "volumes/full".into(), offset: n << 20, length: 4096 })
            .await
            .unwrap()
            .into_inner();
        assert_eq!(stream.message().await.unwrap().unwrap().data, vec![n as u8 + 1; 4096]);
    }
    // The vault shares the disk: with its last byte gone it cannot record, so it refuses; and it comes back with
    // the room.
    let mut filler = fs::File::create(dir.path().join("filler")).unwrap();
    while filler.write_all(&[0; 4096]).is_ok() {}
    let made = tokio::task::block_in_place(|| {
        (0..200)
            .take_while(|n| deployment.cli(&["vault", "create", &format!("squeezed-{n}")]).is_ok())
            .count()
    });
    assert!(made < 200, "a full disk takes no records");
    assert!(
        Command::new("mount").args(["-o", "remount,size=200m"]).arg(dir.path()).status().unwrap().success()
    );
    tokio::task::block_in_place(|| {
        eventually("the vault takes records again", Duration::from_secs(20), || {
            deployment.cli(&["vault", "create", "room"]).ok().map(drop)
        })
    });
    let there = tokio::task::block_in_place(|| deployment.run(&["vault", "list"]))
        .as_array()
        .unwrap()
        .iter()
        .filter(|v| v["name"].as_str().unwrap().contains("squeezed"))
        .count();
    assert!(there >= made, "{made} vaults were acknowledged, {there} are there");
    let part = WriteBlocksRequest {
        name: "volumes/full".into(),
        offset: written << 20,
        data: vec![9; 1 << 20],
        flush: true,
    };
    client.write_blocks(tokio_stream::iter([part])).await.unwrap();
    drop(deployment);
    _ = Command::new("umount").arg("--lazy").arg(dir.path()).status();
}
