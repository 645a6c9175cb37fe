//! The way of an instance's log to its archive and back: a socket that `custody-wal` comes to, and the storage node.
//!
//! One request on a connection. `put FILE SIZE USED WRITTEN` (bytes, bytes that follow, ms since 1970) and the bytes; the
//! answer is `ok`. `get FILE`; the answer is `missing`, or `ok SIZE` and parts, each a length (u32, little-endian) and so
//! many bytes, the last of length 0: what is not whole has no end. Either may be answered with `error WHY`.

use anyhow::{Context as _, bail, ensure};
use custody_clients::Storage;
use custody_database::{Instance, InstanceSpec, RecoveryProgress};
use custody_proto::storage::{ArchiveWalRequest, RestoreWalRequest};
use custody_rpc::timestamp::to_wire;
use custody_types::UnixMillis;
use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

/// Requests at once; PostgreSQL makes one at a time.
const REQUESTS_MAX: usize = 4;
/// How long one may take: `custody-wal` waits no longer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(110);
/// Bytes of a part, at most.
const PART_LEN: usize = 1 << 20;
/// Bytes of a request's line, at most.
const LINE_LEN_MAX: u64 = 256;

/// How archiving goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Archiving {
    pub(crate) last_file: String,
    pub(crate) reaches: Option<UnixMillis>,
    pub(crate) failure: String,
}

/// What one instance needs to be served.
#[derive(Clone)]
pub(crate) struct Carrier {
    spec: InstanceSpec,
    storage: Storage,
    progress: RecoveryProgress,
    told: watch::Sender<Archiving>,
}

impl Carrier {
    pub(crate) fn new(
        spec: InstanceSpec,
        storage: Storage,
        progress: RecoveryProgress,
        told: watch::Sender<Archiving>,
    ) -> Self {
        Self { spec, storage, progress, told }
    }

    /// Serves the socket until the task is ended.
    pub(crate) async fn run(self, dir: &Path) {
        if let Err(e) = self.serve(dir).await {
            tracing::error!(instance = self.spec.id, error = %e, "the log cannot be archived");
            self.told.send_modify(|a| a.failure = e.to_string());
        }
    }

    async fn serve(&self, dir: &Path) -> anyhow::Result<()> {
        let socket = Instance::wal_socket(dir);
        // The folder is the server's user's alone, and so is whom the socket lets in.
        fs::create_dir_all(socket.parent().context("a socket lies in a directory")?)?;
        _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).with_context(|| socket.display().to_string())?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666))?;
        let mut requests = JoinSet::new();
        loop {
            if requests.len() >= REQUESTS_MAX {
                _ = requests.join_next().await;
                continue;
            }
            let (stream, _) = listener.accept().await?;
            while requests.try_join_next().is_some() {}
            requests.spawn(self.clone().answer(BufReader::new(stream)));
        }
    }

    async fn answer(self, mut stream: BufReader<UnixStream>) {
        let done = tokio::time::timeout(REQUEST_TIMEOUT, self.carry(&mut stream)).await;
        if let Err(e) = done.unwrap_or_else(|late| Err(late.into())) {
            tracing::warn!(
                instance = self.spec.id,
                error = format!("{e:#}"),
                "a file of the log was not carried"
            );
            let why = format!("{e:#}").replace('\n', " ");
            _ = stream.write_all(format!("error {why}\n").as_bytes()).await;
        }
        _ = stream.shutdown().await;
    }

    async fn carry(&self, stream: &mut BufReader<UnixStream>) -> anyhow::Result<()> {
        let mut line = String::new();
        (&mut *stream).take(LINE_LEN_MAX).read_line(&mut line).await?;
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["put", file, size, used, written] => {
                let (size, used, written) =
                    (size.parse()?, used.parse()?, UnixMillis::from_millis(written.parse()?));
                let put = self.put(stream, file, size, used, written).await;
                self.told.send_modify(|a| match &put {
                    Ok(()) => {
                        (a.last_file, a.failure) = ((*file).to_owned(), String::new());
                        // A history or a mark says nothing of commits.
                        if file.len() == 24 {
                            a.reaches = Some(written);
                        }
                    }
                    Err(e) => a.failure = format!("{e:#}"),
                });
                put?;
                Ok(stream.write_all(b"ok\n").await?)
            }
            ["get", file] => self.get(stream, file).await,
            _ => bail!("`{}` is no request", line.trim_end()),
        }
    }

    async fn put(
        &self,
        stream: &mut BufReader<UnixStream>,
        file: &str,
        size_bytes: u64,
        content_bytes: u64,
        written: UnixMillis,
    ) -> anyhow::Result<()> {
        let archive = self.spec.archive.clone().context("the log of this instance is not archived")?;
        let (sender, parts) = mpsc::channel(2);
        let mut message = ArchiveWalRequest {
            name: format!("volumes/{}", self.spec.volume),
            archive,
            file: file.to_owned(),
            size_bytes,
            content_bytes,
            written_time: Some(to_wire(written)),
            data: Vec::new(),
        };
        let reading = async {
            let mut left = content_bytes;
            loop {
                let len = PART_LEN.min(usize::try_from(left).unwrap_or(PART_LEN));
                message.data = vec![0; len];
                stream.read_exact(&mut message.data).await?;
                left -= len as u64;
                // Where this fails, the storage node has refused the file, and its answer tells why.
                if sender.send(std::mem::take(&mut message)).await.is_err() || left == 0 {
                    drop(sender);
                    return Ok::<_, std::io::Error>(());
                }
            }
        };
        let mut storage = self.storage.clone();
        let (read, archived) = tokio::join!(reading, storage.archive_wal(ReceiverStream::new(parts)));
        archived.map_err(|e| anyhow::anyhow!("{}", e.message()))?;
        Ok(read?)
    }

    async fn get(&self, stream: &mut BufReader<UnixStream>, file: &str) -> anyhow::Result<()> {
        let recovery = self.spec.recovery.as_ref().context("this instance recovers from no archive")?;
        let request = RestoreWalRequest {
            name: format!("volumes/{}", self.spec.volume),
            archive: recovery.archive.clone(),
            file: file.to_owned(),
        };
        let failed = |e: tonic::Status| {
            if e.code() == Code::DataLoss {
                self.progress.damaged(e.message());
            }
            anyhow::anyhow!("{}", e.message())
        };
        let mut parts = match self.storage.clone().restore_wal(request).await {
            Ok(parts) => parts.into_inner(),
            Err(e) if e.code() == Code::NotFound => return Ok(stream.write_all(b"missing\n").await?),
            Err(e) => return Err(failed(e)),
        };
        // The first before anything is answered: most of what can fail has failed by then.
        let mut part = parts.message().await.map_err(failed)?.context("the storage node ended")?;
        stream.write_all(format!("ok {}\n", part.size_bytes).as_bytes()).await?;
        let mut sent = 0;
        loop {
            ensure!(part.data.len() <= PART_LEN, "a part is too long");
            if !part.data.is_empty() {
                stream.write_all(&u32::try_from(part.data.len())?.to_le_bytes()).await?;
                stream.write_all(&part.data).await?;
                sent += part.data.len();
            }
            if part.complete {
                break;
            }
            part = parts.message().await.map_err(failed)?.context("the storage node ended")?;
        }
        stream.write_all(&[0; 4]).await?;
        stream.flush().await?;
        tracing::debug!(instance = self.spec.id, file, sent, "a file of the log was read from the archive");
        self.progress.given(recovery, file);
        Ok(())
    }
}
