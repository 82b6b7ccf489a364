//! Who a request is made as.

use http::Method;

use crate::fixture::Server;

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
