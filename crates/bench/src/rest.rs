//! A client of the REST face that costs next to nothing: one connection, requests written once.

use crate::trust::client_config;
use anyhow::{Context as _, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use custody_testkit::Deployment;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

pub(crate) struct RestClient {
    stream: TlsStream<TcpStream>,
    host: String,
    token: String,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl RestClient {
    pub(crate) async fn connect(deployment: &Deployment, vault: &str, token: &str) -> anyhow::Result<Self> {
        let url = deployment.url("vault-rest")?;
        let port = url.rsplit(':').next().context("the address has no port")?;
        let name = format!("{vault}.vault.localhost");
        let config = client_config(deployment, &[])?;
        let socket = TcpStream::connect(format!("127.0.0.1:{port}")).await?;
        socket.set_nodelay(true)?;
        let stream = TlsConnector::from(config).connect(name.clone().try_into()?, socket).await?;
        let host = format!("{name}:{port}");
        Ok(Self { stream, host, token: token.to_owned(), request: Vec::new(), answer: vec![0; 16 * 1024] })
    }

    pub(crate) fn prepare_unwrap(&mut self, key: &str, version: &str, ciphertext: &[u8]) {
        let value = URL_SAFE_NO_PAD.encode(ciphertext);
        let body = format!("{{\"alg\":\"RSA-OAEP-256\",\"value\":\"{value}\"}}");
        self.request = format!(
            "POST /keys/{key}/{version}/unwrapkey?api-version=7.4 HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.host,
            self.token,
            body.len()
        )
        .into_bytes();
    }

    /// Sends the request and reads the whole answer.
    pub(crate) async fn call(&mut self) -> anyhow::Result<()> {
        self.stream.write_all(&self.request).await?;
        // What the socket did not take is in the buffer of TLS until it is flushed.
        self.stream.flush().await?;
        let mut len = 0;
        loop {
            let read =
                self.stream.read(self.answer.get_mut(len..).context("the answer is too long")?).await?;
            ensure!(read > 0, "the connection ended");
            len += read;
            let text = String::from_utf8_lossy(self.answer.get(..len).unwrap_or_default());
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head
                .lines()
                .find_map(|l| l.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case("content-length")))
                .map(|(_, v)| v.parse::<usize>())
                .context("no length")??;
            if body.len() >= length {
                ensure!(head.starts_with("HTTP/1.1 200"), "{text}");
                return Ok(());
            }
        }
    }
}
