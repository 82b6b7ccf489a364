//! The OpenAPI documents, made of the tables of resources and of types when somebody first asks, and kept compressed.
//!
//! Version 3 has a document for each group and version, found through an index that names each one's hash, so that
//! clients may keep them for ever; version 2 has one document of everything.

mod custom;
mod descriptions;
mod gnostic;
mod paths;
mod schemas;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use api::ResourceDef;
use apimachinery::meta::GroupVersion;
use bytes::Bytes;
use component_base::version;
use http::{HeaderValue, Response, StatusCode, header};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};

use crate::aggregation::Aggregator;
use crate::body::Body;
use crate::gzip::Gzip;
use crate::handlers::{Call, negotiation};
use crate::resources::{Resource, Resources};
use paths::{Paths, group_camel, group_tag, tag_of, upper_first};

/// A query parameter: name and type.
type Parameter = (&'static str, &'static str);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    V2,
    V3,
}

/// The documents that somebody asked for.
pub(crate) struct OpenApi {
    /// One answers at a time: making documents takes much memory, and nobody who waits takes a thread.
    turn: Arc<tokio::sync::Mutex<()>>,
    resources: Arc<Resources>,
    aggregator: Arc<Aggregator>,
    /// With the generation of the resources that it was made of.
    v2: Mutex<Option<(u64, Arc<Document>)>>,
    /// Of the built-in groups.
    v3: OnceLock<BTreeMap<String, Arc<Document>>>,
    /// Of groups that definitions add, by path and by what they were made of.
    v3_custom: Mutex<HashMap<String, (String, Arc<Document>)>>,
}

/// The custom resources of one group and version.
struct CustomVersion {
    gv: GroupVersion,
    resources: Vec<Resource>,
}

struct Document {
    dialect: Dialect,
    gzip: Bytes,
    /// The same in protobuf, once somebody has asked for that.
    protobuf: OnceLock<Bytes>,
    /// Of the JSON, in hexadecimal capitals.
    hash: String,
    /// Of version 2: what it tells of.
    told: Told,
}

/// What a document of version 2 tells of: the resources here, and what other servers say of theirs.
#[derive(Clone, Default)]
struct Told {
    builtin: Vec<&'static ResourceDef>,
    custom: Vec<Resource>,
    remote: Vec<Bytes>,
}

/// The encodings of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Representation {
    Json,
    Protobuf,
}

fn compressed(bytes: &[u8]) -> Bytes {
    let mut gzip = Gzip::new();
    gzip.write(bytes);
    gzip.finish()
}

fn expanded(gzip: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut reader = flate2::read::GzDecoder::new(gzip);
    // We compressed it ourselves.
    let _ = std::io::Read::read_to_end(&mut reader, &mut out);
    out
}

impl Document {
    fn of(value: &Value, dialect: Dialect) -> Self {
        let text = value.to_string();
        let hash = hexadecimal(&Sha512::digest(text.as_bytes()));
        Document { dialect, gzip: compressed(text.as_bytes()), protobuf: OnceLock::new(), hash, told: Told::default() }
    }

    /// Compressed.
    fn bytes(&self, representation: Representation) -> &Bytes {
        match representation {
            Representation::Json => &self.gzip,
            Representation::Protobuf if self.dialect == Dialect::V2 => {
                self.protobuf.get_or_init(|| V2::new(&self.told).protobuf())
            }
            Representation::Protobuf => self.protobuf.get_or_init(|| {
                let document = serde_json::from_slice(&expanded(&self.gzip)).unwrap_or_default();
                compressed(&gnostic::encode(&document, self.dialect))
            }),
        }
    }
}

/// Answers a path below `/openapi`; `None` where upstream has nothing either. Making a document takes long: no thread that
/// serves others does it.
pub(crate) async fn handle(call: Call) -> Option<Response<Body>> {
    let turn = Arc::clone(&call.server.inner().openapi.turn).lock_owned().await;
    let answering = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let path = call.info.path.trim_matches('/');
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        call.server.inner().openapi.answer(&call, &segments)
    });
    answering.await.unwrap_or_else(|error| {
        tracing::error!(%error, "an OpenAPI document cannot be made");
        Some(bare(StatusCode::INTERNAL_SERVER_ERROR))
    })
}

