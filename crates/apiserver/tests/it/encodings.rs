//! Encodings other than JSON, in both directions.

use apimachinery::codec::{Options, cbor, protobuf};
use apimachinery::meta::Gvk;
use apimachinery::schema::{Schema, TypeRef};
use http::Method;
use serde_json::{Value, json};

use crate::fixture::Server;

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const CBOR: &str = "application/cbor";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

fn config_map() -> &'static TypeRef {
    Schema::builtin().kind(&Gvk::new("", "v1", "ConfigMap")).unwrap()
}

fn encoded(object: &Value) -> Vec<u8> {
    cbor::encode(&serde_json::from_value(object.clone()).unwrap(), config_map())
}

fn decoded(bytes: &[u8]) -> Value {
    let value = cbor::decode(bytes, config_map(), Options::default()).unwrap().value;
    serde_json::to_value(&value).unwrap()
}

#[tokio::test]
async fn cbor_is_served_where_it_is_switched_on() {
    let server = Server::start(&["--feature-gates=CBORServingAndStorage=true"]).await;
    let object = json!({"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"},"data":{"a":"1"}});
    let headers = [("content-type", CBOR), ("accept", CBOR)];
    let made = server.ask(Method::POST, CONFIG_MAPS, &headers, encoded(&object)).await;
    assert_eq!((made.code.as_u16(), made.headers["content-type"].to_str().unwrap()), (201, CBOR));
    let made = decoded(&made.body);
    assert_eq!((&made["data"], &made["metadata"]["namespace"]), (&json!({"a":"1"}), &json!("default")));
    assert_eq!(server.get(&format!("{CONFIG_MAPS}/c")).await.json(), made, "the same in JSON");

    let applied = json!({"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"},"data":{"b":"2"}});
    let path = format!("{CONFIG_MAPS}/c?fieldManager=m");
    let headers = [("content-type", "application/apply-patch+cbor"), ("accept", CBOR)];
    let applied = server.ask(Method::PATCH, &path, &headers, encoded(&applied)).await;
    assert_eq!(decoded(&applied.body)["data"], json!({"a":"1","b":"2"}));

    let path = format!("{CONFIG_MAPS}?watch=true&timeoutSeconds=1&fieldSelector=metadata.name%3Dc");
    let events = server.ask(Method::GET, &path, &[("accept", CBOR)], "").await;
    assert_eq!(events.headers["content-type"], "application/cbor-seq");
    let event = cbor::parse(&events.body).unwrap();
    assert_eq!((event.str_at(&["type"]), event.str_at(&["object", "data", "b"])), ("ADDED", "2"));
}

#[tokio::test]
async fn without_its_gate_cbor_is_no_encoding() {
    let server = Server::start(&[]).await;
    let answer = server.ask(Method::GET, CONFIG_MAPS, &[("accept", CBOR)], "").await;
    assert_eq!(answer.code, 406);
    let answer = server.ask(Method::POST, CONFIG_MAPS, &[("content-type", CBOR)], "x").await;
    assert_eq!(answer.code, 415);
}

/// Lists in protobuf are put together from messages that are kept: each list shows what is true when it is asked for.
#[tokio::test]
async fn lists_in_protobuf_say_what_lists_in_json_say() {
    let server = Server::start(&[]).await;
    let list = Schema::builtin().kind(&Gvk::new("", "v1", "ConfigMapList")).unwrap();
    let agree = async || {
        let protobuf = server.ask(Method::GET, CONFIG_MAPS, &[("accept", PROTOBUF)], "").await;
        assert_eq!((protobuf.code.as_u16(), protobuf.headers["content-type"].to_str().unwrap()), (200, PROTOBUF));
        let value = protobuf::decode(&protobuf.body, list).unwrap();
        let json = server.get(CONFIG_MAPS).await.json();
        assert_eq!(serde_json::to_value(&value["metadata"]).unwrap(), json["metadata"]);
        assert_eq!(serde_json::to_value(value["items"].items()).unwrap(), json["items"]);
        json["items"].as_array().unwrap().len()
    };
    assert_eq!(agree().await, 0);
    for name in ["a", "b", "c"] {
        let long = "x".repeat(200_000);
        server.create(CONFIG_MAPS, &json!({"metadata":{"name":name},"data":{"a":long}}).to_string()).await;
    }
    assert_eq!(agree().await, 3);
    let merge = [("content-type", "application/merge-patch+json")];
    let changed = server.ask(Method::PATCH, &format!("{CONFIG_MAPS}/b"), &merge, r#"{"data":{"a":"short"}}"#).await;
    assert_eq!(changed.code, 200);
    server.ask(Method::DELETE, &format!("{CONFIG_MAPS}/c"), &[], "").await;
    assert_eq!(agree().await, 2);
}
