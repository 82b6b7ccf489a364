//! Between v1, which knows one metric, and v2.

use apimachinery::Value;

use super::annotations;
use crate::go_json::{self, Struct};

/// Scale by how much of the cpu that they ask for the pods use.
pub(super) fn cpu_metric(percent: Value) -> Value {
    let target = Value::from([("type", "Utilization".into()), ("averageUtilization", percent)]);
    Value::from([("type", "Resource".into()), ("resource", Value::from([("name", "cpu".into()), ("target", target)]))])
}

fn is_cpu_utilization(metric: &Value) -> bool {
    metric.str_at(&["type"]) == "Resource"
        && metric.str_at(&["resource", "name"]) == "cpu"
        && !metric.at(&["resource", "target", "averageUtilization"]).is_null()
}

/// v1 to v2: fields, and what annotations hold.
pub(super) fn to_v2(autoscaler: &mut Value) {
    let read =
        |key: &str, object: &Value| object.annotation(key).and_then(|text| serde_json::from_str::<Value>(text).ok());
    let target = autoscaler.remove(&["spec", "targetCPUUtilizationPercentage"]).filter(|t| !t.is_null());
    let mut metrics: Vec<Value> =
        read(annotations::METRICS, autoscaler).map_or_else(Vec::new, |m| m.items().iter().map(metric_v2).collect());
    metrics.extend(target.map(cpu_metric));
    if !metrics.is_empty() {
        autoscaler.set(&["spec", "metrics"], metrics);
    }
    if let Some(behavior) = autoscaler.annotation(annotations::BEHAVIOR).and_then(annotations::parse_behavior) {
        autoscaler.set(&["spec", "behavior"], behavior);
    }
    let current = autoscaler.remove(&["status", "currentCPUUtilizationPercentage"]).filter(|c| !c.is_null());
    let statuses: Vec<Value> = match read(annotations::STATUSES, autoscaler) {
        Some(list) if !list.items().is_empty() => list.items().iter().map(status_v2).collect(),
        _ => current.map(cpu_status).into_iter().collect(),
    };
    if !statuses.is_empty() {
        autoscaler.set(&["status", "currentMetrics"], statuses);
    }
    if let Some(conditions) = read(annotations::CONDITIONS, autoscaler).filter(|c| !c.items().is_empty()) {
        autoscaler.set(&["status", "conditions"], conditions);
    }
    // What v1 always writes v2 may leave out, and the other way round.
    if !autoscaler["status"].is_null() {
        if autoscaler.at(&["status", "currentReplicas"]).is_empty_value() {
            autoscaler.remove(&["status", "currentReplicas"]);
        }
        autoscaler.entry(&["status", "currentMetrics"]);
    }
    for key in annotations::ALL {
        autoscaler.remove(&["metadata", "annotations", key]);
    }
    if autoscaler.meta("annotations").is_empty_value() {
        autoscaler.remove(&["metadata", "annotations"]);
    }
    autoscaler.set(&["apiVersion"], "autoscaling/v2");
}

fn cpu_status(percent: Value) -> Value {
    let current = Value::from([("averageUtilization", percent), ("averageValue", "0".into())]);
    Value::from([
        ("type", "Resource".into()),
        ("resource", Value::from([("name", "cpu".into()), ("current", current)])),
    ])
}