impl OpenApi {
    pub(crate) fn new(resources: Arc<Resources>, aggregator: Arc<Aggregator>) -> Self {
        OpenApi {
            turn: Arc::default(),
            resources,
            aggregator,
            v2: Mutex::default(),
            v3: OnceLock::new(),
            v3_custom: Mutex::default(),
        }
    }

    fn v2(&self) -> Arc<Document> {
        let mut v2 = self.v2.lock();
        let generation = self.resources.generation();
        let backends = self.aggregator.backends();
        let remote: Vec<Bytes> = backends.iter().filter_map(|backend| backend.remote.openapi_v2.clone()).collect();
        match &*v2 {
            Some((of, document)) if *of == generation && document.told.remote == remote => Arc::clone(document),
            _ => {
                let told = Told { builtin: self.resources.builtin().to_vec(), custom: self.resources.custom(), remote };
                let document = Arc::new(V2::new(&told).json());
                *v2 = Some((generation, Arc::clone(&document)));
                document
            }
        }
    }

    /// The custom resources, by group and version.
    fn custom(&self) -> Vec<CustomVersion> {
        let mut versions: Vec<CustomVersion> = Vec::new();
        for resource in self.resources.custom() {
            let gv = resource.def.gvr.group_version();
            match versions.last_mut().filter(|last| last.gv == gv) {
                Some(last) => last.resources.push(resource),
                None => versions.push(CustomVersion { gv, resources: vec![resource] }),
            }
        }
        versions
    }

    fn find_v3(&self, path: &str) -> Option<Arc<Document>> {
        if let Some(document) = self.v3().get(path) {
            return Some(Arc::clone(document));
        }
        let version = self.custom().into_iter().find(|version| version.path() == path)?;
        let mut kept = self.v3_custom.lock();
        let hash = version.hash();
        if let Some((of, document)) = kept.get(path)
            && *of == hash
        {
            return Some(Arc::clone(document));
        }
        let document = Arc::new(version.document(&hash));
        kept.insert(path.to_owned(), (hash, Arc::clone(&document)));
        Some(document)
    }

    fn answer(&self, call: &Call, segments: &[&str]) -> Option<Response<Body>> {
        match segments {
            ["v2"] => Some(respond(call, &self.v2())),
            ["v3"] => Some(self.index()),
            ["v3", path @ ..] => {
                let document = self.find_v3(&path.join("/"));
                Some(document.map_or_else(|| bare(StatusCode::NOT_FOUND), |document| respond(call, &document)))
            }
            _ => None,
        }
    }

    fn v3(&self) -> &BTreeMap<String, Arc<Document>> {
        self.v3.get_or_init(|| {
            let mut documents = BTreeMap::new();
            // One after the other: a tree is many times as large as what is kept of it.
            write_v3(self.resources.builtin(), &mut |path, document| {
                documents.insert(path, Arc::new(Document::of(&document, Dialect::V3)));
            });
            documents
        })
    }

    fn index(&self) -> Response<Body> {
        let builtin = self.v3().iter().map(|(path, document)| (path.clone(), document.hash.clone()));
        let custom: Vec<(String, String)> = self.custom().iter().map(|v| (v.path(), v.hash())).collect();
        self.v3_custom.lock().retain(|path, _| custom.iter().any(|(served, _)| served == path));
        let remote = self.aggregator.backends().into_iter().filter_map(|backend| {
            let hash = backend.remote.openapi.clone()?;
            Some((format!("apis/{}/{}", backend.gv.group, backend.gv.version), hash))
        });
        let paths: Map<String, Value> = builtin
            .chain(custom)
            .chain(remote)
            .map(|(path, hash)| {
                let url = format!("/openapi/v3/{path}?hash={hash}");
                (path, json!({ "serverRelativeURL": url }))
            })
            .collect();
        let mut response = Response::new(Body::from(json!({ "paths": paths }).to_string().into_bytes()));
        // Upstream's index has no type of its own either.
        let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        response
    }
}

impl CustomVersion {
    /// In the index.
    fn path(&self) -> String {
        format!("apis/{}/{}", self.gv.group, self.gv.version)
    }

    /// Changes when the document does; told without making it.
    fn hash(&self) -> String {
        let mut digest = Sha512::new();
        digest.update(version::GIT_VERSION);
        for custom in self.resources.iter().filter_map(|resource| resource.custom.as_ref()) {
            digest.update(&custom.stamp);
            digest.update([0]);
        }
        hexadecimal(&digest.finalize())
    }

