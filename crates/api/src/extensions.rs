//! CustomResourceDefinition: names, versions and the rules of structural schemas.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors, Path};

use crate::strategy::{Strategy, dns_label, dns_subdomain};

pub(crate) struct DefinitionStrategy;

const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
const INT_OR_STRING: &str = "x-kubernetes-int-or-string";
const EMBEDDED: &str = "x-kubernetes-embedded-resource";
const LIST_TYPE: &str = "x-kubernetes-list-type";
const LIST_KEYS: &str = "x-kubernetes-list-map-keys";
const MAP_TYPE: &str = "x-kubernetes-map-type";
const RULES: &str = "x-kubernetes-validations";
const REASONS: &[&str] = &["FieldValueRequired", "FieldValueInvalid", "FieldValueForbidden", "FieldValueDuplicate"];
const TYPES: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];

impl Strategy for DefinitionStrategy {
    fn default(&self, object: &mut Value) {
        object.set_default(&["spec", "conversion", "strategy"], "None");
        if object.at(&["spec", "conversion", "webhook", "clientConfig", "service"]).as_object().is_some() {
            object.set_default(&["spec", "conversion", "webhook", "clientConfig", "service", "port"], 443);
        }
        let kind = object.str_at(&["spec", "names", "kind"]).to_owned();
        let names = object.entry(&["spec", "names"]);
        if names["singular"].is_empty_value() {
            names.set(&["singular"], kind.to_lowercase());
        }
        if names["listKind"].is_empty_value() && !kind.is_empty() {
            names.set(&["listKind"], format!("{kind}List"));
        }
        if object.at(&["spec", "preserveUnknownFields"]).as_bool() == Some(false) {
            object.remove(&["spec", "preserveUnknownFields"]);
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        object.set(&["status"], Value::object());
        remember_storage(object);
    }

    fn prepare_for_update(&self, object: &mut Value, _old: &Value) {
        remember_storage(object);
    }

    fn validate(&self, object: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let root = Cursor::root(object);
        let wanted = format!("{}.{}", root.str_at(&["spec", "names", "plural"]), root.str_at(&["spec", "group"]));
        if object.name() != wanted {
            errs.invalid(&root.fields(&["metadata", "name"]), "must be spec.names.plural+\".\"+spec.group");
        }
        validate_spec(&root.field("spec"), &mut errs);
        let stored = root.fields(&["status", "storedVersions"]);
        if stored.value.items().is_empty() {
            errs.invalid_value(&stored.path, Value::Null, "must have at least one stored version");
        }
        errs
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let (new, was) = (Cursor::root(object).field("spec"), Cursor::root(old).field("spec"));
        validate_spec(&new, &mut errs);
        let established = |c: &Value| c.str_at(&["type"]) == "Established" && c.str_at(&["status"]) == "True";
        errs.immutable(&new.field("group"), &was.field("group"));
        if old.at(&["status", "conditions"]).items().iter().any(established) {
            errs.immutable(&new.field("scope"), &was.field("scope"));
            errs.immutable(&new.fields(&["names", "kind"]), &was.fields(&["names", "kind"]));
        }
        errs.immutable(&new.fields(&["names", "plural"]), &was.fields(&["names", "plural"]));
        let versions = object.at(&["spec", "versions"]).items();
        for stored in Cursor::root(object).fields(&["status", "storedVersions"]).elements() {
            if !versions.iter().any(|v| v["name"] == *stored.value) {
                errs.invalid(&stored, "missing from spec.versions; v1 was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in v1 and removes v1 from status.storedVersions".replace("v1", stored.as_str().unwrap_or_default()));
            }
        }
        errs
    }

    fn has_generation(&self) -> bool {
        true
    }
}

/// Objects may lie in the store in every version that has ever been the storage version.
fn remember_storage(object: &mut Value) {
    let versions = object.at(&["spec", "versions"]).items();
    let Some(name) = versions.iter().find(|v| v["storage"].as_bool() == Some(true)).map(|v| v["name"].clone()) else {
        return;
    };
    let stored = object.entry(&["status", "storedVersions"]).make_array();
    if !stored.contains(&name) {
        stored.push(name);
    }
}

fn validate_spec(spec: &Cursor<'_>, errs: &mut FieldErrors) {
    let group = spec.field("group");
    match group.as_str().unwrap_or_default() {
        "" => errs.required(&group.path, ""),
        text => {
            for message in dns_subdomain(text, false) {
                errs.invalid(&group, message);
            }
            if !text.contains('.') {
                errs.invalid(&group, "should be a domain with at least one dot");
            }
        }
    }
    let scope = spec.field("scope");
    match scope.as_str().unwrap_or_default() {
        "" => errs.required(&scope.path, ""),
        "Cluster" | "Namespaced" => {}
        _ => errs.not_supported(&scope, &["Cluster", "Namespaced"]),
    }
    validate_names(&spec.field("names"), errs);
    validate_versions(spec, errs);
    validate_conversion(&spec.field("conversion"), errs);
    if spec.value["preserveUnknownFields"].as_bool() == Some(true) {
        let at = spec.field("preserveUnknownFields");
        errs.invalid(
            &at,
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        );
    }
}

fn validate_names(names: &Cursor<'_>, errs: &mut FieldErrors) {
    for name in ["plural", "singular", "kind", "listKind"] {
        let at = names.field(name);
        let text = at.as_str().unwrap_or_default();
        if text.is_empty() {
            if name != "singular" {
                errs.required(&at.path, "");
            }
            continue;
        }
        let mixed = matches!(name, "kind" | "listKind");
        let checked = if mixed { text.to_lowercase() } else { text.to_owned() };
        for message in dns_1035(&checked) {
            let message =
                if mixed { format!("may have mixed case, but should otherwise match: {message}") } else { message };
            errs.invalid(&at, message);
        }
    }
    for short in names.field("shortNames").elements() {
        for message in dns_1035(short.as_str().unwrap_or_default()) {
            errs.invalid(&short, message);
        }
    }
    for category in names.field("categories").elements() {
        for message in dns_1035(category.as_str().unwrap_or_default()) {
            errs.invalid(&category, message);
        }
    }
    let (kind, list) = (names.field("kind"), names.field("listKind"));
    if kind.value == list.value && !kind.value.is_empty_value() {
        errs.invalid(&list, "kind and listKind may not be the same");
    }
}

/// Upstream's rule for a DNS label that may not begin with a digit.
fn dns_1035(text: &str) -> Vec<String> {
    let fits = dns_label(text, false).is_empty() && text.starts_with(|c: char| c.is_ascii_lowercase());
    let mut wrong = Vec::new();
    if text.len() > 63 {
        wrong.push("must be no more than 63 characters".to_owned());
    } else if !fits {
        wrong.push(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, \
             and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is \
             '[a-z]([-a-z0-9]*[a-z0-9])?')"
                .to_owned(),
        );
    }
    wrong
}

