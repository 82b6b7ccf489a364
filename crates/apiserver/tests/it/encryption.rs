//! Values in the store, encrypted.

use std::path::Path;

use base64::Engine;
use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixture::{Server, config, until};
use crate::kms::Kms;

const SECRETS: &str = "/api/v1/namespaces/default/secrets";

fn key(name: &str, byte: u8) -> Value {
    json!({ "name": name, "secret": base64::engine::general_purpose::STANDARD.encode([byte; 32]) })
}

fn configuration(providers: Value) -> String {
    json!({ "apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration",
        "resources": [{ "resources": ["secrets"], "providers": providers }] })
    .to_string()
}

async fn start(dir: TempDir, file: &Path, reload: bool) -> Server {
    let flags = [
        format!("--encryption-provider-config={}", file.display()),
        format!("--encryption-provider-config-automatic-reload={reload}"),
    ];
    let config = config(dir.path(), &[&flags[0], &flags[1]]);
    Server::start_with(dir, config).await
}

/// Whether any file of the store has that text.
fn stored(dir: &Path, text: &str) -> bool {
    let mut dirs = vec![dir.join("store")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if std::fs::read(&path).unwrap_or_default().windows(text.len()).any(|w| w == text.as_bytes()) {
                return true;
            }
        }
    }
    false
}

/// A secret whose contents can be found in the store.
fn secret(name: &str) -> String {
    json!({ "metadata": { "name": name, "annotations": { "mark": format!("mark-of-{name}") } } }).to_string()
}

#[tokio::test]
async fn secrets_are_kept_encrypted_and_keys_can_be_changed() {
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("encryption.yaml");
    let (k1, k2) = (key("k1", 1), key("k2", 2));
    std::fs::write(&file, configuration(json!([{ "identity": {} }]))).unwrap();
    let server = start(tempfile::tempdir().unwrap(), &file, false).await;
    server.create(SECRETS, &secret("plain")).await;
    server.create("/api/v1/namespaces/default/configmaps", &secret("map")).await;
    let dir = server.end().await;
    assert!(stored(dir.path(), "mark-of-plain"));

    std::fs::write(&file, configuration(json!([{ "secretbox": { "keys": [k1] } }, { "identity": {} }]))).unwrap();
    let server = start(dir, &file, false).await;
    server.create(SECRETS, &secret("boxed")).await;
    let names = |list: Value| -> Vec<String> {
        let items = list["items"].as_array().into_iter().flatten();
        items.map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(server.get(SECRETS).await.json()), ["boxed", "plain"]);
    let put = async |server: &Server, name: &str| {
        let path = format!("{SECRETS}/{name}");
        let current = server.get(&path).await.json();
        let version = current["metadata"]["resourceVersion"].clone();
        let written = server.ask(Method::PUT, &path, &[], current.to_string()).await.json();
        written["metadata"]["resourceVersion"] != version
    };
    assert!(put(&server, "plain").await, "it is written anew though nothing else has changed");
    assert!(!put(&server, "plain").await, "and then left alone");
    let dir = server.end().await;
    assert!(!stored(dir.path(), "mark-of-boxed"));
    assert!(stored(dir.path(), "k8s:enc:secretbox:v1:k1:") && stored(dir.path(), "mark-of-map"));

    // Another provider, another key: both are read, all is written with the first.
    let both = json!([{ "aesgcm": { "keys": [k2] } }, { "secretbox": { "keys": [k1] } }]);
    std::fs::write(&file, configuration(both.clone())).unwrap();
    let server = start(dir, &file, true).await;
    assert_eq!(names(server.get(SECRETS).await.json()), ["boxed", "plain"]);
    assert!(put(&server, "boxed").await);
    let replace = |providers: Value| {
        let new = file.with_extension("new");
        std::fs::write(&new, configuration(providers)).unwrap();
        std::fs::rename(&new, &file).unwrap();
    };
    replace(json!([{ "aesgcm": { "keys": [k2] } }]));
    until("the first key is gone", || async {
        server.get(&format!("{SECRETS}/plain?resourceVersion=")).await.code == 500
    })
    .await;
    let why = server.get(&format!("{SECRETS}/plain")).await.error().1;
    assert_eq!(
        why,
        "Internal error occurred: unable to transform key \"/registry/secrets/default/plain\": no matching prefix found"
    );
    assert_eq!(server.get(&format!("{SECRETS}/boxed")).await.code, 200);
    until("what cannot be read is missed", || async { server.get(SECRETS).await.code == 500 }).await;
    assert_eq!(server.get(SECRETS).await.error().1, why);
    assert_eq!(server.get(&format!("{SECRETS}?watch=true")).await.code, 500);
    assert_eq!(server.get("/api/v1/namespaces/other/secrets").await.code, 200);
    assert_eq!(server.get("/api/v1/configmaps").await.code, 200);
    replace(both);
    until("it can be read again", || async { names(server.get(SECRETS).await.json()) == ["boxed", "plain"] }).await;
}

#[tokio::test]
async fn a_service_outside_keeps_the_keys() {
    let files = tempfile::tempdir().unwrap();
    let kms = Kms::start(files.path());
    let file = files.path().join("encryption.yaml");
    let endpoint = format!("unix://{}", kms.socket.display());
    let provider = json!([{ "kms": { "apiVersion": "v2", "name": "vault", "endpoint": endpoint } }]);
    std::fs::write(&file, configuration(provider)).unwrap();
    let server = start(tempfile::tempdir().unwrap(), &file, false).await;
    assert_eq!(server.get("/readyz/kms-providers").await.text(), "ok");
    for name in ["a", "b"] {
        server.create(SECRETS, &secret(name)).await;
    }
    assert_eq!(kms.calls("Encrypt"), 1, "one seed serves many values");
    let dir = server.end().await;
    assert!(!stored(dir.path(), "mark-of-a") && stored(dir.path(), "k8s:enc:kms:v2:vault:"));

    kms.rotate("key-2");
    let server = start(dir, &file, false).await;
    assert_eq!(server.get(SECRETS).await.json()["items"].as_array().map(Vec::len), Some(2));
    assert_eq!(kms.calls("Decrypt"), 1, "and is asked for once");
    let path = format!("{SECRETS}/a");
    let current = server.get(&path).await.json();
    let written = server.ask(Method::PUT, &path, &[], current.to_string()).await.json();
    assert_ne!(
        written["metadata"]["resourceVersion"], current["metadata"]["resourceVersion"],
        "the service's key is another"
    );
}

#[tokio::test]
async fn a_service_that_contradicts_itself_is_not_relied_on() {
    let files = tempfile::tempdir().unwrap();
    let kms = Kms::start(files.path());
    kms.contradict("key-9");
    let file = files.path().join("encryption.yaml");
    let endpoint = format!("unix://{}", kms.socket.display());
    let provider = json!([{ "kms": { "apiVersion": "v2", "name": "vault", "endpoint": endpoint } }]);
    std::fs::write(&file, configuration(provider)).unwrap();
    let server = start(tempfile::tempdir().unwrap(), &file, false).await;
    let refused = server.post(SECRETS, &secret("a")).await;
    assert_eq!(refused.code, 500);
    assert!(refused.error().1.ends_with("are of different key IDs"), "{refused:?}");
    kms.rotate("key-2");
    server.create(SECRETS, &secret("a")).await;
    assert_eq!(server.get(SECRETS).await.json()["items"].as_array().map(Vec::len), Some(1));
}
