//! Deletes tokens that have ended.

use std::time::Duration;

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::ApiError,
    informer::{Lister, SharedInformer},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{DeleteParams, Preconditions},
};

use super::{NAMESPACE, expiration, informer};
use crate::{context::Context, error::SyncError};

pub(crate) struct TokenCleaner {
    client: Client,
    secrets: SharedInformer<Secret>,
    lister: Lister<Secret>,
}

impl TokenCleaner {
    pub(crate) fn new(context: &Context) -> Self {
        let secrets = informer(context);
        Self { client: context.client.clone(), lister: secrets.lister(), secrets }
    }
}

impl Controller for TokenCleaner {
    const NAME: &'static str = "token_cleaner";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.secrets);
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(secret) = self.lister.get(key) else { return Ok(Action::await_change()) };
        let Some(end) = expiration(&secret) else { return Ok(Action::await_change()) };
        match Duration::try_from(end.duration_since(Timestamp::now())) {
            Ok(left) if !left.is_zero() => return Ok(Action::requeue(left)),
            _ => {}
        }
        // A changed secret may have been prolonged.
        let same = Preconditions {
            uid: secret.metadata.uid.clone(),
            resource_version: secret.metadata.resource_version.clone(),
        };
        let api = Api::<Secret>::namespaced(self.client.clone(), NAMESPACE);
        match api.delete(key.name(), &DeleteParams::default().preconditions(same)).await {
            Err(err) if !err.is_not_found() => Err(err.into()),
            Ok(_) | Err(_) => Ok(Action::await_change()),
        }
    }
}
