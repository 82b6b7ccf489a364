//! From definitions to entries of the table of resources.

use std::collections::HashMap;
use std::sync::Arc;

use api::{ResourceDef, Scope, Subresource};
use apimachinery::Value;
use apimachinery::meta::{Gvk, Gvr};
use base64::Engine;
use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::conversion::Webhook;
use super::strategy::CustomStrategy;
use super::{Custom, columns};

/// Entries of the table live as long as the server, so each is made once and found again by all that it says: an API that
/// is defined, deleted and defined again costs nothing more. A change of the schema alone makes no new one.
#[derive(Default)]
pub(super) struct Interned(HashMap<String, (&'static ResourceDef, &'static CustomStrategy)>);

impl Interned {
    /// The entries of a definition, for each version that is served; `bytes` is the same definition as JSON.
    pub(super) fn entries(
        &mut self,
        definition: &Value,
        bytes: &Bytes,
        webhook: Option<&Arc<Webhook>>,
    ) -> Vec<(&'static ResourceDef, Arc<Custom>)> {
        let versions = definition.at(&["spec", "versions"]).items();
        let fields = selectable(versions);
        let served = versions.iter().filter(|v| v["served"].as_bool() == Some(true));
        let made = served.map(|version| {
            let custom = Arc::new(Custom::new(definition, bytes, version, webhook.cloned()));
            (self.entry(definition, version, &fields, &custom), custom)
        });
        made.collect()
    }

    fn entry(
        &mut self,
        definition: &Value,
        version: &Value,
        fields: &[String],
        custom: &Arc<Custom>,
    ) -> &'static ResourceDef {
        let spec = &definition["spec"];
        let identity = Value::from([
            ("group", spec["group"].clone()),
            ("names", definition.at(&["status", "acceptedNames"]).clone()),
            ("scope", spec["scope"].clone()),
            ("version", version["name"].clone()),
            ("storage", storage_version(definition).into()),
            ("subresources", version["subresources"].clone()),
            ("columns", version["additionalPrinterColumns"].clone()),
            ("fields", fields.iter().map(|f| Value::from(f.as_str())).collect::<Vec<_>>().into()),
        ]);
        let identity = apimachinery::field::shown(&identity);
        if let Some((def, strategy)) = self.0.get(&identity) {
            strategy.set(Arc::clone(custom));
            return def;
        }
        let strategy: &'static CustomStrategy =
            Box::leak(Box::new(CustomStrategy::new(Arc::clone(custom), kept(fields))));
        let def: &'static ResourceDef = Box::leak(Box::new(def_of(definition, version, custom, strategy)));
        self.0.insert(identity, (def, strategy));
        def
    }
}

/// The version that objects are stored in.
#[must_use]
pub(super) fn storage_version(definition: &Value) -> &str {
    let versions = definition.at(&["spec", "versions"]).items();
    versions.iter().find(|v| v["storage"].as_bool() == Some(true)).map_or("", |v| v.str_at(&["name"]))
}

fn strings(list: &Value) -> Vec<String> {
    list.items().iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn def_of(definition: &Value, version: &Value, custom: &Custom, strategy: &'static CustomStrategy) -> ResourceDef {
    let spec = &definition["spec"];
    let names = definition.at(&["status", "acceptedNames"]);
    let (group, plural) = (spec.str_at(&["group"]), names.str_at(&["plural"]));
    let list_kind = names.str_at(&["listKind"]);
    let gvk = &custom.gvk;
    let storage = Gvk::new(group, storage_version(definition), &gvk.kind);
    let verbs = |list: &[&str]| list.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>();
    let subresource =
        |name: &str, gvk: Gvk| Subresource { name: name.into(), gvk, verbs: verbs(&["get", "patch", "update"]) };
    let mut subresources = Vec::new();
    if custom.has_status {
        subresources.push(subresource("status", gvk.clone()));
    }
    if custom.scale.is_some() {
        subresources.push(subresource("scale", Gvk::new("autoscaling", "v1", "Scale")));
    }
    ResourceDef {
        gvr: Gvr::new(group, &gvk.version, plural),
        kind: gvk.kind.to_string(),
        list_kind: if list_kind.is_empty() { format!("{}List", gvk.kind) } else { list_kind.to_owned() },
        singular: names.str_at(&["singular"]).to_owned(),
        short_names: strings(&names["shortNames"]),
        categories: strings(&names["categories"]),
        scope: if spec.str_at(&["scope"]) == "Namespaced" { Scope::Namespaced } else { Scope::Cluster },
        verbs: verbs(&["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"]),
        storage_version_hash: hash_of(&storage),
        on_by_default: true,
        subresources,
        storage,
        storage_prefix: format!("{group}/{plural}"),
        columns: columns::columns_of(version).into_iter().map(|c| c.column).collect(),
        strategy,
    }
}

/// Tells clients when objects are stored in another version.
fn hash_of(storage: &Gvk) -> String {
    let digest = Sha256::digest(format!("{}/{}/{}", storage.group, storage.version, storage.kind));
    base64::engine::general_purpose::STANDARD.encode(&digest[..8])
}

/// The fields that some version lets clients select by: all versions share one cache.
fn selectable(versions: &[Value]) -> Vec<String> {
    let mut fields: Vec<String> = versions
        .iter()
        .flat_map(|v| v["selectableFields"].items())
        .map(|f| f.str_at(&["jsonPath"]).trim_start_matches('.').to_owned())
        .collect();
    fields.sort();
    fields.dedup();
    fields
}

fn kept(fields: &[String]) -> &'static [(&'static str, &'static [&'static str])] {
    let fields = fields.iter().map(|path| {
        let label: &'static str = String::leak(path.clone());
        let keys: &'static [&'static str] = Vec::leak(label.split('.').collect());
        (label, keys)
    });
    Vec::leak(fields.collect())
}
