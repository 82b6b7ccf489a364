//! Starts what the configuration asks for, in the right order, and ends it again.

use std::sync::Arc;

use client::{
    config::{ClientOptions, ConfigError, from_kubeconfig},
    delegation::DelegatedGuard,
    events::{Dialect, Recorder},
    informer::{SharedInformerFactory, trim_pod},
    leader_election::{self, Outcome},
    workqueue::QueueMetrics,
};
use component_base::{
    metrics::Metrics,
    serving::{Endpoints, Server},
    tls,
};
use futures::future::BoxFuture;
use kube::Client;
use rustls::server::ResolvesServerCert;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, Serving},
    context::Context,
    credentials::ClientBuilder,
    registry::CONTROLLERS,
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("clients of the controllers")]
    Client(#[from] ConfigError),
    #[error("serving certificate")]
    Tls(#[from] tls::TlsError),
    #[error("cannot listen on {address}")]
    Listen { address: std::net::SocketAddr, source: std::io::Error },
    #[error("leaderelection lost")]
    LeaderElectionLost,
}

const COMPONENT: &str = "kube-controller-manager";

/// Runs the controllers until `stop`, or until leadership is lost. `client` acts as the controller manager.
pub fn run(config: Config, client: Client, stop: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // Boxed, so that it is compiled here: the body of an `async fn` is compiled by the crate that awaits it.
    Box::pin(elect_and_run(config, client, stop))
}

async fn elect_and_run(config: Config, client: Client, stop: CancellationToken) -> Result<(), Error> {
    let metrics = Metrics::new();
    if let Some(serving) = &config.serving {
        serve(serving, &client, metrics.clone(), stop.clone()).await?;
    }
    let config = Arc::new(config);
    let queue_metrics = metrics.register(QueueMetrics::register);
    let Some(lease) = &config.leader_election else {
        return run_controllers(config, client, Client::clone, queue_metrics, stop).await;
    };
    let recorder = Recorder::start(client.clone(), Dialect::Core, COMPONENT, "", stop.clone());
    let mut result = Ok(());
    let outcome = leader_election::run(&client, lease, Some(&recorder), stop, |leadership| {
        let config = config.clone();
        let result = &mut result;
        async move {
            let guard = leadership.guard();
            *result = run_controllers(config, leadership.client, guard, queue_metrics, leadership.over).await;
        }
    })
    .await;
    match outcome {
        Outcome::Lost => Err(Error::LeaderElectionLost),
        Outcome::Stopped | Outcome::Finished => result,
    }
}

/// `guard`: makes a controller's own client one that stops writing when it has to.
async fn run_controllers(
    config: Arc<Config>,
    client: Client,
    guard: impl Fn(&Client) -> Client,
    metrics: QueueMetrics,
    stop: CancellationToken,
) -> Result<(), Error> {
    let builder = ClientBuilder::new(&config.credentials, &client).await?;
    let informers = SharedInformerFactory::new(client.clone(), stop.clone());
    informers.trim(trim_pod);
    let mut running = JoinSet::new();
    for controller in CONTROLLERS {
        if !config.controllers.enables(&[controller.name, controller.alias], controller.on_by_default) {
            tracing::debug!(controller = controller.name, "controller is switched off");
            continue;
        }
        let own =
            if controller.account.is_empty() { client.clone() } else { guard(&builder.client(controller.account)?) };
        let context = Context {
            recorder: Recorder::start(own.clone(), Dialect::Core, controller.account, "", stop.clone()),
            client: own,
            informers: informers.clone(),
            config: config.clone(),
            metrics: Some(metrics.clone()),
            stop: stop.clone(),
        };
        match (controller.start)(context) {
            Some(controller) => {
                running.spawn(controller);
            }
            None => tracing::warn!(controller = controller.name, "skipping controller, it is not configured"),
        }
    }
    while running.join_next().await.is_some() {}
    stop.cancelled().await;
    Ok(())
}

async fn serve(serving: &Serving, client: &Client, metrics: Metrics, stop: CancellationToken) -> Result<(), Error> {
    let certificate: Arc<dyn ResolvesServerCert> = match &serving.certificate {
        Some((cert, key)) => Arc::new(tls::ReloadingCertificate::open(cert, key)?),
        None => tls::self_signed(COMPONENT, &["localhost".to_owned()], serving.cert_dir.as_deref())?,
    };
    let asked = async |kubeconfig: &Option<std::path::PathBuf>| match kubeconfig {
        Some(path) => from_kubeconfig(path, &ClientOptions::unlimited(COMPONENT)).await,
        None => Ok(client.clone()),
    };
    let guard =
        DelegatedGuard::with_clients(asked(&serving.authentication).await?, asked(&serving.authorization).await?);
    let client_cas = serving.client_ca.as_deref().map(tls::load_roots).transpose()?;
    let server = Server {
        address: serving.address,
        tls: Some(tls::server_config(certificate, client_cas, &["h2", "http/1.1"])?),
        endpoints: Endpoints::new(COMPONENT, metrics),
        guard: Some(Arc::new(guard)),
    };
    server.start(stop).await.map_err(|source| Error::Listen { address: serving.address, source })?;
    Ok(())
}
