//! PersistentVolumeClaimResize: a claim grows only if its class can grow volumes.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::quantity::Quantity;
use apimachinery::status::Status;
use async_trait::async_trait;

use super::pod::amounts;
use super::{Operation, Plugin, Request};
use crate::lister::Lister;

pub(super) struct PersistentVolumeClaimResize {
    pub lister: Arc<dyn Lister>,
}

#[async_trait]
impl Plugin for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn handles(&self, request: &Request) -> bool {
        request.operation == Operation::Update && request.is_core("persistentvolumeclaims")
    }

    async fn validate(&self, request: &mut Request) -> Result<(), Status> {
        let (new, old) = (&request.object, &request.old_object);
        if size(new) <= size(old) {
            return Ok(());
        }
        if old.str_at(&["status", "phase"]) != "Bound" {
            return Err(request.forbidden("Only bound persistent volume claims can be expanded"));
        }
        if !self.can_grow(new, old) {
            return Err(request.forbidden(
                "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
            ));
        }
        Ok(())
    }
}

impl PersistentVolumeClaimResize {
    fn can_grow(&self, new: &Value, old: &Value) -> bool {
        if class_of(new).is_empty() || class_of(old).is_empty() {
            return false;
        }
        let class = self.lister.get("storageclasses.storage.k8s.io", "", class_of(new));
        class.is_some_and(|class| class["allowVolumeExpansion"].as_bool() == Some(true))
    }
}

fn size(claim: &Value) -> Option<Quantity> {
    amounts(&claim["spec"]["resources"]["requests"]).get("storage").copied()
}

/// The class that a claim names, in either form.
pub(super) fn class_of(claim: &Value) -> &str {
    let annotated = claim.annotation("volume.beta.kubernetes.io/storage-class");
    annotated.unwrap_or_else(|| claim.str_at(&["spec", "storageClassName"]))
}