fn validate_versions(spec: &Cursor<'_>, errs: &mut FieldErrors) {
    let versions = spec.field("versions");
    let items = versions.value.items();
    let mut names: Vec<&str> = Vec::new();
    let mut unique = true;
    for version in versions.elements() {
        let name = version.field("name");
        let text = name.value.as_str().unwrap_or_default();
        unique &= !names.contains(&text);
        names.push(text);
        for message in dns_1035(text) {
            errs.invalid(&name, message);
        }
    }
    if !unique {
        errs.invalid_value(
            &versions.path,
            names.into_iter().map(Value::from).collect::<Vec<_>>(),
            "must contain unique version names",
        );
    }
    if items.iter().filter(|v| v["storage"].as_bool() == Some(true)).count() != 1 {
        // Upstream shows the versions as its own structs.
        let field = |v: &Value, name: &str| if v[name].is_null() { Value::from("") } else { v[name].clone() };
        let shown = |v: &Value| {
            Value::from([
                ("Name", field(v, "name")),
                ("Served", v["served"].clone()),
                ("Storage", v["storage"].clone()),
            ])
        };
        let shown: Vec<Value> = items.iter().map(shown).collect();
        errs.invalid_value(&versions.path, shown, "must have exactly one version marked as storage version");
    }
    // What is the same in all versions stands at the top of the form that is checked, and errors say so.
    let same = |field: &str| items.windows(2).all(|w| w[0][field] == w[1][field]);
    let at = |i: usize, version: &Path, field: &str, top: &str| match same(field) {
        true if i == 0 => Some(spec.path.child(top)),
        true => None,
        false => Some(version.child(field)),
    };
    for (i, version) in versions.elements().enumerate() {
        if let Some(path) = at(i, &version.path, "schema", "validation") {
            let schema = Cursor::new(path.child("openAPIV3Schema"), version.value.at(&["schema", "openAPIV3Schema"]));
            if schema.is_absent() {
                errs.required(&version.path.child("schema").child("openAPIV3Schema"), "");
            } else {
                let structural = spec.value["preserveUnknownFields"].as_bool() != Some(true);
                validate_root(&schema, structural, errs);
                if !structural && has_defaults(schema.value) {
                    let at = spec.field("preserveUnknownFields");
                    errs.invalid(&at, "must be false in order to use defaults in the schema");
                }
            }
        }
        if let Some(path) = at(i, &version.path, "additionalPrinterColumns", "additionalPrinterColumns") {
            validate_columns(&Cursor::new(path, &version.value["additionalPrinterColumns"]), errs);
        }
        if let Some(path) = at(i, &version.path, "selectableFields", "selectableFields") {
            let schema = version.value.at(&["schema", "openAPIV3Schema"]);
            validate_selectable(&Cursor::new(path, &version.value["selectableFields"]), schema, errs);
        }
        if let Some(path) = at(i, &version.path, "subresources", "subresources") {
            validate_scale(&Cursor::new(path, &version.value["subresources"]).field("scale"), errs);
        }
    }
}

