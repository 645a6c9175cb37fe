//! Volumes without a cluster, and the keys in their files.

use anyhow::Context as _;
use custody_clients::AuthenticatedChannel;
use custody_proto::{
    storage::{
        CreateVolumeRequest, ReadBlocksRequest, Volume, WriteBlocksRequest,
        storage_node_client::StorageNodeClient,
    },
    vault::{UnwrapKeyRequest, key_vault_client::KeyVaultClient},
};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::task::JoinHandle;
use tonic::Status;

/// Makes a volume under a customer's key, as the control plane does. `control` is a channel to the storage node.
///
/// # Errors
/// The node refused.
pub async fn customer_volume(
    control: AuthenticatedChannel,
    id: &str,
    size_bytes: i64,
    key: &str,
    identity: &str,
) -> Result<(), Status> {
    let volume = Volume {
        size_bytes,
        key: key.to_owned(),
        managed_identity: identity.to_owned(),
        customer_managed: true,
        ..Volume::default()
    };
    let request =
        CreateVolumeRequest { volume_id: id.to_owned(), volume: Some(volume), source_backup: String::new() };
    StorageNodeClient::new(control).create_volume(request).await.map(drop)
}

/// A client of a storage node.
pub type Storage = StorageNodeClient<AuthenticatedChannel>;

/// Reads a volume's first 4,096 bytes.
///
/// # Errors
/// The node refused.
pub async fn read_block(client: &mut Storage, volume: &str) -> Result<Vec<u8>, Status> {
    let request = ReadBlocksRequest { name: format!("volumes/{volume}"), offset: 0, length: 4096 };
    let mut parts = client.read_blocks(request).await?.into_inner();
    let mut all = Vec::new();
    while let Some(part) = parts.message().await? {
        all.extend(part.data);
    }
    Ok(all)
}

/// Fills a volume's first 4,096 bytes.
///
/// # Errors
/// The node refused.
pub async fn write_block(client: &mut Storage, volume: &str, byte: u8) -> Result<(), Status> {
    let part = WriteBlocksRequest {
        name: format!("volumes/{volume}"),
        offset: 0,
        data: vec![byte; 4096],
        ..WriteBlocksRequest::default()
    };
    client.write_blocks(tokio_stream::iter([part])).await.map(drop)
}

/// Reads a volume that was filled with sevens without end, and counts; ends with the error.
#[must_use]
pub fn reader(mut client: Storage, volume: String, reads: Arc<AtomicU64>) -> JoinHandle<Status> {
    tokio::spawn(async move {
        loop {
            match read_block(&mut client, &volume).await {
                Ok(bytes) => assert!(bytes.iter().all(|b| *b == 7), "what was written is read"),
                Err(e) => return e,
            }
            reads.fetch_add(1, Ordering::Relaxed);
        }
    })
}

/// The wrapped key in a volume's superblock: `docs/formats/volume.md`.
///
/// # Errors
/// The file is not of that format.
pub fn wrapped_key(volume: &Path) -> anyhow::Result<Value> {
    let bytes = fs::read(volume).with_context(|| format!("`{}`", volume.display()))?;
    let len = bytes.get(12..).and_then(|rest| rest.first_chunk()).context("too short")?;
    let text = bytes.get(24..24 + u32::from_le_bytes(*len) as usize).context("too short")?;
    let json: Value = serde_json::from_slice(text)?;
    json.pointer("/protector/wrapped").cloned().context("no wrapped key")
}

/// The wrapped key of an archived log that has one: `docs/formats/wal-archive.md`.
///
/// # Errors
/// The folder is no such archive.
pub fn wrapped_log_key(archive: &Path) -> anyhow::Result<Value> {
    let key = fs::read_dir(archive.join("keys"))?.next().context("no key")??;
    let json: Value = serde_json::from_slice(&fs::read(key.path())?)?;
    json.get("wrapped").cloned().context("no wrapped key")
}

/// What a wrapped key opens to, as a managed identity; `vault` is its channel.
///
/// # Errors
/// The vault refused.
pub async fn unwrapped(vault: AuthenticatedChannel, wrapped: &Value) -> anyhow::Result<Vec<u8>> {
    let text = |name: &str| wrapped.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let request = UnwrapKeyRequest {
        name: text("key_version"),
        algorithm: text("algorithm"),
        ciphertext: serde_json::from_value(wrapped.get("ciphertext").cloned().unwrap_or_default())?,
    };
    Ok(KeyVaultClient::new(vault).unwrap_key(request).await?.into_inner().plaintext)
}
