//! Revocation ends reads at once, also those under way, and leaves no key in any process's memory.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

use custody_proto::storage::{
    ArchiveWalRequest, BackupVolumeRequest, GetVolumeRequest, VolumeState,
    storage_node_client::StorageNodeClient,
};
use custody_rpc::AuthenticatedChannel;
use custody_testkit::{
    Deployment, eventually,
    memory::occurrences,
    volume::{customer_volume, unwrapped, wrapped_key, wrapped_log_key},
};
use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;

/// As little of an NBD client as can be, so that the test sees every reply.
struct Client(UnixStream);

impl Client {
    /// Fails while the export is not offered.
    fn connect(socket: &Path, export: &str) -> std::io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend_from_slice(b"IHAVEOPT");
        hello.extend_from_slice(&1u32.to_be_bytes());
        hello.extend_from_slice(&u32::try_from(export.len()).unwrap().to_be_bytes());
        hello.extend_from_slice(export.as_bytes());
        stream.write_all(&hello)?;
        stream.read_exact(&mut [0; 10])?;
        Ok(Self(stream))
    }

    /// The bytes, or NBD's error.
    fn read(&mut self, offset: u64, len: u32) -> Result<Vec<u8>, u32> {
        let mut request = vec![0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0];
        request.extend_from_slice(&[7; 8]);
        request.extend_from_slice(&offset.to_be_bytes());
        request.extend_from_slice(&len.to_be_bytes());
        self.0.write_all(&request).unwrap();
        let mut reply = [0; 16];
        self.0.read_exact(&mut reply).unwrap();
        let error = u32::from_be_bytes(*reply[4..].first_chunk().unwrap());
        if error != 0 {
            return Err(error);
        }
        let mut bytes = vec![0; len as usize];
        self.0.read_exact(&mut bytes).unwrap();
        Ok(bytes)
    }
}

fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}");
    output.stdout
}

/// The key that wraps data keys, and the data key of the first extent, found as `docs/formats/volume.md` says.
fn keys_below(volume_key: &[u8], file: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (secret, info) = (hex::encode(volume_key), hex::encode("custody volume v1 dek wrap"));
    let wrap = openssl(
        &[
            "kdf",
            "-binary",
            "-keylen",
            "32",
            "-kdfopt",
            "digest:SHA2-256",
            "-kdfopt",
            &format!("hexkey:{secret}"),
            "-kdfopt",
            &format!("hexinfo:{info}"),
            "HKDF",
        ],
        &[],
    );
    let extent = 1 << 20;
    let header = [extent, extent + 4096].into_iter().map(|at| &file[at..at + 512]);
    let newest = header.max_by_key(|h| u64::from_le_bytes(*h[32..].first_chunk().unwrap())).unwrap();
    let (nonce, wrapped) = (&newest[78..90], &newest[90..122]);
    // GCM is CTR from 2 on, beside its tag.
    let counter = hex::encode([nonce, &2u32.to_be_bytes()].concat());
    let dek = openssl(&["enc", "-d", "-aes-256-ctr", "-K", &hex::encode(&wrap), "-iv", &counter], wrapped);
    (wrap, dek)
}

fn control(deployment: &Deployment) -> StorageNodeClient<AuthenticatedChannel> {
    StorageNodeClient::new(deployment.channel("storage", "workload:control").unwrap())
}

/// A volume `v` under a customer's key: the key, and who may use it.
async fn volume(deployment: &Deployment, size_bytes: i64) -> (String, String) {
    let (key, identity, _) = deployment.key_and_identity("revoke");
    deployment.bind(&identity).await.unwrap();
    let control = deployment.channel("storage", "workload:control").unwrap();
    customer_volume(control, "v", size_bytes, &key, &identity).await.unwrap();
    (key, identity)
}

fn log_file(n: u32) -> String {
    format!("0000000100000000{n:08}")
}

