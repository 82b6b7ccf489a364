//! kube-proxy: Service addresses lead to endpoints, by rules of the kernel's packet filter.
//!
//! It knows Services and EndpointSlices and this node's name; nothing of pods or of the pod network. Entry points: [`Flags`],
//! [`Config`], [`run`].
//!
//! Invariants:
//! - One pure model ([`model`]) is rendered into one desired rule set ([`rules`]); only what differs from what was written
//!   before goes to the kernel, in one transaction, so that rules are whole at every moment.
//! - Rules stay when the program ends: traffic goes on.

#![forbid(unsafe_code)]

mod config;
mod conntrack;
mod health_check;
mod model;
mod nft;
mod rules;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use client::informer::SharedInformerFactory;
use component_base::serving::{Endpoints, Server};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use config::{Config, FlagError, Flags};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot serve on {address}")]
    Serve { address: std::net::SocketAddr, source: std::io::Error },
}

/// Changes that come close together are written together.
const GATHER: Duration = Duration::from_millis(20);
/// After a failed write, the next attempt rewrites everything.
const RETRY: Duration = Duration::from_secs(2);

struct SyncMetrics {
    syncs: Histogram,
    failures: Counter,
    last: Gauge,
}

impl SyncMetrics {
    fn register(registry: &mut prometheus_client::registry::Registry) -> Self {
        let metrics = SyncMetrics {
            syncs: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            failures: Counter::default(),
            last: Gauge::default(),
        };
        registry.register("kubeproxy_sync_proxy_rules_duration_seconds", "Time of one sync", metrics.syncs.clone());
        registry.register(
            "kubeproxy_sync_proxy_rules_nftables_sync_failures",
            "Failed syncs",
            metrics.failures.clone(),
        );
        registry.register(
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "Last sync since 1970",
            metrics.last.clone(),
        );
        metrics
    }
}

/// Keeps the kernel's rules true to the cluster's Services until `stop`.
///
/// # Errors
/// When an address for health or metrics cannot be bound.
pub fn run(config: Config, client: kube::Client, stop: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // Boxed, so that it is compiled here: the body of an `async fn` is compiled by the crate that awaits it.
    Box::pin(keep_rules(config, client, stop))
}

async fn keep_rules(config: Config, client: kube::Client, stop: CancellationToken) -> Result<(), Error> {
    let metrics = config.metrics.register(SyncMetrics::register);
    let healthy = Arc::new(AtomicBool::new(false));
    for address in config.healthz_address.into_iter().chain(config.metrics_address) {
        let mut endpoints = Endpoints::new("kube-proxy", config.metrics.clone());
        let healthy = Arc::clone(&healthy);
        let check =
            move || if healthy.load(Ordering::Relaxed) { Ok(()) } else { Err("no rules are written".to_owned()) };
        endpoints.health.push(("sync", Arc::new(check)));
        let server = Server { address, tls: None, endpoints, guard: None };
        server.start(stop.clone()).await.map_err(|source| Error::Serve { address, source })?;
    }
    let informers = SharedInformerFactory::new(client, stop.clone());
    let services = informers.informer::<Service>();
    let slices = informers.informer::<EndpointSlice>();
    let nodes =
        informers.selected::<Node>(client::informer::Selection::fields(&format!("metadata.name={}", config.node_name)));
    slices.add_index(model::BY_SERVICE, model::service_of);
    let changed = Arc::new(Notify::new());
    {
        let informer_changed = Arc::clone(&changed);
        let (a, b) = (Arc::clone(&informer_changed), informer_changed);
        services.on_event(move |_| a.notify_one());
        slices.on_event(move |_| b.notify_one());
    }
    if stop.run_until_cancelled(informers.synced()).await != Some(true) {
        return Ok(());
    }
    let mut writer = nft::Writer::new();
    let mut checks = health_check::HealthChecks::new(stop.clone());
    let mut before = model::Model::default();
    loop {
        let started = Instant::now();
        let zone = nodes
            .lister()
            .list()
            .first()
            .and_then(|n| n.metadata.labels.clone()?.get("topology.kubernetes.io/zone").cloned());
        let now = model::build(&services.lister().list(), &slices.lister(), &config.node_name, zone.as_deref());
        checks.update(now.health_checks());
        let written = writer.write(&rules::render(&now, &config)).await;
        let pause = match written {
            Ok(changes) => {
                conntrack::forget_stale(&before, &now).await;
                before = now;
                healthy.store(true, Ordering::Relaxed);
                metrics.syncs.observe(started.elapsed().as_secs_f64());
                let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                metrics.last.set(seconds.ok().and_then(|d| i64::try_from(d.as_secs()).ok()).unwrap_or_default());
                tracing::debug!(changes, took = ?started.elapsed(), "rules are up to date");
                config.sync_period
            }
            Err(error) => {
                tracing::error!(%error, "the rules could not be written");
                metrics.failures.inc();
                healthy.store(false, Ordering::Relaxed);
                RETRY
            }
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = changed.notified() => tokio::time::sleep(GATHER).await,
            // Somebody may have flushed our tables: now and then everything is written again.
            () = tokio::time::sleep(pause) => writer.forget(),
        }
    }
}
