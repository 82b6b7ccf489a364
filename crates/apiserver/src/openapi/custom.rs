//! The schemas of definitions as OpenAPI schemas.

use apimachinery::meta::Gvk;
use serde_json::{Map, Value, json};

use super::Dialect;
use super::descriptions;
use crate::custom::{EMBEDDED, PRESERVE};
use crate::resources::Resource;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// A kind that only a definition knows, and lists of it.
pub(super) struct CustomKind {
    pub gvk: Gvk,
    pub list: Gvk,
    plural: String,
    /// `Null` for one that preserves everything.
    schema: Value,
    selectable: Vec<String>,
}

impl CustomKind {
    /// `None` for a built-in kind.
    pub(super) fn of(resource: &Resource) -> Option<Self> {
        let custom = resource.custom.as_ref()?;
        let gvk = custom.gvk.clone();
        Some(CustomKind {
            list: Gvk { kind: resource.def.list_kind.as_str().into(), ..gvk.clone() },
            gvk,
            plural: resource.def.gvr.resource.to_string(),
            schema: serde_json::to_value(custom.read_schema()).unwrap_or_default(),
            selectable: custom.selectable.clone(),
        })
    }

    /// The definition of the kind, or of lists of it. What that refers to is in the built-in table.
    pub(super) fn definition(&self, gvk: &Gvk, dialect: Dialect) -> Value {
        let mut schema = if *gvk == self.list { self.list_schema(dialect) } else { self.object_schema(dialect) };
        let Gvk { group, version, kind } = gvk;
        schema["x-kubernetes-group-version-kind"] =
            json!([{ "group": group.as_str(), "kind": kind.as_str(), "version": version.as_str() }]);
        schema
    }

    fn object_schema(&self, dialect: Dialect) -> Value {
        let mut schema = self.schema.clone();
        let preserves = schema[PRESERVE] == true;
        // Clients take a schema with properties for one that forbids all others.
        if schema.is_null() || (dialect == Dialect::V2 && preserves) {
            return json!({ "type": "object" });
        }
        if dialect == Dialect::V2 {
            simplify(&mut schema);
        }
        add_embedded(&mut schema, dialect);
        add_envelope(&mut schema, dialect);
        if !self.selectable.is_empty() {
            let fields = self.selectable.iter().map(|path| json!({ "fieldPath": path }));
            schema["x-kubernetes-selectable-fields"] = fields.collect::<Vec<_>>().into();
        }
        schema
    }

    fn list_schema(&self, dialect: Dialect) -> Value {
        let reference = dialect.reference(&name_of(&self.gvk));
        let mut schema = json!({
            "type": "object",
            "description": format!("{} is a list of {}", self.list.kind, self.gvk.kind),
            "required": ["items"],
            "properties": {
                "items": {
                    "type": "array",
                    "description": format!("The {} of the list", self.plural),
                    "items": reference,
                },
                "metadata": described_reference(dialect, "ListMeta", None),
            },
        });
        add_type_meta(&mut schema["properties"]);
        schema
    }
}

/// `com.example.v1.Widget` of `v1` in `example.com`.
pub(super) fn name_of(gvk: &Gvk) -> String {
    let group = gvk.group.split('.').rev().collect::<Vec<_>>().join(".");
    format!("{group}.{}.{}", gvk.version, gvk.kind)
}

fn described_reference(dialect: Dialect, name: &str, description: Option<String>) -> Value {
    let reference = dialect.reference(&format!("{META}.{name}"));
    let mut out = match dialect {
        Dialect::V2 => reference,
        // A reference that has company stands in a list of its own.
        Dialect::V3 => json!({ "allOf": [reference] }),
    };
    if let Some(description) = description {
        out["description"] = description.into();
    }
    out
}

fn add_type_meta(properties: &mut Value) {
    for field in ["apiVersion", "kind"] {
        let mut property = json!({ "type": "string" });
        if let Some(description) = descriptions::of_type_meta(field) {
            property["description"] = description.into();
        }
        properties[field] = property;
    }
}

/// Every object has kind, version and metadata, whatever its schema says of them.
fn add_envelope(schema: &mut Value, dialect: Dialect) {
    if !schema["properties"].is_object() {
        schema["properties"] = Map::new().into();
    }
    let properties = &mut schema["properties"];
    properties["metadata"] = described_reference(dialect, "ObjectMeta", descriptions::of_type_meta("metadata"));
    add_type_meta(properties);
}

