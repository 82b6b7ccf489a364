//! What nodes do for pods, behaviour by behaviour: each check names one that every cluster must show.

mod configured;
mod given;
mod life;
mod metrics;
mod plugins;
mod storage;

use std::fmt::Display;
use std::time::Duration;

use serde_json::{Value, json};

use testing::wait::last_within;

use super::host::Host;

const IMAGE: &str = "kelson.local/hello:1";

/// Behaviours that were looked at. All of them are, before the test fails for those that do not hold.
#[derive(Default)]
struct Walk {
    count: usize,
    failed: Vec<String>,
}

impl Walk {
    fn check(&mut self, behaviour: &str, holds: bool, seen: &dyn Display) {
        self.count += 1;
        if !holds {
            self.failed.push(format!("{behaviour}\n    seen: {seen}"));
        }
    }

    fn contains(&mut self, behaviour: &str, text: &str, wanted: &str) {
        self.check(behaviour, text.contains(wanted), &format!("{text:?} without {wanted:?}"));
    }

    fn equals(&mut self, behaviour: &str, got: &str, wanted: &str) {
        self.check(behaviour, got == wanted, &format!("{got:?} for {wanted:?}"));
    }

    #[track_caller]
    fn end(self, host: &Host) {
        let (failed, count) = (self.failed.len(), self.count);
        assert!(failed == 0, "{failed} of {count} behaviours do not hold:\n{}\n{}", self.failed.join("\n"), host.log());
    }
}

/// A container that runs a script in the hello image.
fn sh(name: &str, script: &str) -> Value {
    json!({ "name": name, "image": IMAGE, "imagePullPolicy": "Never", "command": ["sh", "-c", script] })
}

/// The container with more fields.
fn with(mut container: Value, more: Value) -> Value {
    if let (Some(all), Value::Object(more)) = (container.as_object_mut(), more) {
        all.extend(more);
    }
    container
}

fn pod(name: &str, spec: Value) -> Value {
    let spec = with(json!({ "terminationGracePeriodSeconds": 1 }), spec);
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "app": name } }, "spec": spec })
}

/// A pod that runs its containers once.
fn once(name: &str, spec: Value) -> Value {
    pod(name, with(spec, json!({ "restartPolicy": "Never" })))
}

fn apply(host: &Host, objects: &[Value]) {
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
    host.kubectl_ok(&["apply", "-f", "-"], &list.to_string());
}

/// A field of an object, as JSONPath finds it; nothing while there is none.
fn field(host: &Host, object: &str, path: &str) -> String {
    host.kubectl(&["get", object, "-o", &format!("jsonpath={{{path}}}")], "").out
}

/// Several fields of an object, with a space between.
fn fields(host: &Host, object: &str, paths: &[&str]) -> String {
    let template: Vec<String> = paths.iter().map(|path| format!("{{{path}}}")).collect();
    host.kubectl(&["get", object, "-o", &format!("jsonpath={}", template.join(" "))], "").out
}

fn events_of(host: &Host, pod: &str) -> String {
    host.kubectl(&["get", "events", &format!("--field-selector=involvedObject.name={pod}")], "").out
}

const LONG: Duration = Duration::from_secs(120);

fn phase(host: &Host, name: &str, wanted: &[&str]) -> String {
    let pod = format!("pod/{name}");
    last_within(LONG, || field(host, &pod, ".status.phase"), |phase| wanted.contains(&phase.as_str()))
}

/// What a pod that runs once has said, after its end.
fn said_by(host: &Host, name: &str) -> String {
    let end = phase(host, name, &["Succeeded", "Failed"]);
    let said = host.kubectl(&["logs", name, "--all-containers"], "");
    format!("{end}\n{}{}", said.out, said.err)
}

fn exec(host: &Host, pod: &str, script: &str) -> String {
    let said = host.kubectl(&["exec", pod, "--", "sh", "-c", script], "");
    if said.ok { said.out } else { format!("{}{}", said.out, said.err) }
}
