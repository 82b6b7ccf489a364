//! Who owns which fields: what a write adds to `metadata.managedFields`.

use apimachinery::Value;
use apimachinery::apply::{self, ApplyError, Context, FieldSet, Versions};
use apimachinery::meta::{GroupVersion, Gvk, Gvr};
use apimachinery::schema::TypeRef;
use apimachinery::status::Status;

use super::{Write, meta, status};
use crate::encoding;
use crate::resources::Resource;

/// What a subresource does not change, whatever it is sent: group, resource (`*`: all of the group), subresource, fields.
/// What is not here resets `status` of the object itself, if it has that as a subresource, and `spec` of its status.
const RESETS: &[(&str, &str, &str, &[&str])] = &[
    ("", "pods", "status", &["spec", "metadata.deletionTimestamp", "metadata.ownerReferences"]),
    ("", "namespaces", "finalize", &["status"]),
    ("admissionregistration.k8s.io", "*", "status", &["metadata", "spec"]),
    ("apiextensions.k8s.io", "*", "status", &["metadata", "spec"]),
    ("apiregistration.k8s.io", "*", "status", &["metadata", "spec"]),
    ("apps", "deployments", "status", &["spec", "metadata.labels"]),
    ("certificates.k8s.io", "certificatesigningrequests", "", &["spec", "status"]),
    ("certificates.k8s.io", "certificatesigningrequests", "approval", &["spec", "status.certificate"]),
    ("certificates.k8s.io", "certificatesigningrequests", "status", &["spec", "status.conditions"]),
    ("flowcontrol.apiserver.k8s.io", "*", "status", &["metadata", "spec"]),
    ("internal.apiserver.k8s.io", "*", "status", &["metadata", "spec"]),
    ("resource.k8s.io", "*", "status", &["metadata", "spec"]),
    ("storage.k8s.io", "*", "status", &["metadata", "spec"]),
    ("storagemigration.k8s.io", "*", "status", &["metadata", "spec"]),
];

/// Subresources of a pod whose one subject is all that they change.
const ONLY: &[(&str, &[&str])] =
    &[("ephemeralcontainers", &["ephemeralContainers"]), ("resize", &["containers", "initContainers", "resources"])];

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

    /// Takes what a write changes. `old` is `None` for a new object.
    pub(super) fn take_changes(&self, old: Option<&Value>, new: &mut Value) {
        self.take(&self.own_kind(), old, new);
    }

    /// As [`Self::take_changes`], of something that is of another kind than the resource: a Scale, a token, a review.
    pub(crate) fn take_changes_of(&self, gvk: &Gvk, old: Option<&Value>, new: &mut Value) {
        self.take(&other_kind(gvk), old, new);
    }

    fn take(&self, kind: &Kind<'_>, old: Option<&Value>, new: &mut Value) {
        if !kind.ty.is_made() {
            fill_for_the_writer(new, kind.name);
        }
        encoding::normalize(new, &kind.ty);
        self.with_context(kind, |context| apply::update_managers(old, new, context));
    }

    /// Merges an applied object into what is there (`Null`: nothing). What comes of it still has to go through the schema.
    ///
    /// # Errors
    /// 409 for fields that others own, 400 and 500 for what cannot be applied.
    pub(crate) fn apply(&self, live: &Value, applied: &Value, force: bool) -> Result<Value, Status> {
        self.merge(&self.own_kind(), live, applied, force)
    }

    /// As [`Self::apply`], of something that is of another kind than the resource.
    ///
    /// # Errors
    /// As for [`Self::apply`].
    pub(crate) fn apply_of(&self, gvk: &Gvk, live: &Value, applied: &Value, force: bool) -> Result<Value, Status> {
        self.merge(&other_kind(gvk), live, applied, force)
    }

    fn merge(&self, kind: &Kind<'_>, live: &Value, applied: &Value, force: bool) -> Result<Value, Status> {
        let live = (!live.is_null()).then_some(live);
        self.with_context(kind, |context| apply::apply(live, applied, force, context)).map_err(|error| match error {
            ApplyError::Conflicts(conflicts) => conflicts.to_status(),
            ApplyError::BadRequest(why) => Status::bad_request(why),
            ApplyError::Untyped(why) => status::plain(why),
        })
    }

    fn own_kind(&self) -> Kind<'a> {
        let def = self.resource.def;
        Kind {
            name: &def.kind,
            api_version: def.gvr.group_version().to_string(),
            ty: self.resource.ty().clone(),
            reset: reset_fields(self.resource, self.subresource),
        }
    }

    fn with_context<T>(&self, kind: &Kind<'_>, f: impl FnOnce(&Context<'_>) -> T) -> T {
        f(&Context {
            ty: &kind.ty,
            kind: kind.name,
            api_version: &kind.api_version,
            manager: self.name,
            subresource: self.subresource,
            time: &meta::timestamp(),
            reset: &kind.reset,
            versions: &Converter { resource: self.resource },
        })
    }
}

/// What a write is of.
struct Kind<'a> {
    name: &'a str,
    api_version: String,
    ty: TypeRef,
    /// What the endpoint does not change.
    reset: FieldSet,
}

