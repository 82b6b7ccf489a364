//! Which pods end when. Pure.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

/// From this priority on pods are critical.
const CRITICAL: i32 = 2_000_000_000;

/// How long pods of a priority have when the node shuts down, lowest priority first; nothing: it is not held up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shutdown {
    pub(crate) periods: Vec<(i32, Duration)>,
}

impl Shutdown {
    /// So long altogether, and the end of it for the critical pods alone.
    pub(crate) fn of(total: Duration, critical: Duration) -> Self {
        if total.is_zero() {
            return Shutdown::default();
        }
        Shutdown { periods: vec![(0, total.saturating_sub(critical)), (CRITICAL, critical)] }
    }

    pub(crate) fn total(&self) -> Duration {
        self.periods.iter().map(|(_, period)| *period).sum()
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Group {
    pub period: Duration,
    pub pods: Vec<Arc<Pod>>,
}

/// Each pod is with those of the highest priority that is not above its own, or with the lowest.
pub(super) fn groups(shutdown: &Shutdown, pods: Vec<Arc<Pod>>) -> Vec<Group> {
    let mut all: Vec<Group> =
        shutdown.periods.iter().map(|(_, period)| Group { period: *period, pods: Vec::new() }).collect();
    for pod in pods {
        let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or_default();
        let place = shutdown.periods.iter().rposition(|(least, _)| *least <= priority).unwrap_or_default();
        if let Some(group) = all.get_mut(place) {
            group.pods.push(pod);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_end_by_their_priority() {
        let pod = |priority: Option<i32>| -> Arc<Pod> {
            let spec = serde_json::json!({"containers": [], "priority": priority});
            let name = priority.map_or("none".to_owned(), |p| p.to_string());
            serde_json::from_value(serde_json::json!({"metadata": {"name": name}, "spec": spec})).unwrap()
        };
        let check = |shutdown: &Shutdown, want: &[(u64, &str)]| {
            let pods = [None, Some(-5), Some(0), Some(999), Some(1000), Some(CRITICAL), Some(i32::MAX)].map(pod);
            let names = |group: &Group| {
                let names: Vec<String> = group.pods.iter().filter_map(|p| p.metadata.name.clone()).collect();
                (group.period.as_secs(), names.join(" "))
            };
            let got: Vec<(u64, String)> = groups(shutdown, pods.into()).iter().map(names).collect();
            assert_eq!(got, want.iter().map(|(s, n)| (*s, (*n).to_owned())).collect::<Vec<_>>());
        };
        let seconds = Duration::from_secs;
        let simple = Shutdown::of(seconds(30), seconds(10));
        assert_eq!(simple.total(), seconds(30));
        check(&simple, &[(20, "none -5 0 999 1000"), (10, "2000000000 2147483647")]);
        let fine = Shutdown { periods: vec![(10, seconds(5)), (1000, seconds(7))] };
        check(&fine, &[(5, "none -5 0 999"), (7, "1000 2000000000 2147483647")]);
        assert!(groups(&Shutdown::of(Duration::ZERO, Duration::ZERO), vec![pod(None)]).is_empty());
    }
}
