//! `kelson up`: a whole cluster on this machine, in one process and one containerd.
//!
//! The order of a start: keys, containerd and the API server side by side, everything else once the API server is ready.
//! A stop goes the other way round. Containers survive both.

mod addons;
mod components;
mod connection;
mod containerd;
mod host;
mod layout;
mod options;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use k8s_openapi::api::core::v1::Node;
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use nix::fcntl::{Flock, FlockArg};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::host_network::{self, Writes};
use crate::images;
use crate::kubeconfig;
use crate::pki::{self, Pki};
use crate::private_file;
pub(crate) use components::BRIDGE;
use connection::{Connection, Identity};
use containerd::Containerd;
pub(crate) use host::cni_bin_dir;
pub(crate) use layout::{Layout, containerd_socket};
pub(crate) use options::Options;
use options::{Part, Settings};

/// How long an elected component that lost its lease waits before it stands for election again.
const ELECTION_PAUSE: Duration = Duration::from_secs(1);

/// Runs the cluster until `stop`.
pub(crate) async fn run(options: Options, stop: CancellationToken) -> Result<()> {
    let began = Instant::now();
    let settings = options.complete()?;
    host::check(&settings)?;
    private_file::create_dir(settings.layout.data_dir())?;
    let _lock = lock(&settings)?;
    let pki = prepare_keys(&settings)?;
    // The API server goes last: whoever is still finishing something can still say so.
    let server_stop = CancellationToken::new();
    let (server, runtime) = tokio::join!(start_server(&settings, &pki, &server_stop), start_runtime(&settings));
    let (server, runtime) = (server?, runtime?);
    let connection = match &server {
        Some(handle) => {
            if stop.run_until_cancelled(handle.ready()).await.is_none() {
                bail!("stopped before the API server was ready");
            }
            Connection::InProcess(handle.server().clone())
        }
        None => Connection::Kubeconfigs(settings.layout.clone()),
    };
    tracing::info!(seconds = began.elapsed().as_secs_f64(), "the API server is ready");
    let result = run_components(&settings, &pki, &connection, &stop, began).await;
    server_stop.cancel();
    if let Some(handle) = server {
        handle.wait().await;
    }
    if let Some(runtime) = runtime {
        runtime.stop().await;
    }
    result
}

/// The API server; `None` when it is somebody else's.
async fn start_server(settings: &Settings, pki: &Pki, stop: &CancellationToken) -> Result<Option<apiserver::Handle>> {
    if !settings.runs(Part::KubeApiserver) {
        return Ok(None);
    }
    let config = components::apiserver(settings, pki)?;
    Ok(Some(apiserver::start(config, stop.clone()).await.context("kube-apiserver")?))
}

/// One kelson per data directory.
fn lock(settings: &Settings) -> Result<Flock<fs::File>> {
    let path = settings.layout.lock();
    let file = fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| anyhow!("another kelson runs on {}", settings.layout.data_dir().display()))
}

/// Certificates, keys, and the kubeconfigs that carry them.
fn prepare_keys(settings: &Settings) -> Result<Pki> {
    let layout = &settings.layout;
    let identity = pki::Identity {
        node_name: settings.node_name.clone(),
        addresses: settings.node_ips.clone(),
        service_address: settings.api_service_ip(),
        cluster_domain: settings.cluster_domain.clone(),
    };
    let pki = Pki::ensure(&layout.pki(), &identity)?;
    let url = settings.api_url();
    for (name, user) in [
        ("admin", "kubernetes-admin"),
        ("controller-manager", "system:kube-controller-manager"),
        ("scheduler", "system:kube-scheduler"),
        ("kube-proxy", "system:kube-proxy"),
        ("pod-network", addons::POD_NETWORK_USER),
        ("local-path-provisioner", addons::LOCAL_PATH_USER),
        ("kubelet", &format!("system:node:{}", settings.node_name)),
    ] {
        let file = layout.kubeconfig(name);
        file.parent().map(private_file::create_dir).transpose()?;
        kubeconfig::write(&file, &url, user, &pki, &pki.pair(name))?;
    }
    if let Some(file) = &settings.write_kubeconfig {
        kubeconfig::write(file, &url, "kubernetes-admin", &pki, &pki.pair("admin"))?;
    }
    Ok(pki)
}