/// v2 to v1: what v1 has no fields for goes into annotations.
pub(super) fn to_v1(autoscaler: &mut Value) {
    let metrics = autoscaler.remove(&["spec", "metrics"]).unwrap_or_default();
    let behavior = autoscaler.remove(&["spec", "behavior"]).unwrap_or_default();
    let statuses = autoscaler.remove(&["status", "currentMetrics"]).unwrap_or_default();
    let conditions = autoscaler.remove(&["status", "conditions"]).unwrap_or_default();
    if let Some(cpu) = metrics.items().iter().find(|m| is_cpu_utilization(m)) {
        let percent = cpu.at(&["resource", "target", "averageUtilization"]).clone();
        autoscaler.set(&["spec", "targetCPUUtilizationPercentage"], percent);
    }
    let current = statuses.items().iter().find(|s| s.str_at(&["resource", "name"]) == "cpu");
    if let Some(percent) =
        current.map(|s| s.at(&["resource", "current", "averageUtilization"])).filter(|p| !p.is_null())
    {
        autoscaler.set(&["status", "currentCPUUtilizationPercentage"], percent.clone());
    }
    let others: Vec<String> =
        metrics.items().iter().filter(|m| !is_cpu_utilization(m)).map(|m| metric_v1(m, &SPEC)).collect();
    let statuses: Vec<String> = statuses.items().iter().map(|s| metric_v1(s, &STATUS)).collect();
    let conditions: Vec<String> = conditions.items().iter().map(condition_v1).collect();
    for (key, list) in
        [(annotations::METRICS, others), (annotations::STATUSES, statuses), (annotations::CONDITIONS, conditions)]
    {
        if !list.is_empty() {
            autoscaler.set(&["metadata", "annotations", key], format!("[{}]", list.join(",")));
        }
    }
    if !behavior.is_null() {
        autoscaler.set(&["metadata", "annotations", annotations::BEHAVIOR], annotations::behavior(&behavior));
    }
    for field in ["currentReplicas", "desiredReplicas"] {
        autoscaler.set_default(&["status", field], 0i64);
    }
    autoscaler.set(&["apiVersion"], "autoscaling/v1");
}

fn condition_v1(condition: &Value) -> String {
    let mut whole = Struct::default().always("type", &condition["type"]).always("status", &condition["status"]);
    whole = whole.always("lastTransitionTime", &condition["lastTransitionTime"]);
    for field in ["reason", "message"] {
        if !condition.str_at(&[field]).is_empty() {
            whole = whole.always(field, &condition[field]);
        }
    }
    whole.finish()
}

/// How v1 names the parts of a metric, for what is aimed at and for what there is.
struct Names {
    from: &'static str,
    value: &'static str,
    average: &'static str,
    utilization: &'static str,
}

const SPEC: Names = Names {
    from: "target",
    value: "targetValue",
    average: "targetAverageValue",
    utilization: "targetAverageUtilization",
};
const STATUS: Names = Names {
    from: "current",
    value: "currentValue",
    average: "currentAverageValue",
    utilization: "currentAverageUtilization",
};

/// A metric as v1's annotations have it.
fn metric_v1(metric: &Value, names: &Names) -> String {
    let zero = Value::from("0");
    let or_zero = |v: &Value| if v.is_null() { zero.clone() } else { v.clone() };
    let mut whole = Struct::default().always("type", &metric["type"]);
    let object = &metric["object"];
    if !object.is_null() {
        let amounts = &object[names.from];
        let part = Struct::default().nested("target", Some(annotations::reference(&object["describedObject"])));
        let part = part.always("metricName", object.at(&["metric", "name"]));
        let part = part.always(names.value, &or_zero(&amounts["value"]));
        let part = part.nested("selector", go_json::selector(object.at(&["metric", "selector"])));
        whole = whole.nested("object", Some(part.optional("averageValue", &amounts["averageValue"])));
    }
    let pods = &metric["pods"];
    if !pods.is_null() {
        let part = Struct::default().always("metricName", pods.at(&["metric", "name"]));
        let part = part.always(names.average, &or_zero(&pods[names.from]["averageValue"]));
        let part = part.nested("selector", go_json::selector(pods.at(&["metric", "selector"])));
        whole = whole.nested("pods", Some(part));
    }
    for kind in ["resource", "containerResource"] {
        let resource = &metric[kind];
        if resource.is_null() {
            continue;
        }
        let amounts = &resource[names.from];
        let part = Struct::default().always("name", &resource["name"]);
        let part = part.optional(names.utilization, &amounts["averageUtilization"]);
        let part = if names.from == "current" {
            part.always(names.average, &or_zero(&amounts["averageValue"]))
        } else {
            part.optional(names.average, &amounts["averageValue"])
        };
        whole = whole.nested(kind, Some(part.optional("container", &resource["container"])));
    }
    let external = &metric["external"];
    if !external.is_null() {
        let amounts = &external[names.from];
        let part = Struct::default().always("metricName", external.at(&["metric", "name"]));
        let part = part.nested("metricSelector", go_json::selector(external.at(&["metric", "selector"])));
        let part = if names.from == "current" {
            part.always(names.value, &or_zero(&amounts["value"]))
        } else {
            part.optional(names.value, &amounts["value"])
        };
        whole = whole.nested("external", Some(part.optional(names.average, &amounts["averageValue"])));
    }
    whole.finish()
}

