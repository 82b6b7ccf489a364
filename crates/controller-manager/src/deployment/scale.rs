//! The sizes that a Deployment's ReplicaSets are to get: step by step in a rolling update, and in proportion when the
//! Deployment itself is resized.

use std::{cmp::Reverse, sync::Arc};

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::{
    limits::{desired, is_rolling, max_surge, max_unavailable},
    replica_sets::{ReplicaSets, available, by_age, is_sized_for, max_replicas_when_sized, size},
};

/// A ReplicaSet and the size that it is to get.
pub(super) type Resize = (Arc<ReplicaSet>, i32);

fn sum<'a>(sets: impl IntoIterator<Item = &'a Arc<ReplicaSet>>, of: fn(&ReplicaSet) -> i32) -> i32 {
    sets.into_iter().map(|rs| of(rs)).sum()
}

/// The size of a new ReplicaSet that has `size_now`, when all together have `total`.
pub(super) fn new_size(deployment: &Deployment, total: i32, size_now: i32) -> i32 {
    if !is_rolling(deployment) {
        return desired(deployment);
    }
    let room = desired(deployment) + max_surge(deployment) - total;
    if room <= 0 { size_now } else { size_now + room.min(desired(deployment) - size_now) }
}

/// The next size of the new ReplicaSet in a rolling update, if it changes.
pub(super) fn plan_new(deployment: &Deployment, sets: &ReplicaSets) -> Option<Resize> {
    let new = sets.new.as_ref()?;
    let size_now = size(new);
    let next = if size_now > desired(deployment) {
        desired(deployment)
    } else {
        new_size(deployment, sum(sets.all(), size), size_now)
    };
    (next != size_now).then(|| (new.clone(), next))
}

/// The next sizes of the old ReplicaSets in a rolling update: first they lose pods that do not work anyway, then as many
/// as availability allows.
pub(super) fn plan_old(deployment: &Deployment, sets: &ReplicaSets) -> Vec<Resize> {
    let mut old = sets.active_old();
    old.sort_by(|a, b| by_age(a, b));
    let min_available = desired(deployment) - max_unavailable(deployment);
    let new_unavailable = sets.new.as_ref().map_or(0, |new| size(new) - available(new));
    let mut removable = sum(sets.all(), size) - min_available - new_unavailable;
    if old.is_empty() || removable <= 0 {
        return Vec::new();
    }
    let mut sizes: Vec<i32> = old.iter().map(|rs| size(rs)).collect();
    for (rs, size) in old.iter().zip(&mut sizes) {
        let broken = (*size - available(rs)).clamp(0, removable);
        *size -= broken;
        removable -= broken;
    }
    let mut spare = sum(old.iter().chain(&sets.new), available) - min_available;
    for size in &mut sizes {
        let removed = (*size).min(spare.max(0));
        *size -= removed;
        spare -= removed;
    }
    old.into_iter().zip(sizes).filter(|(rs, next)| size(rs) != *next).collect()
}

/// The sizes after the Deployment was resized, or while it is paused. Everything that is named is to be written even if
/// its size stays, because what it was sized for changes.
pub(super) fn plan_resize(deployment: &Deployment, sets: &ReplicaSets) -> Vec<Resize> {
    let replicas = desired(deployment);
    let mut active: Vec<_> = sets.all().filter(|rs| size(rs) > 0).cloned().collect();
    // One that has pods takes everything; if none has, the newest does.
    let only = match active.as_slice() {
        [] => sets.new.clone().or_else(|| sets.old.last().cloned()),
        [only] => Some(only.clone()),
        _ => None,
    };
    if let Some(only) = only {
        return if size(&only) == replicas { Vec::new() } else { vec![(only, replicas)] };
    }
    if sets.new.as_ref().is_some_and(|new| is_saturated(new, replicas)) {
        return sets.active_old().into_iter().map(|rs| (rs, 0)).collect();
    }
    if !is_rolling(deployment) {
        return Vec::new();
    }
    let allowed = if replicas > 0 { replicas + max_surge(deployment) } else { 0 };
    let to_add = allowed - sum(&active, size);
    // The largest first; among equals growth favours the newest and shrinking the oldest.
    if to_add > 0 {
        active.sort_by(|a, b| Reverse(size(a)).cmp(&Reverse(size(b))).then_with(|| by_age(b, a)));
    } else {
        active.sort_by(|a, b| Reverse(size(a)).cmp(&Reverse(size(b))).then_with(|| by_age(a, b)));
    }
    let mut added = 0;
    let mut resizes: Vec<Resize> = Vec::with_capacity(active.len());
    for rs in active {
        let share = share_of(&rs, deployment, to_add, added);
        added += share;
        let next = size(&rs) + share;
        resizes.push((rs, next));
    }
    // What rounding left over goes to the first.
    if let Some((_, first)) = resizes.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    resizes
}

/// The new ReplicaSet has everything and all of it works.
fn is_saturated(new: &ReplicaSet, replicas: i32) -> bool {
    size(new) == replicas && is_sized_for(new, replicas) && available(new) == replicas
}

