//! ResourceClaim and ResourceClaimTemplate.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::devices::{MAX_ITEMS, configuration, qualified_name, selectors, set, tolerations};
use super::resource_claim_status as status;
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::names::{dns_label, dns_subdomain};
use crate::validation::{Checks, int, same, text};

pub(crate) struct ResourceClaimStrategy;
pub(crate) struct ResourceClaimTemplateStrategy;

const MAX_ALTERNATIVES: usize = 8;
const BAD_REFERENCE: &str =
    "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";

/// `request`, and `request/subrequest` where there are alternatives.
pub(super) fn request_names(devices: &Value) -> Vec<String> {
    let mut names = Vec::new();
    for request in devices["requests"].items() {
        let name = request.str_at(&["name"]);
        names.push(name.to_owned());
        names.extend(request["firstAvailable"].items().iter().map(|sub| format!("{name}/{}", sub.str_at(&["name"]))));
    }
    names
}

pub(super) fn request_reference(at: &Cursor<'_>, names: &[String], errs: &mut FieldErrors) {
    let parts: Vec<&str> = text(at).split('/').collect();
    if parts.len() <= 2 {
        for part in parts {
            for message in dns_label(part) {
                errs.invalid_value(&at.path, part, message);
            }
        }
    }
    if !names.iter().any(|name| name == text(at)) {
        errs.invalid_text(at, BAD_REFERENCE);
    }
}

pub(super) fn request_references(list: &Cursor<'_>, names: &[String], errs: &mut FieldErrors) {
    for at in set(list, MAX_ITEMS, |at| text(at).to_owned(), errs) {
        request_reference(&at, names, errs);
    }
}

/// What is asked of one device, or of several alike.
fn exact_request(request: &Cursor<'_>, errs: &mut FieldErrors) {
    let class = request.field("deviceClassName");
    if errs.present(&class, "") {
        errs.each(&class, dns_subdomain(text(&class)));
    }
    selectors(&request.field("selectors"), errs);
    let (mode, count) = (request.field("allocationMode"), request.field("count"));
    match text(&mode) {
        "All" => {
            if int(&count) != 0 {
                errs.invalid(&count, "must not be specified when allocationMode is 'All'");
            }
        }
        "ExactCount" => {
            if int(&count) <= 0 {
                errs.invalid_int(&count, "must be greater than zero");
            }
        }
        _ => {
            errs.one_of(&mode, &["All", "ExactCount"]);
        }
    }
    tolerations(&request.field("tolerations"), errs);
}

fn validate_request(request: &Cursor<'_>, errs: &mut FieldErrors) {
    const ONE: &str = "exactly one of `exactly` or `firstAvailable` is required";
    let name = request.field("name");
    errs.each(&name, dns_label(text(&name)));
    let (exactly, alternatives) = (request.field("exactly"), request.field("firstAvailable"));
    match (exactly.is_absent(), alternatives.items().is_empty()) {
        (true, true) => errs.required(&request.path, ONE),
        (false, false) => {
            errs.invalid_value(&request.path, Value::Null, format!("{ONE}, but multiple fields are set"));
        }
        (false, true) => exact_request(&exactly, errs),
        (true, false) => {
            for alternative in set(&alternatives, MAX_ALTERNATIVES, |a| a.str_at(&["name"]).to_owned(), errs) {
                let name = alternative.field("name");
                errs.each(&name, dns_label(text(&name)));
                exact_request(&alternative, errs);
            }
        }
    }
}

fn validate_spec(spec: &Cursor<'_>, errs: &mut FieldErrors) {
    let devices = spec.field("devices");
    let names = request_names(&devices);
    for request in set(&devices.field("requests"), MAX_ITEMS, |r| r.str_at(&["name"]).to_owned(), errs) {
        validate_request(&request, errs);
    }
    let (constraints, config) = (devices.field("constraints"), devices.field("config"));
    for list in [&constraints, &config] {
        if list.items().len() > MAX_ITEMS {
            errs.too_many(&list.path, list.items().len(), MAX_ITEMS);
        }
    }
    for constraint in constraints.elements() {
        request_references(&constraint.field("requests"), &names, errs);
        let (matching, distinct) = (constraint.field("matchAttribute"), constraint.field("distinctAttribute"));
        if !matching.is_absent() {
            qualified_name(&matching, text(&matching), true, errs);
        } else if !distinct.is_absent() {
            qualified_name(&distinct, text(&distinct), true, errs);
        } else {
            errs.required(
                &constraint.path,
                "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set",
            );
        }
    }
    for item in config.elements() {
        request_references(&item.field("requests"), &names, errs);
        configuration(&item, errs);
    }
}

