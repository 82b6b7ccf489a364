//! `scale`: how many replicas, whatever the kind.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::apply::ScaleMapping;
use apimachinery::codec::{self, Options};
use apimachinery::field::{Cursor, FieldErrors};
use apimachinery::meta::Gvk;
use apimachinery::schema::TypeRef;
use apimachinery::status::Status;
use compact_str::CompactString;
use http::{Response, StatusCode, header};

use super::{answer_value, decoded_body};
use crate::body::{Body, RequestBody};
use crate::custom::{Custom, ScalePaths};
use crate::handlers::patch::{self, PatchKind};
use crate::handlers::{Call, Target, check_name, fit_namespace, patch_part, read_body, write_of};
use crate::registry::{
    FieldManager, Part, Preconditions, Stored, Updated, View, WriteKind, WriteOptions, status, value_in_version,
};
use crate::resources::Resource;

pub(super) async fn handle(
    call: &mut Call,
    target: &Target,
    verb: &str,
    body: RequestBody,
) -> Result<Response<Body>, Status> {
    let registry = Arc::clone(call.server.registry());
    let scale = Scale::of(&target.resource);
    if verb == "get" {
        let version = call.query.get("resourceVersion").unwrap_or_default();
        let object = registry.get(&target.resource, &call.info.namespace, &call.info.name, version).await?;
        let object = value_in_version(&target.resource, &Stored::of(&object)).await?;
        if let Some(missing) = scale.missing(&object) {
            return Err(Status::internal(format!("the spec replicas field {missing:?} does not exist")));
        }
        return answer_value(call, scale.show(&object), StatusCode::OK).await;
    }
    let updated = if verb == "patch" {
        match patch::kind_of(call.header(header::CONTENT_TYPE), call.speaks_cbor())? {
            kind if kind.applies() => apply(call, target, &scale, kind, body).await?,
            _ => patch_part(call, target, Part::View(&scale), body).await?,
        }
    } else {
        let mut wanted = decoded_body(call, target, body).await?;
        let options = WriteOptions::parse(&call.query, WriteKind::Update, call.user_agent())?;
        let mut write = write_of(call, target, options);
        fit_namespace(&mut wanted, &write)?;
        check_name(&wanted, &write.name)?;
        let change = move |_: &Value| Ok(wanted.clone());
        let updated = registry.update(&mut write, Part::View(&scale), &Preconditions::default(), false, &change).await;
        call.warnings.append(&mut write.warnings);
        updated?
    };
    let object = value_in_version(&target.resource, &updated.stored).await?;
    answer_value(call, scale.show(&object), StatusCode::OK).await
}

fn scale_kind() -> Gvk {
    Gvk::new("autoscaling", "v1", "Scale")
}

/// Applies a Scale: whoever does owns the object's replicas through this subresource.
async fn apply(
    call: &mut Call,
    target: &Target,
    view: &Scale,
    patch_kind: PatchKind,
    body: RequestBody,
) -> Result<Updated, Status> {
    let bytes = read_body(body).await?;
    let options = WriteOptions::parse(&call.query, WriteKind::Apply, call.user_agent())?;
    let (applied, _) = patch::parse_applied(patch_kind, &bytes)?;
    let mut write = write_of(call, target, options);
    write.applies = true;
    let kind = scale_kind();
    let ty = crate::encoding::type_of(&kind).unwrap_or_else(TypeRef::any);
    let (resource, subresource, url_name) = (target.resource.clone(), write.subresource.clone(), write.name.clone());
    let (name, force) = (write.options.field_manager.clone(), write.options.force);
    let change = move |old: &Value| {
        let manager = FieldManager { resource: &resource, subresource: &subresource, name: &name };
        let merged = manager.apply_of(&kind, old, &applied, force)?;
        let decoded = codec::from_value(merged, &ty, Options::default());
        let scale = decoded.map_err(|e| status::plain(e.to_string()))?.value;
        check_name(&scale, &url_name)?;
        Ok(scale)
    };
    let registry = Arc::clone(call.server.registry());
    let updated = registry.update(&mut write, Part::View(view), &Preconditions::default(), false, &change).await;
    call.warnings.append(&mut write.warnings);
    updated
}

/// A Scale stands for its object.
struct Scale {
    /// `None`: a built-in kind, all of which have their replicas in the same place.
    custom: Option<Arc<Custom>>,
}

impl Scale {
    fn of(resource: &Resource) -> Self {
        Scale { custom: resource.custom.clone() }
    }

    fn paths(&self) -> Option<&ScalePaths> {
        self.custom.as_ref().and_then(|custom| custom.scale.as_ref())
    }

    /// The path to the replicas of a custom resource that has none.
    fn missing(&self, object: &Value) -> Option<String> {
        let path = &self.paths()?.spec_replicas;
        at(object, path).is_null().then(|| format!(".{}", path.join(".")))
    }

