//! The gRPC server itself, over TLS: what it does at its end, with deadlines, and with clients that break the protocol.
use custody_rpc::{
    Endpoint, ServerSettings, server, services::Services, status::reason, tls::Credentials,
    token::TokenVerifier,
};
use futures_util::future::BoxFuture;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use std::{
    convert::Infallible,
    path::Path,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
};
use tokio_rustls::TlsConnector;
use tonic::{Code, Request, Status, body::Body, server::NamedService, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// Longer than anything here takes: what is not there by then does not come.
const HANG: Duration = Duration::from_secs(60);

/// The path of a call that nobody answers.
const NEVER: &str = "/grpc.test.Never/Wait";

/// Never answers.
#[derive(Clone)]
struct Never;

impl NamedService for Never {
    const NAME: &'static str = "grpc.test.Never";
}

impl tower::Service<http::Request<Body>> for Never {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<Body>) -> Self::Future {
        Box::pin(std::future::pending())
    }
}

struct Rig {
    dir: tempfile::TempDir,
    address: String,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<(), server::ServeError>>,
}

#[expect(clippy::unwrap_used, reason = "helpers of tests")]
impl Rig {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let own = own.signed_by(&key, &authority).unwrap();
        std::fs::write(path("ca.pem"), authority.pem()).unwrap();
        std::fs::write(path("own.pem"), own.pem()).unwrap();
        std::fs::write(path("own.key"), key.serialize_pem()).unwrap();
        let settings = ServerSettings {
            listen: ([127, 0, 0, 1], 0).into(),
            ca: path("ca.pem"),
            certificate: path("own.pem"),
            private_key: path("own.key"),
            identity: None,
            issuer: "https://identity".to_owned(),
            data: dir.path().to_owned(),
            address_file: Some(path("address")),
            otlp_endpoint: None,
            reflection: false,
        };
        let verifier = Arc::new(TokenVerifier::fixed("https://identity", "test", r#"{"keys":[]}"#));
        let (stop, stopped) = oneshot::channel();
        let address_file = path("address");
        let served = tokio::spawn(async move {
            let stopped = async { _ = stopped.await };
            server::serve(&settings, Services::default().with(Never), verifier, None, stopped).await
        });
        let address = tokio::time::timeout(HANG, written(&address_file)).await.unwrap();
        Self { dir, address, stop, served }
    }

    fn channel(&self) -> Channel {
        let trust = Credentials::trusting(&self.dir.path().join("ca.pem")).unwrap();
        Endpoint::new(&format!("https://{}", self.address), &trust, HANG).unwrap().channel()
    }

    fn health(&self) -> HealthClient<Channel> {
        HealthClient::new(self.channel())
    }

    /// Calls what nobody answers, with a deadline that the server alone knows of: tonic's client would look at its own clock.
    async fn wait_for(&self, timeout: &str) -> Status {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.dir.path().join("ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(&self.address).await.unwrap();
        let name = "127.0.0.1".try_into().unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::post(format!("https://{}{NEVER}", self.address))
            .header("content-type", "application/grpc")
            .header("grpc-timeout", timeout)
            .body(Body::empty())
            .unwrap();
        let answer = tokio::time::timeout(HANG, sender.send_request(request)).await.unwrap().unwrap();
        Status::from_header_map(answer.headers()).unwrap()
    }

    /// Tells it to end, and waits until it has.
    async fn end(self) -> String {
        self.stop.send(()).unwrap();
        tokio::time::timeout(HANG, self.served).await.unwrap().unwrap().unwrap();
        self.address
    }
}

async fn written(file: &Path) -> String {
    loop {
        match std::fs::read_to_string(file) {
            Ok(text) => return text,
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

fn check() -> HealthCheckRequest {
    HealthCheckRequest::default()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_with_clients_connected_and_with_calls_that_never_end() {
    let rig = Rig::start().await;
    let (mut idle, mut watching) = (rig.health(), rig.health());
    idle.check(check()).await.unwrap();
    let mut watched = watching.watch(check()).await.unwrap().into_inner();
    watched.message().await.unwrap().unwrap();
    let address = rig.end().await;
    assert!(TcpStream::connect(&address).await.is_err(), "it listens still");
    // What it had to say was said; then the stream ended, with an error or without.
    tokio::time::timeout(HANG, async { while let Ok(Some(_)) = watched.message().await {} }).await.unwrap();
    assert!(idle.check(check()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_is_held_and_a_malformed_one_named() {
    let rig = Rig::start().await;
    let request = |timeout: &str| {
        let mut request = Request::new(check());
        request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
        request
    };
    let mut client = rig.health();
    client.check(request("1H")).await.unwrap();
    let late = rig.wait_for("5m").await;
    assert_eq!((late.code(), reason(&late).as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
    for malformed in ["soon", "1", "123456789S"] {
        let refused = client.check(request(malformed)).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, "INVALID_FIELD"));
        assert!(refused.message().contains("grpc-timeout"), "{}", refused.message());
    }
    client.check(check()).await.unwrap();
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_of_one_connection_are_answered_each() {
    let rig = Rig::start().await;
    let client = rig.health();
    let calls = (0..2000).map(|_| {
        let mut client = client.clone();
        async move { client.check(check()).await }
    });
    for answer in futures_util::future::join_all(calls).await {
        answer.unwrap();
    }
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_does_not_speak_the_protocol_is_cut_off_alone() {
    let rig = Rig::start().await;
    let mut good = rig.health();
    good.check(check()).await.unwrap();
    for said in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff], &[0; 64]] {
        let mut stream = TcpStream::connect(&rig.address).await.unwrap();
        stream.write_all(said).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        // The end, in an orderly way or by a reset.
        _ = tokio::time::timeout(HANG, stream.read_to_end(&mut rest)).await.unwrap();
        good.check(check()).await.unwrap();
    }
    rig.end().await;
}
