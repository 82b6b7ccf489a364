//! ExtendedResourceToleration: pods that ask for a special resource tolerate the taint of the nodes that are kept for it.

use std::collections::BTreeSet;

use apimachinery::Value;
use apimachinery::status::Status;
use async_trait::async_trait;

use super::pod::containers;
use super::{Operation, Plugin, Request, tolerations};

pub(super) struct ExtendedResourceToleration;

#[async_trait]
impl Plugin for ExtendedResourceToleration {
    fn name(&self) -> &'static str {
        "ExtendedResourceToleration"
    }

    fn handles(&self, request: &Request) -> bool {
        matches!(request.operation, Operation::Create | Operation::Update) && request.is_core("pods")
    }

    async fn admit(&self, request: &mut Request) -> Result<(), Status> {
        let spec = request.object.entry(&["spec"]);
        let asked = containers(spec).flat_map(|c| c.at(&["resources", "requests"]).entries().keys());
        let names: BTreeSet<String> = asked.filter(|n| is_extended(n)).map(ToString::to_string).collect();
        for name in names {
            let toleration =
                Value::from([("key", name.into()), ("operator", "Exists".into()), ("effect", "NoSchedule".into())]);
            let list = spec.entry(&["tolerations"]).make_array();
            if !list.iter().any(|other| tolerations::covers(other, &toleration)) {
                list.push(toleration);
            }
        }
        Ok(())
    }
}

/// A resource that is not Kubernetes' own.
pub(super) fn is_extended(name: &str) -> bool {
    let domain = name.split_once('/').map(|(domain, _)| domain);
    domain.is_some_and(|d| d != "kubernetes.io" && !d.ends_with(".kubernetes.io")) && !name.starts_with("requests.")
}
