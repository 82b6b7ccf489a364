//! Requests that are followed.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::Method;

use crate::fixture::Server;
use crate::grpc;

/// Of the specification.
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const TRACE: [u8; 16] =
    [0x0a, 0xf7, 0x65, 0x19, 0x16, 0xcd, 0x43, 0xdd, 0x84, 0x48, 0xeb, 0x21, 0x1c, 0x80, 0x31, 0x9c];

#[tokio::test]
async fn a_collector_is_told_of_a_request_and_of_what_it_asks_the_store() {
    let files = tempfile::tempdir().unwrap();
    let socket = files.path().join("otel.sock");
    let told = Arc::new(Mutex::new(Vec::new()));
    let telling = Arc::clone(&told);
    grpc::serve(&socket, move |method, spans| {
        assert_eq!(method, "Export");
        telling.lock().unwrap().extend_from_slice(spans);
        Bytes::new()
    });
    let file = files.path().join("tracing.yaml");
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: TracingConfiguration\nendpoint: unix://{}\n",
        socket.display()
    );
    std::fs::write(&file, text).unwrap();
    let server = Server::start(&[&format!("--tracing-config-file={}", file.display())]).await;
    let path = "/api/v1/namespaces/default/configmaps";
    let made = server.ask(Method::POST, path, &[("traceparent", PARENT)], r#"{"metadata":{"name":"followed"}}"#).await;
    assert_eq!(made.code, 201);
    server.create(path, r#"{"metadata":{"name":"alone"}}"#).await;
    // What is left is told at the end.
    server.end().await;
    let told = told.lock().unwrap();
    let has = |wanted: &[u8]| told.windows(wanted.len()).any(|window| window == wanted);
    assert!(has(&TRACE) && has(b"POST /api/v1/namespaces/{:namespace}/configmaps"));
    assert!(has(b"Create etcd3") && has(b"/registry/configmaps/default/followed"));
    assert!(!has(b"/registry/configmaps/default/alone"), "nobody follows this one");
}
