//! The kubelet: it makes the containers of one node what the API says they should be.
//!
//! It talks to a container runtime through CRI and to nothing else of it, and to the apiserver as one client among others.
//! It must not know the store, other components, or how the apiserver works. Entry points: [`Flags`], [`Config`], [`run`], and
//! [`plugins`] for whoever writes one.
//!
//! Invariants:
//! - Each pod has one worker, and only that worker starts and stops its containers.
//! - What to do is decided by pure functions from what is wanted and what runs; nothing is remembered that the runtime
//!   could tell. A restarted kubelet adopts what runs.
//! - Paths that come from pods are opened beneath the directory that they belong to.

mod capacity;
mod certificates;
mod cgroups;
mod checkpoint;
mod config;
mod context;
mod cpus;
mod credential_provider;
mod csi;
mod devices;
mod dns;
mod dra;
mod env;
mod env_file;
mod eviction;
mod grpc_health;
mod housekeeping;
mod images;
mod labels;
mod materials;
mod memory;
mod node;
mod node_cgroups;
mod numa;
mod orphans;
pub mod plugins;
mod pod;
mod probe_tls;
mod probes;
mod resources;
mod runtime;
mod server;
mod settings;
mod shutdown;
mod static_pods;
mod static_url;
mod statuses;
mod swap;
mod topology;
mod volumes;

use std::sync::Arc;

use certificates::{Purpose, Wish};
use client::events::{Dialect, Recorder};
use client::informer::{Selection, SharedInformerFactory};
use component_base::serving;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::node::v1::RuntimeClass;
use tokio_util::sync::CancellationToken;

use static_url::UrlSource;

pub use certificates::{Bootstrap, CertificateError, bootstrap};
pub use config::{Config, FlagError, Flags};
pub use cpus::CpuPolicy;
pub use memory::MemoryPolicy;
pub use runtime::RuntimeError;
pub use server::ServeError;
pub use settings::{Eviction, ImageGc, Logs};
pub use shutdown::Shutdown;
pub use swap::SwapBehavior;
pub use topology::TopologyPolicy;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("cannot make {}", path.display())]
    Directory { path: std::path::PathBuf, source: std::io::Error },
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error("{0}")]
    Resources(String),
    #[error(transparent)]
    CredentialProvider(#[from] credential_provider::Error),
    #[error("cannot serve health on {address}")]
    Health { address: std::net::SocketAddr, source: std::io::Error },
}

/// Runs the node until `stop`. Without a client only static pods run. Containers go on running after it returns.
///
/// # Errors
/// When the kubelet cannot start: its directory, its port, its certificates or its container runtime cannot be used.
pub fn run(
    config: Config,
    client: Option<kube::Client>,
    stop: CancellationToken,
) -> BoxFuture<'static, Result<(), Error>> {
    // Boxed, so that it is compiled here: the body of an `async fn` is compiled by the crate that awaits it.
    Box::pin(run_node(config, client, stop))
}

