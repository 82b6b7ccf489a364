//! LimitRanger: what containers, pods and claims of a namespace may ask for, and what they ask for when they say nothing.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::quantity::Quantity;
use apimachinery::status::Status;
use async_trait::async_trait;

use super::pod::{Amounts, Of, amounts, pod_amounts};
use super::{Operation, Plugin, Request};
use crate::lister::Lister;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

pub(super) struct LimitRanger {
    pub lister: Arc<dyn Lister>,
}

#[async_trait]
impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn handles(&self, request: &Request) -> bool {
        match request.operation {
            Operation::Create => request.is_core("pods") || request.is_core("persistentvolumeclaims"),
            // The containers of a pod change by a resize only.
            Operation::Update => {
                let resizes = request.is_core_part("pods", "resize");
                (resizes || request.is_core("persistentvolumeclaims")) && !request.old_object.is_deleting()
            }
            Operation::Delete | Operation::Connect => false,
        }
    }

    async fn admit(&self, request: &mut Request) -> Result<(), Status> {
        if request.gvr.resource == "pods" && request.operation == Operation::Create {
            for range in self.lister.list("limitranges", &request.namespace) {
                set_defaults(&mut request.object, &range);
            }
        }
        Ok(())
    }

    async fn validate(&self, request: &mut Request) -> Result<(), Status> {
        let is_pod = request.gvr.resource == "pods";
        for range in self.lister.list("limitranges", &request.namespace) {
            let mut wrong =
                if is_pod { check_pod(&request.object, &range) } else { check_claim(&request.object, &range) };
            wrong.dedup();
            match wrong.as_slice() {
                [] => {}
                [one] => return Err(request.forbidden(one)),
                many => return Err(request.forbidden(format!("[{}]", many.join(", ")))),
            }
        }
        Ok(())
    }
}

/// The limits of a range for one kind of thing.
fn limits_for<'a>(range: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    range["spec"]["limits"].items().iter().filter(move |limit| limit.str_at(&["type"]) == kind)
}

