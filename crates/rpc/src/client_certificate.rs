//! The certificate that a client has shown.

use crate::tls::principal_of;
use rustls::ServerConnection;
use rustls_pki_types::CertificateDer;
use std::{fmt, sync::Arc};

/// A chain that TLS has verified, or none. It is parsed when somebody asks whom it names: most calls ask for a token alone.
#[derive(Clone, Default)]
pub struct ClientCertificate(Option<Arc<[CertificateDer<'static>]>>);

impl ClientCertificate {
    /// Of a connection whose handshake is done.
    pub(crate) fn of(connection: &ServerConnection) -> Self {
        Self(connection.peer_certificates().map(|chain| chain.to_vec().into()))
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
