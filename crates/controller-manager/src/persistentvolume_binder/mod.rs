//! Brings claims and volumes together, and lets go what is no longer claimed.

mod matching;
mod plan;

use std::{sync::Arc, time::Duration};

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    events::{Recorder, reference},
    informer::{Event, Lister, SharedInformer},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
        storage::v1::StorageClass,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{Api, Client, api::PostParams};

use self::{
    matching::{claim_ref, class_of_claim, class_of_volume, names_class},
    plan::{
        BIND_COMPLETED, BOUND_BY_CONTROLLER, ClaimPlan, OLD_PROVISIONER, PROVISIONED_BY, PROVISIONER, VolumePlan,
        has_annotation, migrated, plan_claim, plan_volume, waits_for_consumer,
    },
};
use crate::{
    context::Context,
    error::SyncError,
    pod::node_name,
    pod_claims::{CLAIM_INDEX, index_by_claim},
};

const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// Finds claims by their class, and volumes too.
const CLASS_INDEX: &str = "class";
const YES: &str = "yes";

pub(crate) struct PersistentVolumeBinder {
    client: Client,
    recorder: Recorder,
    claims: SharedInformer<PersistentVolumeClaim>,
    claim_lister: Lister<PersistentVolumeClaim>,
    volumes: SharedInformer<PersistentVolume>,
    volume_lister: Lister<PersistentVolume>,
    classes: SharedInformer<StorageClass>,
    class_lister: Lister<StorageClass>,
    pods: SharedInformer<Pod>,
    pod_lister: Lister<Pod>,
    sync_period: Duration,
    provisions: bool,
}

impl PersistentVolumeBinder {
    pub(crate) fn new(context: &Context) -> Self {
        let claims = context.informers.informer::<PersistentVolumeClaim>();
        let volumes = context.informers.informer::<PersistentVolume>();
        let classes = context.informers.informer::<StorageClass>();
        let pods = context.informers.informer::<Pod>();
        claims.add_index(CLASS_INDEX, |claim| vec![class_of_claim(claim).to_owned()]);
        volumes.add_index(CLASS_INDEX, |volume| vec![class_of_volume(volume).to_owned()]);
        pods.add_index(CLAIM_INDEX, index_by_claim);
        Self {
            client: context.client.clone(),
            recorder: context.recorder.clone(),
            claim_lister: claims.lister(),
            claims,
            volume_lister: volumes.lister(),
            volumes,
            class_lister: classes.lister(),
            classes,
            pod_lister: pods.lister(),
            pods,
            sync_period: context.config.volume_sync_period,
            provisions: context.config.dynamic_provisioning,
        }
    }

    fn claims_in(&self, namespace: &str) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn volumes_api(&self) -> Api<PersistentVolume> {
        Api::all(self.client.clone())
    }

    // === Claims ===

    async fn sync_claim(&self, key: &ObjectKey, claim: Arc<PersistentVolumeClaim>) -> Result<Action, SyncError> {
        let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
        let named = match self.volume_lister.get(&ObjectKey::cluster(&name)) {
            None if !name.is_empty() => self.volumes_api().get_opt(&name).await?.map(Arc::new),
            known => known,
        };
        let class = self.class_lister.get(&ObjectKey::cluster(class_of_claim(&claim)));
        let waits = waits_for_consumer(&claim, class.as_deref());
        let of_class = self.volume_lister.by_index(CLASS_INDEX, class_of_claim(&claim));
        match plan_claim(&claim, named, &of_class, waits) {
            ClaimPlan::Bind(volume) => {
                self.bind(key, &claim, &volume).await?;
                return Ok(Action::await_change());
            }
            ClaimPlan::Lost(reason, message) => {
                if phase_of(&claim) != "Lost" {
                    self.set_claim_phase(key, &claim, "Lost").await?;
                    self.recorder.warning(&reference(&*claim), reason, message);
                }
                return Ok(Action::await_change());
            }
            ClaimPlan::Pending(why) => {
                if let Some((reason, text)) = why {
                    self.recorder.warning(&reference(&*claim), reason, text);
                }
            }
            ClaimPlan::Unserved => {
                if !names_class(&claim) && self.give_default_class(key, &claim).await? {
                    return Ok(Action::await_change());
                }
                self.explain_or_provision(key, &claim, class.as_deref(), waits).await?;
            }
        }
        self.set_claim_phase(key, &claim, "Pending").await?;
        Ok(Action::requeue(self.sync_period))
    }

