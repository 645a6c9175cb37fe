//! Bring your own key: a private key that was wrapped elsewhere for a key exchange key of the vault (Azure: "Bring your
//! own key specification").

use crate::{Call, Declared, Vault, VaultError};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use custody_kek::PrivateKey;
use custody_types::{KeyOperation, KeyType, KeyVersionName, Permission, Protection, VaultName};
use serde::Deserialize;

/// Longest transfer file, in bytes.
const LEN_MAX: usize = 64 * 1024;
/// The one mechanism that the specification names.
const MECHANISM: &str = "CKM_RSA_AES_KEY_WRAP";

/// A transfer file (`.byok`).
#[derive(Deserialize)]
struct TransferFile {
    schema_version: String,
    header: Header,
    ciphertext: String,
}

#[derive(Deserialize)]
struct Header {
    kid: String,
    alg: String,
    enc: String,
}

fn bad(why: impl ToString) -> VaultError {
    VaultError::invalid("byok", why)
}

/// The key exchange key that `kid` names: as a URL of Azure's form, or as a resource name.
fn exchange_key(kid: &str, vault: &VaultName) -> Result<KeyVersionName, VaultError> {
    let of_this_vault = |name: &KeyVersionName| name.key().vault() == *vault;
    let named = match kid.strip_prefix("https://").map(|rest| rest.split('/').collect::<Vec<_>>()) {
        None => kid.parse::<KeyVersionName>().ok(),
        Some(parts) => match parts.as_slice() {
            [host, "keys", key, version] if host.split('.').next() == Some(vault.id()) => {
                format!("{vault}/keys/{}/versions/{version}", key.to_ascii_lowercase()).parse().ok()
            }
            _ => None,
        },
    };
    named.filter(of_this_vault).ok_or_else(|| {
        bad("`header.kid` must name a version of a key exchange key of the same vault, as https://VAULT/keys/KEY/VERSION")
    })
}

impl Vault {
    /// Opens a transfer file. The caller needs the right to import on the key exchange key too.
    pub(crate) fn open_transfer(
        &self,
        call: &Call,
        vault: &VaultName,
        file: &[u8],
        declared: Option<Declared>,
        protection: Protection,
    ) -> Result<PrivateKey, VaultError> {
        if file.len() > LEN_MAX {
            return Err(bad("is longer than 64 KiB"));
        }
        let file: TransferFile = serde_json::from_slice(file)
            .map_err(|_| bad("is not the JSON of a transfer file: schema_version, header, ciphertext"))?;
        if file.schema_version != "1.0.0" {
            return Err(bad("`schema_version` must be 1.0.0"));
        }
        if file.header.alg != "dir" || file.header.enc != MECHANISM {
            return Err(bad("`header` must have alg dir and enc CKM_RSA_AES_KEY_WRAP"));
        }
        let exchange = exchange_key(&file.header.kid, vault)?;
        if !self.gate.may(call, Permission::Import, exchange.as_str()) {
            let (permission, resource) = (Permission::Import, exchange.to_string());
            return Err(VaultError::PermissionDenied { permission, resource });
        }
        let wrapped = URL_SAFE_NO_PAD
            .decode(file.ciphertext.trim_end_matches('='))
            .map_err(|_| bad("`ciphertext` is not base64url"))?;
        let version = self.usable_version(&exchange, KeyOperation::Import)?;
        let backend = self.options.backend;
        let exchange = self.private(&version)?;
        let brought = match protection {
            // It is unwrapped inside: nobody here ever has it.
            Protection::Hsm => {
                PrivateKey::transfer_into(self.token()?, exchange, &wrapped, declared.map(|d| d.family))?
            }
            Protection::Software => {
                PrivateKey::import(&exchange.unwrap_rsa_aes(&wrapped, backend)?, backend)?
            }
        };
        if declared.is_some_and(|declared| !declared.fits(brought.kind())) {
            brought.destroy()?;
            let found = match brought.kind() {
                KeyType::Rsa(size) => format!("RSA of {} bits", size.bits()),
                KeyType::Ec(curve) => format!("EC on {curve}"),
            };
            return Err(bad(format!("has a key of another kind than was said: {found}")));
        }
        self.count(&version, KeyOperation::Import, call);
        Ok(brought)
    }
}
