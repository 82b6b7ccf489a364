//! MutatingAdmissionWebhook: asked one after the other, each sees what those before it changed.

use std::sync::Arc;

use apimachinery::patch::JsonPatch;
use apimachinery::status::Status;
use async_trait::async_trait;

use super::hook::{Answer, Hook};
use crate::admission::dynamic::matching::is_exempt;
use crate::admission::dynamic::review::object_value;
use crate::admission::{Plugin, Request, Tools};
use crate::authz::Authorizer;

const CONFIGURATIONS: &str = "mutatingwebhookconfigurations.admissionregistration.k8s.io";

pub(in crate::admission) struct MutatingAdmissionWebhook {
    tools: Tools,
    authorizers: Arc<[Arc<dyn Authorizer>]>,
}

impl MutatingAdmissionWebhook {
    pub(in crate::admission) fn new(tools: &Tools) -> Self {
        MutatingAdmissionWebhook { authorizers: tools.authorizers.clone().into(), tools: tools.clone() }
    }
}

#[async_trait]
impl Plugin for MutatingAdmissionWebhook {
    fn name(&self) -> &'static str {
        "MutatingAdmissionWebhook"
    }

    fn handles(&self, request: &Request) -> bool {
        !is_exempt(request)
    }

    async fn admit(&self, request: &mut Request) -> Result<(), Status> {
        for hook in Hook::all(&self.tools, CONFIGURATIONS) {
            let key = hook.key();
            let was_asked = request.asked.iter().any(|(asked, _)| *asked == key);
            if request.again && was_asked {
                // Only who wants to is asked again, and only if somebody changed the object since.
                let seen = request.asked.iter().find(|(asked, _)| *asked == key).map(|(_, seen)| seen);
                let is_stale = seen.is_some_and(|seen| *seen != request.object);
                if hook.spec().str_at(&["reinvocationPolicy"]) != "IfNeeded" || !is_stale {
                    continue;
                }
            }
            if !hook.is_for(request, &self.tools, &self.authorizers)? {
                continue;
            }
            if let Some(answer) = hook.ask(request, &self.tools).await? {
                apply(&hook, request, answer)?;
            }
            if !was_asked {
                request.asked.push((key, request.object.clone()));
            }
        }
        Ok(())
    }
}

fn apply(hook: &Hook, request: &mut Request, answer: Answer) -> Result<(), Status> {
    request.warnings.extend(answer.warnings);
    request.audit_annotations.extend(answer.annotations);
    let mut changed = false;
    if let Some(patch) = answer.patch.filter(|patch| !patch.is_empty()) {
        let failed = |why: String| Status::internal(format!("failed calling webhook {:?}: {why}", hook.name()));
        if request.object.is_null() {
            return Err(Status::internal(
                "admission webhook \"".to_owned()
                    + hook.name()
                    + "\" attempted to modify the object, which is not supported for this operation",
            ));
        }
        let mut object = object_value(request, &request.object);
        let patch = JsonPatch::parse(&patch).map_err(|e| failed(e.to_string()))?;
        patch.apply(&mut object).map_err(|e| failed(e.to_string()))?;
        changed = object != request.object;
        request.object = object;
    }
    if changed {
        // Plugins that ran before must see it.
        request.reinvoke = true;
    }
    let at = request.asked.len();
    let note = |mutated: bool| {
        format!(r#"{{"configuration":"{}","webhook":"{}","mutated":{mutated}}}"#, hook.configuration(), hook.name())
    };
    let round = usize::from(request.again);
    let key = format!("mutation.webhook.admission.k8s.io/round_{round}_index_{at}");
    request.audit_annotations.insert(key, note(changed));
    Ok(())
}
