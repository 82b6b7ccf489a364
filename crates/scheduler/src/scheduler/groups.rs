//! The pods of a gang are tried one after the other, without others between them: either enough of them find a node, or none
//! of them keeps the one that it found (KEP-4671).

use std::cmp::Reverse;
use std::collections::VecDeque;

use client::ObjectKey;
use k8s_openapi::api::scheduling::v1alpha2::PodGroup;
use tokio::time::Instant;

use super::{Scheduler, UNSCHEDULABLE};
use crate::framework::{Plugin, Rejection};
use crate::gangs::group_of;
use crate::plugins::GangScheduling;
use crate::pod::{PodInfo, Uid};
use crate::queue::QueuedPod;

/// A gang whose pods are being tried.
pub(super) struct Pass {
    group: ObjectKey,
    /// Pods that have not been tried in this pass, in the order in which they will be.
    rest: VecDeque<Uid>,
    /// Why the last pod that found no node did not.
    why: Option<String>,
}

/// What is told of a group.
#[derive(Debug)]
pub(crate) struct GroupReport {
    pub(crate) group: ObjectKey,
    pub(crate) uid: Option<String>,
    pub(crate) generation: Option<i64>,
    pub(crate) scheduled: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// The condition that tells whether a group has been scheduled.
pub(crate) const POD_GROUP_SCHEDULED: &str = "PodGroupScheduled";

pub(super) enum Next {
    Pod(QueuedPod),
    /// The pass is over, with something to tell or without.
    Over(Option<GroupReport>),
}

/// How many pods of the group need a node at the same time; `None`: each is for itself.
fn needs(group: &PodGroup) -> Option<usize> {
    group.spec.scheduling_policy.gang.as_ref().map(|gang| usize::try_from(gang.min_count).unwrap_or_default())
}

/// What the group does not say already.
fn news(group: &PodGroup, key: &ObjectKey, outcome: Result<(), String>) -> Option<GroupReport> {
    let (scheduled, reason, message) = match outcome {
        Ok(()) => (true, "Scheduled", String::new()),
        Err(message) => (false, UNSCHEDULABLE, message),
    };
    let conditions = group.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut known = conditions.filter(|condition| condition.type_ == POD_GROUP_SCHEDULED);
    let status = if scheduled { "True" } else { "False" };
    if known.any(|known| known.status == "True" || (known.status == status && known.message == message)) {
        // Once it was scheduled, it stays so for its readers, whatever becomes of its pods.
        return None;
    }
    let (uid, generation) = (group.metadata.uid.clone(), group.metadata.generation);
    Some(GroupReport { group: key.clone(), uid, generation, scheduled, reason, message })
}

impl Scheduler {
    /// Begins a pass if the pod is one of a gang.
    pub(super) fn begin_pass(&mut self, pod: &PodInfo) {
        if self.pass.is_some() {
            return;
        }
        let Some(group) = group_of(pod) else { return };
        if self.context.listers.pod_groups.get(&group).as_deref().and_then(needs).is_none() {
            return;
        }
        let others = self.context.gangs.unplaced(&group);
        let mut others: Vec<&std::sync::Arc<PodInfo>> =
            others.iter().filter(|uid| **uid != pod.uid).filter_map(|uid| self.pending.get(uid)).collect();
        others.sort_by_cached_key(|other| {
            let created = other.object.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (Reverse(other.priority), created, other.name().to_owned())
        });
        let rest = others.into_iter().map(|other| other.uid.clone()).collect();
        self.pass = Some(Pass { group, rest, why: None });
    }

    /// What comes next in a pass; `None` if there is none.
    pub(super) fn next_of_pass(&mut self, now: Instant) -> Option<Next> {
        let pass = self.pass.as_mut()?;
        while let Some(uid) = pass.rest.pop_front() {
            if let Some(queued) = self.queue.take(&uid, now) {
                return Some(Next::Pod(queued));
            }
        }
        let pass = self.pass.take()?;
        Some(Next::Over(self.end_pass(&pass)))
    }

    /// Notes why a pod of the pass found no node.
    pub(super) fn failed_in_pass(&mut self, message: &str) {
        if let Some(pass) = &mut self.pass {
            pass.why = Some(message.to_owned());
        }
    }

    fn end_pass(&mut self, pass: &Pass) -> Option<GroupReport> {
        let found = self.context.listers.pod_groups.get(&pass.group)?;
        let needs = needs(&found)?;
        let (_, placed) = self.context.gangs.counts(&pass.group);
        if placed >= needs {
            return news(&found, &pass.group, Ok(()));
        }
        let why = pass.why.as_deref().unwrap_or("pods are missing");
        let message = format!("{placed} of {needs} pods that the group needs found a node: {why}");
        let mut waiting = Vec::new();
        self.context.waiting_pods.for_each(|pod, _| {
            if group_of(pod).as_ref() == Some(&pass.group) {
                waiting.push(pod.uid.clone());
            }
        });
        for uid in waiting {
            let rejection = Rejection::unschedulable(format!("pod group {:?}: {message}", pass.group.name()));
            self.context.waiting_pods.reject(&uid, GangScheduling::NAME, rejection);
        }
        news(&found, &pass.group, Err(message))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_group_is_told_what_it_does_not_say() {
        let group = |condition: serde_json::Value| -> PodGroup {
            serde_json::from_value(json!({
                "metadata": {"name": "g"}, "spec": {"schedulingPolicy": {"gang": {"minCount": 2}}},
                "status": {"conditions": condition},
            }))
            .unwrap()
        };
        let condition = |status: &str, message: &str| {
            json!([{"type": POD_GROUP_SCHEDULED, "status": status, "reason": "R", "message": message,
                "lastTransitionTime": "2026-01-01T00:00:00Z"}])
        };
        let key = ObjectKey::new("ns", "g");
        let check = |said, outcome: Result<(), &str>, want: Option<bool>| {
            let report = news(&group(said), &key, outcome.map_err(str::to_owned));
            assert_eq!(report.map(|report| report.scheduled), want);
        };
        check(json!([]), Ok(()), Some(true));
        check(json!([]), Err("full"), Some(false));
        check(condition("False", "full"), Err("full"), None);
        check(condition("False", "full"), Err("fuller"), Some(false));
        check(condition("False", "full"), Ok(()), Some(true));
        check(condition("True", ""), Ok(()), None);
        check(condition("True", ""), Err("full"), None);
        assert_eq!(needs(&group(json!([]))), Some(2));
    }
}