fn set_defaults(pod: &mut Value, range: &Value) {
    let (mut requests, mut limits) = (Value::object(), Value::object());
    for limit in limits_for(range, "Container") {
        for (from, to) in [("defaultRequest", &mut requests), ("default", &mut limits)] {
            for (name, quantity) in limit[from].entries() {
                to.set(&[name], quantity.clone());
            }
        }
    }
    let mut notes = Vec::new();
    for (list, kind) in [("containers", "container"), ("initContainers", "init container")] {
        let Some(containers) = pod.entry(&["spec"]).get_mut(list) else { continue };
        for container in containers.items_mut() {
            let name = container.str_at(&["name"]).to_owned();
            for (field, word, defaults) in [("requests", "request", &requests), ("limits", "limit", &limits)] {
                let set = merge(container, field, defaults);
                if !set.is_empty() {
                    notes.push(format!("{} {word} for {kind} {name}", set.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty() {
        pod.set(&["metadata", "annotations", ANNOTATION], format!("LimitRanger plugin set: {}", notes.join("; ")));
    }
}

/// Fills in what a container does not say; gives the names, which come sorted.
fn merge(container: &mut Value, field: &str, defaults: &Value) -> Vec<String> {
    let mut set = Vec::new();
    for (name, quantity) in defaults.entries() {
        if container.at(&["resources", field, name]).is_null() {
            container.set(&["resources", field, name], quantity.clone());
            set.push(name.to_string());
        }
    }
    set
}

fn check_pod(pod: &Value, range: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    for limit in range["spec"]["limits"].items() {
        match limit.str_at(&["type"]) {
            "Container" => {
                for container in ["containers", "initContainers"].iter().flat_map(|l| pod["spec"][*l].items()) {
                    let resources = &container["resources"];
                    let asked =
                        Asked { requests: amounts(&resources["requests"]), limits: amounts(&resources["limits"]) };
                    asked.check(limit, &mut wrong);
                }
            }
            "Pod" => {
                let asked = Asked { requests: pod_amounts(pod, Of::Requests), limits: pod_amounts(pod, Of::Limits) };
                asked.check(limit, &mut wrong);
            }
            _ => {}
        }
    }
    wrong
}

fn check_claim(claim: &Value, range: &Value) -> Vec<String> {
    let asked = Asked { requests: amounts(&claim["spec"]["resources"]["requests"]), limits: Amounts::new() };
    let mut wrong = Vec::new();
    for limit in limits_for(range, "PersistentVolumeClaim") {
        for (name, bound) in amounts(&limit["min"]) {
            wrong.extend(asked.below("PersistentVolumeClaim", &name, bound));
        }
        for (name, bound) in amounts(&limit["max"]) {
            let head = format!("maximum {name} usage per PersistentVolumeClaim is {bound}");
            match asked.requests.get(&name) {
                None => wrong.push(format!("{head}.  No request is specified")),
                Some(request) if *request > bound => wrong.push(format!("{head}, but request is {request}")),
                Some(_) => {}
            }
        }
    }
    wrong
}

struct Asked {
    requests: Amounts,
    limits: Amounts,
}

impl Asked {
    fn check(&self, limit: &Value, wrong: &mut Vec<String>) {
        let kind = limit.str_at(&["type"]);
        for (name, bound) in amounts(&limit["min"]) {
            wrong.extend(self.below(kind, &name, bound));
        }
        for (name, bound) in amounts(&limit["max"]) {
            wrong.extend(self.above(kind, &name, bound));
        }
        for (name, bound) in amounts(&limit["maxLimitRequestRatio"]) {
            wrong.extend(self.ratio(kind, &name, bound));
        }
    }

    fn below(&self, kind: &str, name: &str, bound: Quantity) -> Option<String> {
        let head = format!("minimum {name} usage per {kind} is {bound}");
        match (self.requests.get(name), self.limits.get(name)) {
            (None, _) => Some(format!("{head}.  No request is specified")),
            (Some(request), _) if *request < bound => Some(format!("{head}, but request is {request}")),
            (_, Some(limit)) if *limit < bound => Some(format!("{head}, but limit is {limit}")),
            _ => None,
        }
    }

    fn above(&self, kind: &str, name: &str, bound: Quantity) -> Option<String> {
        let head = format!("maximum {name} usage per {kind} is {bound}");
        match (self.requests.get(name), self.limits.get(name)) {
            (_, None) => Some(format!("{head}.  No limit is specified")),
            (_, Some(limit)) if *limit > bound => Some(format!("{head}, but limit is {limit}")),
            (Some(request), _) if *request > bound => Some(format!("{head}, but request is {request}")),
            _ => None,
        }
    }

    fn ratio(&self, kind: &str, name: &str, bound: Quantity) -> Option<String> {
        let head = format!("{name} max limit to request ratio per {kind} is {bound}");
        let given = |list: &Amounts| list.get(name).copied().filter(|q| !q.is_zero());
        let Some(request) = given(&self.requests) else {
            return Some(format!("{head}, but no request is specified or request is 0"));
        };
        let Some(limit) = given(&self.limits) else {
            return Some(format!("{head}, but no limit is specified or limit is 0"));
        };
        let ratio = limit.as_f64() / request.as_f64();
        (ratio > bound.as_f64()).then(|| format!("{head}, but provided ratio is {ratio:.6}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[track_caller]
    fn check(limit: &str, resources: &str, want: &[&str]) {
        let range = parse(&format!(r#"{{"spec":{{"limits":[{limit}]}}}}"#));
        let pod = parse(&format!(r#"{{"spec":{{"containers":[{{"name":"c","resources":{resources}}}]}}}}"#));
        assert_eq!(check_pod(&pod, &range), want);
    }

    #[test]
    fn bounds_hold_for_requests_and_limits() {
        let min = r#"{"type":"Container","min":{"cpu":"50m"}}"#;
        check(min, r#"{"requests":{"cpu":"50m"}}"#, &[]);
        check(min, "{}", &["minimum cpu usage per Container is 50m.  No request is specified"]);
        check(min, r#"{"requests":{"cpu":"40m"}}"#, &["minimum cpu usage per Container is 50m, but request is 40m"]);
        let max = r#"{"type":"Pod","max":{"memory":"1Gi"}}"#;
        check(max, "{}", &["maximum memory usage per Pod is 1Gi.  No limit is specified"]);
        check(max, r#"{"limits":{"memory":"2Gi"}}"#, &["maximum memory usage per Pod is 1Gi, but limit is 2Gi"]);
    }

    #[test]
    fn ratios_are_told_with_six_digits() {
        let ratio = r#"{"type":"Container","maxLimitRequestRatio":{"cpu":"4"}}"#;
        check(
            ratio,
            r#"{"requests":{"cpu":"100m"},"limits":{"cpu":"900m"}}"#,
            &["cpu max limit to request ratio per Container is 4, but provided ratio is 9.000000"],
        );
        check(ratio, r#"{"requests":{"cpu":"1"},"limits":{"cpu":"4"}}"#, &[]);
        check(
            ratio,
            "{}",
            &["cpu max limit to request ratio per Container is 4, but no request is specified or request is 0"],
        );
    }

    #[test]
    fn defaults_are_told_in_an_annotation() {
        let range = parse(
            r#"{"spec":{"limits":[{"type":"Container","default":{"cpu":"2"},"defaultRequest":{"cpu":"1","memory":"1Mi"}}]}}"#,
        );
        let mut pod = parse(
            r#"{"spec":{"containers":[{"name":"c"}],"initContainers":[{"name":"i","resources":{"limits":{"cpu":"1"}}}]}}"#,
        );
        set_defaults(&mut pod, &range);
        assert_eq!(
            pod.annotation(ANNOTATION),
            Some(
                "LimitRanger plugin set: cpu, memory request for container c; cpu limit for container c; cpu, memory request for init container i"
            )
        );
    }
}
