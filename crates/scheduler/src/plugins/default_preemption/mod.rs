//! DefaultPreemption: when no node can take a pod, less important pods make room for it on one.

mod budgets;
mod candidate;

use std::sync::Arc;

use jiff::Timestamp;
use serde::Deserialize;

use crate::cluster::NodeIdx;
use crate::cycle::{Attempt, PostFilterOutcome};
use crate::framework::{Actions, ClusterEvent, EventResource, FilterStatus, Plugin, PostFilter};
use crate::listers::Listers;
use crate::pod::PodInfo;
use budgets::Budgets;
use candidate::{Candidate, choose, more_important};

const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";
const NO_VICTIMS: &str = "No preemption victims found for incoming pod";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Args {
    /// How many nodes to try, in percent of those where it may help.
    min_candidate_nodes_percentage: i32,
    /// And at least so many.
    min_candidate_nodes_absolute: i32,
}

impl Default for Args {
    fn default() -> Self {
        Self { min_candidate_nodes_percentage: 10, min_candidate_nodes_absolute: 100 }
    }
}

pub(super) struct DefaultPreemption {
    percentage: usize,
    at_least: usize,
    listers: Listers,
}

impl DefaultPreemption {
    /// # Errors
    /// All mistakes of the arguments, in one text.
    pub(super) fn new(args: &Args, listers: &Listers) -> Result<Self, String> {
        let (percentage, at_least) = (args.min_candidate_nodes_percentage, args.min_candidate_nodes_absolute);
        let mut mistakes = Vec::new();
        if !(0..=100).contains(&percentage) {
            mistakes
                .push(format!("minCandidateNodesPercentage: Invalid value: {percentage}: not in valid range [0, 100]"));
        }
        if at_least < 0 {
            mistakes.push(format!("minCandidateNodesAbsolute: Invalid value: {at_least}: not in valid range [0, inf)"));
        }
        if percentage == 0 && at_least == 0 {
            mistakes.push(
                "minCandidateNodesPercentage: Invalid value: 0: cannot be zero at the same time as minCandidateNodesAbsolute"
                    .to_owned(),
            );
        }
        let size = |value: i32| usize::try_from(value).unwrap_or_default();
        if mistakes.is_empty() {
            Ok(Self { percentage: size(percentage), at_least: size(at_least), listers: listers.clone() })
        } else {
            Err(mistakes.join(", "))
        }
    }

