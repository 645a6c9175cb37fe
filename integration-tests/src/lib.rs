//! Integration tests live in `tests/`, one file per promise.
