//! kube-proxy: Service addresses lead to endpoints, by rules of the kernel's packet filter.
//!
//! It knows Services, EndpointSlices and its own Node; nothing of pods or of the pod network. Entry points: [`Flags`],
//! [`Config`], [`run`], [`set_parameters`], [`clean_up`].
//!
//! Invariants:
//! - One pure model ([`model`]) says what is to happen to packets; every back end renders it and looks at nothing else.
//! - Only what differs from what was written before goes to the kernel, in one transaction, so that rules are whole at
//!   every moment, and a change costs what it changes, however many Services there are.
//! - Rules stay when the program ends: traffic goes on.

#![forbid(unsafe_code)]

#[cfg(test)]
mod behaviour;
mod config;
mod conntrack;
mod health;
mod health_check;
mod iptables;
mod ipvs;
#[cfg(test)]
mod kernel;
mod local;
mod metrics;
mod model;
mod nftables;
mod proxier;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use client::ObjectKey;
use client::informer::{Event, Lister, Selection, SharedInformer, SharedInformerFactory};
use component_base::serving::{self, Endpoints, Respond, Server};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use config::{Config, FlagError, Flags, VirtualServers};
pub use conntrack::Limits;
use health::Health;
use health_check::{Check, HealthChecks};
use local::NodeFacts;
pub use local::{DetectLocal, NodePortAddresses};
use metrics::ProxyMetrics;
use proxier::{Backend, Changed, Tracker, Unwritten};
pub use proxier::{Mode, UnknownMode};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot serve on {address}")]
    Serve { address: std::net::SocketAddr, source: std::io::Error },
    #[error("the rules cannot be removed: {0}")]
    CleanUp(String),
}

/// A change is written at once, those that come closer together than this are written together.
const GATHER: Duration = Duration::from_millis(20);
/// After a failed write, the next attempt rewrites everything.
const RETRY: Duration = Duration::from_secs(2);

/// Removes every rule that any back end of this program or of upstream's proxy writes.
///
/// # Errors
/// When the kernel refuses.
pub fn clean_up() -> BoxFuture<'static, Result<(), Error>> {
    Box::pin(async { proxier::clean_up_but(None).await.map_err(|error| Error::CleanUp(error.to_string())) })
}

/// Sets the kernel's parameters that the proxy needs.
pub fn set_parameters(config: &Config) {
    if let Some(limits) = &config.conntrack {
        conntrack::set_limits(limits);
    }
    if config.serves_localhost()
        && let Err(error) = iptables::let_localhost_be_routed()
    {
        tracing::warn!(%error, "node ports are not served on localhost");
    }
}

/// What changed since rules were last written.
#[derive(Default)]
struct Pending {
    keys: Mutex<Keys>,
    changed: Notify,
}

#[derive(Default)]
struct Keys {
    services: BTreeSet<ObjectKey>,
    /// When the endpoints that changed were asked to.
    triggers: Vec<SystemTime>,
}

impl Pending {
    fn add(&self, key: Option<ObjectKey>, trigger: Option<SystemTime>) {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.services.extend(key);
        keys.triggers.extend(trigger);
        drop(keys);
        self.changed.notify_one();
    }

