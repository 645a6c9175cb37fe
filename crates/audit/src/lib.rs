//! The hash-chained, durable audit journal and its offline verifier.
