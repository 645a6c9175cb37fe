//! Where backups are kept: objects under a backup's name. A directory is one here; object stores are others'.

use crate::{WAL_FOLDER, write_behind::WriteBehind};
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    fmt,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

/// Files of a backup that are being written out; the oldest is waited for before another is begun.
const WRITTEN_OUT_MAX: usize = 16;
/// The object whose presence makes a backup one.
pub const MANIFEST_NAME: &str = "manifest.json";

/// A place for backups. Its calls block.
///
/// A backup has segments, numbered from 0, and a manifest, which is added last and removed first: without one there is
/// no backup. Names are ids with slashes between.
pub trait BackupStore: Send + Sync + fmt::Debug {
    /// Begins a backup. What an unfinished one of that name left is removed.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`], or the store failed.
    fn begin(&self, name: &str) -> io::Result<Box<dyn BackupSink>>;

    /// A backup's manifest.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`], or the store failed.
    fn manifest(&self, name: &str) -> io::Result<Vec<u8>>;

    /// A segment of a backup.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`], or the store failed.
    fn segment(&self, name: &str, index: u64) -> io::Result<Box<dyn Segment>>;

    /// Every backup, whole ones only.
    ///
    /// # Errors
    /// The store failed.
    fn names(&self) -> io::Result<Vec<String>>;

    /// Removes a backup, or all whose names begin with `name` and a slash, and what unfinished ones left. False where
    /// there is nothing.
    ///
    /// # Errors
    /// The store failed; calling it again goes on.
    fn remove(&self, name: &str) -> io::Result<bool>;

    /// Begins an object that is no backup's, at a path below [`WAL_FOLDER`](crate::WAL_FOLDER). It is there, whole and
    /// durable, when it is finished.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`], here or when it is finished, or the store failed.
    fn create(&self, path: &str) -> io::Result<Box<dyn SegmentWriter + '_>>;

    /// Reads such an object.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`], or the store failed.
    fn open(&self, path: &str) -> io::Result<Box<dyn Segment>>;

    /// The first bytes of such an object: `len` of them, or all where there are fewer.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`], or the store failed.
    fn head(&self, path: &str, len: usize) -> io::Result<Vec<u8>>;

    /// Makes an object, or puts it in the place of another: whole and durable when this returns. A crash leaves the one or the
    /// other.
    ///
    /// # Errors
    /// The store failed.
    fn put(&self, path: &str, bytes: &[u8]) -> io::Result<()>;

    /// The names of such objects in a folder, in any order; none where there is no such folder.
    ///
    /// # Errors
    /// The store failed.
    fn list(&self, folder: &str) -> io::Result<Vec<String>>;

    /// The names of the folders in a folder of such objects, in any order; none where there is no such folder.
    ///
    /// # Errors
    /// The store failed.
    fn folders(&self, folder: &str) -> io::Result<Vec<String>>;

    /// Removes such objects.
    ///
    /// # Errors
    /// The store failed; calling it again goes on.
    fn remove_objects(&self, paths: &[String]) -> io::Result<()>;
}

/// A backup that is being made. Segments may be written by several threads.
pub trait BackupSink: Send + Sync {
    /// Begins a segment.
    ///
    /// # Errors
    /// The store failed.
    fn segment(&self, index: u64) -> io::Result<Box<dyn SegmentWriter + '_>>;

    /// Makes it one: when this returns, it is there and durable.
    ///
    /// # Errors
    /// The store failed.
    fn commit(&self, manifest: &[u8]) -> io::Result<()>;
}

/// A segment that is being written.
pub trait SegmentWriter {
    /// Adds bytes.
    ///
    /// # Errors
    /// The store failed.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Ends it.
    ///
    /// # Errors
    /// The store failed.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// A segment of a backup.
pub trait Segment: Send {
    /// Its length in bytes.
    fn len(&self) -> u64;

    /// Whether there is nothing in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads all of `out` at an offset.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`], or the store failed.
    fn read_exact_at(&self, out: &mut [u8], at: u64) -> io::Result<()>;
}

/// The name of a segment under a backup's.
#[must_use]
pub fn segment_name(index: u64) -> String {
    format!("data/{index:08}")
}

/// Backups in a directory.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// In a directory that exists.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self(root)
    }

    /// The names in a folder: of folders, or of what is none.
    fn entries(&self, folder: &str, folders: bool) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.0.join(folder)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().into_string().unwrap_or_default();
            if !name.starts_with('.') && entry.file_type()?.is_dir() == folders {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn going(&self, name: &str) -> PathBuf {
        self.0.join(format!(".{}.deleted", name.replace('/', ".")))
    }
}

struct DirectorySink {
    root: PathBuf,
    dir: PathBuf,
    written_out: Mutex<VecDeque<File>>,
}

struct FileWriter<'a>(File, &'a DirectorySink);

/// A file that gets its name when it is whole.
struct NewFile<'a> {
    file: File,
    partial: PathBuf,
    path: PathBuf,
    root: &'a Path,
}

impl BackupStore for Directory {
    fn begin(&self, name: &str) -> io::Result<Box<dyn BackupSink>> {
        let dir = self.0.join(name);
        if dir.join(MANIFEST_NAME).exists() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.remove(name)?;
        fs::create_dir_all(dir.join("data"))?;
        Ok(Box::new(DirectorySink { root: self.0.clone(), dir, written_out: Mutex::default() }))
    }

