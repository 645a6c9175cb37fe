//! Key lifecycle behind the gate: authorize, audit, act, finish.
