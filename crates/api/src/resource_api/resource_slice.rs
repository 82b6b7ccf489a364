//! ResourceSlice.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::devices::{device_name, driver_name, pool_name, qualified_name, set};
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::labels::label_name;
use crate::validation::names::{dns_label, dns_subdomain, label_value};
use crate::validation::node_selector::node_selector;
use crate::validation::{Checks, int, text};

pub(crate) struct ResourceSliceStrategy;

const MAX_DEVICES: usize = 128;
const MAX_ADVANCED_DEVICES: usize = 64;
const MAX_COUNTER_SETS: usize = 8;
const MAX_ATTRIBUTES: usize = 32;
const MAX_VALUE: usize = 64;
const VALUES: &[&str] = &["bool", "int", "string", "version"];

/// On which nodes the devices are: one way of saying so, and no other.
fn validate_nodes(spec: &Cursor<'_>, errs: &mut FieldErrors) {
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    let mut given = Vec::new();
    let (name, selector) = (spec.field("nodeName"), spec.field("nodeSelector"));
    if !name.is_absent() {
        if text(&name).is_empty() {
            errs.invalid(&name, "must be either unset or set to a non-empty string");
        } else {
            given.push("`nodeName`");
            errs.each(&name, dns_subdomain(text(&name)));
        }
    }
    if !selector.is_absent() {
        given.push("`nodeSelector`");
        node_selector(errs, &selector, true);
        let terms = selector.field("nodeSelectorTerms");
        if terms.items().len() != 1 {
            errs.invalid_struct(&terms, "must have exactly one node selector term");
        }
    }
    for (field, shown) in [("allNodes", "`allNodes`"), ("perDeviceNodeSelection", "`perDeviceNodeSelection`")] {
        let flag = spec.field(field);
        match flag.as_bool() {
            Some(true) => given.push(shown),
            Some(false) => errs.invalid(&flag, "must be either unset or set to true"),
            None => {}
        }
    }
    match given.as_slice() {
        [] => errs.required(&spec.path, ONE),
        [_] => {}
        several => {
            let shown = format!("{{{}}}", several.join(", "));
            errs.invalid_value(&spec.path, shown, format!("{ONE}, but multiple fields are set"));
        }
    }
}

fn validate_attributes(device: &Cursor<'_>, errs: &mut FieldErrors) {
    let (attributes, capacity) = (device.field("attributes"), device.field("capacity"));
    let count = attributes.entries().len() + capacity.entries().len();
    if count > MAX_ATTRIBUTES {
        let why = format!("the total number of attributes and capacities must not exceed {MAX_ATTRIBUTES}");
        errs.invalid_value(&device.path, i64::try_from(count).unwrap_or(i64::MAX), why);
    }
    for (name, attribute) in attributes.map_entries() {
        qualified_name(&attribute, name, false, errs);
        let set: Vec<&&str> = VALUES.iter().filter(|f| !attribute[**f].is_null()).collect();
        match set.as_slice() {
            [] => errs.required(&attribute.path, "exactly one value must be specified"),
            [only] => {
                let value = attribute.field(only);
                if text(&value).len() > MAX_VALUE {
                    errs.too_long(&value.path, MAX_VALUE);
                }
            }
            _ => errs.invalid_struct(&attribute, "exactly one value must be specified"),
        }
    }
    for (name, amount) in capacity.map_entries() {
        qualified_name(&amount, name, false, errs);
    }
}

fn validate_device(device: &Cursor<'_>, errs: &mut FieldErrors) {
    device_name(&device.field("name"), errs);
    validate_attributes(device, errs);
    for taint in device.field("taints").elements() {
        let (value, effect) = (taint.field("value"), taint.field("effect"));
        label_name(errs, &taint.field("key"));
        errs.each(&value, label_value(text(&value)));
        if errs.present(&effect, "") {
            errs.one_of(&effect, &["NoExecute", "NoSchedule", "None"]);
        }
    }
}

fn validate(slice: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let spec = Cursor::root(slice).field("spec");
    driver_name(&spec.field("driver"), &mut errs);
    let pool = spec.field("pool");
    pool_name(&pool.field("name"), &mut errs);
    let (slices, generation) = (pool.field("resourceSliceCount"), pool.field("generation"));
    if int(&slices) <= 0 {
        errs.invalid_int(&slices, "must be greater than zero");
    }
    errs.non_negative(&generation);
    validate_nodes(&spec, &mut errs);
    if !spec["sharedCounters"].is_null() && !spec["devices"].is_null() {
        errs.invalid_value(&spec.path, "", "only one of `sharedCounters` or `devices` is allowed");
    }
    let devices = spec.field("devices");
    let advanced =
        devices.items().iter().any(|d| !d["taints"].items().is_empty() || !d["consumesCounters"].items().is_empty());
    let max = if advanced { MAX_ADVANCED_DEVICES } else { MAX_DEVICES };
    for device in set(&devices, max, |d| d.str_at(&["name"]).to_owned(), &mut errs) {
        validate_device(&device, &mut errs);
    }
    let shared = spec.field("sharedCounters");
    for counters in set(&shared, MAX_COUNTER_SETS, |c| c.str_at(&["name"]).to_owned(), &mut errs) {
        let name = counters.field("name");
        if errs.present(&name, "") {
            errs.each(&name, dns_label(text(&name)));
        }
        let all = counters.field("counters");
        if errs.present(&all, "") {
            for (name, counter) in all.map_entries() {
                for message in dns_label(name) {
                    errs.invalid_value(&counter.path, name, message);
                }
            }
        }
    }
    errs
}

impl Strategy for ResourceSliceStrategy {
    fn validate(&self, slice: &Value) -> FieldErrors {
        validate(slice)
    }

    fn validate_update(&self, slice: &Value, old: &Value) -> FieldErrors {
        let mut errs = validate(slice);
        let (spec, was) = (Cursor::root(slice).field("spec"), Cursor::root(old).field("spec"));
        errs.immutable(&spec.fields(&["pool", "name"]), &was.fields(&["pool", "name"]));
        for field in ["driver", "nodeName"] {
            errs.immutable(&spec.field(field), &was.field(field));
        }
        errs
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn selectable_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[("spec.driver", &["spec", "driver"]), ("spec.nodeName", &["spec", "nodeName"])]
    }

    fn row(&self, slice: &Value, now: Now) -> Option<Vec<Cell>> {
        let spec = &slice["spec"];
        let all = spec["allNodes"].as_bool() == Some(true);
        let node = if all { "<all>" } else { spec["nodeName"].as_str().unwrap_or("<unset>") };
        Some(vec![
            slice.name().into(),
            node.into(),
            spec.str_at(&["driver"]).into(),
            spec.str_at(&["pool", "name"]).into(),
            table_cells::created(slice, now),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;

    #[test]
    fn a_slice_is_on_some_nodes() {
        let slice = serde_json::from_str(
            r#"{"spec":{"driver":"a.b","pool":{"name":"p","resourceSliceCount":0},"nodeName":"n","allNodes":true,"devices":[{"name":"d","attributes":{"x":{}}}]}}"#,
        )
        .unwrap();
        assert_findings(
            &ResourceSliceStrategy.validate(&slice),
            &[
                "spec.pool.resourceSliceCount: Invalid value: 0: must be greater than zero",
                r#"spec: Invalid value: "{`nodeName`, `allNodes`}": exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required, but multiple fields are set"#,
                "spec.devices[0].attributes[x]: Required value: exactly one value must be specified",
            ],
        );
    }
}
