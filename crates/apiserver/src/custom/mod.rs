//! Custom resources: what a CustomResourceDefinition makes of this server.
//!
//! A definition becomes [`Custom`]s, one for each version that it serves, and each of those an entry of the table of
//! resources like a built-in kind's, so that everything generic treats both alike. [`controller`] keeps the table up with the
//! definitions; it runs in every server, since a server may run alone.

mod check;
mod columns;
pub(crate) mod controller;
mod cost;
mod decode;
mod defaults;
mod definitions;
mod formats;
mod names;
mod rules;
mod schema;
mod strategy;
mod validate;

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::meta::Gvk;
use apimachinery::schema::TypeRef;
use parking_lot::Mutex;

use crate::cel::Program;

pub(crate) use check::check_definition;
pub(crate) use decode::{decode, typed};

/// One served version of a custom resource.
pub(crate) struct Custom {
    pub gvk: Gvk,
    /// `openAPIV3Schema`, `Null` for one that preserves everything.
    pub schema: Value,
    /// The schema as server-side apply sees it.
    pub ty: TypeRef,
    pub columns: Vec<columns::PrinterColumn>,
    pub has_status: bool,
    /// Some rule has to be evaluated for some value.
    pub has_rules: bool,
    programs: Mutex<HashMap<String, Arc<Program>>>,
}

/// A definition that is to be deleted waits for its objects to go first.
pub(crate) fn hold(definition: &mut Value, now: jiff::Timestamp) {
    let finalizers = definition.entry(&["metadata", "finalizers"]).make_array();
    if !finalizers.iter().any(|f| f.as_str() == Some(controller::FINALIZER)) {
        finalizers.push(controller::FINALIZER.into());
    }
    let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    let now = apimachinery::time::format(now);
    names::set_condition(
        definition.entry(&["status"]),
        ("Terminating", "True"),
        "InstanceDeletionPending",
        message,
        &now,
    );
}

impl Custom {
    #[must_use]
    pub(crate) fn new(definition: &Value, version: &Value) -> Self {
        let names = definition.at(&["spec", "names"]);
        let gvk = Gvk::new(definition.str_at(&["spec", "group"]), version.str_at(&["name"]), names.str_at(&["kind"]));
        let schema = version.at(&["schema", "openAPIV3Schema"]).clone();
        Custom {
            ty: schema::type_of(&gvk, &schema),
            columns: columns::columns_of(version),
            has_status: version.at(&["subresources", "status"]).as_object().is_some(),
            has_rules: rules::has_rules(&schema),
            programs: Mutex::default(),
            gvk,
            schema,
        }
    }

    /// The compiled expression; `None` for one that does not compile, which validation of the definition refuses.
    fn program(&self, source: &str) -> Option<Arc<Program>> {
        if let Some(program) = self.programs.lock().get(source) {
            return Some(Arc::clone(program));
        }
        let program = Arc::new(Program::compile(source).ok()?);
        self.programs.lock().insert(source.to_owned(), Arc::clone(&program));
        Some(program)
    }
}
