//! The claim that is made for an ephemeral volume.

use apimachinery::field::{Cursor, FieldErrors};

use crate::validation::labels::label_selector;
use crate::validation::names::dns_subdomain;
use crate::validation::{Checks, meta, resources, text};

const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

/// A template of claims: labels, annotations and a spec.
pub(super) fn validate(errs: &mut FieldErrors, template: &Cursor<'_>) {
    meta::template_only(errs, &template.field("metadata"));
    spec(errs, &template.field("spec"));
}

fn spec(errs: &mut FieldErrors, spec: &Cursor<'_>) {
    let modes = spec.field("accessModes");
    errs.present(&modes, "at least 1 access mode is required");
    if !spec.value["selector"].is_null() {
        label_selector(errs, &spec.field("selector"), true);
    }
    for mode in modes.elements() {
        errs.one_of(&Cursor::new(modes.path.clone(), mode.value), ACCESS_MODES);
    }
    let once = |m: &Cursor<'_>| text(m) == "ReadWriteOncePod";
    if modes.elements().any(|m| once(&m)) && modes.elements().any(|m| !once(&m)) {
        errs.forbidden(&modes.path, "may not use ReadWriteOncePod with other access modes");
    }
    let path = spec.path.child("resources").key("storage");
    let storage = Cursor::new(path, spec.value.at(&["resources", "requests", "storage"]));
    if storage.is_absent() {
        errs.required(&storage.path, "");
    } else {
        resources::positive(errs, &storage);
    }
    let class = spec.field("storageClassName");
    if !text(&class).is_empty() {
        errs.each(&class, dns_subdomain(text(&class)));
    }
    let mode = spec.field("volumeMode");
    if !mode.is_absent() {
        errs.one_of(&mode, &["Block", "Filesystem"]);
    }
    for field in ["dataSource", "dataSourceRef"] {
        source(errs, &spec.field(field));
    }
}

/// Where the volume's first content comes from.
fn source(errs: &mut FieldErrors, source: &Cursor<'_>) {
    if source.is_absent() {
        return;
    }
    for field in ["name", "kind"] {
        errs.present(&source.field(field), "");
    }
    let group = source.value.str_at(&["apiGroup"]);
    if group.is_empty() && source.value.str_at(&["kind"]) != "PersistentVolumeClaim" {
        errs.invalid_text(
            &source.field("kind"),
            "must be 'PersistentVolumeClaim' when referencing the default apiGroup",
        );
    }
    if !group.is_empty() {
        errs.each(&source.field("apiGroup"), dns_subdomain(group));
    }
}
