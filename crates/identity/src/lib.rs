//! Principals, managed identities and signed tokens.
