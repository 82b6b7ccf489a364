//! A Deployment's ReplicaSets: which one is new, what they are annotated with, how revisions are counted.

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::core::ObjectMeta;

use super::limits::{desired, max_surge};
use crate::{
    error::SyncError,
    owner::controller_reference,
    pod_template::{self, HASH_LABEL},
};

pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";

/// A Deployment's annotations that its ReplicaSets do not get.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];

/// How long the history of revisions may grow, in bytes.
const HISTORY_BYTES: usize = 2000;

/// Number of pods that the ReplicaSet is told to have.
pub(super) fn size(rs: &ReplicaSet) -> i32 {
    rs.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// Number of pods that it has, by its status.
pub(super) fn actual(rs: &ReplicaSet) -> i32 {
    rs.status.as_ref().map(|status| status.replicas).unwrap_or_default()
}

pub(super) fn ready(rs: &ReplicaSet) -> i32 {
    rs.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or_default()
}

pub(super) fn available(rs: &ReplicaSet) -> i32 {
    rs.status.as_ref().and_then(|status| status.available_replicas).unwrap_or_default()
}

pub(super) fn name(rs: &ReplicaSet) -> &str {
    rs.metadata.name.as_deref().unwrap_or_default()
}

/// Older first, namesakes of one second by name.
pub(super) fn by_age(a: &ReplicaSet, b: &ReplicaSet) -> Ordering {
    let created = |rs: &ReplicaSet| rs.metadata.creation_timestamp.as_ref().map(|time| time.0);
    created(a).cmp(&created(b)).then_with(|| name(a).cmp(name(b)))
}

/// A Deployment's ReplicaSets, oldest first, told apart by whether they have its present template.
#[derive(Debug, Clone, Default)]
pub(super) struct ReplicaSets {
    pub(super) new: Option<Arc<ReplicaSet>>,
    pub(super) old: Vec<Arc<ReplicaSet>>,
}

impl ReplicaSets {
    pub(super) fn of(deployment: &Deployment, mut all: Vec<Arc<ReplicaSet>>) -> Self {
        all.sort_by(|a, b| by_age(a, b));
        let template = deployment.spec.as_ref().map(|spec| &spec.template);
        let is_new = |rs: &Arc<ReplicaSet>| {
            let own = rs.spec.as_ref().and_then(|spec| spec.template.as_ref());
            matches!((own, template), (Some(own), Some(template)) if pod_template::is_same(own, template))
        };
        let new = all.iter().find(|rs| is_new(rs)).cloned();
        all.retain(|rs| new.as_ref().is_none_or(|new| !Arc::ptr_eq(rs, new)));
        Self { new, old: all }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new)
    }

    pub(super) fn active_old(&self) -> Vec<Arc<ReplicaSet>> {
        self.old.iter().filter(|rs| size(rs) > 0).cloned().collect()
    }

    /// Whether an active one was sized for another number of replicas than the Deployment has now.
    pub(super) fn need_scaling(&self, deployment: &Deployment) -> bool {
        self.all()
            .filter(|rs| size(rs) > 0)
            .filter_map(|rs| number(rs, DESIRED_REPLICAS))
            .any(|sized_for| sized_for != i64::from(desired(deployment)))
    }

    /// The revision that the new one has or is to get: one more than any old one.
    pub(super) fn next_revision(&self) -> i64 {
        self.old.iter().map(|rs| revision(rs)).max().unwrap_or_default() + 1
    }
}

pub(super) fn revision(rs: &ReplicaSet) -> i64 {
    number(rs, REVISION).unwrap_or_default()
}

/// How many pods the Deployment could have at most when this one was sized.
pub(super) fn max_replicas_when_sized(rs: &ReplicaSet) -> Option<i64> {
    number(rs, MAX_REPLICAS)
}

/// Whether the ReplicaSet was sized for this number of replicas.
pub(super) fn is_sized_for(rs: &ReplicaSet, replicas: i32) -> bool {
    number(rs, DESIRED_REPLICAS) == Some(i64::from(replicas))
}

