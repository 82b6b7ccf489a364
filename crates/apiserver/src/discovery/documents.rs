//! The documents of discovery as trees.

use std::collections::HashMap;
use std::sync::Arc;

use api::ResourceDef;
use apimachinery::{Map, Value};

use crate::aggregation::{Backend, group_priority};
use crate::handlers::Call;

/// A group with its versions, the preferred one first.
pub(super) struct Group {
    pub name: String,
    priority: i64,
    pub versions: Vec<Version>,
}

pub(super) struct Version {
    pub group: String,
    pub name: String,
    pub resources: Vec<&'static ResourceDef>,
    /// Another server that answers for it.
    pub backend: Option<Arc<Backend>>,
}

/// The groups in order: by the priorities that upstream's aggregator gives them, and those that APIServices have.
pub(super) fn groups(
    resources: impl IntoIterator<Item = &'static ResourceDef>,
    backends: Vec<Arc<Backend>>,
) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut index: HashMap<String, usize> = HashMap::new();
    let mut group_of = |name: &str, priority: i64, groups: &mut Vec<Group>| -> usize {
        let at = *index.entry(name.to_owned()).or_insert(groups.len());
        if at == groups.len() {
            groups.push(Group { name: name.to_owned(), priority, versions: Vec::new() });
        }
        at
    };
    for def in resources {
        let (name, version) = (def.gvr.group.as_str(), def.gvr.version.as_str());
        let at = group_of(name, group_priority(name), &mut groups);
        let group = &mut groups[at];
        match group.versions.iter_mut().find(|v| v.name == version) {
            Some(version) => version.resources.push(def),
            None => {
                let (group_name, name) = (name.to_owned(), version.to_owned());
                group.versions.push(Version { group: group_name, name, resources: vec![def], backend: None });
            }
        }
    }
    for backend in backends {
        let (group, name) = (backend.gv.group.to_string(), backend.gv.version.to_string());
        let at = group_of(&group, backend.group_priority, &mut groups);
        let into = &mut groups[at];
        into.priority = into.priority.max(backend.group_priority);
        into.versions.retain(|v| v.name != name);
        into.versions.push(Version { group, name, resources: Vec::new(), backend: Some(backend) });
    }
    for group in &mut groups {
        group.versions.sort_by(|a, b| {
            b.priority().cmp(&a.priority()).then_with(|| rank_of_version(&b.name).cmp(&rank_of_version(&a.name)))
        });
    }
    // Core has a place of its own; the group of the APIServices themselves is told first.
    let rank = |group: &Group| match group.name.as_str() {
        "" => 0,
        "apiregistration.k8s.io" => 1,
        _ => 2,
    };
    groups.sort_by(|a, b| rank(a).cmp(&rank(b)).then(b.priority.cmp(&a.priority)).then_with(|| a.name.cmp(&b.name)));
    groups
}

/// Stable versions before betas before alphas, higher numbers first, other names last and by themselves in order.
fn rank_of_version(name: &str) -> (u8, u64, u64, std::cmp::Reverse<&str>) {
    let parsed = name.strip_prefix('v').and_then(|rest| {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (major, stage) = rest.split_at(digits);
        let major: u64 = major.parse().ok()?;
        if stage.is_empty() {
            return Some((3, major, 0));
        }
        let beta = stage.strip_prefix("beta").map(|n| (2, n));
        let (level, minor) = beta.or_else(|| stage.strip_prefix("alpha").map(|n| (1, n)))?;
        Some((level, major, minor.parse().ok()?))
    });
    match parsed {
        Some((level, major, minor)) => (level, major, minor, std::cmp::Reverse("")),
        None => (0, 0, 0, std::cmp::Reverse(name)),
    }
}

impl Version {
    /// Among the versions of a group: what this server serves goes by its name.
    fn priority(&self) -> i64 {
        const OWN: i64 = 100;
        self.backend.as_ref().map_or(OWN, |backend| backend.version_priority)
    }