    fn document(&self, hash: &str) -> Document {
        let document = v3_of(&|paths| write_custom(paths, &self.gv, &self.resources));
        Document { hash: hash.to_owned(), ..Document::of(&document, Dialect::V3) }
    }
}

fn write_custom(paths: &mut Paths, gv: &GroupVersion, resources: &[Resource]) {
    let id = format!("get{}{}APIResources", group_camel(&gv.group), upper_first(&gv.version));
    paths.discovery(&format!("{}/", root_of(gv)), &id, &tag_of(gv), "APIResourceList");
    resources.iter().for_each(|resource| paths.custom(resource));
}

fn hexadecimal(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02X}")).collect()
}

fn respond(call: &Call, document: &Document) -> Response<Body> {
    let Some(representation) = representation(call.accept(), document.dialect) else {
        return bare(StatusCode::NOT_ACCEPTABLE);
    };
    let gzip = document.bytes(representation);
    let headers = &call.parts.headers;
    let etag = format!("\"{}\"", document.hash);
    let has = |name, wanted: &str| {
        headers.get(name).and_then(|v| v.to_str().ok()).is_some_and(|v| v.split(',').any(|v| v.trim() == wanted))
    };
    let mut response = if has(header::IF_NONE_MATCH, &etag) {
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else if has(header::ACCEPT_ENCODING, "gzip") {
        let mut response = Response::new(Body::from(gzip.clone()));
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
    } else {
        Response::new(Body::from(expanded(gzip)))
    };
    let headers = response.headers_mut();
    let media_type = representation.media_type(document.dialect);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding, Accept"));
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        headers.insert(header::ETAG, etag);
    }
    if let Some(asked) = call.query.get("hash") {
        // The hash is part of the address: what is found here never changes.
        let kept = if asked == document.hash { "public, immutable" } else { "no-cache, private" };
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(kept));
    }
    response
}

/// A code and nothing else, as upstream's handler of these documents answers.
fn bare(code: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = code;
    response
}

impl Representation {
    fn media_type(self, dialect: Dialect) -> &'static str {
        match (self, dialect) {
            (Representation::Json, _) => "application/json",
            (Representation::Protobuf, Dialect::V2) => "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
            (Representation::Protobuf, Dialect::V3) => "application/com.github.proto-openapi.spec.v3.v1.0+protobuf",
        }
    }
}

/// What the client likes best of what there is. Clients still name protobuf with an `@`, which no media type may have.
fn representation(accept: Option<&str>, dialect: Dialect) -> Option<Representation> {
    let Some(accept) = accept.filter(|accept| !accept.trim().is_empty()) else { return Some(Representation::Json) };
    let protobuf = Representation::Protobuf.media_type(dialect).trim_start_matches("application/");
    negotiation::clauses(accept).iter().find_map(|clause| match (clause.kind, clause.subtype) {
        ("application", "json" | "*") | ("*", "*") => Some(Representation::Json),
        ("application", other) if other.replace('@', ".") == protobuf => Some(Representation::Protobuf),
        _ => None,
    })
}

/// An operation as every dialect has it.
struct Written<'a> {
    tag: &'a str,
    id: &'a str,
    query: &'a [Parameter],
    /// Its schema, and the media types that it may come as.
    body: Option<(Value, &'a [&'a str])>,
    codes: &'a [u16],
    answer: &'a Value,
    produces: &'a [&'a str],
}

impl Dialect {
    fn reference(self, name: &str) -> Value {
        match self {
            Dialect::V2 => json!({ "$ref": format!("#/definitions/{name}") }),
            Dialect::V3 => json!({ "$ref": format!("#/components/schemas/{name}") }),
        }
    }

    fn parameter(self, name: &str, place: &str, ty: &str) -> Value {
        let mut parameter = json!({ "name": name, "in": place, "uniqueItems": true });
        if place == "path" {
            parameter["required"] = true.into();
        }
        match self {
            Dialect::V2 => parameter["type"] = ty.into(),
            Dialect::V3 => {
                parameter["schema"] = json!({ "type": ty, "uniqueItems": true });
                parameter.as_object_mut().map(|parameter| parameter.remove("uniqueItems"));
            }
        }
        parameter
    }

