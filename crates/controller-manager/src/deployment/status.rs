//! A Deployment's status: what its ReplicaSets add up to, whether it progresses, and when it has taken too long.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet},
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    limits::{desired, max_unavailable},
    replica_sets::{ReplicaSets, actual, available, name, ready, size},
};

const AVAILABLE: &str = "Available";
pub(super) const PROGRESSING: &str = "Progressing";
const REPLICA_FAILURE: &str = "ReplicaFailure";

const NEW_REPLICA_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";
const RESUMED: &str = "DeploymentResumed";

pub(super) fn condition<'a>(status: &'a DeploymentStatus, condition_type: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.as_deref()?.iter().find(|condition| condition.type_ == condition_type)
}

/// One that changes neither status nor reason is not written; the time of transition is that of the status.
pub(super) fn set_condition(
    status: &mut DeploymentStatus,
    condition_type: &str,
    (value, reason): (&str, &str),
    message: String,
    now: Timestamp,
) {
    let old = condition(status, condition_type);
    if old.is_some_and(|old| old.status == value && old.reason.as_deref() == Some(reason)) {
        return;
    }
    let kept = old.filter(|old| old.status == value).and_then(|old| old.last_transition_time.clone());
    let new = DeploymentCondition {
        type_: condition_type.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: kept.or(Some(Time(now))),
    };
    remove_condition(status, condition_type);
    status.conditions.get_or_insert_default().push(new);
}

fn remove_condition(status: &mut DeploymentStatus, condition_type: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != condition_type);
    }
}

fn progress_deadline(deployment: &Deployment) -> Option<SignedDuration> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds?;
    (seconds != i32::MAX).then(|| SignedDuration::from_secs(i64::from(seconds)))
}

pub(super) fn has_progress_deadline(deployment: &Deployment) -> bool {
    progress_deadline(deployment).is_some()
}

/// The numbers and the Available condition, without judging progress.
pub(super) fn counted(deployment: &Deployment, sets: &ReplicaSets, now: Timestamp) -> DeploymentStatus {
    let total = |of: fn(&ReplicaSet) -> i32| sets.all().map(|rs| of(rs)).sum::<i32>();
    let terminating = |rs: &ReplicaSet| rs.status.as_ref().and_then(|status| status.terminating_replicas);
    let old = deployment.status.clone().unwrap_or_default();
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(total(actual)),
        updated_replicas: Some(sets.new.as_ref().map_or(0, |new| actual(new))),
        ready_replicas: Some(total(ready)),
        available_replicas: Some(total(available)),
        unavailable_replicas: Some((total(size) - total(available)).max(0)),
        terminating_replicas: sets.all().map(|rs| terminating(rs)).sum(),
        collision_count: old.collision_count,
        conditions: old.conditions,
    };
    if total(available) >= desired(deployment) - max_unavailable(deployment) {
        let message = "Deployment has minimum availability.".to_owned();
        set_condition(&mut status, AVAILABLE, ("True", "MinimumReplicasAvailable"), message, now);
    } else {
        let message = "Deployment does not have minimum availability.".to_owned();
        set_condition(&mut status, AVAILABLE, ("False", "MinimumReplicasUnavailable"), message, now);
    }
    status
}

