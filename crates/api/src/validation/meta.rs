//! The part of `metadata` that templates have.

use apimachinery::field::{Cursor, FieldErrors};

use super::names::qualified_name;
use super::text;

/// All annotations of an object together, in bytes.
const MAX_ANNOTATIONS: usize = 256 << 10;

/// Annotations: keys whose case does not matter, and a bound for all of them.
pub(crate) fn annotations(errs: &mut FieldErrors, annotations: &Cursor<'_>) {
    let mut total = 0;
    for (key, value) in annotations.map_entries() {
        for message in qualified_name(&key.to_lowercase()) {
            errs.invalid_value(&annotations.path, key, message);
        }
        total += key.len() + text(&value).len();
    }
    if total > MAX_ANNOTATIONS {
        errs.too_long(&annotations.path, MAX_ANNOTATIONS);
    }
}

/// The metadata of a template of claims: labels and annotations only.
pub(crate) fn template_only(errs: &mut FieldErrors, meta: &Cursor<'_>) {
    annotations(errs, &meta.field("annotations"));
    super::labels::label_map(errs, &meta.field("labels"));
    for (field, value) in meta.value.entries().iter() {
        if !matches!(field.as_str(), "annotations" | "labels") && !value.is_empty_value() {
            errs.forbidden(&meta.path.child(field), "cannot be set");
        }
    }
}
