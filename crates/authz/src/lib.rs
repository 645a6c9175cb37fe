//! Who may do what to which key: role definitions, assignments and decisions. Pure functions over tables.

mod decision;
mod role;

pub use decision::{Assignment, Assignments, ConflictingDuty, Decision, Scope, ScopeError};
pub use role::{ROLES, Role, UnknownRole};
