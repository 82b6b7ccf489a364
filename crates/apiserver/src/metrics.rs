//! What the server measures of its requests, under upstream's names.

use std::sync::atomic::AtomicI64;
use std::time::Duration;

use component_base::metrics::prometheus_client;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::attributes::RequestInfo;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    verb: String,
    dry_run: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    component: &'static str,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct DurationLabels {
    verb: String,
    dry_run: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    component: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct KindLabels {
    request_kind: &'static str,
}

pub(crate) struct ServerMetrics {
    requests: Family<RequestLabels, Counter>,
    durations: Family<DurationLabels, Histogram, fn() -> Histogram>,
    inflight: Family<KindLabels, Gauge<i64, AtomicI64>>,
    unavailable: Family<ServiceLabels, Gauge<i64, AtomicI64>>,
    unavailable_total: Family<ReasonLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ServiceLabels {
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReasonLabels {
    name: String,
    reason: &'static str,
}

/// Upstream's buckets of request durations, in seconds.
const BUCKETS: [f64; 22] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0,
];

impl ServerMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let requests = Family::default();
        let durations: Family<DurationLabels, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(BUCKETS.into_iter().chain([60.0])));
        let inflight = Family::default();
        registry.register("apiserver_request", "Requests that were answered", requests.clone());
        registry.register(
            "apiserver_request_duration_seconds",
            "Time from a request's head to the head of its answer",
            durations.clone(),
        );
        registry.register("apiserver_current_inflight_requests", "Requests being answered", inflight.clone());
        let (unavailable, unavailable_total) = (Family::default(), Family::default());
        registry.register(
            "aggregator_unavailable_apiservice",
            "Whether an APIService is not available",
            unavailable.clone(),
        );
        registry.register(
            "aggregator_unavailable_apiservice",
            "How often an APIService was found unavailable, by reason",
            unavailable_total.clone(),
        );
        ServerMetrics { requests, durations, inflight, unavailable, unavailable_total }
    }

    /// An APIService was looked at.
    pub(crate) fn api_service_available(&self, name: &str, available: bool, reason: &'static str) {
        let gauge = self.unavailable.get_or_create(&ServiceLabels { name: name.to_owned() }).clone();
        let before = gauge.set(i64::from(!available));
        if !available && before == 0 {
            self.unavailable_total.get_or_create(&ReasonLabels { name: name.to_owned(), reason }).inc();
        }
    }

    pub(crate) fn api_service_gone(&self, name: &str) {
        self.unavailable.remove(&ServiceLabels { name: name.to_owned() });
    }

    /// Counts a request that has been answered.
    pub(crate) fn observe(&self, info: &RequestInfo, dry_run: bool, code: u16, took: Duration) {
        let labels = DurationLabels {
            verb: verb_label(info),
            dry_run: if dry_run { "All".into() } else { String::new() },
            group: info.gvr.group.to_string(),
            version: info.gvr.version.to_string(),
            resource: if code == 404 && info.name.is_empty() { String::new() } else { info.gvr.resource.to_string() },
            subresource: info.subresource.clone(),
            scope: scope_of(info),
            component: "apiserver",
        };
        if info.verb != "watch" {
            self.durations.get_or_create(&labels).observe(took.as_secs_f64());
        }
        let DurationLabels { verb, dry_run, group, version, resource, subresource, scope, component } = labels;
        let labels = RequestLabels { verb, dry_run, group, version, resource, subresource, scope, component, code };
        self.requests.get_or_create(&labels).inc();
    }

    /// Counts a request that is being answered until the guard is dropped.
    pub(crate) fn inflight(&self, mutating: bool) -> InflightGuard {
        let request_kind = if mutating { "mutating" } else { "readOnly" };
        let gauge = self.inflight.get_or_create(&KindLabels { request_kind }).clone();
        gauge.inc();
        InflightGuard(gauge)
    }
}

pub(crate) struct InflightGuard(Gauge<i64, AtomicI64>);

impl Drop for InflightGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Upstream's labels: upper case, and its own names for some.
fn verb_label(info: &RequestInfo) -> String {
    match info.verb.as_str() {
        "create" => "POST".into(),
        "update" => "PUT".into(),
        "deletecollection" => "DELETECOLLECTION".into(),
        "get" | "list" | "watch" | "patch" | "delete" => info.verb.to_ascii_uppercase(),
        "post" | "put" | "head" | "options" => info.verb.to_ascii_uppercase(),
        _ => "other".into(),
    }
}

fn scope_of(info: &RequestInfo) -> &'static str {
    if !info.is_resource {
        ""
    } else if !info.name.is_empty() || info.verb == "create" {
        "resource"
    } else if !info.namespace.is_empty() {
        "namespace"
    } else {
        "cluster"
    }
}
