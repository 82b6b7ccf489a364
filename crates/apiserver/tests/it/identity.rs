//! Who a request is made as.

use std::path::Path;

use apiserver::authn::signer::{Signer, VerifyingKey, key_set};
use http::Method;
use serde_json::{Value, json};

use crate::fixture::{Server, until};
use crate::outside::Outside;

const WHO: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn an_impersonated_user_has_only_its_own_rights() {
    let server = Server::start(&[]).await;
    let answer = server.ask(Method::POST, WHO, &[("impersonate-user", "zoe"), ("impersonate-group", "g")], "{}").await;
    let user = &answer.json()["status"]["userInfo"];
    assert_eq!((user["username"].as_str(), user["groups"][0].as_str()), (Some("zoe"), Some("g")));
    let (code, message) = server.ask(Method::GET, CONFIG_MAPS, &[("impersonate-user", "zoe")], "").await.error();
    assert_eq!(code, 403);
    assert!(message.contains("User \"zoe\" cannot list"), "{message}");
}

#[tokio::test]
async fn the_right_to_be_somebody_can_be_bound_to_what_is_done() {
    let server = Server::start(&[]).await;
    let role = r#"{"metadata":{"name":"deputy"},"rules":[
        {"apiGroups":["authentication.k8s.io"],"resources":["users"],"resourceNames":["zoe"],"verbs":["impersonate:user-info"]},
        {"apiGroups":[""],"resources":["configmaps"],"verbs":["impersonate-on:user-info:list"]}]}"#;
    server.create("/apis/rbac.authorization.k8s.io/v1/clusterroles", role).await;
    let bind = |role: &str, user: &str| {
        format!(
            r#"{{"metadata":{{"name":"{user}"}},"roleRef":{{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"{role}"}},
            "subjects":[{{"kind":"User","name":"{user}","apiGroup":"rbac.authorization.k8s.io"}}]}}"#
        )
    };
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    server.create(bindings, &bind("deputy", "alice")).await;
    server.create(bindings, &bind("cluster-admin", "zoe")).await;
    let as_zoe = [("authorization", "Bearer alice-token"), ("impersonate-user", "zoe")];
    assert_eq!(server.ask(Method::GET, CONFIG_MAPS, &as_zoe, "").await.code, 200);
    let (code, message) = server.ask(Method::GET, "/api/v1/namespaces/default/secrets", &as_zoe, "").await.error();
    assert_eq!(code, 403);
    assert!(message.contains("User \"alice\" cannot impersonate-on:user-info:list resource \"secrets\""), "{message}");
    let as_other = [("authorization", "Bearer alice-token"), ("impersonate-user", "admin")];
    assert_eq!(server.ask(Method::GET, CONFIG_MAPS, &as_other, "").await.code, 403);
}

#[tokio::test]
async fn wrong_tokens_are_unauthorized_and_none_is_nobody() {
    let server = Server::start(&[]).await;
    let wrong = server.ask(Method::GET, CONFIG_MAPS, &[("authorization", "Bearer x.y.z")], "").await;
    assert_eq!(wrong.error(), (401, "Unauthorized".to_owned()));
    let (code, message) = server.ask(Method::GET, CONFIG_MAPS, &[("authorization", "")], "").await.error();
    assert_eq!(code, 403);
    assert!(message.contains("system:anonymous"), "{message}");
}

/// An issuer of tokens: its keys, and a server that tells of them.
struct Issuer {
    outside: Outside,
    signer: Signer,
}

impl Issuer {
    async fn start(dir: &Path) -> Self {
        component_base::tls::self_signed("signer", &["signer".to_owned()], Some(dir)).unwrap();
        let key = dir.join("signer.key");
        let keys = key_set(&VerifyingKey::load(&key).unwrap());
        let keys = serde_json::to_string(&keys).unwrap();
        let outside = Outside::start(dir, "issuer", &[], None, move |seen| match seen.path.as_str() {
            "/.well-known/openid-configuration" => {
                let url = format!("https://{}", seen.header("host"));
                (200, json!({ "issuer": url, "jwks_uri": format!("{url}/keys") }).to_string())
            }
            "/keys" => (200, keys.clone()),
            _ => (404, String::new()),
        })
        .await;
        Issuer { outside, signer: Signer::load(&key).unwrap() }
    }

    fn token(&self, claims: Value) -> String {
        let mut all = json!({ "iss": self.outside.url(""), "aud": "kubernetes", "exp": 4_000_000_000_i64 });
        for (key, value) in claims.as_object().unwrap() {
            all[key] = value.clone();
        }
        format!("Bearer {}", self.signer.sign(&all.into()).unwrap())
    }
}

/// Name and groups of whoever that token speaks for; or the code.
async fn who(server: &Server, authorization: &str) -> Result<(String, Value), u16> {
    let answer = server.ask(Method::POST, WHO, &[("authorization", authorization)], "{}").await;
    if answer.code != 201 {
        return Err(answer.code.as_u16());
    }
    let user = answer.json()["status"]["userInfo"].clone();
    Ok((user["username"].as_str().unwrap().to_owned(), user["groups"].clone()))
}