fn other_kind(gvk: &Gvk) -> Kind<'_> {
    Kind {
        name: &gvk.kind,
        api_version: gvk.group_version().to_string(),
        ty: encoding::type_of(gvk).unwrap_or_else(TypeRef::any),
        reset: FieldSet::default(),
    }
}

/// What upstream's conversions and defaults say in the writer's name before anybody else does.
fn fill_for_the_writer(object: &mut Value, kind: &str) {
    match kind {
        "DaemonSet" => {
            object.set_default(&["metadata", "annotations", "deprecated.daemonset.template.generation"], "0");
        }
        "TokenRequest" => object.set_default(&["spec", "expirationSeconds"], 3600),
        _ => {}
    }
}

/// Conversion between the versions of a built-in kind.
struct Converter<'a> {
    resource: &'a Resource,
}

impl Versions for Converter<'_> {
    fn convert(&self, object: &Value, to: &str) -> Option<(Value, TypeRef)> {
        let def = self.resource.def;
        let gv = GroupVersion::parse(to)?;
        if self.resource.custom.is_some() {
            // Its versions have much the same fields: better those of this one than to forget who owns what.
            let mut object = object.clone();
            object.set(&["apiVersion"], to);
            return (gv.group == def.gvr.group).then(|| (object, self.resource.ty().clone()));
        }
        let other = api::resource(&Gvr::new(&gv.group, &gv.version, &def.gvr.resource))?;
        if other.storage != def.storage {
            return None;
        }
        let mut object = object.clone();
        def.strategy.to_storage(&mut object);
        other.strategy.to_served(&mut object);
        object.set(&["apiVersion"], to);
        Some((object, encoding::type_of(&other.gvk())?))
    }
}

fn reset_fields(resource: &Resource, subresource: &str) -> FieldSet {
    let def = resource.def;
    let (group, name) = (def.gvr.group.as_str(), def.gvr.resource.as_str());
    let known = RESETS
        .iter()
        .find(|(g, r, s, _)| *g == group && (*r == "*" || *r == name) && *s == subresource)
        .map(|(.., fields)| *fields);
    if let Some(fields) = known {
        return FieldSet::of(fields);
    }
    if group.is_empty()
        && name == "pods"
        && let Some((_, kept)) = ONLY.iter().find(|(s, _)| *s == subresource)
    {
        return all_but(resource.ty(), kept);
    }
    match subresource {
        "" if def.subresource("status").is_some() => FieldSet::of(&["status"]),
        "status" => FieldSet::of(&["spec"]),
        _ => FieldSet::default(),
    }
}

/// Every field of an object except these of its spec.
fn all_but(ty: &TypeRef, kept: &[&str]) -> FieldSet {
    let fields = |ty: Option<&TypeRef>| -> Vec<String> {
        let shape = ty.and_then(TypeRef::as_struct);
        shape.map(|s| s.fields().iter().map(|f| f.name.to_string()).collect()).unwrap_or_default()
    };
    let spec = fields(ty.field("spec").map(|f| &f.ty));
    let spec = spec.into_iter().filter(|name| !kept.contains(&name.as_str())).map(|name| format!("spec.{name}"));
    let rest = fields(Some(ty)).into_iter().filter(|name| name != "spec");
    let all: Vec<String> = rest.chain(spec).collect();
    FieldSet::of(&all.iter().map(String::as_str).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Resources;
    use crate::runtime_config::RuntimeConfig;

    fn resource(group: &str, name: &str) -> Resource {
        Resources::new(&RuntimeConfig::default()).get(&Gvr::new(group, "v1", name)).unwrap()
    }

    #[track_caller]
    fn check(group: &str, name: &str, subresource: &str, want: &[&str]) {
        assert_eq!(reset_fields(&resource(group, name), subresource).paths(), want);
    }

    #[test]
    fn each_endpoint_resets_what_it_does_not_change() {
        check("", "configmaps", "", &[]);
        check("apps", "daemonsets", "", &[".status"]);
        check("apps", "daemonsets", "status", &[".spec"]);
        check("apps", "deployments", "status", &[".spec", ".metadata.labels"]);
        check("storage.k8s.io", "volumeattachments", "status", &[".metadata", ".spec"]);
        let of_debugging = reset_fields(&resource("", "pods"), "ephemeralcontainers").paths();
        assert!(
            of_debugging.contains(&".metadata".to_owned()) && of_debugging.contains(&".spec.containers".to_owned())
        );
        assert!(!of_debugging.contains(&".spec.ephemeralContainers".to_owned()));
    }

    #[test]
    fn versions_of_one_object_are_converted_into_each_other() {
        let own = Resources::new(&RuntimeConfig::default()).get(&Gvr::new("events.k8s.io", "v1", "events")).unwrap();
        let event = serde_json::from_str(
            r#"{"apiVersion":"events.k8s.io/v1","kind":"Event","note":"n","regarding":{"name":"p"}}"#,
        )
        .unwrap();
        let (core, ty) = Converter { resource: &own }.convert(&event, "v1").unwrap();
        assert_eq!((core.str_at(&["message"]), core.at(&["involvedObject", "name"])), ("n", &Value::from("p")));
        assert!(ty.field("message").is_some());
        assert!(Converter { resource: &own }.convert(&event, "apps/v1").is_none());
        assert!(Converter { resource: &own }.convert(&event, "events.k8s.io/v9").is_none());
    }
}
