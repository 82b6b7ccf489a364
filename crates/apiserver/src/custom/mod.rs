//! Custom resources: what a CustomResourceDefinition makes of this server.
//!
//! A definition becomes [`Custom`]s, one for each version that it serves, and each of those an entry of the table of
//! resources like a built-in kind's, so that everything generic treats both alike. [`controller`] keeps the table up with the
//! definitions; it runs in every server, since a server may run alone. [`conversion`] takes objects from version to version
//! where a webhook does that.

mod check;
mod columns;
pub(crate) mod controller;
pub(crate) mod conversion;
mod cost;
mod decode;
mod default_check;
mod defaults;
mod definitions;
mod formats;
mod names;
mod rules;
mod scale;
mod schema;
mod strategy;
mod validate;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use apimachinery::Value;
use apimachinery::meta::Gvk;
use apimachinery::schema::TypeRef;
use bytes::Bytes;
use parking_lot::Mutex;

use expressions::Program;

pub(crate) use check::check_definition;
pub(crate) use decode::{decode, typed};
pub(crate) use names::set_condition;
pub(crate) use scale::ScalePaths;
pub(crate) use schema::{EMBEDDED, PRESERVE};

/// One served version of a custom resource.
pub(crate) struct Custom {
    pub gvk: Gvk,
    pub columns: Vec<columns::PrinterColumn>,
    pub has_status: bool,
    pub scale: Option<ScalePaths>,
    /// Where each version of the kind that exists has its replicas, by `group/version`.
    pub scale_paths: Vec<(compact_str::CompactString, Option<Vec<compact_str::CompactString>>)>,
    /// What clients may select by, besides name and namespace.
    pub selectable: Vec<String>,
    /// What clients of this version are told.
    pub deprecation: Option<String>,
    /// Who converts between the versions; `None`: they differ in their name only.
    pub webhook: Option<Arc<conversion::Webhook>>,
    /// Changes when anything about the definition does.
    pub stamp: String,
    /// The definition as the cache holds it: the schema is taken out of it when somebody first needs it, since most
    /// definitions of a cluster are never used.
    definition: Bytes,
    parsed: OnceLock<Parsed>,
    programs: Mutex<HashMap<String, Arc<Program>>>,
}

struct Parsed {
    schema: Value,
    ty: TypeRef,
    has_rules: bool,
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
    /// Of a version of a definition; `bytes` is the same definition as JSON.
    #[must_use]
    pub(crate) fn new(
        definition: &Value,
        bytes: &Bytes,
        version: &Value,
        webhook: Option<Arc<conversion::Webhook>>,
    ) -> Self {
        let (spec, meta) = (&definition["spec"], &definition["metadata"]);
        let group = spec.str_at(&["group"]);
        let gvk = Gvk::new(group, version.str_at(&["name"]), spec.str_at(&["names", "kind"]));
        let selectable = version["selectableFields"].items().iter();
        let deprecated = version["deprecated"].as_bool() == Some(true);
        let usual = || format!("{} {} is deprecated", gvk.group_version(), gvk.kind);
        let warning = || version["deprecationWarning"].as_str().map_or_else(usual, str::to_owned);
        let scale_paths = spec["versions"].items().iter().map(|v| {
            let api_version = format!("{group}/{}", v.str_at(&["name"]));
            (api_version.into(), ScalePaths::of(v).map(|paths| paths.spec_replicas))
        });
        Custom {
            columns: columns::columns_of(version),
            has_status: version.at(&["subresources", "status"]).as_object().is_some(),
            scale: ScalePaths::of(version),
            scale_paths: scale_paths.collect(),
            selectable: selectable.map(|f| f.str_at(&["jsonPath"]).trim_start_matches('.').to_owned()).collect(),
            deprecation: deprecated.then(warning),
            webhook,
            stamp: format!("{}/{}", meta.str_at(&["uid"]), apimachinery::field::shown(&meta["generation"])),
            definition: bytes.clone(),
            parsed: OnceLock::new(),
            programs: Mutex::default(),
            gvk,
        }
    }

    fn parsed(&self) -> &Parsed {
        self.parsed.get_or_init(|| {
            let schema = self.read_schema();
            Parsed { ty: schema::type_of(&self.gvk, &schema), has_rules: rules::has_rules(&schema), schema }
        })
    }

    /// The schema, for whoever needs it once: nothing of it is kept.
    #[must_use]
    pub(crate) fn read_schema(&self) -> Value {
        if let Some(parsed) = self.parsed.get() {
            return parsed.schema.clone();
        }
        // The cache holds nothing that is no JSON.
        let definition: Value = serde_json::from_slice(&self.definition).unwrap_or_default();
        let versions = definition.at(&["spec", "versions"]).items();
        let version = versions.iter().find(|v| v.str_at(&["name"]) == self.gvk.version);
        version.map(|v| v.at(&["schema", "openAPIV3Schema"]).clone()).unwrap_or_default()
    }

    /// `openAPIV3Schema`, `Null` for one that preserves everything.
    #[must_use]
    pub(crate) fn schema(&self) -> &Value {
        &self.parsed().schema
    }

    /// The schema as server-side apply sees it.
    #[must_use]
    pub(crate) fn ty(&self) -> &TypeRef {
        &self.parsed().ty
    }

    /// Some rule has to be evaluated for some value.
    fn has_rules(&self) -> bool {
        self.parsed().has_rules
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
