//! Starts real clusters for tests, plants secrets, scans disks.
