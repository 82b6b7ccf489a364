//! The `workqueue_*` metrics, by queue name.

use std::{
    sync::{Arc, Weak, atomic::AtomicU64},
    time::Duration,
};

use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{MetricType, counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
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
    working: Arc<Working>,
}

/// What workers of a queue are at.
pub(super) trait Work: Send + Sync {
    /// For how long they have been at their keys: together, and the one that takes longest.
    fn unfinished(&self) -> (Duration, Duration);
}

/// The queues whose work is measured when somebody asks, because it grows without anything happening.
#[derive(Default)]
struct Working(Mutex<Vec<(QueueLabels, Weak<dyn Work>)>>);

impl std::fmt::Debug for Working {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Working")
    }
}

impl Collector for Working {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let [unfinished, longest] = <[Family<QueueLabels, Gauge<f64, AtomicU64>>; 2]>::default();
        self.0.lock().retain(|(labels, queue)| {
            let Some(queue) = queue.upgrade() else { return false };
            let (all, one) = queue.unfinished();
            unfinished.get_or_create(labels).set(all.as_secs_f64());
            longest.get_or_create(labels).set(one.as_secs_f64());
            true
        });
        for (name, help, family) in [
            (
                "workqueue_unfinished_work_seconds",
                "For how long workers have been at what is not done, together",
                unfinished,
            ),
            (
                "workqueue_longest_running_processor_seconds",
                "For how long the slowest worker has been at its key",
                longest,
            ),
        ] {
            family.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        Ok(())
    }
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
            working: Arc::default(),
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
        registry.register_collector(Box::new(metrics.working.clone()));
        metrics
    }

    /// Measures what the queue's workers are at, as long as there is the queue.
    pub(super) fn watch(&self, name: &str, queue: Weak<dyn Work>) {
        self.working.0.lock().push((QueueLabels { name: name.to_owned() }, queue));
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
