//! What the registry asks about pods.

use apimachinery::Value;
use apimachinery::field::FieldErrors;

use super::{change, create, defaults, qos_class, scheduling, status, table, warnings};
use crate::strategy::{Cell, Deletion, Now, Strategy};

pub(crate) struct PodStrategy;

impl Strategy for PodStrategy {
    fn default(&self, pod: &mut Value) {
        defaults::default_pod(pod);
    }

    fn prepare_for_create(&self, pod: &mut Value) {
        pod.set(&["status"], Value::from([("phase", "Pending".into()), ("qosClass", qos_class(pod).into())]));
        scheduling::merge_label_keys(pod);
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

    fn prepare_for_status_update(&self, pod: &mut Value, old: &Value) {
        if pod.str_at(&["status", "qosClass"]).is_empty() && !old.at(&["status", "qosClass"]).is_null() {
            pod.set(&["status", "qosClass"], old.at(&["status", "qosClass"]).clone());
        }
        // Old kubelets would lose the owners.
        match old.meta("ownerReferences") {
            Value::Null => {
                pod.remove(&["metadata", "ownerReferences"]);
            }
            owners => pod.set(&["metadata", "ownerReferences"], owners.clone()),
        }
    }

    fn validate(&self, pod: &Value) -> FieldErrors {
        create::validate(pod)
    }

    fn validate_update(&self, pod: &Value, old: &Value) -> FieldErrors {
        change::validate(pod, old)
    }

    fn validate_status_update(&self, pod: &Value, old: &Value) -> FieldErrors {
        status::validate(pod, old)
    }

    fn warnings(&self, pod: &Value, old: Option<&Value>) -> Vec<String> {
        warnings::of_pod(pod, old)
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
        // A pod that wants no time is removed without waiting for its node, as with `--grace-period=0`.
        let own = pod["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or_default();
        match asked.unwrap_or(own) {
            ..0 => Deletion::Graceful(1),
            seconds => Deletion::Graceful(seconds),
        }
    }

    fn row(&self, pod: &Value, now: Now) -> Option<Vec<Cell>> {
        Some(table::row(pod, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_that_nobody_runs_go_at_once() {
        let bound: Value =
            serde_json::from_str(r#"{"spec":{"nodeName":"n","terminationGracePeriodSeconds":5}}"#).unwrap();
        assert_eq!(PodStrategy.deletion(&Value::object(), None), Deletion::Graceful(0));
        assert_eq!(PodStrategy.deletion(&bound, None), Deletion::Graceful(5));
        assert_eq!(PodStrategy.deletion(&bound, Some(0)), Deletion::Graceful(0));
        assert_eq!(PodStrategy.deletion(&bound, Some(-3)), Deletion::Graceful(1));
        let hurried = serde_json::from_str(r#"{"spec":{"nodeName":"n","terminationGracePeriodSeconds":0}}"#).unwrap();
        assert_eq!(PodStrategy.deletion(&hurried, None), Deletion::Graceful(0));
    }
}
