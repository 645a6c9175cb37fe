//! The storage node's domain: sealed volumes, key leases, backups. No network and no clock of its own.
//!
//! Start at [`Volume`]; the bytes on disk are in `docs/formats/volume.md`, drawn at [`layout`].

mod allocation;
mod anchor;
mod backup;
mod backup_reader;
mod backup_store;
mod backup_writer;
mod block_map;
mod error;
mod every_core;
mod extent;
mod extent_budget;
mod extent_table;
mod flush;
pub mod layout;
mod lease;
mod read;
mod recovery;
mod rotation;
mod snapshot;
mod spill;
mod superblock;
mod volume;
mod wal_archive;
mod wal_key;
mod write;
mod write_behind;

pub use anchor::anchor_path;
pub use backup::{BackupError, BackupManifest, Base, Marks};
pub use backup_reader::{Piece, read_backup, read_backup_from, read_marks};
pub use backup_store::{
    BackupSink, BackupStore, Directory, MANIFEST_NAME, Segment, SegmentWriter, segment_name,
};
pub use backup_writer::write_backup;
pub use error::VolumeError;
pub use extent_budget::ExtentBudget;
pub use flush::HEADERS_EVERY;
pub use lease::{Lease, LeaseEvent, LeaseState, RevokeReason};
pub use snapshot::Snapshot;
pub use spill::{SpillError, SpillId, SpillLimits, SpillWriter, Spills};
pub use superblock::{Protector, ProtectorKind, Restoring, Superblock, SuperblockError};
pub use volume::{Volume, VolumeOptions};
pub use wal_archive::{
    NotAWalFile, SealedWal, WAL_FILE_LEN_MAX, WAL_FOLDER, WalArchive, WalFileKey, WalFileName, WalHeader,
    WalObject, WalReader, WalWriter,
};
pub use wal_key::{NotAWalKeyId, WalKeyEntry, WalKeyId};
