//! StorageObjectInUseProtection: volumes and claims that are in use are not deleted under their users.

use apimachinery::Value;
use apimachinery::status::Status;
use async_trait::async_trait;

use super::{Operation, Plugin, Request};

const FINALIZERS: &[(&str, &str, &str)] = &[
    ("", "persistentvolumeclaims", "kubernetes.io/pvc-protection"),
    ("", "persistentvolumes", "kubernetes.io/pv-protection"),
    ("storage.k8s.io", "volumeattributesclasses", "kubernetes.io/vac-protection"),
];

pub(super) struct StorageObjectInUseProtection;

fn finalizer_for(request: &Request) -> Option<&'static str> {
    FINALIZERS.iter().find(|(group, resource, _)| request.is(group, resource)).map(|(_, _, finalizer)| *finalizer)
}

#[async_trait]
impl Plugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn handles(&self, request: &Request) -> bool {
        request.operation == Operation::Create && finalizer_for(request).is_some()
    }

    async fn admit(&self, request: &mut Request) -> Result<(), Status> {
        if let Some(finalizer) = finalizer_for(request)
            && !request.object.has_finalizer(finalizer)
        {
            request.object.entry(&["metadata", "finalizers"]).make_array().push(Value::from(finalizer));
        }
        Ok(())
    }
}