fn number(rs: &ReplicaSet, annotation: &str) -> Option<i64> {
    rs.metadata.annotations.as_ref()?.get(annotation)?.parse().ok()
}

/// The ReplicaSet for the Deployment's present template, as it is to be created.
pub(super) fn new_replica_set(
    deployment: &Deployment,
    sets: &ReplicaSets,
    replicas: i32,
) -> Result<Option<ReplicaSet>, SyncError> {
    let Some(spec) = &deployment.spec else { return Ok(None) };
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let hash = pod_template::hash(&spec.template, collisions)?;
    let mut template = spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut match_labels = spec.selector.match_labels.clone().unwrap_or_default();
    match_labels.insert(HASH_LABEL.to_owned(), hash.clone());
    let mut rs = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.metadata.name.as_deref().unwrap_or_default())),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            min_ready_seconds: spec.min_ready_seconds,
            selector: LabelSelector { match_labels: Some(match_labels), ..spec.selector.clone() },
            template: Some(template),
        }),
        status: None,
    };
    annotate_new(&mut rs, deployment, sets.next_revision());
    annotate_size(&mut rs, deployment);
    Ok(Some(rs))
}

/// Copies the Deployment's annotations and raises the revision; whether that changed anything.
pub(super) fn annotate_new(rs: &mut ReplicaSet, deployment: &Deployment, next_revision: i64) -> bool {
    let annotations = rs.metadata.annotations.get_or_insert_default();
    let mut changed = false;
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&key.as_str()) && annotations.get(key) != Some(value) {
            annotations.insert(key.clone(), value.clone());
            changed = true;
        }
    }
    let old = annotations.get(REVISION).cloned();
    let old_number = match old.as_deref().map(str::parse::<i64>) {
        // Somebody wrote nonsense there; it stays, as upstream leaves it.
        Some(Err(_)) => return false,
        Some(Ok(number)) => number,
        None => 0,
    };
    if old_number < next_revision {
        annotations.insert(REVISION.to_owned(), next_revision.to_string());
        changed = true;
        // It had a revision before: this is a rollback to it.
        if let Some(old) = old {
            let history = annotations.entry(REVISION_HISTORY.to_owned()).or_default();
            append_to_history(history, &old);
        }
    }
    changed
}

fn append_to_history(history: &mut String, revision: &str) {
    let mut revisions: Vec<&str> = history.split(',').filter(|text| !text.is_empty()).collect();
    revisions.push(revision);
    let mut length: usize = revisions.iter().map(|text| text.len() + 1).sum();
    let mut from = 0;
    while length > HISTORY_BYTES && from + 1 < revisions.len() {
        length -= revisions[from].len() + 1;
        from += 1;
    }
    *history = revisions[from..].join(",");
}

/// Notes for which size of the Deployment the ReplicaSet is sized; whether that changed anything.
pub(super) fn annotate_size(rs: &mut ReplicaSet, deployment: &Deployment) -> bool {
    let replicas = desired(deployment);
    let sizes = [(DESIRED_REPLICAS, replicas), (MAX_REPLICAS, replicas + max_surge(deployment))];
    let annotations: &mut BTreeMap<_, _> = rs.metadata.annotations.get_or_insert_default();
    let mut changed = false;
    for (key, value) in sizes {
        let value = value.to_string();
        if annotations.get(key) != Some(&value) {
            annotations.insert(key.to_owned(), value);
            changed = true;
        }
    }
    changed
}

/// The old ones to forget: the earliest revisions beyond the history limit that have no pods any more.
pub(super) fn plan_cleanup(deployment: &Deployment, old: &[Arc<ReplicaSet>]) -> Vec<Arc<ReplicaSet>> {
    let limit = deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(i32::MAX);
    if limit == i32::MAX {
        return Vec::new();
    }
    let mut staying: Vec<_> = old.iter().filter(|rs| rs.metadata.deletion_timestamp.is_none()).cloned().collect();
    let surplus = staying.len().saturating_sub(usize::try_from(limit).unwrap_or_default());
    staying.sort_by(|a, b| revision(a).cmp(&revision(b)).then_with(|| by_age(a, b)));
    staying.truncate(surplus);
    let observed = |rs: &ReplicaSet| rs.status.as_ref().and_then(|status| status.observed_generation);
    staying.retain(|rs| actual(rs) == 0 && size(rs) == 0 && rs.metadata.generation <= observed(rs));
    staying
}