/// A request is for one device unless it says otherwise.
fn default_spec(spec: &mut Value) {
    if spec.at(&["devices", "requests"]).items().is_empty() {
        return;
    }
    let default = |request: &mut Value| {
        if request.str_at(&["allocationMode"]).is_empty() {
            request.set(&["allocationMode"], "ExactCount");
        }
        if request.str_at(&["allocationMode"]) == "ExactCount" && int(&request["count"]) == 0 {
            request.set(&["count"], 1);
        }
        if let Some(tolerations) = request.get_mut("tolerations") {
            tolerations.items_mut().iter_mut().for_each(|t| t.set_default(&["operator"], "Equal"));
        }
    };
    for request in spec.entry(&["devices", "requests"]).items_mut() {
        if let Some(exactly) = request.get_mut("exactly").filter(|e| !e.is_null()) {
            default(exactly);
        }
        if let Some(alternatives) = request.get_mut("firstAvailable") {
            alternatives.items_mut().iter_mut().for_each(default);
        }
    }
}

fn spec_stays(object: &Value, old: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let spec = Cursor::root(object).field("spec");
    if !same(spec.value, &old["spec"]) {
        errs.invalid_struct(&spec, "field is immutable");
    }
    errs
}

impl Strategy for ResourceClaimStrategy {
    fn default(&self, claim: &mut Value) {
        default_spec(claim.entry(&["spec"]));
    }

    fn prepare_for_create(&self, claim: &mut Value) {
        claim.set(&["status"], Value::object());
    }

    fn validate(&self, claim: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        validate_spec(&Cursor::root(claim).field("spec"), &mut errs);
        errs
    }

    fn validate_update(&self, claim: &Value, old: &Value) -> FieldErrors {
        spec_stays(claim, old)
    }

    fn validate_status_update(&self, claim: &Value, old: &Value) -> FieldErrors {
        status::validate(claim, old)
    }

    fn row(&self, claim: &Value, now: Now) -> Option<Vec<Cell>> {
        let state = &claim["status"];
        let mut states = Vec::new();
        if claim.is_deleting() {
            states.push("deleted");
        }
        if state["allocation"].is_null() {
            if !claim.is_deleting() {
                states.push("pending");
            }
        } else {
            states.push("allocated");
            if !state["reservedFor"].items().is_empty() {
                states.push("reserved");
            } else if state["deallocationRequested"].as_bool() == Some(true) {
                states.push("deallocation-requested");
            }
        }
        Some(vec![claim.name().into(), states.join(",").into(), table_cells::created(claim, now)])
    }
}

impl Strategy for ResourceClaimTemplateStrategy {
    fn default(&self, template: &mut Value) {
        default_spec(template.entry(&["spec", "spec"]));
    }

    fn validate(&self, template: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        validate_spec(&Cursor::root(template).fields(&["spec", "spec"]), &mut errs);
        errs
    }

    fn validate_update(&self, template: &Value, old: &Value) -> FieldErrors {
        spec_stays(template, old)
    }

    fn row(&self, template: &Value, now: Now) -> Option<Vec<Cell>> {
        Some(vec![template.name().into(), table_cells::created(template, now)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;

    #[test]
    fn requests_are_named_and_of_one_kind() {
        let mut claim: Value = serde_json::from_str(
            r#"{"spec":{"devices":{"requests":[{"name":"a","exactly":{"deviceClassName":"c"}},{"name":"b"}],"constraints":[{"requests":["x"],"matchAttribute":"a.b/c"}]}}}"#,
        )
        .unwrap();
        ResourceClaimStrategy.default(&mut claim);
        assert_findings(
            &ResourceClaimStrategy.validate(&claim),
            &[
                "spec.devices.requests[1]: Required value: exactly one of `exactly` or `firstAvailable` is required",
                &format!(r#"spec.devices.constraints[0].requests[0]: Invalid value: "x": {BAD_REFERENCE}"#),
            ],
        );
        let mut other = claim.clone();
        other.set(&["spec", "devices"], Value::object());
        assert_eq!(ResourceClaimStrategy.validate_update(&other, &claim).0.len(), 1);
    }
}
