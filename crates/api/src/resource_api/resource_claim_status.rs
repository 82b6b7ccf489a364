//! What schedulers, drivers and controllers say of a claim.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::devices::{MAX_ITEMS, configuration, device_name, driver_name, pool_name, raw_object, set, tolerations};
use super::resource_claim::{request_names, request_reference, request_references};
use crate::validation::node_selector::node_selector;
use crate::validation::{Checks, same, text};

const MAX_CONSUMERS: usize = 256;
const MAX_DEVICE_DATA: usize = 10 << 10;

pub(super) fn validate(claim: &Value, old: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let status = Cursor::root(claim).field("status");
    let names = request_names(claim.at(&["spec", "devices"]));
    let consumers = status.field("reservedFor");
    for consumer in set(&consumers, MAX_CONSUMERS, |c| c.str_at(&["uid"]).to_owned(), &mut errs) {
        for field in ["resource", "name", "uid"] {
            errs.present(&consumer.field(field), "");
        }
    }
    let allocation = status.field("allocation");
    devices(&status, &mut errs);
    if !consumers.items().is_empty() {
        let held = old.at(&["status", "reservedFor"]).items();
        if allocation.is_absent() {
            errs.forbidden(&consumers.path, "may not be specified when `allocated` is not set");
        } else if claim.is_deleting() && consumers.items().iter().any(|c| !held.contains(c)) {
            errs.forbidden(
                &consumers.path,
                "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set",
            );
        }
    }
    let before = old.at(&["status", "allocation"]);
    if allocation.is_absent() {
        return errs;
    }
    if before.is_null() {
        validate_allocation(&allocation, &names, &mut errs);
    } else if !same(allocation.value, before) {
        errs.invalid_struct(&allocation, "field is immutable");
    }
    errs
}

/// What drivers say of the devices that were allocated.
fn devices(status: &Cursor<'_>, errs: &mut FieldErrors) {
    let id = |d: &Value| format!("{}/{}/{}", d.str_at(&["driver"]), d.str_at(&["pool"]), d.str_at(&["device"]));
    let allocated: Vec<String> =
        status.value.at(&["allocation", "devices", "results"]).items().iter().map(id).collect();
    for device in set(&status.field("devices"), usize::MAX, |d| id(d.value), errs) {
        driver_name(&device.field("driver"), errs);
        pool_name(&device.field("pool"), errs);
        device_name(&device.field("device"), errs);
        if !allocated.contains(&id(device.value)) {
            errs.invalid_value(&device.path, id(device.value), "must be an allocated device in the claim");
        }
        let data = device.field("data");
        if !data.is_absent() {
            raw_object(&data, MAX_DEVICE_DATA, errs);
        }
    }
}

fn validate_allocation(allocation: &Cursor<'_>, names: &[String], errs: &mut FieldErrors) {
    let devices = allocation.field("devices");
    let (results, config) = (devices.field("results"), devices.field("config"));
    for (list, max) in [(&results, MAX_ITEMS), (&config, 2 * MAX_ITEMS)] {
        if list.items().len() > max {
            errs.too_many(&list.path, list.items().len(), max);
        }
    }
    for result in results.elements() {
        request_reference(&result.field("request"), names, errs);
        driver_name(&result.field("driver"), errs);
        pool_name(&result.field("pool"), errs);
        device_name(&result.field("device"), errs);
        tolerations(&result.field("tolerations"), errs);
    }
    for item in config.elements() {
        let source = item.field("source");
        if text(&source).is_empty() {
            errs.required(&source.path, "");
        } else {
            errs.one_of(&source, &["FromClaim", "FromClass"]);
        }
        request_references(&item.field("requests"), names, errs);
        configuration(&item, errs);
    }
    let selector = allocation.field("nodeSelector");
    if !selector.is_absent() {
        node_selector(errs, &selector, true);
    }
}
