//! The certificate that a client has shown.

use crate::tls::principal_of;
use http::Request;
use rustls_pki_types::CertificateDer;
use std::{fmt, sync::Arc};
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};

/// A chain that TLS has verified, or none. It is parsed when somebody asks whom it names: most calls ask for a token alone.
#[derive(Clone, Default)]
pub struct ClientCertificate(Option<Arc<Vec<CertificateDer<'static>>>>);

impl ClientCertificate {
    /// Of the connection that a request came over.
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        let info = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>();
        Self(info.and_then(TlsConnectInfo::peer_certs))
    }

    /// The principal that it names, if it names exactly one.
    #[must_use]
    pub fn principal(&self) -> Option<String> {
        principal_of(self.0.as_ref()?.first()?)
    }
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClientCertificate").field(&self.principal()).finish()
    }
}