    fn operation(self, written: &Written<'_>) -> Value {
        let mut parameters: Vec<Value> =
            written.query.iter().map(|(name, ty)| self.parameter(name, "query", ty)).collect();
        let mut out = json!({ "tags": [written.tag], "operationId": written.id });
        let v3_content = |types: &[&str], schema: &Value| {
            types.iter().map(|ty| ((*ty).to_owned(), json!({ "schema": schema }))).collect::<Map<_, _>>()
        };
        let mut responses = Map::new();
        for code in written.codes {
            let description = StatusCode::from_u16(*code).ok().and_then(|code| code.canonical_reason());
            let mut response = json!({ "description": description.unwrap_or_default() });
            match self {
                Dialect::V2 => response["schema"] = written.answer.clone(),
                Dialect::V3 => response["content"] = v3_content(written.produces, written.answer).into(),
            }
            responses.insert(code.to_string(), response);
        }
        responses.insert("401".to_owned(), json!({ "description": "Unauthorized" }));
        if let Some((schema, consumes)) = &written.body {
            match self {
                Dialect::V2 => {
                    parameters.push(json!({ "in": "body", "name": "body", "required": true, "schema": schema }));
                }
                Dialect::V3 => {
                    out["requestBody"] = json!({ "content": v3_content(consumes, schema), "required": true });
                }
            }
        }
        if self == Dialect::V2 {
            let consumes = written.body.as_ref().map_or(&["*/*"][..], |(_, consumes)| consumes);
            out["consumes"] = consumes.into();
            out["produces"] = written.produces.into();
            out["schemes"] = json!(["https"]);
        }
        if !parameters.is_empty() {
            out["parameters"] = parameters.into();
        }
        out["responses"] = responses.into();
        out
    }
}

/// `/api/v1`, `/apis/apps/v1`.
fn root_of(gv: &GroupVersion) -> String {
    if gv.group.is_empty() { format!("/api/{}", gv.version) } else { format!("/apis/{}/{}", gv.group, gv.version) }
}

fn group_versions(builtin: &[&ResourceDef]) -> BTreeMap<String, Vec<GroupVersion>> {
    let mut all: BTreeMap<String, Vec<GroupVersion>> = BTreeMap::new();
    for def in builtin {
        let gv = def.gvr.group_version();
        let versions = all.entry(gv.group.to_string()).or_default();
        if !versions.contains(&gv) {
            versions.push(gv);
        }
    }
    all
}

/// The document of one version of a group.
fn write_version(paths: &mut Paths, gv: &GroupVersion, builtin: &[&ResourceDef]) {
    let id = format!("get{}{}APIResources", group_camel(&gv.group), upper_first(&gv.version));
    paths.discovery(&format!("{}/", root_of(gv)), &id, &tag_of(gv), "APIResourceList");
    for def in builtin.iter().filter(|def| def.gvr.group_version() == *gv) {
        paths.resource(def);
    }
}

fn write_group(paths: &mut Paths, group: &str) {
    let id = format!("get{}APIGroup", group_camel(group));
    paths.discovery(&format!("/apis/{group}/"), &id, &group_tag(group), "APIGroup");
}

/// A document that belongs to no version: its path in the index, and how it is written.
type Extra = (&'static str, fn(&mut Paths));

const EXTRAS: [Extra; 5] = [
    (".well-known/openid-configuration", |paths| {
        let (id, answer) = ("getServiceAccountIssuerOpenIDConfiguration", json!({ "type": "string" }));
        paths.document("/.well-known/openid-configuration/", id, "WellKnown", &answer, &["application/json"]);
    }),
    ("api", |paths| paths.discovery("/api/", "getCoreAPIVersions", "core", "APIVersions")),
    ("apis", |paths| paths.discovery("/apis/", "getAPIVersions", "apis", "APIGroupList")),
    ("openid/v1/jwks", |paths| {
        let (id, answer) = ("getServiceAccountIssuerOpenIDKeyset", json!({ "type": "string" }));
        paths.document("/openid/v1/jwks/", id, "openid", &answer, &["application/jwk-set+json"]);
    }),
    ("version", |paths| {
        let answer = json!({ "type": "object" });
        paths.document("/version/", "getCodeVersion", "version", &answer, &["application/json"]);
    }),
];

/// Hands over each document of version 3 with its path in the index.
fn write_v3(builtin: &[&ResourceDef], take: &mut dyn FnMut(String, Value)) {
    let mut add = |path: &str, write: &dyn Fn(&mut Paths)| {
        take(path.to_owned(), v3_of(write));
    };
    for (path, write) in EXTRAS {
        add(path, &write);
    }
    for (group, versions) in group_versions(builtin) {
        if !group.is_empty() {
            add(&format!("apis/{group}"), &|paths| write_group(paths, &group));
        }
        for gv in versions {
            add(root_of(&gv).trim_start_matches('/'), &|paths| write_version(paths, &gv, builtin));
        }
    }
}

fn v3_of(write: &dyn Fn(&mut Paths)) -> Value {
    let mut paths = Paths::new(Dialect::V3);
    write(&mut paths);
    let (paths, schemas) = paths.finish();
    json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": version::GIT_VERSION },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "BearerToken": bearer_token() },
        },
        "security": [{ "BearerToken": [] }],
    })
}

