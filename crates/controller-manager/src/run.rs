//! Starts what the configuration asks for, in the right order, and ends it again.

use std::sync::Arc;

use client::{
    config::ConfigError,
    delegation,
    events::{Dialect, Recorder},
    informer::{SharedInformerFactory, trim_pod},
    leader_election::{self, LeaderMetrics, Outcome},
    workqueue::QueueMetrics,
};
use component_base::{metrics::Metrics, serving::Endpoints};
use futures::future::BoxFuture;
use kube::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{config::Config, config_file, context::Context, credentials::ClientBuilder, registry::CONTROLLERS};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("clients of the controllers")]
    Client(#[from] ConfigError),
    #[error("secure port")]
    Serving(#[from] delegation::Error),
    #[error("leaderelection lost")]
    LeaderElectionLost,
}

const COMPONENT: &str = "kube-controller-manager";
/// What its configuration is called in `/configz`.
const CONFIGZ: &str = "kubecontrollermanager.config.k8s.io";

/// Runs the controllers until `stop`, or until leadership is lost. `client` acts as the controller manager.
pub fn run(config: Config, client: Client, stop: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // Boxed, so that it is compiled here: the body of an `async fn` is compiled by the crate that awaits it.
    Box::pin(elect_and_run(config, client, stop))
}

async fn elect_and_run(config: Config, client: Client, stop: CancellationToken) -> Result<(), Error> {
    let metrics = Metrics::new();
    if let Some(port) = &config.serving {
        let mut endpoints = Endpoints::new(COMPONENT, metrics.clone());
        endpoints.configz = serde_json::json!({ CONFIGZ: config_file::shown_of(&config.flags) });
        endpoints.flags.clone_from(&config.flags);
        delegation::serve(port, &client, endpoints, stop.clone()).await?;
    }
    let config = Arc::new(config);
    let queue_metrics = metrics.register(QueueMetrics::register);
    let Some(lease) = &config.leader_election else {
        return run_controllers(config, client, Client::clone, queue_metrics, stop).await;
    };
    let recorder = Recorder::start(client.clone(), Dialect::Core, COMPONENT, "", stop.clone());
    let leads = metrics.register(LeaderMetrics::register);
    leads.set(lease, false);
    let mut result = Ok(());
    let outcome = leader_election::run(&client, lease, Some(&recorder), stop, |leadership| {
        let config = config.clone();
        let result = &mut result;
        leads.set(lease, true);
        async move {
            let guard = leadership.guard();
            *result = run_controllers(config, leadership.client, guard, queue_metrics, leadership.over).await;
        }
    })
    .await;
    leads.set(lease, false);
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
        if !controller.is_let(&config.feature_gates) {
            tracing::info!(controller = controller.name, "controller is disabled by a feature gate");
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
