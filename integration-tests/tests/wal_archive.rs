//! Archiving over gRPC: the same again is no error, another file of that name is; one at a time; whole or not at all.

use custody_proto::storage::{
    ArchiveWalRequest, CreateVolumeRequest, RestoreWalRequest, Volume, storage_node_client::StorageNodeClient,
};
use custody_rpc::AuthenticatedChannel;
use custody_testkit::{Deployment, eventually};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

type Client = StorageNodeClient<AuthenticatedChannel>;

const FILE: &str = "000000010000000000000001";

fn part(file: &str, content_bytes: u64, data: &[u8]) -> ArchiveWalRequest {
    ArchiveWalRequest {
        name: "volumes/v".into(),
        archive: "sales-1/coordinator".into(),
        file: file.into(),
        size_bytes: 4 << 20,
        content_bytes,
        written_time: Some(prost_types::Timestamp { seconds: 7, nanos: 0 }),
        data: data.to_vec(),
    }
}

/// Sends a file whole, in parts of 1 MiB.
async fn put(client: &mut Client, file: &str, content: &[u8]) -> Result<(), Status> {
    let (first, rest) = content.split_at(content.len().min(1 << 20));
    let parts = std::iter::once(part(file, content.len() as u64, first)).chain(
        rest.chunks(1 << 20).map(|data| ArchiveWalRequest { data: data.to_vec(), ..Default::default() }),
    );
    client.archive_wal(tokio_stream::iter(parts.collect::<Vec<_>>())).await.map(drop)
}

async fn get(client: &mut Client, file: &str) -> Result<(u64, Vec<u8>), Status> {
    let (name, archive) = ("volumes/v".into(), "sales-1/coordinator".into());
    let request = RestoreWalRequest { name, archive, file: file.into() };
    let mut parts = client.restore_wal(request).await?.into_inner();
    let (mut size, mut content, mut complete) = (0, Vec::new(), false);
    while let Some(part) = parts.message().await? {
        assert!(!complete, "nothing follows the last part");
        size += part.size_bytes;
        content.extend(part.data);
        complete = part.complete;
    }
    assert!(complete, "a stream that ends without its last part is not the file");
    Ok((size, content))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_archived_once_whole_and_by_one() {
    let deployment = Deployment::start();
    let mut control = StorageNodeClient::new(deployment.channel("storage", "workload:control").unwrap());
    let volume = Volume {
        size_bytes: 16 << 20,
        key: "vaults/platform/keys/service-managed".into(),
        managed_identity: "managedIdentities/platform".into(),
        ..Volume::default()
    };
    let request =
        CreateVolumeRequest { volume_id: "v".into(), volume: Some(volume), source_backup: String::new() };
    control.create_volume(request).await.unwrap();
    let client = || StorageNodeClient::new(deployment.channel("storage", "workload:database").unwrap());
    let mut database = client();
    let content: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8 | 1).collect();

    assert_eq!(get(&mut database, FILE).await.unwrap_err().code(), Code::NotFound);
    put(&mut database, FILE, &content).await.unwrap();
    put(&mut database, FILE, &content).await.expect("the same again, as after a crash");
    let mut other = content.clone();
    *other.last_mut().unwrap() ^= 2;
    assert_eq!(put(&mut database, FILE, &other).await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(put(&mut database, FILE, &other[..100]).await.unwrap_err().code(), Code::AlreadyExists);
    assert!(get(&mut database, FILE).await.unwrap() == (4 << 20, content.clone()));

    // One that stops in the middle keeps others out as long as it lasts, and leaves nothing.
    let second = "000000010000000000000002";
    let (sender, parts) = mpsc::channel(1);
    sender.send(part(second, 10, b"half ")).await.unwrap();
    let mut stopped = client();
    let stopped = tokio::spawn(async move { stopped.archive_wal(ReceiverStream::new(parts)).await });
    let partial = deployment.dir().join(format!("backups/_wal/sales-1/coordinator/.{second}.partial"));
    tokio::task::block_in_place(|| {
        eventually("it has begun", Duration::from_secs(20), || partial.exists().then_some(()));
    });
    let refused = put(&mut database, second, b"").await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted, "{refused}");
    stopped.abort();
    drop(sender);
    let taken = async {
        while let Err(e) = put(&mut database, second, b"whole").await {
            assert_eq!(e.code(), Code::Aborted, "{e}");
        }
    };
    tokio::time::timeout(Duration::from_secs(20), taken).await.expect("its place is free again");
    assert_eq!(get(&mut database, second).await.unwrap(), (4 << 20, b"whole".to_vec()));

    // What is wrong is refused by name, and leaves nothing either.
    let third = "000000010000000000000003";
    for (request, field) in [
        (part("../../etc/passwd", 1, b"x"), "file"),
        (part("00000001000000000000000a", 1, b"x"), "file"),
        (ArchiveWalRequest { archive: "../x".into(), ..part(third, 1, b"x") }, "archive"),
        (ArchiveWalRequest { size_bytes: 65 << 20, ..part(third, 1, b"x") }, "size_bytes"),
        (part(third, 5 << 20, b"x"), "content_bytes"),
        (part(third, 2, b"x"), "content_bytes"),
        (part(third, 1, b"xyz"), "content_bytes"),
    ] {
        let refused = database.archive_wal(tokio_stream::iter([request])).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(field), "{refused}");
    }
    assert_eq!(get(&mut database, third).await.unwrap_err().code(), Code::NotFound);

    // A new process has another key: it knows the same again, and opens what is there.
    tokio::task::block_in_place(|| deployment.kill("storage"));
    let mut database = client();
    let again = async {
        while let Err(e) = put(&mut database, FILE, &content).await {
            assert_eq!(e.code(), Code::Unavailable, "until the volume is open: {e}");
        }
    };
    tokio::time::timeout(Duration::from_secs(20), again).await.expect("the volume is open");
    assert!(get(&mut database, FILE).await.unwrap() == (4 << 20, content));
}
