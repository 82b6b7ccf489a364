//! SchedulingGates: a pod with gates is not looked at until they are removed.

use crate::framework::{Actions, ClusterEvent, EventResource, Plugin, PreEnqueue, Rejection};
use crate::pod::PodInfo;

pub(super) struct SchedulingGates;

impl Plugin for SchedulingGates {
    const NAME: &'static str = "SchedulingGates";
    const REQUEUE_ON: &'static [ClusterEvent] =
        &[ClusterEvent::new(EventResource::UnscheduledPod, Actions::UPDATE_POD_GATES_ELIMINATED)];
}

impl PreEnqueue for SchedulingGates {
    fn pre_enqueue(&self, pod: &PodInfo) -> Result<(), Rejection> {
        let gates = pod.spec().and_then(|spec| spec.scheduling_gates.as_deref()).unwrap_or_default();
        if gates.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = gates.iter().map(|gate| &*gate.name).collect();
        Err(Rejection::unresolvable(format!("waiting for scheduling gates: [{}]", names.join(" "))))
    }
}
