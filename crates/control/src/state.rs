//! The life of a cluster, as a table.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a cluster is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum ClusterState {
    /// Being made; if that fails, everything made so far is removed.
    Creating,
    /// Being removed.
    Deleting,
    /// Its key cannot be used.
    Inaccessible,
    /// Serving.
    Ready,
    /// Being started.
    Starting,
    /// Stopped.
    Stopped,
    /// Being stopped.
    Stopping,
    /// Serving, while its volumes change to another protector, or grow.
    Updating,
}

/// What happens to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The steps of the state are done.
    Done,
    /// A caller wants it removed, or its making has failed.
    Delete,
    /// A caller wants it started.
    Start,
    /// A caller wants it stopped.
    Stop,
    /// A caller wants another protector, or larger volumes.
    Update,
    /// A volume reports that its key cannot be used.
    KeyLost,
    /// All volumes and instances serve again.
    KeyBack,
}

/// The event does not fit the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a cluster that is {from} cannot {event}")]
pub struct TransitionError {
    from: ClusterState,
    event: Event,
}

impl ClusterState {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Creating,
        Self::Ready,
        Self::Stopping,
        Self::Stopped,
        Self::Starting,
        Self::Inaccessible,
        Self::Updating,
        Self::Deleting,
    ];

    /// The state after an event. `Ok(None)` from `Deleting`: the cluster is gone.
    ///
    /// # Errors
    /// The event does not fit the state.
    pub fn after(self, event: Event) -> Result<Option<Self>, TransitionError> {
        use ClusterState::{Creating, Deleting, Inaccessible, Ready, Starting, Stopped, Stopping, Updating};
        Ok(Some(match (self, event) {
            (Creating | Starting | Updating, Event::Done) | (Inaccessible, Event::KeyBack) => Ready,
            (Stopping, Event::Done) => Stopped,
            (Deleting, Event::Done) => return Ok(None),
            (Ready | Starting, Event::KeyLost) => Inaccessible,
            (Ready | Inaccessible, Event::Stop) => Stopping,
            (Stopped, Event::Start) => Starting,
            (Ready, Event::Update) => Updating,
            (
                Creating | Ready | Stopped | Starting | Stopping | Inaccessible | Updating | Deleting,
                Event::Delete,
            ) => Deleting,
            (from, event) => return Err(TransitionError { from, event }),
        }))
    }
}

impl fmt::Display for ClusterState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "CREATING",
            Self::Deleting => "DELETING",
            Self::Inaccessible => "INACCESSIBLE",
            Self::Ready => "READY",
            Self::Starting => "STARTING",
            Self::Stopped => "STOPPED",
            Self::Stopping => "STOPPING",
            Self::Updating => "UPDATING",
        })
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "finish",
            Self::Delete => "be deleted",
            Self::Start => "be started",
            Self::Stop => "be stopped",
            Self::Update => "be changed",
            Self::KeyLost => "lose its key",
            Self::KeyBack => "get its key back",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pair, so that a change of the machine shows in review.
    #[test]
    fn the_table() {
        let events = [
            Event::Done,
            Event::Delete,
            Event::Start,
            Event::Stop,
            Event::Update,
            Event::KeyLost,
            Event::KeyBack,
        ];
        let mut table = String::new();
        for state in ClusterState::ALL {
            for event in events {
                let next = match state.after(event) {
                    Ok(Some(next)) => next.to_string(),
                    Ok(None) => "(gone)".to_owned(),
                    Err(_) => continue,
                };
                table += &format!("{state} + {event} -> {next}\n");
            }
        }
        assert_eq!(
            table,
            "CREATING + finish -> READY\nCREATING + be deleted -> DELETING\n\
             READY + be deleted -> DELETING\nREADY + be stopped -> STOPPING\nREADY + be changed -> UPDATING\nREADY + lose its key -> INACCESSIBLE\n\
             STOPPING + finish -> STOPPED\nSTOPPING + be deleted -> DELETING\n\
             STOPPED + be deleted -> DELETING\nSTOPPED + be started -> STARTING\n\
             STARTING + finish -> READY\nSTARTING + be deleted -> DELETING\nSTARTING + lose its key -> INACCESSIBLE\n\
             INACCESSIBLE + be deleted -> DELETING\nINACCESSIBLE + be stopped -> STOPPING\nINACCESSIBLE + get its key back -> READY\n\
             UPDATING + finish -> READY\nUPDATING + be deleted -> DELETING\n\
             DELETING + finish -> (gone)\nDELETING + be deleted -> DELETING\n"
        );
    }
}
