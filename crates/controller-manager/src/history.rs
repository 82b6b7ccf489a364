//! The revisions of a pod template that DaemonSets and StatefulSets keep, as ControllerRevisions.

use std::{collections::BTreeMap, sync::Arc};

use client::{error::ApiError, informer::Kind};
use k8s_openapi::{
    api::{apps::v1::ControllerRevision, core::v1::PodTemplateSpec},
    apimachinery::pkg::runtime::RawExtension,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, PostParams},
    core::ObjectMeta,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{error::SyncError, owner::controller_reference};

/// The patch that brings an object back to this template.
pub(crate) fn data_of(template: &PodTemplateSpec) -> Result<Value, SyncError> {
    let mut template = serde_json::to_value(template)?;
    template["$patch"] = json!("replace");
    Ok(json!({ "spec": { "template": template } }))
}

/// A revision as it would be created, with its hash as the value of `hash_label`.
pub(crate) fn revision_of<O: Kind>(
    owner: &O,
    data: Value,
    labels: BTreeMap<String, String>,
    hash_label: &str,
    collisions: Option<i32>,
) -> ControllerRevision {
    let hash = hash_of(&data, collisions);
    let mut labels = labels;
    labels.insert(hash_label.to_owned(), hash.clone());
    let name = owner.meta().name.as_deref().unwrap_or_default();
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{hash}")),
            namespace: owner.meta().namespace.clone(),
            labels: Some(labels),
            annotations: owner.meta().annotations.clone().map(|mut annotations| {
                annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
                annotations
            }),
            owner_references: Some(vec![controller_reference(owner)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data)),
        revision: 0,
    }
}

fn hash_of(data: &Value, collisions: Option<i32>) -> String {
    const SAFE: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut hasher = Sha256::new();
    hasher.update(data.to_string());
    hasher.update(collisions.unwrap_or_default().to_le_bytes());
    hasher.finalize().iter().take(10).map(|byte| char::from(SAFE[usize::from(*byte) % SAFE.len()])).collect()
}

/// Whether both bring back the same template. What another implementation wrote may differ in fields that say nothing,
/// such as a null for a time.
pub(crate) fn has_same_data(a: &ControllerRevision, b: &ControllerRevision) -> bool {
    let data = |revision: &ControllerRevision| revision.data.as_ref().map(|data| data.0.clone());
    let (a, b) = (data(a), data(b));
    a == b || (a.is_some() && a.as_ref().and_then(template_of) == b.as_ref().and_then(template_of))
}

/// The template that the patch of a revision brings back.
pub(crate) fn template_of(data: &Value) -> Option<PodTemplateSpec> {
    serde_json::from_value(data.get("spec")?.get("template")?.clone()).ok()
}

/// Oldest first.
pub(crate) fn sort(revisions: &mut [Arc<ControllerRevision>]) {
    revisions.sort_by(|a, b| {
        let created = |revision: &ControllerRevision| revision.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (a.revision, created(a), &a.metadata.name).cmp(&(b.revision, created(b), &b.metadata.name))
    });
}

/// What to do so that the present template has the newest revision.
#[derive(Debug, PartialEq)]
pub(crate) enum Plan {
    /// The newest is it.
    Current(Arc<ControllerRevision>),
    /// An earlier one is it: this is a rollback.
    Raise(Arc<ControllerRevision>, i64),
    /// None is it.
    Create(i64),
}

pub(crate) fn plan(wanted: &ControllerRevision, sorted: &[Arc<ControllerRevision>]) -> Plan {
    let newest = sorted.last().map(|revision| revision.revision).unwrap_or_default();
    match sorted.iter().rfind(|known| has_same_data(known, wanted)) {
        Some(same) if same.revision == newest => Plan::Current(same.clone()),
        Some(same) => Plan::Raise(same.clone(), newest + 1),
        None => Plan::Create(newest + 1),
    }
}

/// Carries the plan out. `Err(None)`: the name is taken by other content, and the count of collisions has to grow.
pub(crate) async fn ensure(
    api: &Api<ControllerRevision>,
    wanted: ControllerRevision,
    sorted: &[Arc<ControllerRevision>],
) -> Result<ControllerRevision, Option<SyncError>> {
    let params = PostParams::default();
    match plan(&wanted, sorted) {
        Plan::Current(current) => Ok((*current).clone()),
        Plan::Raise(known, revision) => {
            let raised = ControllerRevision { revision, ..(*known).clone() };
            api.replace(&raised.name_any(), &params, &raised).await.map_err(|err| Some(err.into()))
        }
        Plan::Create(revision) => {
            let wanted = ControllerRevision { revision, ..wanted };
            match api.create(&params, &wanted).await {
                Ok(created) => Ok(created),
                Err(err) if err.is_already_exists() => {
                    let known = api.get(&wanted.name_any()).await.map_err(|err| Some(err.into()))?;
                    if has_same_data(&known, &wanted) { Ok(known) } else { Err(None) }
                }
                Err(err) => Err(Some(err.into())),
            }
        }
    }
}

/// Deletes the oldest revisions that nothing uses, beyond `limit`.
pub(crate) async fn truncate(
    api: &Api<ControllerRevision>,
    sorted: &[Arc<ControllerRevision>],
    is_used: impl Fn(&ControllerRevision) -> bool,
    limit: usize,
) -> Result<(), SyncError> {
    let unused: Vec<_> = sorted.iter().filter(|revision| !is_used(revision)).collect();
    for old in unused.iter().take(unused.len().saturating_sub(limit)) {
        client::error::ignore_not_found(api.delete(&old.name_any(), &DeleteParams::default()).await)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(number: i64, content: &str) -> Arc<ControllerRevision> {
        let template = json!({ "metadata": { "creationTimestamp": null, "labels": { "app": content } } });
        Arc::new(ControllerRevision {
            revision: number,
            data: Some(RawExtension(json!({ "spec": { "template": template } }))),
            ..ControllerRevision::default()
        })
    }

    #[test]
    fn new_content_gets_a_new_number_and_old_content_is_raised() {
        let known = [revision(1, "a"), revision(2, "b")];
        assert_eq!(plan(&revision(0, "b"), &known), Plan::Current(known[1].clone()));
        assert_eq!(plan(&revision(0, "a"), &known), Plan::Raise(known[0].clone(), 3));
        assert_eq!(plan(&revision(0, "c"), &known), Plan::Create(3));
        assert_eq!(plan(&revision(0, "c"), &[]), Plan::Create(1));
        let labels = Some([("app".to_owned(), "b".to_owned())].into());
        let template = PodTemplateSpec { metadata: Some(ObjectMeta { labels, ..ObjectMeta::default() }), spec: None };
        let ours = ControllerRevision { data: Some(RawExtension(data_of(&template).unwrap())), ..Default::default() };
        assert_eq!(plan(&ours, &known), Plan::Current(known[1].clone()));
    }
}
