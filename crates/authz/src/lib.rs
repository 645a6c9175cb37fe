//! Role definitions, assignments and decisions: pure functions.
