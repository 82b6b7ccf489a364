//! GangScheduling: pods of a group are bound when enough of them have a node, or not at all.

use std::time::Duration;

use crate::cluster::NodeRef;
use crate::framework::WaitingPods;
use crate::framework::{
    Actions, Change, ClusterEvent, EventResource, Hint, Permit, PermitStatus, Plugin, PluginContext, PreEnqueue,
    Rejection, Reserve,
};
use crate::gangs::{Gangs, group_of};
use crate::listers::Listers;
use crate::pod::PodInfo;

/// How long placed pods hold their room for the others.
const TIMEOUT: Duration = Duration::from_secs(5 * 60);

pub(crate) struct GangScheduling {
    listers: Listers,
    gangs: Gangs,
    waiting: WaitingPods,
}

impl GangScheduling {
    pub(super) fn new(context: &PluginContext) -> Self {
        let (listers, gangs) = (context.listers.clone(), context.gangs.clone());
        Self { listers, gangs, waiting: context.waiting_pods.clone() }
    }

    /// How many pods of its group a pod needs; `None`: it does not depend on others.
    fn needs(&self, pod: &PodInfo) -> Result<Option<usize>, Rejection> {
        let Some(group) = group_of(pod) else { return Ok(None) };
        let Some(found) = self.listers.pod_groups.get(&group) else {
            let name = group.name();
            let why = format!("waiting for pod's pod group {name:?} to appear in scheduling queue");
            return Err(Rejection::unresolvable(why));
        };
        let gang = found.spec.scheduling_policy.gang.as_ref();
        Ok(gang.map(|gang| usize::try_from(gang.min_count).unwrap_or_default()))
    }
}

impl Plugin for GangScheduling {
    const NAME: &'static str = "GangScheduling";
    const REQUEUE_ON: &'static [ClusterEvent] = &[
        ClusterEvent::new(EventResource::UnscheduledPod, Actions::ADD),
        ClusterEvent::new(EventResource::AssignedPod, Actions::ADD),
        ClusterEvent::new(EventResource::PodGroup, Actions::ADD.or(Actions::UPDATE)),
    ];

    fn hint(&self, pod: &PodInfo, _: ClusterEvent, change: &Change<'_>) -> Hint {
        match change {
            Change::AssignedPod { new: Some(new), .. } => Hint::queue_if(group_of(new) == group_of(pod)),
            _ => Hint::Queue,
        }
    }
}

impl PreEnqueue for GangScheduling {
    fn pre_enqueue(&self, pod: &PodInfo) -> Result<(), Rejection> {
        let (Some(needs), Some(group)) = (self.needs(pod)?, group_of(pod)) else { return Ok(()) };
        if self.gangs.counts(&group).0 < needs {
            return Err(Rejection::unresolvable("waiting for minCount pods from a gang to appear in scheduling queue"));
        }
        Ok(())
    }
}

impl Reserve for GangScheduling {
    type Held = ();

    fn reserve(&self, pod: &PodInfo, _: NodeRef<'_>) -> Result<(), Rejection> {
        self.gangs.set_placed(pod, true);
        Ok(())
    }

    fn unreserve(&self, (): &(), pod: &PodInfo, _: &str) {
        self.gangs.set_placed(pod, false);
    }
}

impl Permit for GangScheduling {
    fn permit(&self, pod: &PodInfo, _: &str) -> PermitStatus {
        let (needs, group) = match (self.needs(pod), group_of(pod)) {
            (Ok(Some(needs)), Some(group)) => (needs, group),
            (Err(rejection), _) => return PermitStatus::Reject(rejection),
            _ => return PermitStatus::Allow,
        };
        if self.gangs.counts(&group).1 < needs {
            return PermitStatus::Wait(TIMEOUT);
        }
        let mut others = Vec::new();
        self.waiting.for_each(|other, _| {
            if group_of(other).as_ref() == Some(&group) {
                others.push(other.uid.clone());
            }
        });
        for other in others {
            self.waiting.allow(&other, Self::NAME);
        }
        PermitStatus::Allow
    }
}
