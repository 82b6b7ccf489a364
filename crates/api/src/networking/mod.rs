//! networking.k8s.io.

pub(crate) mod ingress;
pub(crate) mod ingress_class;
pub(crate) mod ip_address;
pub(crate) mod network_policy;
pub(crate) mod service_cidr;

use apimachinery::field::{Cursor, FieldErrors};

use crate::validation::names::{dns_subdomain, path_segment};
use crate::validation::{Checks, text};

/// A field that is required, and a segment of a path.
fn required_segment(at: &Cursor<'_>, errs: &mut FieldErrors) {
    if errs.present(at, "") {
        errs.each(at, path_segment(text(at)));
    }
}

/// A reference to an object of any kind: its group, kind and name.
fn typed_reference(reference: &Cursor<'_>, errs: &mut FieldErrors) {
    let group = reference.field("apiGroup");
    if !group.is_absent() {
        errs.each(&group, dns_subdomain(text(&group)));
    }
    required_segment(&reference.field("kind"), errs);
    required_segment(&reference.field("name"), errs);
}
