//! Custom resources: what a definition makes of the server.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};

use crate::fixture::{Answer, Server, full, request, until};
use crate::outside::{Outside, Seen};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

fn definition(plural: &str, kind: &str, versions: Value, more: Value) -> String {
    let mut definition = json!({
        "metadata": { "name": format!("{plural}.shop.example.com") },
        "spec": {
            "group": "shop.example.com", "scope": "Namespaced",
            "names": { "plural": plural, "kind": kind },
            "versions": versions,
        },
    });
    for (key, value) in more.as_object().unwrap() {
        definition["spec"][key] = value.clone();
    }
    definition.to_string()
}

fn version(name: &str, storage: bool, properties: Value) -> Value {
    json!({ "name": name, "served": true, "storage": storage,
        "schema": { "openAPIV3Schema": { "type": "object", "properties": properties } } })
}

fn path(version: &str, rest: &str) -> String {
    format!("/apis/shop.example.com/{version}/namespaces/default/{rest}")
}

async fn define(server: &Server, definition: &str) {
    let created = server.create(DEFINITIONS, definition).await;
    established(server, created["metadata"]["name"].as_str().unwrap()).await;
}

async fn established(server: &Server, name: &str) {
    until("it is established", || async {
        let definition = server.get(&format!("{DEFINITIONS}/{name}")).await.json();
        let conditions = definition["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == "Established" && c["status"] == "True")
    })
    .await;
}

async fn put(server: &Server, path: &str, object: &Value) -> Answer {
    server.ask(Method::PUT, path, &[], object.to_string()).await
}

#[tokio::test]
async fn definitions_are_published_in_openapi() {
    let server = Server::start(&[]).await;
    let spec = json!({ "spec": { "type": "object", "description": "What is wanted", "properties": {
        "size": { "type": "integer", "minimum": 1 }, "free": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
    } } });
    let index = "/openapi/v3";
    let group_version = "apis/shop.example.com/v1";
    assert!(server.get(index).await.json()["paths"][group_version].is_null());
    define(&server, &definition("carts", "Cart", json!([version("v1", true, spec.clone())]), json!({}))).await;

    let url = server.get(index).await.json()["paths"][group_version]["serverRelativeURL"].as_str().unwrap().to_owned();
    let answer = server.get(&url).await;
    assert_eq!(answer.headers["cache-control"], "public, immutable");
    let document = answer.json();
    let schema = &document["components"]["schemas"]["com.example.shop.v1.Cart"];
    assert_eq!(schema["properties"]["spec"]["properties"]["size"], json!({ "type": "integer", "minimum": 1 }));
    assert_eq!(schema["properties"]["spec"]["properties"]["free"]["x-kubernetes-preserve-unknown-fields"], true);
    let create = &document["paths"]["/apis/shop.example.com/v1/namespaces/{namespace}/carts"]["post"];
    assert_eq!(create["operationId"], "createShopExampleComV1NamespacedCart");
    assert_eq!(create["x-kubernetes-group-version-kind"]["kind"], "Cart");
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        assert!(!schema.is_null(), "{name}");
    }

    let v2 = server.get("/openapi/v2").await.json();
    assert_eq!(
        v2["definitions"]["com.example.shop.v1.CartList"]["properties"]["items"]["items"]["$ref"],
        "#/definitions/com.example.shop.v1.Cart"
    );
    assert!(v2["definitions"]["io.k8s.api.core.v1.Pod"].is_object());
    assert!(v2["paths"]["/apis/shop.example.com/v1/carts"]["get"].is_object());
    assert!(v2["paths"]["/api/v1/pods"]["get"].is_object() && v2["swagger"] == "2.0");
    let protobuf = [("accept", "application/com.github.proto-openapi.spec.v2.v1.0+protobuf")];
    let v2 = server.ask(Method::GET, "/openapi/v2", &protobuf, "").await.body;
    let tells = |text: &str| v2.windows(text.len()).any(|w| w == text.as_bytes());
    assert!(tells("com.example.shop.v1.Cart") && tells("io.k8s.api.core.v1.Pod"));

    // A change of the schema is a new document, and nothing is left of what is gone.
    let name = format!("{DEFINITIONS}/carts.shop.example.com");
    let mut changed = server.get(&name).await.json();
    changed["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["size"]["minimum"] =
        2.into();
    assert_eq!(put(&server, &name, &changed).await.code, 200);
    until("the document is another", || async {
        let now = server.get(index).await.json()["paths"][group_version]["serverRelativeURL"].clone();
        now != url.as_str()
            && server.get(now.as_str().unwrap()).await.json()["components"]["schemas"]["com.example.shop.v1.Cart"]["properties"]["spec"]["properties"]["size"]["minimum"] == 2
    })
    .await;
    assert_eq!(server.ask(Method::DELETE, &name, &[], "").await.code, 200);
    until("it is gone", || async { server.get(index).await.json()["paths"][group_version].is_null() }).await;
    assert!(server.get("/openapi/v2").await.json()["definitions"]["com.example.shop.v1.Cart"].is_null());
}

#[tokio::test]
async fn scale_is_where_the_definition_says() {
    let server = Server::start(&[]).await;
    let spec = json!({
        "spec": { "type": "object", "properties": { "pool": { "type": "object", "properties": { "size": { "type": "integer" } } } } },
        "status": { "type": "object", "properties": { "size": { "type": "integer" }, "selector": { "type": "string" } } },
    });
    let mut v1 = version("v1", true, spec);
    v1["subresources"] = json!({ "status": {}, "scale": {
        "specReplicasPath": ".spec.pool.size", "statusReplicasPath": ".status.size", "labelSelectorPath": ".status.selector" } });
    define(&server, &definition("farms", "Farm", json!([v1]), json!({}))).await;
    let farm =
        r#"{"apiVersion":"shop.example.com/v1","kind":"Farm","metadata":{"name":"a"},"spec":{"pool":{"size":3}}}"#;
    server.create(&path("v1", "farms"), farm).await;
    let status = r#"{"status":{"size":2,"selector":"a=b"}}"#;
    let merge = [("content-type", "application/merge-patch+json")];
    server.ask(Method::PATCH, &path("v1", "farms/a/status"), &merge, status).await;
    let scale = server.get(&path("v1", "farms/a/scale")).await.json();
    assert_eq!(scale["spec"]["replicas"], 3);
    assert_eq!(scale["status"], json!({ "replicas": 2, "selector": "a=b" }));
    let scaled = server.ask(Method::PATCH, &path("v1", "farms/a/scale"), &merge, r#"{"spec":{"replicas":5}}"#).await;
    assert_eq!((scaled.code.as_u16(), &scaled.json()["spec"]["replicas"]), (200, &json!(5)));
    let farm = server.get(&path("v1", "farms/a")).await.json();
    assert_eq!((&farm["spec"]["pool"]["size"], &farm["metadata"]["generation"]), (&json!(5), &json!(2)));
    server
        .create(&path("v1", "farms"), r#"{"apiVersion":"shop.example.com/v1","kind":"Farm","metadata":{"name":"b"}}"#)
        .await;
    assert_eq!(
        server.get(&path("v1", "farms/b/scale")).await.error(),
        (500, "Internal error occurred: the spec replicas field \".spec.pool.size\" does not exist".to_owned())
    );
}

#[tokio::test]
async fn each_version_has_its_own_selectable_fields_and_warning() {
    let server = Server::start(&[]).await;
    let spec = json!({ "spec": { "type": "object", "properties": { "color": { "type": "string" }, "n": { "type": "integer" } } } });
    let (mut v1, mut v2) = (version("v1", false, spec.clone()), version("v2", true, spec));
    v1["deprecated"] = true.into();
    v1["selectableFields"] = json!([{ "jsonPath": ".spec.n" }]);
    v2["selectableFields"] = json!([{ "jsonPath": ".spec.color" }]);
    define(&server, &definition("shirts", "Shirt", json!([v1, v2]), json!({}))).await;
    for (name, color) in [("a", "red"), ("b", "blue")] {
        let shirt = json!({ "apiVersion": "shop.example.com/v2", "kind": "Shirt", "metadata": { "name": name }, "spec": { "color": color, "n": 1 } });
        server.create(&path("v2", "shirts"), &shirt.to_string()).await;
    }
    let names = |list: Answer| -> Vec<String> {
        list.json()["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| i["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(server.get(&path("v2", "shirts?fieldSelector=spec.color%3Dred")).await), ["a"]);
    let (code, why) = server.get(&path("v1", "shirts?fieldSelector=spec.color%3Dred")).await.error();
    assert_eq!((code, why.as_str()), (400, "field label not supported: spec.color"));
    let old = server.get(&path("v1", "shirts?fieldSelector=spec.n%3D1")).await;
    assert_eq!(old.headers["warning"], "299 - \"shop.example.com/v1 Shirt is deprecated\"");
    assert_eq!(names(old), ["a", "b"]);
    let mut watch = server
        .send(request(
            Method::GET,
            &path("v2", "shirts?watch=1&fieldSelector=spec.color%3Dblue&timeoutSeconds=20"),
            &[],
            full(""),
        ))
        .await;
    let event: Value = serde_json::from_slice(&next_frame(&mut watch).await).unwrap();
    assert_eq!((&event["type"], &event["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("b")));
}

async fn next_frame(response: &mut http::Response<hyper::body::Incoming>) -> bytes::Bytes {
    use http_body_util::BodyExt;
    let frame = tokio::time::timeout(Duration::from_secs(20), response.frame()).await.expect("an event comes");
    frame.unwrap().unwrap().into_data().unwrap()
}

/// Turns `host:port` of v1 into `host` and `port` of v2, and back.
fn converted(seen: &Seen) -> (u16, String) {
    let review = seen.json();
    let to = review["request"]["desiredAPIVersion"].as_str().unwrap().to_owned();
    let mut objects = review["request"]["objects"].as_array().unwrap().clone();
    let mut result = json!({ "status": "Success" });
    for object in &mut objects {
        object["apiVersion"] = to.clone().into();
        if object["metadata"]["name"] == "bad" {
            result = json!({ "status": "Failure", "message": "this one is bad" });
        }
        let spec = object["spec"].clone();
        object["spec"] = if to.ends_with("v2") && spec["address"].is_string() {
            let (host, port) = spec["address"].as_str().unwrap().split_once(':').unwrap();
            json!({ "host": host, "port": port })
        } else if to.ends_with("v1") && spec["host"].is_string() {
            json!({ "address": format!("{}:{}", spec["host"].as_str().unwrap(), spec["port"].as_str().unwrap()) })
        } else {
            spec
        };
    }
    let response = json!({ "uid": review["request"]["uid"], "result": result, "convertedObjects": objects });
    (
        200,
        json!({ "apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": response })
            .to_string(),
    )
}

fn shop(version: &str, name: &str, spec: Value) -> String {
    json!({ "apiVersion": format!("shop.example.com/{version}"), "kind": "Shop", "metadata": { "name": name }, "spec": spec }).to_string()
}

#[tokio::test]
async fn a_webhook_converts_between_versions() {
    let server = Server::start(&[]).await;
    let dir = tempfile::tempdir().unwrap();
    let outside = Outside::start(dir.path(), "converter", &[], None, converted).await;
    let strings = |fields: &[&str]| {
        let properties: serde_json::Map<_, _> =
            fields.iter().map(|f| ((*f).to_owned(), json!({ "type": "string" }))).collect();
        json!({ "spec": { "type": "object", "properties": properties } })
    };
    let versions = |storage: &str| {
        json!([
            version("v1", storage == "v1", strings(&["address"])),
            version("v2", storage == "v2", strings(&["host", "port"]))
        ])
    };
    let conversion = json!({ "conversion": { "strategy": "Webhook", "webhook": {
        "conversionReviewVersions": ["v1"],
        "clientConfig": { "url": outside.url("/convert"), "caBundle": outside.ca_bundle() } } } });
    define(&server, &definition("shops", "Shop", versions("v1"), conversion.clone())).await;

    let made = server.create(&path("v2", "shops"), &shop("v2", "a", json!({ "host": "h", "port": "1" }))).await;
    assert_eq!(
        (&made["apiVersion"], &made["spec"]),
        (&json!("shop.example.com/v2"), &json!({ "host": "h", "port": "1" }))
    );
    assert_eq!(server.get(&path("v1", "shops/a")).await.json()["spec"], json!({ "address": "h:1" }));
    let list = server.get(&path("v2", "shops")).await.json();
    assert_eq!((&list["kind"], &list["items"][0]["spec"]["host"]), (&json!("ShopList"), &json!("h")));

    let mut watch =
        server.send(request(Method::GET, &path("v2", "shops?watch=1&timeoutSeconds=20"), &[], full(""))).await;
    let event: Value = serde_json::from_slice(&next_frame(&mut watch).await).unwrap();
    assert_eq!(event["object"]["spec"], json!({ "host": "h", "port": "1" }));
    let merge = [("content-type", "application/merge-patch+json")];
    let patched = server.ask(Method::PATCH, &path("v2", "shops/a"), &merge, r#"{"spec":{"port":"2"}}"#).await;
    assert_eq!(patched.json()["spec"], json!({ "host": "h", "port": "2" }));
    assert_eq!(server.get(&path("v1", "shops/a")).await.json()["spec"], json!({ "address": "h:2" }));
    let event: Value = serde_json::from_slice(&next_frame(&mut watch).await).unwrap();
    assert_eq!((&event["type"], &event["object"]["spec"]["port"]), (&json!("MODIFIED"), &json!("2")));

    let refused = server.post(&path("v2", "shops"), &shop("v2", "bad", json!({ "host": "h", "port": "1" }))).await;
    assert_eq!(
        refused.error(),
        (500, "conversion webhook for shop.example.com/v2, Kind=Shop failed: this one is bad".to_owned())
    );

    // Together they are longer than what a webhook may answer.
    for i in 0..4 {
        let host = format!("{}:1", "h".repeat(1_000_000));
        server.create(&path("v1", "shops"), &shop("v1", &format!("large-{i}"), json!({ "address": host }))).await;
    }
    let list = server.get(&path("v2", "shops")).await;
    assert_eq!(list.code, 200, "{}", list.text());
    assert_eq!(list.json()["items"].as_array().map(Vec::len), Some(5));
    for i in 0..4 {
        server.ask(Method::DELETE, &path("v1", &format!("shops/large-{i}")), &[], "").await;
    }

    // What lies in the store in the old version is converted when the storage version changes.
    let name = format!("{DEFINITIONS}/shops.shop.example.com");
    let mut changed = server.get(&name).await.json();
    changed["spec"]["versions"] = versions("v2");
    let answer = put(&server, &name, &changed).await;
    assert_eq!(answer.json()["status"]["storedVersions"], json!(["v1", "v2"]), "{}", answer.text());
    until("the new storage version is served", || async {
        let calls = outside.seen().len();
        let (v1, v2) = (server.get(&path("v1", "shops/a")).await, server.get(&path("v2", "shops/a")).await);
        assert_eq!(v1.json()["spec"], json!({ "address": "h:2" }), "{}", v1.text());
        assert_eq!(v2.json()["spec"], json!({ "host": "h", "port": "2" }), "{}", v2.text());
        // Stored in v1 still: only the second needed the webhook. A write brings it into the new version.
        outside.seen().len() == calls + 1
    })
    .await;
    let current = server.get(&path("v2", "shops/a")).await.json();
    assert_eq!(put(&server, &path("v2", "shops/a"), &current).await.code, 200);
    let calls = outside.seen().len();
    assert_eq!(server.get(&path("v2", "shops/a")).await.json()["spec"], json!({ "host": "h", "port": "2" }));
    let list = server.get(&path("v2", "shops")).await.json();
    assert_eq!(list["items"][0]["spec"], json!({ "host": "h", "port": "2" }));
    let mut watch = server.send(request(Method::GET, &path("v2", "shops?watch=1"), &[], full(""))).await;
    let event: Value = serde_json::from_slice(&next_frame(&mut watch).await).unwrap();
    assert_eq!(event["object"]["spec"], json!({ "host": "h", "port": "2" }));
    assert_eq!(outside.seen().len(), calls, "it is stored in v2 now");
}

#[tokio::test]
async fn a_converter_that_is_away_is_named() {
    let server = Server::start(&[]).await;
    let conversion = json!({ "conversion": { "strategy": "Webhook", "webhook": {
        "conversionReviewVersions": ["v1"], "clientConfig": { "service": { "namespace": "default", "name": "none" } } } } });
    let both = json!([version("v1", true, json!({})), version("v2", false, json!({}))]);
    define(&server, &definition("shops", "Shop", both, conversion)).await;
    assert_eq!(
        server.post(&path("v2", "shops"), &shop("v2", "a", json!({}))).await.error(),
        (
            500,
            "conversion webhook for shop.example.com/v2, Kind=Shop failed: Post \
             \"https://none.default.svc:443/?timeout=30s\": service \"none\" not found"
                .to_owned()
        )
    );
}

#[tokio::test]
async fn names_that_become_free_are_given_to_who_waits() {
    let server = Server::start(&[]).await;
    let first = definition("cups", "Cup", json!([version("v1", true, json!({}))]), json!({}));
    define(&server, &first).await;
    let second = json!([version("v1", true, json!({}))]);
    let second = definition(
        "mugs",
        "Mug",
        second,
        json!({ "names": { "plural": "mugs", "kind": "Mug", "shortNames": ["cup"] } }),
    );
    server.create(DEFINITIONS, &second).await;
    let condition = |name: &'static str| {
        let server = &server;
        async move {
            let definition = server.get(&format!("{DEFINITIONS}/mugs.shop.example.com")).await.json();
            let conditions = definition["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.iter().find(|c| c["type"] == name).map(|c| (c["status"].clone(), c["message"].clone()))
        }
    };
    until("the name is refused", || async {
        condition("NamesAccepted").await == Some((json!("False"), json!("\"cup\" is already in use")))
    })
    .await;
    server.ask(Method::DELETE, &format!("{DEFINITIONS}/cups.shop.example.com"), &[], "").await;
    until("the name is given", || async { condition("Established").await.is_some_and(|(status, _)| status == "True") })
        .await;
}

/// Resident memory, in MiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = status.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap();
    (pages * 4096) >> 20
}

/// Prints what a thousand definitions cost. A figure, not a test: `cargo test -- --ignored --nocapture thousand`.
#[tokio::test]
#[ignore = "a measurement"]
async fn a_thousand_definitions() {
    let server = Server::start(&[]).await;
    let properties: serde_json::Map<String, Value> = (0..100)
        .map(|i| {
            (
                format!("field{i}"),
                json!({ "type": "string", "description": "What this field is for, said at some length" }),
            )
        })
        .collect();
    let spec = json!({ "spec": { "type": "object", "properties": properties } });
    let install = async || {
        for i in 0..1000 {
            let (plural, kind) = (format!("things{i}"), format!("Thing{i}"));
            let one = definition(&plural, &kind, json!([version("v1", true, spec.clone())]), json!({}));
            server.create(DEFINITIONS, &one).await;
        }
        until("the last is served", || async { server.get(&path("v1", "things999")).await.code == 200 }).await;
    };
    let (before, started) = (resident(), Instant::now());
    install().await;
    let (took, after) = (started.elapsed(), resident());
    let bytes = server.get("/openapi/v2").await.body.len() >> 20;
    eprintln!(
        "1000 definitions: {took:?}, {before} MiB before, {after} MiB after, {bytes} MiB of OpenAPI v2, then {} MiB",
        resident()
    );
    for _ in 0..2 {
        server.ask(Method::DELETE, DEFINITIONS, &[], "").await;
        until("all are gone", || async {
            server.get(&format!("{DEFINITIONS}?limit=1")).await.json()["items"] == json!([])
        })
        .await;
        let gone = resident();
        install().await;
        eprintln!("deleted: {gone} MiB, installed again: {} MiB", resident());
    }
}