fn validate_conversion(conversion: &Cursor<'_>, errs: &mut FieldErrors) {
    let strategy = conversion.field("strategy");
    let webhook = conversion.field("webhook");
    match strategy.as_str().unwrap_or_default() {
        "None" => {
            if !webhook.is_absent() {
                errs.forbidden(&webhook.path, "should not be set when strategy is not set to Webhook");
            }
        }
        "Webhook" => {
            // The form that upstream checks is an older one, which errors show.
            let config = Cursor::new(conversion.path.child("webhookClientConfig"), &webhook.value["clientConfig"]);
            if config.is_absent() {
                errs.required(&config.path, "required when strategy is set to Webhook");
            } else {
                crate::admissionregistration::webhooks::validate_client_config(&config, errs);
            }
            let path = conversion.path.child("conversionReviewVersions");
            validate_review_versions(&Cursor::new(path, &webhook.value["conversionReviewVersions"]), errs);
        }
        _ => errs.not_supported(&strategy, &["None", "Webhook"]),
    }
}

fn validate_review_versions(versions: &Cursor<'_>, errs: &mut FieldErrors) {
    let items = versions.value.items();
    if items.is_empty() {
        errs.required(&versions.path, "");
        return;
    }
    let mut seen: Vec<&str> = Vec::new();
    let mut known = false;
    for version in versions.elements() {
        let text = version.value.as_str().unwrap_or_default();
        if seen.contains(&text) {
            errs.invalid(&version, "duplicate version");
            continue;
        }
        for message in dns_1035(text) {
            errs.invalid(&version, message);
        }
        known |= matches!(text, "v1" | "v1beta1");
        seen.push(text);
    }
    if !known {
        errs.invalid(versions, "must include at least one of v1, v1beta1");
    }
}

/// How many fields clients may select by.
const MAX_SELECTABLE: usize = 8;

