//! What protects a volume: checked, wrapped, and changed while it serves.

use crate::{
    dependents::Declared,
    inventory::volume_facts,
    keeper,
    managed::Managed,
    node::{Node, blocking, failed, key_of, refused},
};
use custody_clients::VaultAccess;
use custody_envelope::VolumeKey;
use custody_node::{Protector, ProtectorKind, Superblock};
use custody_rpc::status::{invalid, status};
use custody_types::{ManagedIdentityName, VolumeName, WrappedKey};
use std::{fs::File, sync::Arc};
use tonic::Status;

/// What shall protect a volume.
pub(crate) struct Protection {
    /// A key or a key version.
    pub(crate) key: String,
    pub(crate) managed_identity: String,
    pub(crate) customer_managed: bool,
    /// The request's fields of key and identity.
    pub(crate) fields: [&'static str; 2],
}

impl Protection {
    fn kind(&self) -> ProtectorKind {
        if self.customer_managed { ProtectorKind::CustomerManaged } else { ProtectorKind::ServiceManaged }
    }

    /// Whether this is what protects already.
    pub(crate) fn is(&self, protector: &Protector) -> bool {
        (&self.key, &self.managed_identity, self.kind())
            == (&protector.key, &protector.managed_identity, protector.kind)
    }

    fn protector(&self, wrapped: WrappedKey) -> Protector {
        Protector {
            kind: self.kind(),
            key: self.key.clone(),
            managed_identity: self.managed_identity.clone(),
            wrapped: Some(wrapped),
        }
    }
}

impl Node {
    /// Has a volume's key wrapped by another key, and puts that in place of its protector. What was wrapped by that key before
    /// the last change, and is not settled, is taken as it is: the present key need not open, for it may be why.
    pub(crate) async fn change_protector(
        self: &Arc<Self>,
        name: &str,
        by: Protection,
    ) -> Result<Arc<Managed>, Status> {
        let managed = self.volume(name)?;
        let _busy = self.reserve(&managed.name)?;
        let now = managed.protector();
        let Some(wrapped) = &now.wrapped else {
            return Err(invalid("name", "an ephemeral volume has no protector"));
        };
        if by.is(&now) {
            return Ok(managed);
        }
        let path = managed.path.clone();
        let superblock =
            blocking(move || Superblock::read(&File::open(path).map_err(failed)?).map_err(failed)).await?;
        let (next, key) = match superblock.former.filter(|former| by.is(former)) {
            Some(Protector { wrapped: Some(wrapped), .. }) => {
                let access = self.check_key(&by).await?;
                let plain = access.unwrap_key(&wrapped).await.map_err(refused)?;
                (by.protector(wrapped), VolumeKey::from_bytes(&plain).map_err(failed)?)
            }
            _ => {
                let plain = self.access(&now.managed_identity).unwrap_key(wrapped).await.map_err(refused)?;
                let key = VolumeKey::from_bytes(&plain).map_err(failed)?;
                let access = self.check_key(&by).await?;
                (wrap(&access, &by, &key).await?, key)
            }
        };
        let declared = self.declare_volume(&managed.name, &next).await?;
        let changed = keeper::change_protector(&managed, next, key).await;
        self.note_declared(&managed.name, declared).await;
        changed?;
        Ok(managed)
    }

    /// The rules that Azure has for a key that protects a database (azure-reference 1.2).
    pub(crate) async fn check_key(&self, new: &Protection) -> Result<VaultAccess, Status> {
        let [key_field, identity_field] = new.fields;
        let base = key_of(&new.key).ok_or_else(|| invalid(key_field, "must be a key or a key version"))?;
        new.managed_identity.parse::<ManagedIdentityName>().map_err(|e| invalid(identity_field, e))?;
        let access = self.access(&new.managed_identity);
        let facts = access.get_key(base.as_str()).await.map_err(refused)?;
        let unusable = |reason, why: &str| Err(status("FAILED_PRECONDITION", reason, why, None));
        if !matches!(facts.size_bits, 2048 | 3072 | 4096) {
            return unusable("KEY_SIZE", "the key must be RSA of 2048, 3072 or 4096 bits");
        }
        if new.customer_managed && !facts.purge_protected {
            return unusable(
                "PURGE_PROTECTION_REQUIRED",
                "the key's vault must have purge protection, or the data could be lost at once and for good; make the key in a vault that has it",
            );
        }
        if !new.key.contains("/versions/") && !facts.active {
            return unusable(
                "KEY_NOT_ACTIVE",
                "the key's current version is not active: enable it, and check its dates",
            );
        }
        Ok(access)
    }

    /// Has the vault know what a volume's protector needs, before it is stored.
    pub(crate) async fn declare_volume(
        &self,
        name: &VolumeName,
        protector: &Protector,
    ) -> Result<Declared, Status> {
        let none = || failed("the protector has no wrapped key");
        let version = &protector.wrapped.as_ref().ok_or_else(none)?.key_version;
        let declared = self.dependents.declare(name.as_str(), version, volume_facts(protector)).await;
        declared.map_err(refused)
    }
}

/// Has a volume key wrapped by a key that was checked.
pub(crate) async fn wrap(
    access: &VaultAccess,
    by: &Protection,
    key: &VolumeKey,
) -> Result<Protector, Status> {
    let wrapped = access.wrap_key(&by.key, key.expose_to_wrap()).await.map_err(refused)?;
    // What the vault gave must open again, or the volume would be lost with the first restart.
    let opened = access.unwrap_key(&wrapped).await.map_err(refused)?;
    if opened.as_slice() != key.expose_to_wrap() {
        return Err(failed("the vault unwrapped another key than it had wrapped"));
    }
    Ok(by.protector(wrapped))
}
