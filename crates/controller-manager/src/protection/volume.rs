//! Volumes that are bound to a claim.

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    informer::{Lister, SharedInformer},
};
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::{Api, Client};

use crate::{
    context::Context,
    error::SyncError,
    finalizers::{add_finalizer, has_finalizer, remove_finalizer},
};

const FINALIZER: &str = "kubernetes.io/pv-protection";

pub(crate) struct VolumeProtection {
    client: Client,
    volumes: SharedInformer<PersistentVolume>,
    lister: Lister<PersistentVolume>,
}

impl VolumeProtection {
    pub(crate) fn new(context: &Context) -> Self {
        let volumes = context.informers.informer::<PersistentVolume>();
        Self { client: context.client.clone(), lister: volumes.lister(), volumes }
    }
}

impl Controller for VolumeProtection {
    const NAME: &'static str = "pvprotection";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.volumes);
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(volume) = self.lister.get(key) else { return Ok(Action::await_change()) };
        let api = Api::all(self.client.clone());
        let is_bound = volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        match (volume.metadata.deletion_timestamp.is_some(), has_finalizer(&*volume, FINALIZER)) {
            (true, true) if !is_bound => remove_finalizer(&api, &*volume, FINALIZER).await?,
            (false, false) => add_finalizer(&api, &*volume, FINALIZER).await?,
            _ => {}
        }
        Ok(Action::await_change())
    }
}
