//! The operations of each resource, as OpenAPI paths.

use api::{ResourceDef, Subresource};
use apimachinery::meta::{GroupVersion, Gvk};
use serde_json::{Map, Value, json};

use super::custom::CustomKind;
use super::schemas::Definitions;
use super::{Dialect, Parameter};
use crate::resources::Resource;

/// Writes paths, and collects the types that they name.
pub(super) struct Paths {
    dialect: Dialect,
    pub definitions: Definitions,
    paths: Map<String, Value>,
    /// What is written is of a custom resource.
    custom: bool,
}

const JSON: &str = "application/json";
/// What objects travel as.
const OBJECT_TYPES: [&str; 4] = [JSON, "application/yaml", "application/vnd.kubernetes.protobuf", "application/cbor"];
/// What custom resources travel as, and how they are patched.
const CUSTOM_TYPES: [&str; 2] = [JSON, "application/yaml"];
const CUSTOM_PATCH_TYPES: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];
const WATCH_TYPES: [&str; 3] =
    ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch", "application/cbor-seq"];
const PATCH_TYPES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

const LIST: &[Parameter] = &[
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const LOG: &[Parameter] = &[
    ("container", "string"),
    ("follow", "boolean"),
    ("insecureSkipTLSVerifyBackend", "boolean"),
    ("limitBytes", "integer"),
    ("previous", "boolean"),
    ("sinceSeconds", "integer"),
    ("stream", "string"),
    ("tailLines", "integer"),
    ("timestamps", "boolean"),
];
const WRITE: &[Parameter] = &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const PATCH: &[Parameter] =
    &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")];
const DELETE: &[Parameter] = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];

/// One operation before it is written.
struct Operation {
    /// `get`, `post` …
    method: &'static str,
    /// Upstream's `x-kubernetes-action`.
    action: &'static str,
    id: String,
    gvk: Gvk,
    query: &'static [Parameter],
    body: Option<Body>,
    /// What it answers; text where there is no type.
    answer: Option<Gvk>,
    /// The codes that it succeeds with.
    codes: &'static [u16],
    produces: &'static [&'static str],
}

enum Body {
    Object(Gvk),
    Patch,
    DeleteOptions,
}

/// Which parameters a path has.
#[derive(Clone, Copy)]
struct At {
    namespace: bool,
    name: bool,
    path: bool,
}

impl Paths {
    pub(super) fn new(dialect: Dialect) -> Self {
        Paths { dialect, definitions: Definitions::new(dialect), paths: Map::new(), custom: false }
    }

    pub(super) fn finish(self) -> (Map<String, Value>, Map<String, Value>) {
        (self.paths, self.definitions.finish())
    }

    /// A document of discovery: `/apis/`, `/apis/apps/`, `/apis/apps/v1/`.
    pub(super) fn discovery(&mut self, path: &str, id: &str, tag: &str, answer: &str) {
        let answer = self.definitions.of_meta(answer);
        self.document(path, id, tag, &answer, &OBJECT_TYPES[..3]);
    }

    /// A document that is no resource: the version, the keys of the token issuer.
    pub(super) fn document(&mut self, path: &str, id: &str, tag: &str, answer: &Value, produces: &[&str]) {
        let written = super::Written { tag, id, query: &[], body: None, codes: &[200], answer, produces };
        self.paths.insert(path.to_owned(), json!({ "get": self.dialect.operation(&written) }));
    }

    /// All paths of a custom resource.
    pub(super) fn custom(&mut self, resource: &Resource) {
        let Some(kind) = CustomKind::of(resource) else { return };
        self.definitions.add_custom(kind);
        self.custom = true;
        self.resource(resource.def);
        self.custom = false;
    }

