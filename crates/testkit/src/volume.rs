//! Volumes without a cluster, and the keys in their files.

use anyhow::Context as _;
use custody_clients::AuthenticatedChannel;
use custody_proto::{
    storage::{CreateVolumeRequest, Volume, storage_node_client::StorageNodeClient},
    vault::{UnwrapKeyRequest, key_vault_client::KeyVaultClient},
};
use serde_json::Value;
use std::{fs, path::Path};

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
) -> Result<(), tonic::Status> {
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

/// The wrapped key in the JSON that a file has at a place: `docs/formats/volume.md` and `wal-archive.md`.
///
/// # Errors
/// The file is not of that format.
pub fn wrapped_key(file: &Path, len_at: usize, pointer: &str) -> anyhow::Result<Value> {
    let bytes = fs::read(file).with_context(|| format!("`{}`", file.display()))?;
    let rest = bytes.get(len_at..).context("too short")?;
    let len = rest.first_chunk().map(|len| u32::from_le_bytes(*len) as usize).context("too short")?;
    // In a volume's header, the id and the number of writes stand between the length and the JSON.
    let json_at = len_at + if pointer.starts_with("/protector") { 12 } else { 4 };
    let json: Value = serde_json::from_slice(bytes.get(json_at..json_at + len).context("too short")?)?;
    json.pointer(pointer).cloned().context("no wrapped key")
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