    /// The youngest of the default classes, for claims from before there was one.
    async fn give_default_class(&self, key: &ObjectKey, claim: &PersistentVolumeClaim) -> Result<bool, SyncError> {
        let is_default = |class: &StorageClass| {
            let annotations = class.metadata.annotations.as_ref();
            annotations.and_then(|all| all.get(DEFAULT_CLASS)).is_some_and(|value| value == "true")
        };
        let defaults = self.class_lister.filter(is_default);
        let default = defaults.iter().max_by_key(|class| {
            (class.metadata.creation_timestamp.clone(), std::cmp::Reverse(class.metadata.name.clone()))
        });
        let Some(default) = default else { return Ok(false) };
        let mut written = claim.clone();
        written.spec.get_or_insert_default().storage_class_name.clone_from(&default.metadata.name);
        self.claims_in(key.namespace()).replace(key.name(), &PostParams::default(), &written).await?;
        Ok(true)
    }

    async fn explain_or_provision(
        &self,
        key: &ObjectKey,
        claim: &PersistentVolumeClaim,
        class: Option<&StorageClass>,
        waits: bool,
    ) -> Result<(), SyncError> {
        let about = reference(claim);
        let class_name = class_of_claim(claim);
        if waits {
            let unscheduled = self.pod_lister.by_index(CLAIM_INDEX, key.as_str()).into_iter();
            let mut names: Vec<_> = unscheduled
                .filter(|pod| node_name(pod).is_empty())
                .filter_map(|pod| pod.metadata.name.clone())
                .collect();
            names.sort();
            let (reason, text) = if names.is_empty() {
                ("WaitForFirstConsumer", "waiting for first consumer to be created before binding".to_owned())
            } else if names.len() == 1 {
                ("WaitForPodScheduled", format!("waiting for pod {} to be scheduled", names.join(",")))
            } else {
                ("WaitForPodScheduled", format!("waiting for pods {} to be scheduled", names.join(",")))
            };
            self.recorder.normal(&about, reason, text);
            return Ok(());
        }
        if class_name.is_empty() || !self.provisions {
            let text = "no persistent volumes available for this claim and no storage class is set";
            self.recorder.normal(&about, "FailedBinding", text);
            return Ok(());
        }
        let Some(class) = class else {
            let text = format!("storageclass.storage.k8s.io {class_name:?} not found");
            self.recorder.warning(&about, "ProvisioningFailed", text);
            return Ok(());
        };
        let provisioner = migrated(&class.provisioner);
        if provisioner.starts_with("kubernetes.io/") {
            let text = format!("no volume plugin matched name: {provisioner}");
            self.recorder.warning(&about, "ProvisioningFailed", text);
            return Ok(());
        }
        let annotations = claim.metadata.annotations.as_ref();
        if annotations.and_then(|all| all.get(PROVISIONER)).map(String::as_str) != Some(provisioner) {
            let mut written = claim.clone();
            let annotations = written.metadata.annotations.get_or_insert_default();
            annotations.insert(OLD_PROVISIONER.to_owned(), provisioner.to_owned());
            annotations.insert(PROVISIONER.to_owned(), provisioner.to_owned());
            self.claims_in(key.namespace()).replace(key.name(), &PostParams::default(), &written).await?;
        }
        let text = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
        );
        self.recorder.normal(&about, "ExternalProvisioning", text);
        Ok(())
    }

    async fn set_claim_phase(
        &self,
        key: &ObjectKey,
        claim: &PersistentVolumeClaim,
        phase: &str,
    ) -> Result<(), SyncError> {
        if phase_of(claim) == phase {
            return Ok(());
        }
        let mut written = self.claims_in(key.namespace()).get(key.name()).await?;
        written.status.get_or_insert_default().phase = Some(phase.to_owned());
        self.claims_in(key.namespace()).replace_status(key.name(), &PostParams::default(), &written).await?;
        Ok(())
    }

    /// In an order from which every beginning can be gone on with: volume, its phase, claim, its status.
    async fn bind(
        &self,
        key: &ObjectKey,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
    ) -> Result<(), SyncError> {
        let params = PostParams::default();
        let volume_name = volume.metadata.name.clone().unwrap_or_default();
        let mut volume = volume.clone();
        let is_complete = claim_ref(&volume).is_some_and(|named| named.uid == claim.metadata.uid);
        if !is_complete {
            if claim_ref(&volume).is_none() {
                let annotations = volume.metadata.annotations.get_or_insert_default();
                annotations.insert(BOUND_BY_CONTROLLER.to_owned(), YES.to_owned());
            }
            volume.spec.get_or_insert_default().claim_ref = Some(reference(claim));
            volume = self.volumes_api().replace(&volume_name, &params, &volume).await?;
        }
        self.set_volume_phase(&mut volume, "Bound", None).await?;
        let mut claim = claim.clone();
        let is_named = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_ref()) == Some(&volume_name);
        if !is_named || !has_annotation(&claim.metadata, BIND_COMPLETED) {
            let annotations = claim.metadata.annotations.get_or_insert_default();
            if !is_named {
                annotations.insert(BOUND_BY_CONTROLLER.to_owned(), YES.to_owned());
            }
            annotations.insert(BIND_COMPLETED.to_owned(), YES.to_owned());
            claim.spec.get_or_insert_default().volume_name = Some(volume_name);
            claim = self.claims_in(key.namespace()).replace(key.name(), &params, &claim).await?;
        }
        let mut status = claim.status.clone().unwrap_or_default();
        if status.phase.as_deref() != Some("Bound") {
            let offer = volume.spec.clone().unwrap_or_default();
            status.phase = Some("Bound".to_owned());
            status.access_modes = offer.access_modes;
            status.capacity = offer.capacity;
            status.current_volume_attributes_class_name = offer.volume_attributes_class_name;
            claim.status = Some(status);
            self.claims_in(key.namespace()).replace_status(key.name(), &params, &claim).await?;
        }
        Ok(())
    }

    // === Volumes ===

    async fn sync_volume(&self, volume: Arc<PersistentVolume>) -> Result<Option<ObjectKey>, SyncError> {
        let wanted = claim_ref(&volume).map(|named| {
            ObjectKey::new(named.namespace.as_deref().unwrap_or_default(), named.name.as_deref().unwrap_or_default())
        });
        let uid = claim_ref(&volume).and_then(|named| named.uid.clone());
        let mut claim = wanted.as_ref().and_then(|key| self.claim_lister.get(key));
        // Before a volume is let go the server is asked: the cache may be behind.
        if let (Some(key), true) = (&wanted, claim.as_ref().is_none_or(|claim| claim.metadata.uid != uid)) {
            claim = self.claims_in(key.namespace()).get_opt(key.name()).await?.map(Arc::new);
        }
        let mut volume = (*volume).clone();
        match plan_volume(&volume, claim.as_deref()) {
            VolumePlan::Available => self.set_volume_phase(&mut volume, "Available", None).await?,
            VolumePlan::Bound => self.set_volume_phase(&mut volume, "Bound", None).await?,
            VolumePlan::AskClaim => return Ok(wanted),
            VolumePlan::Released => self.release(&mut volume).await?,
            VolumePlan::Unbind => {
                let is_ours = has_annotation(&volume.metadata, BOUND_BY_CONTROLLER);
                if let Some(annotations) = &mut volume.metadata.annotations {
                    annotations.remove(BOUND_BY_CONTROLLER);
                }
                let spec = volume.spec.get_or_insert_default();
                if is_ours {
                    spec.claim_ref = None;
                } else if let Some(named) = &mut spec.claim_ref {
                    named.uid = None;
                }
                let name = volume.metadata.name.clone().unwrap_or_default();
                volume = self.volumes_api().replace(&name, &PostParams::default(), &volume).await?;
                self.set_volume_phase(&mut volume, "Available", None).await?;
            }
        }
        Ok(None)
    }

    async fn release(&self, volume: &mut PersistentVolume) -> Result<(), SyncError> {
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        if phase == "Failed" {
            return Ok(());
        }
        self.set_volume_phase(volume, "Released", None).await?;
        let spec = volume.spec.clone().unwrap_or_default();
        let is_foreign = spec.csi.is_some() || has_annotation(&volume.metadata, PROVISIONED_BY);
        let name = volume.metadata.name.clone().unwrap_or_default();
        let (reason, text) = match spec.persistent_volume_reclaim_policy.as_deref() {
            // Whoever made it deletes it.
            Some("Delete") if !is_foreign => (
                "VolumeFailedDelete",
                format!("error getting deleter volume plugin for volume {name:?}: no deletable volume plugin matched"),
            ),
            Some("Recycle") => ("VolumeFailedRecycle", "No recycler plugin found for the volume!".to_owned()),
            _ => return Ok(()),
        };
        self.set_volume_phase(volume, "Failed", Some(&text)).await?;
        self.recorder.warning(&reference(volume), reason, text);
        Ok(())
    }

    async fn set_volume_phase(
        &self,
        volume: &mut PersistentVolume,
        phase: &str,
        message: Option<&str>,
    ) -> Result<(), SyncError> {
        let status = volume.status.get_or_insert_default();
        if status.phase.as_deref() == Some(phase) {
            return Ok(());
        }
        status.phase = Some(phase.to_owned());
        status.message = message.map(str::to_owned);
        status.last_phase_transition_time = Some(Time(Timestamp::now()));
        let name = volume.metadata.name.clone().unwrap_or_default();
        *volume = self.volumes_api().replace_status(&name, &PostParams::default(), volume).await?;
        Ok(())
    }
}

