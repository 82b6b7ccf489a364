//! The kinds that make pods: ReplicaSet, Deployment, StatefulSet, DaemonSet, ReplicationController, Job, CronJob and
//! PodTemplate.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::pod_template::default_template;
use crate::strategy::{Cell, Now, Strategy, require};
use crate::table_cells;

pub(crate) struct ReplicaSetStrategy;
pub(crate) struct DeploymentStrategy;
pub(crate) struct StatefulSetStrategy;
pub(crate) struct DaemonSetStrategy;
pub(crate) struct ReplicationControllerStrategy;
pub(crate) struct JobStrategy;
pub(crate) struct CronJobStrategy;
pub(crate) struct PodTemplateStrategy;

const TEMPLATE: &[&str] = &["spec", "template"];

/// Selector, and labels of the template that it must match.
fn validate_selector(object: &Value, errs: &mut FieldErrors) {
    let spec = Cursor::root(object).field("spec");
    let selector = spec.field("selector");
    if require(errs, &selector) {
        let labels = &spec["template"]["metadata"]["labels"];
        let matches = selector["matchLabels"].entries().iter().all(|(k, v)| labels.get(k) == Some(v));
        if !matches {
            let path = spec.path.child("template").child("metadata").child("labels");
            errs.invalid_value(&path, labels.clone(), "`selector` does not match template `labels`");
        }
    }
    let replicas = spec.field("replicas");
    if replicas.as_i64().is_some_and(|r| r < 0) {
        errs.invalid(&replicas, "must be greater than or equal to 0");
    }
}

fn validate_workload(object: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    validate_selector(object, &mut errs);
    errs
}

fn selector_stays(object: &Value, old: &Value) -> FieldErrors {
    let mut errs = validate_workload(object);
    let selector = |o| Cursor::root(o).fields(&["spec", "selector"]);
    errs.immutable(&selector(object), &selector(old));
    errs
}

fn int(value: &Value) -> i64 {
    value.as_i64().unwrap_or_default()
}

fn template_cells(object: &Value) -> [Cell; 3] {
    let (names, images) = table_cells::containers(object.at(&["spec", "template", "spec"]));
    [names.into(), images.into(), table_cells::selector(object.at(&["spec", "selector"])).into()]
}

impl Strategy for ReplicaSetStrategy {
    fn default(&self, set: &mut Value) {
        set.set_default(&["spec", "replicas"], 1i64);
        default_template(set, TEMPLATE);
    }

    fn prepare_for_create(&self, set: &mut Value) {
        set.set(&["status"], Value::from([("replicas", 0i64.into())]));
    }

    fn validate(&self, set: &Value) -> FieldErrors {
        validate_workload(set)
    }

    fn validate_update(&self, set: &Value, old: &Value) -> FieldErrors {
        selector_stays(set, old)
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn selectable_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[("status.replicas", &["status", "replicas"])]
    }

    fn row(&self, set: &Value, now: Now) -> Option<Vec<Cell>> {
        let status = &set["status"];
        let mut row: Vec<Cell> = vec![
            set.name().into(),
            int(set.at(&["spec", "replicas"])).into(),
            int(&status["replicas"]).into(),
            int(&status["readyReplicas"]).into(),
            table_cells::created(set, now),
        ];
        row.extend(template_cells(set));
        Some(row)
    }
}

impl Strategy for DeploymentStrategy {
    fn default(&self, deployment: &mut Value) {
        let spec = deployment.entry(&["spec"]);
        spec.set_default(&["replicas"], 1i64);
        spec.set_default(&["strategy", "type"], "RollingUpdate");
        if spec.str_at(&["strategy", "type"]) == "RollingUpdate" {
            spec.set_default(&["strategy", "rollingUpdate", "maxUnavailable"], "25%");
            spec.set_default(&["strategy", "rollingUpdate", "maxSurge"], "25%");
        }
        spec.set_default(&["revisionHistoryLimit"], 10i64);
        spec.set_default(&["progressDeadlineSeconds"], 600i64);
        default_template(deployment, TEMPLATE);
    }

    fn validate(&self, deployment: &Value) -> FieldErrors {
        validate_workload(deployment)
    }

    fn validate_update(&self, deployment: &Value, old: &Value) -> FieldErrors {
        selector_stays(deployment, old)
    }

    fn has_generation(&self) -> bool {
        true
    }

    /// A deployment's annotations are part of what its controller acts on.
    fn generation_changed(&self, new: &Value, old: &Value) -> bool {
        new["spec"] != old["spec"] || new.meta("annotations") != old.meta("annotations")
    }

