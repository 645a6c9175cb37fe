//! What the vault says of a key's lineage is what is stored: after random operations, kills among them, it is compared with every
//! header and manifest on the disk, read here as `docs/formats` has them.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_proto::{
    storage::{
        ArchiveWalRequest, BackupVolumeRequest, ChangeProtectorRequest, CreateVolumeRequest,
        DeleteBackupRequest, DeleteVolumeRequest, DeleteWalArchiveRequest, ListVolumesRequest,
        PruneWalArchiveRequest, RewrapDependentsRequest, RewrapProgress, SettleProtectorRequest,
        VerifyBackupRequest, Volume, VolumeState, WriteBlocksRequest, storage_node_client::StorageNodeClient,
    },
    vault::{
        GetKeyRequest, GetLineageRequest, ListDependentsRequest, RotateKeyRequest,
        key_lineage_client::KeyLineageClient, key_vault_client::KeyVaultClient,
    },
};
use custody_rpc::AuthenticatedChannel;
use custody_testkit::{Deployment, eventually};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    task::{JoinHandle, block_in_place},
};
use tonic::{Code, Status};

const LIMIT: Duration = Duration::from_secs(60);
const IDS: [&str; 5] = ["a", "b", "c", "d", "e"];

/// A resource and a version that it needs.
type Needs = BTreeSet<(String, String)>;

fn below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let mut all: Vec<PathBuf> = entries.map(|e| e.path()).collect();
    let inner: Vec<PathBuf> = all.iter().filter(|path| path.is_dir()).flat_map(|path| below(path)).collect();
    all.extend(inner);
    all
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?) as usize)
}

/// The JSON of each copy of a superblock.
fn superblocks(path: &Path) -> Vec<Value> {
    use std::os::unix::fs::FileExt as _;
    let mut bytes = vec![0; 32 << 10];
    let read = fs::File::open(path).and_then(|file| file.read_exact_at(&mut bytes, 0));
    let copies =
        read.iter().flat_map(|()| bytes.chunks(16 << 10)).filter(|copy| copy.starts_with(b"CUSTODYV"));
    copies.filter_map(|copy| serde_json::from_slice(copy.get(24..24 + number(copy, 12)?)?).ok()).collect()
}

fn version(of: &Value, pointer: &str) -> Option<String> {
    of.pointer(pointer).and_then(Value::as_str).map(str::to_owned)
}

/// What every stored header and manifest needs.
fn stored(dir: &Path) -> Needs {
    let mut needs = Needs::new();
    for path in below(&dir.join("storage/data")) {
        if path.extension().is_some_and(|e| e == "volume" || e == "partial") {
            let id = path.file_stem().unwrap().to_string_lossy();
            for copy in superblocks(&path) {
                let of = ["/protector/wrapped/key_version", "/former/wrapped/key_version"];
                needs.extend(of.iter().filter_map(|p| Some((format!("volumes/{id}"), version(&copy, p)?))));
            }
        }
    }
    let backups = dir.join("backups");
    for path in below(&backups) {
        let Ok(inner) = path.strip_prefix(&backups) else { continue };
        let parts: Vec<&str> = inner.iter().filter_map(|p| p.to_str()).collect();
        let json = || serde_json::from_slice::<Value>(&fs::read(&path).ok()?).ok();
        match parts.as_slice() {
            // What is being removed or made is not there.
            [first, ..] if first.starts_with('.') => {}
            ["_wal", archive @ .., "keys", id] if !id.starts_with('.') => {
                let found = json().and_then(|key| version(&key, "/wrapped/key_version"));
                needs.extend(found.map(|v| (format!("archives/{}", archive.join("/")), v)));
            }
            ["_wal", ..] => {}
            [name @ .., "manifest.json"] => {
                let found = json().and_then(|manifest| version(&manifest, "/wrapped/key_version"));
                needs.extend(found.map(|v| (format!("backups/{}", name.join("/")), v)));
            }
            _ => {}
        }
    }
    needs
}

