//! Pod.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::pod_template;
use crate::strategy::{Cell, Deletion, Now, Strategy, require};
use crate::table_cells;

pub(crate) struct PodStrategy;

impl Strategy for PodStrategy {
    fn default(&self, pod: &mut Value) {
        pod_template::default_spec(pod.entry(&["spec"]));
        pod.set_default(&["spec", "enableServiceLinks"], true);
    }

    fn prepare_for_create(&self, pod: &mut Value) {
        pod.set(&["status"], Value::from([("phase", "Pending".into()), ("qosClass", qos_class(pod).into())]));
        if pod["spec"]["schedulingGates"].items().is_empty() {
            return;
        }
        let gated = Value::from([
            ("type", "PodScheduled".into()),
            ("status", "False".into()),
            ("reason", "SchedulingGated".into()),
            ("message", "Scheduling is blocked due to non-empty scheduling gates".into()),
        ]);
        pod.set(&["status", "conditions"], vec![gated]);
    }

    fn validate(&self, pod: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        validate_spec(&Cursor::root(pod).field("spec"), &mut errs);
        errs
    }

    /// Of a pod's spec only images, tolerations (added), deadlines and gates (removed) may change.
    fn validate_update(&self, pod: &Value, old: &Value) -> FieldErrors {
        let mut errs = self.validate(pod);
        if fixed_part(pod) != fixed_part(old) {
            errs.forbidden(
                &Cursor::root(pod).field("spec").path,
                "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
            );
        }
        errs
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn selectable_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[
            ("spec.nodeName", &["spec", "nodeName"]),
            ("spec.restartPolicy", &["spec", "restartPolicy"]),
            ("spec.schedulerName", &["spec", "schedulerName"]),
            ("spec.serviceAccountName", &["spec", "serviceAccountName"]),
            ("spec.hostNetwork", &["spec", "hostNetwork"]),
            ("status.phase", &["status", "phase"]),
            ("status.podIP", &["status", "podIP"]),
            ("status.nominatedNodeName", &["status", "nominatedNodeName"]),
        ]
    }

    fn deletion(&self, pod: &Value, asked: Option<i64>) -> Deletion {
        let phase = pod.str_at(&["status", "phase"]);
        // Nobody runs it: there is nobody to wait for.
        if pod.str_at(&["spec", "nodeName"]).is_empty() || phase == "Failed" || phase == "Succeeded" {
            return Deletion::Graceful(0);
        }
        let own = pod["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
        match asked.unwrap_or(own).max(0) {
            0 if asked == Some(0) => Deletion::Graceful(0),
            seconds => Deletion::Graceful(seconds.max(1)),
        }
    }

    fn row(&self, pod: &Value, now: Now) -> Option<Vec<Cell>> {
        Some(row(pod, now))
    }
}

fn validate_spec(spec: &Cursor<'_>, errs: &mut FieldErrors) {
    let containers = spec.field("containers");
    if require(errs, &containers) {
        let mut names: Vec<&str> = Vec::new();
        for container in containers.elements() {
            let name = container.value.str_at(&["name"]);
            if name.is_empty() {
                errs.required(&container.path.child("name"), "");
            } else if names.contains(&name) {
                errs.duplicate(&container.path.child("name"), name);
            }
            names.push(name);
            if container.str_at(&["image"]).is_empty() {
                errs.required(&container.path.child("image"), "");
            }
        }
    }
    let policy = spec.field("restartPolicy");
    if !["Always", "OnFailure", "Never"].contains(&policy.as_str().unwrap_or_default()) {
        errs.not_supported(&policy, &["Always", "OnFailure", "Never"]);
    }
}

/// The pod's spec without the parts that an update may change.
fn fixed_part(pod: &Value) -> Value {
    let mut spec = pod["spec"].clone();
    for list in ["containers", "initContainers"] {
        if let Some(containers) = spec.get_mut(list) {
            for container in containers.items_mut() {
                container.remove(&["image"]);
            }
        }
    }
    for field in [
        "activeDeadlineSeconds",
        "tolerations",
        "terminationGracePeriodSeconds",
        "schedulingGates",
        "nodeSelector",
        "affinity",
    ] {
        if field == "nodeSelector" || field == "affinity" {
            // Only while gated; then the scheduler has not looked yet.
            if pod["spec"]["schedulingGates"].items().is_empty() {
                continue;
            }
        }
        spec.remove(&[field]);
    }
    spec
}

/// Guaranteed, Burstable or BestEffort.
pub(crate) fn qos_class(pod: &Value) -> &'static str {
    let spec = &pod["spec"];
    let all: Vec<&Value> = ["containers", "initContainers"].iter().flat_map(|l| spec[*l].items()).collect();
    let zero = |v: &Value| v.is_null() || matches!(v.as_str(), Some("0"));
    let get = |c: &Value, kind: &str, name: &str| c.at(&["resources", kind, name]).clone();
    let names = ["cpu", "memory"];
    let any = all.iter().any(|c| names.iter().any(|n| !zero(&get(c, "requests", n)) || !zero(&get(c, "limits", n))));
    if !any {
        return "BestEffort";
    }
    let guaranteed = all.iter().all(|c| {
        names.iter().all(|n| {
            let (request, limit) = (get(c, "requests", n), get(c, "limits", n));
            !zero(&limit) && (request == limit || request.is_null())
        })
    });
    if guaranteed { "Guaranteed" } else { "Burstable" }
}

