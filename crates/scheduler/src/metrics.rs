//! Upstream's metrics of the scheduler.

use std::time::Duration;

use component_base::metrics::prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::queue::Depths;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttemptLabels {
    result: &'static str,
    profile: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabels {
    queue: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IncomingLabels {
    queue: &'static str,
    event: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttemptsLabels {
    attempts: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PointLabels {
    extension_point: &'static str,
    status: &'static str,
    profile: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PluginLabels {
    plugin: &'static str,
    profile: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabels {
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// How a scheduling attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttemptResult {
    Scheduled,
    Unschedulable,
    Error,
}

impl AttemptResult {
    fn label(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Unschedulable => "unschedulable",
            Self::Error => "error",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Metrics {
    attempts: Family<AttemptLabels, Counter>,
    attempt_duration: Histograms<AttemptLabels>,
    algorithm_duration: Histogram,
    preemption_victims: Histogram,
    preemption_attempts: Counter,
    pending: Family<QueueLabels, Gauge>,
    incoming: Family<IncomingLabels, Counter>,
    sli_duration: Histograms<AttemptsLabels>,
    pod_attempts: Histogram,
    scheduled_after_flush: Counter,
    point_duration: Histograms<PointLabels>,
    permit_wait: Histograms<ResultLabels>,
    cache_size: Family<TypeLabels, Gauge>,
    unschedulable: Family<PluginLabels, Gauge>,
    goroutines: Family<OperationLabels, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let milliseconds: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        let sli: fn() -> Histogram = || Histogram::new(exponential_buckets(0.01, 2.0, 20));
        let points: fn() -> Histogram = || Histogram::new(exponential_buckets(0.0001, 2.0, 12));
        Self {
            attempts: Family::default(),
            attempt_duration: Family::new_with_constructor(milliseconds),
            algorithm_duration: milliseconds(),
            preemption_victims: Histogram::new(exponential_buckets(1.0, 2.0, 7)),
            preemption_attempts: Counter::default(),
            pending: Family::default(),
            incoming: Family::default(),
            sli_duration: Family::new_with_constructor(sli),
            pod_attempts: Histogram::new(exponential_buckets(1.0, 2.0, 5)),
            scheduled_after_flush: Counter::default(),
            point_duration: Family::new_with_constructor(points),
            permit_wait: Family::new_with_constructor(milliseconds),
            cache_size: Family::default(),
            unschedulable: Family::default(),
            goroutines: Family::default(),
        }
    }
}

impl Metrics {
    #[must_use]
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        let r = registry;
        r.register("scheduler_schedule_attempts_total", "Attempts to schedule pods, by result", m.attempts.clone());
        r.register(
            "scheduler_scheduling_attempt_duration_seconds",
            "Time of an attempt, decision and binding together",
            m.attempt_duration.clone(),
        );
        r.register(
            "scheduler_scheduling_algorithm_duration_seconds",
            "Time of the decision alone",
            m.algorithm_duration.clone(),
        );
        r.register("scheduler_preemption_victims", "Pods evicted by one preemption", m.preemption_victims.clone());
        r.register(
            "scheduler_preemption_attempts_total",
            "Attempts to make room by preemption",
            m.preemption_attempts.clone(),
        );
        r.register("scheduler_pending_pods", "Pods in the queue, by the part that they are in", m.pending.clone());
        r.register(
            "scheduler_queue_incoming_pods_total",
            "Pods put into a part of the queue, by what caused it",
            m.incoming.clone(),
        );
        r.register(
            "scheduler_pod_scheduling_sli_duration_seconds",
            "Time from the first entry into the queue to the binding, by number of attempts",
            m.sli_duration.clone(),
        );
        r.register("scheduler_pod_scheduling_attempts", "Attempts until a pod was bound", m.pod_attempts.clone());
        r.register(
            "scheduler_pod_scheduled_after_flush_total",
            "Pods bound though nothing that could help them had been noticed",
            m.scheduled_after_flush.clone(),
        );
        r.register(
            "scheduler_framework_extension_point_duration_seconds",
            "Time of all plugins of an extension point",
            m.point_duration.clone(),
        );
        r.register(
            "scheduler_permit_wait_duration_seconds",
            "Time that pods waited to be permitted",
            m.permit_wait.clone(),
        );
        r.register("scheduler_cache_size", "Nodes, pods and assumed pods in the cache", m.cache_size.clone());
        r.register(
            "scheduler_unschedulable_pods",
            "Pods that wait because a plugin turned them down",
            m.unschedulable.clone(),
        );
        r.register("scheduler_goroutines", "Tasks that run beside the decisions", m.goroutines.clone());
        m
    }

    pub(crate) fn attempt(&self, result: AttemptResult, profile: &str, took: Duration) {
        let labels = AttemptLabels { result: result.label(), profile: profile.to_owned() };
        self.attempts.get_or_create(&labels).inc();
        self.attempt_duration.get_or_create(&labels).observe(took.as_secs_f64());
    }

    pub(crate) fn decided(&self, took: Duration) {
        self.algorithm_duration.observe(took.as_secs_f64());
    }

    pub(crate) fn bound(&self, attempts: u32, waited: Duration, after_flush: bool) {
        self.pod_attempts.observe(f64::from(attempts));
        // Upstream counts 15 and more together, as "16+" would make labels without bound.
        let label = if attempts >= 15 { "15+".to_owned() } else { attempts.to_string() };
        self.sli_duration.get_or_create(&AttemptsLabels { attempts: label }).observe(waited.as_secs_f64());
        if after_flush {
            self.scheduled_after_flush.inc();
        }
    }

    pub(crate) fn queued(&self, queue: &'static str, event: &str) {
        self.incoming.get_or_create(&IncomingLabels { queue, event: event.to_owned() }).inc();
    }

    pub(crate) fn preemption_tried(&self) {
        self.preemption_attempts.inc();
    }

    pub(crate) fn preempted(&self, victims: usize) {
        #[expect(clippy::cast_precision_loss, reason = "a count of pods")]
        self.preemption_victims.observe(victims as f64);
    }

    pub(crate) fn point(&self, extension_point: &'static str, status: &'static str, profile: &str, took: Duration) {
        let labels = PointLabels { extension_point, status, profile: profile.to_owned() };
        self.point_duration.get_or_create(&labels).observe(took.as_secs_f64());
    }

    pub(crate) fn permit_waited(&self, allowed: bool, took: Duration) {
        let result = if allowed { "allowed" } else { "rejected" };
        self.permit_wait.get_or_create(&ResultLabels { result }).observe(took.as_secs_f64());
    }

    pub(crate) fn binding(&self, started: bool) {
        let gauge = self.goroutines.get_or_create(&OperationLabels { operation: "binding" });
        if started {
            gauge.inc()
        } else {
            gauge.dec()
        };
    }

    /// Takes over the sizes of queue and cache.
    pub(crate) fn sizes(&self, depths: Depths, nodes: usize, pods: usize, assumed: usize) {
        let set = |gauge: &Gauge, value: usize| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        for (queue, depth) in [
            ("active", depths.active),
            ("backoff", depths.backoff),
            ("unschedulable", depths.unschedulable),
            ("gated", depths.gated),
        ] {
            set(&self.pending.get_or_create(&QueueLabels { queue }), depth);
        }
        for (r#type, size) in [("nodes", nodes), ("pods", pods), ("assumed_pods", assumed)] {
            set(&self.cache_size.get_or_create(&TypeLabels { r#type }), size);
        }
    }

    /// How many pods wait because of each plugin; the plugins that are not listed have none.
    pub(crate) fn turned_down(&self, profile: &str, plugins: impl IntoIterator<Item = (&'static str, usize)>) {
        for (plugin, count) in plugins {
            let labels = PluginLabels { plugin, profile: profile.to_owned() };
            self.unschedulable.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}
