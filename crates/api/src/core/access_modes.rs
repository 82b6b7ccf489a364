//! What PersistentVolumes and claims have in common: access modes, volume modes, names of classes.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::validation::names::dns_subdomain;
use crate::validation::resources::quantity;
use crate::validation::{Checks, text};

const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

pub(super) fn access_modes(modes: &Cursor<'_>, errs: &mut FieldErrors) {
    let mut alone = false;
    let mut shared = false;
    for mode in modes.elements() {
        let at = Cursor::new(modes.path.clone(), mode.value);
        if errs.one_of(&at, MODES) {
            alone |= text(&at) == "ReadWriteOncePod";
            shared |= text(&at) != "ReadWriteOncePod";
        }
    }
    if alone && shared {
        errs.forbidden(&modes.path, "may not use ReadWriteOncePod with other access modes");
    }
}

pub(super) fn volume_mode(mode: &Cursor<'_>, errs: &mut FieldErrors) {
    if !mode.is_absent() {
        errs.one_of(mode, &["Block", "Filesystem"]);
    }
}

/// The name of a StorageClass or VolumeAttributesClass, if there is one.
pub(super) fn class_name(name: &Cursor<'_>, errs: &mut FieldErrors) {
    if !text(name).is_empty() {
        errs.each(name, dns_subdomain(text(name)));
    }
}

/// An amount that is no less than nothing.
pub(super) fn basic_resource(amount: &Cursor<'_>, errs: &mut FieldErrors) {
    let given = quantity(amount);
    if given.is_negative() {
        errs.invalid_value(&amount.path, given.value(), "must be a valid resource quantity");
    }
}

/// `RWO,ROX`: as kubectl prints access modes, each once.
pub(super) fn short_modes(modes: &Value) -> String {
    let has = |mode: &str| modes.items().iter().any(|m| m.as_str() == Some(mode));
    let short =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let all: Vec<&str> = short.into_iter().filter(|(mode, _)| has(mode)).map(|(_, short)| short).collect();
    all.join(",")
}

/// The class of a volume or a claim, by field or by the old annotation.
pub(super) fn class_of(object: &Value) -> &str {
    object
        .annotation("volume.beta.kubernetes.io/storage-class")
        .unwrap_or_else(|| object.str_at(&["spec", "storageClassName"]))
}

/// `<unset>` where nothing is said.
pub(super) fn or_unset(value: &Value) -> Value {
    if value.is_null() { "<unset>".into() } else { value.clone() }
}
