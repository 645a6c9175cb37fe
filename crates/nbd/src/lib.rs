//! NBD protocol server: no storage knowledge.
