//! Pod statuses on their way to the apiserver: only what has changed is written.

use std::collections::HashMap;
use std::sync::Arc;

use client::error::ApiError;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;

#[derive(Default)]
pub(crate) struct Statuses {
    client: Option<kube::Client>,
    /// By pod uid: what was written last.
    written: Mutex<HashMap<String, PodStatus>>,
    /// What every pod's status is now, for the kubelet's own API.
    current: Mutex<HashMap<String, PodStatus>>,
}

impl Statuses {
    pub(crate) fn new(client: Option<kube::Client>) -> Self {
        Statuses { client, ..Statuses::default() }
    }

    pub(crate) fn current(&self, uid: &str) -> Option<PodStatus> {
        self.current.lock().get(uid).cloned()
    }

    /// The next report is written even if it says nothing new.
    pub(crate) fn tell_again(&self, uid: &str) {
        self.written.lock().remove(uid);
    }

    pub(crate) async fn report(&self, pod: &Arc<Pod>, status: PodStatus) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        self.current.lock().insert(uid.clone(), status.clone());
        // A static pod's own uid is none of the API's; its mirror gets the status.
        let Some(target) = crate::static_pods::api_identity(pod) else { return };
        let Some(client) = &self.client else { return };
        if self.written.lock().get(&uid) == Some(&status) {
            return;
        }
        let api: Api<Pod> = Api::namespaced(client.clone(), pod.metadata.namespace.as_deref().unwrap_or_default());
        let mut patch = serde_json::json!({"status": status});
        if let Some(api_uid) = target {
            patch["metadata"] = serde_json::json!({"uid": api_uid});
        }
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        match api.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => {
                self.written.lock().insert(uid, status);
            }
            Err(error) if error.is_not_found() || error.is_conflict() => {
                // The pod is gone, or another of the same name took its place: the watch will say so.
                tracing::debug!(pod = name, %error, "the pod of this status is gone");
            }
            Err(error) => tracing::warn!(pod = name, %error, "the pod's status could not be written"),
        }
    }

    /// The pod has stopped: the API may forget it.
    pub(crate) async fn finish(&self, pod: &Arc<Pod>) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        self.written.lock().remove(&uid);
        self.current.lock().remove(&uid);
        let Some(client) = &self.client else { return };
        if pod.metadata.deletion_timestamp.is_none() {
            return; // it was stopped because the API had forgotten it already, or for good (its status stays)
        }
        let api: Api<Pod> = Api::namespaced(client.clone(), pod.metadata.namespace.as_deref().unwrap_or_default());
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(uid), resource_version: None }),
            ..DeleteParams::default()
        };
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        if let Err(error) = api.delete(name, &params).await
            && !error.is_not_found()
            && !error.is_conflict()
        {
            tracing::warn!(pod = name, %error, "the stopped pod could not be deleted from the API");
        }
    }
}