/// Sends four bytes of a file of `v`'s log; the stream stays open as long as the first of what is answered, unless that was
/// all.
async fn archive(
    database: &mut StorageNodeClient<AuthenticatedChannel>,
    n: u32,
    content_bytes: u64,
) -> (Option<mpsc::Sender<ArchiveWalRequest>>, JoinHandle<Result<(), tonic::Status>>) {
    let (sender, parts) = mpsc::channel(1);
    let part = ArchiveWalRequest {
        name: "volumes/v".into(),
        archive: "log".into(),
        file: log_file(n),
        size_bytes: 4096,
        content_bytes,
        written_time: Some(prost_types::Timestamp::default()),
        data: b"part".to_vec(),
    };
    sender.send(part).await.unwrap();
    let sender = (content_bytes > 4).then_some(sender);
    let mut database = database.clone();
    let sending = tokio::spawn(async move {
        database.archive_wal(ReceiverStream::new(parts)).await.map(tonic::Response::into_inner)
    });
    (sender, sending)
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_ends_reads_and_leaves_no_key_in_memory() {
    let deployment = Deployment::start();
    let (key, identity) = volume(&deployment, 32 << 20).await;
    let socket = deployment.dir().join("storage/nbd.sock");
    let uri = format!("nbd+unix:///v?socket={}", socket.display());
    let filled = Command::new("qemu-io")
        .args(["-f", "raw", "-c", "write -P 0x5a 0 20M", "-c", "flush", &uri])
        .output()
        .unwrap();
    assert!(filled.status.success(), "{filled:?}");

    let file = fs::read(deployment.dir().join("storage/data/v.volume")).unwrap();
    let unwrap =
        async |wrapped| unwrapped(deployment.channel("vault", &identity).unwrap(), &wrapped).await.unwrap();
    let path = deployment.dir().join("storage/data/v.volume");
    let volume_key = unwrap(wrapped_key(&path).unwrap()).await;
    // A file of a log that is archived, for its key, and one whose sender has stopped in the middle.
    let mut database = StorageNodeClient::new(deployment.channel("storage", "workload:database").unwrap());
    archive(&mut database, 1, 4).await.1.await.unwrap().unwrap();
    let log_key = unwrap(wrapped_log_key(&deployment.dir().join("backups/_wal/log")).unwrap()).await;
    let (_stopped, unfinished) = archive(&mut database, 2, 5).await;
    let (wrap, dek) = keys_below(&volume_key, &file);

    // Readers that never stop asking, small and large; each ends with the error it was told.
    let reads = Arc::new(AtomicU64::new(0));
    let readers: Vec<_> = [4096, 65536, 1 << 20]
        .into_iter()
        .map(|len| {
            let (socket, reads) = (socket.clone(), reads.clone());
            std::thread::spawn(move || {
                let mut client = Client::connect(&socket, "v").unwrap();
                loop {
                    match client.read(8192, len) {
                        Ok(bytes) => assert!(bytes.iter().all(|b| *b == 0x5a), "what was written is read"),
                        Err(error) => return (client, error),
                    }
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let limit = Duration::from_secs(10);
    tokio::task::block_in_place(|| {
        eventually("the readers read", limit, || (reads.load(Ordering::Relaxed) > 100).then_some(()))
    });
    let node = deployment.pid("storage");
    let held = |name: &str, bytes: &[u8]| {
        assert!(occurrences(node, bytes).unwrap() > 0, "the search finds the {name} while it is in use");
    };
    held("key that wraps data keys", &wrap);
    held("data key", &dek);
    held("key of the log", &log_key);

    _ = tokio::task::block_in_place(|| deployment.run(&["key", "disable", &key]));
    for reader in readers {
        let (mut client, error) = tokio::task::block_in_place(|| reader.join().unwrap());
        assert_eq!(error, 5, "EIO");
        assert_eq!(client.read(0, 512), Err(5), "on a connection that was open before");
    }
    let refused = unfinished.await.unwrap().unwrap_err();
    assert!(refused.message().contains("inaccessible"), "{refused}");
    let processes = ["storage", "vault", "control", "database", "identity"];
    for (name, bytes) in [
        ("volume key", &volume_key),
        ("key that wraps data keys", &wrap),
        ("data key", &dek),
        ("key of the log", &log_key),
    ] {
        for process in processes {
            tokio::task::block_in_place(|| {
                eventually(&format!("the {name} is not in the memory of {process}"), limit, || {
                    (occurrences(deployment.pid(process), bytes).unwrap() == 0).then_some(())
                });
            });
        }
    }

    _ = tokio::task::block_in_place(|| deployment.run(&["key", "enable", &key]));
    tokio::task::block_in_place(|| {
        eventually("the volume is open again", limit, || {
            Client::connect(&socket, "v").ok()?.read(0, 512).ok()
        })
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_ends_a_backup_that_is_being_made() {
    let deployment = Deployment::start();
    let (key, _) = volume(&deployment, 1 << 30).await;
    let uri = format!("nbd+unix:///v?socket={}", deployment.dir().join("storage/nbd.sock").display());
    let fill = Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 1G", &uri]).output().unwrap();
    assert!(fill.status.success(), "{fill:?}");
    let limit = Duration::from_secs(10);
    // A backup may be faster than the blow; one that is not must be tried.
    let cut_short = async |n: u32| {
        let (name, backup) = ("volumes/v".to_owned(), format!("b{n}"));
        let request = BackupVolumeRequest { name, backup, base: String::new() };
        let mut progress = control(&deployment).backup_volume(request).await.unwrap().into_inner();
        progress.message().await.unwrap().unwrap();
        _ = tokio::task::block_in_place(|| deployment.run(&["key", "disable", &key]));
        let end = loop {
            match progress.message().await {
                Ok(Some(part)) if part.complete => break None,
                Ok(Some(_)) => {}
                Ok(None) => unreachable!("a backup ends with a word"),
                Err(e) => break Some(e),
            }
        };
        tokio::task::block_in_place(|| {
            let is = |state: VolumeState| {
                let mut control = control(&deployment);
                let get = control.get_volume(GetVolumeRequest { name: "volumes/v".into() });
                let seen = tokio::runtime::Handle::current().block_on(get).unwrap().into_inner();
                (seen.state == i32::from(state)).then_some(())
            };
            eventually("access has ended", limit, || is(VolumeState::Inaccessible));
            _ = deployment.run(&["key", "enable", &key]);
            eventually("access is back", limit, || is(VolumeState::Ready));
        });
        end
    };
    for n in 0..8 {
        if let Some(refused) = cut_short(n).await {
            assert!(refused.message().contains("inaccessible"), "{refused}");
            assert!(!deployment.dir().join(format!("backups/b{n}")).exists(), "nothing of it stays");
            return;
        }
    }
    unreachable!("every backup was whole before the blow");
}