    /// Why the pod may not evict others now.
    fn why_not(attempt: &Attempt<'_>) -> Option<&'static str> {
        let pod = attempt.pod();
        if !pod.may_preempt() {
            return Some("not eligible due to preemptionPolicy=Never.");
        }
        let nominated = attempt.cluster().nominations.node_of(&pod.uid)?;
        let node = attempt.cluster().nodes().find(nominated)?;
        if let Some(FilterStatus::UnschedulableAndUnresolvable(_)) = attempt.status_of(node.idx()) {
            // Its room there is of no use any more: it may look for another.
            return None;
        }
        let leaving = |other: &Arc<PodInfo>| other.priority < pod.priority && is_leaving_for_another(other);
        node.pods().iter().any(leaving).then_some("not eligible due to a terminating pod on the nominated node.")
    }

    /// How many nodes to try of those where it may help.
    fn wanted(&self, nodes: usize) -> usize {
        (nodes * self.percentage / 100).max(self.at_least).min(nodes)
    }

    /// The fewest and least important pods without which the pod fits on the node, or why there are none.
    fn victims(attempt: &mut Attempt<'_>, at: NodeIdx, budgets: &Budgets) -> Result<Candidate, FilterStatus> {
        let priority = attempt.pod().priority;
        let mut trial = attempt.try_on(at);
        let Some(node) = trial.node() else { return Err(FilterStatus::unresolvable(NOT_HELPFUL)) };
        let name = node.name().clone();
        let mut less_important: Vec<_> = node.pods().iter().filter(|own| own.priority < priority).cloned().collect();
        if less_important.is_empty() {
            return Err(FilterStatus::unresolvable(NO_VICTIMS));
        }
        for other in &less_important {
            trial.remove(other);
        }
        let status = trial.status();
        if !status.is_success() {
            return Err(status);
        }
        // The most important ones stay if they can, and those first whose budgets are used up.
        less_important.sort_by(|a, b| more_important(a, b));
        let (protected, others) = budgets.split(less_important);
        let mut candidate = Candidate { node: name, victims: Vec::new(), violations: 0 };
        let several = !protected.is_empty() && !others.is_empty();
        for (pods, violates) in [(protected, 1), (others, 0)] {
            for other in pods {
                trial.put_back(&other);
                if !trial.status().is_success() {
                    trial.remove(&other);
                    candidate.violations += violates;
                    candidate.victims.push(other);
                }
            }
        }
        if candidate.victims.is_empty() {
            let message = format!("expected at least one victim pod on node {:?}", &*candidate.node);
            return Err(FilterStatus::Error(message));
        }
        if several {
            candidate.victims.sort_by(|a, b| more_important(a, b));
        }
        Ok(candidate)
    }
}

/// Whether the pod is being deleted to make room.
fn is_leaving_for_another(pod: &PodInfo) -> bool {
    let conditions = pod.object.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut conditions = conditions.filter(|own| own.type_ == "DisruptionTarget");
    pod.is_terminating()
        && conditions.any(|own| own.status == "True" && own.reason.as_deref() == Some("PreemptionByScheduler"))
}

/// When a pod was started; one that was not is the youngest.
fn started(pod: &PodInfo) -> Timestamp {
    pod.started(Timestamp::MAX)
}

impl Plugin for DefaultPreemption {
    const NAME: &'static str = "DefaultPreemption";
    const REQUEUE_ON: &'static [ClusterEvent] = &[ClusterEvent::new(EventResource::AssignedPod, Actions::DELETE)];
}

impl PostFilter for DefaultPreemption {
    fn post_filter(&self, attempt: &mut Attempt<'_>) -> PostFilterOutcome {
        if let Some(why) = Self::why_not(attempt) {
            return PostFilterOutcome::Nothing(format!("preemption: {why}"));
        }
        let nodes = attempt.nodes_where_eviction_may_help();
        let budgets = Budgets::of(&self.listers.disruption_budgets.list());
        let wanted = self.wanted(nodes.len());
        let start = if nodes.is_empty() { 0 } else { rand::random_range(0..nodes.len()) };
        let (mut candidates, mut harmless, mut diagnosis) = (Vec::new(), 0, attempt.new_diagnosis());
        let mut explained = 0;
        for at in nodes[start..].iter().chain(&nodes[..start]) {
            match Self::victims(attempt, *at, &budgets) {
                Ok(candidate) => {
                    harmless += usize::from(candidate.violations == 0);
                    candidates.push(candidate);
                    if harmless > 0 && candidates.len() >= wanted {
                        break;
                    }
                }
                Err(FilterStatus::Error(error)) if candidates.is_empty() => return PostFilterOutcome::Error(error),
                Err(status) => {
                    explained += 1;
                    diagnosis.add(&status, 1);
                }
            }
        }
        let rooms = candidates.into_iter().map(|own| (own.node, own.victims, own.violations)).collect();
        let candidates = match attempt.ask_extenders(rooms) {
            Ok(rooms) => {
                rooms.into_iter().map(|(node, victims, violations)| Candidate { node, victims, violations }).collect()
            }
            Err(error) => return PostFilterOutcome::Error(error),
        };
        match choose(candidates) {
            Some(best) => PostFilterOutcome::Nominate { node: best.node.to_string(), victims: best.victims },
            None => {
                let others = diagnosis.nodes.saturating_sub(explained);
                diagnosis.add_reason(NOT_HELPFUL, others);
                PostFilterOutcome::Unschedulable(format!("preemption: {diagnosis}"))
            }
        }
    }
}
