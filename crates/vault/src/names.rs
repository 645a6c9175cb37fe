//! Making ids, and a page of a list.

use crate::VaultError;
use custody_envelope::random;
use custody_types::VaultName;

/// The vault that a resource lies in.
pub(crate) fn vault_of(resource: &str) -> Result<VaultName, VaultError> {
    Ok(resource.split('/').take(2).collect::<Vec<_>>().join("/").parse()?)
}

/// A new random id of 32 hexadecimal digits.
pub(crate) fn new_id() -> Result<String, VaultError> {
    let mut id = [0; 16];
    random(&mut id)?;
    Ok(hex::encode(id))
}
