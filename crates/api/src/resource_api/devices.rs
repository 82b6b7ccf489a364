//! What claims, classes and slices have in common: selectors, configuration, tolerations, names.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::core::volume_sources::csi_driver_name;
use crate::validation::labels::label_name;
use crate::validation::names::{dns_label, dns_subdomain, label_value};
use crate::validation::{Checks, text};

/// The most elements that most lists of this group may have.
pub(super) const MAX_ITEMS: usize = 32;
const MAX_EXPRESSION: usize = 10 << 10;
const MAX_PARAMETERS: usize = 10 << 10;
const MAX_POOL_NAME: usize = 253;
const MAX_DOMAIN: usize = 63;
const MAX_ID: usize = 32;

/// Checks the size of a list, and that no key comes twice.
pub(super) fn set<'a>(
    list: &Cursor<'a>,
    max: usize,
    key: impl Fn(&Cursor<'a>) -> String,
    errs: &mut FieldErrors,
) -> Vec<Cursor<'a>> {
    let items: Vec<Cursor<'a>> = list.elements().collect();
    if items.len() > max {
        errs.too_many(&list.path, items.len(), max);
    }
    let mut seen: Vec<String> = Vec::new();
    for item in &items {
        let this = key(item);
        if seen.contains(&this) {
            errs.duplicate(&item.path, this.as_str());
        }
        seen.push(this);
    }
    items
}

/// A driver's name; the same rules as a CSI driver's.
pub(super) fn driver_name(name: &Cursor<'_>, errs: &mut FieldErrors) {
    csi_driver_name(name, errs);
}

pub(super) fn device_name(name: &Cursor<'_>, errs: &mut FieldErrors) {
    errs.each(name, dns_label(text(name)));
}

pub(super) fn pool_name(name: &Cursor<'_>, errs: &mut FieldErrors) {
    if !errs.present(name, "") {
        return;
    }
    if text(name).len() > MAX_POOL_NAME {
        errs.too_long(&name.path, MAX_POOL_NAME);
    }
    for part in text(name).split('/') {
        for message in dns_subdomain(part) {
            errs.invalid_value(&name.path, part, message);
        }
    }
}

/// `domain/id`, where the domain may be left out unless it is required.
pub(super) fn qualified_name(name: &Cursor<'_>, shown: &str, domain_required: bool, errs: &mut FieldErrors) {
    if shown.is_empty() {
        errs.required(&name.path, "");
        return;
    }
    let (domain, id) = match shown.split_once('/') {
        Some((domain, id)) if !id.contains('/') => (Some(domain), id),
        None if !domain_required => (None, shown),
        None => {
            errs.invalid_value(&name.path, shown, "must include a domain");
            return;
        }
        Some(_) => {
            errs.invalid_value(
                &name.path,
                shown,
                "a fully qualified name must be a domain and a name separated by a slash",
            );
            return;
        }
    };
    if let Some(domain) = domain {
        if domain.is_empty() {
            errs.required(&name.path, "the domain must not be empty");
        } else if domain.len() > MAX_DOMAIN {
            errs.too_long(&name.path, MAX_DOMAIN);
        } else {
            for message in dns_subdomain(domain) {
                errs.invalid_value(&name.path, domain, message);
            }
        }
    }
    if id.is_empty() {
        errs.required(&name.path, "the name must not be empty");
    } else if id.len() > MAX_ID {
        errs.too_long(&name.path, MAX_ID);
    } else {
        for message in crate::validation::names::c_identifier(id) {
            errs.invalid_value(&name.path, id, message);
        }
    }
}

pub(super) fn selectors(list: &Cursor<'_>, errs: &mut FieldErrors) {
    if list.items().len() > MAX_ITEMS {
        errs.too_many(&list.path, list.items().len(), MAX_ITEMS);
    }
    for selector in list.elements() {
        let cel = selector.field("cel");
        if cel.is_absent() {
            errs.required(&cel.path, "");
            continue;
        }
        let expression = cel.field("expression");
        if text(&expression).len() > MAX_EXPRESSION {
            errs.too_long(&expression.path, MAX_EXPRESSION);
        }
    }
}

/// What a driver is told; only the driver understands it.
pub(super) fn configuration(config: &Cursor<'_>, errs: &mut FieldErrors) {
    let opaque = config.field("opaque");
    if opaque.is_absent() {
        errs.required(&opaque.path, "");
        return;
    }
    driver_name(&opaque.field("driver"), errs);
    raw_object(&opaque.field("parameters"), MAX_PARAMETERS, errs);
}

/// Any JSON object, up to a size.
pub(super) fn raw_object(data: &Cursor<'_>, max: usize, errs: &mut FieldErrors) {
    match data.value {
        Value::Null => errs.required(&data.path, ""),
        Value::Object(_) => {
            if serde_json::to_string(data.value).map_or(0, |s| s.len()) > max {
                errs.too_long(&data.path, max);
            }
        }
        _ => errs.invalid_value(&data.path, "<value omitted>", "must be a valid JSON object"),
    }
}

pub(super) fn tolerations(list: &Cursor<'_>, errs: &mut FieldErrors) {
    for toleration in list.elements() {
        let (key, value, operator) = (toleration.field("key"), toleration.field("value"), toleration.field("operator"));
        if !text(&key).is_empty() {
            label_name(errs, &key);
        }
        match text(&operator) {
            "Exists" => {
                if !text(&value).is_empty() {
                    errs.invalid(&value, "must be empty for operator `Exists`");
                }
            }
            "Equal" => errs.each(&value, label_value(text(&value))),
            "" => errs.required(&operator.path, ""),
            _ => {
                errs.one_of(&operator, &["Equal", "Exists"]);
            }
        }
        let effect = toleration.field("effect");
        if !text(&effect).is_empty() {
            errs.one_of(&effect, &["NoExecute", "NoSchedule"]);
        }
    }
}
