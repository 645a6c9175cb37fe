//! Every data key of a volume is replaced while it is written to, also over a kill of the node; nothing is lost.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_proto::storage::{
    CreateVolumeRequest, ReadBlocksRequest, Volume, WriteBlocksRequest,
    storage_node_client::StorageNodeClient,
};
use custody_testkit::{Deployment, eventually};
use serde_json::Value;
use std::time::Duration;
use tokio::task::block_in_place;

const EXTENT: u64 = 16 << 20;
const EXTENTS: u64 = 12;

fn part(extent: u64, offset: u64, byte: u8) -> WriteBlocksRequest {
    let name = "volumes/raw".into();
    WriteBlocksRequest { name, offset: extent * EXTENT + offset, data: vec![byte; 64 << 10], flush: true }
}

async fn first(deployment: &Deployment, offset: u64) -> Vec<u8> {
    let mut client = StorageNodeClient::new(deployment.channel("storage", "workload:database").unwrap());
    let request = ReadBlocksRequest { name: "volumes/raw".into(), offset, length: 64 << 10 };
    let mut parts = client.read_blocks(request).await.unwrap().into_inner();
    let mut read = Vec::new();
    while let Some(part) = parts.message().await.unwrap() {
        read.extend(part.data);
    }
    read
}

#[tokio::test(flavor = "multi_thread")]
async fn all_data_keys_of_a_volume_are_replaced_online() {
    let deployment = block_in_place(Deployment::start);
    let volume = Volume {
        size_bytes: i64::try_from(EXTENTS * EXTENT).unwrap(),
        key: "vaults/platform/keys/service-managed".into(),
        managed_identity: "managedIdentities/platform".into(),
        ..Volume::default()
    };
    let request =
        CreateVolumeRequest { volume_id: "raw".into(), volume: Some(volume), source_backup: String::new() };
    let mut control = StorageNodeClient::new(deployment.channel("storage", "workload:control").unwrap());
    control.create_volume(request).await.unwrap();
    let mut database = StorageNodeClient::new(deployment.channel("storage", "workload:database").unwrap());
    for extent in 0..EXTENTS {
        database.write_blocks(tokio_stream::iter([part(extent, 0, extent as u8 + 1)])).await.unwrap();
    }

    let begun = deployment.run(&["volume", "rotate-data-keys", "volumes/raw", "--no-wait"]);
    assert_eq!(begun["extents"], EXTENTS, "{begun}");
    let seen = || {
        let all = deployment.cli(&["volume", "list"]).ok()?;
        let raw = all.as_array()?.iter().find(|v| v["name"] == "volumes/raw")?.clone();
        (raw["state"] == "READY").then_some(raw)
    };
    let left = |volume: &Value| volume["retired_extents"].as_u64().unwrap();
    block_in_place(|| {
        eventually("some are replaced and some are not", Duration::from_secs(20), || {
            seen().filter(|v| (2..EXTENTS - 1).contains(&left(v)))
        });
        // Writes go on, then the node is killed in the middle.
        let write = database.write_blocks(tokio_stream::iter([part(EXTENTS - 1, 1 << 20, 77)]));
        tokio::runtime::Handle::current().block_on(write).unwrap();
        deployment.kill("storage");
        let resumed = eventually("the volume is open again", Duration::from_secs(20), seen);
        assert!(left(&resumed) < EXTENTS, "what was done is not done again: {resumed}");
        eventually("the rotation is carried to its end", Duration::from_secs(30), || {
            seen().filter(|v| left(v) == 0 && v["extents"] == EXTENTS)
        });
    });
    for extent in 0..EXTENTS {
        let read = first(&deployment, extent * EXTENT).await;
        assert!(read == vec![extent as u8 + 1; 64 << 10], "extent {extent}");
    }
    assert!(first(&deployment, (EXTENTS - 1) * EXTENT + (1 << 20)).await == vec![77; 64 << 10]);

    // With waiting, and again: everything is under keys of this second order when the command ends.
    let done = block_in_place(|| deployment.run(&["volume", "rotate-data-keys", "volumes/raw"]));
    assert_eq!((done["retired_extents"].as_u64(), done["extents"].as_u64()), (Some(0), Some(EXTENTS)));
    let third = block_in_place(|| deployment.run(&["volume", "rotate-extent", "volumes/raw", "3"]));
    assert!(third["generation"].as_u64() >= Some(4), "each extent was rotated twice before: {third}");
    let none = deployment.cli(&["volume", "rotate-data-keys", "volumes/none"]).unwrap_err().to_string();
    assert!(none.contains("does not exist"), "{none}");
}