/// Version 2 of everything: built-in, custom, and of other servers. There may be a thousand definitions, whose trees would take many times the
/// memory of the text: so each is written by itself, and its tree forgotten.
struct V2<'a> {
    paths: Map<String, Value>,
    definitions: Map<String, Value>,
    told: &'a Told,
}

impl<'a> V2<'a> {
    fn new(told: &'a Told) -> Self {
        let builtin = &told.builtin;
        let mut paths = Paths::new(Dialect::V2);
        for (_, write) in EXTRAS {
            write(&mut paths);
        }
        for (group, versions) in group_versions(builtin) {
            if !group.is_empty() {
                write_group(&mut paths, &group);
            }
            versions.iter().for_each(|gv| write_version(&mut paths, gv, builtin));
        }
        let (paths, definitions) = paths.finish();
        V2 { paths, definitions, told }
    }

    /// Paths and definitions that only other servers have. What both know is known here.
    fn of_others(&self) -> (Map<String, Value>, Map<String, Value>) {
        let (mut paths, mut definitions) = (Map::new(), Map::new());
        for part in &self.told.remote {
            let mut part: Value = serde_json::from_slice(part).unwrap_or_default();
            for (field, known, all) in
                [("paths", &self.paths, &mut paths), ("definitions", &self.definitions, &mut definitions)]
            {
                if let Value::Object(entries) = part[field].take() {
                    all.extend(entries.into_iter().filter(|(name, _)| !known.contains_key(name)));
                }
            }
        }
        (paths, definitions)
    }

    /// Paths and definitions that only a custom resource has.
    fn of_custom(&self, resource: &Resource) -> (Map<String, Value>, Map<String, Value>) {
        let mut paths = Paths::new(Dialect::V2);
        paths.custom(resource);
        let (paths, mut definitions) = paths.finish();
        definitions.retain(|name, _| !self.definitions.contains_key(name));
        (paths, definitions)
    }

    fn json(&self) -> Document {
        let others = self.of_others();
        let mut text = Text { gzip: Gzip::new(), hash: Sha512::new(), first: true };
        text.write("{\"swagger\":\"2.0\",\"info\":");
        text.write(&json!({ "title": "Kubernetes", "version": version::GIT_VERSION }).to_string());
        text.write(",\"definitions\":{");
        text.entries(&self.definitions);
        self.told.custom.iter().for_each(|resource| text.entries(&self.of_custom(resource).1));
        text.entries(&others.1);
        text.write("},\"paths\":{");
        text.first = true;
        text.entries(&self.paths);
        self.told.custom.iter().for_each(|resource| text.entries(&self.of_custom(resource).0));
        text.entries(&others.0);
        text.write("},\"securityDefinitions\":");
        text.write(&json!({ "BearerToken": bearer_token() }).to_string());
        text.write(",\"security\":[{\"BearerToken\":[]}]}");
        Document {
            dialect: Dialect::V2,
            hash: hexadecimal(&text.hash.finalize()),
            gzip: text.gzip.finish(),
            protobuf: OnceLock::new(),
            told: self.told.clone(),
        }
    }

