//! `scale`: how many replicas, whatever the kind.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::apply::ScaleMapping;
use apimachinery::codec::{self, Options};
use apimachinery::field::{Cursor, FieldErrors};
use apimachinery::meta::Gvk;
use apimachinery::schema::TypeRef;
use apimachinery::status::Status;
use http::{Response, StatusCode, header};

use super::{answer_value, decoded_body};
use crate::body::{Body, RequestBody};
use crate::handlers::patch::{self, PatchKind};
use crate::handlers::{Call, Target, check_name, fit_namespace, patch_part, read_body, value_of, write_of};
use crate::registry::{FieldManager, Part, Preconditions, Updated, View, WriteKind, WriteOptions, status};

pub(super) async fn handle(
    call: &mut Call,
    target: &Target,
    verb: &str,
    body: RequestBody,
) -> Result<Response<Body>, Status> {
    let registry = Arc::clone(call.server.registry());
    if verb == "get" {
        let version = call.query.get("resourceVersion").unwrap_or_default();
        let object = registry.get(&target.resource, &call.info.namespace, &call.info.name, version).await?;
        return answer_value(call, Scale.show(&object.decoded()), StatusCode::OK);
    }
    let updated = if verb == "patch" {
        match patch::kind_of(call.header(header::CONTENT_TYPE), call.speaks_cbor())? {
            kind if kind.applies() => apply(call, target, kind, body).await?,
            _ => patch_part(call, target, Part::View(&Scale), body).await?,
        }
    } else {
        let mut scale = decoded_body(call, target, body).await?;
        let options = WriteOptions::parse(&call.query, WriteKind::Update, call.user_agent())?;
        let mut write = write_of(call, target, options);
        fit_namespace(&mut scale, &write)?;
        check_name(&scale, &write.name)?;
        let change = move |_: &Value| Ok(scale.clone());
        let updated = registry.update(&mut write, Part::View(&Scale), &Preconditions::default(), false, &change).await;
        call.warnings.append(&mut write.warnings);
        updated?
    };
    answer_value(call, Scale.show(&value_of(&target.resource, &updated.stored)), StatusCode::OK)
}

fn scale_kind() -> Gvk {
    Gvk::new("autoscaling", "v1", "Scale")
}

/// Applies a Scale: whoever does owns the object's replicas through this subresource.
async fn apply(call: &mut Call, target: &Target, patch_kind: PatchKind, body: RequestBody) -> Result<Updated, Status> {
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
    let updated = registry.update(&mut write, Part::View(&Scale), &Preconditions::default(), false, &change).await;
    call.warnings.append(&mut write.warnings);
    updated
}

/// A Scale stands for its object.
struct Scale;

impl View for Scale {
    fn show(&self, object: &Value) -> Value {
        let mut meta = Value::object();
        for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
            if !object.meta(field).is_null() {
                meta.set(&[field], object.meta(field).clone());
            }
        }
        let mut spec = Value::object();
        let replicas = object.at(&["spec", "replicas"]);
        if !replicas.is_empty_value() {
            spec.set(&["replicas"], replicas.clone());
        }
        let running = object.at(&["status", "replicas"]).as_i64().unwrap_or(0);
        let mut status = Value::from([("replicas", running.into())]);
        let selector = selector_text(object.at(&["spec", "selector"]));
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
        mapped(object, |mapping| mapping.of_scale(object.meta("managedFields")))
    }

    fn merge(&self, scale: &Value, object: &Value) -> Result<Value, Status> {
        let replicas = Cursor::root(scale).fields(&["spec", "replicas"]);
        if replicas.as_i64().is_some_and(|n| n < 0) {
            let mut errs = FieldErrors::new();
            errs.invalid(&replicas, "must be greater than or equal to 0");
            return Err(Status::invalid(&Gvk::new("autoscaling", "v1", "Scale"), scale.name(), &errs));
        }
        let mut object = object.clone();
        object.set(&["spec", "replicas"], replicas.as_i64().unwrap_or(0));
        object.set(&["metadata", "resourceVersion"], scale.resource_version());
        let managers = mapped(&object, |m| m.of_object(object.meta("managedFields"), scale.meta("managedFields")));
        if managers.items().is_empty() {
            object.remove(&["metadata", "managedFields"]);
        } else {
            object.set(&["metadata", "managedFields"], managers);
        }
        Ok(object)
    }
}

/// Every built-in kind that scales has its replicas in the same place, in its one version.
fn mapped(object: &Value, f: impl FnOnce(&ScaleMapping<'_>) -> Value) -> Value {
    let path = Some(vec!["spec".into(), "replicas".into()]);
    f(&ScaleMapping { paths: &[(object.api_version().into(), path)], api_version: object.api_version() })
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
            Scale.merge(&scale, &Value::object()).unwrap_err().message,
            r#"Scale.autoscaling "w" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"#
        );
    }
}
