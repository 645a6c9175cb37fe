//! The file system on a volume: made once, mounted, taken away.

use crate::{
    DatabaseError,
    attachment::is_mount_point,
    command::{check_file_system, run},
};
use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
};

/// Bytes looked at to tell an empty volume: an ext4 superblock lies within.
const HEAD_LEN: usize = 64 * 1024;

/// What a device holds.
enum Holds {
    Nothing,
    /// With so many blocks of the device after it; it may say that it has errors.
    OurFileSystem {
        blocks_left: u64,
        errors: bool,
    },
    SomethingElse,
}

/// Of an ext4 file system's state: errors were seen, or a change of its size was cut short.
const ERRORS: u8 = 2;
/// Bytes of a block, as the file system is made.
const BLOCK_LEN: u64 = 4096;

fn look(device: &str) -> Result<Holds, DatabaseError> {
    let mut head = vec![0; HEAD_LEN];
    let mut file = File::open(device)?;
    file.read_exact(&mut head)?;
    let len = file.seek(SeekFrom::End(0))?;
    // ext4's superblock is at 1024: its magic at 0x38 and its state after that, its blocks at 0x4 and 0x150.
    let field = |at: usize| {
        head.get(1024 + at..).and_then(|rest| rest.first_chunk::<4>()).copied().unwrap_or_default()
    };
    Ok(if head.iter().all(|b| *b == 0) {
        Holds::Nothing
    } else if field(0x38).starts_with(&[0x53, 0xef]) {
        let [low, high] = [0x4, 0x150].map(|at| u64::from(u32::from_le_bytes(field(at))));
        let errors = field(0x38).get(2).is_some_and(|state| state & ERRORS != 0);
        Holds::OurFileSystem { blocks_left: (len / BLOCK_LEN).saturating_sub(high << 32 | low), errors }
    } else {
        Holds::SomethingElse
    })
}

/// Mounts a device, making a file system on it if it holds nothing at all, and a larger one of it where the device has grown.
pub(crate) fn mount(device: &str, dir: &Path) -> Result<(), DatabaseError> {
    fs::create_dir_all(dir)?;
    match look(device)? {
        Holds::Nothing => {
            let options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard";
            run("mkfs.ext4", &["-q", "-b", "4096", "-m", "0", "-L", "custody", "-E", options, device])?;
        }
        Holds::OurFileSystem { blocks_left: 0, errors: false } => {}
        Holds::OurFileSystem { .. } => {
            // Not while it is mounted: that asks for more rights than root has in a container. A growth that is cut short leaves the
            // mark of errors, and the check makes good what it left.
            check_file_system(device)?;
            run("resize2fs", &[device])?;
        }
        Holds::SomethingElse => return Err(DatabaseError::Foreign(device.to_owned())),
    }
    run("mount", &["-t", "ext4", "-o", "noatime,nosuid,nodev,noexec", device, &dir.display().to_string()])?;
    Ok(())
}

/// Unmounts; lazily where a device that fails keeps it busy.
pub(crate) fn unmount(dir: &Path) {
    if !is_mount_point(dir) {
        return;
    }
    let path = dir.display().to_string();
    if run("umount", &[&path]).is_err() {
        _ = run("umount", &["--lazy", &path]);
    }
}