fn metric_v2(metric: &Value) -> Value {
    from_v1(metric, &SPEC)
}

fn status_v2(metric: &Value) -> Value {
    from_v1(metric, &STATUS)
}

/// A metric of v1's annotations as v2 has it.
fn from_v1(metric: &Value, names: &Names) -> Value {
    let mut out = Value::from([("type", metric["type"].clone())]);
    let put = |out: &mut Value, path: &[&str], value: &Value| {
        if !value.is_null() {
            out.set(path, value.clone());
        }
    };
    let is_target = names.from == "target";
    for kind in ["object", "pods", "resource", "containerResource", "external"] {
        let part = &metric[kind];
        if part.is_null() {
            continue;
        }
        let average = if kind == "object" { &part["averageValue"] } else { &part[names.average] };
        // v1 cannot leave out an object's value, and means 0 by nothing.
        let value = match (&part[names.value], kind) {
            (v, "object") if v.as_str() == Some("0") && !average.is_null() => &Value::Null,
            (v, _) => v,
        };
        let utilization = &part[names.utilization];
        put(&mut out, &[kind, "describedObject"], &part["target"]);
        put(&mut out, &[kind, "metric", "name"], &part["metricName"]);
        let selector = if kind == "external" { &part["metricSelector"] } else { &part["selector"] };
        put(&mut out, &[kind, "metric", "selector"], selector);
        put(&mut out, &[kind, "name"], &part["name"]);
        put(&mut out, &[kind, "container"], &part["container"]);
        put(&mut out, &[kind, names.from, "value"], value);
        put(&mut out, &[kind, names.from, "averageValue"], average);
        put(&mut out, &[kind, names.from, "averageUtilization"], utilization);
        if is_target {
            let aim = match (utilization.is_null(), average.is_null()) {
                (false, _) => "Utilization",
                (true, false) => "AverageValue",
                (true, true) => "Value",
            };
            out.set(&[kind, "target", "type"], aim);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[track_caller]
    fn check(v2: &str, annotations: &[(&str, &str)]) {
        let stored = json(v2);
        let mut object = stored.clone();
        to_v1(&mut object);
        for (key, want) in annotations {
            assert_eq!(object.annotation(key), Some(*want));
        }
        to_v2(&mut object);
        assert_eq!(object["spec"], stored["spec"], "and back");
    }

    #[test]
    fn metrics_go_through_annotations_and_come_back() {
        check(
            r#"{"apiVersion":"autoscaling/v2","spec":{"maxReplicas":5,"metrics":[
                {"type":"Pods","pods":{"metric":{"name":"rps"},"target":{"type":"AverageValue","averageValue":"100"}}},
                {"type":"Resource","resource":{"name":"cpu","target":{"type":"Utilization","averageUtilization":80}}}]}}"#,
            &[(annotations::METRICS, r#"[{"type":"Pods","pods":{"metricName":"rps","targetAverageValue":"100"}}]"#)],
        );
    }

    #[test]
    fn scaling_rules_are_written_as_internal_structs() {
        check(
            r#"{"apiVersion":"autoscaling/v2","spec":{"behavior":{"scaleDown":{"selectPolicy":"Max",
                "policies":[{"type":"Percent","value":10,"periodSeconds":60}]}}}}"#,
            &[(
                annotations::BEHAVIOR,
                r#"{"ScaleUp":null,"ScaleDown":{"StabilizationWindowSeconds":null,"SelectPolicy":"Max","Policies":[{"Type":"Percent","Value":10,"PeriodSeconds":60}],"Tolerance":null}}"#,
            )],
        );
    }
}
