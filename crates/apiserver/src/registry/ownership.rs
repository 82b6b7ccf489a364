//! Who owns which field of an object: every write tells it to `apimachinery::apply`.

use std::sync::OnceLock;

use apimachinery::Value;
use apimachinery::apply::{self, ApplyError, Context, FieldSet, Versions};
use apimachinery::meta::{GroupVersion, Gvr};
use apimachinery::schema::TypeRef;
use apimachinery::status::Status;

use super::{Write, meta};
use crate::encoding;
use crate::resources::Resource;

/// Fields of pods' metadata that belong to the object itself, not to its status (upstream resets just these).
const POD_STATUS_RESETS: &[&str] = &["spec", "metadata.deletionTimestamp", "metadata.ownerReferences"];

/// The versions of one kind.
struct KindVersions<'a>(&'a Resource);

impl Versions for KindVersions<'_> {
    fn convert(&self, object: &Value, to: &str) -> Option<(Value, TypeRef)> {
        let from = self.0.def;
        let to = GroupVersion::parse(to)?;
        if to == from.gvr.group_version() {
            return Some((object.clone(), self.0.ty.clone()));
        }
        let other = api::resource(&Gvr::new(&to.group, &to.version, &from.gvr.resource))?;
        let ty = encoding::type_of(&other.gvk())?;
        let mut converted = object.clone();
        from.strategy.to_storage(&mut converted);
        other.strategy.to_served(&mut converted);
        converted.set(&["apiVersion"], to.to_string());
        Some((converted, ty))
    }
}

/// What the endpoint that a write goes to does not change.
fn reset_of(resource: &Resource, subresource: &str) -> &'static FieldSet {
    static NOTHING: OnceLock<FieldSet> = OnceLock::new();
    static MAIN: OnceLock<FieldSet> = OnceLock::new();
    static STATUS: OnceLock<FieldSet> = OnceLock::new();
    static POD_STATUS: OnceLock<FieldSet> = OnceLock::new();
    match subresource {
        "" if resource.def.subresource("status").is_some() => MAIN.get_or_init(|| FieldSet::of(&["status"])),
        "status" if resource.def.gvr.resource == "pods" => POD_STATUS.get_or_init(|| FieldSet::of(POD_STATUS_RESETS)),
        "status" => STATUS.get_or_init(|| FieldSet::of(&["spec"])),
        _ => NOTHING.get_or_init(FieldSet::default),
    }
}

/// Somebody who writes fields through an endpoint.
pub(crate) struct FieldManager<'a> {
    pub(crate) resource: &'a Resource,
    pub(crate) subresource: &'a str,
    pub(crate) name: &'a str,
}

impl<'a> FieldManager<'a> {
    pub(crate) fn of(write: &'a Write) -> Self {
        FieldManager { resource: &write.resource, subresource: &write.subresource, name: &write.options.field_manager }
    }

    fn with_context<T>(&self, run: impl FnOnce(&Context<'_>) -> T) -> T {
        let api_version = self.resource.def.gvr.group_version().to_string();
        run(&Context {
            ty: &self.resource.ty,
            api_version: &api_version,
            manager: self.name,
            subresource: self.subresource,
            time: &meta::timestamp(),
            reset: reset_of(self.resource, self.subresource),
            versions: &KindVersions(self.resource),
        })
    }

    /// Takes what a write changes. `old` is `None` for a new object.
    pub(super) fn take_changes(&self, old: Option<&Value>, new: &mut Value) {
        self.with_context(|context| apply::update_managers(old, new, context));
    }

    /// Merges an applied object into what is there (`Null`: nothing).
    ///
    /// # Errors
    /// 409 for fields that others own, and what is wrong with the applied object.
    pub(crate) fn apply(&self, live: &Value, applied: &Value, force: bool) -> Result<Value, Status> {
        if applied.kind().is_empty() || applied.api_version().is_empty() {
            let gv = GroupVersion::parse(applied.api_version()).unwrap_or_default();
            let why = format!("invalid object type: {}/{}, Kind={}", gv.group, gv.version, applied.kind());
            return Err(Status::bad_request(why));
        }
        let live = (!live.is_null()).then_some(live);
        self.with_context(|context| apply::apply(live, applied, force, context)).map_err(|error| match error {
            ApplyError::Conflicts(conflicts) => conflicts.to_status(),
            ApplyError::BadRequest(why) => Status::bad_request(why),
            ApplyError::Untyped(why) => super::status::plain(why),
        })
    }
}
