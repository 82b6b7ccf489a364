//! What may be asked about a part of a resource (KEP-4601), and expressions that are none.

use serde_json::{Value, json};

use crate::fixture::Server;

const REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

async fn status(server: &Server, attributes: Value) -> Value {
    let review = json!({ "spec": {
        "user": "system:node:n1", "groups": ["system:nodes", "system:authenticated"],
        "resourceAttributes": attributes,
    }});
    server.create(REVIEWS, &review.to_string()).await["status"].clone()
}

#[tokio::test]
async fn a_node_may_list_the_pods_that_are_its_own() {
    let server = Server::start(&["--authorization-mode=Node,RBAC"]).await;
    let list = |selector: Value| json!({ "verb": "list", "resource": "pods", "fieldSelector": selector });
    let raw = status(&server, list(json!({ "rawSelector": "spec.nodeName=n1" }))).await;
    assert_eq!(raw, json!({ "allowed": true }));
    let requirement = |operator: &str| json!({ "key": "spec.nodeName", "operator": operator, "values": ["n1"] });
    let told = status(&server, list(json!({ "requirements": [requirement("In")] }))).await;
    assert_eq!(told, json!({ "allowed": true }));
    let other = status(&server, list(json!({ "requirements": [requirement("NotIn"), requirement("Near")] }))).await;
    assert_eq!(other["allowed"], false);
    assert_eq!(other["reason"], "can only list/watch pods with spec.nodeName field selector");
    assert_eq!(other["evaluationError"], "spec.resourceAttributes.fieldSelector partially ignored due to parse error");
    let both = json!({ "spec": { "user": "u", "resourceAttributes": { "labelSelector": {
        "rawSelector": "a", "requirements": [{ "key": "a", "operator": "Exists" }],
    }}}});
    let (code, message) = server.post(REVIEWS, &both.to_string()).await.error();
    assert_eq!(code, 422);
    assert!(message.ends_with("may not specified at the same time as requirements"), "{message}");
}

#[tokio::test]
async fn policies_and_webhooks_have_expressions_that_are_some() {
    let server = Server::start(&["--authorization-mode=Node,RBAC"]).await;
    let policy = |expression: &str| {
        json!({
            "metadata": { "name": "p" },
            "spec": {
                "matchConstraints": { "resourceRules": [
                    { "apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"] },
                ]},
                "validations": [{ "expression": expression }],
            },
        })
        .to_string()
    };
    let policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
    let (code, message) = server.post(policies, &policy("params.x == 1")).await.error();
    assert_eq!(code, 422);
    assert!(message.contains("compilation failed: ERROR: <input>:1:1: undeclared reference to 'params'"), "{message}");
    let (_, message) = server.post(policies, &policy("object.spec.replicas")).await.error();
    assert!(message.contains("must evaluate to bool"), "{message}");
    server.create(policies, &policy("object.spec.replicas > '1' && request.namespace != 'kube-system'")).await;

    let webhook = json!({
        "metadata": { "name": "w" },
        "webhooks": [{
            "name": "w.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": { "url": "https://127.0.0.1:1/" },
            "matchConditions": [{ "name": "c", "expression": "... [] bad expression" }],
        }],
    });
    let webhooks = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
    let (code, message) = server.post(webhooks, &webhook.to_string()).await.error();
    assert_eq!(code, 422);
    assert!(message.contains("compilation failed"), "{message}");
}
