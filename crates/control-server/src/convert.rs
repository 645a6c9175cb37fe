//! Between wire and domain.

use custody_control::{BackupRecord, ClusterRecord, ClusterState, OperationRecord, OperationResult};
use custody_proto::{
    control as wire,
    google::rpc,
    longrunning::{Operation, operation},
};
use custody_rpc::{status::code_named, timestamp::to_wire};
use prost_types::Any;

/// `google.rpc.ErrorInfo`, as the detail of an operation's error.
#[derive(Clone, PartialEq, prost::Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
}

fn error_info(reason: &str) -> Any {
    let info = ErrorInfo { reason: reason.to_owned(), domain: custody_rpc::status::DOMAIN.to_owned() };
    Any {
        type_url: "type.googleapis.com/google.rpc.ErrorInfo".to_owned(),
        value: prost::Message::encode_to_vec(&info),
    }
}

fn any<M: prost::Message>(name: &str, message: &M) -> Any {
    Any { type_url: format!("type.googleapis.com/custody.control.v1.{name}"), value: message.encode_to_vec() }
}

pub(crate) fn cluster(c: &ClusterRecord) -> wire::Cluster {
    let state = match c.state {
        ClusterState::Creating => wire::ClusterState::Creating,
        ClusterState::Ready => wire::ClusterState::Ready,
        ClusterState::Stopping => wire::ClusterState::Stopping,
        ClusterState::Stopped => wire::ClusterState::Stopped,
        ClusterState::Starting => wire::ClusterState::Starting,
        ClusterState::Inaccessible => wire::ClusterState::Inaccessible,
        ClusterState::Updating => wire::ClusterState::Updating,
        _ => wire::ClusterState::Deleting,
    };
    let encryption = &c.spec.encryption;
    let own = encryption.customer_managed;
    wire::Cluster {
        name: c.spec.name.to_string(),
        worker_count: i32::try_from(c.spec.workers).unwrap_or(0),
        volume_size_bytes: i64::try_from(c.spec.volume_size_bytes).unwrap_or(i64::MAX),
        encryption: Some(wire::Encryption {
            key: if own { encryption.key.clone() } else { String::new() },
            managed_identity: if own { encryption.managed_identity.to_string() } else { String::new() },
        }),
        state: state.into(),
        state_reason: c.state_reason.clone(),
        nodes: c
            .nodes
            .iter()
            .map(|n| wire::ClusterNode {
                role: n.role.clone(),
                volume: format!("volumes/{}", n.id),
                temp_volume: format!("volumes/{}", n.temp_id()),
                endpoint: n.endpoint.clone(),
                key_version: n.key_version.clone(),
                wal_reaches: n.wal_reaches.map(to_wire),
                wal_failure: n.wal_failure.clone(),
            })
            .collect(),
        create_time: Some(to_wire(c.create_time)),
        wal_archiving: c.spec.wal_archive.is_some(),
    }
}

pub(crate) fn backup(b: &BackupRecord) -> wire::Backup {
    wire::Backup {
        name: format!("backups/{}", b.id),
        cluster: b.cluster.to_string(),
        worker_count: i32::try_from(b.workers).unwrap_or(0),
        volume_size_bytes: i64::try_from(b.volume_size_bytes).unwrap_or(i64::MAX),
        create_time: Some(to_wire(b.create_time)),
        base: b.base.as_ref().map(|id| format!("backups/{id}")).unwrap_or_default(),
        complete_time: Some(to_wire(b.complete_time)),
        wal_archiving: b.wal_archive.is_some(),
    }
}

/// `response` is what the operation made, where it is still there.
pub(crate) fn operation(o: &OperationRecord, response: Option<Any>) -> Operation {
    let metadata = wire::OperationMetadata {
        target: o.target.clone(),
        step: o.step.clone(),
        create_time: Some(to_wire(o.create_time)),
    };
    let result = o.result.as_ref().map(|r| match r {
        OperationResult::Error { status, reason, message } => operation::Result::Error(rpc::Status {
            code: code_named(status).into(),
            message: message.clone(),
            details: vec![error_info(reason)],
        }),
        OperationResult::Success => operation::Result::Response(response.unwrap_or_else(|| Any {
            type_url: "type.googleapis.com/google.protobuf.Empty".to_owned(),
            value: Vec::new(),
        })),
    });
    Operation {
        name: format!("operations/{}", o.id),
        metadata: Some(any("OperationMetadata", &metadata)),
        done: result.is_some(),
        result,
    }
}

pub(crate) fn cluster_any(c: &ClusterRecord) -> Any {
    any("Cluster", &cluster(c))
}

pub(crate) fn backup_any(b: &BackupRecord) -> Any {
    any("Backup", &backup(b))
}
