//! Who may do what to which key: role definitions, groups, assignments and decisions. Pure functions over tables.

mod assignment;
mod decision;
mod explain;
mod group;
mod role;
mod scope;

pub use assignment::{Assignment, Condition, Unmet};
pub use decision::{Assignments, ConflictingDuty, Decision};
pub use explain::{Considered, Holder, Verdict};
pub use group::Group;
pub use role::{ForbiddenRole, Role, UnknownRole};
pub use scope::{Scope, ScopeError};
