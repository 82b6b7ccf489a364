//! What is passed on to kubelets, over real TLS.

use http::{Method, StatusCode, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fixture::{Server, full, read, request};
use crate::kubelet::Kubelet;

const PODS: &str = "/api/v1/namespaces/default/pods";

/// A server with a node whose kubelet is the double, and these pods: `p` with the containers `a` and `b` on the node,
/// `single` with one, and `unbound` on no node.
async fn cluster(flags: &[&str]) -> (Server, Kubelet) {
    let dir = tempfile::tempdir().unwrap();
    let kubelet = Kubelet::start(dir.path()).await;
    let file = |name: &str| dir.path().join(name).display().to_string();
    let own = [
        format!("--kubelet-certificate-authority={}", file("kubelet.crt")),
        format!("--kubelet-client-certificate={}", file("kubelet-client.crt")),
        format!("--kubelet-client-key={}", file("kubelet-client.key")),
        "--kubelet-preferred-address-types=InternalIP,Hostname".to_owned(),
    ];
    let all: Vec<&str> = own.iter().map(String::as_str).chain(flags.iter().copied()).collect();
    let config = crate::fixture::config(dir.path(), &all);
    let server = Server::start_with(dir, config).await;
    let port = kubelet.address.port();
    server.create("/api/v1/nodes", r#"{"metadata":{"name":"n"}}"#).await;
    let status = format!(
        r#"{{"metadata":{{"name":"n"}},"status":{{"addresses":[{{"type":"Hostname","address":"n.invalid"}},
        {{"type":"InternalIP","address":"127.0.0.1"}}],"daemonEndpoints":{{"kubeletEndpoint":{{"Port":{port}}}}}}}}}"#
    );
    let written = server.ask(Method::PUT, "/api/v1/nodes/n/status", &[], status).await;
    assert_eq!(written.code, 200, "{}", written.text());
    server.create("/api/v1/namespaces/default/serviceaccounts", r#"{"metadata":{"name":"default"}}"#).await;
    for (name, node, containers) in [
        ("p", r#""nodeName":"n","#, &["a", "b"][..]),
        ("single", r#""nodeName":"n","#, &["waiting"]),
        ("unbound", "", &["a"]),
    ] {
        let containers: Vec<String> = containers.iter().map(|c| format!(r#"{{"name":"{c}","image":"i"}}"#)).collect();
        let pod =
            format!(r#"{{"metadata":{{"name":"{name}"}},"spec":{{{node}"containers":[{}]}}}}"#, containers.join(","));
        server.create(PODS, &pod).await;
    }
    (server, kubelet)
}

#[tokio::test]
async fn a_log_is_streamed_line_by_line() {
    let (server, kubelet) = cluster(&[]).await;
    let path = format!("{PODS}/p/log?container=a&follow=true&tailLines=5");
    let mut response = server.send(request(Method::GET, &path, &[], full(""))).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/plain");
    for line in ["one\n", "two\n"] {
        // The second line is written only after the first one has arrived.
        kubelet.write(line).await;
        assert_eq!(response.frame().await.unwrap().unwrap().into_data().unwrap(), line);
    }
    kubelet.end_log();
    assert!(response.frame().await.is_none());
    assert_eq!(kubelet.asked(), ["/containerLogs/default/p/a?follow=true&tailLines=5"]);
}

#[tokio::test]
async fn logs_that_cannot_be_are_refused_in_upstreams_words() {
    let (server, _kubelet) = cluster(&[]).await;
    let error = async |rest: &str| server.get(&format!("{PODS}/{rest}")).await.error();
    assert_eq!(
        error("p/log").await,
        (400, "a container name must be specified for pod p, choose one of: [a b]".to_owned())
    );
    assert_eq!(error("p/log?container=x").await, (400, "container x is not valid for pod p".to_owned()));
    assert_eq!(error("none/log").await, (404, "pods \"none\" not found".to_owned()));
    assert_eq!(
        error("single/log").await,
        (400, "container \"waiting\" in pod \"p\" is waiting to start: ContainerCreating".to_owned())
    );
    let unbound = server.get(&format!("{PODS}/unbound/log")).await;
    assert_eq!((unbound.code.as_u16(), unbound.body.len()), (200, 0));
}

#[tokio::test]
async fn exec_is_a_tunnel_to_the_kubelet() {
    let (server, kubelet) = cluster(&[]).await;
    let path = format!("{PODS}/p/exec?command=sh&command=-c&command=a%26b&container=b&stdin=true&stdout=1&tty=false");
    let headers =
        [("connection", "Upgrade"), ("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", "v4.channel.k8s.io")];
    let response = server.send(request(Method::POST, &path, &headers, full(""))).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()[header::UPGRADE], "SPDY/3.1");
    assert_eq!(response.headers()["x-stream-protocol-version"], "v4.channel.k8s.io");
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    for word in ["hello", "again"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        let mut echoed = [0; 5];
        stream.read_exact(&mut echoed).await.unwrap();
        assert_eq!(echoed, *word.to_uppercase().as_bytes());
    }
    assert_eq!(kubelet.asked(), ["/exec/default/p/b?input=1&output=1&command=sh&command=-c&command=a%26b"]);
    // The server's end is the tunnel's.
    server.end().await;
    assert!(matches!(stream.read(&mut [0; 1]).await, Ok(0) | Err(_)));
}

#[tokio::test]
async fn port_forward_names_its_ports() {
    let (server, kubelet) = cluster(&[]).await;
    let path = format!("{PODS}/p/portforward?ports=80,443");
    let headers = [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")];
    let response = server.send(request(Method::GET, &path, &headers, full(""))).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(kubelet.asked(), ["/portForward/default/p?port=80&port=443"]);
}

#[tokio::test]
async fn what_cannot_be_tunnelled_is_refused_in_upstreams_words() {
    let (server, kubelet) = cluster(&[]).await;
    let upgrade = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
    let post = async |rest: &str, headers: &[(&str, &str)]| {
        server.ask(Method::POST, &format!("{PODS}/{rest}"), headers, "").await.error()
    };
    assert_eq!(
        post("unbound/exec?command=sh", &upgrade).await,
        (400, "pod unbound does not have a host assigned".to_owned())
    );
    assert_eq!(
        post("p/attach", &upgrade).await,
        (400, "a container name must be specified for pod p, choose one of: [a b]".to_owned())
    );
    assert_eq!(post("p/exec?container=a&command=sh", &[]).await, (400, "Upgrade request required".to_owned()));
    assert_eq!(kubelet.asked(), [""; 0]);
}

#[tokio::test]
async fn a_websocket_needs_the_right_to_create() {
    let (server, kubelet) = cluster(&[]).await;
    let rules =
        r#"{"metadata":{"name":"reader"},"rules":[{"apiGroups":[""],"resources":["pods/exec"],"verbs":["get"]}]}"#;
    server.create("/apis/rbac.authorization.k8s.io/v1/clusterroles", rules).await;
    let binding = r#"{"metadata":{"name":"reader"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"reader"},
        "subjects":[{"kind":"User","name":"alice","apiGroup":"rbac.authorization.k8s.io"}]}"#;
    server.create("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding).await;
    let headers = [("connection", "Upgrade"), ("upgrade", "websocket"), ("authorization", "Bearer alice-token")];
    let path = format!("{PODS}/p/exec?container=a&command=sh");
    let answer = read(server.send(request(Method::GET, &path, &headers, full(""))).await).await;
    let (code, message) = answer.error();
    assert_eq!(code, 403);
    assert!(message.contains("cannot create resource \"pods/exec\""), "{message}");
    assert_eq!(kubelet.asked(), [""; 0]);
}

#[tokio::test]
async fn the_nodes_own_pages_are_passed_on() {
    let (server, kubelet) = cluster(&[]).await;
    let answer = server.get("/api/v1/nodes/n/proxy?x=1").await;
    assert_eq!(
        (answer.code.as_u16(), answer.headers[header::LOCATION].as_bytes()),
        (301, &b"/api/v1/nodes/n/proxy/?x=1"[..])
    );
    let answer = server.get("/api/v1/nodes/n/proxy/stats/summary?x=1").await;
    assert_eq!((answer.code.as_u16(), answer.text().as_str()), (400, "you must upgrade"));
    assert_eq!(kubelet.asked(), ["/stats/summary?x=1"]);
    // Not the kubelet's port: a loopback address is nobody's to reach through the server.
    assert_eq!(server.get("/api/v1/nodes/n:1/proxy/").await.error(), (400, "address not allowed".to_owned()));
}

#[tokio::test]
async fn a_kubelet_that_is_not_trusted_gets_nothing() {
    let other = tempfile::tempdir().unwrap();
    let foreign = component_base::tls::self_signed("other", &["127.0.0.1".to_owned()], Some(other.path()));
    assert!(foreign.is_ok());
    let ca = format!("--kubelet-certificate-authority={}", other.path().join("other.crt").display());
    let (server, kubelet) = cluster(&[&ca]).await;
    let (code, message) = server.get(&format!("{PODS}/p/log?container=a")).await.error();
    assert_eq!(code, 500);
    assert!(message.starts_with("error dialing backend: tls: "), "{message}");
    assert_eq!(kubelet.asked(), [""; 0]);
}
