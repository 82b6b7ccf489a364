//! The types of the kinds that a policy is about: of built-in ones from the table, of others from the server's OpenAPI.

use std::collections::BTreeSet;
use std::sync::Arc;

use apimachinery::meta::{GroupVersion, Gvk, Gvr};
use apimachinery::schema::{Schema, Shape, TypeRef};
use client::error::ApiError;
use expressions::{ObjectType, Type};
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicySpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResourceList;
use kube::Client;
use serde_json::Value;

use super::type_check::Types;

/// More kinds are not looked at.
const MOST_KINDS: usize = 10;

pub(super) async fn about(client: &Client, spec: &ValidatingAdmissionPolicySpec) -> Result<Types, kube::Error> {
    let mut kinds = BTreeSet::new();
    for gvr in resources(spec) {
        if kinds.len() == MOST_KINDS {
            break;
        }
        kinds.extend(kind_of(client, &gvr).await?.map(|gvk| (gvk.group, gvk.version, gvk.kind)));
    }
    let mut types = Types::default();
    for (group, version, kind) in kinds {
        let gvk = Gvk { group, version, kind };
        if let Some(of) = type_of(client, &gvk).await? {
            types.kinds.push((format!("{}/{}, Kind={}", gvk.group, gvk.version, gvk.kind), of));
        }
    }
    if let Some(kind) = &spec.param_kind
        && let Some(gv) = GroupVersion::parse(kind.api_version.as_deref().unwrap_or_default())
    {
        let gvk = Gvk::new(&gv.group, &gv.version, kind.kind.as_deref().unwrap_or_default());
        types.params = type_of(client, &gvk).await?;
    }
    Ok(types)
}

/// The resources that a policy names, sorted within each rule; wildcards name none, nor do parts of resources.
fn resources(spec: &ValidatingAdmissionPolicySpec) -> Vec<Gvr> {
    let sorted = |list: &Option<Vec<String>>| -> Vec<String> {
        let mut list = list.clone().unwrap_or_default();
        list.sort_unstable();
        list
    };
    let rules = spec.match_constraints.iter().flat_map(|constraints| constraints.resource_rules.iter().flatten());
    let mut found = Vec::new();
    for rule in rules {
        let (groups, versions) = (sorted(&rule.api_groups), sorted(&rule.api_versions));
        if groups.iter().chain(&versions).any(|name| name.contains('*')) {
            continue;
        }
        let mut resources = sorted(&rule.resources);
        resources.retain(|name| !name.contains(['*', '/']));
        for group in &groups {
            for version in &versions {
                found.extend(resources.iter().map(|resource| Gvr::new(group, version, resource)));
            }
        }
    }
    found
}

async fn kind_of(client: &Client, gvr: &Gvr) -> Result<Option<Gvk>, kube::Error> {
    if let Some(known) = api::resource(gvr) {
        return Ok(Some(known.gvk()));
    }
    if gvr.group.is_empty() {
        return Ok(None);
    }
    let served = client.list_api_group_resources(&format!("{}/{}", gvr.group, gvr.version)).await;
    let served: APIResourceList = match served {
        Err(error) if error.is_not_found() => return Ok(None),
        served => served?,
    };
    let kind = served.resources.into_iter().find(|resource| *resource.name == *gvr.resource).map(|found| found.kind);
    Ok(kind.map(|kind| Gvk::new(&gvr.group, &gvr.version, &kind)))
}

async fn type_of(client: &Client, gvk: &Gvk) -> Result<Option<Type>, kube::Error> {
    if let Some(builtin) = Schema::builtin().kind(gvk) {
        return Ok(Some(of_builtin(builtin, &mut Vec::new())));
    }
    let path = if gvk.group.is_empty() {
        format!("/openapi/v3/api/{}", gvk.version)
    } else {
        format!("/openapi/v3/apis/{}/{}", gvk.group, gvk.version)
    };
    let request = http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
    let document: Value = match client.request(request).await {
        Err(error) if error.is_not_found() => return Ok(None),
        document => document?,
    };
    Ok(of_document(&document, gvk))
}

