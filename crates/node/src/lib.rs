//! Sealed volumes, key leases and backups.
