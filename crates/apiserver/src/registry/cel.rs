//! Objects that hold expressions are refused where those are none: a strategy knows no CEL.

use api::ResourceDef;
use apimachinery::Value;
use apimachinery::field::FieldErrors;

use crate::admission::{check_policy, check_webhooks};
use crate::custom::check_definition;

/// What holds expressions: in which part, whether that part is looked at only once all else is right, and the rules.
type Holder = (&'static str, &'static [&'static str], bool, fn(&Value) -> FieldErrors);

const HOLDERS: &[Holder] = &[
    ("customresourcedefinitions", &["spec", "versions"], true, check_definition),
    ("validatingadmissionpolicies", &["spec"], false, check_policy),
    ("mutatingadmissionpolicies", &["spec"], false, check_policy),
    ("validatingwebhookconfigurations", &["webhooks"], false, check_webhooks),
    ("mutatingwebhookconfigurations", &["webhooks"], false, check_webhooks),
];

/// What is wrong with the expressions of an object. What has not changed is not looked at again.
#[must_use]
pub(super) fn check(def: &ResourceDef, object: &Value, old: Option<&Value>, else_right: bool) -> FieldErrors {
    let Some((_, part, last, rules)) = HOLDERS.iter().find(|(resource, ..)| *resource == def.gvr.resource) else {
        return FieldErrors::new();
    };
    let unchanged = old.is_some_and(|old| old.at(part) == object.at(part));
    if unchanged || (*last && !else_right) { FieldErrors::new() } else { rules(object) }
}