    fn take(&self) -> Keys {
        std::mem::take(&mut self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The informers' caches that rules are made from.
struct Listers {
    services: Lister<Service>,
    slices: Lister<EndpointSlice>,
    nodes: Lister<Node>,
}

impl Listers {
    fn facts(&self, config: &Config) -> NodeFacts {
        NodeFacts::of(&config.node_name, self.nodes.get(&ObjectKey::cluster(&config.node_name)).as_deref())
    }
}

/// Keeps the kernel's rules true to the cluster's Services until `stop`.
///
/// # Errors
/// When an address for health or metrics cannot be bound, and that is to be an error.
pub fn run(config: Config, client: kube::Client, stop: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // Boxed, so that it is compiled here: the body of an `async fn` is compiled by the crate that awaits it.
    Box::pin(keep_rules(config, client, stop))
}

async fn keep_rules(config: Config, client: kube::Client, stop: CancellationToken) -> Result<(), Error> {
    if let Some(score) = config.oom_score_adj
        && let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string())
    {
        tracing::info!(score, %error, "the OOM score stays as it is");
    }
    for name in &config.ignored {
        tracing::warn!("{name} is set and has no effect here");
    }
    let metrics = config.metrics.register(|registry| ProxyMetrics::register(registry, config.mode));
    let health = Health::new(config.sync_period, metrics.clone());
    serve(&config, &health, &stop).await?;
    set_parameters(&config);
    let informers = SharedInformerFactory::new(client, stop.clone());
    let services = informers.informer::<Service>();
    let slices = informers.informer::<EndpointSlice>();
    let nodes = informers.selected::<Node>(Selection::fields(&format!("metadata.name={}", config.node_name)));
    slices.add_index(model::BY_SERVICE, model::service_of);
    let listers = Listers { services: services.lister(), slices: slices.lister(), nodes: nodes.lister() };
    let pending = watch(&services, &slices, &nodes, &metrics, &health);
    if stop.run_until_cancelled(informers.synced()).await != Some(true) {
        return Ok(());
    }
    // What changed before the start says nothing of how long we take.
    let started = pending.take();
    pending.add(None, None);
    let facts = listers.facts(&config);
    // Before ours are written: packets would follow both.
    if let Err(error) = proxier::clean_up_but(Some(config.mode)).await {
        tracing::warn!(%error, "rules of other modes could not be removed");
    }
    let backend = Backend::start(&config, &facts, &local::addresses_present()).await;
    let checks = HealthChecks::new(health.clone(), stop.clone());
    let (tracker, unwritten) = (Tracker::default(), Unwritten::default());
    let proxy = Proxy { config, listers, pending, metrics, health, checks, backend, tracker, unwritten, facts };
    proxy.run(started.services, stop).await;
    Ok(())
}

/// Notes what changes.
fn watch(
    services: &SharedInformer<Service>,
    slices: &SharedInformer<EndpointSlice>,
    nodes: &SharedInformer<Node>,
    metrics: &ProxyMetrics,
    health: &Health,
) -> Arc<Pending> {
    let pending = Arc::new(Pending::default());
    let (to, measured, told) = (Arc::clone(&pending), metrics.clone(), health.clone());
    services.on_event(move |event| {
        measured.service_changed();
        told.queued();
        to.add(Some(event.key()), None);
    });
    let (to, measured, told) = (Arc::clone(&pending), metrics.clone(), health.clone());
    slices.on_event(move |event| {
        measured.endpoints_changed();
        told.queued();
        // A slice may be given to another Service.
        for slice in event.old().into_iter().chain(event.now()) {
            for key in model::service_of(slice) {
                to.add(Some(ObjectKey::from(key.as_str())), None);
            }
        }
        to.add(None, trigger_of(event));
    });
    let to = Arc::clone(&pending);
    nodes.on_event(move |_| to.add(None, None));
    pending
}

/// When the change that a slice tells of happened, as the controller wrote it down.
fn trigger_of(event: &Event<EndpointSlice>) -> Option<SystemTime> {
    const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";
    let read = |slice: &Arc<EndpointSlice>| slice.metadata.annotations.as_ref()?.get(TRIGGER).cloned();
    let now = event.now().and_then(read)?;
    if event.old().and_then(read).as_ref() == Some(&now) {
        return None;
    }
    now.parse::<jiff::Timestamp>().ok().map(SystemTime::from)
}

async fn serve(config: &Config, health: &Health, stop: &CancellationToken) -> Result<(), Error> {
    let bound = |address, result: std::io::Result<()>| match result {
        Err(source) if config.bind_address_hard_fail => Err(Error::Serve { address, source }),
        Err(error) => {
            tracing::error!(%address, %error, "cannot serve");
            Ok(())
        }
        Ok(()) => Ok(()),
    };
    if let Some(address) = config.healthz_address {
        let health = health.clone();
        let respond: Respond = Arc::new(move |path| health.answer(path));
        bound(address, serving::answer(address, respond, stop.clone()).await.map(drop))?;
    }
    if let Some(address) = config.metrics_address {
        let mut endpoints = Endpoints::new("kube-proxy", config.metrics.clone());
        endpoints.configz = config.configz.clone();
        endpoints.pages.push(("/proxyMode", config.mode.name().to_owned()));
        let server = Server { address, tls: None, endpoints, guard: None };
        bound(address, server.start(stop.clone()).await.map(drop))?;
    }
    Ok(())
}

/// The loop that writes rules, and what it needs.
struct Proxy {
    config: Config,
    listers: Listers,
    pending: Arc<Pending>,
    metrics: ProxyMetrics,
    health: Health,
    checks: HealthChecks,
    backend: Backend,
    tracker: Tracker,
    unwritten: Unwritten,
    facts: NodeFacts,
}

impl Proxy {
    async fn run(mut self, mut dirty: BTreeSet<ObjectKey>, stop: CancellationToken) {
        let mut full = true;
        let mut next_check = Instant::now() + self.config.sync_period;
        let gather = GATHER.max(self.config.min_sync_period);
        loop {
            let keys = self.pending.take();
            dirty.extend(keys.services);
            full |= self.look_around(&mut dirty);
            let written = self.sync(std::mem::take(&mut dirty), keys.triggers, full).await;
            full = !written;
            let last = Instant::now();
            let pause = if written { next_check.saturating_duration_since(Instant::now()) } else { RETRY };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.pending.changed.notified() => tokio::time::sleep_until((last + gather).into()).await,
                () = tokio::time::sleep(pause) => {
                    // Somebody may have flushed our rules.
                    self.backend.check().await;
                    next_check = Instant::now() + self.config.sync_period;
                }
            }
        }
    }

    /// Sees what became of the node. Whether everything has to be written because of it.
    fn look_around(&mut self, dirty: &mut BTreeSet<ObjectKey>) -> bool {
        let facts = self.listers.facts(&self.config);
        let present = match self.config.node_port_addresses {
            NodePortAddresses::Within(_) => local::addresses_present(),
            NodePortAddresses::All | NodePortAddresses::Primary => Vec::new(),
        };
        self.health.set_node_eligible(facts.eligible);
        self.backend.surround(&self.config, &facts, &present, &self.tracker);
        if facts == self.facts {
            return false;
        }
        // Which endpoints are near depends on where we are.
        dirty.extend(self.tracker.keys());
        self.facts = facts;
        true
    }

    /// Writes the rules of these Services. Whether that succeeded.
    async fn sync(&mut self, dirty: BTreeSet<ObjectKey>, triggers: Vec<SystemTime>, full: bool) -> bool {
        let started = Instant::now();
        let Listers { services, slices, .. } = &self.listers;
        let place = &self.facts.place;
        let changed = self.tracker.update(dirty, |key| proxier::rules_of(key, services, slices, place));
        self.update_checks(&changed).await;
        let changes = self.tracker.changes(&changed);
        for change in &changes {
            self.metrics.count_no_local(change.old, change.new);
        }
        let written = self.backend.sync(&changes, &self.tracker).await;
        // The back end knows what it failed to write; the rest of what a change takes is done when its rules are there.
        self.unwritten.add(changed, triggers);
        match written {
            Ok(commands) => {
                let unwritten = std::mem::take(&mut self.unwritten);
                let began = Instant::now();
                let stale = conntrack::forget_stale(&self.tracker.changes(unwritten.changed())).await;
                self.metrics.reconciled(began.elapsed());
                self.backend.count_rules(&self.metrics);
                stale.into_iter().for_each(|(family, flows)| self.metrics.forgotten(family, flows));
                self.health.updated();
                self.metrics.synced(full, started.elapsed());
                unwritten.triggers.iter().for_each(|since| self.metrics.programmed(*since));
                tracing::debug!(commands, took = ?started.elapsed(), "rules are up to date");
                true
            }
            Err(error) => {
                tracing::error!(%error, "the rules could not be written");
                self.health.queued();
                self.metrics.failed();
                false
            }
        }
    }

    async fn update_checks(&mut self, changed: &[Changed]) {
        let touches = |rules: Option<&model::ServiceRules>| rules.is_some_and(|r| r.health_check.is_some());
        let changes = self.tracker.changes(changed);
        if !changes.iter().any(|c| touches(c.old) || touches(c.new)) {
            return;
        }
        let mut checks = BTreeMap::new();
        for change in self.tracker.all() {
            if let Some(check) = change.new.and_then(|rules| rules.health_check.as_ref()) {
                let key = ObjectKey::from(change.key);
                let (namespace, name) = (key.namespace().to_owned(), key.name().to_owned());
                checks.entry(check.port).or_insert(Check { namespace, name, local_endpoints: check.local_endpoints });
            }
        }
        let addresses =
            local::health_check_ips(&self.config.node_port_addresses, &self.facts, &local::addresses_present());
        self.checks.update(&checks, addresses.as_deref()).await;
    }
}
