//! What controllers ask of a pod.

use std::{cmp::Ordering, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};

/// The annotation by which users say which pods to delete first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

pub(crate) fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

/// Values of an index of pods by node.
pub(crate) fn index_by_node(pod: &Pod) -> Vec<String> {
    Some(node_name(pod)).filter(|name| !name.is_empty()).map(str::to_owned).into_iter().collect()
}

pub(crate) const NODE_INDEX: &str = "node";

pub(crate) fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

pub(crate) fn is_leaving(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Neither finished nor on its way out: counts as a replica.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !is_leaving(pod)
}

/// On its way out but not finished.
pub(crate) fn is_terminating(pod: &Pod) -> bool {
    !is_finished(pod) && is_leaving(pod)
}

pub(crate) fn condition<'a>(pod: &'a Pod, condition_type: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    conditions.iter().find(|condition| condition.type_ == condition_type)
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

/// Since when the pod is ready.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition(pod, "Ready")
        .filter(|ready| ready.status == "True")
        .and_then(|ready| ready.last_transition_time.as_ref())
        .map(|time| time.0)
}

/// How far a pod is from being available.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum Availability {
    Available,
    /// Ready, and available after this time if it stays so.
    In(Duration),
    NotReady,
}

/// A pod is available once it was ready for `min_ready`.
pub(crate) fn availability(pod: &Pod, min_ready: Duration, now: Timestamp) -> Availability {
    if !is_ready(pod) {
        return Availability::NotReady;
    }
    if min_ready.is_zero() {
        return Availability::Available;
    }
    let Some(since) = ready_since(pod) else { return Availability::NotReady };
    let ready_for = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    match min_ready.checked_sub(ready_for) {
        None | Some(Duration::ZERO) => Availability::Available,
        Some(left) => Availability::In(left),
    }
}

pub(crate) fn seconds(value: Option<i32>) -> Duration {
    Duration::from_secs(u64::try_from(value.unwrap_or_default()).unwrap_or_default())
}

/// Which of two active pods is to be deleted first (`Less`), by upstream's rules. `rank` is how many related pods share
/// the pod's node.
pub(crate) fn rank_for_deletion(a: (&Pod, usize), b: (&Pod, usize), now: Timestamp) -> Ordering {
    let ((a, rank_a), (b, rank_b)) = (a, b);
    let assigned = |pod| !node_name(pod).is_empty();
    let phase_rank = |pod| match phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    assigned(a)
        .cmp(&assigned(b))
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| rank_b.cmp(&rank_a))
        .then_with(|| match (is_ready(a), is_ready(b)) {
            (true, true) => younger_first(ready_since(a), ready_since(b), now),
            _ => Ordering::Equal,
        })
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| {
            let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
            younger_first(created(a), created(b), now)
        })
        // Something stable, so that a second look at the same pods gives the same answer.
        .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
}

/// Ages are compared by their order of magnitude, so that not always the youngest of equally old pods goes. Pods without
/// a time count as youngest.
fn younger_first(a: Option<Timestamp>, b: Option<Timestamp>, now: Timestamp) -> Ordering {
    let magnitude = |time: Option<Timestamp>| {
        time.map(|time| u64::try_from(now.duration_since(time).as_nanos()).unwrap_or_default().checked_ilog2())
    };
    magnitude(a).cmp(&magnitude(b))
}

fn deletion_cost(pod: &Pod) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.and_then(|all| all.get(DELETION_COST)).and_then(|cost| cost.parse().ok()).unwrap_or_default()
}

/// The most restarts of any container.
fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    statuses.iter().map(|status| status.restart_count).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::core::v1::{PodSpec, PodStatus},
        apimachinery::pkg::apis::meta::v1::Time,
    };
    use kube::core::ObjectMeta;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// A pod from words: `node=`, `phase=`, `ready=<second>`, `cost=`, `created=<second>`.
    fn pod(words: &str) -> Pod {
        let word =
            |name: &str| words.split(' ').find_map(|w| w.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned);
        let time = |name: &str| word(name).map(|second| Time(at(second.parse().unwrap())));
        let ready = time("ready").map(|since| PodCondition {
            type_: "Ready".into(),
            status: "True".into(),
            last_transition_time: Some(since),
            ..PodCondition::default()
        });
        Pod {
            metadata: ObjectMeta {
                creation_timestamp: time("created"),
                annotations: word("cost").map(|cost| [(DELETION_COST.to_owned(), cost)].into()),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec { node_name: word("node"), ..PodSpec::default() }),
            status: Some(PodStatus {
                phase: word("phase").or(Some("Running".into())),
                conditions: Some(ready.into_iter().collect()),
                ..PodStatus::default()
            }),
        }
    }

    #[track_caller]
    fn check_first(first: &str, second: &str) {
        let (a, b) = (pod(first), pod(second));
        assert_eq!(rank_for_deletion((&a, 1), (&b, 1), at(100_000)), Ordering::Less, "{first} before {second}");
        assert_eq!(rank_for_deletion((&b, 1), (&a, 1), at(100_000)), Ordering::Greater);
    }

    #[test]
    fn the_least_useful_pod_goes_first() {
        check_first("phase=Pending", "node=n phase=Pending");
        check_first("node=n phase=Pending", "node=n phase=Running");
        check_first("node=n", "node=n ready=5");
        check_first("node=n ready=5 cost=-1", "node=n ready=90000");
        check_first("node=n ready=99990", "node=n ready=5");
        check_first("node=n ready=5 created=99990", "node=n ready=5 created=5");
    }

    #[test]
    fn pods_that_share_a_node_with_their_like_go_first() {
        let (a, b) = (pod("node=n ready=5"), pod("node=m ready=99990"));
        assert_eq!(rank_for_deletion((&a, 3), (&b, 1), at(100_000)), Ordering::Less);
    }

    #[test]
    fn a_pod_is_available_after_its_minimum_of_readiness() {
        let ten = Duration::from_secs(10);
        assert_eq!(availability(&pod("ready=100"), ten, at(104)), Availability::In(Duration::from_secs(6)));
        assert_eq!(availability(&pod("ready=100"), ten, at(110)), Availability::Available);
        assert_eq!(availability(&pod("ready=100"), Duration::ZERO, at(100)), Availability::Available);
        assert_eq!(availability(&pod(""), Duration::ZERO, at(100)), Availability::NotReady);
    }
}
