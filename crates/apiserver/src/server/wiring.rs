//! Puts a server together from its configuration.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use component_base::metrics::Metrics;
use storage::Storage;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::reload::Reloading;
use super::security::{self, Security};
use super::writer::OwnWriter;
use super::{ApiServer, Error, Health, Inner};
use crate::aggregation::Aggregator;
use crate::audit::Audit;
use crate::bootstrap;
use crate::cache::feed::Feed;
use crate::cache::lister::CacheLister;
use crate::config::{Config, StoreConfig};
use crate::discovery::Discovery;
use crate::encryption::{Encrypted, Rules};
use crate::lister::Lister;
use crate::metrics::ServerMetrics;
use crate::openapi::OpenApi;
use crate::proxy::KubeletTls;
use crate::registry::{Admission, Registry};
use crate::resources::Resources;
use crate::seats::Seats;
use crate::traces::Traces;

pub(super) fn build(
    config: Config,
    storage: Arc<dyn Storage>,
    encryption: Option<Arc<Encrypted>>,
    traces: Option<Arc<Traces>>,
    stop: &CancellationToken,
) -> Result<ApiServer, Error> {
    let resources = Arc::new(Resources::new(&config.runtime_config));
    let feed = Arc::new(Feed::new(Arc::clone(&storage), resources.caches()));
    let lister = Arc::new(CacheLister::new(Arc::clone(&feed), resources.caches_by_name()));
    let reading: Arc<dyn Lister> = Arc::clone(&lister) as Arc<dyn Lister>;
    let (security, mut reloading) = Security::new(&config, &reading)?;
    if let (Some(encryption), Some(file)) = (&encryption, config.encryption.as_ref().filter(|e| e.reload)) {
        let encryption = Arc::clone(encryption);
        reloading.push(Reloading::new(file.file.clone(), "encryption", move |text| {
            encryption.set(Rules::parse(text)?);
            Ok(())
        }));
    }
    let registry = Arc::new(Registry {
        storage: Arc::clone(&storage),
        encryption: encryption.clone(),
        feed: Arc::clone(&feed),
        admission: Admission::new(security.plugins.clone()),
        encoding: config.store.encoding(),
        remote_store: matches!(config.store, StoreConfig::Etcd(_)),
        event_ttl: config.event_ttl,
    });
    let metrics = Metrics::new();
    let measured = metrics.register(ServerMetrics::register);
    let audit = Audit::new(&config.audit).map_err(Error::Config)?;
    metrics.register(|registry| {
        if let Some(audit) = &audit {
            audit.register(registry);
        }
        security.chain.register(registry);
        reloading.iter().for_each(|file| file.register(registry));
    });
    let health = Health::new();
    add_store_check(&health, ("etcd", false), &storage, config.store_health_timeout);
    add_store_check(&health, ("etcd-readiness", true), &storage, config.store_ready_timeout);
    add_checks(&health, Arc::clone(&feed), stop);
    if let Some(encryption) = encryption {
        health.add("kms-providers", false, move || {
            let encryption = Arc::clone(&encryption);
            async move { encryption.check().await }
        });
    }
    let aggregator = Arc::new(Aggregator::default());
    let discovery = Discovery::new(Arc::clone(&resources), Arc::clone(&aggregator));
    let openapi = OpenApi::new(Arc::clone(&resources), Arc::clone(&aggregator));
    let kubelet_tls = KubeletTls::new(&config.kubelet)?;
    let seats = Seats::new(&config.seats, config.request_timeout, Arc::clone(&reading));
    if let Seats::Fair(control) = &seats {
        metrics.register(|registry| control.register(registry));
    }
    let server = ApiServer(Arc::new(Inner {
        config,
        registry,
        resources,
        lister,
        security,
        kubelet_tls,
        discovery,
        aggregator,
        openapi,
        audit,
        traces,
        started: jiff::Timestamp::now(),
        health,
        metrics,
        measured,
        seats,
        closing: CancellationToken::new(),
        connections: TaskTracker::new(),
        halt: CancellationToken::new(),
        tasks: TaskTracker::new(),
    }));
    for file in reloading {
        let inner = server.inner();
        inner.tasks.spawn(file.follow(inner.halt.clone()));
    }
    server.inner().security.addresses.set_writer(Arc::new(OwnWriter::new(&server)));
    server.inner().security.own.set(Arc::new(OwnWriter::new(&server)));
    Ok(server)
}

/// The store answers, in upstream's words if it does not, whichever engine it is.
fn add_store_check(health: &Health, (name, ready_only): (&str, bool), storage: &Arc<dyn Storage>, within: Duration) {
    let storage = Arc::clone(storage);
    health.add(name, ready_only, move || {
        let storage = Arc::clone(&storage);
        async move {
            match tokio::time::timeout(within, storage.revision()).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(format!("error getting data from etcd: {error}")),
                Err(_) => Err("error getting data from etcd: context deadline exceeded".to_owned()),
            }
        }
    });
}

fn add_checks(health: &Health, feed: Arc<Feed>, stop: &CancellationToken) {
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
    let bootstrapped = server.clone();
    let (server, halt) = (server.clone(), inner.halt.clone());
    inner.tasks.spawn(async move {
        let inner = server.inner();
        halt.run_until_cancelled(inner.health.watch_start(&inner.registry.feed)).await;
    });
    let definitions = crate::custom::controller::run(bootstrapped.clone(), bootstrapped.inner().halt.clone());
    bootstrapped.inner().tasks.spawn(definitions);
    let api_services = crate::aggregation::controller::run(bootstrapped.clone(), bootstrapped.inner().halt.clone());
    bootstrapped.inner().tasks.spawn(api_services);
    spawn_bootstrap(&bootstrapped);
}

/// The objects that a server makes by itself, once its caches are full.
fn spawn_bootstrap(server: &ApiServer) {
    let inner = server.inner();
    let authentication = match security::authentication_data(&inner.config) {
        Ok(data) => data,
        Err(error) => {
            tracing::error!(%error, "aggregated servers will not learn whom to trust");
            Value::object()
        }
    };
    let settings = bootstrap::Settings {
        advertise_address: inner.config.services.advertise_address,
        secure_port: inner.config.services.secure_port,
        service_cidrs: inner.config.services.cluster_ip_ranges.clone(),
        authentication,
        served: server.resources().group_versions(),
    };
    let writer = Arc::new(OwnWriter::new(server));
    let repair = crate::service_repair::run(
        Arc::clone(&inner.registry.feed),
        server.lister(),
        Arc::clone(&writer) as Arc<dyn crate::objects::ObjectWriter>,
        inner.halt.clone(),
    );
    inner.tasks.spawn(repair);
    let (feed, lister, halt) = (Arc::clone(&inner.registry.feed), server.lister(), inner.halt.clone());
    let hook = inner.health.add_hook("rbac/bootstrap-roles");
    inner.tasks.spawn(async move {
        // Until the caches are full, every object would look as if it were missing.
        while !feed.synced() {
            if halt.run_until_cancelled(feed.catch_up()).await.is_none() {
                return;
            }
        }
        let done = move || {
            hook.send_replace(true);
        };
        bootstrap::run(settings, writer, lister, done, halt).await;
    });
}
