//! Says of each ValidatingAdmissionPolicy what in its expressions does not fit the kinds that it is about.

mod type_check;
mod types;

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::ignore_not_found,
    informer::{Lister, SharedInformer},
};
use k8s_openapi::api::admissionregistration::v1::{TypeChecking, ValidatingAdmissionPolicy};
use kube::{Api, Client, api::PostParams};

use crate::{context::Context, error::SyncError};

pub(crate) struct PolicyStatusController {
    client: Client,
    policies: SharedInformer<ValidatingAdmissionPolicy>,
    lister: Lister<ValidatingAdmissionPolicy>,
}

impl PolicyStatusController {
    pub(crate) fn new(context: &Context) -> Self {
        let policies = context.informers.informer::<ValidatingAdmissionPolicy>();
        Self { client: context.client.clone(), lister: policies.lister(), policies }
    }
}

impl Controller for PolicyStatusController {
    const NAME: &'static str = "validatingadmissionpolicy-status";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.policies);
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(policy) = self.lister.get(key) else { return Ok(Action::await_change()) };
        let generation = policy.metadata.generation;
        let seen = policy.status.as_ref().and_then(|status| status.observed_generation);
        if seen.is_some() && seen >= generation {
            return Ok(Action::await_change());
        }
        let mut written = (*policy).clone();
        let spec = policy.spec.clone().unwrap_or_default();
        let types = types::about(&self.client, &spec).await?;
        let warnings = type_check::warnings(&spec, &types);
        let status = written.status.get_or_insert_default();
        status.observed_generation = generation;
        status.type_checking = Some(TypeChecking { expression_warnings: (!warnings.is_empty()).then_some(warnings) });
        let api = Api::<ValidatingAdmissionPolicy>::all(self.client.clone());
        ignore_not_found(api.replace_status(key.name(), &PostParams::default(), &written).await)?;
        Ok(Action::await_change())
    }
}