/// Every file of an archive, and the id of its key: each has its key beside it.
fn archived_without_key(dir: &Path) -> Vec<PathBuf> {
    let files = below(&dir.join("backups/_wal")).into_iter().filter(|path| path.is_file());
    let lost = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap_or_default();
        let header = number(&bytes, 8).and_then(|len| bytes.get(12..12 + len));
        let header = header.filter(|_| bytes.starts_with(b"custwal1"));
        let Some(header) = header.and_then(|text| serde_json::from_slice::<Value>(text).ok()) else {
            return false;
        };
        let id = header.get("key_id").and_then(Value::as_str).unwrap_or_default();
        !path.with_file_name("keys").join(id).exists()
    };
    files.filter(lost).collect()
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % n as u64).unwrap()
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        let n = self.below(all.len());
        all.get(n).copied().unwrap()
    }
}

/// A deployment, its clients, and two keys that its node may use.
struct Stage {
    deployment: Deployment,
    keys: Vec<String>,
    identity: String,
    node: StorageNodeClient<AuthenticatedChannel>,
    database: StorageNodeClient<AuthenticatedChannel>,
    lineage: KeyLineageClient<AuthenticatedChannel>,
    vault: KeyVaultClient<AuthenticatedChannel>,
    made: u64,
}

impl Stage {
    async fn new() -> Self {
        let deployment = Deployment::start();
        let (first, identity, _) = block_in_place(|| deployment.key_and_identity("k"));
        let second = "vaults/k/keys/second".to_owned();
        block_in_place(|| {
            _ = deployment.run(&["key", "create", &second]);
            let role = "Key Vault Crypto Service Encryption User";
            _ = deployment.run(&["access", "grant", &identity, role, &second]);
        });
        deployment.bind(&identity).await.unwrap();
        let channel = |service, who| deployment.channel(service, who).unwrap();
        Self {
            node: StorageNodeClient::new(channel("storage", "workload:control")),
            database: StorageNodeClient::new(channel("storage", "workload:database")),
            lineage: KeyLineageClient::new(channel("vault", "officer")),
            vault: KeyVaultClient::new(channel("vault", "officer")),
            keys: vec![first, second],
            identity,
            made: 0,
            deployment,
        }
    }

    /// As the vault has it.
    async fn reported(&self) -> Result<Needs, Status> {
        let mut needs = Needs::new();
        for key in &self.keys {
            let mut page_token = String::new();
            loop {
                let request = ListDependentsRequest { parent: key.clone(), page_size: 1000, page_token };
                let page = self.lineage.clone().list_dependents(request).await?.into_inner();
                needs.extend(page.dependents.into_iter().map(|d| (d.resource, d.key_version)));
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    break;
                }
            }
        }
        Ok(needs)
    }

    /// At no moment does the vault know of less than there is.
    async fn nothing_is_missing(&self, after: &str) {
        let mut missing = Needs::new();
        // What is removed between the two looks is missing from neither.
        for _ in 0..5 {
            let there = stored(self.deployment.dir());
            let Ok(reported) = self.reported().await else { return };
            let still = stored(self.deployment.dir());
            missing = there.intersection(&still).filter(|n| !reported.contains(*n)).cloned().collect();
            if missing.is_empty() {
                return;
            }
        }
        assert!(missing.is_empty(), "after {after}, the vault does not know of {missing:?}");
    }

    /// When all is quiet, it knows of no more.
    fn nothing_is_too_much(&self) {
        let mut seen = (Needs::new(), Needs::new());
        let equal = || {
            let reported = Handle::current().block_on(self.reported()).ok()?;
            seen = (reported, stored(self.deployment.dir()));
            (seen.0 == seen.1).then_some(())
        };
        let same = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            block_in_place(|| eventually("the vault knows what is stored", LIMIT, equal));
        }));
        assert!(same.is_ok(), "the vault says {:#?}, the disk {:#?}", seen.0, seen.1);
        assert_eq!(archived_without_key(self.deployment.dir()), Vec::<PathBuf>::new());
    }

    async fn create(&mut self, id: &str, key: &str, source_backup: &str) -> Result<(), Status> {
        let volume = Volume {
            size_bytes: 1 << 20,
            key: key.to_owned(),
            managed_identity: self.identity.clone(),
            customer_managed: true,
            ..Volume::default()
        };
        let source_backup = source_backup.to_owned();
        let request = CreateVolumeRequest { volume_id: id.to_owned(), volume: Some(volume), source_backup };
        self.node.create_volume(request).await.map(drop)
    }

    async fn back_up(&mut self, id: &str, base: &str) -> Result<String, Status> {
        self.made += 1;
        let backup = format!("{id}-{}/coordinator", self.made);
        let request = BackupVolumeRequest {
            name: format!("volumes/{id}"),
            backup: backup.clone(),
            base: base.to_owned(),
        };
        let mut parts = self.node.backup_volume(request).await?.into_inner();
        while parts.message().await?.is_some() {}
        Ok(backup)
    }

    async fn archive(&mut self, id: &str) -> Result<(), Status> {
        self.made += 1;
        let request = ArchiveWalRequest {
            name: format!("volumes/{id}"),
            archive: format!("{id}-log/coordinator"),
            file: format!("0000000100000000{:08X}", self.made),
            size_bytes: 5,
            content_bytes: 5,
            written_time: Some(prost_types::Timestamp { seconds: 7, nanos: 0 }),
            data: b"a log".to_vec(),
        };
        self.database.archive_wal(tokio_stream::iter([request])).await.map(drop)
    }

    /// Begins to wrap anew; it goes on by itself.
    fn rewrap(&self, key: &str) -> JoinHandle<Result<RewrapProgress, Status>> {
        let mut officer = StorageNodeClient::new(self.deployment.channel("storage", "officer").unwrap());
        let (key, per_second) = (key.to_owned(), 1000);
        tokio::spawn(async move {
            let request = RewrapDependentsRequest { key, per_second, ..RewrapDependentsRequest::default() };
            let mut parts = officer.rewrap_dependents(request).await?.into_inner();
            let mut last = RewrapProgress::default();
            while let Some(next) = parts.message().await? {
                last = next;
            }
            Ok(last)
        })
    }

    async fn current(&mut self, key: &str) -> Result<String, Status> {
        let found = self.vault.get_key(GetKeyRequest { name: key.to_owned() }).await?.into_inner();
        Ok(found.current_version.unwrap_or_default().name)
    }
}