/// Replaces a file as those who must not be read half do.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, path).unwrap();
}

#[tokio::test]
async fn issuers_are_believed_as_the_configuration_says_and_as_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = Issuer::start(dir.path()).await;
    let authority = std::fs::read_to_string(dir.path().join("issuer.crt")).unwrap();
    let only_livez = json!({ "enabled": true, "conditions": [{ "path": "/livez" }] });
    let configuration = |prefix: &str, anonymous: &Value| {
        json!({
            "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
            "anonymous": anonymous,
            "jwt": [{
                "issuer": { "url": issuer.outside.url(""), "certificateAuthority": authority, "audiences": ["kubernetes"] },
                "claimValidationRules": [{ "expression": "claims.tier == 'gold'", "message": "gold only" }],
                "claimMappings": {
                    "username": { "claim": "sub", "prefix": prefix },
                    "groups": { "expression": "claims.roles.map(r, 'role:' + r)" },
                },
            }],
        })
        .to_string()
    };
    let file = dir.path().join("authentication.yaml");
    std::fs::write(&file, configuration("x:", &only_livez)).unwrap();
    let flag = format!("--authentication-config={}", file.display());
    let server = Server::start(&[&flag]).await;
    let good = issuer.token(json!({ "sub": "jane", "tier": "gold", "roles": ["a"] }));
    assert_eq!(who(&server, &good).await, Ok(("x:jane".to_owned(), json!(["role:a", "system:authenticated"]))));
    for wrong in [
        json!({ "sub": "jane", "tier": "tin", "roles": [] }),
        json!({ "sub": "jane", "tier": "gold", "roles": [], "aud": "others" }),
        json!({ "sub": "jane", "tier": "gold", "roles": [], "exp": 1_000_000_000 }),
        json!({ "sub": "jane", "tier": "gold", "roles": [], "iss": "https://others.example.com" }),
    ] {
        assert_eq!(who(&server, &issuer.token(wrong.clone())).await, Err(401), "{wrong}");
    }
    let (head, tail) = good.rsplit_once('.').unwrap();
    let forged = format!("{head}.{}", tail.chars().rev().collect::<String>());
    assert_eq!(who(&server, &forged).await, Err(401));
    let nobody = [("authorization", "")];
    assert_eq!(server.ask(Method::GET, "/livez", &nobody, "").await.code, 200);
    assert_eq!(server.ask(Method::GET, "/version", &nobody, "").await.code, 401);

    let reloads = async |status: &str| {
        let name = "apiserver_authentication_config_controller_automatic_reloads_total";
        server.get("/metrics").await.text().contains(&format!("{name}{{status=\"{status}\"}} 1"))
    };
    replace(&file, "apiVersion: nothing\n");
    until("what is no configuration is refused", || reloads("failure")).await;
    assert_eq!(who(&server, &good).await.unwrap().0, "x:jane");
    assert_eq!(server.ask(Method::GET, "/version", &nobody, "").await.code, 401);

    // Of those without credentials it says nothing any more: the flag does.
    replace(&file, &configuration("y:", &Value::Null));
    until("the new configuration is in force", || async {
        who(&server, &good).await.is_ok_and(|(name, _)| name == "y:jane")
    })
    .await;
    assert_eq!(server.ask(Method::GET, "/version", &nobody, "").await.code, 200);
    assert!(reloads("success").await);
}

#[tokio::test]
async fn flags_name_one_issuer() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = Issuer::start(dir.path()).await;
    let flags = [
        format!("--oidc-issuer-url={}", issuer.outside.url("")),
        "--oidc-client-id=kubernetes".to_owned(),
        format!("--oidc-ca-file={}", dir.path().join("issuer.crt").display()),
        "--oidc-username-prefix=-".to_owned(),
        "--oidc-groups-claim=roles".to_owned(),
        "--oidc-signing-algs=ES256".to_owned(),
    ];
    let server = Server::start(&flags.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let token = issuer.token(json!({ "sub": "jane", "roles": ["a"] }));
    assert_eq!(who(&server, &token).await, Ok(("jane".to_owned(), json!(["a", "system:authenticated"]))));
}

pub(crate) fn kubeconfig(dir: &Path, outside: &Outside, path: &str) -> String {
    let file = dir.join("webhook.kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{ "name": "c", "context": { "cluster": "k", "user": "u" } }],
        "clusters": [{ "name": "k", "cluster": { "server": outside.url(path), "certificate-authority-data": outside.ca_bundle() } }],
        "users": [{ "name": "u", "user": { "token": "secret" } }],
    });
    std::fs::write(&file, config.to_string()).unwrap();
    file.display().to_string()
}