/// Name, Ready, Status, Restarts, Age; IP, Node, Nominated Node, Readiness Gates.
fn row(pod: &Value, now: Now) -> Vec<Cell> {
    let status = &pod["status"];
    let spec = &pod["spec"];
    let mut reason = status.str_at(&["phase"]).to_owned();
    if !status.str_at(&["reason"]).is_empty() {
        reason = status.str_at(&["reason"]).to_owned();
    }
    let gated = status["conditions"]
        .items()
        .iter()
        .any(|c| c.str_at(&["type"]) == "PodScheduled" && c.str_at(&["reason"]) == "SchedulingGated");
    if gated {
        "SchedulingGated".clone_into(&mut reason);
    }
    let sidecar = |name: &str| {
        spec["initContainers"]
            .items()
            .iter()
            .any(|c| c.str_at(&["name"]) == name && c.str_at(&["restartPolicy"]) == "Always")
    };
    let (mut ready, mut restarts, mut last_restart) = (0i64, 0i64, None::<i64>);
    let mut total = i64::try_from(spec["containers"].items().len()).unwrap_or_default();
    let mut initializing = false;
    let inits = spec["initContainers"].items().len();
    for (i, c) in status["initContainerStatuses"].items().iter().enumerate() {
        let is_sidecar = sidecar(c.str_at(&["name"]));
        if is_sidecar {
            total += 1;
        }
        restarts += c["restartCount"].as_i64().unwrap_or_default();
        let terminated = &c["state"]["terminated"];
        let waiting = c.str_at(&["state", "waiting", "reason"]);
        if terminated["exitCode"].as_i64() == Some(0) || (is_sidecar && c["started"].as_bool() == Some(true)) {
            if is_sidecar && c["ready"].as_bool() == Some(true) {
                ready += 1;
            }
            continue;
        }
        reason = if !terminated.is_null() {
            match (terminated.str_at(&["reason"]), terminated["signal"].as_i64().unwrap_or_default()) {
                ("", 0) => format!("Init:ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or_default()),
                ("", signal) => format!("Init:Signal:{signal}"),
                (why, _) => format!("Init:{why}"),
            }
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{inits}")
        };
        initializing = true;
        break;
    }
    if !initializing {
        restarts = status["initContainerStatuses"]
            .items()
            .iter()
            .filter(|c| sidecar(c.str_at(&["name"])))
            .map(|c| c["restartCount"].as_i64().unwrap_or_default())
            .sum();
        let mut running = false;
        for c in status["containerStatuses"].items().iter().rev() {
            restarts += c["restartCount"].as_i64().unwrap_or_default();
            let finished = table_cells::seconds_of(c.at(&["lastState", "terminated", "finishedAt"]));
            last_restart = last_restart.max(finished);
            let waiting = c.str_at(&["state", "waiting", "reason"]);
            let terminated = &c["state"]["terminated"];
            if !waiting.is_empty() {
                waiting.clone_into(&mut reason);
            } else if !terminated.is_null() {
                reason = match (terminated.str_at(&["reason"]), terminated["signal"].as_i64().unwrap_or_default()) {
                    ("", 0) => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or_default()),
                    ("", signal) => format!("Signal:{signal}"),
                    (why, _) => why.to_owned(),
                };
            } else if c["ready"].as_bool() == Some(true) && !c.at(&["state", "running"]).is_null() {
                running = true;
                ready += 1;
            }
        }
        if reason == "Completed" && running {
            let is_ready = status["conditions"]
                .items()
                .iter()
                .any(|c| c.str_at(&["type"]) == "Ready" && c.str_at(&["status"]) == "True");
            reason = if is_ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
    if pod.is_deleting() {
        reason = if status.str_at(&["reason"]) == "NodeLost" {
            "Unknown".to_owned()
        } else if !matches!(status.str_at(&["phase"]), "Succeeded" | "Failed") {
            "Terminating".to_owned()
        } else {
            reason
        };
    }
    let restarts = match last_restart.filter(|_| restarts != 0) {
        Some(then) => format!("{restarts} ({} ago)", table_cells::human_duration(now.0 - then)),
        None => restarts.to_string(),
    };
    let or_none = |text: &str| if text.is_empty() { Value::from("<none>") } else { Value::from(text) };
    let gates = spec["readinessGates"].items();
    let gates = if gates.is_empty() {
        Value::from("<none>")
    } else {
        let is_true = |kind: &str| {
            status["conditions"].items().iter().any(|c| c.str_at(&["type"]) == kind && c.str_at(&["status"]) == "True")
        };
        let met = gates.iter().filter(|g| is_true(g.str_at(&["conditionType"]))).count();
        Value::from(format!("{met}/{}", gates.len()))
    };
    vec![
        pod.name().into(),
        format!("{ready}/{total}").into(),
        reason.into(),
        restarts.into(),
        table_cells::created(pod, now),
        or_none(status.str_at(&["podIP"])),
        or_none(spec.str_at(&["nodeName"])),
        or_none(status.str_at(&["nominatedNodeName"])),
        gates,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_loop_shows_in_the_table() {
        let pod: Value = serde_json::from_str(
            r#"{"metadata":{"name":"p","creationTimestamp":"1970-01-01T00:00:00Z"},"spec":{"containers":[{"name":"c"}],"nodeName":"n"},
            "status":{"phase":"Running","podIP":"10.1.1.1","containerStatuses":[{"name":"c","ready":false,"restartCount":3,
            "state":{"waiting":{"reason":"CrashLoopBackOff"}},"lastState":{"terminated":{"finishedAt":"1970-01-01T00:01:00Z"}}}]}}"#,
        )
        .unwrap();
        let cells: Vec<String> =
            row(&pod, Now(100)).iter().map(|c| c.as_str().unwrap_or_default().to_owned()).collect();
        assert_eq!(cells, ["p", "0/1", "CrashLoopBackOff", "3 (40s ago)", "100s", "10.1.1.1", "n", "<none>", "<none>"]);
    }

    #[test]
    fn pods_that_nobody_runs_go_at_once() {
        let bound: Value =
            serde_json::from_str(r#"{"spec":{"nodeName":"n","terminationGracePeriodSeconds":5}}"#).unwrap();
        assert_eq!(PodStrategy.deletion(&Value::object(), None), Deletion::Graceful(0));
        assert_eq!(PodStrategy.deletion(&bound, None), Deletion::Graceful(5));
        assert_eq!(PodStrategy.deletion(&bound, Some(0)), Deletion::Graceful(0));
    }
}
