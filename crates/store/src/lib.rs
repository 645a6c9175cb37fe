//! Crash-safe typed tables: the only user of sled.
