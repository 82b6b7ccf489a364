//! Groups that another server answers for.

use component_base::tls::self_signed;
use http::Method;
use serde_json::{Value, json};

use crate::fixture::{Server, config, until};
use crate::outside::{Outside, Seen};

const API_SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const NAME: &str = "v1alpha1.wardle.example.com";

/// What an extension server answers.
fn extension(seen: &Seen) -> (u16, String) {
    let path = seen.path.split('?').next().unwrap();
    let answer = match path {
        "/apis/wardle.example.com/v1alpha1" => json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "wardle.example.com/v1alpha1",
            "resources": [{ "name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get", "list"] }],
        }),
        "/openapi/v3" => json!({ "paths": { "apis/wardle.example.com/v1alpha1": {
            "serverRelativeURL": "/openapi/v3/apis/wardle.example.com/v1alpha1?hash=AB" } } }),
        "/openapi/v2" => json!({
            "paths": {
                "/apis/wardle.example.com/v1alpha1/flunders": { "get": { "schema": { "$ref": "#/definitions/Flunder" } } },
                "/apis/other.example.com/v1/things": {},
            },
            "definitions": { "Flunder": { "type": "object" }, "Thing": { "type": "object" } },
        }),
        "/openapi/v3/apis/wardle.example.com/v1alpha1" => json!({ "openapi": "3.0.0", "info": { "title": "wardle" } }),
        "/apis/wardle.example.com/v1alpha1/namespaces/default/flunders" => {
            json!({ "kind": "FlunderList", "asked": seen.path })
        }
        _ => return (404, "{}".to_owned()),
    };
    (200, answer.to_string())
}

async fn condition(server: &Server) -> (String, String, String) {
    let service = server.get(&format!("{API_SERVICES}/{NAME}")).await.json();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let condition = &service["status"]["conditions"][0];
    (text(&condition["status"]), text(&condition["reason"]), text(&condition["message"]))
}

async fn becomes(server: &Server, status: &str, reason: &str) {
    until(reason, || async {
        let (is, why, _) = condition(server).await;
        (is.as_str(), why.as_str()) == (status, reason)
    })
    .await;
}

fn api_service(port: u16, more: &Value) -> Value {
    let mut service = json!({ "metadata": { "name": NAME }, "spec": {
        "group": "wardle.example.com", "version": "v1alpha1", "groupPriorityMinimum": 2000, "versionPriority": 200,
        "service": { "namespace": "default", "name": "wardle", "port": port } } });
    for (key, value) in more.as_object().unwrap() {
        service["spec"][key] = value.clone();
    }
    service
}

