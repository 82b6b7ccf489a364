//! What a disruption budget allows, given its pods and how many there should be.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        core::v1::Pod,
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
    },
    apimachinery::pkg::{
        apis::meta::v1::{Condition, Time},
        util::intstr::IntOrString,
    },
};

use crate::{
    deployment::limits::scaled,
    pod::{condition, is_finished, is_leaving, is_ready},
};

/// How long an evicted pod counts as gone before it is gone.
const EVICTED: SignedDuration = SignedDuration::from_mins(2);
/// A pod that says that it is to be disrupted, and was not for so long, says it no more.
pub(super) const STALE: SignedDuration = SignedDuration::from_mins(2);
const ALLOWED: &str = "DisruptionAllowed";

/// How many pods a budget expects.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) struct Expected {
    pub(super) pods: i32,
    pub(super) healthy: i32,
}

/// Whether the number of pods that should be has to be asked of their controllers.
pub(super) fn needs_scale(budget: &PodDisruptionBudget) -> bool {
    let spec = budget.spec.as_ref();
    let is_absolute = matches!(spec.and_then(|spec| spec.min_available.as_ref()), Some(IntOrString::Int(_)));
    spec.is_some_and(|spec| spec.max_unavailable.is_some() || (spec.min_available.is_some() && !is_absolute))
}

/// `scale`: how many pods their controllers want together, where it [`needs_scale`].
pub(super) fn expected(budget: &PodDisruptionBudget, pods: usize, scale: i32) -> Expected {
    let Some(spec) = &budget.spec else { return Expected { pods: 0, healthy: 0 } };
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => Expected { pods: scale, healthy: (scale - scaled(most, scale, true)).max(0) },
        (None, Some(IntOrString::Int(least))) => {
            Expected { pods: i32::try_from(pods).unwrap_or(i32::MAX), healthy: *least }
        }
        (None, Some(least)) => Expected { pods: scale, healthy: scaled(least, scale, true) },
        (None, None) => Expected { pods: 0, healthy: 0 },
    }
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) status: PodDisruptionBudgetStatus,
    /// Pods that were evicted long ago and still live.
    pub(super) not_deleted: Vec<Arc<Pod>>,
    pub(super) again: Option<Duration>,
}

pub(super) fn plan(budget: &PodDisruptionBudget, pods: &[Arc<Pod>], expected: Expected, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let old = budget.status.clone().unwrap_or_default();
    let evicted = old.disrupted_pods.unwrap_or_default();
    let mut still_evicted = BTreeMap::new();
    let mut healthy = 0;
    for pod in pods.iter().filter(|pod| !is_leaving(pod)) {
        let name = pod.metadata.name.clone().unwrap_or_default();
        if let Some(at) = evicted.get(&name) {
            let left = EVICTED - now.duration_since(at.0);
            if let (true, Ok(left)) = (left.is_positive(), Duration::try_from(left)) {
                plan.again = Some(plan.again.map_or(left, |again| again.min(left)));
                still_evicted.insert(name, at.clone());
                continue;
            }
            plan.not_deleted.push(pod.clone());
        }
        healthy += i32::from(is_ready(pod));
    }
    let spare = healthy - expected.healthy;
    let allowed = if expected.pods <= 0 { 0 } else { spare.max(0) };
    plan.status = PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(expected.healthy),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(expected.pods),
        disrupted_pods: (!still_evicted.is_empty()).then_some(still_evicted),
        observed_generation: budget.metadata.generation,
        conditions: old.conditions,
    };
    let reason = if allowed > 0 { "SufficientPods" } else { "InsufficientPods" };
    set_allowed(&mut plan.status, allowed > 0, reason, "", now);
    plan
}

/// The safe answer where the right one cannot be found.
pub(super) fn failed(budget: &PodDisruptionBudget, message: &str, now: Timestamp) -> PodDisruptionBudgetStatus {
    let mut status = budget.status.clone().unwrap_or_default();
    status.disruptions_allowed = Some(0);
    set_allowed(&mut status, false, "SyncFailed", message, now);
    status
}

