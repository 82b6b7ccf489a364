//! What conformance demands of a cluster, each behaviour as a named check. The checks of one area share a cluster, and each
//! has a namespace of its own in it.

mod auth;
mod jobs;
mod kubectl;
mod network;
mod scheduling;
mod workloads;

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::{Value, json};

use super::OneNode;
use super::host::{Host, Said, holds_in_time};

/// A namespace on a cluster.
struct Space<'a> {
    host: &'a Host,
    name: &'a str,
}

type Check = (&'static str, fn(&Space<'_>));

/// Runs all checks on one cluster, and fails with the names of those that did not hold.
fn hold(checks: &[Check]) {
    let cluster = OneNode::start(&[]);
    let mut broken = Vec::new();
    for (name, check) in checks {
        let namespace = name.replace('_', "-");
        let space = Space { host: &cluster.host, name: &namespace };
        space.host.kubectl_ok(&["create", "namespace", space.name], "");
        if catch_unwind(AssertUnwindSafe(|| check(&space))).is_err() {
            broken.push(*name);
        }
        space.host.kubectl(&["delete", "namespace", space.name, "--wait=false"], "");
    }
    assert!(broken.is_empty(), "{} of {} do not hold: {broken:?}", broken.len(), checks.len());
}

/// A table of checks by their functions' names.
macro_rules! checks {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name as fn(&super::Space<'_>))),*] };
}
use checks;

impl Space<'_> {
    fn kubectl(&self, args: &[&str], input: &str) -> Said {
        self.host.kubectl(&[&["-n", self.name], args].concat(), input)
    }

    #[track_caller]
    fn kubectl_ok(&self, args: &[&str], input: &str) -> String {
        let said = self.kubectl(args, input);
        assert!(said.ok, "kubectl {args:?}: {}{}", said.out, said.err);
        said.out
    }

    #[track_caller]
    fn create(&self, object: &Value) {
        self.kubectl_ok(&["create", "-f", "-"], &object.to_string());
    }

    /// Asks for a pod's eviction.
    fn evict(&self, pod: &str) -> Said {
        let path = format!("/api/v1/namespaces/{}/pods/{pod}/eviction", self.name);
        let metadata = json!({"name": pod, "namespace": self.name});
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata});
        self.kubectl(&["create", "--raw", &path, "-f", "-"], &eviction.to_string())
    }

    /// An object, `kind/name`; null when there is none.
    fn get(&self, what: &str) -> Value {
        let said = self.kubectl(&["get", what, "-o", "json"], "");
        serde_json::from_str(&said.out).unwrap_or_default()
    }

    fn list(&self, kind: &str, selector: &str) -> Vec<Value> {
        let said = self.kubectl_ok(&["get", kind, "-l", selector, "-o", "json"], "");
        serde_json::from_str::<Value>(&said).unwrap()["items"].as_array().unwrap().clone()
    }

    #[track_caller]
    fn merge(&self, what: &str, patch: &Value) {
        self.kubectl_ok(&["patch", what, "--type=merge", "-p", &patch.to_string()], "");
    }

    #[track_caller]
    fn merge_sub(&self, what: &str, subresource: &str, patch: &Value) {
        let subresource = format!("--subresource={subresource}");
        self.kubectl_ok(&["patch", what, &subresource, "--type=merge", "-p", &patch.to_string()], "");
    }

    /// Waits until something holds of an object.
    #[track_caller]
    fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let done = holds_in_time(|| {
            last = self.get(what);
            holds(&last)
        });
        assert!(done, "{what} is still {last:#}\n{}", self.picture());
        last
    }

    /// Waits until something holds of the objects with these labels.
    #[track_caller]
    fn until_all(&self, kind: &str, selector: &str, holds: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let mut last = Vec::new();
        let done = holds_in_time(|| {
            last = self.list(kind, selector);
            holds(&last)
        });
        assert!(done, "{kind} {selector} are still {:#}\n{}", json!(last), self.picture());
        last
    }

    fn picture(&self) -> String {
        self.kubectl(&["get", "all,events", "-o", "wide"], "").out
    }
}

/// A pod's spec that runs this in a shell.
fn runs(script: &str) -> Value {
    json!({
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "kelson.local/hello:1", "imagePullPolicy": "Never", "command": ["sh", "-c", script]}],
    })
}

fn template(app: &str, spec: Value) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": spec})
}

fn pod(name: &str, app: &str, spec: Value) -> Value {
    let mut pod = template(app, spec);
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["name"] = name.into();
    pod
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready") == Some("True")
}

fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a str> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|c| c["type"] == type_)?["status"].as_str()
}

fn controller_of(object: &Value) -> Option<&str> {
    let owners = object["metadata"]["ownerReferences"].as_array()?;
    owners.iter().find(|owner| owner["controller"] == true)?["name"].as_str()
}
