//! storage.k8s.io.

pub(crate) mod csi_driver;
pub(crate) mod csi_node;
pub(crate) mod csi_storage_capacity;
pub(crate) mod storage_class;
pub(crate) mod volume_attachment;
pub(crate) mod volume_attributes_class;

use apimachinery::field::{Cursor, FieldErrors};

const MAX_PARAMETERS: usize = 512;
const MAX_PARAMETER_BYTES: usize = 256 << 10;

/// Parameters that a driver understands: their number, size, and that they have names.
fn parameters(at: &Cursor<'_>, errs: &mut FieldErrors) {
    let map = at.entries();
    if map.len() > MAX_PARAMETERS {
        errs.too_long(&at.path, MAX_PARAMETERS);
        return;
    }
    let mut total = 0;
    for (key, value) in map {
        if key.is_empty() {
            errs.invalid_value(&at.path, "", "field can not be empty.");
        }
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > MAX_PARAMETER_BYTES {
        errs.too_long(&at.path, MAX_PARAMETER_BYTES);
    }
}