fn set_allowed(status: &mut PodDisruptionBudgetStatus, allowed: bool, reason: &str, message: &str, now: Timestamp) {
    let value = if allowed { "True" } else { "False" };
    let conditions = status.conditions.get_or_insert_default();
    let known = conditions.iter_mut().find(|condition| condition.type_ == ALLOWED);
    let since = known.as_ref().filter(|known| known.status == value).map(|known| known.last_transition_time.clone());
    let wanted = Condition {
        type_: ALLOWED.to_owned(),
        status: value.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: status.observed_generation,
        last_transition_time: since.unwrap_or(Time(now)),
    };
    match known {
        Some(known) => *known = wanted,
        None => conditions.push(wanted),
    }
}

/// How long until the pod's announcement of its disruption is to be taken back, if it has one.
pub(super) fn until_stale(pod: &Pod, now: Timestamp) -> Option<Duration> {
    let announced = condition(pod, "DisruptionTarget").filter(|condition| condition.status == "True")?;
    if is_leaving(pod) || is_finished(pod) {
        return None;
    }
    let since = announced.last_transition_time.as_ref()?;
    Some(Duration::try_from(STALE - now.duration_since(since.0)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{
        core::v1::{PodCondition, PodStatus},
        policy::v1::PodDisruptionBudgetSpec,
    };
    use kube::core::ObjectMeta;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn number(text: &str) -> IntOrString {
        text.parse().map_or_else(|_| IntOrString::String(text.to_owned()), IntOrString::Int)
    }

    fn budget(least: Option<&str>, most: Option<&str>) -> PodDisruptionBudget {
        PodDisruptionBudget {
            spec: Some(PodDisruptionBudgetSpec {
                min_available: least.map(number),
                max_unavailable: most.map(number),
                ..PodDisruptionBudgetSpec::default()
            }),
            ..PodDisruptionBudget::default()
        }
    }

    fn pod(name: &str, ready: bool) -> Arc<Pod> {
        let ready = PodCondition {
            type_: "Ready".into(),
            status: if ready { "True" } else { "False" }.into(),
            ..PodCondition::default()
        };
        Arc::new(Pod {
            metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
            status: Some(PodStatus { conditions: Some(vec![ready]), ..PodStatus::default() }),
            ..Pod::default()
        })
    }

    #[track_caller]
    fn check(least: Option<&str>, most: Option<&str>, scale: i32, want: (i32, i32, i32)) {
        let budget = budget(least, most);
        let pods = [pod("a", true), pod("b", true), pod("c", true), pod("d", false)];
        let status = plan(&budget, &pods, expected(&budget, pods.len(), scale), at(0)).status;
        let got = [status.expected_pods, status.desired_healthy, status.disruptions_allowed];
        assert_eq!(got, [want.0, want.1, want.2].map(Some));
        let reason = &status.conditions.unwrap()[0].reason;
        assert_eq!(reason, if want.2 > 0 { "SufficientPods" } else { "InsufficientPods" });
    }

    #[test]
    fn what_is_healthy_beyond_what_is_needed_may_go() {
        check(Some("2"), None, 0, (4, 2, 1));
        check(Some("50%"), None, 5, (5, 3, 0));
        check(Some("20%"), None, 5, (5, 1, 2));
        check(None, Some("1"), 4, (4, 3, 0));
        check(None, Some("50%"), 4, (4, 2, 1));
        check(None, Some("9"), 4, (4, 0, 3));
        check(None, None, 4, (0, 0, 0));
    }

    #[test]
    fn evicted_pods_count_as_gone_for_two_minutes() {
        let mut budget = budget(Some("0"), None);
        let evicted = [("a".to_owned(), Time(at(0))), ("x".to_owned(), Time(at(0)))].into();
        budget.status = Some(PodDisruptionBudgetStatus { disrupted_pods: Some(evicted), ..Default::default() });
        let pods = [pod("a", true), pod("b", true)];
        let soon = plan(&budget, &pods, expected(&budget, 2, 0), at(90));
        assert_eq!((soon.status.current_healthy, soon.again), (Some(1), Some(Duration::from_secs(30))));
        assert_eq!(soon.status.disrupted_pods.as_ref().map(BTreeMap::len), Some(1));
        let late = plan(&budget, &pods, expected(&budget, 2, 0), at(121));
        assert_eq!((late.status.current_healthy, late.not_deleted.len(), late.again), (Some(2), 1, None));
        assert_eq!(late.status.disrupted_pods, None);
    }
}