fn validate_selectable(fields: &Cursor<'_>, schema: &Value, errs: &mut FieldErrors) {
    let mut seen: Vec<&str> = Vec::new();
    for field in fields.elements() {
        let path = field.field("jsonPath");
        let text = path.value.as_str().unwrap_or_default();
        if text.is_empty() {
            errs.required(&field.path.child("jsonPath"), "");
            continue;
        }
        let keys: Vec<&str> = text.trim_start_matches('.').split('.').collect();
        let found = keys.iter().try_fold(schema, |at, key| at["properties"].get(key));
        match found {
            _ if !text.starts_with('.') => {
                errs.invalid(&path, format!("is an invalid path: expected [ or . but got: {}", keys[0]));
                continue;
            }
            None if keys[0] == "metadata" => errs.invalid(&path, "must not point to fields in metadata"),
            None => {
                errs.invalid(&path, "is an invalid path: does not refer to a valid field");
                continue;
            }
            Some(_) if keys[0] == "metadata" => errs.invalid(&path, "must not point to fields in metadata"),
            Some(schema) if !matches!(schema.str_at(&["type"]), "string" | "boolean" | "integer") => {
                errs.invalid(&path, "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.");
            }
            Some(_) => {}
        }
        if seen.contains(&text) {
            errs.duplicate(&path.path, text);
        } else {
            seen.push(text);
        }
    }
    if seen.len() > MAX_SELECTABLE {
        errs.too_many(&fields.path, seen.len(), MAX_SELECTABLE);
    }
}

fn validate_columns(columns: &Cursor<'_>, errs: &mut FieldErrors) {
    for column in columns.elements() {
        for field in ["name", "type"] {
            if column.value[field].is_empty_value() {
                errs.required(&column.path.child(field), "");
            }
        }
        let kind = column.field("type");
        if !kind.value.is_empty_value()
            && !["integer", "number", "string", "boolean", "date"].contains(&kind.as_str().unwrap_or_default())
        {
            errs.invalid(&kind, "must be one of boolean,date,integer,number,string");
        }
        let path = column.field("jsonPath");
        match path.as_str().unwrap_or_default() {
            "" => errs.required(&column.path.child("JSONPath"), ""),
            text if !text.starts_with('.') && !text.starts_with('[') => {
                let at = Cursor::new(column.path.child("JSONPath"), path.value);
                errs.invalid(&at, "must be a simple json path starting with .");
            }
            _ => {}
        }
    }
}

fn validate_scale(scale: &Cursor<'_>, errs: &mut FieldErrors) {
    if scale.value.as_object().is_none() {
        return;
    }
    for (field, under) in [("specReplicasPath", ".spec."), ("statusReplicasPath", ".status.")] {
        let at = scale.field(field);
        match at.as_str().unwrap_or_default() {
            "" => errs.required(&at.path, ""),
            text if !text.starts_with('.') => errs.invalid(&at, "must be a simple json path starting with ."),
            text if !text.starts_with(under) => {
                errs.invalid(&at, format!("should be a json path under {}", under.trim_end_matches('.')));
            }
            _ => {}
        }
    }
}

fn flag(schema: &Value, name: &str) -> bool {
    schema[name].as_bool() == Some(true)
}

/// Does any part of the schema have a default?
fn has_defaults(schema: &Value) -> bool {
    schema.get("default").is_some()
        || schema["properties"].entries().values().any(has_defaults)
        || (schema["items"].as_object().is_some() && has_defaults(&schema["items"]))
        || (schema["additionalProperties"].as_object().is_some() && has_defaults(&schema["additionalProperties"]))
}

fn validate_root(schema: &Cursor<'_>, structural: bool, errs: &mut FieldErrors) {
    let ty = schema.field("type");
    match ty.as_str().unwrap_or_default() {
        "" if structural => errs.required(&ty.path, "must not be empty at the root"),
        "" => {}
        "object" => {}
        _ => errs.invalid(&ty, "must be object at the root"),
    }
    if flag(schema.value, "nullable") {
        errs.forbidden(&schema.path.child("nullable"), "nullable cannot be true at the root");
    }
    validate_schema(schema, (Where::Root, structural), errs);
}