    fn row(&self, deployment: &Value, now: Now) -> Option<Vec<Cell>> {
        let status = &deployment["status"];
        let ready = format!("{}/{}", int(&status["readyReplicas"]), int(deployment.at(&["spec", "replicas"])));
        let mut row: Vec<Cell> = vec![
            deployment.name().into(),
            ready.into(),
            int(&status["updatedReplicas"]).into(),
            int(&status["availableReplicas"]).into(),
            table_cells::created(deployment, now),
        ];
        row.extend(template_cells(deployment));
        Some(row)
    }
}

impl Strategy for StatefulSetStrategy {
    fn default(&self, set: &mut Value) {
        let spec = set.entry(&["spec"]);
        spec.set_default(&["podManagementPolicy"], "OrderedReady");
        spec.set_default(&["updateStrategy", "type"], "RollingUpdate");
        if spec.str_at(&["updateStrategy", "type"]) == "RollingUpdate" {
            spec.set_default(&["updateStrategy", "rollingUpdate", "partition"], 0i64);
        }
        spec.set_default(&["persistentVolumeClaimRetentionPolicy", "whenDeleted"], "Retain");
        spec.set_default(&["persistentVolumeClaimRetentionPolicy", "whenScaled"], "Retain");
        spec.set_default(&["replicas"], 1i64);
        spec.set_default(&["revisionHistoryLimit"], 10i64);
        if let Some(claims) = spec.get_mut("volumeClaimTemplates") {
            for claim in claims.items_mut() {
                claim.set_default(&["apiVersion"], "v1");
                claim.set_default(&["kind"], "PersistentVolumeClaim");
                claim.set_default(&["spec", "volumeMode"], "Filesystem");
                claim.set_default(&["status", "phase"], "Pending");
            }
        }
        default_template(set, TEMPLATE);
    }

    fn prepare_for_create(&self, set: &mut Value) {
        set.set(&["status"], Value::from([("replicas", 0i64.into()), ("availableReplicas", 0i64.into())]));
    }

    fn validate(&self, set: &Value) -> FieldErrors {
        validate_workload(set)
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn row(&self, set: &Value, now: Now) -> Option<Vec<Cell>> {
        let ready = format!("{}/{}", int(set.at(&["status", "readyReplicas"])), int(set.at(&["spec", "replicas"])));
        let [names, images, _] = template_cells(set);
        Some(vec![set.name().into(), ready.into(), table_cells::created(set, now), names, images])
    }
}

impl Strategy for DaemonSetStrategy {
    fn default(&self, set: &mut Value) {
        let spec = set.entry(&["spec"]);
        spec.set_default(&["updateStrategy", "type"], "RollingUpdate");
        if spec.str_at(&["updateStrategy", "type"]) == "RollingUpdate" {
            spec.set_default(&["updateStrategy", "rollingUpdate", "maxUnavailable"], 1i64);
            spec.set_default(&["updateStrategy", "rollingUpdate", "maxSurge"], 0i64);
        }
        spec.set_default(&["revisionHistoryLimit"], 10i64);
        default_template(set, TEMPLATE);
    }

    fn prepare_for_create(&self, set: &mut Value) {
        set.set(&["status"], daemon_status());
        let template = i64::from(true);
        set.set(&["metadata", "annotations", "deprecated.daemonset.template.generation"], template.to_string());
    }

    fn validate(&self, set: &Value) -> FieldErrors {
        validate_workload(set)
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn row(&self, set: &Value, now: Now) -> Option<Vec<Cell>> {
        let status = &set["status"];
        let mut row: Vec<Cell> = vec![set.name().into()];
        let fields = [
            "desiredNumberScheduled",
            "currentNumberScheduled",
            "numberReady",
            "updatedNumberScheduled",
            "numberAvailable",
        ];
        row.extend(fields.iter().map(|f| Value::from(int(&status[*f]))));
        row.push(table_cells::labels(set.at(&["spec", "template", "spec", "nodeSelector"])).into());
        row.push(table_cells::created(set, now));
        row.extend(template_cells(set));
        Some(row)
    }
}

fn daemon_status() -> Value {
    let fields = ["currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady"];
    Value::Object(fields.iter().map(|f| ((*f).into(), Value::from(0i64))).collect())
}

impl Strategy for ReplicationControllerStrategy {
    fn default(&self, controller: &mut Value) {
        let labels = controller.at(&["spec", "template", "metadata", "labels"]).clone();
        if !labels.entries().is_empty() {
            controller.set_default(&["spec", "selector"], labels.clone());
            controller.set_default(&["metadata", "labels"], labels);
        }
        controller.set_default(&["spec", "replicas"], 1i64);
        default_template(controller, TEMPLATE);
    }

