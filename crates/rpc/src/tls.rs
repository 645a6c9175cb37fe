//! Certificates: loading them, and the principal that one names.

use custody_proof::{Authority, HolderKey};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, crypto::aws_lc_rs::default_provider,
    server::WebPkiClientVerifier,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

pub use custody_proof::principal_of;

/// Certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// Not readable.
    #[error("`{path}` cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Not what they should be.
    #[error("the certificates cannot be used: {0}")]
    Unusable(String),
}

/// The three PEM files of a process.
#[derive(Clone, Debug)]
pub struct Credentials {
    ca: Vec<u8>,
    own: Option<(Vec<u8>, Vec<u8>)>,
}

/// What a server asks of its clients.
enum Clients {
    Anyone,
    MayShowCertificate,
    MustShowCertificate,
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

impl Credentials {
    /// Of a process that has a certificate.
    ///
    /// # Errors
    /// A file is not readable.
    pub fn load(ca: &Path, certificate: &Path, private_key: &Path) -> Result<Self, TlsError> {
        Ok(Self { ca: read(ca)?, own: Some((read(certificate)?, read(private_key)?)) })
    }

    /// Of a client that only trusts.
    ///
    /// # Errors
    /// The file is not readable.
    pub fn trusting(ca: &Path) -> Result<Self, TlsError> {
        Ok(Self { ca: read(ca)?, own: None })
    }

    /// For a gRPC client.
    #[must_use]
    pub fn client(&self) -> ClientTlsConfig {
        let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.ca));
        match &self.own {
            Some((certificate, key)) => config.identity(Identity::from_pem(certificate, key)),
            None => config,
        }
    }

    /// The key of the own certificate, for what this process states of itself.
    ///
    /// # Errors
    /// There is no certificate, or it does not parse.
    pub fn holder_key(&self) -> Result<HolderKey, TlsError> {
        let (certificate, key) =
            self.own.as_ref().ok_or_else(|| TlsError::Unusable("no certificate".to_owned()))?;
        HolderKey::from_pem(certificate, key).map_err(|e| TlsError::Unusable(e.to_string()))
    }

    /// Whom to believe that a certificate is another process's.
    ///
    /// # Errors
    /// Its certificate does not parse.
    pub fn authority(&self) -> Result<Authority, TlsError> {
        Authority::from_pem(&self.ca).map_err(|e| TlsError::Unusable(e.to_string()))
    }

    fn parts(
        &self,
    ) -> Result<(RootCertStore, Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let bad = |e: &dyn std::fmt::Display| TlsError::Unusable(e.to_string());
        let mut roots = RootCertStore::empty();
        for ca in CertificateDer::pem_slice_iter(&self.ca) {
            roots.add(ca.map_err(|e| bad(&e))?).map_err(|e| bad(&e))?;
        }
        let (certificate, key) =
            self.own.as_ref().ok_or_else(|| TlsError::Unusable("no certificate".to_owned()))?;
        let chain =
            CertificateDer::pem_slice_iter(certificate).collect::<Result<_, _>>().map_err(|e| bad(&e))?;
        Ok((roots, chain, PrivateKeyDer::from_pem_slice(key).map_err(|e| bad(&e))?))
    }

    /// For a gRPC server: clients may show a certificate of the authority.
    ///
    /// # Errors
    /// The certificates do not fit together.
    pub fn server(&self) -> Result<Arc<ServerConfig>, TlsError> {
        self.serve_to(Clients::MayShowCertificate)
    }

    /// For a server of another protocol, whose clients must show a certificate of the authority.
    ///
    /// # Errors
    /// The certificates do not fit together.
    pub fn mutual_server(&self) -> Result<Arc<ServerConfig>, TlsError> {
        self.serve_to(Clients::MustShowCertificate)
    }

    /// For a server of another protocol, whose clients prove themselves in other ways.
    ///
    /// # Errors
    /// The certificates do not fit together.
    pub fn public_server(&self) -> Result<Arc<ServerConfig>, TlsError> {
        self.serve_to(Clients::Anyone)
    }

    fn serve_to(&self, clients: Clients) -> Result<Arc<ServerConfig>, TlsError> {
        let bad = |e: &dyn std::fmt::Display| TlsError::Unusable(e.to_string());
        let (roots, chain, key) = self.parts()?;
        let provider = Arc::new(default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let verifier = match clients {
            Clients::MustShowCertificate => verifier.build().map_err(|e| bad(&e))?,
            Clients::MayShowCertificate => verifier.allow_unauthenticated().build().map_err(|e| bad(&e))?,
            Clients::Anyone => WebPkiClientVerifier::no_client_auth(),
        };
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| bad(&e))?;
        config
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map(Arc::new)
            .map_err(|e| bad(&e))
    }

    /// For a client of another protocol.
    ///
    /// # Errors
    /// The certificates do not fit together.
    pub fn mutual_client(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let bad = |e: &dyn std::fmt::Display| TlsError::Unusable(e.to_string());
        let (roots, chain, key) = self.parts()?;
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| bad(&e))?;
        config
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map(Arc::new)
            .map_err(|e| bad(&e))
    }
}
