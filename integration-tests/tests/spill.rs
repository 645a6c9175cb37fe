//! Spills over gRPC: read back as they were written, nowhere in clear, and gone with the process that had their keys.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_proto::storage::{
    DeleteSpillRequest, ReadSpillRequest, Spill, WriteSpillRequest, storage_node_client::StorageNodeClient,
};
use custody_rpc::AuthenticatedChannel;
use custody_testkit::Deployment;
use std::{fs, os::unix::fs::FileExt as _, path::PathBuf};
use tonic::Code;

type Client = StorageNodeClient<AuthenticatedChannel>;

fn client(deployment: &Deployment) -> Client {
    StorageNodeClient::new(deployment.channel("storage", "workload:database").unwrap())
}

fn content(len: usize) -> Vec<u8> {
    b"PLANTED-IN-A-SPILL ".iter().copied().cycle().take(len).collect()
}

async fn write(client: &mut Client, bytes: &[u8]) -> Result<Spill, tonic::Status> {
    let parts: Vec<_> = bytes.chunks(1 << 20).map(|data| WriteSpillRequest { data: data.to_vec() }).collect();
    client.write_spill(tokio_stream::iter(parts)).await.map(tonic::Response::into_inner)
}

async fn read(client: &mut Client, name: &str, offset: u64, length: u64) -> Result<Vec<u8>, tonic::Status> {
    let request = ReadSpillRequest { name: name.into(), offset, length };
    let mut parts = client.read_spill(request).await?.into_inner();
    let mut all = Vec::new();
    while let Some(part) = parts.message().await? {
        all.extend(part.data);
    }
    Ok(all)
}

/// Every file below the deployment, and every one that the storage node has open, with a name or without.
fn files(deployment: &Deployment) -> Vec<PathBuf> {
    let fds = PathBuf::from(format!("/proc/{}/fd", deployment.pid("storage").as_raw_nonzero()));
    let (mut found, mut open) = (Vec::new(), vec![deployment.dir().to_owned(), fds]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match fs::metadata(entry.path()) {
                Ok(m) if m.is_dir() => open.push(entry.path()),
                Ok(m) if m.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found
}

fn holds(file: &PathBuf, bytes: &[u8]) -> bool {
    let Ok(file) = fs::File::open(file) else { return false };
    let mut all = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    _ = file.read_exact_at(&mut all, 0);
    all.windows(bytes.len()).any(|w| w == bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spill_lives_as_long_as_its_process() {
    let deployment = Deployment::start();
    let mut client = client(&deployment);
    let bytes = content((3 << 20) + 17);
    let spill = write(&mut client, &bytes).await.unwrap();
    assert_eq!(spill.size_bytes, bytes.len() as u64);
    assert!(read(&mut client, &spill.name, 0, 0).await.unwrap() == bytes);
    let part = read(&mut client, &spill.name, (1 << 20) - 3, 10).await.unwrap();
    assert_eq!(part, bytes.get((1 << 20) - 3..(1 << 20) + 7).unwrap());

    let all = files(&deployment);
    assert!(all.iter().any(|f| fs::metadata(f).unwrap().len() > 3 << 20), "the search sees the spill");
    let found: Vec<_> = all.iter().filter(|f| holds(f, b"PLANTED-IN-A-SPILL")).collect();
    assert!(found.is_empty(), "{found:?}");
    let named = fs::read_dir(deployment.dir().join("storage/data/spills")).unwrap().count();
    assert_eq!(named, 0, "nor has it a name");

    let reader = client.clone();
    let refused =
        async |name: &str, offset, length| read(&mut reader.clone(), name, offset, length).await.unwrap_err();
    assert_eq!(refused(&spill.name, spill.size_bytes + 1, 0).await.code(), Code::OutOfRange);
    assert_eq!(refused(&spill.name, 1, spill.size_bytes).await.code(), Code::OutOfRange);
    assert_eq!(refused("spills/../../pki", 0, 0).await.code(), Code::InvalidArgument);
    assert_eq!(refused(&format!("spills/{}", "0".repeat(32)), 0, 0).await.code(), Code::NotFound);

    let other = write(&mut client, b"short").await.unwrap();
    client.delete_spill(DeleteSpillRequest { name: other.name.clone() }).await.unwrap();
    assert_eq!(refused(&other.name, 0, 0).await.code(), Code::NotFound);

    // The file may be anyone's now; its key was in the process that is gone.
    tokio::task::block_in_place(|| deployment.kill("storage"));
    let mut successor = StorageNodeClient::new(deployment.channel("storage", "workload:database").unwrap());
    let gone = read(&mut successor, &spill.name, 0, 0).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound, "{gone}");
    assert!(write(&mut successor, b"another").await.is_ok());
}