    /// All paths of a resource.
    pub(super) fn resource(&mut self, def: &ResourceDef) {
        let names = Names::of(def);
        let (root, plural, namespace) =
            (super::root_of(&def.gvr.group_version()), &def.gvr.resource, def.is_namespaced());
        let scope = if namespace { "/namespaces/{namespace}" } else { "" };
        let collection = format!("{root}{scope}/{plural}");
        let item = format!("{collection}/{{name}}");
        let everywhere = At { namespace: false, name: false, path: false };
        let in_scope = At { namespace, ..everywhere };
        let one = At { name: true, ..in_scope };

        self.put(&collection, in_scope, collection_operations(def, &names), &[]);
        let verbs: Vec<&str> = def.verbs.iter().map(String::as_str).filter(|verb| *verb != "create").collect();
        self.put(&item, one, object_operations(&def.gvk(), &verbs, &names, ""), &[]);
        for subresource in &def.subresources {
            let path = format!("{item}/{}", subresource.name);
            let suffix = upper_first(&subresource.name);
            if matches!(subresource.name.as_str(), "proxy" | "exec" | "attach" | "portforward") {
                self.put(&path, one, connections(subresource, &names, &suffix), &[]);
                if subresource.name == "proxy" {
                    let rest = connections(subresource, &names, &format!("{suffix}WithPath"));
                    self.put(&format!("{path}/{{path}}"), At { path: true, ..one }, rest, &[]);
                }
                continue;
            }
            let verbs: Vec<&str> = subresource.verbs.iter().map(String::as_str).collect();
            self.put(&path, one, object_operations(&subresource.gvk, &verbs, &names, &suffix), &[]);
        }
        let can = |verb: &str| def.verbs.iter().any(|v| v == verb);
        let Names { camel, kind, scoped } = &names;
        if namespace && can("list") {
            let operation = list(def, format!("list{camel}{kind}ForAllNamespaces"));
            self.put(&format!("{root}/{plural}"), everywhere, vec![operation], &[]);
        }
        // Those of custom resources are not told of, though they are there.
        if can("watch") && !self.custom {
            if namespace {
                let operation = watch(def, "watchlist", format!("watch{camel}{kind}ListForAllNamespaces"));
                self.put(&format!("{root}/watch/{plural}"), everywhere, vec![operation], LIST);
            }
            let operation = watch(def, "watchlist", format!("watch{camel}{scoped}List"));
            self.put(&format!("{root}/watch{scope}/{plural}"), in_scope, vec![operation], LIST);
            let operation = watch(def, "watch", format!("watch{camel}{scoped}"));
            self.put(&format!("{root}/watch{scope}/{plural}/{{name}}"), one, vec![operation], LIST);
        }
    }

    /// Writes a path with its operations, if there are any.
    fn put(&mut self, path: &str, at: At, operations: Vec<Operation>, query: &[Parameter]) {
        if operations.is_empty() {
            return;
        }
        let mut item = Map::new();
        for operation in operations {
            item.insert(operation.method.to_owned(), self.written(&operation));
        }
        let in_path = [(at.name, "name"), (at.namespace, "namespace"), (at.path, "path")];
        let set =
            in_path.iter().filter(|(set, _)| *set).map(|(_, name)| self.dialect.parameter(name, "path", "string"));
        let shared = query.iter().chain(&[("pretty", "string")]);
        let shared = shared.map(|(name, ty)| self.dialect.parameter(name, "query", ty));
        item.insert("parameters".to_owned(), set.chain(shared).collect::<Vec<_>>().into());
        self.paths.insert(path.to_owned(), item.into());
    }

    fn written(&mut self, operation: &Operation) -> Value {
        let custom = self.custom;
        let body = operation.body.as_ref().map(|body| match body {
            Body::Object(gvk) if custom => (self.definitions.of_kind(gvk), &CUSTOM_TYPES[..]),
            Body::Object(gvk) => (self.definitions.of_kind(gvk), &["*/*"][..]),
            Body::Patch if custom => (self.definitions.of_meta("Patch"), &CUSTOM_PATCH_TYPES[..]),
            Body::Patch => (self.definitions.of_meta("Patch"), &PATCH_TYPES[..]),
            Body::DeleteOptions => (self.definitions.of_meta("DeleteOptions"), &["*/*"][..]),
        });
        let answer = match &operation.answer {
            Some(gvk) => self.definitions.of_kind(gvk),
            None => json!({ "type": "string" }),
        };
        let Gvk { group, version, kind } = &operation.gvk;
        let tag = tag_of(&operation.gvk.group_version());
        let mut out = self.dialect.operation(&super::Written {
            tag: &tag,
            id: &operation.id,
            query: operation.query,
            body,
            codes: operation.codes,
            answer: &answer,
            produces: if custom { &CUSTOM_TYPES } else { operation.produces },
        });
        out["x-kubernetes-action"] = operation.action.into();
        out["x-kubernetes-group-version-kind"] =
            json!({ "group": group.as_str(), "kind": kind.as_str(), "version": version.as_str() });
        out
    }
}

fn collection_operations(def: &ResourceDef, names: &Names) -> Vec<Operation> {
    let Names { camel, scoped, .. } = names;
    let gvk = def.gvk();
    let operation = |verb: &String| match verb.as_str() {
        "list" => Some(list(def, format!("list{camel}{scoped}"))),
        "create" => Some(Operation {
            method: "post",
            action: "post",
            id: format!("create{camel}{scoped}"),
            gvk: gvk.clone(),
            query: WRITE,
            body: Some(Body::Object(gvk.clone())),
            answer: Some(gvk.clone()),
            codes: &[200, 201, 202],
            produces: &OBJECT_TYPES,
        }),
        "deletecollection" => Some(Operation {
            method: "delete",
            action: "deletecollection",
            id: format!("delete{camel}Collection{scoped}"),
            gvk: gvk.clone(),
            query: DELETE,
            body: Some(Body::DeleteOptions),
            answer: Some(meta_gvk("Status")),
            codes: &[200],
            produces: &OBJECT_TYPES,
        }),
        _ => None,
    };
    def.verbs.iter().filter_map(operation).collect()
}