/// The status during a rollout: the numbers, and whether it is complete, moves, or has taken too long.
pub(super) fn rolling(deployment: &Deployment, sets: &ReplicaSets, now: Timestamp) -> DeploymentStatus {
    let mut status = counted(deployment, sets, now);
    if !has_progress_deadline(deployment) {
        remove_condition(&mut status, PROGRESSING);
    }
    let current = deployment.status.as_ref().and_then(|status| condition(status, PROGRESSING)).cloned();
    let was_complete = status.replicas == status.updated_replicas
        && current.as_ref().is_some_and(|current| current.reason.as_deref() == Some(NEW_REPLICA_SET_AVAILABLE));
    if has_progress_deadline(deployment) && !was_complete {
        let subject = match &sets.new {
            Some(new) => format!("ReplicaSet \"{}\"", name(new)),
            None => format!("Deployment \"{}\"", deployment.metadata.name.as_deref().unwrap_or_default()),
        };
        if is_complete(deployment, &status) {
            let message = format!("{subject} has successfully progressed.");
            set_condition(&mut status, PROGRESSING, ("True", NEW_REPLICA_SET_AVAILABLE), message, now);
        } else if has_moved(deployment, &status) {
            // Every move counts as an update, also one that leaves status and reason as they are.
            let since = current.filter(|current| current.status == "True").and_then(|c| c.last_transition_time);
            remove_condition(&mut status, PROGRESSING);
            status.conditions.get_or_insert_default().push(DeploymentCondition {
                type_: PROGRESSING.to_owned(),
                status: "True".to_owned(),
                reason: Some("ReplicaSetUpdated".to_owned()),
                message: Some(format!("{subject} is progressing.")),
                last_update_time: Some(Time(now)),
                last_transition_time: since.or(Some(Time(now))),
            });
        } else if has_timed_out(deployment, &status, now) {
            let message = format!("{subject} has timed out progressing.");
            set_condition(&mut status, PROGRESSING, ("False", TIMED_OUT), message, now);
        }
    }
    match replica_failure(sets) {
        Some((reason, message)) => set_condition(&mut status, REPLICA_FAILURE, ("True", &reason), message, now),
        None => remove_condition(&mut status, REPLICA_FAILURE),
    }
    status
}

/// Every replica is of the present template and available.
pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let want = Some(desired(deployment));
    status.updated_replicas.or(Some(0)) == want
        && status.replicas.or(Some(0)) == want
        && status.available_replicas.or(Some(0)) == want
        && status.observed_generation >= deployment.metadata.generation
}

fn has_moved(deployment: &Deployment, new: &DeploymentStatus) -> bool {
    let old = deployment.status.clone().unwrap_or_default();
    let number = Option::unwrap_or_default;
    let outdated = |status: &DeploymentStatus| number(status.replicas) - number(status.updated_replicas);
    number(new.updated_replicas) > number(old.updated_replicas)
        || outdated(new) < outdated(&old)
        || number(new.ready_replicas) > number(old.ready_replicas)
        || number(new.available_replicas) > number(old.available_replicas)
}

fn has_timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    let (Some(deadline), Some(progress)) = (progress_deadline(deployment), condition(status, PROGRESSING)) else {
        return false;
    };
    match progress.reason.as_deref() {
        Some(NEW_REPLICA_SET_AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        _ => progress.last_update_time.as_ref().is_some_and(|updated| now.duration_since(updated.0) > deadline),
    }
}

/// When to look again because then the Deployment may have taken too long.
pub(super) fn next_check(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let (deadline, progress) = (progress_deadline(deployment)?, condition(status, PROGRESSING)?);
    if is_complete(deployment, status)
        || matches!(progress.reason.as_deref(), Some(TIMED_OUT | NEW_REPLICA_SET_AVAILABLE | PAUSED))
    {
        return None;
    }
    let left = deadline - now.duration_since(progress.last_update_time.as_ref()?.0);
    Some(Duration::try_from(left).unwrap_or_default() + Duration::from_secs(1))
}

/// The condition that tells a pause from a standstill; `None` if it is right already.
pub(super) fn paused(deployment: &Deployment, now: Timestamp) -> Option<DeploymentStatus> {
    if !has_progress_deadline(deployment) {
        return None;
    }
    let is_paused = deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
    let mut status = deployment.status.clone().unwrap_or_default();
    let reason = condition(&status, PROGRESSING).and_then(|progress| progress.reason.clone()).unwrap_or_default();
    match (is_paused, reason.as_str()) {
        (_, TIMED_OUT) => return None,
        (true, reason) if reason != PAUSED => {
            set_condition(&mut status, PROGRESSING, ("Unknown", PAUSED), "Deployment is paused".to_owned(), now);
        }
        (false, PAUSED) => {
            set_condition(&mut status, PROGRESSING, ("Unknown", RESUMED), "Deployment is resumed".to_owned(), now);
        }
        _ => return None,
    }
    Some(status)
}

