//! DaemonSet.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::rules::{self, int_cells, template_cells};
use crate::core::pod::{Options, default_template, read_only_disks, template_warnings, validate_template};
use crate::go_json::{immutable_selector, invalid_selector};
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::Checks;
use crate::validation::labels::label_selector;
use crate::validation::numbers::{at_most_all, int_or_percent, non_negative_or_percent};

pub(crate) struct DaemonSetStrategy;

/// The generation of the template, from when it was a field.
const GENERATION: &[&str] = &["metadata", "annotations", "deprecated.daemonset.template.generation"];

fn validate(set: &Value, options: Options) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let spec = Cursor::root(set).field("spec");
    let (selector, template) = (spec.field("selector"), spec.field("template"));
    label_selector(&mut errs, &selector, !options.any_selector_values);
    if rules::selects(selector.value, template.value.at(&["metadata", "labels"])) == Some(false) {
        rules::does_not_match(&mut errs, &template);
    }
    if !selector.is_absent() && ["matchLabels", "matchExpressions"].iter().all(|f| selector.value[*f].is_empty_value())
    {
        invalid_selector(&mut errs, &selector, "empty selector is invalid for daemonset");
    }
    validate_template(&mut errs, &template, options);
    read_only_disks(&mut errs, &template.fields(&["spec", "volumes"]));
    rules::runs_always(&mut errs, &template, "DaemonSet");
    errs.non_negative(&spec.field("minReadySeconds"));
    strategy(&mut errs, &spec.field("updateStrategy"));
    errs.non_negative(&spec.field("revisionHistoryLimit"));
    errs
}

fn strategy(errs: &mut FieldErrors, strategy: &Cursor<'_>) {
    let rolling = strategy.field("rollingUpdate");
    match strategy.value.str_at(&["type"]) {
        "OnDelete" => return,
        "RollingUpdate" if rolling.is_absent() => {
            errs.required(&rolling.path, "");
            return;
        }
        "RollingUpdate" => {}
        _ => {
            errs.unsupported_struct(strategy, &["RollingUpdate", "OnDelete"]);
            return;
        }
    }
    let (unavailable, surge) = (rolling.field("maxUnavailable"), rolling.field("maxSurge"));
    for at in [&unavailable, &surge] {
        non_negative_or_percent(errs, at);
    }
    for at in [&unavailable, &surge] {
        at_most_all(errs, at);
    }
    match (int_or_percent(unavailable.value) != 0, int_or_percent(surge.value) != 0) {
        (true, true) => errs.invalid(&surge, "may not be set when maxUnavailable is non-zero"),
        (false, false) => errs.required(&unavailable.path, "cannot be 0 when maxSurge is 0"),
        _ => {}
    }
}

const COUNTERS: [&str; 4] = ["currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady"];

impl Strategy for DaemonSetStrategy {
    fn default(&self, set: &mut Value) {
        let spec = set.entry(&["spec"]);
        if spec.str_at(&["updateStrategy", "type"]).is_empty() {
            spec.set(&["updateStrategy", "type"], "RollingUpdate");
        }
        if spec.str_at(&["updateStrategy", "type"]) == "RollingUpdate" {
            spec.set_default(&["updateStrategy", "rollingUpdate", "maxUnavailable"], 1i64);
            spec.set_default(&["updateStrategy", "rollingUpdate", "maxSurge"], 0i64);
        }
        spec.set_default(&["revisionHistoryLimit"], 10i64);
        default_template(set, &["spec", "template"]);
        if set.at(GENERATION).is_null() {
            set.set(GENERATION, "0");
        }
    }

    fn prepare_for_create(&self, set: &mut Value) {
        set.set(&["status"], Value::Object(COUNTERS.iter().map(|f| ((*f).into(), Value::from(0i64))).collect()));
        let asked = set.at(GENERATION).as_str().and_then(|g| g.parse::<i64>().ok()).unwrap_or_default();
        set.set(GENERATION, asked.max(1).to_string());
    }

    fn prepare_for_update(&self, set: &mut Value, old: &Value) {
        let before = old.at(GENERATION).as_str().and_then(|g| g.parse::<i64>().ok()).unwrap_or_default();
        let changed = set.at(&["spec", "template"]) != old.at(&["spec", "template"]);
        set.set(GENERATION, (before + i64::from(changed)).to_string());
    }

    fn validate(&self, set: &Value) -> FieldErrors {
        validate(set, Options::strict(false))
    }

    fn validate_update(&self, set: &Value, old: &Value) -> FieldErrors {
        let mut errs = validate(set, Options::keeping(false, old.at(&["spec", "template"])));
        let selector = |o| Cursor::root(o).fields(&["spec", "selector"]);
        immutable_selector(&mut errs, &selector(set), &selector(old));
        errs
    }

    fn validate_status_update(&self, set: &Value, old: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let status = Cursor::root(set).field("status");
        rules::counters(&mut errs, &status, &COUNTERS, &[]);
        let others =
            ["observedGeneration", "updatedNumberScheduled", "numberAvailable", "numberUnavailable", "collisionCount"];
        rules::counters(&mut errs, &status, &others, &[]);
        rules::collisions(&mut errs, status.value, &old["status"]);
        errs
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        template_warnings(object, old, &["spec", "template"], false)
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn row(&self, set: &Value, now: Now) -> Option<Vec<Cell>> {
        let mut row: Vec<Cell> = vec![set.name().into()];
        let fields: [&[&str]; 5] = [
            &["status", "desiredNumberScheduled"],
            &["status", "currentNumberScheduled"],
            &["status", "numberReady"],
            &["status", "updatedNumberScheduled"],
            &["status", "numberAvailable"],
        ];
        row.extend(int_cells(set, &fields));
        row.push(table_cells::labels(set.at(&["spec", "template", "spec", "nodeSelector"])).into());
        row.push(table_cells::created(set, now));
        row.extend(template_cells(set));
        Some(row)
    }
}
