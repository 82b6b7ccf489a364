//! Workload and PodGroup: pods that are scheduled together (KEP-4671).

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::strategy::{Cell, Now, Strategy, dns_label};
use crate::table_cells;
use crate::validation::conditions;
use crate::validation::{Checks, text};

pub(crate) struct WorkloadStrategy;
pub(crate) struct PodGroupStrategy;

const MAX_TEMPLATES: usize = 8;

/// Exactly one policy; a gang needs at least one pod.
fn scheduling_policy(errs: &mut FieldErrors, policy: &Cursor<'_>) {
    let (basic, gang) = (policy.field("basic"), policy.field("gang"));
    match (basic.is_absent(), gang.is_absent()) {
        (true, true) => errs.required(&policy.path, "must specify one of: `basic`, `gang`"),
        (false, false) => errs.invalid_struct(policy, "must specify exactly one of: `basic`, `gang`"),
        _ => {}
    }
    let count = gang.field("minCount");
    if !gang.is_absent() && count.as_i64().unwrap_or_default() < 1 {
        errs.invalid_int(&count, "must be greater than or equal to 1");
    }
}

/// What a group and a template of one have in common.
fn group_spec(errs: &mut FieldErrors, spec: &Cursor<'_>) {
    scheduling_policy(errs, &spec.field("schedulingPolicy"));
    let topology = spec.fields(&["schedulingConstraints", "topology"]);
    if topology.items().len() > 1 {
        errs.too_many(&topology.path, topology.items().len(), 1);
    }
    for constraint in topology.elements() {
        let key = constraint.field("key");
        if text(&key).is_empty() {
            errs.required(&key.path, "");
        }
    }
    let mode = spec.field("disruptionMode");
    if !mode.is_absent() {
        errs.one_of(&mode, &["Pod", "PodGroup"]);
    }
}

impl Strategy for WorkloadStrategy {
    fn validate(&self, workload: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let spec = Cursor::root(workload).field("spec");
        let controller = spec.field("controllerRef");
        for name in ["kind", "name"].into_iter().filter(|_| !controller.is_absent()) {
            let part = controller.field(name);
            if text(&part).is_empty() {
                errs.required(&part.path, "");
            }
        }
        let templates = spec.field("podGroupTemplates");
        if templates.items().is_empty() {
            errs.required(&templates.path, "must have at least one item");
        }
        if templates.items().len() > MAX_TEMPLATES {
            errs.too_many(&templates.path, templates.items().len(), MAX_TEMPLATES);
        }
        let mut names: Vec<&str> = Vec::new();
        for template in templates.elements() {
            let name = template.field("name");
            errs.each(&name, dns_label(text(&name), false));
            if names.contains(&text(&name)) {
                errs.duplicate(&name.path, text(&name));
            }
            names.push(text(&name));
            group_spec(&mut errs, &template);
        }
        errs
    }

    fn validate_update(&self, workload: &Value, old: &Value) -> FieldErrors {
        let mut errs = self.validate(workload);
        let templates = |value| Cursor::root(value).fields(&["spec", "podGroupTemplates"]);
        errs.immutable_struct(&templates(workload), &templates(old));
        let controller = |value| Cursor::root(value).fields(&["spec", "controllerRef"]);
        if !controller(old).is_absent() {
            errs.immutable_struct(&controller(workload), &controller(old));
        }
        errs
    }
}

impl Strategy for PodGroupStrategy {
    fn default(&self, group: &mut Value) {
        group.set_default(&["spec", "disruptionMode"], "Pod");
    }

    fn validate(&self, group: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let spec = Cursor::root(group).field("spec");
        let template = spec.fields(&["podGroupTemplateRef", "workload"]);
        for name in ["workloadName", "podGroupTemplateName"].into_iter().filter(|_| !template.is_absent()) {
            let part = template.field(name);
            if text(&part).is_empty() {
                errs.required(&part.path, "");
            }
        }
        group_spec(&mut errs, &spec);
        errs
    }

    fn validate_update(&self, group: &Value, old: &Value) -> FieldErrors {
        let mut errs = self.validate(group);
        for name in
            ["podGroupTemplateRef", "schedulingPolicy", "schedulingConstraints", "disruptionMode", "priorityClassName"]
        {
            let part = |value| Cursor::root(value).fields(&["spec", name]);
            errs.immutable_struct(&part(group), &part(old));
        }
        errs
    }

    fn row(&self, group: &Value, now: Now) -> Option<Vec<Cell>> {
        let policy = if group.at(&["spec", "schedulingPolicy", "gang"]).is_null() { "Basic" } else { "Gang" };
        let workload = group.str_at(&["spec", "podGroupTemplateRef", "workload", "workloadName"]);
        let conditions = group.at(&["status", "conditions"]).items();
        let scheduled = conditions.iter().find(|condition| condition.str_at(&["type"]) == "PodGroupScheduled");
        let reason = scheduled.map_or("Pending", |condition| condition.str_at(&["reason"]));
        Some(vec![
            group.name().into(),
            policy.into(),
            if workload.is_empty() { "<none>" } else { workload }.into(),
            reason.into(),
            table_cells::created(group, now),
        ])
    }

    fn validate_status_update(&self, group: &Value, _: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        conditions::validate(&mut errs, &Cursor::root(group).fields(&["status", "conditions"]));
        errs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(errs: &FieldErrors) -> Vec<String> {
        errs.0.iter().map(|finding| finding.to_string().split(": ").take(2).collect::<Vec<_>>().join(": ")).collect()
    }

    #[track_caller]
    fn check(spec: &str, want: &[&str]) {
        let group: Value = serde_json::from_str(&format!(r#"{{"spec":{spec}}}"#)).unwrap();
        assert_eq!(findings(&PodGroupStrategy.validate(&group)), want, "{spec}");
    }

    #[test]
    fn a_group_has_one_policy() {
        check(r#"{"schedulingPolicy":{"basic":{}}}"#, &[]);
        check(r#"{"schedulingPolicy":{"gang":{"minCount":3}}}"#, &[]);
        check(r#"{"schedulingPolicy":{}}"#, &["spec.schedulingPolicy: Required value"]);
        check(r#"{"schedulingPolicy":{"basic":{},"gang":{"minCount":1}}}"#, &["spec.schedulingPolicy: Invalid value"]);
        check(
            r#"{"schedulingPolicy":{"gang":{"minCount":0}}}"#,
            &["spec.schedulingPolicy.gang.minCount: Invalid value"],
        );
        check(
            r#"{"schedulingPolicy":{"basic":{}},"disruptionMode":"None"}"#,
            &["spec.disruptionMode: Unsupported value"],
        );
    }

    #[test]
    fn a_workload_has_templates_that_stay() {
        let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let one = json(r#"{"spec":{"podGroupTemplates":[{"name":"a","schedulingPolicy":{"gang":{"minCount":2}}}]}}"#);
        let none = json(r#"{"spec":{}}"#);
        assert_eq!(findings(&WorkloadStrategy.validate(&one)), Vec::<String>::new());
        assert_eq!(findings(&WorkloadStrategy.validate(&none)), ["spec.podGroupTemplates: Required value"]);
        let other = json(r#"{"spec":{"podGroupTemplates":[{"name":"a","schedulingPolicy":{"gang":{"minCount":3}}}]}}"#);
        assert_eq!(findings(&WorkloadStrategy.validate_update(&other, &one)).len(), 1);
        assert_eq!(findings(&WorkloadStrategy.validate_update(&one, &one)).len(), 0);
    }
}
