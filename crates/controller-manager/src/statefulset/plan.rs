//! The next steps of a StatefulSet: one at a time in order, or all at once where its pods may be managed in parallel.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{StatefulSet, StatefulSetStatus},
    core::v1::{Pod, PodTemplateSpec},
};

use super::pod::{identify, new_pod, ordinal, range, revision};
use crate::{
    deployment::limits::scaled,
    pod::{Availability, availability, is_leaving, is_ready, phase, seconds},
};

/// A revision's name and template.
#[derive(Debug, Clone)]
pub(super) struct Revision {
    pub(super) name: String,
    pub(super) template: PodTemplateSpec,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    Create(Box<Pod>),
    /// Write the pod with the labels and volumes of its place.
    Identify(Box<Pod>),
    Delete(Arc<Pod>),
}

/// An ordinal and the pod that has it, if there is one.
type Place<'a> = (i32, Option<&'a Arc<Pod>>);

pub(super) struct Facts<'a> {
    pub(super) set: &'a StatefulSet,
    pub(super) current: &'a Revision,
    pub(super) update: &'a Revision,
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) now: Timestamp,
}

impl Facts<'_> {
    fn is_ready(&self, pod: &Pod) -> bool {
        phase(pod) == "Running" && is_ready(pod)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        let min_ready = seconds(self.set.spec.as_ref().and_then(|spec| spec.min_ready_seconds));
        self.is_ready(pod) && availability(pod, min_ready, self.now) == Availability::Available
    }

    fn is_healthy(&self, pod: &Pod) -> bool {
        self.is_available(pod) && !is_leaving(pod)
    }

    fn is_ordered(&self) -> bool {
        self.set.spec.as_ref().and_then(|spec| spec.pod_management_policy.as_deref()) != Some("Parallel")
    }

    fn strategy(&self) -> &str {
        let strategy = self.set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
        strategy.and_then(|strategy| strategy.type_.as_deref()).unwrap_or("RollingUpdate")
    }

    fn partition(&self) -> Option<i32> {
        let strategy = self.set.spec.as_ref()?.update_strategy.as_ref()?;
        Some(strategy.rolling_update.as_ref()?.partition.unwrap_or_default())
    }

    fn max_unavailable(&self) -> usize {
        let strategy = self.set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
        let limit = strategy.and_then(|s| s.rolling_update.as_ref()).and_then(|r| r.max_unavailable.as_ref());
        let (start, end) = range(self.set);
        let number = limit.map_or(1, |limit| scaled(limit, end - start, true));
        usize::try_from(number).unwrap_or_default().max(1)
    }

    /// The pod that a missing ordinal gets: of the current revision where the update has not come to yet.
    fn pod_for(&self, ordinal: i32) -> Pod {
        let (start, _) = range(self.set);
        let status_current = self.set.status.as_ref().and_then(|status| status.current_replicas).unwrap_or_default();
        let stays = self.strategy() == "RollingUpdate"
            && ordinal < start.saturating_add(self.partition().unwrap_or(status_current));
        let revision = if stays { self.current } else { self.update };
        new_pod(self.set, &revision.template, &revision.name, ordinal)
    }

    /// The pods that there should be, by place, and those beyond, the last first.
    fn places(&self) -> (Vec<Place<'_>>, Vec<&Arc<Pod>>) {
        let (start, end) = range(self.set);
        let replicas: Vec<_> =
            (start..end).map(|place| (place, self.pods.iter().find(|pod| ordinal(pod) == place))).collect();
        let mut condemned: Vec<_> = self.pods.iter().filter(|pod| !(start..end).contains(&ordinal(pod))).collect();
        condemned.sort_by_key(|pod| std::cmp::Reverse(ordinal(pod)));
        (replicas, condemned)
    }

    pub(super) fn plan(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.set.metadata.deletion_timestamp.is_some() {
            return steps;
        }
        let (replicas, condemned) = self.places();
        if self.plan_replicas(&replicas, &mut steps) || self.plan_condemned(&replicas, &condemned, &mut steps) {
            return steps;
        }
        // An update goes on from a state in which everything is in its place.
        if steps.is_empty() {
            self.plan_update(&replicas, &mut steps);
        }
        steps
    }

    /// Whether to stop here, because a place has to be filled before the next is looked at.
    fn plan_replicas(&self, replicas: &[Place<'_>], steps: &mut Vec<Step>) -> bool {
        for (place, pod) in replicas {
            let Some(pod) = pod else {
                steps.push(Step::Create(Box::new(self.pod_for(*place))));
                if self.is_ordered() {
                    return true;
                }
                continue;
            };
            if matches!(phase(pod), "Failed" | "Succeeded") {
                // Its successor comes when it is gone.
                if !is_leaving(pod) {
                    steps.push(Step::Delete(Arc::clone(pod)));
                }
                if self.is_ordered() {
                    return true;
                }
                continue;
            }
            if self.is_ordered() && (is_leaving(pod) || !self.is_available(pod)) {
                return true;
            }
            let mut identified = (***pod).clone();
            if identify(self.set, &mut identified) {
                steps.push(Step::Identify(Box::new(identified)));
                if self.is_ordered() {
                    return true;
                }
            }
        }
        false
    }

    /// Whether to stop here, because a pod has to be gone before the next goes.
    fn plan_condemned(&self, replicas: &[Place<'_>], condemned: &[&Arc<Pod>], steps: &mut Vec<Step>) -> bool {
        // The first that does not work may always go: waiting for it would be in vain.
        let unhealthy = replicas.iter().filter_map(|(_, pod)| *pod).chain(condemned.iter().rev().copied());
        let first_unhealthy = unhealthy.into_iter().find(|pod| !self.is_healthy(pod));
        for pod in condemned {
            if is_leaving(pod) {
                if self.is_ordered() {
                    return true;
                }
                continue;
            }
            let is_first = first_unhealthy.is_some_and(|first| Arc::ptr_eq(first, pod));
            if self.is_ordered() && !self.is_available(pod) && !is_first {
                return true;
            }
            steps.push(Step::Delete(Arc::clone(pod)));
            if self.is_ordered() {
                return true;
            }
        }
        false
    }

    /// Takes pods of older revisions away, the last first, as many as may be missing.
    fn plan_update(&self, replicas: &[Place<'_>], steps: &mut Vec<Step>) {
        if self.strategy() != "RollingUpdate" {
            return;
        }
        let unhealthy = replicas.iter().filter(|(_, pod)| pod.is_none_or(|pod| !self.is_healthy(pod))).count();
        let room = self.max_unavailable().saturating_sub(unhealthy);
        // The partition is an ordinal, counted from the first.
        let (start, _) = range(self.set);
        let from = start.saturating_add(self.partition().unwrap_or_default());
        let outdated = replicas
            .iter()
            .rev()
            .filter(|(place, _)| *place >= from)
            .filter_map(|(_, pod)| *pod)
            .filter(|pod| revision(pod) != self.update.name && !is_leaving(pod));
        steps.extend(outdated.take(room).map(|pod| Step::Delete(Arc::clone(pod))));
    }

    pub(super) fn status(&self, collisions: Option<i32>) -> StatefulSetStatus {
        let count = |keep: &dyn Fn(&Pod) -> bool| {
            i32::try_from(self.pods.iter().filter(|pod| keep(pod)).count()).unwrap_or(i32::MAX)
        };
        let of = |name: &str| count(&|pod| revision(pod) == name && !is_leaving(pod));
        let replicas = count(&|_| true);
        let ready = count(&|pod| self.is_ready(pod));
        let mut status = StatefulSetStatus {
            observed_generation: self.set.metadata.generation,
            replicas,
            ready_replicas: Some(ready),
            available_replicas: Some(count(&|pod| self.is_available(pod))),
            current_replicas: Some(of(&self.current.name)),
            updated_replicas: Some(of(&self.update.name)),
            current_revision: Some(self.current.name.clone()),
            update_revision: Some(self.update.name.clone()),
            collision_count: Some(collisions.unwrap_or_default()),
            conditions: self.set.status.as_ref().and_then(|status| status.conditions.clone()),
        };
        let (start, end) = range(self.set);
        let wanted = end - start;
        let is_done = status.updated_replicas == Some(wanted) && replicas == wanted && ready == wanted;
        if self.strategy() == "RollingUpdate" && is_done {
            status.current_replicas = status.updated_replicas;
            status.current_revision.clone_from(&status.update_revision);
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::{
            apps::v1::{RollingUpdateStatefulSetStrategy, StatefulSetSpec, StatefulSetUpdateStrategy},
            core::v1::{PodCondition, PodStatus},
        },
        apimachinery::pkg::{apis::meta::v1::Time, util::intstr::IntOrString},
    };
    use kube::core::ObjectMeta;

    use super::{super::pod::REVISION_LABEL, *};

    /// `replicas= start= policy= strategy= partition= unavailable= current=`
    fn set(words: &str) -> StatefulSet {
        let word = |name: &str| words.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let number = |name: &str| word(name).map(|digits| digits.parse::<i32>().unwrap());
        let rolling = RollingUpdateStatefulSetStrategy {
            partition: number("partition"),
            max_unavailable: number("unavailable").map(IntOrString::Int),
        };
        let has_rolling = rolling != RollingUpdateStatefulSetStrategy::default();
        StatefulSet {
            metadata: ObjectMeta { name: Some("web".into()), ..ObjectMeta::default() },
            spec: Some(StatefulSetSpec {
                replicas: number("replicas"),
                ordinals: number("start")
                    .map(|start| k8s_openapi::api::apps::v1::StatefulSetOrdinals { start: Some(start) }),
                pod_management_policy: word("policy").map(str::to_owned),
                update_strategy: Some(StatefulSetUpdateStrategy {
                    type_: word("strategy").map(str::to_owned),
                    rolling_update: has_rolling.then_some(rolling),
                }),
                ..StatefulSetSpec::default()
            }),
            status: Some(StatefulSetStatus { current_replicas: number("current"), ..StatefulSetStatus::default() }),
        }
    }

    /// `web-0 rev [ready] [leaving] [Failed]`
    fn pod(set: &StatefulSet, words: &str) -> Arc<Pod> {
        let mut parts = words.split(' ');
        let (name, rev) = (parts.next().unwrap(), parts.next().unwrap());
        let mut pod = Pod {
            metadata: ObjectMeta {
                name: Some(name.into()),
                labels: Some([(REVISION_LABEL.to_owned(), rev.to_owned())].into()),
                deletion_timestamp: words.contains("leaving").then_some(Time(Timestamp::UNIX_EPOCH)),
                ..ObjectMeta::default()
            },
            status: Some(PodStatus {
                phase: Some(if words.contains("Failed") { "Failed" } else { "Running" }.into()),
                conditions: Some(vec![PodCondition {
                    type_: "Ready".into(),
                    status: if words.contains("ready") { "True" } else { "False" }.into(),
                    ..PodCondition::default()
                }]),
                ..PodStatus::default()
            }),
            spec: None,
        };
        identify(set, &mut pod);
        Arc::new(pod)
    }

    fn with<T>(words: &str, pods: &[&str], run: impl FnOnce(&Facts<'_>) -> T) -> T {
        let set = set(words);
        let pods: Vec<_> = pods.iter().map(|words| pod(&set, words)).collect();
        let of = |name: &str| Revision { name: name.into(), template: PodTemplateSpec::default() };
        let facts = Facts { set: &set, current: &of("v1"), update: &of("v2"), pods: &pods, now: Timestamp::UNIX_EPOCH };
        run(&facts)
    }

    #[track_caller]
    fn check(words: &str, pods: &[&str], want: &str) {
        let plan = |facts: &Facts<'_>| facts.plan();
        let show = |step: Step| match step {
            Step::Create(pod) => format!("+{}:{}", pod.metadata.name.clone().unwrap(), revision(&pod)),
            Step::Identify(pod) => format!("~{}", pod.metadata.name.unwrap()),
            Step::Delete(pod) => format!("-{}", pod.metadata.name.clone().unwrap()),
        };
        let steps = with(words, pods, plan);
        assert_eq!(steps.into_iter().map(show).collect::<Vec<_>>().join(" "), want);
    }

    #[test]
    fn ordered_pods_come_and_go_one_by_one() {
        check("replicas=3", &[], "+web-0:v2");
        check("replicas=3", &["web-0 v2"], "");
        check("replicas=3", &["web-0 v2 ready"], "+web-1:v2");
        check("replicas=3", &["web-0 v2 ready leaving"], "");
        check("replicas=3 start=5", &["web-5 v2 ready"], "+web-6:v2");
        check("replicas=1", &["web-0 v2 ready", "web-1 v2 ready", "web-2 v2 ready"], "-web-2");
        check("replicas=1", &["web-0 v2 ready", "web-1 v2 ready", "web-2 v2 ready leaving"], "");
        check("replicas=1", &["web-0 v2 ready", "web-1 v2", "web-2 v2"], "");
        check("replicas=0", &["web-0 v2"], "-web-0");
        check("replicas=1", &["web-0 v2 Failed"], "-web-0");
    }

    #[test]
    fn parallel_pods_come_and_go_at_once() {
        check("replicas=3 policy=Parallel", &["web-1 v2"], "+web-0:v2 +web-2:v2");
        check(
            "replicas=1 policy=Parallel",
            &["web-0 v2 ready", "web-1 v2", "web-2 v2 leaving", "web-3 v2"],
            "-web-3 -web-1",
        );
    }

    #[test]
    fn an_update_goes_from_the_last_to_the_partition() {
        let all = ["web-0 v1 ready", "web-1 v1 ready", "web-2 v1 ready"];
        check("replicas=3", &all, "-web-2");
        check("replicas=3", &["web-0 v1 ready", "web-1 v1 ready", "web-2 v2"], "");
        check("replicas=3 partition=2", &["web-0 v1 ready", "web-1 v1 ready", "web-2 v2 ready"], "");
        check("replicas=3 unavailable=2", &all, "-web-2 -web-1");
        check("replicas=3 strategy=OnDelete", &all, "");
        check("replicas=3 partition=2", &["web-0 v1 ready"], "+web-1:v1");
        check("replicas=3 current=1", &["web-1 v2 ready", "web-2 v2 ready"], "+web-0:v1");
    }

    #[test]
    fn a_finished_update_makes_the_new_revision_the_current_one() {
        let status = |words: &str, pods: &[&str]| with(words, pods, |facts| facts.status(None));
        let going = status("replicas=2", &["web-0 v1 ready", "web-1 v2 ready"]);
        assert_eq!(
            (going.current_replicas, going.updated_replicas, going.current_revision.as_deref()),
            (Some(1), Some(1), Some("v1"))
        );
        let done = status("replicas=2", &["web-0 v2 ready", "web-1 v2 ready"]);
        assert_eq!((done.current_replicas, done.current_revision.as_deref()), (Some(2), Some("v2")));
        let starting = status("replicas=2", &["web-0 v2 ready", "web-1 v2"]);
        assert_eq!((starting.current_revision.as_deref(), starting.ready_replicas), (Some("v1"), Some(1)));
    }
}