    pub(super) fn group_version(&self) -> String {
        if self.group.is_empty() { self.name.clone() } else { format!("{}/{}", self.group, self.name) }
    }
}

/// `/api`.
pub(super) fn versions(call: &Call) -> Value {
    let host = call.header(http::header::HOST).or_else(|| call.parts.uri.authority().map(http::uri::Authority::as_str));
    let address = call.server.inner().config.external_address.clone();
    let address = address.unwrap_or_else(|| host.unwrap_or_default().to_owned());
    Value::from([
        ("kind", "APIVersions".into()),
        ("versions", vec![Value::from("v1")].into()),
        (
            "serverAddressByClientCIDRs",
            vec![Value::from([("clientCIDR", "0.0.0.0/0".into()), ("serverAddress", address.into())])].into(),
        ),
    ])
}

/// `/apis`.
pub(super) fn group_list(groups: &[Group]) -> Value {
    let named = groups.iter().filter(|g| !g.name.is_empty()).map(|g| group(g, false));
    Value::from([
        ("kind", "APIGroupList".into()),
        ("apiVersion", "v1".into()),
        ("groups", named.collect::<Vec<_>>().into()),
    ])
}

/// `/apis/GROUP`; with kind and version when it stands alone.
pub(super) fn group(group: &Group, alone: bool) -> Value {
    let version =
        |v: &Version| Value::from([("groupVersion", v.group_version().into()), ("version", v.name.as_str().into())]);
    let mut map = Map::new();
    if alone {
        map.insert("kind", "APIGroup");
        map.insert("apiVersion", "v1");
    }
    map.insert("name", group.name.as_str());
    map.insert("versions", group.versions.iter().map(version).collect::<Vec<_>>());
    if let Some(preferred) = group.versions.first() {
        map.insert("preferredVersion", version(preferred));
    }
    map.into()
}

/// `/api/v1` and `/apis/GROUP/VERSION`.
pub(super) fn resource_list(version: &Version) -> Value {
    let mut resources = Vec::new();
    for def in &version.resources {
        resources.push(resource(def));
        let mut subresources: Vec<_> = def.subresources.iter().collect();
        subresources.sort_by(|a, b| a.name.cmp(&b.name));
        for sub in subresources {
            let mut map = Map::new();
            map.insert("name", format!("{}/{}", def.gvr.resource, sub.name));
            map.insert("singularName", "");
            map.insert("namespaced", def.is_namespaced());
            if sub.gvk.group != def.gvr.group || sub.gvk.version != def.gvr.version {
                if !sub.gvk.group.is_empty() {
                    map.insert("group", sub.gvk.group.clone());
                }
                map.insert("version", sub.gvk.version.clone());
            }
            map.insert("kind", sub.gvk.kind.clone());
            map.insert("verbs", strings(&sub.verbs));
            resources.push(map.into());
        }
    }
    resources.sort_by(|a: &Value, b: &Value| a.str_at(&["name"]).cmp(b.str_at(&["name"])));
    let mut list = Value::from([
        ("kind", "APIResourceList".into()),
        ("groupVersion", version.group_version().into()),
        ("resources", resources.into()),
    ]);
    // Upstream's core group has always left it out.
    if !version.group.is_empty() {
        list.set(&["apiVersion"], "v1");
    }
    list
}

fn resource(def: &ResourceDef) -> Value {
    let mut map = Map::new();
    map.insert("name", def.gvr.resource.clone());
    map.insert("singularName", def.singular.as_str());
    map.insert("namespaced", def.is_namespaced());
    map.insert("kind", def.kind.as_str());
    map.insert("verbs", strings(&def.verbs));
    for (key, list) in [("shortNames", &def.short_names), ("categories", &def.categories)] {
        if !list.is_empty() {
            map.insert(key, strings(list));
        }
    }
    if !def.storage_version_hash.is_empty() {
        map.insert("storageVersionHash", def.storage_version_hash.as_str());
    }
    map.into()
}

pub(super) fn strings(list: &[String]) -> Vec<Value> {
    list.iter().map(|s| Value::from(s.as_str())).collect()
}
