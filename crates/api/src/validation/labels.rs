//! Labels, and selectors of them.

use apimachinery::field::{Cursor, FieldErrors};

use super::names::{label_value, qualified_name};
use super::{Checks, text};

/// The name of a label.
pub(crate) fn label_name(errs: &mut FieldErrors, at: &Cursor<'_>) {
    errs.each(at, qualified_name(text(at)));
}

/// A map of labels.
pub(crate) fn label_map(errs: &mut FieldErrors, labels: &Cursor<'_>) {
    for (key, value) in labels.map_entries() {
        for message in qualified_name(key) {
            errs.invalid_value(&labels.path, key, message);
        }
        errs.each(&Cursor::new(labels.path.clone(), value.value), label_value(text(&value)));
    }
}

/// A `LabelSelector`. Upstream lets old objects keep values that are no good.
pub(crate) fn label_selector(errs: &mut FieldErrors, selector: &Cursor<'_>, check_values: bool) {
    label_map(errs, &selector.field("matchLabels"));
    for requirement in selector.field("matchExpressions").elements() {
        label_requirement(errs, &requirement, check_values, false);
    }
}

/// A `LabelSelectorRequirement`. A newer client's operators are let pass where the answer does not rest on them.
pub(crate) fn label_requirement(
    errs: &mut FieldErrors,
    requirement: &Cursor<'_>,
    check_values: bool,
    any_operator: bool,
) {
    let values = requirement.field("values");
    operator(errs, requirement, &values, any_operator);
    label_name(errs, &requirement.field("key"));
    if check_values {
        for value in values.elements() {
            errs.each(&value, label_value(text(&value)));
        }
    }
}

/// Are the values of the selector all well formed? What is not so already may stay so.
pub(crate) fn selector_is_valid(selector: &Cursor<'_>) -> bool {
    let mut errs = FieldErrors::new();
    label_selector(&mut errs, selector, true);
    errs.is_empty()
}

/// That the operator suits the values.
pub(crate) fn operator(errs: &mut FieldErrors, requirement: &Cursor<'_>, values: &Cursor<'_>, any: bool) {
    match requirement.str_at(&["operator"]) {
        "In" | "NotIn" => {
            errs.present(values, "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" => {
            if !values.items().is_empty() {
                errs.forbidden(&values.path, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
            }
        }
        _ if any => {}
        _ => errs.invalid_text(&requirement.field("operator"), "not a valid selector operator"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;
    use apimachinery::Value;

    #[test]
    fn selectors_are_checked() {
        let selector: Value = serde_json::from_str(
            r#"{"matchLabels":{"a b":"c"},"matchExpressions":[{"key":"a","operator":"In"},{"key":"a","operator":"Exists","values":["x"]},{"key":"a","operator":"Is"}]}"#,
        )
        .unwrap();
        let mut errs = FieldErrors::new();
        label_selector(&mut errs, &Cursor::root(&selector), true);
        let name = errs.0.remove(0);
        assert_eq!(name.path.as_str(), "matchLabels");
        assert_findings(
            &errs,
            &[
                "matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
                "matchExpressions[1].values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                r#"matchExpressions[2].operator: Invalid value: "Is": not a valid selector operator"#,
            ],
        );
    }
}
