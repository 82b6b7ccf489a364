//! What an operator says about the etcd cluster.

use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};

/// Where a machine keeps the authorities that it trusts: the first that exists is read when no CA file is given.
const SYSTEM_ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Etcd closes connections that ask more often than every 5 s.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The members of a cluster and how to reach them.
#[derive(Clone, Debug, Default)]
pub struct EtcdOptions {
    /// `http://host:port` or `https://host:port`, as many as there are members.
    pub servers: Vec<String>,
    /// Authorities that sign the members' certificates, PEM. `None`: those that the machine trusts.
    pub ca_file: Option<PathBuf>,
    /// The client's certificate and key, PEM.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// Stands for `/registry` in every key.
    pub prefix: String,
}

/// Why there can be no client.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("no etcd server is named")]
    NoServers,
    #[error("{0:?} is no URL of an etcd server: it must begin with http:// or https://")]
    Scheme(String),
    #[error("a client certificate for etcd needs its key, and a key its certificate")]
    HalfIdentity,
    #[error("cannot read {}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("the client of {server} cannot be set up")]
    Client { server: String, source: etcd_client::Error },
}

impl EtcdOptions {
    /// How to connect to one of the servers.
    pub(super) fn connect_options(&self, server: &str) -> Result<ConnectOptions, ConfigError> {
        let options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE_TIMEOUT)
            .with_keep_alive_while_idle(false)
            // A member that is cut off from the others must say so instead of serving what it last knew.
            .with_require_leader(true);
        if server.starts_with("https://") {
            Ok(options.with_tls(self.tls()?))
        } else if server.starts_with("http://") {
            Ok(options)
        } else {
            Err(ConfigError::Scheme(server.to_owned()))
        }
    }

    fn tls(&self) -> Result<TlsOptions, ConfigError> {
        let mut tls = TlsOptions::new().timeout(CONNECT_TIMEOUT);
        let system = || SYSTEM_ROOTS.iter().map(PathBuf::from).find(|path| path.exists());
        if let Some(path) = self.ca_file.clone().or_else(system) {
            tls = tls.ca_certificate(Certificate::from_pem(read(&path)?));
        }
        match (&self.cert_file, &self.key_file) {
            (Some(cert), Some(key)) => tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?)),
            (None, None) => {}
            _ => return Err(ConfigError::HalfIdentity),
        }
        Ok(tls)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|source| ConfigError::File { path: path.to_owned(), source })
}
