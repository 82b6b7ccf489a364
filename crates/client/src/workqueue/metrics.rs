//! The `workqueue_*` metrics, by queue name.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabels {
    name: String,
}

/// The metrics of all queues of a component.
#[derive(Debug, Clone)]
pub struct QueueMetrics {
    depth: Family<QueueLabels, Gauge>,
    adds: Family<QueueLabels, Counter>,
    retries: Family<QueueLabels, Counter>,
    waited: Family<QueueLabels, Histogram, fn() -> Histogram>,
    worked: Family<QueueLabels, Histogram, fn() -> Histogram>,
}

impl QueueMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        // Ten buckets from 10 ns to 10 s, a decade apart.
        let seconds: fn() -> Histogram = || Histogram::new((0..10).map(|decade| 1e-8 * 10f64.powi(decade)));
        let metrics = Self {
            depth: Family::default(),
            adds: Family::default(),
            retries: Family::default(),
            waited: Family::new_with_constructor(seconds),
            worked: Family::new_with_constructor(seconds),
        };
        registry.register("workqueue_depth", "Keys that wait in the queue", metrics.depth.clone());
        registry.register("workqueue_adds", "Keys that were put into the queue", metrics.adds.clone());
        registry.register("workqueue_retries", "Keys that were queued again after a failure", metrics.retries.clone());
        registry.register(
            "workqueue_queue_duration_seconds",
            "How long keys waited in the queue until a worker took them",
            metrics.waited.clone(),
        );
        registry.register(
            "workqueue_work_duration_seconds",
            "How long workers took over one key",
            metrics.worked.clone(),
        );
        metrics
    }

    pub(super) fn of(&self, name: &str) -> Recorded {
        let labels = QueueLabels { name: name.to_owned() };
        Recorded {
            depth: self.depth.get_or_create_owned(&labels),
            adds: self.adds.get_or_create_owned(&labels),
            retries: self.retries.get_or_create_owned(&labels),
            waited: self.waited.get_or_create_owned(&labels),
            worked: self.worked.get_or_create_owned(&labels),
        }
    }
}

/// One queue's metrics.
#[derive(Debug)]
pub(super) struct Recorded {
    depth: Gauge,
    adds: Counter,
    retries: Counter,
    waited: Histogram,
    worked: Histogram,
}

impl Recorded {
    pub(super) fn added(&self) {
        self.adds.inc();
        self.depth.inc();
    }
    pub(super) fn retried(&self) {
        self.retries.inc();
    }
    pub(super) fn taken(&self, waited: Duration) {
        self.depth.dec();
        self.waited.observe(waited.as_secs_f64());
    }
    pub(super) fn worked(&self, took: Duration) {
        self.worked.observe(took.as_secs_f64());
    }
}
