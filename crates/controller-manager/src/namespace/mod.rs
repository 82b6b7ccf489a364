//! Empties a namespace that is being deleted, pods first, and lets it go when nothing is left in it.

mod content;
mod status;

use std::time::Duration;

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::ApiError,
    informer::{Lister, SharedInformer},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, api::PostParams};

use crate::{context::Context, error::SyncError};

/// Time for every API server to hear that nothing may be created in the namespace any more.
const GRACE: Duration = Duration::from_secs(2);

const FINALIZER: &str = "kubernetes";

pub(crate) struct NamespaceController {
    client: Client,
    namespaces: SharedInformer<Namespace>,
    lister: Lister<Namespace>,
}

impl NamespaceController {
    pub(crate) fn new(context: &Context) -> Self {
        let namespaces = context.informers.informer::<Namespace>();
        Self { client: context.client.clone(), lister: namespaces.lister(), namespaces }
    }
}

impl Controller for NamespaceController {
    const NAME: &'static str = "namespace";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.act(&self.namespaces, |event, queue| {
            if event.now().is_some_and(|namespace| is_ending(namespace)) {
                queue.add_after(event.key(), GRACE);
            }
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(known) = self.lister.get(key).filter(|namespace| is_ending(namespace)) else {
            return Ok(Action::await_change());
        };
        let api = Api::<Namespace>::all(self.client.clone());
        // The cache may show an earlier namespace of this name.
        let Some(namespace) = api.get_opt(key.name()).await? else { return Ok(Action::await_change()) };
        if namespace.metadata.uid != known.metadata.uid || !is_ending(&namespace) {
            return Ok(Action::await_change());
        }
        let outcome = content::delete_all(&self.client, key.name()).await;
        let namespace = self.write_status(&api, namespace, &outcome).await?;
        if outcome.is_empty() {
            finalize(&api, namespace).await?;
            return Ok(Action::await_change());
        }
        match outcome.wait() {
            Some(wait) => Ok(Action::requeue(wait)),
            None => Ok(Action::Retry),
        }
    }
}

impl NamespaceController {
    async fn write_status(
        &self,
        api: &Api<Namespace>,
        mut namespace: Namespace,
        outcome: &content::Outcome,
    ) -> Result<Namespace, SyncError> {
        let status = namespace.status.get_or_insert_default();
        let mut changed = status.phase.as_deref() != Some("Terminating");
        status.phase = Some("Terminating".to_owned());
        let conditions = status.conditions.get_or_insert_default();
        changed |= status::update(conditions, outcome, Timestamp::now());
        if !changed {
            return Ok(namespace);
        }
        let name = namespace.metadata.name.clone().unwrap_or_default();
        Ok(api.replace_status(&name, &PostParams::default(), &namespace).await?)
    }
}

fn is_ending(namespace: &Namespace) -> bool {
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_deref()).unwrap_or_default();
    namespace.metadata.deletion_timestamp.is_some() && finalizers.iter().any(|name| name == FINALIZER)
}

/// Takes our finalizer away, after which the server deletes the namespace.
async fn finalize(api: &Api<Namespace>, mut namespace: Namespace) -> Result<(), SyncError> {
    if let Some(finalizers) = namespace.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
        finalizers.retain(|name| name != FINALIZER);
    }
    let name = namespace.metadata.name.clone().unwrap_or_default();
    match api.replace_subresource("finalize", &name, &PostParams::default(), &namespace).await {
        Ok(_) => Ok(()),
        Err(err) if err.is_not_found() => Ok(()),
        Err(err) => Err(err.into()),
    }
}
