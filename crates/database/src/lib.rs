//! Supervises PostgreSQL on an attached volume.
