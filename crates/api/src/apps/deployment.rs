//! Deployment.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::rules::{self, int_cells, template_cells};
use crate::core::pod::{Options, default_template, template_warnings};
use crate::go_json::immutable_selector;
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::numbers::{at_most_all, int_or_percent, non_negative_or_percent};
use crate::validation::{Checks, int};

pub(crate) struct DeploymentStrategy;

fn validate(deployment: &Value, options: Options) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let spec = Cursor::root(deployment).field("spec");
    errs.non_negative(&spec.field("replicas"));
    rules::selector(&mut errs, &spec, "deployment");
    rules::replicated_template(&mut errs, &spec, options);
    strategy(&mut errs, &spec.field("strategy"));
    errs.non_negative(&spec.field("minReadySeconds"));
    errs.non_negative(&spec.field("revisionHistoryLimit"));
    let deadline = spec.field("progressDeadlineSeconds");
    if !deadline.is_absent() {
        errs.non_negative(&deadline);
        if int(deadline.value) <= int(&spec.value["minReadySeconds"]) {
            errs.invalid(&deadline, "must be greater than minReadySeconds");
        }
    }
    errs
}

fn strategy(errs: &mut FieldErrors, strategy: &Cursor<'_>) {
    let rolling = strategy.field("rollingUpdate");
    match strategy.value.str_at(&["type"]) {
        "Recreate" => {
            if !rolling.is_absent() {
                errs.forbidden(&rolling.path, "may not be specified when strategy `type` is 'Recreate'");
            }
        }
        "RollingUpdate" if rolling.is_absent() => {
            errs.required(&rolling.path, "this should be defaulted and never be nil");
        }
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.field("maxUnavailable"), rolling.field("maxSurge"));
            non_negative_or_percent(errs, &unavailable);
            non_negative_or_percent(errs, &surge);
            if int_or_percent(unavailable.value) == 0 && int_or_percent(surge.value) == 0 {
                errs.invalid(&unavailable, "may not be 0 when `maxSurge` is 0");
            }
            at_most_all(errs, &unavailable);
        }
        _ => errs.unsupported_struct(strategy, &["Recreate", "RollingUpdate"]),
    }
}

impl Strategy for DeploymentStrategy {
    fn default(&self, deployment: &mut Value) {
        let spec = deployment.entry(&["spec"]);
        spec.set_default(&["replicas"], 1i64);
        if spec.str_at(&["strategy", "type"]).is_empty() {
            spec.set(&["strategy", "type"], "RollingUpdate");
        }
        if spec.str_at(&["strategy", "type"]) == "RollingUpdate" {
            spec.set_default(&["strategy", "rollingUpdate", "maxUnavailable"], "25%");
            spec.set_default(&["strategy", "rollingUpdate", "maxSurge"], "25%");
        }
        spec.set_default(&["revisionHistoryLimit"], 10i64);
        spec.set_default(&["progressDeadlineSeconds"], 600i64);
        default_template(deployment, &["spec", "template"]);
    }

    fn validate(&self, deployment: &Value) -> FieldErrors {
        validate(deployment, Options::strict(false))
    }

    fn validate_update(&self, deployment: &Value, old: &Value) -> FieldErrors {
        let mut errs = validate(deployment, Options::keeping(false, old.at(&["spec", "template"])));
        let selector = |o| Cursor::root(o).fields(&["spec", "selector"]);
        immutable_selector(&mut errs, &selector(deployment), &selector(old));
        errs
    }

    fn validate_status_update(&self, deployment: &Value, old: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let status = Cursor::root(deployment).field("status");
        rules::counters(
            &mut errs,
            &status,
            &[
                "observedGeneration",
                "replicas",
                "updatedReplicas",
                "readyReplicas",
                "availableReplicas",
                "unavailableReplicas",
                "terminatingReplicas",
                "collisionCount",
            ],
            &["updatedReplicas", "readyReplicas", "availableReplicas"],
        );
        rules::available(&mut errs, &status, "readyReplicas");
        rules::collisions(&mut errs, status.value, &old["status"]);
        errs
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        template_warnings(object, old, &["spec", "template"], true)
    }

    fn has_generation(&self) -> bool {
        true
    }

    /// A deployment's annotations are part of what its controller acts on.
    fn generation_changed(&self, new: &Value, old: &Value) -> bool {
        new["spec"] != old["spec"] || new.meta("annotations") != old.meta("annotations")
    }

    fn row(&self, deployment: &Value, now: Now) -> Option<Vec<Cell>> {
        let ready = Cursor::root(deployment).fields(&["status", "readyReplicas"]);
        let ready = format!("{}/{}", int(ready.value), int(deployment.at(&["spec", "replicas"])));
        let mut row: Vec<Cell> = vec![deployment.name().into(), ready.into()];
        row.extend(int_cells(deployment, &[&["status", "updatedReplicas"], &["status", "availableReplicas"]]));
        row.push(table_cells::created(deployment, now));
        row.extend(template_cells(deployment));
        Some(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;

    #[track_caller]
    fn check(json: &str, want: &[&str]) {
        let value: Value = serde_json::from_str(json).unwrap();
        let mut errs = FieldErrors::new();
        strategy(&mut errs, &Cursor::root(&value));
        assert_findings(&errs, want);
    }

    #[test]
    fn strategies_are_checked() {
        check(r#"{"type":"RollingUpdate","rollingUpdate":{"maxSurge":1,"maxUnavailable":0}}"#, &[]);
        check(
            r#"{"type":"RollingUpdate","rollingUpdate":{"maxSurge":0,"maxUnavailable":"0%"}}"#,
            &[r#"rollingUpdate.maxUnavailable: Invalid value: "0%": may not be 0 when `maxSurge` is 0"#],
        );
    }
}
