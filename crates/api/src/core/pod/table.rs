//! A pod as a row: Name, Ready, Status, Restarts, Age; IP, Node, Nominated Node, Readiness Gates.

use apimachinery::Value;

use crate::strategy::{Cell, Now};
use crate::table_cells;
use crate::validation::int;

/// What the containers tell together.
struct Summary {
    reason: String,
    ready: usize,
    restarts: i64,
    last_restart: Option<i64>,
}

pub(super) fn row(pod: &Value, now: Now) -> Vec<Cell> {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let sidecars = spec["initContainers"].items().iter().filter(|c| c.str_at(&["restartPolicy"]) == "Always").count();
    let total = spec["containers"].items().len() + sidecars;
    let summary = summarize(pod);
    let restarts = match summary.last_restart.filter(|_| summary.restarts != 0) {
        Some(then) => format!("{} ({} ago)", summary.restarts, table_cells::human_duration(now.0 - then)),
        None => summary.restarts.to_string(),
    };
    let or_none = |text: &str| if text.is_empty() { Value::from("<none>") } else { Value::from(text) };
    let ip = status["podIPs"].items().first().map_or(status.str_at(&["podIP"]), |ip| ip.str_at(&["ip"]));
    vec![
        pod.name().into(),
        format!("{}/{total}", summary.ready).into(),
        summary.reason.into(),
        restarts.into(),
        table_cells::created(pod, now),
        or_none(ip),
        or_none(spec.str_at(&["nodeName"])),
        or_none(status.str_at(&["nominatedNodeName"])),
        gates(pod),
    ]
}

fn has_condition(pod: &Value, kind: &str) -> bool {
    let mut all = pod.at(&["status", "conditions"]).items().iter();
    all.any(|c| c.str_at(&["type"]) == kind && c.str_at(&["status"]) == "True")
}

fn gates(pod: &Value) -> Value {
    let gates = pod.at(&["spec", "readinessGates"]).items();
    if gates.is_empty() {
        return "<none>".into();
    }
    let met = gates.iter().filter(|g| has_condition(pod, g.str_at(&["conditionType"]))).count();
    format!("{met}/{}", gates.len()).into()
}

fn summarize(pod: &Value) -> Summary {
    let status = &pod["status"];
    let own = status.str_at(&["reason"]);
    let mut summary = Summary {
        reason: if own.is_empty() { status.str_at(&["phase"]) } else { own }.to_owned(),
        ready: 0,
        restarts: 0,
        last_restart: None,
    };
    let gated = |c: &Value| c.str_at(&["type"]) == "PodScheduled" && c.str_at(&["reason"]) == "SchedulingGated";
    if status["conditions"].items().iter().any(gated) {
        "SchedulingGated".clone_into(&mut summary.reason);
    }
    if !initializing(pod, &mut summary) || has_condition(pod, "Initialized") {
        running(pod, &mut summary);
    }
    if pod.is_deleting() {
        if own == "NodeLost" {
            "Unknown".clone_into(&mut summary.reason);
        } else if !matches!(status.str_at(&["phase"]), "Succeeded" | "Failed") {
            "Terminating".clone_into(&mut summary.reason);
        }
    }
    summary
}

fn finished(status: &Value) -> Option<i64> {
    table_cells::seconds_of(status.at(&["lastState", "terminated", "finishedAt"]))
}

fn is_sidecar(pod: &Value, name: &str) -> bool {
    let mut all = pod.at(&["spec", "initContainers"]).items().iter();
    all.any(|c| c.str_at(&["name"]) == name && c.str_at(&["restartPolicy"]) == "Always")
}

/// How an ended container ended.
fn ending(terminated: &Value) -> String {
    match (terminated.str_at(&["reason"]), int(&terminated["signal"])) {
        ("", 0) => format!("ExitCode:{}", int(&terminated["exitCode"])),
        ("", signal) => format!("Signal:{signal}"),
        (why, _) => why.to_owned(),
    }
}

