//! Requests that nobody can make sense of.

use bytes::Bytes;
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fixture::Server;

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn a_body_that_is_too_large_is_not_read_to_its_end() {
    let server = Server::start(&[]).await;
    let answer = server.ask(Method::POST, CONFIG_MAPS, &[], vec![b' '; (3 << 20) + 1]).await;
    assert_eq!(answer.error(), (413, "Request entity too large: limit is 3145728".to_owned()));
    assert_eq!(answer.json()["reason"], "RequestEntityTooLarge");
}

#[tokio::test]
async fn broken_bodies_are_bad_requests() {
    let server = Server::start(&[]).await;
    let post = async |media_type: &str, body: &'static str| {
        let answer = server.ask(Method::POST, CONFIG_MAPS, &[("content-type", media_type)], body).await;
        let (code, message) = answer.error();
        assert_eq!(answer.json()["kind"], "Status");
        (code, message)
    };
    for (media_type, body, why) in [
        ("application/json", r#"{"metadata":{"name":"#, "unexpected end of JSON input"),
        ("application/json", "{]", "invalid character ']'"),
        ("application/yaml", "a: [1", "yaml"),
        ("application/vnd.kubernetes.protobuf", "k8s\u{0}\u{7}", ""),
        ("application/json", r#"{"data":{"a":1}}"#, "cannot unmarshal number into Go struct field"),
    ] {
        let (code, message) = post(media_type, body).await;
        assert_eq!(code, 400, "{body}: {message}");
        assert!(message.contains(why), "{body}: {message}");
    }
    let deep = "[".repeat(20_000);
    let answer = server.ask(Method::POST, CONFIG_MAPS, &[], format!(r#"{{"data":{deep}"#)).await;
    assert_eq!(answer.code, 400, "{}", answer.text());
    // Each alias holds the one before it twice: a few bytes that would be gigabytes.
    let bomb: String = (1..40).map(|i| format!("a{i}: &a{i} [*a{}, *a{}]\n", i - 1, i - 1)).collect();
    let headers = [("content-type", "application/yaml")];
    let answer = server.ask(Method::POST, CONFIG_MAPS, &headers, format!("a0: &a0 [x]\n{bomb}")).await;
    assert_eq!(answer.code, 400, "{}", answer.text());
}

#[tokio::test]
async fn unknown_media_types_are_refused_with_the_known_ones() {
    let server = Server::start(&[]).await;
    let answer = server.ask(Method::POST, CONFIG_MAPS, &[("content-type", "text/plain")], "{}").await;
    let (code, message) = answer.error();
    assert_eq!(code, 415);
    assert!(message.contains("accepted media types include: application/json"), "{message}");
    let answer = server.ask(Method::GET, CONFIG_MAPS, &[("accept", "text/html")], "").await;
    assert_eq!(answer.code, 406);
    let patch = [("content-type", "application/json")];
    let answer = server.ask(Method::PATCH, &format!("{CONFIG_MAPS}/x"), &patch, "{}").await;
    assert_eq!(answer.code, 415, "{}", answer.text());
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let server = Server::start(&[]).await;
    let mut stream = server.open().await;
    let head = format!("GET /version HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "x".repeat(1 << 20));
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut line = [0; 12];
    stream.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"HTTP/1.1 431");
}

#[tokio::test]
async fn a_refused_body_does_not_cost_the_connection() {
    let server = Server::start(&[]).await;
    let mut stream = server.open().await;
    let body = "x".repeat(100_000);
    // The body comes only after the refusal could have been sent.
    let head = format!(
        "POST {CONFIG_MAPS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer nobody\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    stream.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).await.unwrap();
    let codes: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(codes, ["401", "200"]);
}

#[tokio::test]
async fn bytes_that_are_no_tls_or_no_http_harm_nobody() {
    let server = Server::start(&[]).await;
    let mut plain = tokio::net::TcpStream::connect(server.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    // An alert and the end, or the end at once.
    let _ = plain.read_to_end(&mut rest).await;
    let mut stream = server.open().await;
    stream.write_all(b"\x00\x01\x02\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert_eq!(server.get("/livez").await.body, Bytes::from("ok"));
}
