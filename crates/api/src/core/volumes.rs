//! PersistentVolume and PersistentVolumeClaim.

use apimachinery::Value;

use crate::strategy::Strategy;

pub(crate) struct VolumeStrategy;

pub(crate) struct ClaimStrategy;

impl Strategy for VolumeStrategy {
    fn default(&self, volume: &mut Value) {
        volume.set_default(&["spec", "persistentVolumeReclaimPolicy"], "Retain");
        volume.set_default(&["spec", "volumeMode"], "Filesystem");
        if !volume.at(&["spec", "hostPath"]).is_null() {
            volume.set_default(&["spec", "hostPath", "type"], "");
        }
    }

    fn prepare_for_create(&self, volume: &mut Value) {
        volume.set(&["status"], Value::from([("phase", "Pending".into())]));
    }
}

impl Strategy for ClaimStrategy {
    fn default(&self, claim: &mut Value) {
        claim.set_default(&["spec", "volumeMode"], "Filesystem");
    }

    fn prepare_for_create(&self, claim: &mut Value) {
        claim.set(&["status"], Value::from([("phase", "Pending".into())]));
    }
}
