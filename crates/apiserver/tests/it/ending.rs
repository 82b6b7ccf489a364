//! How a server ends.

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use tokio::net::TcpStream;

use crate::fixture::{Server, full, read, request};
use crate::limits::{slow_body, until_mutating};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn watches_end_cleanly_and_nobody_comes_in() {
    let server = Server::start(&[]).await;
    let address = server.address;
    server.create(CONFIG_MAPS, r#"{"metadata":{"name":"a"}}"#).await;
    let path = format!("{CONFIG_MAPS}?watch=true");
    let mut watch = server.send(request(Method::GET, &path, &[], full(""))).await;
    let first = watch.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(first.starts_with(br#"{"type":"ADDED""#));
    let idle = server.connect().await;
    server.end().await;
    assert!(watch.frame().await.is_none());
    assert!(idle.is_closed() || TcpStream::connect(address).await.is_err());
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn what_is_under_way_is_finished() {
    let server = Server::start(&[]).await;
    let (rest, body) = slow_body();
    let mut connection = server.connect().await;
    let write = tokio::spawn(connection.send_request(request(Method::POST, CONFIG_MAPS, &[], body)));
    until_mutating(&server, 1).await;
    let ending = tokio::spawn(server.end());
    rest.send(Bytes::from(r#"{"metadata":{"name":"late"}}"#)).await.unwrap();
    drop(rest);
    assert_eq!(read(write.await.unwrap().unwrap()).await.code, 201);
    let dir = ending.await.unwrap();
    // The acknowledged write is there after a restart on the same files.
    let config = crate::fixture::config(dir.path(), &[]);
    let server = Server::start_with(dir, config).await;
    assert_eq!(server.get(&format!("{CONFIG_MAPS}/late")).await.code, 200);
}

#[tokio::test]
async fn it_says_that_it_ends_before_it_does() {
    let server = Server::start(&["--shutdown-delay-duration=1s"]).await;
    let mut connection = server.connect().await;
    server.stop.cancel();
    let answer = connection.send_request(request(Method::GET, "/readyz", &[], full(""))).await.unwrap();
    let answer = read(answer).await;
    assert_eq!(answer.code, 500);
    assert!(answer.text().contains("[-]shutdown failed"), "{}", answer.text());
    // It is alive, and still serves.
    assert_eq!(server.get("/livez").await.code, 200);
    assert_eq!(server.get(CONFIG_MAPS).await.code, 200);
    server.end().await;
}