/// So do objects inside of objects.
fn add_embedded(schema: &mut Value, dialect: Dialect) {
    each_below(schema, &mut |below| {
        if below[EMBEDDED] == true && !(dialect == Dialect::V2 && below[PRESERVE] == true) {
            add_envelope(below, dialect);
        }
    });
}

/// Visits every schema below one, the inner ones first.
fn each_below(schema: &mut Value, see: &mut dyn FnMut(&mut Value)) {
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        for property in properties.values_mut() {
            each_below(property, see);
            see(property);
        }
    }
    for field in ["items", "additionalProperties"] {
        if let Some(below) = schema.get_mut(field).filter(|below| below.is_object()) {
            each_below(below, see);
            see(below);
        }
    }
}

/// Version 2 cannot say everything that a schema can; its readers are told less rather than something else.
fn simplify(schema: &mut Value) {
    let lessen = |schema: &mut Value| {
        let nullable = schema["nullable"] == true;
        let preserves = schema[PRESERVE] == true;
        let Some(map) = schema.as_object_mut() else { return };
        for field in ["allOf", "anyOf", "oneOf", "not"] {
            map.remove(field);
        }
        if nullable {
            map.remove("type");
            map.remove("nullable");
        }
        if nullable || preserves {
            map.remove("items");
            map.remove("properties");
        }
    };
    lessen(schema);
    each_below(schema, &mut |below| lessen(below));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(schema: Value) -> CustomKind {
        CustomKind {
            gvk: Gvk::new("example.com", "v1", "Widget"),
            list: Gvk::new("example.com", "v1", "WidgetList"),
            plural: "widgets".to_owned(),
            schema,
            selectable: vec!["spec.color".to_owned()],
        }
    }

    #[test]
    fn names_are_turned_around() {
        assert_eq!(name_of(&Gvk::new("stable.example.com", "v1", "CronTab")), "com.example.stable.v1.CronTab");
    }

    #[test]
    fn version_3_says_what_the_definition_says() {
        let schema = json!({ "type": "object", "properties": { "spec": {
            "type": "object", "nullable": true, "properties": { "template": { "type": "object", EMBEDDED: true, PRESERVE: true } },
        } } });
        let kind = kind(schema);
        let made = kind.definition(&kind.gvk, Dialect::V3);
        assert_eq!(
            made["properties"]["metadata"]["allOf"][0]["$ref"],
            format!("#/components/schemas/{META}.ObjectMeta")
        );
        let template = &made["properties"]["spec"]["properties"]["template"];
        assert_eq!(template["properties"]["kind"]["type"], "string");
        assert_eq!(template[PRESERVE], true);
        assert_eq!(made["x-kubernetes-selectable-fields"], json!([{ "fieldPath": "spec.color" }]));
        assert_eq!(
            made["x-kubernetes-group-version-kind"],
            json!([{ "group": "example.com", "kind": "Widget", "version": "v1" }])
        );
        let list = kind.definition(&kind.list, Dialect::V3);
        assert_eq!(list["properties"]["items"]["items"]["$ref"], "#/components/schemas/com.example.v1.Widget");
    }

    #[test]
    fn version_2_says_less_rather_than_something_else() {
        let schema = json!({ "type": "object", "properties": {
            "a": { "type": "object", PRESERVE: true, "properties": { "b": { "type": "string" } } },
            "c": { "type": "string", "nullable": true },
            "d": { "anyOf": [{ "type": "integer" }, { "type": "string" }], "x-kubernetes-int-or-string": true },
        } });
        let kind = kind(schema);
        let made = kind.definition(&kind.gvk, Dialect::V2);
        assert_eq!(made["properties"]["a"], json!({ "type": "object", PRESERVE: true }));
        assert_eq!(made["properties"]["c"], json!({}));
        assert_eq!(made["properties"]["d"], json!({ "x-kubernetes-int-or-string": true }));
    }

    #[test]
    fn what_preserves_everything_forbids_nothing() {
        let without = kind(Value::Null);
        assert!(without.definition(&without.gvk, Dialect::V3).get("properties").is_none());
        let free = kind(json!({ "type": "object", PRESERVE: true, "properties": { "a": { "type": "string" } } }));
        assert!(free.definition(&free.gvk, Dialect::V2).get("properties").is_none());
        assert!(free.definition(&free.gvk, Dialect::V3).get("properties").is_some());
    }
}
