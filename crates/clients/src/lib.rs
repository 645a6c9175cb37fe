//! Typed clients of every service.
