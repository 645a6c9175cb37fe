//! Verbs on volumes.

use crate::{
    output::{many, note, one},
    session::Session,
};
use clap::Subcommand;
use custody_proto::storage as wire;
use serde_json::json;
use std::time::Duration;

/// Between looks at how far a rotation is.
const POLL: Duration = Duration::from_millis(250);

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Lists the storage node's volumes.
    List,
    /// Retires every data key of a volume and re-encrypts what they seal, online.
    RotateDataKeys {
        name: String,
        /// Does not wait until everything is re-encrypted.
        #[arg(long)]
        no_wait: bool,
    },
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
                let rotation = v.data_key_rotation.unwrap_or_default();
                json!({ "name": v.name, "extents": rotation.extents, "retired_extents": rotation.retired_extents, "mib": v.size_bytes >> 20, "state": state, "reason": v.state_reason, "key": if v.ephemeral { "in memory only" } else { v.key.as_str() } })
            };
            many(session.format, all.volumes.into_iter().map(view).collect());
        }
        Verb::RotateDataKeys { name, no_wait } => {
            let mut seen = client
                .rotate_data_keys(wire::RotateDataKeysRequest { name: name.clone() })
                .await?
                .into_inner();
            loop {
                let rotation = seen.data_key_rotation.unwrap_or_default();
                let (left, extents) = (rotation.retired_extents, rotation.extents);
                if no_wait || left == 0 {
                    one(session.format, &json!({ "retired_extents": left, "extents": extents }));
                    return Ok(());
                }
                note(format!("{left} of {extents} extents are still to be re-encrypted"));
                tokio::time::sleep(POLL).await;
                let get = wire::GetVolumeRequest { name: name.clone() };
                seen = client.get_volume(get).await?.into_inner();
                anyhow::ensure!(
                    seen.state == i32::from(wire::VolumeState::Ready),
                    "`{name}` became inaccessible: {}; the rotation goes on when it is back",
                    seen.state_reason
                );
            }
        }
        Verb::RotateExtent { name, extent } => {
            let done =
                client.rotate_extent_key(wire::RotateExtentKeyRequest { name, extent }).await?.into_inner();
            one(session.format, &json!({ "generation": done.generation }));
        }
    }
    Ok(())
}
