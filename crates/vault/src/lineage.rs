//! Key lineage: whether a version can be retired, and what stands against it.

use crate::{
    Call, Dependent, DependentKind, Vault, VaultError,
    dependents::{Dependents, SHREDS},
    gate::op,
    record::Version,
};
use custody_types::{KeyName, KeyState, KeyVersionName, UnixMillis};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What became unreadable with a key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Shred {
    /// The key.
    pub key: KeyName,
    /// Who destroyed it.
    pub requester: String,
    /// The second officer.
    pub approver: String,
    /// When.
    pub shred_time: UnixMillis,
    /// What depended on it, and what is of no use without that.
    pub unreadable: Vec<Dependent>,
}

/// What needs a version.
#[derive(Clone, Debug)]
pub struct VersionLineage {
    /// The version.
    pub name: KeyVersionName,
    /// Its state.
    pub state: KeyState,
    /// Whether it wraps now.
    pub current: bool,
    /// When it was made.
    pub create_time: UnixMillis,
    /// Its dependents by kind: how many, and how many of them stay with it.
    pub dependents: BTreeMap<DependentKind, (usize, usize)>,
    /// Increments under other keys that are of no use without them.
    pub indirect: usize,
    /// Leases on it.
    pub leases: usize,
}

impl VersionLineage {
    /// What stands against its retirement, and what it takes; none if nothing does.
    #[must_use]
    pub fn obstacle(&self) -> Option<String> {
        let mut why = Vec::new();
        if self.current {
            why.push("it is the current version (rotate the key first)".to_owned());
        }
        let (mut moves, mut stays) = (Vec::new(), 0);
        for (kind, (count, pinned)) in &self.dependents {
            moves.push(kind.counted(*count));
            stays += pinned;
        }
        if !moves.is_empty() {
            why.push(format!("it is needed by {} (`--rewrap` moves what can be moved)", moves.join(", ")));
        }
        if stays > 0 {
            let what = DependentKind::Volume.counted(stays);
            why.push(format!("{what} of those stay with this version (`custody cluster change-key`)"));
        }
        if self.dependents.contains_key(&DependentKind::FormerProtector) {
            why.push("a change of key is not settled (it is when the cluster is READY again)".to_owned());
        }
        if self.leases > 0 {
            why.push(format!("{} leases on it are held", self.leases));
        }
        (!why.is_empty()).then(|| why.join("; "))
    }
}

/// What needs which version of a key.
#[derive(Clone, Debug)]
pub struct Lineage {
    /// Newest first.
    pub versions: Vec<VersionLineage>,
    /// Who reports, and when each last compared all that it has.
    pub holders: BTreeMap<String, Option<UnixMillis>>,
}

/// How many there are, in words.
pub(crate) fn counted<'a>(dependents: impl IntoIterator<Item = &'a Dependent>) -> String {
    let mut counts: BTreeMap<DependentKind, usize> = BTreeMap::new();
    for dependent in dependents {
        *counts.entry(dependent.kind).or_default() += 1;
    }
    counts.iter().map(|(kind, n)| kind.counted(*n)).collect::<Vec<_>>().join(", ")
}

impl Vault {
    /// Says for each version of a key whether it can be retired.
    ///
    /// # Errors
    /// Not allowed, or it does not exist.
    pub fn lineage(&self, call: &Call, key: &KeyName) -> Result<Lineage, VaultError> {
        self.gate.run::<op::GetLineage, _>(call, key.as_str(), |_| {
            let leases = self.leases_by_version(key);
            let dependents = self.dependents.lock();
            let catalog = self.catalog.read();
            let record = catalog.key(key)?;
            let (now, of_key) = (self.now(), dependents.of_key(key));
            let versions = record.versions.iter().rev().map(|name| {
                let version: &Version = catalog.version(name)?;
                let current = record.versions.last() == Some(name) && record.deleted.is_none();
                let held = leases.get(name).copied().unwrap_or_default();
                Ok(of_version(&dependents, &of_key, version, catalog.state(version, now), current, held))
            });
            let versions = versions.collect::<Result<_, VaultError>>()?;
            Ok(Lineage { versions, holders: dependents.holders.clone() })
        })
    }

    fn leases_by_version(&self, key: &KeyName) -> BTreeMap<KeyVersionName, usize> {
        let now = self.clock.monotonic();
        let register = self.leases.lock();
        let mut found: BTreeMap<KeyVersionName, usize> = BTreeMap::new();
        for held in register.held.values().filter(|held| held.end() > now && held.signed.key() == *key) {
            *found.entry(held.signed.lease.key_version.clone()).or_default() += 1;
        }
        found
    }

    /// The dependents of a key, or of a version, by version, holder and resource.
    ///
    /// # Errors
    /// Not allowed, or it does not exist.
    pub fn list_dependents(&self, call: &Call, parent: &str) -> Result<Vec<Dependent>, VaultError> {
        let version = parent.parse::<KeyVersionName>().ok();
        let key = match &version {
            Some(version) => version.key(),
            None => parent.parse().map_err(|e| VaultError::invalid("parent", e))?,
        };
        self.gate.run::<op::GetLineage, _>(call, parent, |_| {
            let dependents = self.dependents.lock();
            let catalog = self.catalog.read();
            catalog.key(&key)?;
            Ok(match &version {
                Some(version) => {
                    catalog.version(version)?;
                    let of_key = dependents.of_key(&key).into_iter();
                    of_key.filter(|d| d.key_version == *version).cloned().collect()
                }
                None => dependents.of_key(&key).into_iter().cloned().collect(),
            })
        })
    }

    /// What became unreadable with a key that was destroyed although something depended on it.
    ///
    /// # Errors
    /// Not allowed, or it was not.
    pub fn shred_report(&self, call: &Call, key: &KeyName) -> Result<Shred, VaultError> {
        self.gate.run::<op::GetShredReport, _>(call, key.as_str(), |_| {
            let found = self.store.get::<Shred>(SHREDS, key.as_str())?;
            found.ok_or_else(|| VaultError::NotFound(format!("{key}/shredReport")))
        })
    }
}

fn of_version(
    dependents: &Dependents,
    of_key: &[&Dependent],
    version: &Version,
    state: KeyState,
    current: bool,
    leases: usize,
) -> VersionLineage {
    let name = version.record.name.clone();
    let direct: Vec<&Dependent> = of_key.iter().copied().filter(|d| d.key_version == name).collect();
    let mut counts: BTreeMap<DependentKind, (usize, usize)> = BTreeMap::new();
    for dependent in &direct {
        let (count, pinned) = counts.entry(dependent.kind).or_default();
        *count += 1;
        *pinned += usize::from(dependent.pinned);
    }
    VersionLineage {
        indirect: dependents.without(&direct).len(),
        dependents: counts,
        create_time: version.record.create_time,
        name,
        state,
        current,
        leases,
    }
}
