//! Groups of principals: who is in one holds what is given to it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A group of a vault. It has no groups as members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// `vaults/{vault}/groups/{id}`.
    pub name: String,
    /// Principals and managed identities.
    pub members: BTreeSet<String>,
}
