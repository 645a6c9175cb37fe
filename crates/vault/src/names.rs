//! Making ids, and taking names apart.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_lies_in_a_vault_or_in_none() {
        for (resource, vault) in [
            ("vaults/v", Some("vaults/v")),
            ("vaults/v/keys/k/versions/1", Some("vaults/v")),
            ("vaults", None),
            ("seal", None),
            ("", None),
        ] {
            assert_eq!(vault_of(resource).ok().as_ref().map(VaultName::as_str), vault, "{resource}");
        }
    }
}
