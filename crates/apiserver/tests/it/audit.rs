//! What is written down of requests.

use std::path::Path;

use http::Method;
use serde_json::{Value, json};

use crate::fixture::{Server, until};
use crate::outside::Outside;

const POLICY: &str = r#"{"apiVersion":"audit.k8s.io/v1","kind":"Policy","omitManagedFields":true,"rules":[
    {"level":"None","users":["system:apiserver"]},
    {"level":"Metadata","resources":[{"group":"","resources":["secrets"]}]},
    {"level":"RequestResponse","resources":[{"group":"","resources":["configmaps"]}],"omitStages":["RequestReceived"]},
    {"level":"Request","resources":[{"group":"","resources":["pods"]}]},
    {"level":"None"}]}"#;

/// The events of a file, as far as it has been written.
pub(crate) fn events(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn events_say_who_asked_for_what_and_what_became_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (policy, log) = (dir.path().join("policy.yaml"), dir.path().join("audit.log"));
    std::fs::write(&policy, POLICY).unwrap();
    let flags = [format!("--audit-policy-file={}", policy.display()), format!("--audit-log-path={}", log.display())];
    let server = Server::start(&[&flags[0], &flags[1]]).await;
    let base = "/api/v1/namespaces/default";
    let headers = [("audit-id", "id-1"), ("user-agent", "tester/1"), ("x-forwarded-for", "192.0.2.1")];
    let map = r#"{"metadata":{"name":"a"},"data":{"k":"v"}}"#;
    let created = server.ask(Method::POST, &format!("{base}/configmaps?fieldManager=t"), &headers, map).await;
    assert_eq!(created.headers["audit-id"], "id-1");
    let all = events(&log);
    assert_eq!(all.len(), 1, "{all:?}");
    let event = &all[0];
    assert_eq!((&event["kind"], &event["apiVersion"]), (&json!("Event"), &json!("audit.k8s.io/v1")));
    assert_eq!((&event["auditID"], &event["stage"]), (&json!("id-1"), &json!("ResponseComplete")));
    assert_eq!((&event["level"], &event["verb"]), (&json!("RequestResponse"), &json!("create")));
    assert_eq!(event["requestURI"], "/api/v1/namespaces/default/configmaps?fieldManager=t");
    assert_eq!(event["user"]["username"], "admin");
    assert_eq!((&event["userAgent"], &event["sourceIPs"]), (&json!("tester/1"), &json!(["192.0.2.1", "127.0.0.1"])));
    let reference = json!({ "resource": "configmaps", "namespace": "default", "name": "a", "apiVersion": "v1" });
    assert_eq!(event["objectRef"], reference);
    assert_eq!(event["responseStatus"], json!({ "metadata": {}, "code": 201 }));
    assert_eq!(event["requestObject"]["data"], json!({ "k": "v" }));
    assert_eq!(
        (&event["responseObject"]["data"], &event["responseObject"]["metadata"]["managedFields"]),
        (&json!({ "k": "v" }), &Value::Null)
    );
    assert_eq!(event["annotations"]["authorization.k8s.io/decision"], "allow");

    // A list is complete when it has been sent.
    server.get(&format!("{base}/configmaps")).await;
    until("the list is written down", || async { events(&log).len() == 2 }).await;
    assert_eq!(events(&log)[1]["responseObject"]["kind"], "ConfigMapList");

    // Nothing of a secret's contents; and a refusal with its reason.
    let alice = [("authorization", "Bearer alice-token")];
    let secret = r#"{"metadata":{"name":"s"},"data":{"k":"dg=="}}"#;
    server.post(&format!("{base}/secrets"), secret).await;
    server.ask(Method::GET, &format!("{base}/secrets/s"), &alice, "").await;
    let of_secrets: Vec<Value> = events(&log)[2..].to_vec();
    assert_eq!(
        of_secrets.iter().map(|e| e["stage"].as_str().unwrap()).collect::<Vec<_>>(),
        ["RequestReceived", "ResponseComplete", "RequestReceived", "ResponseComplete"]
    );
    assert!(of_secrets.iter().all(|e| e["requestObject"].is_null() && e["responseObject"].is_null()));
    assert_eq!(
        (&of_secrets[3]["responseStatus"]["code"], &of_secrets[3]["responseStatus"]["reason"]),
        (&json!(403), &json!("Forbidden"))
    );
    assert_eq!(of_secrets[3]["annotations"]["authorization.k8s.io/decision"], "forbid");

    // As whom somebody asks, and patches as they were sent.
    let before = events(&log).len();
    let patch = [("content-type", "application/merge-patch+json"), ("impersonate-user", "zoe")];
    server.ask(Method::PATCH, &format!("{base}/pods/none"), &patch, r#"{"metadata":{"labels":{"a":"b"}}}"#).await;
    let event = &events(&log)[before + 1];
    assert_eq!((&event["user"]["username"], &event["impersonatedUser"]["username"]), (&json!("admin"), &json!("zoe")));
    assert_eq!(event["responseStatus"]["code"], 403);

    // A watch starts, and ends.
    let before = events(&log).len();
    let watch = server.get(&format!("{base}/configmaps?watch=1&timeoutSeconds=1")).await;
    assert_eq!(watch.code, 200);
    until("the watch is over", || async { events(&log).len() == before + 2 }).await;
    let stages: Vec<Value> = events(&log)[before..].iter().map(|e| e["stage"].clone()).collect();
    assert_eq!(stages, [json!("ResponseStarted"), json!("ResponseComplete")]);

    // What is in no encoding of JSON is told in JSON.
    let protobuf = [("accept", "application/vnd.kubernetes.protobuf")];
    server.ask(Method::GET, &format!("{base}/configmaps/a"), &protobuf, "").await;
    assert_eq!(events(&log).last().unwrap()["responseObject"]["data"], json!({ "k": "v" }));
    let wrong = [("authorization", "Bearer wrong")];
    server.ask(Method::GET, &format!("{base}/secrets"), &wrong, "").await;
    let last = events(&log).pop().unwrap();
    assert_eq!((&last["stage"], &last["responseStatus"]["code"]), (&json!("ResponseStarted"), &json!(401)));
}

#[tokio::test]
async fn events_can_be_sent_away() {
    let dir = tempfile::tempdir().unwrap();
    let outside = Outside::start(dir.path(), "collector", &[], None, |_| (200, "{}".to_owned())).await;
    let policy = dir.path().join("policy.yaml");
    std::fs::write(&policy, POLICY).unwrap();
    let config = crate::identity::kubeconfig(dir.path(), &outside, "/events");
    let flags = [
        format!("--audit-policy-file={}", policy.display()),
        format!("--audit-webhook-config-file={config}"),
        "--audit-webhook-batch-max-wait=50ms".to_owned(),
    ];
    let server = Server::start(&flags.iter().map(String::as_str).collect::<Vec<_>>()).await;
    server.get("/api/v1/namespaces/default/secrets").await;
    let sent = || -> Vec<Value> {
        outside.seen().iter().flat_map(|seen| seen.json()["items"].as_array().cloned().unwrap_or_default()).collect()
    };
    until("both events are there", || async { sent().len() == 2 }).await;
    assert_eq!(outside.seen()[0].json()["kind"], "EventList");
    assert_eq!(sent()[1]["stage"], "ResponseComplete");
}

#[tokio::test]
async fn events_that_wait_are_written_before_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let outside = Outside::start(dir.path(), "collector", &[], None, |_| (200, "{}".to_owned())).await;
    let (policy, log) = (dir.path().join("policy.yaml"), dir.path().join("audit.log"));
    std::fs::write(&policy, POLICY).unwrap();
    let config = crate::identity::kubeconfig(dir.path(), &outside, "/events");
    let flags = [
        format!("--audit-policy-file={}", policy.display()),
        format!("--audit-log-path={}", log.display()),
        "--audit-log-mode=batch".to_owned(),
        format!("--audit-webhook-config-file={config}"),
        "--audit-webhook-batch-max-wait=1h".to_owned(),
    ];
    let server = Server::start(&flags.iter().map(String::as_str).collect::<Vec<_>>()).await;
    server.get("/api/v1/namespaces/default/secrets").await;
    server.end().await;
    assert_eq!(events(&log).len(), 2);
    let lists: Vec<Value> = outside.seen().iter().map(crate::outside::Seen::json).collect();
    assert_eq!(lists.iter().map(|list| list["items"].as_array().map_or(0, Vec::len)).sum::<usize>(), 2, "{lists:?}");
}

#[tokio::test]
async fn a_strict_log_lets_nothing_pass_that_it_cannot_write_down() {
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("policy.yaml");
    std::fs::write(&policy, POLICY).unwrap();
    let policy = format!("--audit-policy-file={}", policy.display());
    let ask = async |mode: &str| {
        // A file that takes nothing.
        let server = Server::start(&[&policy, "--audit-log-path=/dev/full", &format!("--audit-log-mode={mode}")]).await;
        server.get("/api/v1/namespaces/default/secrets").await
    };
    assert_eq!(ask("blocking").await.code, 200);
    let refused = (500, "Internal error occurred: failed to store audit event".to_owned());
    assert_eq!(ask("blocking-strict").await.error(), refused);
}
