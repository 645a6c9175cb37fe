//! A volume follows its key to new versions; one that it cannot use takes nothing away.

use custody_proto::{
    storage::{
        CreateVolumeRequest, GetVolumeRequest, ReadBlocksRequest, RevalidateVolumeRequest, Volume,
        VolumeState, storage_node_client::StorageNodeClient,
    },
    vault::{UpdateKeyRequest, key_vault_client::KeyVaultClient},
};
use custody_testkit::{Deployment, eventually};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_does_not_wrap_changes_nothing() {
    let deployment = Deployment::start();
    let (key, identity, _) = deployment.key_and_identity("follow");
    deployment.bind(&identity).await.unwrap();
    let mut control = StorageNodeClient::new(deployment.channel("storage", "workload:control").unwrap());
    let volume = Volume {
        size_bytes: 16 << 20,
        key: key.clone(),
        managed_identity: identity,
        customer_managed: true,
        ..Volume::default()
    };
    let request =
        CreateVolumeRequest { volume_id: "v".into(), volume: Some(volume), source_backup: String::new() };
    let first = control.create_volume(request).await.unwrap().into_inner().key_version;

    let mut officer = KeyVaultClient::new(deployment.channel("vault", "officer").unwrap());
    let mut allow = async |ops: &[&str]| {
        let request = UpdateKeyRequest {
            name: key.clone(),
            update_mask: Some(prost_types::FieldMask { paths: vec!["key_ops".into()] }),
            key_ops: ops.iter().map(|o| (*o).to_owned()).collect(),
            ..UpdateKeyRequest::default()
        };
        officer.update_key(request).await.unwrap();
    };
    // A new version is for the same operations as the one before it: this one does not wrap.
    allow(&["unwrapKey"]).await;
    _ = tokio::task::block_in_place(|| deployment.run(&["key", "rotate", &key]));
    let name = || "volumes/v".to_owned();
    let seen =
        control.revalidate_volume(RevalidateVolumeRequest { name: name() }).await.unwrap().into_inner();
    assert_eq!(seen.state, i32::from(VolumeState::Ready), "{}", seen.state_reason);
    assert_eq!(seen.key_version, first, "it stays with the version that it can use");
    let mut database = StorageNodeClient::new(deployment.channel("storage", "workload:database").unwrap());
    let read = ReadBlocksRequest { name: name(), offset: 0, length: 4096 };
    assert!(database.read_blocks(read).await.is_ok());

    allow(&["wrapKey", "unwrapKey"]).await;
    let moved = tokio::task::block_in_place(|| {
        eventually("the volume follows", Duration::from_secs(10), || {
            let get = control.get_volume(GetVolumeRequest { name: name() });
            let now = tokio::runtime::Handle::current().block_on(get).unwrap().into_inner().key_version;
            (now != first).then_some(now)
        })
    });
    assert!(moved.starts_with(&key), "{moved}");
}