/// Goes through the init containers up to the one that is at work; tells whether there is one.
fn initializing(pod: &Value, summary: &mut Summary) -> bool {
    let total = pod.at(&["spec", "initContainers"]).items().len();
    for (i, status) in pod.at(&["status", "initContainerStatuses"]).items().iter().enumerate() {
        summary.restarts += int(&status["restartCount"]);
        summary.last_restart = summary.last_restart.max(finished(status));
        let terminated = status.at(&["state", "terminated"]);
        let waiting = status.str_at(&["state", "waiting", "reason"]);
        if !terminated.is_null() && int(&terminated["exitCode"]) == 0 {
            continue;
        }
        if is_sidecar(pod, status.str_at(&["name"])) && status["started"].as_bool() == Some(true) {
            summary.ready += usize::from(status["ready"].as_bool() == Some(true));
            continue;
        }
        summary.reason = if !terminated.is_null() {
            format!("Init:{}", ending(terminated))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{total}")
        };
        return true;
    }
    false
}

fn running(pod: &Value, summary: &mut Summary) {
    let sidecars = pod.at(&["status", "initContainerStatuses"]).items().iter();
    let sidecars: Vec<&Value> = sidecars.filter(|s| is_sidecar(pod, s.str_at(&["name"]))).collect();
    summary.restarts = sidecars.iter().map(|s| int(&s["restartCount"])).sum();
    summary.last_restart = sidecars.iter().filter_map(|s| finished(s)).max();
    let mut any = false;
    for status in pod.at(&["status", "containerStatuses"]).items().iter().rev() {
        summary.restarts += int(&status["restartCount"]);
        summary.last_restart = summary.last_restart.max(finished(status));
        let waiting = status.str_at(&["state", "waiting", "reason"]);
        let terminated = status.at(&["state", "terminated"]);
        if !waiting.is_empty() {
            waiting.clone_into(&mut summary.reason);
        } else if !terminated.is_null() {
            summary.reason = ending(terminated);
        } else if status["ready"].as_bool() == Some(true) && !status.at(&["state", "running"]).is_null() {
            any = true;
            summary.ready += 1;
        }
    }
    if summary.reason == "Completed" && any {
        let is_ready = has_condition(pod, "Ready");
        if is_ready { "Running" } else { "NotReady" }.clone_into(&mut summary.reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pod: &str, want: &[&str]) {
        let pod: Value = serde_json::from_str(pod).unwrap();
        let cells: Vec<String> =
            row(&pod, Now(100)).iter().map(|c| c.as_str().unwrap_or_default().to_owned()).collect();
        assert_eq!(cells[..want.len()], *want);
    }

    #[test]
    fn a_crash_loop_shows_in_the_table() {
        check(
            r#"{"metadata":{"name":"p","creationTimestamp":"1970-01-01T00:00:00Z"},"spec":{"containers":[{"name":"c"}],"nodeName":"n"},
            "status":{"phase":"Running","podIP":"10.1.1.1","containerStatuses":[{"name":"c","ready":false,"restartCount":3,
            "state":{"waiting":{"reason":"CrashLoopBackOff"}},"lastState":{"terminated":{"finishedAt":"1970-01-01T00:01:00Z"}}}]}}"#,
            &["p", "0/1", "CrashLoopBackOff", "3 (40s ago)", "100s", "10.1.1.1", "n", "<none>", "<none>"],
        );
    }

    #[test]
    fn sidecars_count_among_the_containers() {
        check(
            r#"{"metadata":{"name":"p"},"spec":{"containers":[{"name":"c"}],"initContainers":[{"name":"s","restartPolicy":"Always"},{"name":"i"}]},
            "status":{"phase":"Pending","initContainerStatuses":[{"name":"s","started":true,"ready":true,"restartCount":1},
            {"name":"i","state":{"terminated":{"exitCode":2}}}]}}"#,
            &["p", "1/2", "Init:ExitCode:2", "1"],
        );
    }
}
