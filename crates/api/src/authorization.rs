//! authorization.k8s.io: what may be asked of the authorizers.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

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
    }
}
