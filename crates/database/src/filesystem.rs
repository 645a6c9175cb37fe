//! The file system on a volume: made once, made larger, mounted, taken away.

use crate::{
    DatabaseError,
    attachment::is_mount_point,
    command::run,
    geometry::Geometry,
    growth::{check, grow},
    mark::Mark,
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
    OurFileSystem(Geometry),
    SomethingElse,
}

/// What a device holds, and its bytes.
fn look(device: &str) -> Result<(Holds, u64), DatabaseError> {
    let mut head = vec![0; HEAD_LEN];
    let mut file = File::open(device)?;
    file.read_exact(&mut head)?;
    let len = file.seek(SeekFrom::End(0))?;
    let holds = match Geometry::read(&head) {
        Some(geometry) => Holds::OurFileSystem(geometry),
        None if head.iter().all(|b| *b == 0) => Holds::Nothing,
        None => Holds::SomethingElse,
    };
    Ok((holds, len))
}

/// Makes a file system on a device that holds nothing at all, and a larger one of it where the device has grown. `dir` is where it
/// will be mounted; what is under way is noted beside it. Can be repeated after any crash.
pub(crate) fn prepare(device: &str, dir: &Path) -> Result<(), DatabaseError> {
    let (making, growing) = (Mark::making(dir), Mark::growing(dir));
    let (holds, len) = look(device)?;
    match holds {
        Holds::Nothing => {
            growing.clear()?;
            making.set("")?;
            make(device, &making)
        }
        // Whatever was made of it by then: nothing was ever put into it.
        _ if making.is_set() => make(device, &making),
        Holds::OurFileSystem(now) if !now.errors && !growing.is_set() && now.blocks_on(len) == now.blocks => {
            Ok(())
        }
        Holds::OurFileSystem(_) => {
            check(device, &growing)?;
            // The check may have taken another superblock.
            if let (Holds::OurFileSystem(now), len) = look(device)?
                && now.blocks_on(len) > now.blocks
            {
                grow(device, now.blocks_on(len), &growing)?;
            }
            growing.clear()
        }
        Holds::SomethingElse => Err(DatabaseError::Foreign(device.to_owned())),
    }
}

fn make(device: &str, mark: &Mark) -> Result<(), DatabaseError> {
    let options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard";
    run("mkfs.ext4", &["-F", "-q", "-b", "4096", "-m", "0", "-L", "custody", "-E", options, device])?;
    mark.clear()
}

/// Mounts a device's file system, which is prepared before.
pub(crate) fn mount(device: &str, dir: &Path) -> Result<(), DatabaseError> {
    fs::create_dir_all(dir)?;
    prepare(device, dir)?;
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
