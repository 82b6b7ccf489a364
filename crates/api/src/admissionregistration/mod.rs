//! admissionregistration.k8s.io.

pub(crate) mod binding;
mod match_rules;
pub(crate) mod policy;
pub(crate) mod webhooks;

use apimachinery::field::{Cursor, FieldErrors};

use crate::validation::names::qualified_name;
use crate::validation::{Checks, text};

const MAX_CONDITIONS: usize = 64;

/// CEL conditions that a request must meet before anything else is looked at.
fn match_conditions(list: &Cursor<'_>, errs: &mut FieldErrors) {
    if list.items().len() > MAX_CONDITIONS {
        errs.too_many(&list.path, list.items().len(), MAX_CONDITIONS);
    }
    let mut names: Vec<&str> = Vec::new();
    for condition in list.elements() {
        let (expression, name) = (condition.field("expression"), condition.field("name"));
        if text(&expression).trim().is_empty() {
            errs.required(&expression.path, "");
        }
        if errs.present(&name, "") {
            errs.each(&name, qualified_name(text(&name)));
            if names.contains(&text(&name)) {
                errs.duplicate(&name.path, text(&name));
            }
            names.push(text(&name));
        }
    }
}

fn failure_policy(policy: &Cursor<'_>, errs: &mut FieldErrors) {
    if policy.is_absent() {
        errs.required(&policy.path, "");
    } else {
        errs.one_of(policy, &["Fail", "Ignore"]);
    }
}
