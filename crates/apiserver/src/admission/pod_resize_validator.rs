//! PodResizeValidator: a pod is not resized to more than its node has, and only where nodes can do it.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::quantity::Quantity;
use apimachinery::status::Status;
use async_trait::async_trait;

use super::pod::{Of, amounts, pod_amounts};
use super::{Operation, Plugin, Request};
use crate::lister::Lister;

const OS: &str = "kubernetes.io/os";

pub(super) struct PodResizeValidator {
    pub lister: Arc<dyn Lister>,
}

#[async_trait]
impl Plugin for PodResizeValidator {
    fn name(&self) -> &'static str {
        "PodResizeValidator"
    }

    fn handles(&self, request: &Request) -> bool {
        request.operation == Operation::Update && request.is_core_part("pods", "resize")
    }

    async fn validate(&self, request: &mut Request) -> Result<(), Status> {
        let pod = &request.object;
        let node = pod.str_at(&["spec", "nodeName"]);
        // A pod that is on no node is not resized but changed; without a change there is nothing to judge.
        if node.is_empty() || pod.meta("generation") == request.old_object.meta("generation") {
            return Ok(());
        }
        let Some(found) = self.lister.get("nodes", "", node) else {
            return Err(request.forbidden(format!("node {node:?} not found")));
        };
        match complaint(pod, &found) {
            Some(why) => Err(request.forbidden(why)),
            None => Ok(()),
        }
    }
}

/// What is wrong with a pod of that size on a node, in upstream's words.
fn complaint(pod: &Value, node: &Value) -> Option<String> {
    let (wanted, has) = (pod_amounts(pod, Of::Requests), amounts(node.at(&["status", "allocatable"])));
    let lacking = |name: &str, number: fn(&Quantity) -> i64| {
        let (wanted, has) = (wanted.get(name).map_or(0, number), has.get(name).map_or(0, number));
        (wanted > has).then(|| format!("{name}, requested: {wanted}, allocatable: {has}"))
    };
    let short = [lacking("cpu", Quantity::milli_value), lacking("memory", Quantity::value)];
    let short: Vec<String> = short.into_iter().flatten().collect();
    if !short.is_empty() {
        return Some(format!("Node didn't have enough allocatable resources: {}", short.join("; ")));
    }
    let os = node.label(OS).unwrap_or_default();
    (os != "linux").then(|| format!("pod resize is only supported on linux nodes, node {:?} is {os:?}", node.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(cpu: &str, memory: &str, os: &str, want: Option<&str>) {
        let json = |text: String| serde_json::from_str::<Value>(&text).unwrap();
        let pod = json(format!(
            r#"{{"spec":{{"containers":[{{"resources":{{"requests":{{"cpu":"{cpu}","memory":"{memory}"}}}}}}]}}}}"#
        ));
        let node = json(format!(
            r#"{{"metadata":{{"name":"n","labels":{{"kubernetes.io/os":"{os}"}}}},"status":{{"allocatable":{{"cpu":"4","memory":"1Ki"}}}}}}"#
        ));
        assert_eq!(complaint(&pod, &node).as_deref(), want);
    }

    #[test]
    fn a_pod_fits_its_node() {
        check("4", "1Ki", "linux", None);
        check(
            "4500m",
            "2Ki",
            "linux",
            Some(
                "Node didn't have enough allocatable resources: cpu, requested: 4500, allocatable: 4000; memory, requested: 2048, allocatable: 1024",
            ),
        );
        check("1", "1", "windows", Some(r#"pod resize is only supported on linux nodes, node "n" is "windows""#));
    }
}