    fn manifest(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.0.join(name).join(MANIFEST_NAME))
    }

    fn segment(&self, name: &str, index: u64) -> io::Result<Box<dyn Segment>> {
        self.open(&format!("{name}/{}", segment_name(index)))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let (mut found, mut open) = (Vec::new(), vec![(self.0.clone(), String::new())]);
        while let Some((dir, name)) = open.pop() {
            for entry in fs::read_dir(dir)? {
                let entry = entry?;
                let Ok(part) = entry.file_name().into_string() else { continue };
                if part.starts_with('.')
                    || part == "data"
                    || part == WAL_FOLDER
                    || !entry.file_type()?.is_dir()
                {
                    continue;
                }
                let name = if name.is_empty() { part } else { format!("{name}/{part}") };
                if entry.path().join(MANIFEST_NAME).exists() {
                    found.push(name);
                } else {
                    open.push((entry.path(), name));
                }
            }
        }
        Ok(found)
    }

    /// Renamed first, so that what is half removed is not taken for a backup.
    fn remove(&self, name: &str) -> io::Result<bool> {
        let (dir, going) = (self.0.join(name), self.going(name));
        let cut_short = going.exists();
        if cut_short {
            fs::remove_dir_all(&going)?;
        }
        match fs::rename(&dir, &going) {
            Ok(()) => fs::remove_dir_all(&going)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(cut_short),
            Err(e) => return Err(e),
        }
        sync_dir(&self.0)?;
        Ok(true)
    }

    fn create(&self, path: &str) -> io::Result<Box<dyn SegmentWriter + '_>> {
        let path = self.0.join(path);
        if path.exists() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let name = path.file_name().and_then(|n| n.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
        let partial = path.with_file_name(format!(".{name}.partial"));
        if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
            fs::create_dir_all(folder)?;
            sync_up(folder, &self.0)?;
        }
        let file = File::create(&partial)?;
        Ok(Box::new(NewFile { file, partial, path, root: &self.0 }))
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Segment>> {
        let file = File::open(self.0.join(path))?;
        let len = file.metadata()?.len();
        Ok(Box::new((file, len)))
    }

    fn head(&self, path: &str, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.0.join(path))?.take(len as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn put(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        put(&self.0.join(path), bytes, &self.0)
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        self.entries(folder, false)
    }

    fn folders(&self, folder: &str) -> io::Result<Vec<String>> {
        self.entries(folder, true)
    }

    fn remove_objects(&self, paths: &[String]) -> io::Result<()> {
        for path in paths {
            match fs::remove_file(self.0.join(path)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}

impl SegmentWriter for NewFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Linked, which takes no other file's place, as a rename would.
    fn finish(self: Box<Self>) -> io::Result<()> {
        self.file.sync_all()?;
        fs::hard_link(&self.partial, &self.path)?;
        sync_dir(self.path.parent().unwrap_or(self.root))
    }
}

impl Drop for NewFile<'_> {
    /// The file has its own name by now, or was given up.
    fn drop(&mut self) {
        _ = fs::remove_file(&self.partial);
    }
}

impl BackupSink for DirectorySink {
    fn segment(&self, index: u64) -> io::Result<Box<dyn SegmentWriter + '_>> {
        let file = File::create_new(self.dir.join(segment_name(index)))?;
        Ok(Box::new(FileWriter(file, self)))
    }

    fn commit(&self, manifest: &[u8]) -> io::Result<()> {
        for file in self.written_out.lock().drain(..) {
            file.sync_all()?;
        }
        sync_dir(&self.dir.join("data"))?;
        let path = self.dir.join(MANIFEST_NAME);
        put(&path, manifest, &self.root)
    }
}

impl SegmentWriter for FileWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    /// The kernel begins to write it out; it is waited for when others have been, or at the end.
    fn finish(self: Box<Self>) -> io::Result<()> {
        let Self(file, sink) = *self;
        WriteBehind::leave(&file);
        let mut written_out = sink.written_out.lock();
        written_out.push_back(file);
        let oldest = if written_out.len() > WRITTEN_OUT_MAX { written_out.pop_front() } else { None };
        drop(written_out);
        let Some(oldest) = oldest else { return Ok(()) };
        oldest.sync_all()?;
        WriteBehind::leave(&oldest);
        Ok(())
    }
}

impl Segment for (File, u64) {
    fn len(&self) -> u64 {
        self.1
    }

    fn read_exact_at(&self, out: &mut [u8], at: u64) -> io::Result<()> {
        self.0.read_exact_at(out, at)
    }
}

/// Makes a file below `root`, or puts it in the place of another, whole and durable.
fn put(path: &Path, bytes: &[u8], root: &Path) -> io::Result<()> {
    let folder = path.parent().unwrap_or(root);
    fs::create_dir_all(folder)?;
    let name = path.file_name().and_then(|n| n.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
    let partial = path.with_file_name(format!(".{name}.partial"));
    let mut file = File::create(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&partial, path)?;
    // Its own name may be new as well, and its folder's.
    sync_up(folder, root)
}

/// Makes the names of a folder, and of those above it up to `root`, durable.
fn sync_up(dir: &Path, root: &Path) -> io::Result<()> {
    dir.ancestors().take_while(|dir| dir.starts_with(root)).try_for_each(sync_dir)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
