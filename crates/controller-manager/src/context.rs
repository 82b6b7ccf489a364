//! What a controller is started with.

use std::sync::Arc;

use client::{
    controller::{self, Controller},
    events::Recorder,
    informer::SharedInformerFactory,
    workqueue::{Backoff, QueueMetrics},
};
use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// One controller's surroundings.
#[derive(Clone)]
pub(crate) struct Context {
    /// Acts as this controller.
    pub(crate) client: Client,
    /// Writes events as this controller.
    pub(crate) recorder: Recorder,
    /// Shared by all controllers.
    pub(crate) informers: SharedInformerFactory,
    pub(crate) config: Arc<Config>,
    pub(crate) metrics: Option<QueueMetrics>,
    pub(crate) stop: CancellationToken,
}

impl Context {
    /// Runs one controller until the end.
    pub(crate) async fn run<C: Controller>(self, controller: C, workers: usize) {
        let options = controller::Options { workers, backoff: Backoff::default(), metrics: self.metrics };
        controller::run(Arc::new(controller), options, self.stop).await;
    }
}
