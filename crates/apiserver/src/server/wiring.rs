//! Puts a server together from its configuration.

use std::sync::Arc;

use component_base::metrics::Metrics;
use storage::Storage;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{ApiServer, Error, Health, Inner};
use crate::authn::Authenticator;
use crate::authz::Authorizer;
use crate::cache::feed::Feed;
use crate::cache::lister::CacheLister;
use crate::config::Config;
use crate::discovery::Discovery;
use crate::metrics::ServerMetrics;
use crate::registry::{Admission, Registry};
use crate::resources::Resources;

pub(super) fn build(config: Config, storage: Arc<dyn Storage>, stop: CancellationToken) -> Result<ApiServer, Error> {
    let resources = Arc::new(Resources::builtin());
    let feed = Arc::new(Feed::new(Arc::clone(&storage), resources.caches()));
    let lister = Arc::new(CacheLister::new(Arc::clone(&feed), resources.caches_by_name()));
    let registry = Arc::new(Registry {
        storage: Arc::clone(&storage),
        feed: Arc::clone(&feed),
        admission: admission(&config),
        event_ttl: config.event_ttl,
    });
    let metrics = Metrics::new();
    let measured = metrics.register(ServerMetrics::register);
    let health = Health::new();
    add_checks(&health, storage, Arc::clone(&feed), &stop);
    let authenticators = authenticators(&config)?;
    let authorizers = authorizers(&config);
    let discovery = Discovery::new(&resources);
    Ok(ApiServer(Arc::new(Inner {
        config,
        registry,
        resources,
        lister,
        authenticators,
        authorizers,
        discovery,
        health,
        metrics,
        measured,
        stop,
        tasks: TaskTracker::new(),
    })))
}

fn admission(_config: &Config) -> Admission {
    Admission::new(Vec::new())
}

fn authenticators(config: &Config) -> Result<Vec<Arc<dyn Authenticator>>, Error> {
    let mut all: Vec<Arc<dyn Authenticator>> = Vec::new();
    if let Some(path) = &config.authentication.token_auth_file {
        let text = std::fs::read_to_string(path).map_err(|source| Error::File { path: path.clone(), source })?;
        all.push(Arc::new(crate::token_file::TokenFile::parse(&text)));
    }
    Ok(all)
}

fn authorizers(_config: &Config) -> Vec<Arc<dyn Authorizer>> {
    vec![Arc::new(crate::token_file::Masters)]
}

fn add_checks(health: &Health, storage: Arc<dyn Storage>, feed: Arc<Feed>, stop: &CancellationToken) {
    health.add("etcd", false, move || {
        let storage = Arc::clone(&storage);
        async move { storage.revision().await.map(drop).map_err(|e| e.to_string()) }
    });
    health.add("informer-sync", true, move || {
        let synced = feed.synced();
        async move { if synced { Ok(()) } else { Err("the caches are not filled yet".to_owned()) } }
    });
    let stop = stop.clone();
    health.add("shutdown", true, move || {
        let stopping = stop.is_cancelled();
        async move { if stopping { Err("process is shutting down".to_owned()) } else { Ok(()) } }
    });
}

/// What runs once, or all the time, beside the requests.
pub(super) fn spawn_hooks(server: &ApiServer) {
    let inner = server.inner();
    let (server, stop) = (server.clone(), inner.stop.clone());
    inner.tasks.spawn(async move {
        let inner = server.inner();
        stop.run_until_cancelled(inner.health.watch_start(&inner.registry.feed)).await;
    });
}
