//! Backups in a bucket or a container: Azure Blob Storage, Amazon S3, and what speaks like them.

use anyhow::{Context as _, bail};
use custody_node::{
    BackupSink, BackupStore, Directory, MANIFEST_NAME, Segment, SegmentWriter, WAL_FOLDER, segment_name,
};
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::{
    ObjectStore, ObjectStoreExt as _, ObjectStoreScheme, PutMode, PutPayload, RetryConfig,
    aws::AmazonS3Builder, azure::MicrosoftAzureBuilder, path::Path,
};
use std::{fmt, io, path::PathBuf, sync::Arc, time::Duration};
use tokio::runtime::Runtime;

/// How long a request is tried again while the store is unreachable or asks to slow down.
const RETRY_TIMEOUT: Duration = Duration::from_secs(30);

/// Opens the place that a setting names. It is not asked for anything yet: a store that is down keeps no volume from
/// being served.
pub(crate) fn open(place: &str) -> anyhow::Result<Arc<dyn BackupStore>> {
    let Ok(url) = url::Url::parse(place) else {
        let root = PathBuf::from(place);
        std::fs::create_dir_all(&root)?;
        return Ok(Arc::new(Directory::new(root)));
    };
    let (scheme, root) = ObjectStoreScheme::parse(&url).with_context(|| format!("`{place}`"))?;
    let retry = RetryConfig { retry_timeout: RETRY_TIMEOUT, ..RetryConfig::default() };
    // The environment says what Azure's and Amazon's own tools read there: accounts, keys, endpoints, identities.
    let store: Arc<dyn ObjectStore> = match scheme {
        ObjectStoreScheme::MicrosoftAzure => {
            Arc::new(MicrosoftAzureBuilder::from_env().with_url(place).with_retry(retry).build()?)
        }
        ObjectStoreScheme::AmazonS3 => {
            Arc::new(AmazonS3Builder::from_env().with_url(place).with_retry(retry).build()?)
        }
        _ => bail!("`{place}` is no place for backups; give a directory, `az://` or `s3://`"),
    };
    Ok(Arc::new(Bucket { store, root, requests: Arc::new(Requests::start()?) }))
}

/// A container or a bucket. Its calls come from threads that may block.
#[derive(Clone)]
struct Bucket {
    store: Arc<dyn ObjectStore>,
    root: Path,
    requests: Arc<Requests>,
}

/// What the requests run on: one thread of their own, which outlives the node's runtime, so that a backup under way
/// when the node is told to end fails or ends as any other.
struct Requests(Option<Runtime>);

struct Sink {
    bucket: Bucket,
    backup: String,
}

/// Held in memory until it is whole: an object is made in one request, and so is there or not.
struct Writer<'a> {
    bucket: &'a Bucket,
    path: Path,
    bytes: Vec<u8>,
    mode: PutMode,
}

struct Bytes(bytes::Bytes);

impl Requests {
    fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self(Some(runtime)))
    }

    fn wait<T>(&self, request: impl Future<Output = T>) -> T {
        self.0.as_ref().expect("it is taken when dropped alone").block_on(request)
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        // Waits for nothing: the last owner may be a task.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.store, self.root)
    }
}

impl Bucket {
    /// The path of an object: of a backup, or of a folder of them.
    fn path(&self, name: &str, object: &str) -> Path {
        let parts = name.split('/').chain(object.split('/')).filter(|p| !p.is_empty());
        parts.fold(self.root.clone(), |path, part| path.join(part))
    }

    fn wait<T>(&self, call: impl Future<Output = object_store::Result<T>>) -> io::Result<T> {
        self.requests.wait(call).map_err(|e| match e {
            object_store::Error::NotFound { .. } => io::Error::new(io::ErrorKind::NotFound, e),
            object_store::Error::AlreadyExists { .. } => io::Error::new(io::ErrorKind::AlreadyExists, e),
            e => io::Error::other(e),
        })
    }

    fn get(&self, path: &Path) -> io::Result<bytes::Bytes> {
        self.wait(async { self.store.get(path).await?.bytes().await })
    }

    fn put(&self, path: &Path, bytes: Vec<u8>, mode: PutMode) -> io::Result<()> {
        self.wait(self.store.put_opts(path, PutPayload::from(bytes), mode.into())).map(drop)
    }

