//! The file system on a volume: made once, mounted, taken away.

use crate::{DatabaseError, attachment::is_mount_point, command::run};
use std::{
    fs::{self, File},
    io::Read as _,
    path::Path,
};

/// Bytes looked at to tell an empty volume: an ext4 superblock lies within.
const HEAD_LEN: usize = 64 * 1024;

/// What a device holds.
enum Holds {
    Nothing,
    OurFileSystem,
    SomethingElse,
}

fn look(device: &str) -> Result<Holds, DatabaseError> {
    let mut head = vec![0; HEAD_LEN];
    File::open(device)?.read_exact(&mut head)?;
    // ext4's magic, at 0x38 of the superblock at 1024.
    let magic = head.get(1024 + 0x38..1024 + 0x3a);
    Ok(if head.iter().all(|b| *b == 0) {
        Holds::Nothing
    } else if magic == Some(&[0x53, 0xef]) {
        Holds::OurFileSystem
    } else {
        Holds::SomethingElse
    })
}

/// Mounts a device, making a file system on it if it holds nothing at all.
pub(crate) fn mount(device: &str, dir: &Path) -> Result<(), DatabaseError> {
    fs::create_dir_all(dir)?;
    match look(device)? {
        Holds::Nothing => {
            let options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard";
            run("mkfs.ext4", &["-q", "-b", "4096", "-m", "0", "-L", "custody", "-E", options, device])?;
        }
        Holds::OurFileSystem => {}
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
