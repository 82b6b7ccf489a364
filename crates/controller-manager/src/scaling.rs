//! The `scale` subresource of whatever kind a reference names, custom ones among them.

use std::time::Duration;

use client::error::ApiError;
use kube::{
    Api, Client,
    api::PostParams,
    core::{DynamicObject, subresource::Scale},
};
use tokio::{sync::Mutex, time::Instant};

use crate::discovery::{Discovered, Resource, discover};

/// How long what the server serves is taken for known; a kind that is missing is looked for again sooner.
const FRESH: Duration = Duration::from_secs(300);
const MISSING: Duration = Duration::from_secs(10);

pub(crate) struct ScaleClient {
    client: Client,
    known: Mutex<Option<(Instant, Discovered)>>,
}

impl ScaleClient {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, known: Mutex::default() }
    }

    /// The resource of a kind, in the version that the server prefers.
    pub(crate) async fn resource(&self, group: &str, kind: &str) -> Result<Option<Resource>, kube::Error> {
        let mut known = self.known.lock().await;
        let find = |discovered: &Discovered| {
            discovered.resources.iter().find(|r| r.api.group == group && r.api.kind == kind).cloned()
        };
        if let Some((at, discovered)) = &*known {
            let found = find(discovered);
            let lasts = if found.is_some() { FRESH } else { MISSING };
            if at.elapsed() < lasts {
                return Ok(found);
            }
        }
        let discovered = discover(&self.client).await?;
        let found = find(&discovered);
        *known = Some((Instant::now(), discovered));
        Ok(found)
    }

    fn api(&self, resource: &Resource, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &resource.api)
    }

    pub(crate) async fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Result<Scale, kube::Error> {
        self.api(resource, namespace).get_scale(name).await
    }

    pub(crate) async fn replace(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        scale: &Scale,
    ) -> Result<Scale, kube::Error> {
        self.api(resource, namespace).replace_scale(name, &PostParams::default(), scale).await
    }
}

/// The group of an `apiVersion`.
pub(crate) fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

/// Whether the object itself is missing, rather than its scale.
pub(crate) fn is_missing(resource: &Resource, err: &kube::Error) -> bool {
    resource.has_scale && err.is_not_found()
}
