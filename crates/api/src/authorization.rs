//! authorization.k8s.io: what may be asked of the authorizers.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::validation::labels::{label_requirement, operator};
use crate::validation::{Checks, text};

/// The rules of an access review of that kind; upstream answers 422 to what breaks them.
#[must_use]
pub fn validate_access_review(kind: &str, review: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let spec = Cursor::root(review).field("spec");
    let (resource, other) = (spec.field("resourceAttributes"), spec.field("nonResourceAttributes"));
    match (resource.is_absent(), other.is_absent()) {
        (false, false) => errs.invalid_struct(&other, "cannot be specified in combination with resourceAttributes"),
        (true, true) => {
            errs.invalid(&resource, "exactly one of nonResourceAttributes or resourceAttributes must be specified");
        }
        _ => {}
    }
    let about_another = kind != "SelfSubjectAccessReview";
    if about_another && spec["user"].is_empty_value() && spec["groups"].items().is_empty() {
        errs.invalid_text(&spec.field("user"), "at least one of user or group must be specified");
    }
    validate_selectors(&resource, &mut errs);
    validate_metadata(kind, review, &mut errs);
    if kind == "LocalSubjectAccessReview" {
        let namespace = resource.field("namespace");
        if !resource.is_absent() && text(&namespace) != review.namespace() {
            errs.invalid_text(&namespace, "must match metadata.namespace");
        }
        if !other.is_absent() {
            errs.invalid_struct(&other, "disallowed on this kind of request");
        }
    }
    errs
}

fn validate_selectors(resource: &Cursor<'_>, errs: &mut FieldErrors) {
    for name in ["fieldSelector", "labelSelector"] {
        let selector = resource.field(name);
        if selector.is_absent() {
            continue;
        }
        let (raw, requirements) = (selector.field("rawSelector"), selector.field("requirements"));
        match (text(&raw).is_empty(), requirements.items().is_empty()) {
            (false, false) => errs.invalid(&raw, "may not specified at the same time as requirements"),
            (true, true) => {
                let why = format!("when {} is specified, requirements or rawSelector is required", selector.path);
                errs.required(&requirements.path, why);
            }
            _ => {}
        }
        for requirement in requirements.elements() {
            if name == "labelSelector" {
                label_requirement(errs, &requirement, true, true);
            } else {
                errs.present(&requirement.field("key"), "must be specified");
                operator(errs, &requirement, &requirement.field("values"), true);
            }
        }
    }
}

/// A question has no name; who sent which of its fields is noted all the same.
fn validate_metadata(kind: &str, review: &Value, errs: &mut FieldErrors) {
    let metadata = Cursor::root(review).field("metadata");
    let local = kind == "LocalSubjectAccessReview";
    let is_said = |(name, value): (&str, Cursor<'_>)| {
        name != "managedFields" && !(local && name == "namespace") && !value.is_empty_value()
    };
    if metadata.map_entries().any(is_said) {
        let why = if local { "must be empty except for namespace" } else { "must be empty" };
        errs.invalid(&metadata, why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;

    #[track_caller]
    fn check(kind: &str, review: &str, want: &[&str]) {
        assert_findings(&validate_access_review(kind, &serde_json::from_str(review).unwrap()), want);
    }

    #[test]
    fn a_review_asks_one_question_about_somebody() {
        check(
            "SubjectAccessReview",
            r#"{"spec":{}}"#,
            &[
                "spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified",
                r#"spec.user: Invalid value: "": at least one of user or group must be specified"#,
            ],
        );
        check("SelfSubjectAccessReview", r#"{"spec":{"resourceAttributes":{"verb":"get"}}}"#, &[]);
        check(
            "LocalSubjectAccessReview",
            r#"{"metadata":{"namespace":"a"},"spec":{"user":"u","resourceAttributes":{"namespace":"b"}}}"#,
            &[r#"spec.resourceAttributes.namespace: Invalid value: "b": must match metadata.namespace"#],
        );
        check(
            "SelfSubjectAccessReview",
            r#"{"metadata":{"name":"a"},"spec":{"resourceAttributes":{}}}"#,
            &[r#"metadata: Invalid value: {"name":"a"}: must be empty"#],
        );
        check(
            "SelfSubjectAccessReview",
            r#"{"metadata":{"managedFields":[{}]},"spec":{"resourceAttributes":{}}}"#,
            &[],
        );
    }

    #[test]
    fn selectors_are_spelled_in_one_way() {
        let ask = |attributes: &str| format!(r#"{{"spec":{{"resourceAttributes":{attributes}}}}}"#);
        check(
            "SelfSubjectAccessReview",
            &ask(
                r#"{"fieldSelector":{"rawSelector":"a","requirements":[{"operator":"In"},{"key":"x","operator":"Near"}]},"labelSelector":{}}"#,
            ),
            &[
                r#"spec.resourceAttributes.fieldSelector.rawSelector: Invalid value: "a": may not specified at the same time as requirements"#,
                "spec.resourceAttributes.fieldSelector.requirements[0].key: Required value: must be specified",
                "spec.resourceAttributes.fieldSelector.requirements[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
                "spec.resourceAttributes.labelSelector.requirements: Required value: when spec.resourceAttributes.labelSelector is specified, requirements or rawSelector is required",
            ],
        );
        check(
            "SelfSubjectAccessReview",
            &ask(r#"{"labelSelector":{"requirements":[{"key":"x","operator":"Exists","values":["v"]}]}}"#),
            &[
                "spec.resourceAttributes.labelSelector.requirements[0].values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ],
        );
    }
}
