//! The services of a gRPC server, told apart by the first segment of a call's path.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body::Body as HttpBody;
use std::{
    collections::HashMap,
    convert::Infallible,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};
use tonic::{Status, body::Body, server::NamedService};
use tower::{BoxError, Service, ServiceExt as _, util::BoxCloneSyncService};

/// What tonic's generated servers answer with.
type Answer = BoxFuture<'static, Result<Response<Body>, Infallible>>;

/// A service that is always ready, as generated servers are.
pub trait Handle: Send + Sync {
    /// Answers a call.
    fn handle(&self, request: Request<Body>) -> Answer;
}

impl<S> Handle for S
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future = Answer>
        + Clone
        + Send
        + Sync,
{
    fn handle(&self, request: Request<Body>) -> Answer {
        self.clone().call(request)
    }
}

/// One of the services, whichever.
#[derive(Clone)]
pub struct AnyService(Arc<dyn Handle>);

impl AnyService {
    /// Of a service.
    pub fn new(service: impl Handle + 'static) -> Self {
        Self(Arc::new(service))
    }

    /// Of a service that answers with bodies of its own, as a router does that has something done before.
    pub fn boxed<S, B>(service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Future: Send,
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self::new(BoxCloneSyncService::new(service.map_response(|answer| answer.map(Body::new))))
    }
}

impl<B> Service<Request<B>> for AnyService
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Answer {
        self.0.handle(request.map(Body::new))
    }
}

impl fmt::Debug for AnyService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyService(..)")
    }
}

/// The services of a server. Cloned for each call, which costs a reference.
#[derive(Clone, Debug, Default)]
pub struct Services(Arc<HashMap<&'static str, AnyService>>);

impl Services {
    /// With this one too, under its name.
    #[must_use]
    pub fn with<S: Handle + NamedService + 'static>(self, service: S) -> Self {
        let mut services = Arc::unwrap_or_clone(self.0);
        services.insert(S::NAME, AnyService::new(service));
        Self(Arc::new(services))
    }

    /// Each of them replaced by what is put around it.
    #[must_use]
    pub fn wrapped(self, wrap: impl Fn(AnyService) -> AnyService) -> Self {
        let services = Arc::unwrap_or_clone(self.0);
        Self(Arc::new(services.into_iter().map(|(name, service)| (name, wrap(service))).collect()))
    }
}

impl Service<Request<Body>> for Services {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let path = request.uri().path();
        let name = path.strip_prefix('/').and_then(|path| path.split_once('/')).map(|(name, _)| name);
        match name.and_then(|name| self.0.get(name)) {
            Some(service) => service.0.handle(request),
            None => {
                let none = Status::unimplemented(format!("there is no `{path}` here"));
                Box::pin(async move { Ok(none.into_http()) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tonic::Code;

    /// Counts its calls.
    #[derive(Clone, Default)]
    struct Counting(Arc<AtomicUsize>);

    impl NamedService for Counting {
        const NAME: &'static str = "custody.v1.Counting";
    }

    impl Service<Request<Body>> for Counting {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = Answer;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Answer {
            self.0.fetch_add(1, Ordering::Relaxed);
            Box::pin(async { Ok(Response::default()) })
        }
    }

    fn code(services: &mut Services, path: &str) -> Code {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        let answer = futures_util::FutureExt::now_or_never(services.call(request)).unwrap().unwrap();
        Status::from_header_map(answer.headers()).map_or(Code::Ok, |status| status.code())
    }

    #[test]
    fn a_call_goes_to_the_service_that_its_path_names_and_to_no_other() {
        let (calls, wrapped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counting = Counting(calls.clone());
        let mut services = Services::default().with(counting.clone());
        assert_eq!(code(&mut services, "/custody.v1.Counting/Count"), Code::Ok);
        for other in
            ["/custody.v1.Count/Count", "/custody.v1.Countings/Count", "/custody.v1.Counting", "/", "/x"]
        {
            assert_eq!(code(&mut services, other), Code::Unimplemented, "{other}");
        }
        let around = Counting(wrapped.clone());
        let mut services = services.wrapped(|_| AnyService::new(around.clone()));
        assert_eq!(code(&mut services, "/custody.v1.Counting/Count"), Code::Ok);
        assert_eq!((calls.load(Ordering::Relaxed), wrapped.load(Ordering::Relaxed)), (1, 1));
    }
}