fn object(fields: impl IntoIterator<Item = (String, Type)>) -> Type {
    let fields = fields.into_iter().map(|(name, of)| (name.into(), of));
    Type::Object(ObjectType::exact(fields).into())
}

/// A type that holds itself is not followed further: there it may be anything. `within` names those around.
fn of_builtin(ty: &TypeRef, within: &mut Vec<String>) -> Type {
    match &ty.shape {
        Shape::Struct(shape) => {
            let name = ty.name.to_string();
            if !name.is_empty() && within.contains(&name) {
                return Type::Dyn;
            }
            within.push(name);
            let fields: Vec<(String, Type)> =
                shape.fields().iter().map(|field| (field.name.to_string(), of_builtin(&field.ty, within))).collect();
            within.pop();
            object(fields)
        }
        Shape::Map(map) => Type::Map(Arc::new(of_builtin(&map.value, within))),
        Shape::List(list) => Type::List(Arc::new(of_builtin(&list.item, within))),
        Shape::String(_) | Shape::Duration => Type::String,
        Shape::Bytes => Type::Bytes,
        Shape::Int32 | Shape::Int64 => Type::Int,
        Shape::Bool => Type::Bool,
        Shape::Float => Type::Double,
        Shape::Time | Shape::MicroTime => Type::Timestamp,
        Shape::Quantity | Shape::IntOrString | Shape::Any | Shape::Deduced | Shape::SchemaOr(..) => Type::Dyn,
    }
}

/// From a document of OpenAPI v3.
fn of_document(document: &Value, gvk: &Gvk) -> Option<Type> {
    let schemas = document.pointer("/components/schemas")?.as_object()?;
    let is_kind = |schema: &&Value| {
        let kinds = schema["x-kubernetes-group-version-kind"].as_array();
        kinds.into_iter().flatten().any(|of| {
            let says = |field: &str, text: &str| of[field].as_str().unwrap_or_default() == text;
            says("group", &gvk.group) && says("version", &gvk.version) && says("kind", &gvk.kind)
        })
    };
    let schema = schemas.values().find(is_kind)?;
    Some(of_schema(schema, schemas, &mut Vec::new()))
}

