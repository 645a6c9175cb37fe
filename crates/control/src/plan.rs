//! Which steps carry a cluster through its state.
//!
//! Every step can be repeated: it makes what is not there and leaves what is. So a plan has no progress to store;
//! after a crash it runs again from its beginning.

use crate::{ClusterRecord, ClusterState, NodeRecord};

/// One thing for the control plane's shell to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Let the storage node act as the cluster's identity.
    BindIdentity,
    /// Take that back, unless another cluster needs it.
    UnbindIdentity,
    /// Have a data volume's key wrapped by the new protector's key.
    ChangeProtector(NodeRecord),
    /// Have it forget the protector that was left: from here on there is no way back.
    SettleProtector(NodeRecord),
    /// Take back that the storage node acts as the identity of the protector that was left, unless something needs it.
    UnbindFormerIdentity,
    /// Make a data volume larger.
    GrowVolume(NodeRecord),
    /// Wait until its PostgreSQL serves with all of it.
    GrowInstance(NodeRecord),
    /// Make a data volume.
    CreateVolume(NodeRecord),
    /// Make a temp volume, whose key lives in memory only.
    CreateTempVolume(NodeRecord),
    /// Remove both volumes.
    DeleteVolumes(NodeRecord),
    /// Make a PostgreSQL on them and wait until it serves.
    CreateInstance(NodeRecord),
    /// Start it and wait until it serves.
    StartInstance(NodeRecord),
    /// Stop it and detach its volumes.
    StopInstance(NodeRecord),
    /// Remove it.
    DeleteInstance(NodeRecord),
    /// Tell the coordinator where its workers are.
    LinkWorkers,
    /// Remove the archive of its log, unless a backup needs it.
    DeleteWalArchive,
}

/// The steps of a cluster's state, in order. None for a state that waits for an event.
#[must_use]
pub fn steps(cluster: &ClusterRecord) -> Vec<Step> {
    let nodes = || cluster.nodes.iter().cloned();
    match cluster.state {
        ClusterState::Creating => {
            let mut plan = vec![Step::BindIdentity];
            // All volumes first: a key that cannot be used ends the plan before any database is made.
            plan.extend(nodes().map(Step::CreateVolume));
            plan.extend(nodes().map(Step::CreateTempVolume));
            plan.extend(nodes().map(Step::CreateInstance));
            plan.push(Step::LinkWorkers);
            plan
        }
        ClusterState::Starting => nodes().map(Step::StartInstance).chain([Step::LinkWorkers]).collect(),
        ClusterState::Updating if cluster.growth.is_some() => {
            let grown = nodes().map(Step::GrowVolume).chain(nodes().map(Step::GrowInstance));
            grown.chain([Step::LinkWorkers]).collect()
        }
        ClusterState::Updating => {
            // All have changed before the first forgets what it was.
            let changed = nodes().map(Step::ChangeProtector).chain(nodes().map(Step::SettleProtector));
            [Step::BindIdentity].into_iter().chain(changed).chain([Step::UnbindFormerIdentity]).collect()
        }
        ClusterState::Stopping => nodes().map(Step::StopInstance).collect(),
        ClusterState::Deleting => {
            let instances = nodes().map(Step::DeleteInstance);
            let last = [Step::DeleteWalArchive, Step::UnbindIdentity];
            instances.chain(nodes().map(Step::DeleteVolumes)).chain(last).collect()
        }
        ClusterState::Inaccessible | ClusterState::Ready | ClusterState::Stopped => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ClusterSpec;
    use custody_types::UnixMillis;

    #[test]
    fn deleting_undoes_all_that_creating_does() {
        let spec = ClusterSpec::check("c", 2, 0, "vaults/v/keys/k", "managedIdentities/m", ("", "")).unwrap();
        let mut cluster = ClusterRecord::new(spec, "op".into(), UnixMillis::default());
        assert_eq!(
            cluster.nodes.iter().map(|n| n.id.as_str()).collect::<Vec<_>>(),
            ["c-coordinator", "c-worker-1", "c-worker-2"]
        );
        let count = |plan: &[Step], f: fn(&Step) -> bool| plan.iter().filter(|s| f(s)).count();
        let made = steps(&cluster);
        cluster.state = ClusterState::Deleting;
        let gone = steps(&cluster);
        assert_eq!(
            count(&made, |s| matches!(s, Step::CreateVolume(_))),
            count(&gone, |s| matches!(s, Step::DeleteVolumes(_)))
        );
        assert_eq!(
            count(&made, |s| matches!(s, Step::CreateInstance(_))),
            count(&gone, |s| matches!(s, Step::DeleteInstance(_)))
        );
        assert_eq!((made.first(), gone.last()), (Some(&Step::BindIdentity), Some(&Step::UnbindIdentity)));
    }

    #[test]
    fn a_wrong_request_names_its_field() {
        let check = |id, workers, size, key, identity| {
            ClusterSpec::check(
                id,
                workers,
                size,
                key,
                identity,
                ("vaults/platform/keys/service", "managedIdentities/platform"),
            )
            .map_err(|e| e.field)
        };
        assert_eq!(check("C", 0, 0, "", ""), Err("cluster_id"));
        assert_eq!(check("c", 17, 0, "", ""), Err("cluster.worker_count"));
        assert_eq!(check("c", -1, 0, "", ""), Err("cluster.worker_count"));
        assert_eq!(check("c", 0, 4097, "", ""), Err("cluster.volume_size_bytes"));
        assert_eq!(check("c", 0, 0, "k", "managedIdentities/m"), Err("cluster.encryption.key"));
        assert_eq!(check("c", 0, 0, "vaults/v/keys/k", ""), Err("cluster.encryption.managed_identity"));
        assert_eq!(check("c", 0, 0, "", "managedIdentities/m"), Err("cluster.encryption.key"));
        assert!(!check("c", 0, 0, "", "").unwrap().encryption.customer_managed);
    }
}
