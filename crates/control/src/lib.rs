//! Clusters as a state machine: plans, steps, reasons.
