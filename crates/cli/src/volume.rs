//! Verbs on volumes.

use crate::{
    output::{many, one},
    session::Session,
};
use clap::Subcommand;
use custody_proto::storage as wire;
use serde_json::json;

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Lists the storage node's volumes.
    List,
    /// Re-encrypts one extent of 16 MiB under a new data key.
    RotateExtent { name: String, extent: u32 },
}

pub(crate) async fn run(session: &Session, verb: Verb) -> anyhow::Result<()> {
    let mut client = session.storage("sysadmin")?;
    match verb {
        Verb::List => {
            let all = client
                .list_volumes(wire::ListVolumesRequest { page_size: 1000, page_token: String::new() })
                .await?
                .into_inner();
            let view = |v: wire::Volume| {
                let state = wire::VolumeState::try_from(v.state)
                    .map(|s| s.as_str_name().trim_start_matches("VOLUME_STATE_").to_owned())
                    .unwrap_or_default();
                json!({ "name": v.name, "mib": v.size_bytes >> 20, "state": state, "reason": v.state_reason, "key": if v.ephemeral { "in memory only" } else { v.key.as_str() } })
            };
            many(session.format, all.volumes.into_iter().map(view).collect());
        }
        Verb::RotateExtent { name, extent } => {
            let done =
                client.rotate_extent_key(wire::RotateExtentKeyRequest { name, extent }).await?.into_inner();
            one(session.format, &json!({ "generation": done.generation }));
        }
    }
    Ok(())
}
