//! PodTolerationRestriction: what the pods of a namespace tolerate by default, and at most.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::status::Status;
use async_trait::async_trait;

use super::{Operation, Plugin, Request, tolerations};
use crate::lister::Lister;

const DEFAULTS: &str = "scheduler.alpha.kubernetes.io/defaultTolerations";
const ALLOWED: &str = "scheduler.alpha.kubernetes.io/tolerationsWhitelist";

pub(super) struct PodTolerationRestriction {
    pub lister: Arc<dyn Lister>,
    /// `podtolerationrestriction.admission.k8s.io/v1alpha1`: `default` and `whitelist`.
    pub config: Value,
}

#[async_trait]
impl Plugin for PodTolerationRestriction {
    fn name(&self) -> &'static str {
        "PodTolerationRestriction"
    }

    fn handles(&self, request: &Request) -> bool {
        matches!(request.operation, Operation::Create | Operation::Update) && request.is_core("pods")
    }

    async fn admit(&self, request: &mut Request) -> Result<(), Status> {
        let mut merged = request.object.at(&["spec", "tolerations"]).items().to_vec();
        if request.operation == Operation::Create {
            let defaults = self.list(request, DEFAULTS, "default")?;
            merged = tolerations::merge(&defaults, &merged);
        }
        let is_best_effort =
            request.object.str_at(&["status", "qosClass"]) == "BestEffort" || asks_nothing(&request.object);
        if !is_best_effort {
            let pressure = Value::from([
                ("key", "node.kubernetes.io/memory-pressure".into()),
                ("operator", "Exists".into()),
                ("effect", "NoSchedule".into()),
            ]);
            merged = tolerations::merge(&merged, &[pressure]);
        }
        if !merged.is_empty() {
            request.object.set(&["spec", "tolerations"], merged);
        }
        Ok(())
    }

    async fn validate(&self, request: &mut Request) -> Result<(), Status> {
        let allowed = self.list(request, ALLOWED, "whitelist")?;
        let given = request.object.at(&["spec", "tolerations"]).items();
        let is_allowed = |t: &Value| allowed.iter().any(|outer| tolerations::covers(outer, t));
        if !allowed.is_empty() && !given.iter().all(is_allowed) {
            return Err(request.forbidden(
                "pod tolerations (possibly merged with namespace default tolerations) conflict with its namespace whitelist",
            ));
        }
        Ok(())
    }
}

impl PodTolerationRestriction {
    fn list(&self, request: &Request, annotation: &str, key: &str) -> Result<Vec<Value>, Status> {
        let namespace = self.lister.get("namespaces", "", &request.namespace);
        match namespace.as_ref().and_then(|n| n.annotation(annotation)) {
            None => Ok(self.config[key].items().to_vec()),
            Some("") => Ok(Vec::new()),
            Some(text) => serde_json::from_str::<Value>(text)
                .map(|list| list.items().to_vec())
                .map_err(|error| Status::internal(error.to_string())),
        }
    }
}

fn asks_nothing(pod: &Value) -> bool {
    let lists = ["containers", "initContainers"].into_iter().flat_map(|list| pod["spec"][list].items());
    lists.map(|c| &c["resources"]).all(|r| r["requests"].is_empty_value() && r["limits"].is_empty_value())
}
