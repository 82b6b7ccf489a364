//! The server: built from its configuration, reachable through sockets and from inside its process.

mod health;
mod listen;
mod local;
mod reload;
mod security;
mod shutdown;
mod tls;
mod unread;
mod wiring;
mod writer;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use component_base::metrics::Metrics;
use futures::future::BoxFuture;
use jiff::Timestamp;
use storage::etcd::{ConfigError, Etcd, EtcdOptions};
use storage::{Storage, StorageError};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::aggregation::Aggregator;
use crate::attributes::UserInfo;
use crate::audit::Audit;
use crate::cache::lister::CacheLister;
use crate::config::{Config, StoreConfig};
use crate::discovery::Discovery;
use crate::encryption::{Encrypted, Rules};
use crate::lister::Lister;
use crate::metrics::ServerMetrics;
use crate::openapi::OpenApi;
use crate::proxy::KubeletTls;
use crate::registry::Registry;
use crate::resources::Resources;
use crate::seats::Seats;
use crate::traces::{self, Teller, Traced, Traces};

pub(crate) use health::{Endpoint, Health};
pub use local::LocalService;
use security::Security;
pub(crate) use tls::Proved;
pub(crate) use writer::OwnWriter;

/// Why a server could not be started or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the store cannot be opened")]
    Store(#[from] StorageError),
    #[error("etcd cannot be used as it is configured")]
    Etcd(#[from] ConfigError),
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("TLS cannot be set up")]
    Tls(#[from] component_base::tls::TlsError),
    #[error("TLS cannot be set up")]
    Verifier(#[from] rustls::Error),
    #[error("cannot read {}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Config(String),
}

/// One API server. Cheap to clone; several may live in one process.
#[derive(Clone)]
pub struct ApiServer(Arc<Inner>);

pub(crate) struct Inner {
    pub config: Config,
    pub registry: Arc<Registry>,
    pub resources: Arc<Resources>,
    pub lister: Arc<CacheLister>,
    pub security: Security,
    pub kubelet_tls: KubeletTls,
    pub discovery: Discovery,
    pub aggregator: Arc<Aggregator>,
    pub openapi: OpenApi,
    pub audit: Option<Arc<Audit>>,
    pub traces: Option<Arc<Traces>>,
    pub started: Timestamp,
    pub health: Health,
    pub metrics: Metrics,
    pub measured: ServerMetrics,
    pub seats: Seats,
    /// Cancelled when the server takes no more requests: long-running ones end with it.
    pub closing: CancellationToken,
    /// Connections, and what requests leave running on them.
    pub connections: TaskTracker,
    /// Cancelled when no request is left: what they rely on ends with it.
    pub halt: CancellationToken,
    pub tasks: TaskTracker,
}

/// A server that runs.
pub struct Handle {
    server: ApiServer,
    address: Option<SocketAddr>,
    ended: JoinHandle<()>,
}

impl Inner {
    /// What is served has changed: whoever tells of that does so anew.
    pub(crate) fn served_anew(&self) {
        self.discovery.renew();
        self.aggregator.nudge();
    }

    pub(crate) fn lister(&self) -> &dyn Lister {
        &*self.lister
    }
}

impl ApiServer {
    pub(crate) fn inner(&self) -> &Inner {
        &self.0
    }

    #[must_use]
    pub fn registry(&self) -> &Arc<Registry> {
        &self.0.registry
    }

    #[must_use]
    pub fn resources(&self) -> &Arc<Resources> {
        &self.0.resources
    }

    /// Reads the cluster from the watch cache.
    #[must_use]
    pub fn lister(&self) -> Arc<dyn Lister> {
        Arc::clone(&self.0.lister) as Arc<dyn Lister>
    }

    /// The whole pipeline as a service, for components of the same process: no sockets, no TLS, and requests are those of
    /// `user`, whatever credentials they carry.
    #[must_use]
    pub fn service_as(&self, user: UserInfo) -> LocalService {
        LocalService::new(self.clone(), Arc::new(user))
    }
}

impl Handle {
    #[must_use]
    pub fn server(&self) -> &ApiServer {
        &self.server
    }

    /// Where it listens; `None` when it is reached from inside its process only.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Waits until `/readyz` would say so.
    pub async fn ready(&self) {
        self.server.inner().health.wait_until_ready().await;
    }

    /// Waits until the server has stopped and every request has been answered or cut off.
    pub async fn wait(self) {
        if let Err(error) = self.ended.await {
            tracing::error!(%error, "the server did not end as it should");
        }
    }
}

/// Starts a server; it stops when `stop` is cancelled.
///
/// # Errors
/// When the store, the address or a file of the configuration cannot be used.
pub fn start(config: Config, stop: CancellationToken) -> BoxFuture<'static, Result<Handle, Error>> {
    // Boxed, so that it is compiled here: the body of an `async fn` is compiled by the crate that awaits it.
    Box::pin(build_and_listen(config, stop))
}

async fn build_and_listen(config: Config, stop: CancellationToken) -> Result<Handle, Error> {
    let (storage, upkeep) = open_store(&config).await?;
    let (mut storage, encryption) = encrypted(&config, storage)?;
    let (traces, teller) = traced(&config)?.unzip();
    if traces.is_some() {
        storage = Arc::new(Traced(storage));
    }
    let server = wiring::build(config, storage, encryption, traces, &stop)?;
    let inner = server.inner();
    if let Some(teller) = teller {
        inner.tasks.spawn(teller.run(uuid::Uuid::new_v4().to_string(), inner.halt.clone()));
    }
    if let Some(Upkeep { etcd, compaction_interval }) = upkeep {
        let halt = inner.halt.clone();
        inner.tasks.spawn(async move { etcd.run_compactor(compaction_interval, halt).await });
    }
    let (feed, halt) = (Arc::clone(&inner.registry.feed), inner.halt.clone());
    inner.tasks.spawn(async move { feed.run(halt).await });
    let address = match &inner.config.serving {
        Some(serving) => Some(listen::listen(&server, serving).await?),
        None => None,
    };
    wiring::spawn_hooks(&server);
    let ending = server.clone();
    let ended = tokio::spawn(async move { shutdown::end(&ending, stop).await });
    Ok(Handle { server, address, ended })
}

/// Runs a server until `stop` is cancelled.
///
/// # Errors
/// As [`start`].
pub fn run(config: Config, stop: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    Box::pin(async move {
        start(config, stop).await?.wait().await;
        Ok(())
    })
}

/// The store as it is to be used: over it lies the encryption of some values, if that is configured.
type Encryptable = (Arc<dyn Storage>, Option<Arc<Encrypted>>);

fn encrypted(config: &Config, storage: Arc<dyn Storage>) -> Result<Encryptable, Error> {
    let Some(encryption) = &config.encryption else { return Ok((storage, None)) };
    let path = &encryption.file;
    let text = std::fs::read_to_string(path).map_err(|source| Error::File { path: path.clone(), source })?;
    let rules = Rules::parse(&text).map_err(|why| Error::Config(format!("{}: {why}", path.display())))?;
    let encrypted = Arc::new(Encrypted::new(storage, rules));
    Ok((Arc::clone(&encrypted) as Arc<dyn Storage>, Some(encrypted)))
}

/// Who follows requests and who tells of them, if that is configured.
fn traced(config: &Config) -> Result<Option<(Arc<Traces>, Teller)>, Error> {
    let Some(path) = &config.tracing else { return Ok(None) };
    let text = std::fs::read_to_string(path).map_err(|source| Error::File { path: path.clone(), source })?;
    let traced = traces::Settings::parse(&text).and_then(|settings| Traces::new(&settings));
    traced.map(Some).map_err(|why| Error::Config(format!("{}: {why}", path.display())))
}

/// What an etcd needs besides requests.
struct Upkeep {
    etcd: Arc<Etcd>,
    compaction_interval: std::time::Duration,
}

async fn open_store(config: &Config) -> Result<(Arc<dyn Storage>, Option<Upkeep>), Error> {
    match &config.store {
        StoreConfig::Etcd(config) => {
            let options = EtcdOptions {
                servers: config.servers.clone(),
                ca_file: config.ca_file.clone(),
                cert_file: config.cert_file.clone(),
                key_file: config.key_file.clone(),
                prefix: config.prefix.clone(),
            };
            let etcd = Arc::new(Etcd::new(&options).await?);
            let upkeep = config
                .compaction_interval
                .map(|compaction_interval| Upkeep { etcd: Arc::clone(&etcd), compaction_interval });
            Ok((etcd, upkeep))
        }
        StoreConfig::Embedded { dir } => {
            let dir = dir.clone();
            let options = storage::embedded::EmbeddedOptions::default();
            let opened = tokio::task::spawn_blocking(move || storage::embedded::Embedded::open(&dir, options)).await;
            let store = opened.map_err(|e| Error::Config(format!("opening the store failed: {e}")))??;
            Ok((Arc::new(store), None))
        }
        StoreConfig::Given(storage) => Ok((Arc::clone(storage), None)),
    }
}