    /// In protobuf, messages that follow each other are one: their lists are joined.
    fn protobuf(self) -> Bytes {
        let mut gzip = Gzip::new();
        let parts = self.told.custom.iter().map(|resource| self.of_custom(resource));
        for (paths, definitions) in parts.chain(std::iter::once_with(|| self.of_others())) {
            let part = json!({ "paths": paths, "definitions": definitions });
            gzip.write(&gnostic::encode(&part, Dialect::V2));
        }
        let whole = json!({
            "swagger": "2.0",
            "info": { "title": "Kubernetes", "version": version::GIT_VERSION },
            "paths": self.paths,
            "definitions": self.definitions,
            "securityDefinitions": { "BearerToken": bearer_token() },
            "security": [{ "BearerToken": [] }],
        });
        gzip.write(&gnostic::encode(&whole, Dialect::V2));
        gzip.finish()
    }
}

/// A text that is compressed while it is written.
struct Text {
    gzip: Gzip,
    hash: Sha512,
    /// No entry of the present object has been written.
    first: bool,
}

impl Text {
    fn write(&mut self, text: &str) {
        self.gzip.write(text.as_bytes());
        self.hash.update(text);
    }

    fn entries(&mut self, entries: &Map<String, Value>) {
        for (name, value) in entries {
            if !std::mem::take(&mut self.first) {
                self.write(",");
            }
            self.write(&format!("{}:{value}", Value::from(name.as_str())));
        }
    }
}

fn bearer_token() -> Value {
    json!({ "type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime_config::RuntimeConfig;

    fn v3_documents() -> BTreeMap<String, Value> {
        let mut documents = BTreeMap::new();
        let resources = Resources::new(&RuntimeConfig::default());
        write_v3(resources.builtin(), &mut |path, document| drop(documents.insert(path, document)));
        documents
    }

    #[test]
    fn every_reference_leads_to_a_definition() {
        for (path, document) in v3_documents() {
            let schemas = document["components"]["schemas"].as_object().unwrap();
            let text = document.to_string();
            for name in text.split("\"#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()) {
                assert!(schemas.get(name).is_some_and(|schema| !schema.is_null()), "{path}: {name}");
            }
        }
    }

    #[test]
    fn operations_are_named_as_upstream_names_them() {
        let documents = v3_documents();
        let paths = &documents["api/v1"]["paths"];
        let id = |path: &str, method: &str| paths[path][method]["operationId"].as_str().unwrap_or_default().to_owned();
        assert_eq!(id("/api/v1/namespaces/{namespace}/pods", "post"), "createCoreV1NamespacedPod");
        assert_eq!(id("/api/v1/pods", "get"), "listCoreV1PodForAllNamespaces");
        assert_eq!(id("/api/v1/nodes/{name}/status", "patch"), "patchCoreV1NodeStatus");
        assert_eq!(id("/api/v1/watch/nodes", "get"), "watchCoreV1NodeList");
        let proxy = "/api/v1/namespaces/{namespace}/pods/{name}/proxy/{path}";
        assert_eq!(id(proxy, "get"), "connectCoreV1GetNamespacedPodProxyWithPath");
        assert!(paths["/api/v1/pods"]["post"].is_null());
    }

    #[test]
    fn types_and_fields_are_described() {
        let documents = v3_documents();
        let schemas = &documents["api/v1"]["components"]["schemas"];
        let text = |path: &str| schemas.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let pod = "/io.k8s.api.core.v1.Pod";
        assert!(text(&format!("{pod}/description")).starts_with("Pod is a collection of containers"));
        assert!(
            text(&format!("{pod}/properties/spec/description")).starts_with("Specification of the desired behavior")
        );
        assert!(text(&format!("{pod}/properties/kind/description")).starts_with("Kind is a string value"));
    }

    #[test]
    fn protobuf_is_known_by_two_names() {
        let of = |accept: &str, dialect| representation(Some(accept), dialect);
        let old = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
        assert_eq!(of(old, Dialect::V2), Some(Representation::Protobuf));
        assert_eq!(of(old, Dialect::V3), None);
        assert_eq!(
            of(&format!("{},application/json", old.replace('@', ".")), Dialect::V2),
            Some(Representation::Protobuf)
        );
        assert_eq!(of("text/html", Dialect::V3), None);
    }

    #[test]
    fn kinds_and_merge_keys_are_told() {
        let documents = v3_documents();
        let schemas = &documents["api/v1"]["components"]["schemas"];
        let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        let pod = &schemas["io.k8s.api.core.v1.Pod"];
        assert_eq!(pod["x-kubernetes-group-version-kind"], json!([{ "group": "", "kind": "Pod", "version": "v1" }]));
        assert_eq!(pod["properties"]["spec"]["default"], json!({}));
    }
}
