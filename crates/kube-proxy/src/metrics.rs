//! What kube-proxy measures, under upstream's names.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets, linear_buckets};
use prometheus_client::registry::Registry;

use crate::model::{Family as IpFamily, Frontend, Policy, ServiceRules};
use crate::proxier::Mode;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfFamily {
    ip_family: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfPolicy {
    ip_family: &'static str,
    traffic_policy: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfTable {
    ip_family: &'static str,
    table: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfCode {
    code: u16,
}

type Histograms = Family<OfFamily, Histogram, fn() -> Histogram>;
type Counters = Family<OfFamily, Counter>;
type Gauges = Family<OfFamily, Gauge>;

/// Both families are written together, so that what is measured of a sync holds for each of them.
#[derive(Clone)]
pub(crate) struct ProxyMetrics {
    sync: Histograms,
    full_sync: Histograms,
    partial_sync: Histograms,
    failures: Counters,
    last_sync: Gauges,
    last_queued: Gauges,
    programming: Histograms,
    service_changes: Counters,
    services_pending: Gauges,
    endpoint_changes: Counters,
    endpoints_pending: Gauges,
    no_local_endpoints: Family<OfPolicy, Gauge>,
    conntrack_deleted: Counters,
    conntrack_sync: Histograms,
    /// Of iptables alone.
    rules: Family<OfTable, Gauge>,
    rules_written: Family<OfTable, Gauge>,
    pub(crate) healthz: Family<OfCode, Counter>,
    pub(crate) livez: Family<OfCode, Counter>,
}

fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

fn programming_durations() -> Histogram {
    let buckets = linear_buckets(0.25, 0.25, 2)
        .chain(linear_buckets(1.0, 1.0, 59))
        .chain(linear_buckets(60.0, 5.0, 12))
        .chain(linear_buckets(120.0, 30.0, 7));
    Histogram::new(buckets)
}

fn each(work: impl Fn(&OfFamily)) {
    for family in IpFamily::BOTH {
        work(&OfFamily { ip_family: family.name() });
    }
}

impl ProxyMetrics {
    pub(crate) fn register(registry: &mut Registry, mode: Mode) -> Self {
        let histograms = || Histograms::new_with_constructor(durations);
        let metrics = ProxyMetrics {
            sync: histograms(),
            full_sync: histograms(),
            partial_sync: histograms(),
            failures: Counters::default(),
            last_sync: Gauges::default(),
            last_queued: Gauges::default(),
            programming: Histograms::new_with_constructor(programming_durations),
            service_changes: Counters::default(),
            services_pending: Gauges::default(),
            endpoint_changes: Counters::default(),
            endpoints_pending: Gauges::default(),
            no_local_endpoints: Family::default(),
            conntrack_deleted: Counters::default(),
            conntrack_sync: histograms(),
            rules: Family::default(),
            rules_written: Family::default(),
            healthz: Family::default(),
            livez: Family::default(),
        };
        let r = registry.sub_registry_with_prefix("kubeproxy");
        r.register("sync_proxy_rules_duration_seconds", "Time of a sync", metrics.sync.clone());
        r.register("sync_full_proxy_rules_duration_seconds", "Time of a sync of everything", metrics.full_sync.clone());
        r.register(
            "sync_partial_proxy_rules_duration_seconds",
            "Time of a sync of changes",
            metrics.partial_sync.clone(),
        );
        let failures = match mode {
            Mode::Nftables => "sync_proxy_rules_nftables_sync_failures",
            Mode::Iptables | Mode::Ipvs => "sync_proxy_rules_iptables_restore_failures",
        };
        r.register(failures, "Failed syncs", metrics.failures.clone());
        if mode != Mode::Nftables {
            r.register("sync_proxy_rules_iptables_total", "Rules that there are", metrics.rules.clone());
            r.register(
                "sync_proxy_rules_iptables_last",
                "Rules that the last sync wrote",
                metrics.rules_written.clone(),
            );
        }
        r.register("sync_proxy_rules_last_timestamp_seconds", "Last sync since 1970", metrics.last_sync.clone());
        r.register(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "Last change since 1970",
            metrics.last_queued.clone(),
        );
        r.register("network_programming_duration_seconds", "From a change to its rules", metrics.programming.clone());
        r.register("sync_proxy_rules_service_changes", "Changes of Services", metrics.service_changes.clone());
        r.register(
            "sync_proxy_rules_service_changes_pending",
            "Unwritten changes of Services",
            metrics.services_pending.clone(),
        );
        r.register("sync_proxy_rules_endpoint_changes", "Changes of endpoints", metrics.endpoint_changes.clone());
        r.register(
            "sync_proxy_rules_endpoint_changes_pending",
            "Unwritten changes of endpoints",
            metrics.endpoints_pending.clone(),
        );
        r.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "Service ports of policy Local without endpoints here",
            metrics.no_local_endpoints.clone(),
        );
        r.register(
            "conntrack_reconciler_deleted_entries",
            "Flows that were forgotten",
            metrics.conntrack_deleted.clone(),
        );
        r.register(
            "conntrack_reconciler_sync_duration_seconds",
            "Time of forgetting flows",
            metrics.conntrack_sync.clone(),
        );
        r.register("proxy_healthz", "Answers of /healthz", metrics.healthz.clone());
        r.register("proxy_livez", "Answers of /livez", metrics.livez.clone());
        metrics
    }

    pub(crate) fn count_code(counter: &Family<OfCode, Counter>, code: u16) {
        counter.get_or_create(&OfCode { code }).inc();
    }

    pub(crate) fn service_changed(&self) {
        each(|family| {
            self.service_changes.get_or_create(family).inc();
            self.services_pending.get_or_create(family).inc();
            self.last_queued.get_or_create(family).set(now());
        });
    }

    pub(crate) fn endpoints_changed(&self) {
        each(|family| {
            self.endpoint_changes.get_or_create(family).inc();
            self.endpoints_pending.get_or_create(family).inc();
            self.last_queued.get_or_create(family).set(now());
        });
    }

    pub(crate) fn synced(&self, full: bool, took: Duration) {
        let kind = if full { &self.full_sync } else { &self.partial_sync };
        each(|family| {
            self.sync.get_or_create(family).observe(took.as_secs_f64());
            kind.get_or_create(family).observe(took.as_secs_f64());
            self.last_sync.get_or_create(family).set(now());
            self.services_pending.get_or_create(family).set(0);
            self.endpoints_pending.get_or_create(family).set(0);
        });
    }

    pub(crate) fn failed(&self) {
        each(|family| {
            self.failures.get_or_create(family).inc();
        });
    }

    /// Keeps the number of rules in a table of iptables, and how many of them were just written.
    pub(crate) fn count_rules(&self, ip_family: IpFamily, table: &'static str, total: usize, written: usize) {
        let labels = OfTable { ip_family: ip_family.name(), table };
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.rules.get_or_create(&labels).set(number(total));
        self.rules_written.get_or_create(&labels).set(number(written));
    }

    pub(crate) fn reconciled(&self, took: Duration) {
        each(|family| self.conntrack_sync.get_or_create(family).observe(took.as_secs_f64()));
    }

    pub(crate) fn forgotten(&self, family: IpFamily, flows: u64) {
        self.conntrack_deleted.get_or_create(&OfFamily { ip_family: family.name() }).inc_by(flows);
    }

    /// A change of endpoints that was asked for at `since` is in the rules now.
    pub(crate) fn programmed(&self, since: SystemTime) {
        let took = since.elapsed().unwrap_or_default();
        each(|family| self.programming.get_or_create(family).observe(took.as_secs_f64()));
    }

    /// Keeps count of the ports that have endpoints, but none for a policy of Local.
    pub(crate) fn count_no_local(&self, old: Option<&ServiceRules>, new: Option<&ServiceRules>) {
        for (rules, step) in [(old, -1), (new, 1)] {
            for port in rules.iter().flat_map(|r| &r.ports).filter(|p| p.has_any && p.local.is_empty()) {
                let is_external = port.frontends.iter().any(Frontend::is_external);
                let policies = [
                    ("internal", port.internal == Policy::Local),
                    ("external", port.external == Policy::Local && is_external),
                ];
                for (traffic_policy, _) in policies.into_iter().filter(|(_, is_local)| *is_local) {
                    let labels = OfPolicy { ip_family: port.family.name(), traffic_policy };
                    self.no_local_endpoints.get_or_create(&labels).inc_by(step);
                }
            }
        }
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use component_base::metrics::Metrics;

    #[test]
    fn forgotten_flows_count_for_their_family() {
        let metrics = Metrics::new();
        let proxy = metrics.register(|registry| ProxyMetrics::register(registry, Mode::Nftables));
        proxy.forgotten(IpFamily::V6, 3);
        let text = metrics.text();
        let counted: Vec<&str> =
            text.lines().filter(|line| line.starts_with("kubeproxy_conntrack_reconciler_deleted_entries")).collect();
        assert_eq!(counted, ["kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv6\"} 3"]);
    }

    #[test]
    fn failures_and_rules_have_the_names_of_their_mode() {
        let shown = |mode| {
            let metrics = Metrics::new();
            let proxy = metrics.register(|registry| ProxyMetrics::register(registry, mode));
            proxy.failed();
            proxy.count_rules(IpFamily::V4, "nat", 7, 2);
            let text = metrics.text();
            let own =
                text.lines().filter(|l| !l.starts_with('#') && (l.contains("failures") || l.contains("iptables")));
            own.filter(|l| !l.contains("IPv6")).map(str::to_owned).collect::<Vec<_>>()
        };
        let nftables = ["kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv4\"} 1"];
        assert_eq!(shown(Mode::Nftables), nftables);
        let iptables = [
            "kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_proxy_rules_iptables_total{ip_family=\"IPv4\",table=\"nat\"} 7",
            "kubeproxy_sync_proxy_rules_iptables_last{ip_family=\"IPv4\",table=\"nat\"} 2",
        ];
        assert_eq!(shown(Mode::Iptables), iptables);
    }
}
