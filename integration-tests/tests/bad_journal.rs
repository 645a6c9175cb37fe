//! A vault whose journal cannot be written does nothing and says why; when it can, the vault goes on by itself.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_clients::Vault;
use custody_proto::vault::{GetKeyRequest, Key};
use custody_testkit::{Deployment, Disk, database_tools, eventually};
use std::{fs, process::Command, time::Duration};
use tokio::{runtime::Handle, task::block_in_place};
use tonic::{Response, Status};

const LIMIT: Duration = Duration::from_secs(30);

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_is_full_read_only_removed_or_hung_stops_the_vault_until_it_is_not() {
    database_tools().expect("scripts/test installs what this needs");
    let dir = tempfile::Builder::new().prefix("custody-test-").tempdir().unwrap().keep();
    let audit = dir.join("vault/data/audit");
    let disk = Disk::mount(&dir.join("audit.ext4"), &audit, 8 << 20).unwrap();
    let deployment = Deployment::start_in(dir.clone(), &[]).unwrap();
    _ = block_in_place(|| deployment.key_and_identity("k"));
    let vault = Vault::new(deployment.channel("vault", "officer").unwrap());
    let get = || -> Result<Response<Key>, Status> {
        let mut vault = vault.clone();
        let request = GetKeyRequest { name: "vaults/k/keys/k".into() };
        block_in_place(|| Handle::current().block_on(vault.get_key(request)))
    };
    let sequence = |answer: &tonic::metadata::MetadataMap| -> u64 {
        answer.get("custody-audit-sequence").unwrap().to_str().unwrap().parse().unwrap()
    };
    let before = sequence(get().unwrap().metadata());
    let refuses = |why: &str| {
        eventually(&format!("it is refused: {why}"), LIMIT, || {
            let refused = get().err()?;
            assert_eq!(custody_rpc::status::reason(&refused), "AUDIT_UNAVAILABLE", "{refused}");
            refused.message().contains(why).then_some(())
        });
    };
    let works = || {
        eventually("it works again by itself", LIMIT, || get().ok());
    };

    disk.fill().unwrap();
    // What is left of the last block is used up first.
    refuses("disk is full");
    disk.free().unwrap();
    works();

    let journal = audit.join("journal-000001.jsonl");
    let name = journal.display().to_string();
    run("chattr", &["+i", &name]);
    refuses("read-only");
    run("chattr", &["-i", &name]);
    works();

    // Proofs need the tree's hashes; a disk that takes records and not those stops nothing, and they are made good.
    let tree = audit.join("tree").display().to_string();
    run("chattr", &["+i", &tree]);
    works();
    run("chattr", &["-i", &tree]);

    fs::remove_file(&journal).unwrap();
    let refused = get().unwrap_err();
    assert!(refused.message().contains("removed or replaced"), "{refused}");
    works();

    disk.freeze().unwrap();
    refuses("does not answer");
    // At once from now on, and not after its caller's patience.
    assert!(get().unwrap_err().message().contains("does not answer"));
    disk.thaw().unwrap();
    works();

    // The answers said where they are, and each is proven to be there.
    let answer = get().unwrap();
    let last = sequence(answer.metadata());
    assert!(last > before);
    let proof = dir.join("proof");
    let proof_path = proof.display().to_string();
    block_in_place(|| {
        eventually("the hashes are made good", LIMIT, || {
            deployment.cli(&["audit", "prove", &last.to_string(), &proof_path]).ok()
        });
        let shown = deployment.run(&["audit", "check", &proof_path]).to_string();
        assert!(shown.contains("KeyGet"), "{shown}");
        let altered = fs::read_to_string(&proof).unwrap().replacen("index ", "index 1", 1);
        fs::write(&proof, altered).unwrap();
        let refused = deployment.cli(&["audit", "check", &proof_path]).unwrap_err();
        assert!(refused.to_string().contains("does NOT hold"), "{refused}");
        let kept = deployment.run(&["audit", "checkpoint"]);
        let kept_path = dir.join("kept").display().to_string();
        fs::write(&kept_path, kept.as_str().unwrap()).unwrap();
        let story = deployment.run(&["audit", "explain", "vaults/k/keys/k"]).to_string();
        assert!(story.contains("KeyCreate") && story.contains("KeyGet"), "{story}");
        let denied = deployment.run(&["audit", "list", "--operation", "KeyGet", "--result", "Success"]);
        assert!(denied.as_array().is_some_and(|all| !all.is_empty()));
        let verified = deployment.run(&["audit", "verify", "--checkpoint", &kept_path]).to_string();
        assert!(verified.contains("records"), "{verified}");
    });
    drop(deployment);
    drop(disk);
    _ = fs::remove_dir_all(dir);
}
