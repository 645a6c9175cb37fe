//! Making ids, and a page of a list.

use crate::VaultError;
use custody_envelope::random;

/// A new random id of 32 hexadecimal digits.
pub(crate) fn new_id() -> Result<String, VaultError> {
    let mut id = [0; 16];
    random(&mut id)?;
    Ok(hex::encode(id))
}
