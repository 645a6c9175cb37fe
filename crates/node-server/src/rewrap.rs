//! Wrapping anew, with a key's current version, the keys of what is stored here under an older one.

use crate::{
    backup::{backup_failed, read_manifest},
    dependents::{Facts, Place},
    inventory::{backup_resource, manifest_facts},
    keeper,
    node::{Node, blocking, failed, refused},
    wal::store_key,
    wal_index,
};
use custody_clients::VaultAccess;
use custody_node::{BackupError, BackupManifest, WalKeyEntry};
use custody_proto::{
    storage::{RewrapFailure, RewrapProgress},
    vault::DependentKind,
};
use custody_rpc::status::{invalid, reason, status};
use custody_types::{KeyName, KeyVersionName, ManagedIdentityName, WrappedKey};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tonic::Status;

/// Failures that are told of.
const FAILURES_MAX: usize = 1000;
/// How long it may take until the vault has heard of all of it.
const TELL_LIMIT: Duration = Duration::from_secs(10);
const PER_SECOND: u32 = 50;
const PER_SECOND_MAX: u32 = 1000;

/// One order.
struct Job {
    node: Arc<Node>,
    key: KeyName,
    /// As whom, where nothing says as whom.
    managed_identity: String,
}

/// Begins; progress comes on the channel.
pub(crate) fn begin(
    node: &Arc<Node>,
    key: &str,
    managed_identity: &str,
    per_second: u32,
) -> Result<mpsc::Receiver<Result<RewrapProgress, Status>>, Status> {
    let key: KeyName = key.parse().map_err(|e| invalid("key", e))?;
    if !managed_identity.is_empty() {
        _ = managed_identity.parse::<ManagedIdentityName>().map_err(|e| invalid("managed_identity", e))?;
    }
    if per_second > PER_SECOND_MAX {
        return Err(invalid("per_second", "must be 1 to 1,000, or 0 for 50"));
    }
    let every = Duration::from_secs(1) / if per_second == 0 { PER_SECOND } else { per_second };
    let job = Job { node: node.clone(), key, managed_identity: managed_identity.to_owned() };
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        let last = job.run(every, &sender).await;
        _ = sender.send(last).await;
    });
    Ok(receiver)
}

impl Job {
    async fn run(
        &self,
        every: Duration,
        progress: &mpsc::Sender<Result<RewrapProgress, Status>>,
    ) -> Result<RewrapProgress, Status> {
        let all = self.node.dependents.of_key(&self.key);
        let mut told = RewrapProgress::default();
        if all.is_empty() {
            told.complete = self.node.dependents.told(TELL_LIMIT).await;
            return Ok(told);
        }
        let current = self.current_version().await?;
        let old: Vec<_> = all.into_iter().filter(|((_, version), _)| *version != current).collect();
        told.total = u64::try_from(old.len()).unwrap_or(u64::MAX);
        let mut turns = interval(every);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for (place, facts) in old {
            turns.tick().await;
            if progress.is_closed() {
                return Ok(told);
            }
            if let Err(e) = self.one(&place, &facts, &current).await {
                tracing::warn!(resource = place.0, custody.key.version = %place.1, error = e.message(), "not wrapped anew");
                if told.failures.len() < FAILURES_MAX {
                    told.failures.push(failure(place, &e));
                }
            }
            told.done += 1;
            _ = progress.try_send(Ok(told.clone()));
        }
        // Whoever asks the vault next is to hear that nothing needs the older versions.
        told.complete = self.node.dependents.told(TELL_LIMIT).await;
        Ok(told)
    }

    /// As whom, where something says so, and else as whom the order says, or as a volume under the key is used.
    fn identity(&self, said: &str) -> Result<String, Status> {
        let of_volume = || {
            let volumes = self.node.volumes().into_iter().map(|managed| managed.protector());
            let mut under = volumes.filter(|p| crate::node::key_of(&p.key).as_ref() == Some(&self.key));
            under.next().map(|p| p.managed_identity)
        };
        let named = [said, &self.managed_identity].into_iter().find(|name| !name.is_empty());
        named.map(str::to_owned).or_else(of_volume).ok_or_else(|| {
            invalid("managed_identity", "is required: nothing here says as whom the key was used")
        })
    }

    fn access(&self, said: &str) -> Result<VaultAccess, Status> {
        Ok(self.node.access(&self.identity(said)?))
    }

    /// As any identity that may read the key: of those that what is stored under it was wrapped as.
    async fn current_version(&self) -> Result<KeyVersionName, Status> {
        let mut identities = Vec::new();
        for ((resource, _), _) in self.node.dependents.of_key(&self.key) {
            let said = self.said(&resource).await?;
            if let Ok(identity) = self.identity(&said)
                && !identities.contains(&identity)
            {
                let facts = self.node.access(&identity).get_key(self.key.as_str()).await;
                match facts {
                    Ok(facts) => return Ok(facts.current_version),
                    Err(e) => tracing::warn!(identity, error = %e, "the key cannot be read"),
                }
                identities.push(identity);
            }
        }
        let why = match identities.is_empty() {
            true => "is required: nothing here says as whom the key was used".to_owned(),
            false => format!("none of {} may read `{}`", identities.join(", "), self.key),
        };
        Err(invalid("managed_identity", why))
    }