fn of_schema<'d>(schema: &'d Value, schemas: &'d serde_json::Map<String, Value>, within: &mut Vec<&'d str>) -> Type {
    // A reference with something beside it (a default, a description) is the only one of `allOf`.
    let reference = schema["$ref"].as_str().or_else(|| schema.pointer("/allOf/0/$ref")?.as_str());
    if let Some(name) = reference.and_then(|path| path.strip_prefix("#/components/schemas/")) {
        let Some(named) = schemas.get(name).filter(|_| !within.contains(&name)) else { return Type::Dyn };
        within.push(name);
        let found = of_schema(named, schemas, within);
        within.pop();
        return found;
    }
    if schema["x-kubernetes-int-or-string"] == true || schema["format"] == "int-or-string" {
        return Type::Dyn;
    }
    match (schema["type"].as_str().unwrap_or_default(), schema["format"].as_str().unwrap_or_default()) {
        ("object", _) => {
            let values = &schema["additionalProperties"];
            if values.is_object() {
                return Type::Map(Arc::new(of_schema(values, schemas, within)));
            }
            match schema["properties"].as_object() {
                None => Type::Dyn,
                Some(properties) => {
                    let fields: Vec<(String, Type)> =
                        properties.iter().map(|(k, p)| (k.clone(), of_schema(p, schemas, within))).collect();
                    object(fields)
                }
            }
        }
        ("array", _) => Type::List(Arc::new(of_schema(&schema["items"], schemas, within))),
        ("integer", _) => Type::Int,
        ("number", _) => Type::Double,
        ("boolean", _) => Type::Bool,
        ("string", "byte") => Type::Bytes,
        ("string", "date" | "date-time") => Type::Timestamp,
        ("string", "duration") => Type::Duration,
        ("string", _) => Type::String,
        _ => Type::Dyn,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::admissionregistration::v1::{MatchResources, NamedRuleWithOperations};
    use serde_json::json;

    use super::*;

    #[test]
    fn only_resources_that_are_named_are_looked_at() {
        let rule = |groups: &[&str], versions: &[&str], resources: &[&str]| {
            let list = |names: &[&str]| Some(names.iter().map(ToString::to_string).collect());
            NamedRuleWithOperations {
                api_groups: list(groups),
                api_versions: list(versions),
                resources: list(resources),
                ..NamedRuleWithOperations::default()
            }
        };
        let rules = vec![
            rule(&["apps"], &["v1"], &["statefulsets", "deployments", "deployments/scale", "*"]),
            rule(&["*"], &["v1"], &["pods"]),
            rule(&[""], &["v1"], &["pods"]),
        ];
        let constraints = MatchResources { resource_rules: Some(rules), ..MatchResources::default() };
        let spec = ValidatingAdmissionPolicySpec {
            match_constraints: Some(constraints),
            ..ValidatingAdmissionPolicySpec::default()
        };
        let names: Vec<String> = resources(&spec).iter().map(|gvr| gvr.group_resource().to_string()).collect();
        assert_eq!(names, ["deployments.apps", "statefulsets.apps", "pods"]);
    }

    fn field(of: &Type, path: &str) -> Type {
        path.split('.').fold(of.clone(), |of, name| match of {
            Type::Object(object) => object.field(name).unwrap().ty.clone(),
            Type::List(item) => match &*item {
                Type::Object(object) => object.field(name).unwrap().ty.clone(),
                other => panic!("{name} of {other:?}"),
            },
            other => panic!("{name} of {other:?}"),
        })
    }

    #[test]
    fn built_in_kinds_have_types() {
        let kind = |group: &str, version: &str, kind: &str| {
            let ty = Schema::builtin().kind(&Gvk::new(group, version, kind)).unwrap();
            of_builtin(ty, &mut Vec::new())
        };
        let deployment = kind("apps", "v1", "Deployment");
        assert_eq!(field(&deployment, "spec.replicas"), Type::Int);
        assert_eq!(field(&deployment, "metadata.namespace"), Type::String);
        assert_eq!(field(&deployment, "metadata.labels"), Type::Map(Type::String.into()));
        assert_eq!(field(&deployment, "spec.template.spec.containers.image"), Type::String);
        assert_eq!(field(&deployment, "metadata.creationTimestamp"), Type::Timestamp);
        // Schemas hold schemas.
        kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    }

    #[test]
    fn custom_kinds_have_the_types_of_their_document() {
        let document = json!({"components": {"schemas": {
            "com.example.v1.Crontab": {
                "type": "object",
                "x-kubernetes-group-version-kind": [{"group": "example.com", "version": "v1", "kind": "Crontab"}],
                "properties": {
                    "metadata": {"allOf": [{"$ref": "#/components/schemas/Meta"}]},
                    "spec": {"type": "object", "properties": {"replicas": {"type": "integer"}, "any": {}}},
                },
            },
            "Meta": {"type": "object", "properties": {"name": {"type": "string"}, "of": {"$ref": "#/components/schemas/Meta"}}},
        }}});
        let crontab = of_document(&document, &Gvk::new("example.com", "v1", "Crontab")).unwrap();
        assert_eq!(field(&crontab, "spec.replicas"), Type::Int);
        assert_eq!(field(&crontab, "spec.any"), Type::Dyn);
        assert_eq!(field(&crontab, "metadata.name"), Type::String);
        assert_eq!(field(&crontab, "metadata.of"), Type::Dyn);
        assert!(of_document(&document, &Gvk::new("example.com", "v1", "Other")).is_none());
    }
}
