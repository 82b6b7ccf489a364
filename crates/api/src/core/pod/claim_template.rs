//! The claim that is made for an ephemeral volume.

use apimachinery::field::{Cursor, FieldErrors};

use crate::core::persistent_volume_claim::validate_spec;
use crate::validation::meta;

/// A template of claims: labels, annotations and a spec.
pub(super) fn validate(errs: &mut FieldErrors, template: &Cursor<'_>) {
    meta::template_only(errs, &template.field("metadata"));
    validate_spec(&template.field("spec"), errs);
}
