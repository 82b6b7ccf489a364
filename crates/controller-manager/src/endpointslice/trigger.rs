//! When the changes happened that a sync tells of, so that proxies can say how long the way to their rules was.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use client::ObjectKey;
use k8s_openapi::{
    api::{
        core::v1::{Pod, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

const ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// What was told of already, by Service.
#[derive(Default)]
pub(super) struct Triggers(Mutex<HashMap<ObjectKey, Told>>);

#[derive(Default)]
struct Told {
    service: Option<Time>,
    /// By name.
    pods: HashMap<String, Time>,
}

impl Triggers {
    /// The earliest change of the Service and its pods that was not told of before; it is told of with this.
    pub(super) fn earliest(&self, key: &ObjectKey, service: &Service, pods: &[Arc<Pod>]) -> Option<Time> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = all.entry(key.clone()).or_default();
        let mut new = Vec::new();
        let mut seen = HashMap::new();
        for pod in pods {
            let (Some(name), Some(time)) = (&pod.metadata.name, became_ready_or_not(pod)) else { continue };
            if told.pods.get(name) != Some(&time) {
                new.push(time.clone());
            }
            seen.insert(name.clone(), time);
        }
        told.pods = seen;
        if told.service != service.metadata.creation_timestamp {
            told.service.clone_from(&service.metadata.creation_timestamp);
            new.extend(told.service.clone());
        }
        new.into_iter().min()
    }

    pub(super) fn forget(&self, key: &ObjectKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

fn became_ready_or_not(pod: &Pod) -> Option<Time> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == "Ready")?.last_transition_time.clone()
}

/// Writes the time on a slice that is written anyway.
pub(super) fn annotate(slice: &mut EndpointSlice, time: Option<&Time>) {
    let mut annotations = slice.metadata.annotations.take().unwrap_or_default();
    match time {
        Some(time) => drop(annotations.insert(ANNOTATION.to_owned(), time.0.to_string())),
        None => drop(annotations.remove(ANNOTATION)),
    }
    slice.metadata.annotations = Some(annotations).filter(|annotations| !annotations.is_empty());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(created: &str) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "creationTimestamp": created}})).unwrap()
    }

    fn pod(name: &str, changed: &str) -> Arc<Pod> {
        let condition = json!({"type": "Ready", "status": "True", "lastTransitionTime": changed});
        let pod = json!({"metadata": {"name": name}, "status": {"conditions": [condition]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn each_change_is_told_of_once() {
        let (triggers, key) = (Triggers::default(), ObjectKey::new("ns", "web"));
        let web = service("2026-01-01T00:00:00Z");
        let told = |pods: &[Arc<Pod>]| triggers.earliest(&key, &web, pods).map(|time| time.0.to_string());
        let (a, b) = (pod("a", "2026-01-01T00:00:05Z"), pod("b", "2026-01-01T00:00:07Z"));
        assert_eq!(told(std::slice::from_ref(&a)).as_deref(), Some("2026-01-01T00:00:00Z"));
        assert_eq!(told(std::slice::from_ref(&a)), None);
        assert_eq!(told(&[a.clone(), b.clone()]).as_deref(), Some("2026-01-01T00:00:07Z"));
        let again = pod("a", "2026-01-01T00:00:09Z");
        assert_eq!(told(&[again, b]).as_deref(), Some("2026-01-01T00:00:09Z"));
        triggers.forget(&key);
        assert!(told(&[a]).is_some());
    }

    #[test]
    fn a_slice_says_what_its_last_write_tells_of() {
        let mut slice = EndpointSlice::default();
        annotate(&mut slice, service("2026-01-01T00:00:00Z").metadata.creation_timestamp.as_ref());
        assert_eq!(slice.metadata.annotations.as_ref().unwrap()[ANNOTATION], "2026-01-01T00:00:00Z");
        annotate(&mut slice, None);
        assert_eq!(slice.metadata.annotations, None);
    }
}
