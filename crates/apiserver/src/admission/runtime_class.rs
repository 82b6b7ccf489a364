//! RuntimeClass: a pod pays for what its runtime costs, and runs where the runtime is.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::status::Status;
use async_trait::async_trait;

use super::pod::amounts;
use super::{Operation, Plugin, Request, tolerations};
use crate::lister::Lister;

const DIFFERS: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
const UNFOUNDED: &str = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";

pub(super) struct RuntimeClass {
    pub lister: Arc<dyn Lister>,
}

#[async_trait]
impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn handles(&self, request: &Request) -> bool {
        request.operation == Operation::Create && request.is_core("pods")
    }

    async fn admit(&self, request: &mut Request) -> Result<(), Status> {
        let Some(class) = self.class_of(request).await? else { return Ok(()) };
        let overhead = class.at(&["overhead", "podFixed"]);
        if !class["overhead"].is_null() {
            let given = request.object.at(&["spec", "overhead"]);
            if !given.is_null() && amounts(given) != amounts(overhead) {
                return Err(request.forbidden(DIFFERS));
            }
            request.object.set(&["spec", "overhead"], overhead.clone());
        }
        self.schedule(request, &class["scheduling"])
    }

    async fn validate(&self, request: &mut Request) -> Result<(), Status> {
        let class = self.class_of(request).await?;
        let given = request.object.at(&["spec", "overhead"]);
        match class.as_ref().map(|class| class.at(&["overhead"])).filter(|overhead| !overhead.is_null()) {
            Some(overhead) if amounts(given) != amounts(&overhead["podFixed"]) => Err(request.forbidden(DIFFERS)),
            None if !given.is_null() => Err(request.forbidden(UNFOUNDED)),
            _ => Ok(()),
        }
    }
}

impl RuntimeClass {
    async fn class_of(&self, request: &Request) -> Result<Option<Arc<Value>>, Status> {
        let Some(name) = request.object.at(&["spec", "runtimeClassName"]).as_str() else { return Ok(None) };
        match self.lister.find("runtimeclasses.node.k8s.io", "", name).await? {
            Some(class) => Ok(Some(class)),
            None => Err(request.forbidden(format!("pod rejected: RuntimeClass {name:?} not found"))),
        }
    }

    fn schedule(&self, request: &mut Request, scheduling: &Value) -> Result<(), Status> {
        for (key, value) in scheduling["nodeSelector"].entries() {
            let (wanted, given) =
                (value.as_str().unwrap_or_default(), request.object.at(&["spec", "nodeSelector", key]));
            if let Some(given) = given.as_str().filter(|given| *given != wanted) {
                return Err(request.forbidden(format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {wanted}; pod.spec.nodeSelector[{key}] = {given}"
                )));
            }
            request.object.set(&["spec", "nodeSelector", key], wanted);
        }
        let more = scheduling["tolerations"].items();
        if !more.is_empty() {
            let merged = tolerations::merge(request.object.at(&["spec", "tolerations"]).items(), more);
            request.object.set(&["spec", "tolerations"], merged);
        }
        Ok(())
    }
}
