//! VolumeAttributesClasses that claims or volumes name.

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    informer::{Lister, SharedInformer},
};
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::VolumeAttributesClass,
};
use kube::{Api, Client};

use crate::{
    context::Context,
    error::SyncError,
    finalizers::{add_finalizer, has_finalizer, remove_finalizer},
};

const FINALIZER: &str = "kubernetes.io/vac-protection";
/// Finds claims and volumes by the classes that they name.
const CLASS_INDEX: &str = "attributes-class";

pub(crate) struct AttributesClassProtection {
    client: Client,
    classes: SharedInformer<VolumeAttributesClass>,
    lister: Lister<VolumeAttributesClass>,
    claims: SharedInformer<PersistentVolumeClaim>,
    volumes: SharedInformer<PersistentVolume>,
}

impl AttributesClassProtection {
    pub(crate) fn new(context: &Context) -> Self {
        let classes = context.informers.informer::<VolumeAttributesClass>();
        let claims = context.informers.informer::<PersistentVolumeClaim>();
        let volumes = context.informers.informer::<PersistentVolume>();
        claims.add_index(CLASS_INDEX, of_claim);
        volumes.add_index(CLASS_INDEX, of_volume);
        Self { client: context.client.clone(), lister: classes.lister(), classes, claims, volumes }
    }
}

/// What it asks for, what it has and what it is being changed to.
fn of_claim(claim: &PersistentVolumeClaim) -> Vec<String> {
    let asked = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.clone());
    let status = claim.status.as_ref();
    let current = status.and_then(|status| status.current_volume_attributes_class_name.clone());
    let target = status.and_then(|status| status.modify_volume_status.as_ref());
    let target = target.and_then(|modify| modify.target_volume_attributes_class_name.clone());
    let mut names: Vec<_> = [asked, current, target].into_iter().flatten().filter(|name| !name.is_empty()).collect();
    names.sort();
    names.dedup();
    names
}

fn of_volume(volume: &PersistentVolume) -> Vec<String> {
    let name = volume.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.clone());
    name.filter(|name| !name.is_empty()).into_iter().collect()
}

fn keys(names: Vec<String>) -> impl Iterator<Item = ObjectKey> {
    names.into_iter().map(|name| ObjectKey::cluster(&name))
}

impl Controller for AttributesClassProtection {
    const NAME: &'static str = "vacprotection";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.classes);
        watches.map(&self.claims, |event| {
            keys(event.old().map(|claim| of_claim(claim)).unwrap_or_default()).collect::<Vec<_>>()
        });
        watches.map(&self.volumes, |event| {
            keys(event.old().map(|volume| of_volume(volume)).unwrap_or_default()).collect::<Vec<_>>()
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(class) = self.lister.get(key) else { return Ok(Action::await_change()) };
        let api = Api::all(self.client.clone());
        let is_used = || {
            !self.claims.lister().by_index(CLASS_INDEX, key.name()).is_empty()
                || !self.volumes.lister().by_index(CLASS_INDEX, key.name()).is_empty()
        };
        match (class.metadata.deletion_timestamp.is_some(), has_finalizer(&*class, FINALIZER)) {
            (true, true) if !is_used() => remove_finalizer(&api, &*class, FINALIZER).await?,
            (false, false) => add_finalizer(&api, &*class, FINALIZER).await?,
            _ => {}
        }
        Ok(Action::await_change())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_name_the_classes_of_before_and_after() {
        let claim = json!({
            "spec": { "volumeAttributesClassName": "gold" },
            "status": {
                "currentVolumeAttributesClassName": "silver",
                "modifyVolumeStatus": { "status": "InProgress", "targetVolumeAttributesClassName": "gold" },
            },
        });
        assert_eq!(of_claim(&serde_json::from_value(claim).unwrap()), ["gold", "silver"]);
    }
}