    /// Fails where there is an object already.
    fn absent(&self, path: &Path) -> io::Result<()> {
        match self.wait(self.store.head(path)) {
            Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// The folders in a folder, and whether it is a backup.
    fn look(&self, folder: &Path) -> io::Result<(Vec<Path>, bool)> {
        let found = self.wait(self.store.list_with_delimiter(Some(folder)))?;
        let whole = found.objects.iter().any(|o| o.location.filename() == Some(MANIFEST_NAME));
        Ok((found.common_prefixes, whole))
    }

    /// Backups in a folder, as paths.
    fn backups(&self, folder: Path) -> io::Result<Vec<Path>> {
        let (mut found, mut open) = (Vec::new(), vec![folder]);
        while let Some(folder) = open.pop() {
            let (folders, whole) = self.look(&folder)?;
            if whole {
                found.push(folder);
            } else {
                // Segments are looked at only where no manifest says that they are a backup's.
                let no_backups = [Some("data"), Some(WAL_FOLDER)];
                open.extend(folders.into_iter().filter(|f| !no_backups.contains(&f.filename())));
            }
        }
        Ok(found)
    }
}

impl BackupStore for Bucket {
    fn begin(&self, name: &str) -> io::Result<Box<dyn BackupSink>> {
        self.absent(&self.path(name, MANIFEST_NAME))?;
        self.remove(name)?;
        Ok(Box::new(Sink { bucket: self.clone(), backup: name.to_owned() }))
    }

    fn manifest(&self, name: &str) -> io::Result<Vec<u8>> {
        Ok(self.get(&self.path(name, MANIFEST_NAME))?.into())
    }

    fn segment(&self, name: &str, index: u64) -> io::Result<Box<dyn Segment>> {
        self.open(&format!("{name}/{}", segment_name(index)))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let found = self.backups(self.root.clone())?;
        let name = |path: Path| {
            let parts: Vec<_> = path.prefix_match(&self.root)?.map(|p| p.as_ref().to_owned()).collect();
            Some(parts.join("/"))
        };
        Ok(found.into_iter().filter_map(name).collect())
    }

    /// Manifests first: what is half removed is no backup.
    fn remove(&self, name: &str) -> io::Result<bool> {
        let folder = self.path(name, "");
        for backup in self.backups(folder.clone())? {
            self.wait(self.store.delete(&backup.join(MANIFEST_NAME)))?;
        }
        self.wait(async {
            let objects = self.store.list(Some(&folder)).map_ok(|o| o.location).boxed();
            let gone: Vec<_> = self.store.delete_stream(objects).try_collect().await?;
            Ok(!gone.is_empty())
        })
    }

    fn create(&self, path: &str) -> io::Result<Box<dyn SegmentWriter + '_>> {
        let path = self.path(path, "");
        // It would be refused when it is finished as well: now there is less to send.
        self.absent(&path)?;
        Ok(Box::new(Writer { bucket: self, path, bytes: Vec::new(), mode: PutMode::Create }))
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Segment>> {
        Ok(Box::new(Bytes(self.get(&self.path(path, ""))?)))
    }

    fn head(&self, path: &str, len: usize) -> io::Result<Vec<u8>> {
        let (path, len) = (self.path(path, ""), len as u64);
        let range = self.wait(self.store.get_range(&path, 0..len));
        Ok(range?.into())
    }

    fn put(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        Self::put(self, &self.path(path, ""), bytes.to_vec(), PutMode::Overwrite)
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let found = self.wait(self.store.list_with_delimiter(Some(&self.path(folder, ""))))?;
        Ok(found.objects.iter().filter_map(|o| Some(o.location.filename()?.to_owned())).collect())
    }

    fn folders(&self, folder: &str) -> io::Result<Vec<String>> {
        let found = self.wait(self.store.list_with_delimiter(Some(&self.path(folder, ""))))?;
        Ok(found.common_prefixes.iter().filter_map(|path| Some(path.filename()?.to_owned())).collect())
    }

    fn remove_objects(&self, paths: &[String]) -> io::Result<()> {
        let paths: Vec<_> = paths.iter().map(|path| Ok(self.path(path, ""))).collect();
        let gone = |e: &object_store::Error| matches!(e, object_store::Error::NotFound { .. });
        self.wait(async {
            let mut deleted = self.store.delete_stream(futures_util::stream::iter(paths).boxed());
            while let Some(done) = deleted.next().await {
                if let Err(e) = done
                    && !gone(&e)
                {
                    return Err(e);
                }
            }
            Ok(())
        })
    }
}

impl BackupSink for Sink {
    fn segment(&self, index: u64) -> io::Result<Box<dyn SegmentWriter + '_>> {
        let path = self.bucket.path(&self.backup, &segment_name(index));
        Ok(Box::new(Writer { bucket: &self.bucket, path, bytes: Vec::new(), mode: PutMode::Overwrite }))
    }

    fn commit(&self, manifest: &[u8]) -> io::Result<()> {
        let path = self.bucket.path(&self.backup, MANIFEST_NAME);
        self.bucket.put(&path, manifest.to_vec(), PutMode::Overwrite)
    }
}

impl SegmentWriter for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        self.bucket.put(&self.path, self.bytes, self.mode)
    }
}

impl Segment for Bytes {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_exact_at(&self, out: &mut [u8], at: u64) -> io::Result<()> {
        let from = usize::try_from(at).ok().and_then(|at| self.0.get(at..)?.get(..out.len()));
        out.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}