/// What can be done with one object, or with a part of it.
fn object_operations(gvk: &Gvk, verbs: &[&str], names: &Names, suffix: &str) -> Vec<Operation> {
    let Names { camel, scoped, .. } = names;
    let own = || Some(gvk.clone());
    let operation = |verb: &&str| {
        let (method, word, query, body, answer, codes): (_, _, &'static [Parameter], _, _, &'static [u16]) = match *verb
        {
            "get" if suffix == "Log" => ("get", "read", LOG, None, None, &[200]),
            "get" => ("get", "read", &[], None, own(), &[200]),
            "update" => ("put", "replace", WRITE, own().map(Body::Object), own(), &[200, 201]),
            "patch" => ("patch", "patch", PATCH, Some(Body::Patch), own(), &[200, 201]),
            "create" => ("post", "create", WRITE, own().map(Body::Object), own(), &[200, 201, 202]),
            "delete" => ("delete", "delete", DELETE, Some(Body::DeleteOptions), Some(meta_gvk("Status")), &[200, 202]),
            _ => return None,
        };
        let id = format!("{word}{camel}{scoped}{suffix}");
        let gvk = gvk.clone();
        Some(Operation { method, action: method, id, gvk, query, body, answer, codes, produces: &OBJECT_TYPES })
    };
    verbs.iter().filter_map(operation).collect()
}

fn connections(subresource: &Subresource, names: &Names, suffix: &str) -> Vec<Operation> {
    let Names { camel, scoped, .. } = names;
    let methods: &[&'static str] = if subresource.name == "proxy" {
        &["delete", "get", "head", "options", "patch", "post", "put"]
    } else {
        &["get", "post"]
    };
    let operation = |method: &&'static str| Operation {
        method,
        action: "connect",
        id: format!("connect{camel}{}{scoped}{suffix}", upper_first(method)),
        gvk: subresource.gvk.clone(),
        query: &[],
        body: None,
        answer: None,
        codes: &[200],
        produces: &["*/*"],
    };
    methods.iter().map(operation).collect()
}

fn watch(def: &ResourceDef, action: &'static str, id: String) -> Operation {
    let (gvk, answer) = (def.gvk(), Some(meta_gvk("WatchEvent")));
    Operation { method: "get", action, id, gvk, query: &[], body: None, answer, codes: &[200], produces: &WATCH_TYPES }
}

fn list(def: &ResourceDef, id: String) -> Operation {
    let gvk = def.gvk();
    Operation {
        method: "get",
        action: "list",
        id,
        answer: Some(Gvk { kind: def.list_kind.as_str().into(), ..gvk.clone() }),
        gvk,
        query: LIST,
        body: None,
        codes: &[200],
        produces: &OBJECT_TYPES,
    }
}

fn meta_gvk(kind: &str) -> Gvk {
    Gvk { group: "".into(), version: "v1".into(), kind: kind.into() }
}

/// The parts that the names of operations are made of.
struct Names {
    /// `CoreV1`, `RbacAuthorizationV1`.
    camel: String,
    kind: String,
    /// `NamespacedPod`, `Node`.
    scoped: String,
}

impl Names {
    fn of(def: &ResourceDef) -> Self {
        let camel = format!("{}{}", group_camel(&def.gvr.group), upper_first(&def.gvr.version));
        let scope = if def.is_namespaced() { "Namespaced" } else { "" };
        Names { camel, kind: def.kind.clone(), scoped: format!("{scope}{}", def.kind) }
    }
}

/// `Core`, `Apps`, `RbacAuthorization`: without the domain that all of them share.
pub(super) fn group_camel(group: &str) -> String {
    if group.is_empty() {
        return "Core".to_owned();
    }
    group.trim_end_matches(".k8s.io").split(['.', '-']).map(upper_first).collect()
}

/// `core_v1`, `rbacAuthorization_v1`.
pub(super) fn tag_of(gv: &GroupVersion) -> String {
    format!("{}_{}", group_tag(&gv.group), gv.version)
}

pub(super) fn group_tag(group: &str) -> String {
    let camel = group_camel(group);
    let mut chars = camel.chars();
    chars.next().map(|first| first.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

pub(super) fn upper_first(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}
