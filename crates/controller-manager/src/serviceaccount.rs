//! Gives every namespace its `default` service account.

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::ApiError,
    informer::{Event, Lister, Selection, SharedInformer},
};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::{Api, Client, api::PostParams, core::ObjectMeta};

use crate::{context::Context, error::SyncError};

const DEFAULT: &str = "default";

pub(crate) struct ServiceAccountController {
    client: Client,
    namespaces: SharedInformer<Namespace>,
    namespace_lister: Lister<Namespace>,
    accounts: SharedInformer<ServiceAccount>,
    account_lister: Lister<ServiceAccount>,
}

impl ServiceAccountController {
    pub(crate) fn new(context: &Context) -> Self {
        let namespaces = context.informers.informer::<Namespace>();
        let accounts = context.informers.selected::<ServiceAccount>(Selection::fields("metadata.name=default"));
        Self {
            client: context.client.clone(),
            namespace_lister: namespaces.lister(),
            namespaces,
            account_lister: accounts.lister(),
            accounts,
        }
    }
}

impl Controller for ServiceAccountController {
    const NAME: &'static str = "serviceaccount";
    type Error = SyncError;

    /// Keys are namespaces.
    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.namespaces);
        watches.map(&self.accounts, |event| {
            matches!(event, Event::Deleted(_)).then(|| ObjectKey::cluster(event.key().namespace()))
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(namespace) = self.namespace_lister.get(key) else { return Ok(Action::await_change()) };
        if is_ending(&namespace) || self.account_lister.get(&ObjectKey::new(key.name(), DEFAULT)).is_some() {
            return Ok(Action::await_change());
        }
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(DEFAULT.to_owned()),
                namespace: Some(key.name().to_owned()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        let api = Api::<ServiceAccount>::namespaced(self.client.clone(), key.name());
        match api.create(&PostParams::default(), &account).await {
            Ok(_) => Ok(Action::await_change()),
            Err(err) if err.is_already_exists() || err.is_namespace_terminating() => Ok(Action::await_change()),
            Err(err) => Err(err.into()),
        }
    }
}

/// Nothing can be created in a namespace that goes away.
pub(crate) fn is_ending(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
    namespace.metadata.deletion_timestamp.is_some() || phase == Some("Terminating")
}
