//! Priority: the number behind a pod's priority class.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::status::Status;
use async_trait::async_trait;

use super::{Operation, Plugin, Request};
use crate::lister::Lister;

const CLASSES: &str = "priorityclasses.scheduling.k8s.io";

pub(super) struct Priority {
    pub lister: Arc<dyn Lister>,
}

#[async_trait]
impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn handles(&self, request: &Request) -> bool {
        let is_class = request.gvr.group == "scheduling.k8s.io" && request.gvr.resource == "priorityclasses";
        match request.operation {
            Operation::Create => request.is_core("pods") || is_class,
            Operation::Update => is_class,
            _ => false,
        }
    }

    async fn admit(&self, request: &mut Request) -> Result<(), Status> {
        if !request.is_core("pods") {
            return Ok(());
        }
        let named = request.object.str_at(&["spec", "priorityClassName"]).to_owned();
        let class = if named.is_empty() { self.default_class() } else { self.lister.find(CLASSES, "", &named).await? };
        let (value, policy) = match (&class, named.is_empty()) {
            (None, true) => (0, "PreemptLowerPriority".to_owned()),
            (None, false) => return Err(request.forbidden(format!("no PriorityClass with name {named} was found"))),
            (Some(class), _) => {
                request.object.set(&["spec", "priorityClassName"], class.name());
                let policy = class["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority").to_owned();
                (class["value"].as_i64().unwrap_or_default(), policy)
            }
        };
        match request.object["spec"]["priority"].as_i64() {
            Some(given) if given != value => {
                return Err(request.forbidden(format!(
                    "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
                )));
            }
            _ => request.object.set(&["spec", "priority"], value),
        }
        match request.object["spec"]["preemptionPolicy"].as_str() {
            Some(given) if given != policy => Err(request.forbidden(format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
            ))),
            _ => {
                request.object.set(&["spec", "preemptionPolicy"], policy);
                Ok(())
            }
        }
    }

    async fn validate(&self, request: &mut Request) -> Result<(), Status> {
        if request.is_core("pods") || request.object["globalDefault"].as_bool() != Some(true) {
            return Ok(());
        }
        let other = self.lister.list(CLASSES, "").into_iter().find(|c| is_default(c) && c.name() != request.name);
        match other {
            Some(other) => Err(request.forbidden(format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                other.name()
            ))),
            None => Ok(()),
        }
    }
}

fn is_default(class: &Value) -> bool {
    class["globalDefault"].as_bool() == Some(true)
}

impl Priority {
    /// The class for pods that name none; of several the one with the lowest value.
    fn default_class(&self) -> Option<Arc<Value>> {
        let classes = self.lister.list(CLASSES, "").into_iter().filter(|c| is_default(c));
        classes.min_by_key(|c| c["value"].as_i64())
    }
}
