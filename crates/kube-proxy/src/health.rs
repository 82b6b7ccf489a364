//! Whether this proxy keeps up, and what load balancers are told about it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use std::sync::Mutex;
use std::sync::PoisonError;

use component_base::serving::Answer;
use http::StatusCode;
use jiff::Timestamp;

use crate::metrics::ProxyMetrics;

/// Shared by the loop that writes rules, which says what it does, and the servers that are asked.
#[derive(Clone)]
pub(crate) struct Health(Arc<Inner>);

struct Inner {
    /// A change may wait this long before the proxy counts as unhealthy.
    timeout: Duration,
    state: Mutex<State>,
    metrics: ProxyMetrics,
}

struct State {
    oldest_pending: Option<Instant>,
    last_updated: Timestamp,
    node_eligible: bool,
}

impl Health {
    pub(crate) fn new(sync_period: Duration, metrics: ProxyMetrics) -> Self {
        let state = State { oldest_pending: None, last_updated: Timestamp::UNIX_EPOCH, node_eligible: true };
        Health(Arc::new(Inner { timeout: sync_period * 2, state: Mutex::new(state), metrics }))
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// There is something to write.
    pub(crate) fn queued(&self) {
        self.with(|state| state.oldest_pending = state.oldest_pending.or_else(|| Some(Instant::now())));
    }

    /// All is written.
    pub(crate) fn updated(&self) {
        self.with(|state| {
            state.oldest_pending = None;
            state.last_updated = Timestamp::now();
        });
    }

    pub(crate) fn set_node_eligible(&self, eligible: bool) {
        self.with(|state| state.node_eligible = eligible);
    }

    /// Whether no change waits for too long.
    pub(crate) fn is_healthy(&self) -> bool {
        self.with(|state| state.oldest_pending.is_none_or(|since| since.elapsed() < self.0.timeout))
    }

    /// `/healthz`: whether balancers should send traffic here. `/livez`: whether the proxy works.
    pub(crate) fn answer(&self, path: &str) -> Option<Answer> {
        let (node_eligible, last_updated) = self.with(|state| (state.node_eligible, state.last_updated));
        let now = Timestamp::now();
        let (healthy, counter, eligible) = match path {
            "/healthz" => {
                let eligible = format!(", \"nodeEligible\": {node_eligible}");
                (self.is_healthy() && node_eligible, &self.0.metrics.healthz, eligible)
            }
            "/livez" => (self.is_healthy(), &self.0.metrics.livez, String::new()),
            _ => return None,
        };
        let code = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        ProxyMetrics::count_code(counter, code.as_u16());
        // While healthy, the last update is as good as now: nothing was to be written since.
        let last_updated = if healthy { now } else { last_updated };
        let (last_updated, now) = (go_time(last_updated), go_time(now));
        let body = format!("{{\"lastUpdated\": \"{last_updated}\",\"currentTime\": \"{now}\"{eligible}}}");
        Some(Answer { code, headers: Vec::new(), body })
    }
}

/// As Go prints a time.
fn go_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S%.f +0000 UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxier::Mode;
    use component_base::metrics::Metrics;

    #[test]
    fn a_change_that_waits_too_long_is_unhealthy() {
        let metrics = Metrics::new();
        let health =
            Health::new(Duration::ZERO, metrics.register(|registry| ProxyMetrics::register(registry, Mode::Nftables)));
        let codes = || ["/healthz", "/livez"].map(|path| health.answer(path).unwrap().code.as_u16());
        assert_eq!(codes(), [200, 200]);
        health.queued();
        assert_eq!(codes(), [503, 503]);
        health.updated();
        assert!(health.is_healthy());
        health.set_node_eligible(false);
        assert_eq!(codes(), [503, 200]);
        let told = health.answer("/healthz").unwrap();
        assert!(told.body.ends_with(", \"nodeEligible\": false}"), "{told:?}");
        assert_eq!(health.answer("/other"), None);
        let counted = metrics.text();
        assert!(counted.contains("kubeproxy_proxy_healthz_total{code=\"503\"} 3"), "{counted}");
    }
}
