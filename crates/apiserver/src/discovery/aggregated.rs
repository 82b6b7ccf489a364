//! Aggregated discovery: everything in one document (`apidiscovery.k8s.io`).

use api::{ResourceDef, Subresource};
use apimachinery::meta::Gvk;
use apimachinery::status::Status;
use apimachinery::{Map, Value};
use bytes::Bytes;
use sha2::{Digest, Sha512};

use super::documents::{Group, strings};
use crate::handlers::negotiation;

const V2: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The media type of the aggregated document, if the client wants it and not the old one.
///
/// # Errors
/// 406 when it wants a version of it that there is not, and nothing else.
pub(super) fn wanted(accept: Option<&str>) -> Result<Option<&'static str>, Status> {
    let clauses = negotiation::clauses(accept.unwrap_or("*/*"));
    for clause in &clauses {
        let plain = clause.param("as").is_none();
        let fits =
            clause.param("g") == Some("apidiscovery.k8s.io") && clause.param("as") == Some("APIGroupDiscoveryList");
        if plain {
            return Ok(None);
        }
        if fits && clause.param("v") == Some("v2") && clause.subtype == "json" {
            return Ok(Some(V2));
        }
    }
    Err(negotiation::unacceptable(&["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"]))
}

/// The document of these groups.
pub(super) fn document(groups: &[&Group]) -> Bytes {
    let items = groups.iter().map(|group| {
        let versions = group.versions.iter().map(|version| {
            let mut out = Value::from([("version", version.name.as_str().into())]);
            let (freshness, resources) = match &version.backend {
                None => ("Current", version.resources.iter().map(|def| resource(def)).collect::<Vec<_>>().into()),
                Some(backend) => {
                    (if backend.available { "Current" } else { "Stale" }, backend.remote.resources.clone())
                }
            };
            out.set(&["freshness"], freshness);
            if !resources.is_null() {
                out.set(&["resources"], resources);
            }
            out
        });
        let mut metadata = Value::object();
        if !group.name.is_empty() {
            metadata.set(&["name"], group.name.as_str());
        }
        Value::from([("metadata", metadata), ("versions", versions.collect::<Vec<_>>().into())])
    });
    let list = Value::from([
        ("kind", "APIGroupDiscoveryList".into()),
        ("apiVersion", "apidiscovery.k8s.io/v2".into()),
        ("metadata", Value::object()),
        ("items", items.collect::<Vec<_>>().into()),
    ]);
    let mut out = Vec::new();
    crate::encoding::write_json(&mut out, &list);
    out.push(b'\n');
    out.into()
}

/// Changes when the document does.
pub(super) fn etag(document: &[u8]) -> String {
    use std::fmt::Write;
    let mut tag = String::from("\"");
    for byte in Sha512::digest(document) {
        // Writing to a String cannot fail.
        let _ = write!(tag, "{byte:02X}");
    }
    tag.push('"');
    tag
}

fn resource(def: &ResourceDef) -> Value {
    let mut map = Map::new();
    map.insert("resource", def.gvr.resource.clone());
    map.insert("responseKind", response_kind(&def.gvk(), def));
    map.insert("scope", if def.is_namespaced() { "Namespaced" } else { "Cluster" });
    map.insert("singularResource", def.singular.as_str());
    map.insert("verbs", strings(&def.verbs));
    for (key, list) in [("shortNames", &def.short_names), ("categories", &def.categories)] {
        if !list.is_empty() {
            map.insert(key, strings(list));
        }
    }
    if !def.subresources.is_empty() {
        let mut subresources: Vec<&Subresource> = def.subresources.iter().collect();
        subresources.sort_by(|a, b| a.name.cmp(&b.name));
        let subresources = subresources.into_iter().map(|sub| {
            Value::from([
                ("subresource", sub.name.as_str().into()),
                ("responseKind", response_kind(&sub.gvk, def)),
                ("verbs", strings(&sub.verbs).into()),
            ])
        });
        map.insert("subresources", subresources.collect::<Vec<_>>());
    }
    map.into()
}

/// Group and version are left empty when they are the resource's own.
fn response_kind(gvk: &Gvk, def: &ResourceDef) -> Value {
    let own = gvk.group == def.gvr.group && gvk.version == def.gvr.version;
    let shown = |text: &str| Value::from(if own { "" } else { text });
    Value::from([("group", shown(&gvk.group)), ("version", shown(&gvk.version)), ("kind", gvk.kind.clone().into())])
}
