//! Creating and deleting the pods of a controller, with the events that users see.

use client::{
    error::ApiError,
    events::{Recorder, reference},
    informer::Kind,
};
use futures::future::join_all;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams, Preconditions},
    core::ObjectMeta,
};

use crate::owner::controller_reference;

/// Writes pods as one controller, telling their owner's users about it.
#[derive(Clone)]
pub(crate) struct PodControl {
    client: Client,
    recorder: Recorder,
}

impl PodControl {
    pub(crate) fn new(client: Client, recorder: Recorder) -> Self {
        Self { client, recorder }
    }

    pub(crate) async fn create<O: Kind>(&self, owner: &O, pod: &Pod) -> Result<Pod, kube::Error> {
        let namespace = owner.meta().namespace.as_deref().unwrap_or_default();
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        match api.create(&PostParams::default(), pod).await {
            Ok(created) => {
                let name = created.metadata.name.as_deref().unwrap_or_default();
                self.recorder.normal(&reference(owner), "SuccessfulCreate", format!("Created pod: {name}"));
                Ok(created)
            }
            Err(err) => {
                // In a namespace that goes away every creation fails; that is no news to anybody.
                if !err.is_namespace_terminating() {
                    self.recorder.warning(&reference(owner), "FailedCreate", format!("Error creating: {}", said(&err)));
                }
                Err(err)
            }
        }
    }

    /// Deletes this very pod; one that is gone already is success.
    pub(crate) async fn delete<O: Kind>(&self, owner: &O, pod: &Pod) -> Result<(), kube::Error> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let same = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        match api.delete(name, &DeleteParams::default().preconditions(same)).await {
            Ok(_) => {
                self.recorder.normal(&reference(owner), "SuccessfulDelete", format!("Deleted pod: {name}"));
                Ok(())
            }
            Err(err) if err.is_not_found() || err.is_conflict() => Ok(()),
            Err(err) => {
                self.recorder.warning(&reference(owner), "FailedDelete", format!("Error deleting: {}", said(&err)));
                Err(err)
            }
        }
    }
}

/// What the server said, without our own words around it.
pub(crate) fn said(err: &kube::Error) -> String {
    err.status().map_or_else(|| err.to_string(), |status| status.message.clone())
}

/// The pod that a template and its owner describe, without a name.
pub(crate) fn pod_of<O: Kind>(owner: &O, template: &PodTemplateSpec) -> Pod {
    let from = template.metadata.clone().unwrap_or_default();
    let name = owner.meta().name.as_deref().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(generate_name(name)),
            namespace: owner.meta().namespace.clone(),
            labels: from.labels,
            annotations: from.annotations,
            finalizers: from.finalizers,
            owner_references: Some(vec![controller_reference(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// `name-`, unless that is no prefix that a pod's name may have.
fn generate_name(owner: &str) -> String {
    let prefix = format!("{owner}-");
    if prefix.len() <= 253 { prefix } else { owner.to_owned() }
}

/// Runs `count` tasks in batches of 1, 2, 4 …, stopping after the first batch in which one failed: a quota or a webhook
/// that refuses one pod is not asked a thousand times. Returns how many succeeded, and the first failure.
pub(crate) async fn slow_start<F, Fut>(count: usize, task: F) -> (usize, Option<kube::Error>)
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = Result<(), kube::Error>>,
{
    let (mut done, mut started, mut batch) = (0, 0, 1);
    while started < count {
        let size = batch.min(count - started);
        let outcomes = join_all((started..started + size).map(&task)).await;
        started += size;
        let mut failure = None;
        for outcome in outcomes {
            match outcome {
                Ok(()) => done += 1,
                Err(err) => failure = failure.or(Some(err)),
            }
        }
        if failure.is_some() {
            return (done, failure);
        }
        batch *= 2;
    }
    (done, None)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn batches_double_and_stop_at_the_first_failure() {
        let asked = Cell::new(0);
        let (done, failure) = slow_start(100, |n| {
            asked.set(asked.get() + 1);
            async move { if n == 5 { Err(kube::Error::LinesCodecMaxLineLengthExceeded) } else { Ok(()) } }
        })
        .await;
        assert_eq!((done, asked.get(), failure.is_some()), (6, 7, true));
        let (done, failure) = slow_start(10, |_| async { Ok(()) }).await;
        assert_eq!((done, failure.is_none()), (10, true));
    }
}
