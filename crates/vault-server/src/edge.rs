//! What a cloud does to calls before its vault sees them, on both faces: waits, failures, a region that is away.

use axum::{
    body::{Body, HttpBody},
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::Response,
};
use custody_rpc::{services::AnyService, status::status};
use custody_vault::faults::{Edge, Faults};
use http::{HeaderValue, StatusCode, header};
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::watch;

/// Between looks at whether the region is away.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a call is left without an answer while the region is away: longer than clients wait.
const SILENCE: Duration = Duration::from_secs(120);
/// The header of what a profile has made, for whoever looks into an answer. No client knows it.
const HEADER: &str = "custody-fault";

/// Which face an answer is for.
#[derive(Clone, Copy)]
pub(crate) enum Face {
    Grpc,
    Rest,
}

/// A profile at work, for the faces.
#[derive(Clone)]
pub(crate) struct EdgeFaults {
    faults: Arc<Faults>,
    /// Whether the region is away.
    away: watch::Receiver<bool>,
}

impl EdgeFaults {
    /// Begins to look whether the region is away.
    pub(crate) fn start(faults: Arc<Faults>) -> Self {
        let (told, away) = watch::channel(false);
        let looked_at = faults.clone();
        tokio::spawn(async move {
            let mut every = tokio::time::interval(LOOK_EVERY);
            while !told.is_closed() {
                every.tick().await;
                let is = looked_at.is_away();
                told.send_if_modified(|was| std::mem::replace(was, is) != is);
            }
        });
        Self { faults, away }
    }

    /// Puts itself before a face.
    pub(crate) fn before(&self, router: axum::Router, face: Face) -> axum::Router {
        router.layer(from_fn_with_state((self.clone(), face), pass))
    }

    /// Puts itself before a service of gRPC.
    pub(crate) fn before_service(&self, service: AnyService) -> AnyService {
        AnyService::boxed(self.before(axum::Router::new().fallback_service(service), Face::Grpc))
    }
}

async fn pass(State((edge, face)): State<(EdgeFaults, Face)>, request: Request, next: Next) -> Response {
    // Who has the vault misbehave must be able to end it.
    let exempt = ["/custody.vault.v1.FaultInjection/", "/grpc.health.v1.", "/grpc.reflection."];
    if exempt.iter().any(|prefix| request.uri().path().starts_with(prefix)) {
        return next.run(request).await;
    }
    match edge.faults.edge() {
        Edge::Lost => lost(&edge.faults, face).await,
        Edge::Fails(takes) => {
            tokio::time::sleep(takes).await;
            failure(face, "burst")
        }
        Edge::After(takes) => {
            tokio::time::sleep(takes).await;
            let answer = next.run(request).await;
            // What was done is done; but nobody is told of it from a region that is away.
            if edge.faults.is_away() {
                return lost(&edge.faults, face).await;
            }
            answer.map(|body| Body::new(Cut { body, away: Box::pin(is_away(edge)) }))
        }
    }
}

/// Returns when the region is away.
async fn is_away(mut edge: EdgeFaults) {
    // What was seen last may be a moment old.
    while edge.away.wait_for(|away| *away).await.is_ok() && !edge.faults.is_away() {
        _ = edge.away.changed().await;
    }
    if !edge.faults.is_away() {
        std::future::pending().await
    }
}

/// Nobody answers; when the region is back, those who still wait are told to ask again.
async fn lost(faults: &Faults, face: Face) -> Response {
    let back = async {
        while faults.is_away() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    _ = tokio::time::timeout(SILENCE, back).await;
    failure(face, "region")
}

fn failure(face: Face, what: &'static str) -> Response {
    let mut answer = match face {
        Face::Grpc => {
            let why = "the service cannot be reached now; try again";
            status("UNAVAILABLE", "SERVICE_UNAVAILABLE", why, None).into_http()
        }
        Face::Rest => {
            let text = r#"{"error":{"code":"ServiceUnavailable","message":"The service is temporarily unavailable. Please retry."}}"#;
            let mut answer = Response::new(Body::from(text));
            *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            let json = HeaderValue::from_static("application/json; charset=utf-8");
            answer.headers_mut().insert(header::CONTENT_TYPE, json);
            answer
        }
    };
    answer.headers_mut().insert(HEADER, HeaderValue::from_static(what));
    answer
}

/// An answer that is cut off when the region goes away: streams of changes end so.
struct Cut {
    body: Body,
    away: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl HttpBody for Cut {
    type Data = <Body as HttpBody>::Data;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        if self.away.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err("the region is away".into())));
        }
        Pin::new(&mut self.body).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