/// What a schema stands for, which the words of errors depend on.
#[derive(Clone, Copy, PartialEq)]
enum Where {
    Root,
    Field,
    Item,
    Value,
}

fn validate_schema(schema: &Cursor<'_>, (place, structural): (Where, bool), errs: &mut FieldErrors) {
    let value = schema.value;
    let ty = schema.field("type");
    let kind = ty.as_str().unwrap_or_default();
    let free = flag(value, PRESERVE) || flag(value, INT_OR_STRING);
    if kind.is_empty() {
        let what = match place {
            Where::Field => "must not be empty for specified object fields",
            Where::Item => "must not be empty for specified array items",
            Where::Value => "must not be empty for specified object fields",
            Where::Root => "",
        };
        if structural && !free && place != Where::Root {
            errs.required(&ty.path, what);
        }
    } else if !TYPES.contains(&kind) {
        errs.not_supported(&ty, TYPES);
    }
    if flag(value, INT_OR_STRING) && !kind.is_empty() {
        errs.invalid(&ty, "must be empty if x-kubernetes-int-or-string is true");
    }
    if flag(value, EMBEDDED) && kind != "object" && place != Where::Root {
        errs.invalid(&ty, "must be object if x-kubernetes-embedded-resource is true");
    }
    let values = schema.field("additionalProperties");
    let has_properties = !value["properties"].entries().is_empty();
    if !values.is_absent() {
        if values.as_bool() == Some(false) {
            errs.forbidden(&values.path, "additionalProperties cannot be set to false");
        }
        if has_properties && values.value.as_object().is_some() {
            errs.forbidden(&values.path, "additionalProperties and properties are mutual exclusive");
        }
        if place == Where::Root {
            errs.forbidden(&values.path, "must not be used at the root");
        }
        if values.value.as_object().is_some() {
            validate_schema(&values, (Where::Value, structural), errs);
        }
    }
    for (name, property) in schema.field("properties").map_entries() {
        if place == Where::Root && name == "metadata" {
            continue;
        }
        validate_schema(&property, (Where::Field, structural), errs);
    }
    let items = schema.field("items");
    if structural && kind == "array" && items.is_absent() {
        errs.required(&items.path, "must be specified");
    }
    if items.value.as_object().is_some() {
        validate_schema(&items, (Where::Item, structural), errs);
    }
    if items.value.as_array().is_some() {
        errs.forbidden(&items.path, "items must be a schema object and not an array");
    }
    for field in [
        "definitions",
        "dependencies",
        "patternProperties",
        "additionalItems",
        "id",
        "$ref",
        "deprecated",
        "discriminator",
        "readOnly",
        "writeOnly",
        "xml",
    ] {
        let at = schema.field(field);
        if !at.value.is_empty_value() {
            errs.forbidden(&at.path, format!("{field} is not supported"));
        }
    }
    if flag(value, "uniqueItems") {
        errs.forbidden(
            &schema.path.child("uniqueItems"),
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        );
    }
    validate_lists(schema, kind, errs);
    validate_rules(schema, errs);
    if structural {
        validate_junctors(schema, errs);
    }
}

