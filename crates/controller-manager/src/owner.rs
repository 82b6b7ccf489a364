//! Who controls what: finding the objects of a controller, adopting orphans, releasing what no longer matches.

use std::sync::Arc;

use client::{
    error::ApiError,
    informer::{Kind, Lister},
};
use k8s_openapi::{
    NamespaceResourceScope,
    apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference},
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
    core::Selector,
};
use serde_json::json;

use crate::{error::SyncError, selector::selects};

/// Finds objects by the uid of their controller; those without one stand under [`orphan_of`] their namespace.
pub(crate) const CONTROLLER_INDEX: &str = "controller";

/// Values of [`CONTROLLER_INDEX`].
pub(crate) fn index_by_controller<K: Kind>(object: &K) -> Vec<String> {
    vec![match controller_of(object) {
        Some(owner) => owner.uid.clone(),
        None => orphan_of(object.meta().namespace.as_deref().unwrap_or_default()),
    }]
}

fn orphan_of(namespace: &str) -> String {
    format!("orphans/{namespace}")
}

pub(crate) fn controller_of(object: &impl Resource) -> Option<&OwnerReference> {
    object.meta().owner_references.as_deref()?.iter().find(|owner| owner.controller == Some(true))
}

/// Whether `object` is controlled by the very object that `owner` is, not by a namesake.
pub(crate) fn is_controlled_by(object: &impl Resource, owner: &impl Resource) -> bool {
    controller_of(object).is_some_and(|reference| Some(&reference.uid) == owner.meta().uid.as_ref())
}

/// The reference that makes `owner` the controller of what carries it.
pub(crate) fn controller_reference<O: Kind>(owner: &O) -> OwnerReference {
    OwnerReference {
        api_version: O::api_version(&()).into_owned(),
        kind: O::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The objects that `owner` controls or could adopt. Needs [`CONTROLLER_INDEX`].
pub(crate) fn candidates<O: Kind, K: Kind>(lister: &Lister<K>, owner: &O) -> Vec<Arc<K>> {
    let mut found = lister.by_index(CONTROLLER_INDEX, owner.meta().uid.as_deref().unwrap_or_default());
    found.extend(lister.by_index(CONTROLLER_INDEX, &orphan_of(owner.meta().namespace.as_deref().unwrap_or_default())));
    found
}

/// The orphans of a namespace, for handlers that ask whose they could be.
pub(crate) fn is_orphan(object: &impl Resource) -> bool {
    controller_of(object).is_none()
}

/// What a controller has to do about an object that it found.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Claim {
    Keep,
    Ignore,
    Adopt,
    Release,
}

fn plan_claim(owner: &impl Resource, selector: &Selector, object: &impl Resource) -> Claim {
    let matches = selects(selector, object.meta().labels.as_ref());
    let owner_leaves = owner.meta().deletion_timestamp.is_some();
    match controller_of(object) {
        Some(reference) if Some(&reference.uid) != owner.meta().uid.as_ref() => Claim::Ignore,
        Some(_) if matches => Claim::Keep,
        Some(_) if owner_leaves => Claim::Ignore,
        Some(_) => Claim::Release,
        None if owner_leaves || !matches || object.meta().deletion_timestamp.is_some() => Claim::Ignore,
        None => Claim::Adopt,
    }
}

/// Splits `found` into what belongs to `owner`, adopting and releasing on the way. Before the first adoption the server
/// is asked whether the owner still lives, since a cache may be behind a deletion.
pub(crate) async fn claim<O, K>(
    client: &Client,
    owner: &O,
    selector: &Selector,
    found: Vec<Arc<K>>,
) -> Result<Vec<Arc<K>>, SyncError>
where
    O: Kind + Resource<Scope = NamespaceResourceScope>,
    K: Kind + Resource<Scope = NamespaceResourceScope>,
{
    let namespace = owner.meta().namespace.as_deref().unwrap_or_default();
    let api = Api::<K>::namespaced(client.clone(), namespace);
    let mut may_adopt = None;
    let mut claimed = Vec::with_capacity(found.len());
    for object in found {
        match plan_claim(owner, selector, &*object) {
            Claim::Keep => claimed.push(object),
            Claim::Ignore => {}
            Claim::Adopt => {
                if may_adopt.is_none() {
                    may_adopt = Some(still_lives(client, owner).await?);
                }
                if may_adopt == Some(true) && adopt(&api, owner, &*object).await? {
                    claimed.push(object);
                }
            }
            Claim::Release => release(&api, owner, &*object).await?,
        }
    }
    Ok(claimed)
}

async fn still_lives<O>(client: &Client, owner: &O) -> Result<bool, SyncError>
where
    O: Kind + Resource<Scope = NamespaceResourceScope>,
{
    let meta = owner.meta();
    let api = Api::<O>::namespaced(client.clone(), meta.namespace.as_deref().unwrap_or_default());
    let fresh = api.get_opt(meta.name.as_deref().unwrap_or_default()).await?;
    Ok(fresh.is_some_and(|fresh| fresh.meta().uid == meta.uid && fresh.meta().deletion_timestamp.is_none()))
}

/// Whether the object is ours now; one that went away meanwhile is nobody's.
async fn adopt<O: Kind, K: Kind>(api: &Api<K>, owner: &O, object: &K) -> Result<bool, SyncError> {
    let reference = controller_reference(owner);
    let patch = json!({ "metadata": { "uid": object.meta().uid, "ownerReferences": [reference] } });
    let name = object.meta().name.as_deref().unwrap_or_default();
    match api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
        Ok(_) => Ok(true),
        Err(err) if err.is_not_found() || err.is_conflict() => Ok(false),
        Err(err) => Err(err.into()),
    }
}