#[cfg(test)]
mod tests {
    use super::{super::fixture, *};

    fn annotation<'a>(rs: &'a ReplicaSet, key: &str) -> Option<&'a str> {
        rs.metadata.annotations.as_ref().and_then(|all| all.get(key)).map(String::as_str)
    }

    #[test]
    fn the_oldest_with_the_present_template_is_the_new_one() {
        let deployment = fixture::deployment("replicas=3 image=v2");
        let sets = vec![
            fixture::replica_set("a replicas=1 image=v1 created=10"),
            fixture::replica_set("c replicas=0 image=v2 created=30"),
            fixture::replica_set("b replicas=2 image=v2 created=20"),
        ];
        let sets = ReplicaSets::of(&deployment, sets);
        assert_eq!(sets.new.as_deref().map(name), Some("b"));
        assert_eq!(sets.old.iter().map(|rs| name(rs)).collect::<Vec<_>>(), ["a", "c"]);
    }

    #[test]
    fn a_new_replica_set_carries_hash_revision_and_sizes() {
        let mut deployment = fixture::deployment("replicas=4 image=v2 surge=25% unavailable=25%");
        deployment.metadata.annotations = Some(
            [("kubernetes.io/change-cause".to_owned(), "v2".to_owned()), (REVISION.to_owned(), "9".to_owned())].into(),
        );
        let sets = ReplicaSets::of(&deployment, vec![fixture::replica_set("a replicas=4 image=v1 revision=6")]);
        let rs = new_replica_set(&deployment, &sets, 1).unwrap().unwrap();
        assert_eq!(annotation(&rs, REVISION), Some("7"));
        assert_eq!((annotation(&rs, DESIRED_REPLICAS), annotation(&rs, MAX_REPLICAS)), (Some("4"), Some("5")));
        assert_eq!(annotation(&rs, "kubernetes.io/change-cause"), Some("v2"));
        let hash = rs.metadata.labels.as_ref().and_then(|labels| labels.get(HASH_LABEL)).cloned().unwrap();
        assert_eq!(name(&rs), format!("web-{hash}"));
        let selector = rs.spec.unwrap().selector.match_labels.unwrap();
        assert_eq!(selector.get(HASH_LABEL), Some(&hash));
    }

    #[test]
    fn rolling_back_raises_the_revision_and_remembers_the_old_one() {
        let deployment = fixture::deployment("replicas=3 image=v1");
        let mut rs = (*fixture::replica_set("a replicas=0 image=v1 revision=1")).clone();
        assert!(annotate_new(&mut rs, &deployment, 3));
        assert_eq!((annotation(&rs, REVISION), annotation(&rs, REVISION_HISTORY)), (Some("3"), Some("1")));
        assert!(!annotate_new(&mut rs, &deployment, 3));
        assert!(annotate_new(&mut rs, &deployment, 5));
        assert_eq!(annotation(&rs, REVISION_HISTORY), Some("1,3"));
    }

    #[test]
    fn the_history_stays_short() {
        let mut history = String::new();
        for revision in 0..1000 {
            append_to_history(&mut history, &revision.to_string());
        }
        assert!(history.len() <= HISTORY_BYTES && history.ends_with(",998,999"), "{}", history.len());
    }

    #[test]
    fn the_earliest_revisions_without_pods_are_forgotten() {
        let deployment = fixture::deployment("replicas=3 image=v9 history=1");
        let old = [
            fixture::replica_set("c replicas=0 revision=3"),
            fixture::replica_set("a replicas=0 revision=1"),
            fixture::replica_set("b replicas=1 revision=2"),
        ];
        let names: Vec<_> = plan_cleanup(&deployment, &old).iter().map(|rs| name(rs).to_owned()).collect();
        assert_eq!(names, ["a"]);
    }
}
