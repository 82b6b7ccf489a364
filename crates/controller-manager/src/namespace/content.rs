//! Everything in one namespace: finding it by discovery, deleting it, counting what stays.

use std::{collections::BTreeMap, time::Duration};

use client::error::ApiError;
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, ListParams, PropagationPolicy},
};

use crate::{
    discovery::{self, Resource},
    pod_control::said,
};

/// Kinds worked on at once.
const AT_ONCE: usize = 8;

/// What one pass over the namespace found.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Outcome {
    /// Why the kinds are not all known.
    pub(super) discovery_failure: Option<String>,
    /// Why things could not be deleted or counted.
    pub(super) failures: Vec<String>,
    /// How many of each resource are left.
    pub(super) remaining: BTreeMap<String, usize>,
    /// How many of those that are left wait for each finalizer.
    pub(super) finalizers: BTreeMap<String, usize>,
    /// How long the longest of the remaining pods may take to end.
    pub(super) grace: Option<Duration>,
}

impl Outcome {
    /// Nothing is left and nothing could be missed.
    pub(super) fn is_empty(&self) -> bool {
        self.discovery_failure.is_none() && self.failures.is_empty() && self.remaining.is_empty()
    }

    /// When to look again, if only time is missing: half of the longest pod's grace, as upstream has it, but soon if the
    /// pods end early.
    pub(super) fn wait(&self) -> Option<Duration> {
        if self.discovery_failure.is_some() || !self.failures.is_empty() {
            return None;
        }
        Some(self.grace.map_or(Duration::from_secs(1), |grace| grace / 2 + Duration::from_secs(1)).min(POLL))
    }

    fn add(&mut self, resource: &Resource, left: Left) {
        if left.count > 0 {
            self.remaining.insert(format!("{}.", resource_name(resource)), left.count);
        }
        for (finalizer, count) in left.finalizers {
            *self.finalizers.entry(finalizer).or_default() += count;
        }
        self.failures.extend(left.failure);
    }
}

/// No namespace waits longer for the next look while its pods end.
const POLL: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Left {
    count: usize,
    finalizers: BTreeMap<String, usize>,
    failure: Option<String>,
}

/// `pods` or `deployments.apps`, as upstream names what remains.
fn resource_name(resource: &Resource) -> String {
    resource.name()
}

/// Deletes what can be deleted. While pods remain nothing else goes: what they use must outlive them.
pub(super) async fn delete_all(client: &Client, namespace: &str) -> Outcome {
    let mut outcome = Outcome::default();
    let discovered = match discovery::discover(client).await {
        Ok(discovered) => discovered,
        Err(err) => {
            outcome.discovery_failure = Some(said(&err));
            return outcome;
        }
    };
    if !discovered.stale.is_empty() {
        outcome.discovery_failure = Some(format!(
            "Discovery failed for some groups, {} failing: unable to retrieve the complete list of server APIs: {}",
            discovered.stale.len(),
            discovered
                .stale
                .iter()
                .map(|group| format!("{group}: stale GroupVersion discovery: {group}"))
                .collect::<Vec<_>>()
                .join(", ")
        ));
    }
    let deletable = |resource: &Resource| resource.is_namespaced && resource.can("list") && resource.can("delete");
    let (pods, others): (Vec<_>, Vec<_>) = discovered
        .resources
        .into_iter()
        .filter(deletable)
        .partition(|resource| resource.api.group.is_empty() && resource.api.plural == "pods");
    for resource in &pods {
        let left = delete_kind(client, namespace, resource).await;
        if left.count > 0 {
            outcome.grace = pod_grace(client, namespace).await;
        }
        outcome.add(resource, left);
    }
    if !outcome.remaining.is_empty() {
        return outcome;
    }
    let lefts: Vec<_> = stream::iter(others)
        .map(|resource| async move {
            let left = delete_kind(client, namespace, &resource).await;
            (resource, left)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    for (resource, left) in lefts {
        outcome.add(&resource, left);
    }
    outcome
}

/// Deletes all objects of one kind, if there are any, and says what is left.
async fn delete_kind(client: &Client, namespace: &str, resource: &Resource) -> Left {
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &resource.api);
    match try_delete_kind(&api, resource).await {
        Ok(left) => left,
        // The kind itself went away, or does not do what its discovery says.
        Err(err) if err.is_not_found() || err.is_reason(405, "MethodNotAllowed") => Left::default(),
        Err(err) => Left { failure: Some(said(&err)), ..Left::default() },
    }
}

async fn try_delete_kind(api: &Api<DynamicObject>, resource: &Resource) -> Result<Left, kube::Error> {
    let present = api.list_metadata(&ListParams::default()).await?.items;
    if present.is_empty() {
        return Ok(Left::default());
    }
    let background =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
    if resource.can("deletecollection") {
        api.delete_collection(&background, &ListParams::default()).await?;
    } else {
        for object in present.iter().filter(|object| object.metadata.deletion_timestamp.is_none()) {
            let name = object.metadata.name.as_deref().unwrap_or_default();
            client::error::ignore_not_found(api.delete(name, &background).await)?;
        }
    }
    let mut left = Left::default();
    for object in api.list_metadata(&ListParams::default()).await? {
        left.count += 1;
        for finalizer in object.metadata.finalizers.unwrap_or_default() {
            *left.finalizers.entry(finalizer).or_default() += 1;
        }
    }
    Ok(left)
}

async fn pod_grace(client: &Client, namespace: &str) -> Option<Duration> {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace).list(&ListParams::default()).await.ok()?;
    let seconds = |pod: Pod| pod.spec.and_then(|spec| spec.termination_grace_period_seconds).unwrap_or_default();
    let longest = pods.items.into_iter().map(seconds).max()?;
    Some(Duration::from_secs(u64::try_from(longest).unwrap_or_default()))
}
