//! ValidatingAdmissionWebhook: all are asked at once; the first refusal in their order counts.

use std::sync::Arc;

use apimachinery::status::Status;
use async_trait::async_trait;
use futures::future::join_all;

use super::hook::Hook;
use crate::admission::dynamic::matching::is_exempt;
use crate::admission::{Plugin, Request, Tools};
use crate::authz::Authorizer;

const CONFIGURATIONS: &str = "validatingwebhookconfigurations.admissionregistration.k8s.io";

pub(in crate::admission) struct ValidatingAdmissionWebhook {
    tools: Tools,
    authorizers: Arc<[Arc<dyn Authorizer>]>,
}

impl ValidatingAdmissionWebhook {
    pub(in crate::admission) fn new(tools: &Tools) -> Self {
        ValidatingAdmissionWebhook { authorizers: tools.authorizers.clone().into(), tools: tools.clone() }
    }
}

#[async_trait]
impl Plugin for ValidatingAdmissionWebhook {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
    }

    fn handles(&self, request: &Request) -> bool {
        !is_exempt(request)
    }

    async fn validate(&self, request: &mut Request) -> Result<(), Status> {
        let mut relevant = Vec::new();
        for hook in Hook::all(&self.tools, CONFIGURATIONS) {
            if hook.is_for(request, &self.tools, &self.authorizers)? {
                relevant.push(hook);
            }
        }
        let asked = relevant.iter().map(|hook| hook.ask(request, &self.tools));
        let answers = join_all(asked).await;
        let mut refusal = None;
        for answer in answers {
            match answer {
                Ok(Some(answer)) => {
                    request.warnings.extend(answer.warnings);
                    request.audit_annotations.extend(answer.annotations);
                }
                Ok(None) => {}
                Err(status) => {
                    refusal.get_or_insert(status);
                }
            }
        }
        refusal.map_or(Ok(()), Err)
    }
}