/// One operation; what the services refuse, they refuse.
async fn act(
    stage: &mut Stage,
    backups: &mut Vec<String>,
    random: &mut Random,
) -> (String, Result<(), Status>) {
    let (id, key) = (random.of(&IDS), stage.keys.get(random.below(2)).unwrap().clone());
    let name = format!("volumes/{id}");
    let backup = backups.get(random.below(backups.len().max(1))).cloned().unwrap_or_default();
    let n = random.below(100);
    let (what, done): (&str, Result<(), Status>) = match n {
        0..14 => ("create", stage.create(id, &key, "").await),
        14..17 => {
            let pinned = stage.current(&key).await;
            (
                "create pinned",
                match pinned {
                    Ok(version) => stage.create(id, &version, "").await,
                    Err(e) => Err(e),
                },
            )
        }
        17..21 if !backup.is_empty() => ("restore", stage.create(id, &key, &backup).await),
        21..31 => ("delete", stage.node.delete_volume(DeleteVolumeRequest { name }).await.map(drop)),
        31..34 => ("rotate", stage.vault.rotate_key(RotateKeyRequest { name: key }).await.map(drop)),
        34..42 => ("back up", stage.back_up(id, "").await.map(|made| backups.push(made))),
        42..50 => ("increment", stage.back_up(id, &backup).await.map(|made| backups.push(made))),
        50..58 => ("delete backup", stage.node.delete_backup(DeleteBackupRequest { backup }).await.map(drop)),
        58..72 => ("archive", stage.archive(id).await),
        72..75 => {
            let first_segment = format!("0000000100000000{:08X}", stage.made);
            let request = PruneWalArchiveRequest { archive: format!("{id}-log/coordinator"), first_segment };
            ("prune", stage.node.prune_wal_archive(request).await.map(drop))
        }
        75..77 => {
            let request = DeleteWalArchiveRequest { archive: format!("{id}-log") };
            ("delete archive", stage.node.delete_wal_archive(request).await.map(drop))
        }
        77..84 => {
            let (managed_identity, customer_managed) = (stage.identity.clone(), true);
            let request = ChangeProtectorRequest { name, key, managed_identity, customer_managed };
            ("change key", stage.node.change_protector(request).await.map(drop))
        }
        84..90 => ("settle", stage.node.settle_protector(SettleProtectorRequest { name }).await.map(drop)),
        90..93 => ("rewrap", stage.rewrap(&key).await.unwrap().map(drop)),
        93..98 => {
            let part = WriteBlocksRequest {
                name,
                data: vec![7; 4096],
                flush: true,
                ..WriteBlocksRequest::default()
            };
            ("write", stage.database.write_blocks(tokio_stream::iter([part])).await.map(drop))
        }
        98 => {
            // In the middle of what changes most.
            let under_way = stage.rewrap(&key);
            block_in_place(|| stage.deployment.kill("storage"));
            _ = under_way.await.unwrap();
            ("kill the node", Ok(()))
        }
        99 => {
            let under_way = stage.rewrap(&key);
            block_in_place(|| stage.deployment.kill("vault"));
            _ = under_way.await.unwrap();
            ("kill the vault", Ok(()))
        }
        _ => ("nothing", Ok(())),
    };
    (format!("{what} {id}"), done)
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_thousand_operations_the_vault_knows_what_is_stored_and_nothing_else() {
    let mut stage = Stage::new().await;
    let seed = std::env::var("CUSTODY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_126);
    let (mut random, mut backups) = (Random(seed), Vec::new());
    let mut done: BTreeMap<String, (u32, u32)> = BTreeMap::new();
    for n in 1..=1000 {
        let (what, result) = act(&mut stage, &mut backups, &mut random).await;
        if let Err(e) = &result {
            let fault = matches!(e.code(), Code::Internal | Code::DataLoss | Code::Unknown);
            assert!(!fault, "operation {n} of seed {seed}, {what}: {e}");
        }
        let (good, refused) = done.entry(what.rsplit_once(' ').unwrap().0.to_owned()).or_default();
        if result.is_ok() {
            *good += 1
        } else {
            *refused += 1
        }
        stage.nothing_is_missing(&format!("operation {n} of seed {seed}, {what}")).await;
        if n % 100 == 0 {
            stage.nothing_is_too_much();
        }
    }
    for what in [
        "create",
        "restore",
        "delete",
        "rotate",
        "increment",
        "delete backup",
        "archive",
        "rewrap",
        "change key",
    ] {
        assert!(done.get(what).is_some_and(|(good, _)| *good > 0), "{what} was never done: {done:?}");
    }

    // Nothing is left under an old version when all was wrapped anew, but what was pinned to one; and all of it opens still.
    for key in stage.keys.clone() {
        for id in IDS {
            _ = stage.node.settle_protector(SettleProtectorRequest { name: format!("volumes/{id}") }).await;
        }
        let rewrapped = stage.rewrap(&key).await.unwrap().unwrap();
        let others: Vec<_> = rewrapped.failures.iter().filter(|f| f.reason != "PINNED").collect();
        assert!(rewrapped.complete && others.is_empty(), "{others:?}");
        stage.nothing_is_too_much();
        let request = GetLineageRequest { name: format!("{key}/lineage") };
        let lineage = stage.lineage.get_lineage(request).await.unwrap().into_inner();
        assert!(lineage.holders.iter().all(|h| h.complete_time.is_some()), "{:?}", lineage.holders);
        for v in lineage.versions.iter().filter(|v| !v.current) {
            let pinned = v.dependents.iter().all(|d| d.count == d.pinned);
            assert!(v.retirable || (pinned && v.obstacle.contains("stay")) || v.leases > 0, "{v:?}");
        }
    }
    // All of it opens with what it was wrapped anew with.
    block_in_place(|| stage.deployment.kill("storage"));
    let volumes: Vec<String> = list(&stage.node).await.into_iter().map(|v| v.name).collect();
    assert!(!volumes.is_empty());
    block_in_place(|| {
        eventually("every volume is open", LIMIT, || {
            let now = Handle::current().block_on(list(&stage.node));
            now.iter().all(|v| v.state == i32::from(VolumeState::Ready)).then_some(())
        });
    });
    let mut verified = 0;
    for backup in backups {
        let request =
            VerifyBackupRequest { backup: backup.clone(), managed_identity: stage.identity.clone() };
        match stage.node.verify_backup(request).await {
            Ok(_) => verified += 1,
            // It was deleted.
            Err(e) if e.code() == Code::InvalidArgument && e.message().contains("does not exist") => {}
            Err(e) => panic!("{backup}: {e}"),
        }
    }
    assert!(verified > 0);
}

async fn list(node: &StorageNodeClient<AuthenticatedChannel>) -> Vec<Volume> {
    let request = ListVolumesRequest { page_size: 1000, page_token: String::new() };
    node.clone().list_volumes(request).await.unwrap().into_inner().volumes
}

/// By the command, as two officers do it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_needed_is_destroyed_by_two_officers_alone_and_they_are_told_what_it_cost() {
    let deployment = Deployment::start();
    let key = "vaults/s/keys/s".to_owned();
    block_in_place(|| {
        _ = deployment.run(&["vault", "create", "s", "--no-purge-protection"]);
        _ = deployment.run(&["key", "create", &key]);
        _ = deployment.run(&["identity", "create", "s"]);
        let role = "Key Vault Crypto Service Encryption User";
        _ = deployment.run(&["access", "grant", "managedIdentities/s", role, &key]);
        let administrator = ["principals/custodian", "Key Vault Administrator", "vaults/s"];
        _ = deployment.run(&[&["access", "grant"][..], &administrator].concat());
        let purger = ["principals/custodian", "Key Vault Purge Operator", "vaults/s"];
        _ = deployment.run(&[&["access", "grant"][..], &purger].concat());
    });
    deployment.bind("managedIdentities/s").await.unwrap();
    let mut node = StorageNodeClient::new(deployment.channel("storage", "workload:control").unwrap());
    // Not as a customer's: those are under purge protection.
    let volume = Volume {
        size_bytes: 1 << 20,
        key: key.clone(),
        managed_identity: "managedIdentities/s".into(),
        ..Volume::default()
    };
    let request =
        CreateVolumeRequest { volume_id: "v".into(), volume: Some(volume), source_backup: String::new() };
    node.create_volume(request).await.unwrap();
    let request = BackupVolumeRequest {
        name: "volumes/v".into(),
        backup: "b".into(),
        ..BackupVolumeRequest::default()
    };
    let mut parts = node.backup_volume(request).await.unwrap().into_inner();
    while parts.message().await.unwrap().is_some() {}
    block_in_place(|| {
        _ = deployment.run(&["key", "rotate", &key]);
        let of_first = || {
            let versions = deployment.run(&["key", "lineage", &key]);
            versions.as_array().and_then(|all| all.last().cloned()).unwrap()
        };
        eventually("the volume has followed", LIMIT, || {
            let needed_by = of_first().get("needed_by").cloned()?;
            (needed_by == serde_json::json!({ "backup": 1 })).then_some(())
        });
        assert_eq!(of_first().get("can_be_retired").unwrap(), "no");
        _ = deployment.run(&["key", "delete", &key]);
        let refused = deployment.cli(&["key", "purge", &key]).unwrap_err().to_string();
        assert!(
            refused.contains("KEY_HAS_DEPENDENTS") && refused.contains("1 volume, 1 backup"),
            "{refused}"
        );
        let shred = ["key", "purge", &key, "--crypto-shred"];
        let asked = deployment.cli(&shred).unwrap_err().to_string();
        assert!(asked.contains("APPROVAL_REQUIRED") && asked.contains("1 volume, 1 backup"), "{asked}");
        let waiting = deployment.run(&["access", "approvals", "vaults/s"]);
        let approval = waiting.pointer("/0/name").and_then(Value::as_str).unwrap().to_owned();
        _ = deployment.run(&["--as", "custodian", "access", "approve", &approval]);
        let done = deployment.run(&shred).to_string();
        assert!(done.contains("volumes/v") && done.contains("backups/b"), "{done}");
    });
    let request = CreateVolumeRequest {
        volume_id: "w".into(),
        volume: Some(Volume {
            size_bytes: 1 << 20,
            key,
            managed_identity: "managedIdentities/s".into(),
            ..Volume::default()
        }),
        source_backup: "b".into(),
    };
    node.create_volume(request).await.unwrap_err();
}