    /// What of the managed fields is about the replicas, whatever they are called.
    fn mapped(&self, object: &Value, f: impl FnOnce(&ScaleMapping<'_>) -> Value) -> Value {
        let api_version = object.api_version();
        match &self.custom {
            Some(custom) => f(&ScaleMapping { paths: &custom.scale_paths, api_version }),
            None => {
                let path = Some(vec!["spec".into(), "replicas".into()]);
                f(&ScaleMapping { paths: &[(api_version.into(), path)], api_version })
            }
        }
    }
}

fn at<'v>(object: &'v Value, path: &[CompactString]) -> &'v Value {
    object.at(&keys(path))
}

fn keys(path: &[CompactString]) -> Vec<&str> {
    path.iter().map(CompactString::as_str).collect()
}

impl View for Scale {
    fn show(&self, object: &Value) -> Value {
        let mut meta = Value::object();
        for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
            if !object.meta(field).is_null() {
                meta.set(&[field], object.meta(field).clone());
            }
        }
        let mut spec = Value::object();
        let (replicas, running, selector) = match self.paths() {
            Some(paths) => {
                let selector = at(object, &paths.selector).as_str().filter(|_| !paths.selector.is_empty());
                let running = at(object, &paths.status_replicas);
                (at(object, &paths.spec_replicas), running, selector.unwrap_or_default().to_owned())
            }
            None => {
                let selector = selector_text(object.at(&["spec", "selector"]));
                (object.at(&["spec", "replicas"]), object.at(&["status", "replicas"]), selector)
            }
        };
        if !replicas.is_empty_value() {
            spec.set(&["replicas"], replicas.clone());
        }
        let mut status = Value::from([("replicas", running.as_i64().unwrap_or(0).into())]);
        if !selector.is_empty() {
            status.set(&["selector"], selector);
        }
        Value::from([
            ("kind", "Scale".into()),
            ("apiVersion", "autoscaling/v1".into()),
            ("metadata", meta),
            ("spec", spec),
            ("status", status),
        ])
    }

    fn kind(&self) -> Gvk {
        scale_kind()
    }

    fn managers(&self, object: &Value) -> Value {
        self.mapped(object, |mapping| mapping.of_scale(object.meta("managedFields")))
    }

    fn merge(&self, scale: &Value, object: &Value) -> Result<Value, Status> {
        let replicas = Cursor::root(scale).fields(&["spec", "replicas"]);
        if replicas.as_i64().is_some_and(|n| n < 0) {
            let mut errs = FieldErrors::new();
            errs.invalid(&replicas, "must be greater than or equal to 0");
            return Err(Status::invalid(&Gvk::new("autoscaling", "v1", "Scale"), scale.name(), &errs));
        }
        let mut object = object.clone();
        let wanted = replicas.as_i64().unwrap_or(0);
        match self.paths() {
            Some(paths) => object.set(&keys(&paths.spec_replicas), wanted),
            None => object.set(&["spec", "replicas"], wanted),
        }
        object.set(&["metadata", "resourceVersion"], scale.resource_version());
        let managers = self.mapped(&object, |m| m.of_object(object.meta("managedFields"), scale.meta("managedFields")));
        if managers.items().is_empty() {
            object.remove(&["metadata", "managedFields"]);
        } else {
            object.set(&["metadata", "managedFields"], managers);
        }
        Ok(object)
    }
}

/// A selector as a query would have it: `a=b,c in (d,e)`. Of a plain map as of a `LabelSelector`.
fn selector_text(selector: &Value) -> String {
    let is_full = selector.get("matchLabels").is_some() || selector.get("matchExpressions").is_some();
    let labels = if is_full { &selector["matchLabels"] } else { selector };
    let mut terms: Vec<(String, String)> = labels
        .entries()
        .iter()
        .map(|(k, v)| (k.to_string(), format!("{k}={}", v.as_str().unwrap_or_default())))
        .collect();
    for expression in if is_full { selector["matchExpressions"].items() } else { &[] } {
        let key = expression.str_at(&["key"]);
        let mut values: Vec<&str> = expression["values"].items().iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let text = match expression.str_at(&["operator"]) {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        };
        terms.push((key.to_owned(), text));
    }
    terms.sort_by(|a, b| a.0.cmp(&b.0));
    terms.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(selector: &str, want: &str) {
        assert_eq!(selector_text(&serde_json::from_str(selector).unwrap()), want);
    }

    #[test]
    fn selectors_are_written_as_queries() {
        check(r#"{"a":"b","c":"d"}"#, "a=b,c=d");
        check(
            r#"{"matchLabels":{"z":"1"},"matchExpressions":[{"key":"b","operator":"In","values":["y","x"]},{"key":"a","operator":"DoesNotExist"}]}"#,
            "!a,b in (x,y),z=1",
        );
    }

    #[test]
    fn a_scale_with_a_negative_number_is_invalid() {
        let scale = serde_json::from_str(r#"{"metadata":{"name":"w"},"spec":{"replicas":-1}}"#).unwrap();
        assert_eq!(
            Scale { custom: None }.merge(&scale, &Value::object()).unwrap_err().message,
            r#"Scale.autoscaling "w" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"#
        );
    }
}