/// The container runtime with our images in it, and the host made ready for pods. `None` when nothing of it is ours.
async fn start_runtime(settings: &Settings) -> Result<Option<Containerd>> {
    if !settings.runs(Part::Kubelet) {
        return Ok(None);
    }
    host::prepare_kernel(settings)?;
    private_file::create_dir(&settings.layout.manifests())?;
    private_file::create_dir(&settings.layout.images())?;
    if settings.runtime_endpoint.is_some() {
        return Ok(None);
    }
    let runtime = Containerd::start(&settings.layout).await?;
    let socket = settings.layout.containerd_socket();
    images::import_archive(&socket, &images::pause_archive()?).await.context("the pause image")?;
    for archive in images::import_directory(&socket, &settings.layout.images()).await? {
        tracing::info!(archive = %archive.display(), "imported");
    }
    Ok(Some(runtime))
}

/// Runs everything but the API server until `stop`, or until one of them cannot go on.
async fn run_components(
    settings: &Settings,
    pki: &Pki,
    connection: &Connection,
    stop: &CancellationToken,
    began: Instant,
) -> Result<()> {
    // Ours alone, so that one that fails takes the others down in order.
    let mut running = Running { stop: stop.child_token(), parts: JoinSet::new() };
    let admin = connection.client(&Identity::administrator(), "kelson").await?;
    start_control_plane(settings, pki, connection, &admin, &mut running).await?;
    start_node(settings, pki, connection, &mut running).await?;
    let ready = {
        let (settings, admin) = (settings.clone(), admin.clone());
        async move {
            if settings.runs(Part::Kubelet) {
                let nodes: Api<Node> = Api::all(admin);
                await_condition(nodes, &settings.node_name, |node: Option<&Node>| node.is_some_and(is_ready)).await?;
            }
            announce(&settings, began);
            Ok(())
        }
    };
    running.spawn("readiness", |stop| async move {
        match stop.run_until_cancelled(ready).await {
            Some(Err(error)) => Err(error),
            _ => {
                stop.cancelled().await;
                Ok(())
            }
        }
    });
    running.wait().await
}

async fn start_control_plane(
    settings: &Settings,
    pki: &Pki,
    connection: &Connection,
    admin: &Client,
    running: &mut Running,
) -> Result<()> {
    if settings.runs(Part::KubeControllerManager) {
        let identity = Identity::component("controller-manager", "system:kube-controller-manager");
        let client = connection.client(&identity, "kube-controller-manager").await?;
        let (settings, pki, connection) = (settings.clone(), pki.clone(), connection.clone());
        running.spawn("kube-controller-manager", |stop| async move {
            loop {
                let config = components::controller_manager(&settings, &pki, &connection)?;
                match controller_manager::run(config, client.clone(), stop.clone()).await {
                    Err(controller_manager::Error::LeaderElectionLost) => pause(&stop).await,
                    other => return Ok(other?),
                }
            }
        });
    }
    if settings.runs(Part::KubeScheduler) {
        let identity = Identity::component("scheduler", "system:kube-scheduler");
        let client = connection.client(&identity, "kube-scheduler").await?;
        let (settings, pki) = (settings.clone(), pki.clone());
        running.spawn("kube-scheduler", |stop| async move {
            loop {
                let config = components::scheduler(&settings, &pki);
                match scheduler::run(config, client.clone(), stop.clone()).await {
                    Err(scheduler::Error::LeaderElectionLost) => pause(&stop).await,
                    other => return Ok(other?),
                }
            }
        });
    }
    if settings.runs(Part::KubeApiserver) {
        addons::install_pod_network(admin).await?;
    }
    if settings.runs(Part::KubeApiserver) && settings.runs(Part::LocalPathProvisioner) {
        addons::install_storage(admin).await?;
    }
    if settings.runs(Part::MetricsServer) {
        let authority = fs::read(pki.ca()).context("cannot read the cluster's authority")?;
        addons::install_metrics(admin, settings, &authority).await?;
        let identity = Identity::component("metrics-server", addons::METRICS_USER);
        let client = connection.client(&identity, "metrics-server").await?;
        let config = components::metrics_server(settings, pki);
        running.spawn("metrics-server", |stop| async move { Ok(metrics_server::run(config, client, stop).await?) });
    }
    if settings.runs(Part::ClusterDns) {
        addons::install_dns(admin, settings).await?;
        let identity = Identity::component("cluster-dns", addons::DNS_USER);
        let client = connection.client(&identity, "cluster-dns").await?;
        let config = components::cluster_dns(settings);
        running.spawn("cluster-dns", |stop| async move { Ok(cluster_dns::run(config, client, stop).await?) });
    }
    Ok(())
}

