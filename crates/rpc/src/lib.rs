//! Transport rules: TLS, tokens, policy table, deadlines, error details.
