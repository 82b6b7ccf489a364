//! Rules for a whole pod.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::{Options, annotations, containers, spec};

/// The rules for a new pod.
pub(super) fn validate(pod: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let at = Cursor::root(pod).field("spec");
    metadata_and_spec(&mut errs, pod, Options::strict(true));
    if !pod.at(&["spec", "ephemeralContainers"]).items().is_empty() {
        errs.forbidden(&at.path.child("ephemeralContainers"), "cannot be set on create");
    }
    if !at.value.str_at(&["nodeName"]).is_empty() && !at.value["schedulingGates"].items().is_empty() {
        errs.forbidden(&at.path.child("nodeName"), "cannot be set until all schedulingGates have been cleared");
    }
    annotations::agree_with_fields(&mut errs, pod.meta("annotations"), &at);
    errs
}

/// The rules that hold for a pod always.
pub(super) fn metadata_and_spec(errs: &mut FieldErrors, pod: &Value, options: Options) {
    let root = Cursor::root(pod);
    let at = root.field("spec");
    annotations::validate(errs, &root.fields(&["metadata", "annotations"]), &at, options);
    spec::validate(errs, &at, Some(&pod["metadata"]), options);
    if at.value.str_at(&["serviceAccountName"]).is_empty() {
        for source in at.field("volumes").elements().flat_map(|v| v.fields(&["projected", "sources"]).elements()) {
            let token = source.field("serviceAccountToken");
            if !token.is_absent() {
                errs.forbidden(&token.path, "must not be specified when serviceAccountName is not set");
            }
        }
    }
    for list in ["containers", "initContainers"] {
        for container in at.field(list).elements() {
            containers::only_for_pods(errs, &container);
        }
    }
}