fn phase_of(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

impl Controller for PersistentVolumeBinder {
    const NAME: &'static str = "persistent_volume_binder";
    type Error = SyncError;

    /// Keys are claims, which have a namespace, and volumes, which have none.
    fn watches(&self, watches: &mut Watches) {
        watches.map(&self.claims, |event| {
            let volume = event.object().spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
            let volume = volume.filter(|name| !name.is_empty()).map(ObjectKey::cluster);
            [Some(event.key()), volume].into_iter().flatten()
        });
        let claims = self.claim_lister.clone();
        watches.map(&self.volumes, move |event| {
            let mut keys = vec![event.key()];
            let (volume, is_gone) = (event.object(), matches!(event, Event::Deleted(_)));
            match claim_ref(volume) {
                Some(named) => keys.push(ObjectKey::new(
                    named.namespace.as_deref().unwrap_or_default(),
                    named.name.as_deref().unwrap_or_default(),
                )),
                // A volume that is free is news for every claim of its class that waits.
                None if !is_gone => {
                    let waiting = claims.by_index(CLASS_INDEX, class_of_volume(volume)).into_iter();
                    keys.extend(waiting.filter(|claim| phase_of(claim) != "Bound").map(|claim| ObjectKey::of(&*claim)));
                }
                None => {}
            }
            keys
        });
        let claims = self.claim_lister.clone();
        watches.map(&self.classes, move |event| {
            let mut waiting = claims.by_index(CLASS_INDEX, event.key().name());
            waiting.extend(claims.by_index(CLASS_INDEX, ""));
            waiting.retain(|claim| phase_of(claim) == "Pending");
            waiting.iter().map(|claim| ObjectKey::of(&**claim)).collect::<Vec<_>>()
        });
        watches.read(&self.pods);
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        if !key.namespace().is_empty() {
            return match self.claim_lister.get(key) {
                Some(claim) => self.sync_claim(key, claim).await,
                None => Ok(Action::await_change()),
            };
        }
        let Some(volume) = self.volume_lister.get(key) else { return Ok(Action::await_change()) };
        match self.sync_volume(volume).await? {
            None => Ok(Action::await_change()),
            Some(claim_key) => match self.claim_lister.get(&claim_key) {
                Some(claim) => self.sync_claim(&claim_key, claim).await.map(|_| Action::await_change()),
                None => Ok(Action::await_change()),
            },
        }
    }
}