/// Reason and message of a ReplicaSet that cannot make its pods, the new one's first.
fn replica_failure(sets: &ReplicaSets) -> Option<(String, String)> {
    let failure_of = |rs: &ReplicaSet| {
        let conditions = rs.status.as_ref()?.conditions.as_deref()?;
        let failure = conditions.iter().find(|condition| condition.type_ == REPLICA_FAILURE)?;
        Some((failure.reason.clone().unwrap_or_default(), failure.message.clone().unwrap_or_default()))
    };
    sets.new.iter().chain(&sets.old).find_map(|rs| failure_of(rs))
}

#[cfg(test)]
mod tests {
    use super::{super::fixture, *};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn sets(deployment: &Deployment, given: &[&str]) -> ReplicaSets {
        ReplicaSets::of(deployment, given.iter().map(|words| fixture::replica_set(words)).collect())
    }

    fn show(status: &DeploymentStatus) -> String {
        let conditions = status.conditions.iter().flatten();
        let text =
            |c: &DeploymentCondition| format!("{}={}/{}", c.type_, c.status, c.reason.clone().unwrap_or_default());
        conditions.map(text).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_rollout_progresses_completes_and_stays_complete() {
        let mut deployment = fixture::deployment("replicas=2 image=v1 deadline=600");
        let begun = rolling(&deployment, &sets(&deployment, &["a replicas=2 actual=1"]), at(10));
        assert_eq!(show(&begun), "Available=False/MinimumReplicasUnavailable Progressing=True/ReplicaSetUpdated");
        deployment.status = Some(begun);
        let given = ["a replicas=2 actual=2 available=2"];
        let done = rolling(&deployment, &sets(&deployment, &given), at(20));
        assert_eq!(show(&done), "Available=True/MinimumReplicasAvailable Progressing=True/NewReplicaSetAvailable");
        deployment.status = Some(done.clone());
        assert_eq!(rolling(&deployment, &sets(&deployment, &given), at(90)), done);
        assert_eq!(next_check(&deployment, &done, at(90)), None);
    }

    #[test]
    fn a_standstill_times_out_after_the_deadline() {
        let mut deployment = fixture::deployment("replicas=2 image=v1 deadline=60");
        let given = ["a replicas=2 actual=1"];
        let begun = rolling(&deployment, &sets(&deployment, &given), at(0));
        deployment.status = Some(begun.clone());
        let waiting = rolling(&deployment, &sets(&deployment, &given), at(60));
        assert_eq!(waiting, begun);
        assert_eq!(next_check(&deployment, &waiting, at(20)), Some(Duration::from_secs(41)));
        let late = rolling(&deployment, &sets(&deployment, &given), at(61));
        assert_eq!(
            show(&late),
            "Available=False/MinimumReplicasUnavailable Progressing=False/ProgressDeadlineExceeded"
        );
        let message = condition(&late, PROGRESSING).and_then(|c| c.message.clone());
        assert_eq!(message.as_deref(), Some("ReplicaSet \"a\" has timed out progressing."));
    }

    #[test]
    fn without_a_deadline_progress_is_not_judged() {
        let deployment = fixture::deployment("replicas=1 image=v1");
        let status = rolling(&deployment, &sets(&deployment, &["a replicas=1 actual=1"]), at(10));
        assert_eq!(show(&status), "Available=False/MinimumReplicasUnavailable");
    }

    #[test]
    fn pausing_and_resuming_are_told() {
        let mut deployment = fixture::deployment("replicas=1 image=v1 deadline=60 paused=true");
        let status = paused(&deployment, at(0)).unwrap();
        assert_eq!(show(&status), "Progressing=Unknown/DeploymentPaused");
        deployment.status = Some(status);
        assert_eq!(paused(&deployment, at(1)), None);
        deployment.spec.as_mut().unwrap().paused = None;
        assert_eq!(show(&paused(&deployment, at(2)).unwrap()), "Progressing=Unknown/DeploymentResumed");
    }

    #[test]
    fn a_failing_replica_set_shows_on_the_deployment() {
        let deployment = fixture::deployment("replicas=1 image=v1");
        let status = rolling(&deployment, &sets(&deployment, &["a replicas=1 failure=FailedCreate"]), at(10));
        assert_eq!(show(&status), "Available=False/MinimumReplicasUnavailable ReplicaFailure=True/FailedCreate");
    }
}
