//! Which changes may help which pods.

use super::QueuedPod;
use crate::framework::{Actions, Change, ClusterEvent, EventResource, Hint};
use crate::pod::PodInfo;
use crate::profiles::Profiles;

/// What an update of a pod that is not on a node is, for the plugins that turned it down.
pub(super) fn events_of_update(old: &PodInfo, new: &PodInfo) -> Vec<ClusterEvent> {
    let mut actions = Vec::new();
    let gates = |pod: &PodInfo| pod.spec().and_then(|spec| spec.scheduling_gates.as_ref()).map_or(0, Vec::len);
    if old.labels() != new.labels() {
        actions.push(Actions::UPDATE_POD_LABEL);
    }
    if is_scaled_down(old, new) {
        actions.push(Actions::UPDATE_POD_SCALE_DOWN);
    }
    if old.tolerations() != new.tolerations() {
        actions.push(Actions::UPDATE_POD_TOLERATION);
    }
    if gates(old) > 0 && gates(new) == 0 {
        actions.push(Actions::UPDATE_POD_GATES_ELIMINATED);
    }
    if actions.is_empty() && old.object.spec != new.object.spec {
        actions.push(Actions::UPDATE);
    }
    actions.into_iter().map(|action| ClusterEvent::new(EventResource::UnscheduledPod, action)).collect()
}

/// Whether the pod asks for less of something than before.
pub(crate) fn is_scaled_down(old: &PodInfo, new: &PodInfo) -> bool {
    let (old, new) = (&old.requests.real, &new.requests.real);
    new.milli_cpu < old.milli_cpu
        || new.memory < old.memory
        || new.ephemeral_storage < old.ephemeral_storage
        || old.scalars.iter().any(|(id, amount)| new.scalar(*id) < *amount)
}

/// Whether one of the events may help the pod. A pod that no plugin turned down may be helped by anything.
pub(super) fn any_helps(profiles: &Profiles, queued: &QueuedPod, events: &[ClusterEvent], change: &Change<'_>) -> bool {
    events.iter().any(|event| helps(profiles, queued, *event, change))
}

pub(super) fn helps(profiles: &Profiles, queued: &QueuedPod, event: ClusterEvent, change: &Change<'_>) -> bool {
    if queued.turned_down_by.is_empty() {
        return true;
    }
    let Some(profile) = profiles.of(&queued.pod) else { return false };
    queued.turned_down_by.iter().any(|name| {
        // Who is no plugin says nothing of what may help.
        let Some(plugin) = profile.plugins.get(name) else { return true };
        let events = plugin.requeue_on();
        events.is_empty()
            || (events.iter().any(|own| own.meets(event)) && plugin.hint(&queued.pod, event, change) == Hint::Queue)
    })
}
