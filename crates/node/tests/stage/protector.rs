//! A protector whose wrapped key no test needs.

use custody_node::{Protector, ProtectorKind};

pub(crate) fn protector() -> Protector {
    Protector {
        kind: ProtectorKind::CustomerManaged,
        key: "vaults/v/keys/k".into(),
        managed_identity: "managedIdentities/m".into(),
        wrapped: None,
    }
}
