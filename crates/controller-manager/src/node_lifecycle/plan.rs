//! What a node's silence, conditions and taints lead to.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, NodeCondition, Taint},
    apimachinery::pkg::apis::meta::v1::Time,
};

pub(super) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(super) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const NO_SCHEDULE: &str = "NoSchedule";
const NO_EXECUTE: &str = "NoExecute";

/// Conditions that become Unknown with a node that is silent.
const OF_KUBELET: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// Condition, the status that matters, and the taint that it brings.
const CONDITION_TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

/// `True`, `False`, `Unknown`; a node that never said anything is Unknown.
pub(super) fn readiness(node: &Node) -> &str {
    condition(node, "Ready").map_or("Unknown", |ready| ready.status.as_str())
}

/// Did it fall silent? One that has not spoken yet did not.
pub(super) fn is_silent(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|ready| ready.status == "Unknown")
}

pub(super) fn condition<'a>(node: &'a Node, condition_type: &str) -> Option<&'a NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_deref()?;
    conditions.iter().find(|condition| condition.type_ == condition_type)
}

/// The conditions of a node that has been silent for too long; `None` if they say so already.
pub(super) fn silenced(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    let mut conditions = node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let mut changed = false;
    for condition_type in OF_KUBELET {
        match conditions.iter_mut().find(|condition| condition.type_ == condition_type) {
            Some(known) if known.status == "Unknown" => continue,
            Some(known) => {
                known.status = "Unknown".to_owned();
                known.reason = Some("NodeStatusUnknown".to_owned());
                known.message = Some("Kubelet stopped posting node status.".to_owned());
                known.last_transition_time = Some(Time(now));
            }
            None => conditions.push(NodeCondition {
                type_: condition_type.to_owned(),
                status: "Unknown".to_owned(),
                reason: Some("NodeStatusNeverUpdated".to_owned()),
                message: Some("Kubelet never posted node status.".to_owned()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(Time(now)),
            }),
        }
        changed = true;
    }
    changed.then_some(conditions)
}

/// What to do about the taint that evicts pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Eviction {
    /// The node has the one that it should have, or none and should have none.
    Leave,
    Remove,
    /// It has the other one of the two.
    Swap(&'static str),
    /// It has none: adding one is subject to the zone's rate.
    Add(&'static str),
}

pub(super) fn plan_eviction(node: &Node) -> Eviction {
    let has = |key| taints(node).iter().any(|taint| taint.key == key && taint.effect == NO_EXECUTE);
    let (wanted, other) = match readiness(node) {
        "True" if has(NOT_READY) || has(UNREACHABLE) => return Eviction::Remove,
        "True" => return Eviction::Leave,
        "False" => (NOT_READY, UNREACHABLE),
        _ => (UNREACHABLE, NOT_READY),
    };
    match (has(wanted), has(other)) {
        (true, false) => Eviction::Leave,
        (_, true) => Eviction::Swap(wanted),
        (false, false) => Eviction::Add(wanted),
    }
}

pub(super) fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// The node's taints with those for its conditions, and with `no_execute` as the one that evicts (`None` leaves what is
/// there, `Some(None)` takes it away). `None` if nothing changes.
pub(super) fn next_taints(node: &Node, no_execute: Option<Option<&'static str>>, now: Timestamp) -> Option<Vec<Taint>> {
    let mut wanted: Vec<&str> = CONDITION_TAINTS
        .iter()
        .filter(|(condition_type, status, _)| condition(node, condition_type).is_some_and(|c| c.status == *status))
        .map(|(_, _, key)| *key)
        .collect();
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        wanted.push(UNSCHEDULABLE);
    }
    let ours = |key: &str| key == UNSCHEDULABLE || CONDITION_TAINTS.iter().any(|(_, _, known)| *known == key);
    let old = taints(node);
    let mut next: Vec<Taint> = Vec::with_capacity(old.len());
    for taint in old {
        let stays = match taint.effect.as_str() {
            NO_SCHEDULE => !ours(&taint.key) || wanted.contains(&taint.key.as_str()),
            NO_EXECUTE if taint.key == NOT_READY || taint.key == UNREACHABLE => {
                no_execute.is_none_or(|wanted| wanted == Some(taint.key.as_str()))
            }
            _ => true,
        };
        if stays {
            next.push(taint.clone());
        }
    }
    let add = |next: &mut Vec<Taint>, key: &str, effect: &str| {
        if !next.iter().any(|taint| taint.key == key && taint.effect == effect) {
            next.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    };
    for key in wanted {
        add(&mut next, key, NO_SCHEDULE);
    }
    if let Some(Some(key)) = no_execute {
        add(&mut next, key, NO_EXECUTE);
    }
    (next != old).then_some(next)
}

/// How many of a zone's nodes work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ZoneState {
    Normal,
    /// More of it is down than single failures explain.
    PartialDisruption,
    FullDisruption,
}

pub(super) fn zone_state(ready: usize, not_ready: usize, unhealthy_threshold: f64) -> ZoneState {
    #[expect(clippy::cast_precision_loss, reason = "numbers of nodes fit a float")]
    let share = not_ready as f64 / (ready + not_ready).max(1) as f64;
    if ready == 0 && not_ready > 0 {
        ZoneState::FullDisruption
    } else if not_ready > 2 && share >= unhealthy_threshold {
        ZoneState::PartialDisruption
    } else {
        ZoneState::Normal
    }
}

/// The pause between two nodes of a zone whose pods are evicted; `None` means that none are.
pub(super) fn pause(state: ZoneState, nodes: usize, rates: &super::Rates) -> Option<Duration> {
    let per_second = match state {
        ZoneState::Normal | ZoneState::FullDisruption => rates.primary,
        ZoneState::PartialDisruption if nodes > rates.large_cluster => rates.secondary,
        ZoneState::PartialDisruption => 0.0,
    };
    (per_second > 0.0).then(|| Duration::from_secs_f64(1.0 / per_second))
}

/// Region and zone of a node.
pub(super) fn zone_of(node: &Node) -> String {
    let label = |key| node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map_or("", String::as_str);
    format!("{}:{}", label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeSpec, NodeStatus};

    use super::*;

    /// `Ready=True MemoryPressure=True taint:key:Effect unschedulable`
    fn node(words: &str) -> Node {
        let mut node = Node {
            spec: Some(NodeSpec { taints: Some(Vec::new()), ..NodeSpec::default() }),
            status: Some(NodeStatus { conditions: Some(Vec::new()), ..NodeStatus::default() }),
            ..Node::default()
        };
        let (spec, status) = (node.spec.as_mut().unwrap(), node.status.as_mut().unwrap());
        for word in words.split(' ').filter(|word| !word.is_empty()) {
            if let Some((key, effect)) = word.strip_prefix("taint:").and_then(|word| word.split_once(':')) {
                let taint = Taint { key: key.into(), effect: effect.into(), ..Taint::default() };
                spec.taints.as_mut().unwrap().push(taint);
            } else if let Some((type_, status_value)) = word.split_once('=') {
                let condition =
                    NodeCondition { type_: type_.into(), status: status_value.into(), ..NodeCondition::default() };
                status.conditions.as_mut().unwrap().push(condition);
            } else {
                spec.unschedulable = Some(true);
            }
        }
        node
    }

    #[test]
    fn a_node_that_has_not_spoken_yet_is_not_silent() {
        let check = |words: &str, want: bool| assert_eq!(is_silent(&node(words)), want, "{words}");
        check("", false);
        check("Ready=Unknown", true);
        check("Ready=False", false);
    }

    fn show(taints: Option<Vec<Taint>>) -> String {
        let Some(taints) = taints else { return "same".into() };
        let short = |taint: &Taint| format!("{}:{}", taint.key.trim_start_matches("node.kubernetes.io/"), taint.effect);
        taints.iter().map(short).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn conditions_bring_taints_and_take_them_away_and_leave_others_alone() {
        let check = |words, no_execute, want: &str| {
            assert_eq!(show(next_taints(&node(words), no_execute, Timestamp::UNIX_EPOCH)), want, "{words}");
        };
        check("Ready=True", None, "same");
        check("Ready=False MemoryPressure=True", None, "not-ready:NoSchedule memory-pressure:NoSchedule");
        check("Ready=Unknown", Some(Some(UNREACHABLE)), "unreachable:NoSchedule unreachable:NoExecute");
        check(
            "Ready=True unschedulable taint:mine:NoSchedule taint:node.kubernetes.io/not-ready:NoSchedule",
            None,
            "mine:NoSchedule unschedulable:NoSchedule",
        );
        check("Ready=True taint:node.kubernetes.io/unreachable:NoExecute taint:x:NoExecute", Some(None), "x:NoExecute");
        check(
            "Ready=False taint:node.kubernetes.io/unreachable:NoExecute",
            Some(Some(NOT_READY)),
            "not-ready:NoSchedule not-ready:NoExecute",
        );
    }

    #[test]
    fn the_evicting_taint_follows_readiness() {
        let check = |words, want| assert_eq!(plan_eviction(&node(words)), want, "{words}");
        check("Ready=True", Eviction::Leave);
        check("Ready=True taint:node.kubernetes.io/not-ready:NoExecute", Eviction::Remove);
        check("Ready=False", Eviction::Add(NOT_READY));
        check("", Eviction::Add(UNREACHABLE));
        check("Ready=Unknown taint:node.kubernetes.io/not-ready:NoExecute", Eviction::Swap(UNREACHABLE));
        check("Ready=Unknown taint:node.kubernetes.io/unreachable:NoExecute", Eviction::Leave);
    }

    #[test]
    fn a_silent_node_is_unknown_once() {
        let mut node = node("Ready=True DiskPressure=False");
        let conditions = silenced(&node, Timestamp::UNIX_EPOCH).unwrap();
        let reasons: Vec<_> = conditions.iter().filter_map(|c| c.reason.as_deref()).collect();
        assert_eq!(
            reasons,
            ["NodeStatusUnknown", "NodeStatusUnknown", "NodeStatusNeverUpdated", "NodeStatusNeverUpdated"]
        );
        node.status.as_mut().unwrap().conditions = Some(conditions);
        assert_eq!(silenced(&node, Timestamp::UNIX_EPOCH), None);
    }

    #[test]
    fn the_worse_a_zone_is_the_slower_it_is_emptied() {
        let rates = super::super::Rates { primary: 0.1, secondary: 0.01, large_cluster: 50, unhealthy_threshold: 0.55 };
        let check = |ready, not_ready, want: Option<u64>| {
            let state = zone_state(ready, not_ready, rates.unhealthy_threshold);
            assert_eq!(
                pause(state, ready + not_ready, &rates).map(|pause| pause.as_secs()),
                want,
                "{ready} {not_ready}"
            );
        };
        check(10, 1, Some(10));
        check(1, 2, Some(10));
        check(2, 8, None);
        check(20, 80, Some(100));
        check(0, 3, Some(10));
    }
}