#[tokio::test]
async fn a_group_can_be_answered_for_by_another_server() {
    let dir = tempfile::tempdir().unwrap();
    let proxy = dir.path().join("proxy.crt");
    self_signed("proxy", &["front-proxy".to_owned()], Some(dir.path())).unwrap();
    let outside = Outside::start(dir.path(), "wardle", &["wardle.default.svc"], Some(&proxy), extension).await;
    let files = |name: &str| dir.path().join(name).display().to_string();
    let (cert, key) = (
        format!("--proxy-client-cert-file={}", files("proxy.crt")),
        format!("--proxy-client-key-file={}", files("proxy.key")),
    );
    let own = tempfile::tempdir().unwrap();
    let (policy, log) = (own.path().join("policy.yaml"), own.path().join("audit.log"));
    let rules =
        json!([{ "level": "RequestResponse", "resources": [{ "group": "wardle.example.com" }] }, { "level": "None" }]);
    let everything = json!({ "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": rules });
    std::fs::write(&policy, everything.to_string()).unwrap();
    let audit = [format!("--audit-policy-file={}", policy.display()), format!("--audit-log-path={}", log.display())];
    let config = config(own.path(), &[&cert, &key, "--authorization-mode=AlwaysAllow", &audit[0], &audit[1]]);
    let server = Server::start_with(own, config).await;

    let port = outside.address.port();
    let service = api_service(port, &json!({ "caBundle": outside.ca_bundle() }));
    server.create(API_SERVICES, &service.to_string()).await;
    becomes(&server, "False", "ServiceNotFound").await;
    let flunders = "/apis/wardle.example.com/v1alpha1/namespaces/default/flunders";
    let away = server.get(flunders).await;
    assert_eq!((away.code.as_u16(), away.text().as_str()), (503, "service unavailable\n"));
    let services = "/api/v1/namespaces/default/services";
    let named =
        json!({ "metadata": { "name": "wardle" }, "spec": { "type": "ExternalName", "externalName": "localhost" } });
    server.create(services, &named.to_string()).await;
    becomes(&server, "True", "Passed").await;

    // Who asks is told, and cannot be claimed.
    let headers = [
        ("authorization", "Bearer alice-token"),
        ("x-remote-user", "admin"),
        ("x-remote-group", "system:masters"),
        ("x-remote-extra-scopes", "all"),
    ];
    let answer = server.ask(Method::GET, &format!("{flunders}?limit=1"), &headers, "").await;
    assert_eq!(
        (answer.code.as_u16(), answer.json()["asked"].as_str()),
        (200, Some(format!("{flunders}?limit=1").as_str()))
    );
    // What it answers is its own to write down.
    let complete = || crate::audit::events(&log).into_iter().find(|e| e["responseStatus"]["code"] == 200);
    until("the answer is written down", || async { complete().is_some() }).await;
    assert_eq!(complete().unwrap()["responseObject"], Value::Null);
    let seen = outside.seen().into_iter().find(|seen| seen.path.contains("/flunders")).unwrap();
    assert_eq!(seen.header("x-remote-user"), "alice");
    let groups: Vec<&str> = seen.headers.get_all("x-remote-group").iter().map(|v| v.to_str().unwrap()).collect();
    assert_eq!(groups, ["dev", "system:authenticated"]);
    assert_eq!((seen.header("x-remote-extra-scopes"), seen.header("authorization")), ("", ""));
    assert!(seen.proved, "the server proves itself");

    // It is told of where this server tells of itself.
    let groups = server.get("/apis").await.json();
    assert!(groups["groups"].as_array().unwrap().iter().any(|g| g["name"] == "wardle.example.com"), "{groups}");
    assert_eq!(server.get("/apis/wardle.example.com").await.json()["preferredVersion"]["version"], "v1alpha1");
    let resources = server.get("/apis/wardle.example.com/v1alpha1").await.json();
    assert_eq!(resources["resources"][0]["name"], "flunders");
    let accept = [("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")];
    let aggregated = server.ask(Method::GET, "/apis", &accept, "").await.json();
    let group = aggregated["items"].as_array().unwrap().iter().find(|g| g["metadata"]["name"] == "wardle.example.com");
    let version = &group.unwrap()["versions"][0];
    assert_eq!((&version["freshness"], &version["resources"][0]["resource"]), (&json!("Current"), &json!("flunders")));
    let index = server.get("/openapi/v3").await.json();
    let url = index["paths"]["apis/wardle.example.com/v1alpha1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    assert_eq!(server.get(&url).await.json()["info"]["title"], "wardle");
    let whole = server.get("/openapi/v2").await.json();
    assert_eq!(
        (&whole["definitions"]["Flunder"]["type"], &whole["definitions"]["Thing"]),
        (&json!("object"), &Value::Null)
    );
    assert!(whole["paths"]["/apis/wardle.example.com/v1alpha1/flunders"].is_object());
    assert!(whole["paths"]["/apis/other.example.com/v1/things"].is_null());

    // Another authority than the one that vouches for it.
    let path = format!("{API_SERVICES}/{NAME}");
    let other = std::fs::read(&proxy).unwrap();
    let other = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, other);
    let merge = [("content-type", "application/merge-patch+json")];
    let patch = |spec: Value| json!({ "spec": spec }).to_string();
    server.ask(Method::PATCH, &path, &merge, patch(json!({ "caBundle": other }))).await;
    until("the certificate is refused", || async {
        let answer = server.get(flunders).await;
        answer.code == 503 && answer.text().starts_with("error trying to reach service: tls: ")
    })
    .await;
    server.ask(Method::PATCH, &path, &merge, patch(json!({ "caBundle": null, "insecureSkipTLSVerify": true }))).await;
    until("any certificate will do", || async { server.get(flunders).await.code == 200 }).await;

    assert_eq!(server.ask(Method::DELETE, &path, &[], "").await.code, 200);
    until("the group is gone", || async {
        server.get(flunders).await.code == 404 && server.get("/apis/wardle.example.com").await.code == 404
    })
    .await;
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_not_available() {
    let dir = tempfile::tempdir().unwrap();
    let outside = Outside::start(dir.path(), "broken", &[], None, |_| (403, "{}".to_owned())).await;
    let server = Server::start(&[]).await;
    let port = outside.address.port();
    let named =
        json!({ "metadata": { "name": "wardle" }, "spec": { "type": "ExternalName", "externalName": "localhost" } });
    server.create("/api/v1/namespaces/default/services", &named.to_string()).await;
    server.create(API_SERVICES, &api_service(port, &json!({ "insecureSkipTLSVerify": true })).to_string()).await;
    becomes(&server, "False", "FailedDiscoveryCheck").await;
    let url = format!("https://localhost:{port}/apis/wardle.example.com/v1alpha1");
    assert_eq!(
        condition(&server).await.2,
        format!("failing or missing response from {url}: bad status from {url}: 403")
    );
}

#[tokio::test]
async fn what_the_server_serves_itself_has_api_services() {
    let server = Server::start(&[]).await;
    until("they are made", || async { server.get(&format!("{API_SERVICES}/v1.apps")).await.code == 200 }).await;
    let apps = server.get(&format!("{API_SERVICES}/v1.apps")).await.json();
    assert_eq!(apps["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "onstart");
    assert_eq!(apps["status"]["conditions"][0]["reason"], "Local");
    let definition = r#"{"metadata":{"name":"cups.shop.example.com"},"spec":{"group":"shop.example.com","scope":"Cluster",
        "names":{"plural":"cups","kind":"Cup"},"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object"}}}]}}"#;
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    server.create(definitions, definition).await;
    let own = format!("{API_SERVICES}/v1.shop.example.com");
    until("a definition has one", || async { server.get(&own).await.code == 200 }).await;
    server.ask(Method::DELETE, &format!("{definitions}/cups.shop.example.com"), &[], "").await;
    until("it goes with it", || async { server.get(&own).await.code == 404 }).await;
}
