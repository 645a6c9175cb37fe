//! Settings that every service has, read from its TOML file.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// How a service is reached and proves itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerSettings {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The certificates of the authority that all of a deployment trusts, PEM.
    pub ca: PathBuf,
    /// The service's certificate chain, PEM. Its URI name `custody:principals/{id}` is the service's principal.
    pub certificate: PathBuf,
    /// The private key of the certificate, PEM.
    pub private_key: PathBuf,
    /// Where the identity service is, `https://host:port`. Not for the identity service itself.
    #[serde(default)]
    pub identity: Option<String>,
    /// The issuer that tokens must name.
    pub issuer: String,
    /// Where the service keeps its state. Held by one process.
    pub data: PathBuf,
    /// A file to write the listening address to, once ready.
    #[serde(default)]
    pub address_file: Option<PathBuf>,
    /// An OTLP collector for traces and metrics, `http://host:port`.
    #[serde(default)]
    pub otlp_endpoint: Option<String>,
    /// Whether to answer reflection requests: for development.
    #[serde(default)]
    pub reflection: bool,
}

/// A settings file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// Not readable.
    #[error("`{path}` cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Malformed.
    #[error("`{path}`: {message}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Which field and why.
        message: String,
    },
}

/// Reads a settings file.
///
/// # Errors
/// See [`SettingsError`].
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, SettingsError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text)
        .map_err(|e| SettingsError::Malformed { path: path.to_owned(), message: e.to_string() })
}
