//! DefaultBinder: binds through the API server.

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use kube::api::PostParams;
use kube::core::{ObjectMeta, Status};
use kube::{Api, Client};

use crate::framework::{Bind, BindStatus, Plugin};
use crate::pod::PodInfo;

pub(super) struct DefaultBinder {
    /// `None` where nothing is ever bound.
    client: Option<Client>,
}

impl DefaultBinder {
    #[must_use]
    pub(super) fn new(client: Option<Client>) -> Self {
        Self { client }
    }

    async fn post(&self, client: &Client, pod: &PodInfo, node: &str) -> Result<(), kube::Error> {
        let binding = Binding {
            metadata: ObjectMeta {
                namespace: Some(pod.namespace().to_owned()),
                name: Some(pod.name().to_owned()),
                // Another pod of the same name is not meant.
                uid: Some(pod.uid.as_str().to_owned()),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let api: Api<Pod> = Api::namespaced(client.clone(), pod.namespace());
        let _: Status = api.create_subresource("binding", pod.name(), &PostParams::default(), &binding).await?;
        Ok(())
    }
}

impl Plugin for DefaultBinder {
    const NAME: &'static str = "DefaultBinder";
}

impl Bind for DefaultBinder {
    fn bind<'a>(&'a self, pod: &'a PodInfo, node: &'a str) -> BoxFuture<'a, BindStatus> {
        async move {
            let Some(client) = &self.client else { return BindStatus::Skip };
            match self.post(client, pod, node).await {
                Ok(()) => BindStatus::Bound,
                Err(err) => BindStatus::Error(err.to_string()),
            }
        }
        .boxed()
    }
}