async fn start_node(settings: &Settings, pki: &Pki, connection: &Connection, running: &mut Running) -> Result<()> {
    if settings.runs(Part::KubeProxy) {
        host_network::note(&settings.layout, Writes::Services)?;
        let identity = Identity::component("kube-proxy", "system:kube-proxy");
        let client = connection.client(&identity, "kube-proxy").await?;
        let config = components::kube_proxy(settings);
        running.spawn("kube-proxy", |stop| async move { Ok(kube_proxy::run(config, client, stop).await?) });
    }
    if settings.runs(Part::PodNetwork) {
        host_network::note(&settings.layout, Writes::Pods)?;
        let identity = Identity::component("pod-network", addons::POD_NETWORK_USER);
        let client = connection.client(&identity, "pod-network").await?;
        let config = components::pod_network(settings);
        running.spawn("pod-network", |stop| async move { Ok(pod_network::run(config, client, stop).await?) });
    }
    if settings.runs(Part::Kubelet) {
        let client = connection.client(&Identity::node(&settings.node_name), "kubelet").await?;
        let config = components::kubelet(settings, pki)?;
        running.spawn("kubelet", |stop| async move { Ok(kubelet::run(config, Some(client), stop).await?) });
    }
    if settings.runs(Part::Kubelet) && settings.runs(Part::LocalPathProvisioner) {
        let identity = Identity::component("local-path-provisioner", addons::LOCAL_PATH_USER);
        let client = connection.client(&identity, "local-path-provisioner").await?;
        let config = components::local_path_provisioner(settings);
        running.spawn("local-path-provisioner", |stop| async move {
            local_path_provisioner::run(config, client, stop).await;
            Ok(())
        });
    }
    Ok(())
}

/// The parts that run beside each other and end together.
struct Running {
    stop: CancellationToken,
    parts: JoinSet<(&'static str, Result<()>)>,
}

impl Running {
    fn spawn<F, Fut>(&mut self, name: &'static str, part: F)
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        let part = part(self.stop.clone());
        self.parts.spawn(async move { (name, part.await) });
    }

    /// Waits for all of them. The first that fails stops the others.
    async fn wait(mut self) -> Result<()> {
        let mut result = Ok(());
        while let Some(ended) = self.parts.join_next().await {
            let failure = match ended {
                Ok((name, Err(error))) => Some(error.context(name)),
                Ok((name, Ok(()))) if !self.stop.is_cancelled() => Some(anyhow!("{name} ended by itself")),
                Ok(_) => None,
                Err(panic) => Some(anyhow!("a component panicked: {panic}")),
            };
            if let Some(failure) = failure {
                self.stop.cancel();
                result = result.and(Err(failure));
            }
        }
        result
    }
}

async fn pause(stop: &CancellationToken) {
    stop.run_until_cancelled(tokio::time::sleep(ELECTION_PAUSE)).await;
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[expect(clippy::print_stdout, reason = "the user waits for this")]
fn announce(settings: &Settings, began: Instant) {
    let config = settings.write_kubeconfig.clone().unwrap_or_else(|| settings.layout.kubeconfig("admin"));
    println!("The cluster is ready after {:.1} s.", began.elapsed().as_secs_f64());
    println!("  export KUBECONFIG={}", config.display());
}