async fn run_node(config: Config, client: Option<kube::Client>, stop: CancellationToken) -> Result<(), Error> {
    std::fs::create_dir_all(&config.root_dir)
        .map_err(|source| Error::Directory { path: config.root_dir.clone(), source })?;
    for field in config::ignored(&config.file) {
        tracing::warn!(field, "this field of the KubeletConfiguration has no effect here");
    }
    let mut machine = node::Machine::look();
    let providers = match &config.credential_providers {
        Some((file, dir)) => credential_provider::Providers::open(file, dir)?,
        None => credential_provider::Providers::default(),
    };
    let runtime = runtime::Runtime::connect(&config.runtime_endpoint)?;
    runtime.validate(&config.runtime_endpoint).await?;
    let factory = client.clone().map(|client| SharedInformerFactory::new(client, stop.clone()));
    let events = match &client {
        Some(client) => Recorder::start(client.clone(), Dialect::Core, "kubelet", &config.node_name, stop.clone()),
        None => Recorder::collecting(64).0,
    };
    let nodes = numa::look(
        std::path::Path::new("/sys/devices/system/node"),
        &cpus::all(),
        u64::try_from(machine.memory_bytes).unwrap_or_default(),
    );
    machine.huge_pages = numa::huge_pages_of(&nodes);
    let capacity = capacity::of(&machine, &config);
    let allocatable = capacity::allocatable(&capacity, &config);
    let kept_back = capacity::kept_back(&capacity, &config);
    let (cpu_policy, root) = (config.cpu_policy.clone(), &config.root_dir);
    let context = Arc::new(context::Context {
        node_name: config.node_name.clone(),
        host_ips: config.node_ips.iter().map(ToString::to_string).collect(),
        root: config.root_dir.clone(),
        log_root: config.log_root.clone(),
        log_links: config.log_links.clone(),
        cluster_domain: config.cluster_domain.clone(),
        cluster_dns: config.cluster_dns.clone(),
        resolv_conf: std::fs::read_to_string(&config.resolv_conf).unwrap_or_default(),
        cgroup_root: config.cgroups_per_qos.then(|| config.cgroup_root.clone()),
        allocatable,
        max_pods: config.max_pods.try_into().unwrap_or(usize::MAX),
        pod_pids_limit: config.pod_pids_limit,
        seccomp_default: config.seccomp_default,
        unsafe_sysctls: config.allowed_unsafe_sysctls.clone(),
        pressures: eviction::Pressures::default(),
        pressures_changed: tokio::sync::Notify::new(),
        shutting_down: shutdown::ShuttingDown::default(),
        probe_counts: Arc::default(),
        dooms: pod::admission::Dooms::default(),
        devices: Arc::new(devices::Devices::new(&config.root_dir)),
        cpus: cpus::Cpus::new(cpu_policy, &nodes, root).map_err(Error::Resources)?,
        memory: memory::Memory::new(&config.memory_policy, &nodes, &kept_back, root).map_err(Error::Resources)?,
        topology: topology::Topology::new(config.topology_policy.clone(), nodes).map_err(Error::Resources)?,
        drivers: csi::Drivers::default(),
        claims: dra::Claims::new(root).map_err(Error::Resources)?,
        volumes_in_use: context::VolumesInUse::default(),
        admitted: context::Admitted::default(),
        node_informer: factory
            .as_ref()
            .map(|f| f.selected::<Node>(Selection::fields(&format!("metadata.name={}", config.node_name)))),
        node_memory: machine.memory_bytes,
        swap: swap::Swap {
            behavior: config.swap,
            capacity: machine.swap_bytes,
            is_cgroup_v2: node_cgroups::is_unified(),
        },
        client: client.clone(),
        images: images::Images::new(runtime.clone(), config.parallel_pulls, providers),
        runtime,
        events,
        tokens: materials::Tokens::default(),
        pod_certificates: volumes::PodCertificates::default(),
        statuses: statuses::Statuses::new(client.clone()),
        service_informer: factory.as_ref().map(SharedInformerFactory::informer::<Service>),
        runtime_classes: factory.as_ref().map(SharedInformerFactory::informer::<RuntimeClass>),
    });
    let selection = Selection::fields(&format!("spec.nodeName={}", config.node_name));
    let pods = pod::manager::Pods::default();
    let static_url = match &config.static_pod_url {
        Some((url, headers)) => {
            let source = UrlSource::new(url, headers.clone())?;
            Some(source.follow(config.node_name.clone(), config.http_check_frequency, stop.clone()))
        }
        None => None,
    };
    let manager = pod::manager::Manager {
        context: Arc::clone(&context),
        pods: pods.clone(),
        informer: factory.as_ref().map(|f| f.selected::<Pod>(selection)),
        static_dir: config.static_pod_path.clone(),
        static_period: config.file_check_frequency,
        static_url,
    };
    if let Some(address) = config.healthz_address {
        let endpoints = serving::Endpoints::new("kubelet", config.metrics.clone());
        let health = serving::Server { address, tls: None, endpoints, guard: None };
        health.start(stop.clone()).await.map_err(|source| Error::Health { address, source })?;
    }
    let port = server::Server::new(Arc::clone(&context), pods, config.clone()).start(stop.clone()).await?;
    let evictions = eviction::Watcher { context: Arc::clone(&context), settings: config.eviction.clone() };
    let logs = housekeeping::rotate_logs(Arc::clone(&context), config.logs.clone(), stop.clone());
    let images = housekeeping::collect_images(Arc::clone(&context), config.image_gc.clone(), stop.clone());
    if let Some(client) = client.clone().filter(|_| config.rotate_certificates) {
        let wish = Wish { purpose: Purpose::Client, node_name: config.node_name.clone(), hosts: Vec::new() };
        let (dir, stop) = (config.cert_dir.clone(), stop.clone());
        tokio::spawn(async move { certificates::rotate(client, &dir, wish, None, stop).await });
    }
    for name in csi::devices_in_use(&context) {
        context.volumes_in_use.begin(&name);
    }
    // Drivers that are still here publish theirs again.
    let slices = stop.run_until_cancelled(dra::drivers::wipe_slices(&context, None));
    let devices = Arc::clone(&context.devices).serve(stop.clone());
    let taker = plugins::taker::Taker { context: Arc::clone(&context), stop: stop.clone() };
    let plugins = plugins::registry::watch(config.root_dir.join("plugins_registry"), taker, stop.clone());
    let cpus = cpus::keep_apart(Arc::clone(&context), stop.clone());
    let logind = shutdown::Logind::default();
    let shutdowns = shutdown::watch(Arc::clone(&context), config.shutdown.clone(), logind, stop.clone());
    let reporter = async {
        if let Some(client) = client.filter(|_| config.register_node) {
            let context = Arc::clone(&context);
            node::NodeReporter { context, config, client, machine, port }.run(stop.clone()).await;
        }
    };
    tokio::join!(
        reporter,
        manager.run(stop.clone()),
        evictions.run(stop.clone()),
        logs,
        images,
        devices,
        plugins,
        slices,
        shutdowns,
        cpus
    );
    Ok(())
}