#[tokio::test]
async fn a_server_can_be_asked_about_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let outside = Outside::start(dir.path(), "reviewer", &[], None, |seen| {
        let good = seen.json()["spec"]["token"] == "good" && seen.header("authorization") == "Bearer secret";
        let status =
            json!({ "authenticated": good, "user": { "username": "jane", "groups": ["a"], "extra": { "k": ["v"] } } });
        (200, json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status }).to_string())
    })
    .await;
    let config = kubeconfig(dir.path(), &outside, "/review");
    let file = format!("--authentication-token-webhook-config-file={config}");
    let issuers = ["--service-account-issuer=https://new.example", "--service-account-issuer=https://old.example"];
    let server = Server::start(&[&file, "--authentication-token-webhook-version=v1", issuers[0], issuers[1]]).await;
    assert_eq!(who(&server, "Bearer good").await, Ok(("jane".to_owned(), json!(["a", "system:authenticated"]))));
    assert_eq!(who(&server, "Bearer good").await.unwrap().0, "jane");
    assert_eq!(who(&server, "Bearer bad").await, Err(401));
    let asked: Vec<Value> = outside.seen().iter().map(|seen| seen.json()["spec"]["token"].clone()).collect();
    assert_eq!(asked, [json!("good"), json!("bad")], "answers are remembered");
    let audiences = json!(["https://new.example", "https://old.example"]);
    assert_eq!(outside.seen()[0].json()["spec"]["audiences"], audiences, "those of the server's own tokens");
}

#[tokio::test]
async fn a_server_can_be_asked_about_rights() {
    let dir = tempfile::tempdir().unwrap();
    let outside = Outside::start(dir.path(), "authorizer", &[], None, |seen| {
        let spec = &seen.json()["spec"];
        let resource = &spec["resourceAttributes"]["resource"];
        let status = match resource.as_str() {
            Some("configmaps") => json!({ "allowed": true }),
            Some("secrets") => json!({ "allowed": false, "denied": true, "reason": "not for you" }),
            _ => return (500, "broken".to_owned()),
        };
        (
            200,
            json!({ "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "status": status })
                .to_string(),
        )
    })
    .await;
    let kubeconfig = kubeconfig(dir.path(), &outside, "/authorize");
    let configuration = |policy: &str| {
        json!({
            "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration",
            "authorizers": [
                { "type": "Webhook", "name": "outside", "webhook": {
                    "timeout": "3s", "subjectAccessReviewVersion": "v1", "matchConditionSubjectAccessReviewVersion": "v1",
                    "failurePolicy": policy, "connectionInfo": { "type": "KubeConfigFile", "kubeConfigFile": kubeconfig },
                    "matchConditions": [{ "expression": "has(request.resourceAttributes) && request.resourceAttributes.namespace == 'default'" }],
                } },
                { "type": "RBAC", "name": "rbac" },
            ],
        })
        .to_string()
    };
    let file = dir.path().join("authorization.yaml");
    std::fs::write(&file, configuration("NoOpinion")).unwrap();
    let data = tempfile::tempdir().unwrap();
    let mut config = crate::fixture::config(data.path(), &[]);
    config.authorization.config_file = Some(file.clone());
    let server = Server::start_with(data, config).await;
    let alice = [("authorization", "Bearer alice-token")];
    let get = async |path: &str| server.ask(Method::GET, path, &alice, "").await;
    assert_eq!(get(CONFIG_MAPS).await.code, 200);
    let (code, why) = get("/api/v1/namespaces/default/secrets").await.error();
    assert_eq!(code, 403);
    assert!(why.ends_with("in the namespace \"default\": not for you"), "{why}");
    assert_eq!(get("/api/v1/namespaces/other/configmaps").await.code, 403, "it is not asked about others");
    assert_eq!(get("/api/v1/namespaces/default/pods").await.code, 403);
    let seen = outside.seen();
    assert!(seen.iter().all(|seen| seen.json()["spec"]["resourceAttributes"]["namespace"] == "default"));
    assert_eq!(seen[0].json()["spec"]["user"], "alice");
    let metrics = server.get("/metrics").await.text();
    let counted = "apiserver_authorization_decisions_total{type=\"Webhook\",name=\"outside\",decision=\"allowed\"} 1";
    assert!(metrics.contains(counted), "{metrics}");

    let rules = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let rules = server.ask(Method::POST, rules, &alice, r#"{"spec":{"namespace":"default"}}"#).await.json();
    assert_eq!(rules["status"]["incomplete"], true, "what a webhook allows cannot be listed");

    // Pods may be read by anybody in `dev`; a webhook that fails is then in the way only where its failure denies.
    let role = r#"{"metadata":{"name":"reader"},"rules":[{"apiGroups":[""],"resources":["pods"],"verbs":["list"]}]}"#;
    server.create("/apis/rbac.authorization.k8s.io/v1/clusterroles", role).await;
    let binding = r#"{"metadata":{"name":"reader"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"reader"},
        "subjects":[{"kind":"Group","name":"dev","apiGroup":"rbac.authorization.k8s.io"}]}"#;
    server.create("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding).await;
    until("the role is known", || async { get("/api/v1/namespaces/default/pods").await.code == 200 }).await;
    replace(&file, &configuration("Deny"));
    until("failures deny", || async { get("/api/v1/namespaces/default/pods").await.code == 403 }).await;
}
