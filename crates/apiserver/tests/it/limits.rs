//! How much the server does at once, and for how long.

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::fixture::{Body, Server, read, request, until};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const ALICE: (&str, &str) = ("authorization", "Bearer alice-token");

/// A body that the test sends bit by bit; it ends when the sender is dropped.
pub(crate) fn slow_body() -> (mpsc::Sender<Bytes>, Body) {
    let (sender, parts) = mpsc::channel(1);
    let frames = ReceiverStream::new(parts).map(|part| Ok(Frame::data(part)));
    (sender, BodyExt::boxed(StreamBody::new(frames)))
}

/// Waits until so many requests that change something are being answered.
pub(crate) async fn until_mutating(server: &Server, wanted: usize) {
    let line = format!("apiserver_current_inflight_requests{{request_kind=\"mutating\"}} {wanted}");
    until("so many requests", async || server.get("/metrics").await.text().lines().any(|l| l == line)).await;
}

#[tokio::test]
async fn one_too_many_is_asked_to_come_back() {
    let flags = [
        "--enable-priority-and-fairness=false",
        "--max-mutating-requests-inflight=1",
        "--authorization-mode=AlwaysAllow",
    ];
    let server = Server::start(&flags).await;
    let (rest, body) = slow_body();
    let mut connection = server.connect().await;
    let first = tokio::spawn(connection.send_request(request(Method::POST, CONFIG_MAPS, &[ALICE], body)));
    until_mutating(&server, 1).await;
    let answer = server.ask(Method::POST, CONFIG_MAPS, &[ALICE], r#"{"metadata":{"name":"second"}}"#).await;
    assert_eq!(answer.code, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.headers[header::RETRY_AFTER], "1");
    assert_eq!(answer.text(), "Too many requests, please try again later.\n");
    // Reads have seats of their own, and the operator needs none.
    assert_eq!(server.ask(Method::GET, CONFIG_MAPS, &[ALICE], "").await.code, 200);
    assert_eq!(server.post(CONFIG_MAPS, r#"{"metadata":{"name":"operator"}}"#).await.code, 201);
    rest.send(Bytes::from(r#"{"metadata":{"name":"first"}}"#)).await.unwrap();
    drop(rest);
    assert_eq!(read(first.await.unwrap().unwrap()).await.code, 201);
}

#[tokio::test]
async fn with_fairness_the_next_one_waits() {
    let flags = ["--max-requests-inflight=1", "--max-mutating-requests-inflight=0", "--authorization-mode=AlwaysAllow"];
    let server = Server::start(&flags).await;
    let (rest, body) = slow_body();
    let mut connection = server.connect().await;
    let first = tokio::spawn(connection.send_request(request(Method::POST, CONFIG_MAPS, &[ALICE], body)));
    until_mutating(&server, 1).await;
    let second = server.ask(Method::POST, CONFIG_MAPS, &[ALICE], r#"{"metadata":{"name":"second"}}"#);
    let finish = async {
        rest.send(Bytes::from(r#"{"metadata":{"name":"first"}}"#)).await.unwrap();
        drop(rest);
        read(first.await.unwrap().unwrap()).await.code
    };
    let (second, first) = tokio::join!(second, finish);
    assert_eq!((first.as_u16(), second.code.as_u16()), (201, 201));
}

#[tokio::test]
async fn a_priority_level_has_seats_of_its_own() {
    let server = Server::start(&["--max-requests-inflight=10", "--authorization-mode=AlwaysAllow"]).await;
    let group = "/apis/flowcontrol.apiserver.k8s.io/v1";
    let level = r#"{"metadata":{"name":"tiny"},"spec":{"type":"Limited","limited":{"nominalConcurrencyShares":1,"lendablePercent":0,
        "borrowingLimitPercent":0,"limitResponse":{"type":"Reject"}}}}"#;
    let level = server.create(&format!("{group}/prioritylevelconfigurations"), level).await;
    let schema = r#"{"metadata":{"name":"alice"},"spec":{"matchingPrecedence":2,"priorityLevelConfiguration":{"name":"tiny"},"rules":[
        {"subjects":[{"kind":"User","user":{"name":"alice"}}],
        "resourceRules":[{"verbs":["*"],"apiGroups":["*"],"resources":["*"],"namespaces":["*"]}]}]}}"#;
    let schema = server.create(&format!("{group}/flowschemas"), schema).await;
    let uid = |object: &serde_json::Value| object["metadata"]["uid"].as_str().unwrap().to_owned();
    let sorted = |answer: &crate::fixture::Answer| {
        let header = |name: &str| answer.headers.get(name).map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
        (header("x-kubernetes-pf-flowschema-uid"), header("x-kubernetes-pf-prioritylevel-uid"))
    };
    let wanted = (uid(&schema), uid(&level));
    until("it is sorted so", || async { sorted(&server.ask(Method::GET, CONFIG_MAPS, &[ALICE], "").await) == wanted })
        .await;
    let (rest, body) = slow_body();
    let mut connection = server.connect().await;
    let first = tokio::spawn(connection.send_request(request(Method::POST, CONFIG_MAPS, &[ALICE], body)));
    until_mutating(&server, 1).await;
    let second = server.ask(Method::GET, CONFIG_MAPS, &[ALICE], "").await;
    assert_eq!((second.code, sorted(&second)), (StatusCode::TOO_MANY_REQUESTS, wanted));
    assert_eq!(server.get(CONFIG_MAPS).await.code, 200, "others have seats of their own");
    let metrics = server.get("/metrics").await.text();
    let rejected = "apiserver_flowcontrol_rejected_requests_total{priority_level=\"tiny\",flow_schema=\"alice\",reason=\"concurrency-limit\"} 1";
    assert!(metrics.contains(rejected), "{metrics}");
    rest.send(Bytes::from(r#"{"metadata":{"name":"first"}}"#)).await.unwrap();
    drop(rest);
    assert_eq!(read(first.await.unwrap().unwrap()).await.code, 201);
    until("the seat is free again", || async { server.ask(Method::GET, CONFIG_MAPS, &[ALICE], "").await.code == 200 })
        .await;
}

#[tokio::test]
async fn a_request_has_only_so_much_time() {
    let server = Server::start(&["--request-timeout=300ms"]).await;
    for path in [CONFIG_MAPS.to_owned(), format!("{CONFIG_MAPS}?timeout=50ms")] {
        let (_rest, body) = slow_body();
        let answer = read(server.send(request(Method::POST, &path, &[], body)).await).await;
        assert_eq!(answer.error(), (504, "Timeout: request did not complete within the allotted timeout".to_owned()));
        assert_eq!(answer.json()["reason"], "Timeout");
    }
    let answer = server.get(&format!("{CONFIG_MAPS}?timeout=soon")).await;
    assert_eq!(
        answer.error(),
        (400, "invalid timeout specified in the request URL - time: invalid duration \"soon\"".to_owned())
    );
    // A watch takes as long as it likes.
    let mut watch = server
        .send(request(
            Method::GET,
            &format!("{CONFIG_MAPS}?watch=true&timeoutSeconds=1"),
            &[],
            crate::fixture::full(""),
        ))
        .await;
    assert_eq!(watch.status(), 200);
    let first = watch.frame().await;
    assert!(first.is_none_or(|frame| frame.is_ok()));
}