fn validate_lists(schema: &Cursor<'_>, kind: &str, errs: &mut FieldErrors) {
    let list = schema.field(LIST_TYPE);
    let keys = schema.field(LIST_KEYS);
    if let Some(text) = list.as_str() {
        if kind != "array" {
            let detail = "must be array if x-kubernetes-list-type is specified";
            if kind.is_empty() {
                errs.required(&schema.path.child("type"), detail);
            } else {
                errs.invalid(&schema.field("type"), detail);
            }
        }
        if !matches!(text, "atomic" | "set" | "map") {
            errs.not_supported(&list, &["atomic", "set", "map"]);
        }
        if text == "map" {
            if keys.value.items().is_empty() {
                errs.required(&keys.path, "must not be empty if x-kubernetes-list-type is map");
            }
            let items = schema.field("items");
            if items.is_absent() {
                errs.required(&items.path, "must have a schema if x-kubernetes-list-type is map");
            } else if items.str_at(&["type"]) != "object" {
                errs.invalid(&items.field("type"), "must be object if parent array's x-kubernetes-list-type is map");
            }
            for key in keys.elements() {
                let name = key.as_str().unwrap_or_default();
                let Some(property) = items.value.at(&["properties"]).get(name) else {
                    errs.invalid(&key, "must be a property");
                    continue;
                };
                let required = items.value["required"].items().contains(key.value);
                if !required && property.get("default").is_none() {
                    let path = items.path.child("properties").key(name).child("default");
                    errs.required(&path, "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property");
                }
            }
        }
    }
    if !keys.value.items().is_empty() && list.as_str() != Some("map") {
        if list.is_absent() {
            errs.required(&list.path, "must be map if x-kubernetes-list-map-keys is non-empty");
        } else {
            errs.invalid(&list, "must be map if x-kubernetes-list-map-keys is non-empty");
        }
    }
    let map = schema.field(MAP_TYPE);
    if let Some(text) = map.as_str() {
        if kind != "object" {
            errs.invalid(&schema.field("type"), "must be object if x-kubernetes-map-type is specified");
        }
        if !matches!(text, "atomic" | "granular") {
            errs.not_supported(&map, &["atomic", "granular"]);
        }
    }
}

fn validate_rules(schema: &Cursor<'_>, errs: &mut FieldErrors) {
    for rule in schema.field(RULES).elements() {
        if rule.str_at(&["rule"]).trim().is_empty() {
            errs.required(&rule.path.child("rule"), "rule is not specified");
        }
        let message = rule.field("message");
        if let Some(text) = message.as_str() {
            if !text.is_empty() && text.trim().is_empty() {
                errs.invalid(&message, "message must be non-empty if specified");
            } else if text.trim().contains('\n') {
                errs.invalid(&message, "message must not contain line breaks");
            } else if text.len() > 2048 {
                errs.too_long(&message.path, 2048);
            }
        }
        if rule.str_at(&["rule"]).trim().contains('\n') && rule.str_at(&["message"]).is_empty() {
            errs.required(&message.path, "message must be specified if rule contains line breaks");
        }
        let wording = rule.field("messageExpression");
        if wording.as_str().is_some_and(|t| t.trim().is_empty()) {
            errs.required(&wording.path, "messageExpression must be non-empty if specified");
        }
        let reason = rule.field("reason");
        if !reason.is_absent() && !REASONS.contains(&reason.as_str().unwrap_or_default()) {
            errs.not_supported(&reason, REASONS);
        }
    }
}

/// Below `allOf` and the like, only values are restricted: nothing may be specified anew.
fn validate_junctors(schema: &Cursor<'_>, errs: &mut FieldErrors) {
    let lists =
        ["allOf", "anyOf", "oneOf"].into_iter().flat_map(|name| schema.field(name).elements().collect::<Vec<_>>());
    let not = schema.field("not");
    let not = (!not.is_absent()).then_some(not);
    let int_or_string = flag(schema.value, INT_OR_STRING);
    for nested in lists.chain(not) {
        validate_nested(&nested, int_or_string, errs);
    }
}

fn validate_nested(schema: &Cursor<'_>, int_or_string: bool, errs: &mut FieldErrors) {
    for field in [
        "type",
        "additionalProperties",
        "default",
        "title",
        "description",
        "nullable",
        PRESERVE,
        EMBEDDED,
        LIST_TYPE,
        LIST_KEYS,
        MAP_TYPE,
        RULES,
    ] {
        let at = schema.field(field);
        if !at.value.is_empty_value() && (field != "type" || !int_or_string) {
            errs.forbidden(&at.path, "must be empty to be structural");
        }
    }
    for (_, property) in schema.field("properties").map_entries() {
        validate_nested(&property, false, errs);
    }
    let items = schema.field("items");
    if !items.is_absent() {
        validate_nested(&items, false, errs);
    }
    validate_junctors(schema, errs);
}
