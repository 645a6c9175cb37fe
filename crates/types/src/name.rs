//! Resource names (AIP-122): `vaults/{vault}/keys/{key}/versions/{version}` and its relatives.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, sync::Arc};

/// A resource name that does not follow its grammar. Says what was expected and why the text is not that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("name `{given}` is not of the form `{expected}`: {reason}")]
pub struct NameError {
    given: String,
    expected: &'static str,
    reason: &'static str,
}

impl NameError {
    fn new(given: &str, expected: &'static str, reason: &'static str) -> Self {
        Self { given: given.chars().take(120).collect(), expected, reason }
    }
}

/// Longest id in a name, in bytes (a DNS label).
const ID_LEN_MAX: usize = 63;

const ID_RULE: &str = "an id is 1 to 63 of a-z, 0-9 and -, begins with a letter and does not end with -";
const VERSION_RULE: &str = "an id that the vault gives is 32 lower-case hexadecimal digits";

fn id_ok(id: &str) -> bool {
    let bytes = id.as_bytes();
    (1..=ID_LEN_MAX).contains(&bytes.len())
        && bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.last() != Some(&b'-')
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

/// Longest id of a key: Azure's bound, whose clients choose such ids.
const KEY_ID_LEN_MAX: usize = 127;
const KEY_RULE: &str = "a key's id is 1 to 127 of a-z, 0-9 and -";

fn key_ok(id: &str) -> bool {
    (1..=KEY_ID_LEN_MAX).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn version_ok(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Splits `text` along a pattern of literal and id segments.
fn segments<'a, const N: usize>(
    text: &'a str,
    expected: &'static str,
    literals: [&'static str; N],
) -> Result<[&'a str; N], NameError> {
    let mut parts = text.split('/');
    let mut ids = [""; N];
    for (slot, literal) in ids.iter_mut().zip(literals) {
        if parts.next() != Some(literal) {
            return Err(NameError::new(text, expected, "a collection id is missing or misspelt"));
        }
        let id = parts.next().unwrap_or("");
        let (ok, rule) = match literal {
            "keys" => (key_ok(id), KEY_RULE),
            "versions" | "approvals" => (version_ok(id), VERSION_RULE),
            _ => (id_ok(id), ID_RULE),
        };
        if !ok {
            return Err(NameError::new(text, expected, rule));
        }
        *slot = id;
    }
    if parts.next().is_some() {
        return Err(NameError::new(text, expected, "there is text after the last id"));
    }
    Ok(ids)
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $pattern:literal, [$($literal:literal),+]) => {
        $(#[$doc])*
        ///
        /// Its copies share one text: a vault has a million of them in several places.
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The form of this name.
            pub const PATTERN: &'static str = $pattern;

            /// The whole name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The last id of the name.
            #[must_use]
            pub fn id(&self) -> &str {
                self.0.rsplit('/').next().unwrap_or("")
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                segments(text, $pattern, [$($literal),+])?;
                Ok(Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        /// Names are ordered as their texts are.
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// A vault.
    VaultName, "vaults/{vault}", ["vaults"]);
name_type!(
    /// A key: all its versions together. As a reference it is *versionless* and follows rotation.
    KeyName, "vaults/{vault}/keys/{key}", ["vaults", "keys"]);
name_type!(
    /// One version of a key.
    KeyVersionName, "vaults/{vault}/keys/{key}/versions/{version}", ["vaults", "keys", "versions"]);
name_type!(
    /// A group of principals that holds roles in a vault.
    GroupName, "vaults/{vault}/groups/{group}", ["vaults", "groups"]);
name_type!(
    /// A role that a vault's owner made.
    RoleDefinitionName, "vaults/{vault}/roleDefinitions/{role}", ["vaults", "roleDefinitions"]);
name_type!(
    /// A request for a second officer's approval.
    ApprovalName, "vaults/{vault}/approvals/{approval}", ["vaults", "approvals"]);
name_type!(
    /// A request for a second officer's approval in the identity service.
    IdentityApprovalName, "approvals/{approval}", ["approvals"]);
name_type!(
    /// A person or a program.
    PrincipalName, "principals/{principal}", ["principals"]);
name_type!(
    /// An identity that nodes act as on behalf of a cluster.
    ManagedIdentityName, "managedIdentities/{identity}", ["managedIdentities"]);
name_type!(
    /// A cluster.
    ClusterName, "clusters/{cluster}", ["clusters"]);
name_type!(
    /// A sealed volume on a storage node.
    VolumeName, "volumes/{volume}", ["volumes"]);

/// The first `n` segments of a name that has more.
fn first_segments(name: &str, n: usize) -> &str {
    let end = name.match_indices('/').nth(n - 1).map_or(name.len(), |(at, _)| at);
    name.get(..end).unwrap_or(name)
}

impl VaultName {
    /// The name of a key in this vault.
    ///
    /// # Errors
    /// The id is not a legal id.
    pub fn key(&self, id: &str) -> Result<KeyName, NameError> {
        format!("{self}/keys/{id}").parse()
    }
}

impl KeyName {
    /// The vault that holds this key.
    #[must_use]
    pub fn vault(&self) -> VaultName {
        VaultName(first_segments(&self.0, 2).into())
    }

    /// The name of a version of this key.
    ///
    /// # Errors
    /// The id is not 32 lower-case hexadecimal digits.
    pub fn version(&self, id: &str) -> Result<KeyVersionName, NameError> {
        format!("{self}/versions/{id}").parse()
    }
}

impl KeyVersionName {
    /// The key this is a version of.
    #[must_use]
    pub fn key(&self) -> KeyName {
        KeyName(first_segments(&self.0, 4).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_their_grammar() {
        for good in ["vaults/a", "vaults/contoso-prod-1"] {
            assert!(good.parse::<VaultName>().is_ok(), "{good}");
        }
        let long = format!("vaults/{}", "a".repeat(64));
        for bad in [
            "",
            "vaults",
            "vaults/",
            "vaults/A",
            "vaults/1a",
            "vaults/a-",
            "vaults/a/keys/b",
            "vaults/a/",
            &long,
            "vaults/é",
        ] {
            assert!(bad.parse::<VaultName>().is_err(), "{bad}");
        }
        let version: KeyVersionName =
            "vaults/v/keys/k/versions/0123456789abcdef0123456789abcdef".parse().unwrap();
        assert_eq!(version.key().as_str(), "vaults/v/keys/k");
        assert_eq!(version.key().vault().as_str(), "vaults/v");
        assert_eq!(version.id().len(), 32);
        assert!("vaults/v/keys/k/versions/1".parse::<KeyVersionName>().is_err());
        assert!(format!("vaults/v/keys/1-{}", "a".repeat(125)).parse::<KeyName>().is_ok());
        for bad in ["", "A", "a_b", "a b", &"a".repeat(128)] {
            assert!(format!("vaults/v/keys/{bad}").parse::<KeyName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_error_names_the_form_and_cuts_the_input() {
        let error = format!("{}/x", "v".repeat(4000)).parse::<KeyName>().unwrap_err().to_string();
        assert!(error.contains("vaults/{vault}/keys/{key}"));
        assert!(error.len() < 400);
    }
}