    /// As whom what a resource has was wrapped, as it says.
    async fn said(&self, resource: &str) -> Result<String, Status> {
        if let Some(name) = resource.strip_prefix("backups/") {
            return Ok(self.manifest(name).await?.map(|m| m.managed_identity).unwrap_or_default());
        }
        if let Some(name) = resource.strip_prefix("archives/") {
            let keys = self.node.wal_index.keys(name).into_iter();
            return Ok(keys.map(|(_, key)| key.managed_identity).find(|i| !i.is_empty()).unwrap_or_default());
        }
        let managed = self.node.volume(resource);
        Ok(managed.map(|managed| managed.protector().managed_identity).unwrap_or_default())
    }

    /// Wraps one anew.
    async fn one(
        &self,
        (resource, version): &Place,
        facts: &Facts,
        current: &KeyVersionName,
    ) -> Result<(), Status> {
        if let Some(name) = resource.strip_prefix("backups/") {
            return self.backup(name, current).await;
        }
        if let Some(name) = resource.strip_prefix("archives/") {
            return self.archive(name, current).await;
        }
        self.volume(resource, version, facts).await
    }

    async fn wrap_anew(&self, access: &VaultAccess, old: &WrappedKey) -> Result<WrappedKey, Status> {
        let plain = access.unwrap_key(old).await.map_err(refused)?;
        access.wrap_key(self.key.as_str(), &plain).await.map_err(refused)
    }

    /// A volume follows its key by itself; here it is made to look, and to forget what it followed from.
    async fn volume(&self, resource: &str, version: &KeyVersionName, facts: &Facts) -> Result<(), Status> {
        if facts.pinned {
            let why = "the volume's key was named with a version: give its cluster another (`custody cluster change-key`)";
            return Err(status("FAILED_PRECONDITION", "PINNED", why, None));
        }
        let managed = self.node.volume(resource)?;
        keeper::nudge(&managed).await?;
        let volume = managed.volume().ok_or_else(|| managed.refusal())?;
        let (node, name) = (self.node.clone(), managed.name.clone());
        let protector = volume.protector();
        if protector.wrapped.as_ref().is_some_and(|w| w.key_version != *version) {
            // A copy of the superblock may still have what a crash has left there.
            blocking(move || {
                volume.set_protector(protector).map_err(failed)?;
                node.note_volume(&name);
                Ok(())
            })
            .await?;
        }
        let left = self.node.dependents.of_key(&self.key);
        if left.contains_key(&(resource.to_owned(), version.clone())) {
            let why = match facts.kind {
                DependentKind::FormerProtector => "a change of the volume's key is not settled",
                _ => "the volume did not follow the key: see the node's log",
            };
            return Err(status("FAILED_PRECONDITION", "NOT_FOLLOWED", why, None));
        }
        Ok(())
    }

    async fn manifest(&self, name: &str) -> Result<Option<BackupManifest>, Status> {
        match read_manifest(&self.node.config.backups, name).await? {
            Ok(manifest) => Ok(Some(manifest)),
            Err(BackupError::Missing) => Ok(None),
            Err(e) => Err(backup_failed(e)),
        }
    }

    async fn backup(&self, name: &str, current: &KeyVersionName) -> Result<(), Status> {
        let _alone = self.node.writing.enter(name, "")?;
        let Some(manifest) = self.manifest(name).await? else {
            self.node.dependents.gone(&backup_resource(name));
            return Ok(());
        };
        // Another order was faster.
        if manifest.wrapped.key_version == *current {
            return Ok(());
        }
        let access = self.access(&manifest.managed_identity)?;
        let wrapped = self.wrap_anew(&access, &manifest.wrapped).await?;
        let facts = manifest_facts(&manifest);
        let version = wrapped.key_version.clone();
        let declared = self.node.dependents.declare(&backup_resource(name), &version, facts.clone()).await;
        let declared = declared.map_err(refused)?;
        let (store, backup) = (self.node.config.backups.clone(), name.to_owned());
        let stored = move || manifest.rewrap(store.as_ref(), &backup, wrapped).map_err(backup_failed);
        blocking(stored).await?;
        declared.stored();
        self.node.dependents.set(&backup_resource(name), [(version, facts)].into());
        Ok(())
    }

    async fn archive(&self, name: &str, current: &KeyVersionName) -> Result<(), Status> {
        let resource = wal_index::resource(name);
        for (id, key) in self.node.wal_index.keys(name) {
            if key.wrapped.key_version.key() != self.key || key.wrapped.key_version == *current {
                continue;
            }
            let managed_identity = self.identity(&key.managed_identity)?;
            let wrapped = self.wrap_anew(&self.node.access(&managed_identity), &key.wrapped).await?;
            store_key(&self.node, name, id, WalKeyEntry { managed_identity, wrapped }).await?;
            self.node.dependents.set(&resource, self.node.wal_index.versions(name));
        }
        Ok(())
    }
}

fn failure((resource, version): Place, e: &Status) -> RewrapFailure {
    RewrapFailure {
        resource,
        key_version: version.to_string(),
        reason: reason(e),
        message: e.message().to_owned(),
    }
}
