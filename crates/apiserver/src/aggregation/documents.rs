//! What an aggregated server says of itself: its discovery and its OpenAPI.

use std::collections::BTreeSet;

use apimachinery::Value;
use apimachinery::meta::GroupVersion;
use bytes::Bytes;
use serde_json::{Map, Value as Json, json};

/// What was last learned from it of one group and version.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Remote {
    /// As aggregated discovery lists them.
    pub resources: Value,
    /// What tells its document of OpenAPI v3 from earlier ones; `None`: it has none.
    pub openapi: Option<String>,
    /// Its part of OpenAPI v2, if it has one: an object of `paths` and `definitions`.
    pub openapi_v2: Option<Bytes>,
}

/// The resources of a version in an `APIGroupDiscoveryList`; `None`: it is not in there.
pub(super) fn of_aggregated(list: &Value, gv: &GroupVersion) -> Option<Value> {
    if list.kind() != "APIGroupDiscoveryList" {
        return None;
    }
    let group = list["items"].items().iter().find(|group| group.name() == gv.group)?;
    let version = group["versions"].items().iter().find(|v| v.str_at(&["version"]) == gv.version)?;
    Some(version["resources"].clone())
}

/// The resources of an `APIResourceList`, as aggregated discovery lists them.
pub(super) fn of_plain(list: &Value, gv: &GroupVersion) -> Value {
    let resources = list["resources"].items();
    let kind_of = |resource: &Value| {
        let own = |field: &str, usual: &str| {
            let text = resource.str_at(&[field]);
            Value::from(if text.is_empty() { usual } else { text })
        };
        Value::from([
            ("group", own("group", &gv.group)),
            ("version", own("version", &gv.version)),
            ("kind", resource["kind"].clone()),
        ])
    };
    let named = |resource: &Value| resource.str_at(&["name"]).to_owned();
    let own = resources.iter().filter(|resource| !named(resource).contains('/'));
    let converted = own.map(|resource| {
        let name = named(resource);
        let scope = if resource["namespaced"].as_bool() == Some(true) { "Namespaced" } else { "Cluster" };
        let mut out = Value::from([
            ("resource", name.as_str().into()),
            ("responseKind", kind_of(resource)),
            ("scope", scope.into()),
            ("singularResource", resource.str_at(&["singularName"]).into()),
            ("verbs", resource["verbs"].clone()),
        ]);
        for field in ["shortNames", "categories"] {
            if !resource[field].is_empty_value() {
                out.set(&[field], resource[field].clone());
            }
        }
        let below = resources.iter().filter_map(|sub| {
            let subresource = sub.str_at(&["name"]).strip_prefix(name.as_str())?.strip_prefix('/')?;
            Some(Value::from([
                ("subresource", subresource.into()),
                ("responseKind", kind_of(sub)),
                ("verbs", sub["verbs"].clone()),
            ]))
        });
        let below: Vec<Value> = below.collect();
        if !below.is_empty() {
            out.set(&["subresources"], below);
        }
        out
    });
    converted.collect::<Vec<_>>().into()
}

/// What tells the document of a version from earlier ones, in an index of OpenAPI v3.
pub(super) fn openapi_hash(index: &Value, gv: &GroupVersion) -> Option<String> {
    let path = format!("apis/{}/{}", gv.group, gv.version);
    let url = index["paths"].get(&path)?.str_at(&["serverRelativeURL"]);
    Some(url.split_once("hash=").map_or("", |(_, hash)| hash).to_owned())
}

