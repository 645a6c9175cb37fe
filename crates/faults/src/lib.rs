//! How a cloud's vault misbehaves: profiles, and when what goes wrong. No network, no vault, and no clock of its own.
//!
//! A vault that is started with a profile asks [`Faults`] at the places where a cloud's would misbehave: before a call is taken, at
//! the gate, and where a change takes its time to be seen. What is asked decides; what answers does not know who asks.

mod faults;
mod latency;
mod profile;
mod throttle;

pub use faults::{Change, Edge, Faults, Region};
pub use latency::Latency;
pub use profile::{Bursts, Outages, Profile, ProfileError, Span};
pub use throttle::{Limits, Throttles, Weight};
