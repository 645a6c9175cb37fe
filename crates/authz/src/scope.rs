//! What an assignment covers.

use custody_types::{KeyName, NameError, VaultName};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// What an assignment covers: a vault and all its keys, or one key and its versions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Scope {
    /// One key.
    Key(KeyName),
    /// A vault and every key in it.
    Vault(VaultName),
}

/// The text names neither a vault nor a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`scope` must be a vault or a key: {0}")]
pub struct ScopeError(NameError);

impl Scope {
    /// Whether this scope reaches `resource` (a vault, a key or a key version).
    #[must_use]
    pub fn covers(&self, resource: &str) -> bool {
        let own = self.as_str();
        resource.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The vault that the scope lies in.
    #[must_use]
    pub fn vault(&self) -> VaultName {
        match self {
            Self::Key(key) => key.vault(),
            Self::Vault(vault) => vault.clone(),
        }
    }

    /// As a resource name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Key(key) => key.as_str(),
            Self::Vault(vault) => vault.as_str(),
        }
    }
}

impl FromStr for Scope {
    type Err = ScopeError;
    fn from_str(text: &str) -> Result<Self, ScopeError> {
        if text.contains("/keys/") {
            text.parse().map(Self::Key).map_err(ScopeError)
        } else {
            text.parse().map(Self::Vault).map_err(ScopeError)
        }
    }
}

impl TryFrom<String> for Scope {
    type Error = ScopeError;
    fn try_from(text: String) -> Result<Self, ScopeError> {
        text.parse()
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> Self {
        scope.as_str().to_owned()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The scopes that reach `resource`, the narrowest first: its key, its vault.
pub(crate) fn scopes_of(resource: &str) -> impl Iterator<Item = &str> {
    let ends = resource.match_indices('/').map(|(at, _)| at).chain(std::iter::once(resource.len()));
    let mut found = [None; 2];
    for (n, end) in ends.enumerate() {
        match n {
            1 => found[1] = resource.get(..end),
            3 => found[0] = resource.get(..end),
            _ => {}
        }
    }
    found.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_covers_what_lies_below_it_and_nothing_beside() {
        let key: Scope = "vaults/v/keys/k".parse().unwrap();
        assert!(key.covers("vaults/v/keys/k/versions/0"));
        assert!(!key.covers("vaults/v/keys/k2"));
        assert!(!key.covers("vaults/v"));
        let vault: Scope = "vaults/v".parse().unwrap();
        assert!(vault.covers("vaults/v/keys/k"));
        assert!(!vault.covers("vaults/v2/keys/k"));
        assert!("clusters/c".parse::<Scope>().is_err());
        for resource in ["vaults/v", "vaults/v/keys/k", "vaults/v/keys/k/versions/0", "vaults", ""] {
            for scope in scopes_of(resource) {
                assert!(scope.parse::<Scope>().unwrap().covers(resource), "{resource}: {scope}");
            }
        }
        assert_eq!(
            scopes_of("vaults/v/keys/k/versions/0").collect::<Vec<_>>(),
            ["vaults/v/keys/k", "vaults/v"]
        );
        assert_eq!(scopes_of("vaults/v").collect::<Vec<_>>(), ["vaults/v"]);
    }
}