async fn release<O: Kind, K: Kind>(api: &Api<K>, owner: &O, object: &K) -> Result<(), SyncError> {
    let reference = json!({ "$patch": "delete", "uid": owner.meta().uid });
    let patch = json!({ "metadata": { "uid": object.meta().uid, "ownerReferences": [reference] } });
    let name = object.meta().name.as_deref().unwrap_or_default();
    match api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
        Ok(_) => Ok(()),
        // Gone, or it is another object by now, or the reference was gone already.
        Err(err) if err.is_not_found() || err.is_conflict() || err.is_invalid() => Ok(()),
        Err(err) => Err(err.into()),
    }
}

/// Whether the object's labels fall under the selector of a spec; an unreadable or missing selector matches nothing.
pub(crate) fn could_own(selector: Option<&LabelSelector>, object: &impl Resource) -> bool {
    let selector = crate::selector::selector_of(selector).ok().flatten();
    selector.is_some_and(|selector| !selector.selects_all() && selects(&selector, object.meta().labels.as_ref()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::{apps::v1::ReplicaSet, core::v1::Pod},
        apimachinery::pkg::apis::meta::v1::Time,
    };
    use kube::core::ObjectMeta;

    use super::*;

    fn check(owner_leaves: bool, controller: Option<&str>, label: &str, pod_leaves: bool, want: Claim) {
        let leaving = |leaves: bool| leaves.then_some(Time(jiff::Timestamp::UNIX_EPOCH));
        let owner = ReplicaSet {
            metadata: ObjectMeta {
                uid: Some("me".into()),
                deletion_timestamp: leaving(owner_leaves),
                ..ObjectMeta::default()
            },
            ..ReplicaSet::default()
        };
        let references = controller
            .map(|uid| vec![OwnerReference { uid: uid.into(), controller: Some(true), ..OwnerReference::default() }]);
        let pod = Pod {
            metadata: ObjectMeta {
                owner_references: references,
                labels: Some([("app".to_owned(), label.to_owned())].into()),
                deletion_timestamp: leaving(pod_leaves),
                ..ObjectMeta::default()
            },
            ..Pod::default()
        };
        let selector: Selector = [("app", "web")].into_iter().collect();
        assert_eq!(plan_claim(&owner, &selector, &pod), want);
    }

    #[test]
    fn what_matches_is_kept_or_adopted_and_what_does_not_is_released() {
        check(false, Some("me"), "web", false, Claim::Keep);
        check(false, Some("me"), "web", true, Claim::Keep);
        check(false, Some("me"), "db", false, Claim::Release);
        check(false, Some("other"), "web", false, Claim::Ignore);
        check(false, None, "web", false, Claim::Adopt);
        check(false, None, "db", false, Claim::Ignore);
        check(false, None, "web", true, Claim::Ignore);
    }

    #[test]
    fn an_owner_that_leaves_neither_adopts_nor_releases() {
        check(true, Some("me"), "web", false, Claim::Keep);
        check(true, Some("me"), "db", false, Claim::Ignore);
        check(true, None, "web", false, Claim::Ignore);
    }
}
