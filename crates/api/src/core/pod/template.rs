//! A template of pods, as workloads hold it.

use apimachinery::field::{Cursor, FieldErrors};

use super::{Options, annotations, spec};
use crate::validation::labels::label_map;
use crate::validation::meta;

/// Rules for a `PodTemplateSpec`. Upstream leaves `metadata` out of its paths.
pub(crate) fn validate(errs: &mut FieldErrors, template: &Cursor<'_>, options: Options) {
    metadata(errs, template, options);
    let pod = template.field("spec");
    spec::validate(errs, &pod, None, options);
    annotations::agree_with_fields(errs, template.value.at(&["metadata", "annotations"]), &pod);
    if !pod.value["ephemeralContainers"].items().is_empty() {
        errs.forbidden(&pod.path.child("ephemeralContainers"), "ephemeral containers not allowed in pod template");
    }
}

/// Its labels and annotations alone.
pub(crate) fn metadata(errs: &mut FieldErrors, template: &Cursor<'_>, options: Options) {
    let own = &template.value["metadata"];
    label_map(errs, &Cursor::new(template.path.child("labels"), &own["labels"]));
    let notes = Cursor::new(template.path.child("annotations"), &own["annotations"]);
    meta::annotations(errs, &notes);
    annotations::validate(errs, &notes, &template.field("spec"), options);
}
