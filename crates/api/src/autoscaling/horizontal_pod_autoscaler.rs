//! HorizontalPodAutoscaler, which is stored as v2; v1 is a view of it.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::{conversion, metrics, targets};
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::names::path_segment;
use crate::validation::resources::quantity;
use crate::validation::{Checks, int, text};

pub(crate) struct V2Strategy;
pub(crate) struct V1Strategy;

const MAX_PERIOD: i64 = 1800;
const MAX_WINDOW: i64 = 3600;

/// What v2 leaves out.
pub(super) fn default_v2(autoscaler: &mut Value) {
    let spec = autoscaler.entry(&["spec"]);
    spec.set_default(&["minReplicas"], 1i64);
    if spec["metrics"].items().is_empty() {
        spec.set(&["metrics"], vec![conversion::cpu_metric(80.into())]);
    }
    if spec["behavior"].is_null() {
        return;
    }
    let policy = |kind: &str, value: i64| {
        Value::from([("type", kind.into()), ("value", value.into()), ("periodSeconds", 15i64.into())])
    };
    let up = spec.entry(&["behavior", "scaleUp"]);
    up.set_default(&["stabilizationWindowSeconds"], 0i64);
    up.set_default(&["policies"], vec![policy("Pods", 4), policy("Percent", 100)]);
    let down = spec.entry(&["behavior", "scaleDown"]);
    down.set_default(&["policies"], vec![policy("Percent", 100)]);
    for rules in ["scaleUp", "scaleDown"] {
        spec.set_default(&["behavior", rules, "selectPolicy"], "Max");
    }
}

/// Rules for v2. `lowest`: how few replicas there may be.
fn validate(autoscaler: &Value, old: Option<&Value>) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let spec = Cursor::root(autoscaler).field("spec");
    // To scale to nothing is a feature that is off; who could keeps it.
    let had_zero = old.is_some_and(|old| old.at(&["spec", "minReplicas"]).as_i64() == Some(0));
    let lowest = i64::from(!had_zero);
    let (min, max) = (spec.field("minReplicas"), spec.field("maxReplicas"));
    if !min.is_absent() && int(min.value) < lowest {
        errs.invalid(&min, format!("must be greater than or equal to {lowest}"));
    }
    if int(max.value) < 1 {
        errs.required(&max.path, "must be set and greater than 0");
    }
    if !min.is_absent() && int(max.value) < int(min.value) {
        errs.invalid_int(&max, "must be greater than or equal to `minReplicas`");
    }
    let target = spec.field("scaleTargetRef");
    // Of the kinds that can be scaled only this one is of the core group.
    let core = text(&target.field("kind")) == "ReplicationController";
    let was_bad = |old: &Value| {
        let mut errs = FieldErrors::new();
        let before = Cursor::root(old).fields(&["spec", "scaleTargetRef"]);
        api_version(&mut errs, &before.field("apiVersion"), false);
        !errs.is_empty()
    };
    reference(&mut errs, &target, core, old.is_some_and(was_bad));
    metrics::validate(&mut errs, &spec.field("metrics"), int(min.value) == 0 && !min.is_absent());
    for rules in ["scaleUp", "scaleDown"] {
        scaling_rules(&mut errs, &spec.fields(&["behavior", rules]));
    }
    errs
}

/// A reference to an object of any version.
pub(super) fn reference(errs: &mut FieldErrors, at: &Cursor<'_>, allow_core: bool, any_version: bool) {
    for field in ["kind", "name"] {
        let name = at.field(field);
        if errs.present(&name, "") {
            errs.each(&name, path_segment(text(&name)));
        }
    }
    if !any_version {
        api_version(errs, &at.field("apiVersion"), allow_core);
    }
}

fn api_version(errs: &mut FieldErrors, at: &Cursor<'_>, allow_core: bool) {
    let version = text(at);
    match version.matches('/').count() {
        0 | 1 => {
            let group = version.split_once('/').map_or("", |(group, _)| group);
            if group.is_empty() && !allow_core {
                errs.invalid_text(at, "apiVersion must specify API group");
            }
        }
        _ => errs.invalid(at, format!("unexpected GroupVersion string: {version}")),
    }
}

