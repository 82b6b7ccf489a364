//! Makes the claims of pods that name a template, and frees claims whose pods are gone.

mod plan;

use std::{collections::BTreeMap, sync::Arc};

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches, controller_key},
    error::ignore_not_found,
    events::{Recorder, reference},
    informer::{Lister, SharedInformer},
};
use k8s_openapi::api::{
    core::v1::{Pod, PodResourceClaim},
    resource::v1::{ResourceClaim, ResourceClaimConsumerReference, ResourceClaimTemplate},
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::json;

use self::plan::{FINALIZER, POD_CLAIM, is_done, new_claim, without_stale};
use crate::{
    context::Context,
    error::SyncError,
    expectations::Expectations,
    finalizers::{has_finalizer, remove_finalizer},
    owner::{CONTROLLER_INDEX, index_by_controller, is_controlled_by},
    pod::node_name,
    pod_control::said,
};

/// Prefix of keys that stand for a pod; others stand for claims.
const POD: &str = "pod:";

pub(crate) struct ResourceClaimController {
    client: Client,
    recorder: Recorder,
    pods: SharedInformer<Pod>,
    pod_lister: Lister<Pod>,
    claims: SharedInformer<ResourceClaim>,
    claim_lister: Lister<ResourceClaim>,
    templates: SharedInformer<ResourceClaimTemplate>,
    template_lister: Lister<ResourceClaimTemplate>,
    expectations: Expectations,
}

impl ResourceClaimController {
    pub(crate) fn new(context: &Context) -> Self {
        let pods = context.informers.informer::<Pod>();
        let claims = context.informers.informer::<ResourceClaim>();
        let templates = context.informers.informer::<ResourceClaimTemplate>();
        claims.add_index(CONTROLLER_INDEX, index_by_controller);
        Self {
            client: context.client.clone(),
            recorder: context.recorder.clone(),
            pod_lister: pods.lister(),
            pods,
            claim_lister: claims.lister(),
            claims,
            template_lister: templates.lister(),
            templates,
            expectations: Expectations::default(),
        }
    }

    fn claims_in(&self, namespace: &str) -> Api<ResourceClaim> {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn sync_pod(&self, key: &ObjectKey, queue_key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(pod) = self.pod_lister.get(key).filter(|pod| !is_done(pod)) else {
            self.expectations.forget(queue_key);
            return Ok(Action::await_change());
        };
        if !self.expectations.are_met(queue_key, &self.claim_lister) {
            return Ok(Action::await_change());
        }
        let entries = pod.spec.as_ref().and_then(|spec| spec.resource_claims.as_deref()).unwrap_or_default();
        let mut names = BTreeMap::new();
        for entry in entries.iter().filter(|entry| entry.resource_claim_template_name.is_some()) {
            match self.ensure(queue_key, &pod, entry).await {
                Ok(name) => {
                    names.insert(entry.name.clone(), name);
                }
                Err(err) => {
                    let text = format!("PodResourceClaim {}: {err}", entry.name);
                    self.recorder.warning(&reference(&*pod), "FailedResourceClaimCreation", text);
                    return Err(err);
                }
            }
        }
        let known =
            pod.status.as_ref().and_then(|status| status.resource_claim_statuses.as_deref()).unwrap_or_default();
        let is_told = |(entry, name): (&String, &String)| {
            known.iter().any(|status| status.name == *entry && status.resource_claim_name.as_ref() == Some(name))
        };
        if !names.iter().all(is_told) {
            let statuses: Vec<_> =
                names.iter().map(|(entry, name)| json!({ "name": entry, "resourceClaimName": name })).collect();
            let patch =
                json!({ "metadata": { "uid": pod.metadata.uid }, "status": { "resourceClaimStatuses": statuses } });
            let api = Api::<Pod>::namespaced(self.client.clone(), key.namespace());
            ignore_not_found(api.patch_status(key.name(), &PatchParams::default(), &Patch::Strategic(patch)).await)?;
        }
        // A pod that no scheduler saw has nobody else who reserves its claims.
        if !node_name(&pod).is_empty() {
            let direct = entries.iter().filter_map(|entry| entry.resource_claim_name.clone());
            for name in names.into_values().chain(direct) {
                self.reserve(&pod, &ObjectKey::new(key.namespace(), &name)).await?;
            }
        }
        Ok(Action::await_change())
    }

    /// The name of the entry's claim, which is made if there is none.
    async fn ensure(&self, queue_key: &ObjectKey, pod: &Pod, entry: &PodResourceClaim) -> Result<String, SyncError> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let is_its = |claim: &Arc<ResourceClaim>| {
            let annotations = claim.metadata.annotations.as_ref();
            annotations.and_then(|all| all.get(POD_CLAIM)) == Some(&entry.name)
        };
        if let Some(claim) = self.claim_lister.by_index(CONTROLLER_INDEX, uid).into_iter().find(is_its) {
            return Ok(claim.metadata.name.clone().unwrap_or_default());
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let template = entry.resource_claim_template_name.as_deref().unwrap_or_default();
        let template = self.template_lister.get(&ObjectKey::new(namespace, template)).ok_or_else(|| {
            SyncError::NotYet(format!(
                "resource claim template {template:?}: resourceclaimtemplate.resource.k8s.io {template:?} not found"
            ))
        })?;
        let created = self
            .claims_in(namespace)
            .create(&PostParams::default(), &new_claim(pod, entry, &template))
            .await
            .map_err(|err| SyncError::NotYet(format!("create ResourceClaim : {}", said(&err))))?;
        self.expectations.wrote(queue_key, &created);
        Ok(created.metadata.name.unwrap_or_default())
    }

    async fn reserve(&self, pod: &Pod, key: &ObjectKey) -> Result<(), SyncError> {
        let Some(claim) = self.claim_lister.get(key) else { return Ok(()) };
        let status = claim.status.clone().unwrap_or_default();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let is_reserved = status.reserved_for.iter().flatten().any(|user| user.uid == uid);
        if status.allocation.is_none() || is_reserved {
            return Ok(());
        }
        let mut written = (*claim).clone();
        written.status.get_or_insert_default().reserved_for.get_or_insert_default().push(
            ResourceClaimConsumerReference {
                api_group: None,
                resource: "pods".to_owned(),
                name: pod.metadata.name.clone().unwrap_or_default(),
                uid,
            },
        );
        self.claims_in(key.namespace()).replace_status(key.name(), &PostParams::default(), &written).await?;
        Ok(())
    }

    /// Whether the user of a claim is still to be reckoned with.
    async fn lives(&self, namespace: &str, user: &ResourceClaimConsumerReference) -> Result<bool, SyncError> {
        if user.resource != "pods" || user.api_group.as_ref().is_some_and(|group| !group.is_empty()) {
            return Ok(true);
        }
        let mut pod = self.pod_lister.get(&ObjectKey::new(namespace, &user.name));
        if pod.as_ref().is_none_or(|pod| pod.metadata.uid.as_ref() != Some(&user.uid)) {
            // The cache may not have it yet.
            let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
            pod = api.get_opt(&user.name).await?.map(Arc::new);
        }
        Ok(pod.is_some_and(|pod| pod.metadata.uid.as_ref() == Some(&user.uid) && !is_done(&pod)))
    }

    async fn sync_claim(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(claim) = self.claim_lister.get(key) else { return Ok(Action::await_change()) };
        let api = self.claims_in(key.namespace());
        let mut claim = (*claim).clone();
        let status = claim.status.clone().unwrap_or_default();
        let mut living = Vec::new();
        for user in status.reserved_for.iter().flatten() {
            if self.lives(key.namespace(), user).await? {
                living.push(user.uid.clone());
            }
        }
        if let Some(kept) = without_stale(&status, |user| living.contains(&user.uid)) {
            claim.status = Some(kept);
            claim = api.replace_status(key.name(), &PostParams::default(), &claim).await?;
        }
        let is_leaving = claim.metadata.deletion_timestamp.is_some();
        if is_leaving && living.is_empty() && claim.status.as_ref().is_some_and(|status| status.allocation.is_some()) {
            claim.status.get_or_insert_default().allocation = None;
            claim = api.replace_status(key.name(), &PostParams::default(), &claim).await?;
        }
        let is_free = claim.status.as_ref().is_none_or(|status| status.allocation.is_none());
        if is_free && has_finalizer(&claim, FINALIZER) {
            remove_finalizer(&api, &claim, FINALIZER).await?;
            return Ok(Action::await_change());
        }
        // A claim that was made for a pod is of no use after it.
        if let Some(owner) = controller_key::<Pod>(&claim).filter(|_| !is_leaving) {
            let pod = self.pod_lister.get(&owner).filter(|pod| is_controlled_by(&claim, &**pod));
            if pod.is_some_and(|pod| is_done(&pod)) {
                let same = Preconditions { uid: claim.metadata.uid.clone(), resource_version: None };
                ignore_not_found(api.delete(key.name(), &DeleteParams::default().preconditions(same)).await)?;
            }
        }
        Ok(Action::await_change())
    }
}

impl Controller for ResourceClaimController {
    const NAME: &'static str = "resource_claim";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        let pod_key = |key: &ObjectKey| ObjectKey::from(&*format!("{POD}{key}"));
        let claims = self.claim_lister.clone();
        watches.map(&self.pods, move |event| {
            let pod = event.object();
            let entries = pod.spec.as_ref().and_then(|spec| spec.resource_claims.as_deref()).unwrap_or_default();
            if entries.is_empty() {
                return Vec::new();
            }
            let mut keys = vec![pod_key(&event.key())];
            if event.now().is_none_or(|pod| is_done(pod)) {
                let own = claims.by_index(CONTROLLER_INDEX, pod.metadata.uid.as_deref().unwrap_or_default());
                keys.extend(own.iter().map(|claim| ObjectKey::of(&**claim)));
                let direct = entries.iter().filter_map(|entry| entry.resource_claim_name.as_deref());
                keys.extend(direct.map(|name| ObjectKey::new(event.key().namespace(), name)));
            }
            keys
        });
        watches.map(&self.claims, move |event| {
            [Some(event.key()), controller_key::<Pod>(&**event.object()).map(|key| pod_key(&key))].into_iter().flatten()
        });
        let pods = self.pod_lister.clone();
        watches.map(&self.templates, move |event| {
            let key = event.key();
            let waits = |pod: &Pod| {
                let entries = pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten());
                pod.metadata.namespace.as_deref() == Some(key.namespace())
                    && entries.into_iter().any(|e| e.resource_claim_template_name.as_deref() == Some(key.name()))
            };
            pods.filter(waits).iter().map(|pod| pod_key(&ObjectKey::of(&**pod))).collect::<Vec<_>>()
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        match key.as_str().strip_prefix(POD) {
            Some(pod) => self.sync_pod(&ObjectKey::from(pod), key).await,
            None => self.sync_claim(key).await,
        }
    }
}