/// How many of the pods `to_add` (negative to remove), of which `added` are given out, fall to this one.
fn share_of(rs: &ReplicaSet, deployment: &Deployment, to_add: i32, added: i32) -> i32 {
    if size(rs) == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let (fair, left) = (fair_growth(rs, deployment), to_add - added);
    if to_add > 0 { fair.min(left) } else { fair.max(left) }
}

fn fair_growth(rs: &ReplicaSet, deployment: &Deployment) -> i32 {
    if desired(deployment) == 0 {
        return -size(rs);
    }
    let max_now = f64::from(desired(deployment) + max_surge(deployment));
    let status_replicas = deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or_default();
    let max_before = match max_replicas_when_sized(rs) {
        None | Some(0) => f64::from(status_replicas.max(1)),
        #[expect(clippy::cast_precision_loss, reason = "a number of pods fits a float")]
        Some(max) => max as f64,
    };
    let next = (f64::from(size(rs)) * max_now / max_before).round();
    #[expect(clippy::cast_possible_truncation, reason = "a cast to i32 saturates")]
    let next = next as i32;
    next - size(rs)
}

#[cfg(test)]
mod tests {
    use super::{super::fixture, super::replica_sets::name, *};

    fn show(resizes: impl IntoIterator<Item = Resize>) -> String {
        resizes.into_iter().map(|(rs, to)| format!("{}:{}->{to}", name(&rs), size(&rs))).collect::<Vec<_>>().join(" ")
    }

    fn sets(deployment: &Deployment, sets: &[&str]) -> ReplicaSets {
        ReplicaSets::of(deployment, sets.iter().map(|words| fixture::replica_set(words)).collect())
    }

    #[track_caller]
    fn check_rolling(deployment: &str, given: &[&str], new: &str, old: &str) {
        let deployment = fixture::deployment(deployment);
        let sets = sets(&deployment, given);
        assert_eq!(
            (show(plan_new(&deployment, &sets)).as_str(), show(plan_old(&deployment, &sets)).as_str()),
            (new, old)
        );
    }

    #[test]
    fn the_new_one_grows_into_the_surge_and_the_old_ones_shrink_by_what_may_be_missing() {
        let ten = "replicas=10 image=v2 surge=2 unavailable=2";
        check_rolling(ten, &["old replicas=10 available=10", "new replicas=0 image=v2"], "new:0->2", "old:10->8");
        check_rolling(ten, &["old replicas=8 available=8", "new replicas=4 image=v2 available=0"], "", "");
        check_rolling(ten, &["old replicas=8 available=8", "new replicas=4 image=v2 available=2"], "", "old:8->6");
        check_rolling(ten, &["new replicas=12 image=v2 available=12"], "new:12->10", "");
        check_rolling(ten, &["old replicas=0", "new replicas=10 image=v2 available=10"], "", "");
    }

    #[test]
    fn what_does_not_work_goes_first() {
        check_rolling(
            "replicas=10 image=v3 surge=0 unavailable=2",
            &[
                "a replicas=4 available=4 created=1",
                "b replicas=6 available=3 created=2 image=v2",
                "new replicas=0 image=v3",
            ],
            "",
            "b:6->4",
        );
        check_rolling(
            "replicas=3 image=v2 surge=1 unavailable=0",
            &["old replicas=3 available=0", "new replicas=1 image=v2 available=1"],
            "",
            "old:3->2",
        );
    }

    #[track_caller]
    fn check_resize(deployment: &str, given: &[&str], want: &str) {
        let deployment = fixture::deployment(deployment);
        assert_eq!(show(plan_resize(&deployment, &sets(&deployment, given))), want);
    }

    #[test]
    fn the_only_one_takes_every_change() {
        check_resize("replicas=5 image=v1", &["a replicas=3"], "a:3->5");
        check_resize("replicas=5 image=v1", &["a replicas=0", "b replicas=0 image=v2 created=9"], "a:0->5");
        check_resize("replicas=0 image=v9", &["a replicas=3", "b replicas=0 image=v2 created=9"], "a:3->0");
    }

    #[test]
    fn a_resize_in_the_middle_of_a_rollout_is_shared_in_proportion() {
        let before = ["old replicas=8 max=12 desired=10", "new replicas=4 image=v2 max=12 desired=10"];
        check_resize("replicas=20 image=v2 surge=2 unavailable=2", &before, "old:8->15 new:4->7");
        check_resize("replicas=5 image=v2 surge=2 unavailable=2", &before, "old:8->5 new:4->2");
        check_resize("replicas=0 image=v2 surge=2 unavailable=2", &before, "old:8->0 new:4->0");
    }

    #[test]
    fn when_the_new_one_is_complete_the_old_ones_end() {
        let given = ["old replicas=1 desired=3", "new replicas=3 image=v2 desired=3 available=3"];
        check_resize("replicas=3 image=v2", &given, "old:1->0");
    }
}