/// The part of a document of OpenAPI v2 that is about a version: its paths, and the definitions that they lead to.
pub(super) fn openapi_v2_part(document: &[u8], gv: &GroupVersion) -> Option<Bytes> {
    let mut document: Json = serde_json::from_slice(document).ok()?;
    let mut object = |field: &str| match document[field].take() {
        Json::Object(entries) => entries,
        _ => Map::new(),
    };
    let (mut paths, mut definitions) = (object("paths"), object("definitions"));
    let root = format!("/apis/{}/{}/", gv.group, gv.version);
    paths.retain(|path, _| path.starts_with(&root));
    let (mut reached, mut ahead) = (BTreeSet::new(), Vec::new());
    paths.values().for_each(|path| references(path, &mut ahead));
    while let Some(name) = ahead.pop() {
        if let Some(definition) = definitions.get(&name)
            && reached.insert(name)
        {
            references(definition, &mut ahead);
        }
    }
    definitions.retain(|name, _| reached.contains(name));
    Some(json!({ "paths": paths, "definitions": definitions }).to_string().into())
}

/// The definitions that a part of a document names.
fn references(of: &Json, found: &mut Vec<String>) {
    match of {
        Json::Object(fields) => {
            let reference = fields.get("$ref").and_then(Json::as_str);
            found.extend(reference.and_then(|to| to.strip_prefix("#/definitions/")).map(str::to_owned));
            fields.values().for_each(|field| references(field, found));
        }
        Json::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn only_what_is_about_a_version_is_taken_of_a_document() {
        let gv = GroupVersion { group: "g".into(), version: "v1".into() };
        let document = br##"{"paths":{"/apis/g/v1/flunders":{"get":{"schema":{"$ref":"#/definitions/List"}}},"/version/":{"$ref":"#/definitions/Other"}},
            "definitions":{"List":{"items":[{"$ref":"#/definitions/Flunder"}]},"Flunder":{"of":{"$ref":"#/definitions/Flunder"}},"Other":{}}}"##;
        let part: Json = serde_json::from_slice(&openapi_v2_part(document, &gv).unwrap()).unwrap();
        let names = |field: &str| part[field].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(
            (names("paths"), names("definitions")),
            (vec!["/apis/g/v1/flunders".to_owned()], vec!["Flunder".to_owned(), "List".to_owned()])
        );
        assert_eq!(openapi_v2_part(b"no", &gv), None);
    }

    #[test]
    fn plain_lists_become_aggregated_ones() {
        let gv = GroupVersion { group: "g".into(), version: "v1".into() };
        let list = json(
            r#"{"resources":[
            {"name":"flunders","singularName":"flunder","namespaced":true,"kind":"Flunder","verbs":["get"],"shortNames":["fl"]},
            {"name":"flunders/status","singularName":"","namespaced":true,"kind":"Flunder","verbs":["update"]},
            {"name":"flunders/scale","kind":"Scale","group":"autoscaling","version":"v1","verbs":["get"]}]}"#,
        );
        let want = json(
            r#"[{"resource":"flunders","responseKind":{"group":"g","version":"v1","kind":"Flunder"},"scope":"Namespaced",
            "singularResource":"flunder","verbs":["get"],"shortNames":["fl"],"subresources":[
            {"subresource":"status","responseKind":{"group":"g","version":"v1","kind":"Flunder"},"verbs":["update"]},
            {"subresource":"scale","responseKind":{"group":"autoscaling","version":"v1","kind":"Scale"},"verbs":["get"]}]}]"#,
        );
        assert_eq!(of_plain(&list, &gv), want);
        let aggregated = json(
            r#"{"kind":"APIGroupDiscoveryList","items":[{"metadata":{"name":"g"},"versions":[{"version":"v1","resources":[1]}]}]}"#,
        );
        assert_eq!(of_aggregated(&aggregated, &gv), Some(json("[1]")));
        assert_eq!(of_aggregated(&list, &gv), None);
    }

    #[test]
    fn documents_are_told_apart_by_their_hash() {
        let gv = GroupVersion { group: "g".into(), version: "v1".into() };
        let index = json(r#"{"paths":{"apis/g/v1":{"serverRelativeURL":"/openapi/v3/apis/g/v1?hash=AB"}}}"#);
        assert_eq!(openapi_hash(&index, &gv).as_deref(), Some("AB"));
        assert_eq!(openapi_hash(&json("{}"), &gv), None);
    }
}
