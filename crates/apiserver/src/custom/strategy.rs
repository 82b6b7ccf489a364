//! The strategy of every custom resource: what its schema says.

use std::sync::Arc;

use api::strategy::{Cell, Now};
use apimachinery::Value;
use apimachinery::field::{Cursor, ErrorKind, FieldErrors, Path};
use parking_lot::RwLock;

use super::{Custom, defaults, rules, validate};

type Fields = &'static [(&'static str, &'static [&'static str])];

/// Stays for as long as the server runs; what it goes by changes with the definition.
pub(super) struct CustomStrategy {
    custom: RwLock<Arc<Custom>>,
    fields: Fields,
}

impl CustomStrategy {
    pub(super) fn new(custom: Arc<Custom>, fields: Fields) -> Self {
        CustomStrategy { custom: RwLock::new(custom), fields }
    }

    pub(super) fn set(&self, custom: Arc<Custom>) {
        *self.custom.write() = custom;
    }

    fn custom(&self) -> Arc<Custom> {
        Arc::clone(&self.custom.read())
    }

    fn findings(&self, object: &Value, old: Option<&Value>) -> FieldErrors {
        let custom = self.custom();
        let mut errs = FieldErrors::new();
        if custom.schema().is_null() {
            return errs;
        }
        validate::validate(&Cursor::root(object), custom.schema(), old, &mut errs);
        if custom.has_rules() {
            let blocking = |kind| {
                matches!(
                    kind,
                    ErrorKind::NotSupported
                        | ErrorKind::Required
                        | ErrorKind::TooLong
                        | ErrorKind::TooMany
                        | ErrorKind::TypeInvalid
                )
            };
            if errs.0.iter().any(|e| blocking(e.kind)) {
                let why = "some validation rules were not checked because the object was invalid; correct the existing errors to \
                           complete validation";
                errs.invalid_value(&Path::root(), Value::Null, why);
            } else {
                rules::check(&custom, object, old, &mut errs);
            }
        }
        errs
    }
}

impl api::Strategy for CustomStrategy {
    fn default(&self, object: &mut Value) {
        let custom = self.custom();
        if !custom.schema().is_null() {
            defaults::fill(object, custom.schema());
        }
    }

    fn validate(&self, object: &Value) -> FieldErrors {
        self.findings(object, None)
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        self.findings(object, Some(old))
    }

    fn validate_status_update(&self, object: &Value, old: &Value) -> FieldErrors {
        self.findings(object, Some(old))
    }

    fn has_generation(&self) -> bool {
        true
    }

    /// Everything but metadata, and status where that has a subresource of its own, is what the object is meant to be.
    fn generation_changed(&self, object: &Value, old: &Value) -> bool {
        let has_status = self.custom().has_status;
        let meant = |v: &Value| {
            let mut map = v.entries().clone();
            map.remove("metadata");
            if has_status {
                map.remove("status");
            }
            map
        };
        meant(object) != meant(old)
    }

    fn selectable_fields(&self) -> Fields {
        self.fields
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn row(&self, object: &Value, now: Now) -> Option<Vec<Cell>> {
        Some(self.custom().columns.iter().map(|c| c.cell(object, now)).collect())
    }
}
