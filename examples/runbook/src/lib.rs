//! Nothing: the runbook is in `tests`.
