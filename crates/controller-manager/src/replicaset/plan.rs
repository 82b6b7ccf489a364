//! How many pods to create, or which to delete.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::{
    pod::{node_name, rank_for_deletion},
    pod_control::said,
};

#[derive(Debug, PartialEq)]
pub(super) enum Plan {
    Leave,
    Create(usize),
    Delete(Vec<Arc<Pod>>),
}

impl Plan {
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Leave => "leave".to_owned(),
            Self::Create(count) => format!("create {count}"),
            Self::Delete(pods) => format!("delete {}", pods.len()),
        }
    }
}

/// `related` are the pods that should not crowd a node together with these; it is only asked when pods are deleted.
pub(super) fn plan(
    wanted: usize,
    pods: &[Arc<Pod>],
    related: impl FnOnce() -> Vec<Arc<Pod>>,
    burst: usize,
    now: Timestamp,
) -> Plan {
    if pods.len() == wanted {
        return Plan::Leave;
    }
    if pods.len() < wanted {
        return Plan::Create((wanted - pods.len()).min(burst));
    }
    let surplus = (pods.len() - wanted).min(burst);
    let mut victims = pods.to_vec();
    // Which pods go does not matter when all do.
    if surplus < victims.len() {
        let related = related();
        let mut crowd: HashMap<&str, usize> = HashMap::new();
        for pod in &related {
            *crowd.entry(node_name(pod)).or_default() += 1;
        }
        let rank = |pod: &Pod| match node_name(pod) {
            "" => 0,
            node => crowd.get(node).copied().unwrap_or_default(),
        };
        victims.sort_by(|a, b| rank_for_deletion((a, rank(a)), (b, rank(b)), now));
        victims.truncate(surplus);
    }
    Plan::Delete(victims)
}

/// What stood in the way of the wanted number.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(super) reason: &'static str,
    error: kube::Error,
}

impl Failure {
    pub(super) fn create(error: kube::Error) -> Self {
        Self { reason: "FailedCreate", error }
    }
    pub(super) fn delete(error: kube::Error) -> Self {
        Self { reason: "FailedDelete", error }
    }
    pub(super) fn message(&self) -> String {
        said(&self.error)
    }
    pub(super) fn into_error(self) -> kube::Error {
        self.error
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodSpec, PodStatus};
    use kube::core::ObjectMeta;

    use super::*;

    fn pod(name: &str, node: &str) -> Arc<Pod> {
        Arc::new(Pod {
            metadata: ObjectMeta { name: Some(name.into()), uid: Some(name.into()), ..ObjectMeta::default() },
            spec: Some(PodSpec { node_name: Some(node.into()), ..PodSpec::default() }),
            status: Some(PodStatus { phase: Some("Running".into()), ..PodStatus::default() }),
        })
    }

    #[track_caller]
    fn check(wanted: usize, pods: &[Arc<Pod>], related: &[Arc<Pod>], want: &str) {
        let plan = plan(wanted, pods, || related.to_vec(), 500, Timestamp::UNIX_EPOCH);
        let text = match plan {
            Plan::Delete(pods) => {
                format!("delete {}", pods.iter().filter_map(|p| p.metadata.name.clone()).collect::<Vec<_>>().join(" "))
            }
            other => other.describe(),
        };
        assert_eq!(text, want);
    }

    #[test]
    fn the_difference_is_made_up_in_bursts() {
        check(0, &[], &[], "leave");
        check(3, &[pod("a", "n")], &[], "create 2");
        check(9999, &[], &[], "create 500");
        check(0, &[pod("a", "n"), pod("b", "n")], &[], "delete a b");
    }

    #[test]
    fn a_crowded_node_gives_up_its_pods_first() {
        let pods = [pod("a", "n1"), pod("b", "n2"), pod("c", "n2")];
        check(2, &pods, &pods, "delete b");
        let sibling = [pod("x", "n1"), pod("y", "n1"), pods[0].clone()];
        check(2, &pods, &sibling, "delete a");
    }
}