    fn prepare_for_create(&self, controller: &mut Value) {
        controller.set(&["status"], Value::from([("replicas", 0i64.into())]));
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn default_job(spec: &mut Value) {
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        spec.set(&["completions"], 1i64);
        spec.set(&["parallelism"], 1i64);
    }
    spec.set_default(&["parallelism"], 1i64);
    spec.set_default(
        &["backoffLimit"],
        if spec["backoffLimitPerIndex"].is_null() { 6i64 } else { i64::from(i32::MAX) },
    );
    spec.set_default(&["completionMode"], "NonIndexed");
    spec.set_default(&["suspend"], false);
    spec.set_default(&["manualSelector"], false);
    let policy = if spec["podFailurePolicy"].is_null() { "TerminatingOrFailed" } else { "Failed" };
    spec.set_default(&["podReplacementPolicy"], policy);
    if !spec["template"]["spec"].is_null() {
        crate::pod_template::default_spec(spec.entry(&["template", "spec"]));
    }
}

impl Strategy for JobStrategy {
    fn default(&self, job: &mut Value) {
        default_job(job.entry(&["spec"]));
    }

    fn prepare_for_create(&self, job: &mut Value) {
        job.set(&["status"], Value::object());
        if job["spec"]["manualSelector"].as_bool() == Some(true) {
            return;
        }
        // Its pods are known by its uid, which nobody else has.
        let (uid, name) = (job.uid().to_owned(), job.name().to_owned());
        for label in ["batch.kubernetes.io/controller-uid", "controller-uid"] {
            job.set(&["spec", "template", "metadata", "labels", label], uid.as_str());
        }
        for label in ["batch.kubernetes.io/job-name", "job-name"] {
            job.set(&["spec", "template", "metadata", "labels", label], name.as_str());
        }
        job.set(&["spec", "selector", "matchLabels", "batch.kubernetes.io/controller-uid"], uid);
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn selectable_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[("status.successful", &["status", "succeeded"])]
    }

    fn row(&self, job: &Value, now: Now) -> Option<Vec<Cell>> {
        let (spec, status) = (&job["spec"], &job["status"]);
        let succeeded = int(&status["succeeded"]);
        let completions = match (spec["completions"].as_i64(), spec["parallelism"].as_i64()) {
            (Some(n), _) => format!("{succeeded}/{n}"),
            (None, Some(p)) if p > 1 => format!("{succeeded}/1 of {p}"),
            _ => format!("{succeeded}/1"),
        };
        let is = |kind: &str| {
            status["conditions"].items().iter().any(|c| c.str_at(&["type"]) == kind && c.str_at(&["status"]) == "True")
        };
        let state = if is("Complete") {
            "Complete"
        } else if is("Failed") {
            "Failed"
        } else if job.is_deleting() {
            "Terminating"
        } else if is("Suspended") {
            "Suspended"
        } else if is("FailureTarget") {
            "FailureTarget"
        } else if is("SuccessCriteriaMet") {
            "SuccessCriteriaMet"
        } else {
            "Running"
        };
        let duration =
            match (table_cells::seconds_of(&status["startTime"]), table_cells::seconds_of(&status["completionTime"])) {
                (Some(start), Some(end)) => table_cells::human_duration(end - start),
                (Some(start), None) => table_cells::human_duration(now.0 - start),
                _ => String::new(),
            };
        let mut row: Vec<Cell> =
            vec![job.name().into(), state.into(), completions.into(), duration.into(), table_cells::created(job, now)];
        row.extend(template_cells(job));
        Some(row)
    }
}

impl Strategy for CronJobStrategy {
    fn default(&self, job: &mut Value) {
        let spec = job.entry(&["spec"]);
        spec.set_default(&["concurrencyPolicy"], "Allow");
        spec.set_default(&["suspend"], false);
        spec.set_default(&["successfulJobsHistoryLimit"], 3i64);
        spec.set_default(&["failedJobsHistoryLimit"], 1i64);
        if !spec.at(&["jobTemplate", "spec", "template", "spec"]).is_null() {
            crate::pod_template::default_spec(spec.entry(&["jobTemplate", "spec", "template", "spec"]));
        }
    }

    fn prepare_for_create(&self, job: &mut Value) {
        job.set(&["status"], Value::object());
    }

    fn has_generation(&self) -> bool {
        true
    }
}

impl Strategy for PodTemplateStrategy {
    fn default(&self, template: &mut Value) {
        default_template(template, &["template"]);
    }

    fn has_generation(&self) -> bool {
        true
    }
}