fn scaling_rules(errs: &mut FieldErrors, rules: &Cursor<'_>) {
    if rules.is_absent() {
        return;
    }
    let (window, select) = (rules.field("stabilizationWindowSeconds"), rules.field("selectPolicy"));
    if int(window.value) < 0 {
        errs.invalid(&window, "must be greater than or equal to zero");
    }
    if int(window.value) > MAX_WINDOW {
        errs.invalid(&window, format!("must be less than or equal to {MAX_WINDOW}"));
    }
    if !select.is_absent() {
        errs.one_of(&select, &["Disabled", "Max", "Min"]);
    }
    let policies = rules.field("policies");
    errs.present(&policies, "must specify at least one Policy");
    for policy in policies.elements() {
        let (value, period) = (policy.field("value"), policy.field("periodSeconds"));
        errs.one_of(&policy.field("type"), &["Percent", "Pods"]);
        for at in [&value, &period] {
            if int(at.value) <= 0 {
                errs.invalid_int(at, "must be greater than zero");
            }
        }
        if int(period.value) > MAX_PERIOD {
            errs.invalid(&period, format!("must be less than or equal to {MAX_PERIOD}"));
        }
    }
    let tolerance = rules.field("tolerance");
    if quantity(&tolerance).is_negative() {
        errs.invalid(&tolerance, "must be greater or equal to zero");
    }
}

fn validate_status(autoscaler: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let status = Cursor::root(autoscaler).field("status");
    for field in ["currentReplicas", "desiredReplicas"] {
        errs.non_negative(&status.field(field));
    }
    errs
}

fn row(autoscaler: &Value, now: Now) -> Vec<Cell> {
    let (spec, status) = (&autoscaler["spec"], &autoscaler["status"]);
    let target = &spec["scaleTargetRef"];
    let min = spec["minReplicas"].as_i64().map_or_else(|| "<unset>".to_owned(), |n| n.to_string());
    vec![
        autoscaler.name().into(),
        format!("{}/{}", target.str_at(&["kind"]), target.str_at(&["name"])).into(),
        targets::shown(&spec["metrics"], &status["currentMetrics"]).into(),
        min.into(),
        int(&spec["maxReplicas"]).into(),
        int(&status["currentReplicas"]).into(),
        table_cells::created(autoscaler, now),
    ]
}

fn as_v2(autoscaler: &Value) -> Value {
    let mut autoscaler = autoscaler.clone();
    conversion::to_v2(&mut autoscaler);
    autoscaler
}

impl Strategy for V2Strategy {
    fn default(&self, autoscaler: &mut Value) {
        default_v2(autoscaler);
    }

    fn prepare_for_create(&self, autoscaler: &mut Value) {
        autoscaler.set(&["status"], Value::object());
    }

    fn validate(&self, autoscaler: &Value) -> FieldErrors {
        validate(autoscaler, None)
    }

    fn validate_update(&self, autoscaler: &Value, old: &Value) -> FieldErrors {
        validate(autoscaler, Some(old))
    }

    fn validate_status_update(&self, autoscaler: &Value, _: &Value) -> FieldErrors {
        validate_status(autoscaler)
    }

    fn row(&self, autoscaler: &Value, now: Now) -> Option<Vec<Cell>> {
        Some(row(autoscaler, now))
    }
}

impl Strategy for V1Strategy {
    fn default(&self, autoscaler: &mut Value) {
        autoscaler.set_default(&["spec", "minReplicas"], 1i64);
        let has_metrics = autoscaler.annotation(super::annotations::METRICS).is_some_and(|m| !m.is_empty());
        if !has_metrics {
            autoscaler.set_default(&["spec", "targetCPUUtilizationPercentage"], 80i64);
        }
    }

    fn prepare_for_create(&self, autoscaler: &mut Value) {
        autoscaler.set(&["status"], Value::object());
    }

    fn validate(&self, autoscaler: &Value) -> FieldErrors {
        validate(&as_v2(autoscaler), None)
    }

    fn validate_update(&self, autoscaler: &Value, old: &Value) -> FieldErrors {
        validate(&as_v2(autoscaler), Some(&as_v2(old)))
    }

    fn validate_status_update(&self, autoscaler: &Value, _: &Value) -> FieldErrors {
        validate_status(autoscaler)
    }

    fn to_storage(&self, autoscaler: &mut Value) {
        conversion::to_v2(autoscaler);
        default_v2(autoscaler);
    }

    fn to_served(&self, autoscaler: &mut Value) {
        conversion::to_v1(autoscaler);
    }

    fn row(&self, autoscaler: &Value, now: Now) -> Option<Vec<Cell>> {
        Some(row(&as_v2(autoscaler), now))
    }
}
