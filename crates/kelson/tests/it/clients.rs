//! Clients that none of us wrote: the Python package's dynamic client, and a controller on kube-rs.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::controller::Action;
use kube::runtime::wait::{Condition, await_condition};
use kube::runtime::{Controller, watcher};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use crate::apiserver::{ApiServer, TOKEN, WAIT};

fn start(port: u16) -> ApiServer {
    let server = ApiServer::start([127, 0, 0, 1].into(), port, &[]);
    server.wait_until_ready();
    server
}

/// What a user of the dynamic client does: create, read, list, patch, apply, watch, delete.
const SCRIPT: &str = r#"
import sys
from kubernetes import client, dynamic
configuration = client.Configuration(host=sys.argv[1])
configuration.verify_ssl = False
configuration.api_key = {"authorization": "Bearer " + sys.argv[2]}
dyn = dynamic.DynamicClient(client.ApiClient(configuration))
maps = dyn.resources.get(api_version="v1", kind="ConfigMap")
deployments = dyn.resources.get(api_version="apps/v1", kind="Deployment")
start = maps.get(namespace="default").metadata.resourceVersion
made = maps.create(namespace="default", body={"metadata": {"name": "a", "labels": {"l": "1"}}, "data": {"k": "1"}})
assert made.metadata.uid and made.data.k == "1", made
assert [m.metadata.name for m in maps.get(namespace="default", label_selector="l=1").items] == ["a"]
maps.patch(namespace="default", name="a", body={"data": {"k": "2"}}, content_type="application/merge-patch+json")
applied = dyn.server_side_apply(maps, namespace="default", name="a", field_manager="py", force_conflicts=True,
    body={"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"s": "3"}})
assert applied.data.to_dict() == {"k": "2", "s": "3"}, applied
try:
    maps.create(namespace="default", body={"metadata": {"name": "a"}})
    sys.exit("a second object of the same name")
except dynamic.exceptions.ConflictError as conflict:
    assert "already exists" in conflict.summary(), conflict.summary()
pod = {"containers": [{"name": "c", "image": "i"}]}
spec = {"replicas": 2, "selector": {"matchLabels": {"l": "1"}}, "template": {"metadata": {"labels": {"l": "1"}}, "spec": pod}}
deployments.create(namespace="default", body={"metadata": {"name": "d"}, "spec": spec})
scaled = deployments.scale.patch(namespace="default", name="d", body={"spec": {"replicas": 5}},
    content_type="application/merge-patch+json")
assert scaled.spec.replicas == 5, scaled
maps.delete(namespace="default", name="a")
seen = []
for event in maps.watch(namespace="default", resource_version=start, timeout=60):
    if event["object"].metadata.name == "a":
        seen.append((event["type"], event["object"].data.to_dict()))
    if event["type"] == "DELETED":
        break
print(seen)
"#;

#[test]
fn the_python_client_works() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-python/bin/python");
    assert!(python.exists(), "there is no {}: `cargo xtask test` makes it", python.display());
    let server = start(18060);
    let done = Command::new(python).args(["-W", "ignore", "-c", SCRIPT, &server.url, TOKEN]).output().unwrap();
    let complaint = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{complaint}\n{}", server.log());
    assert_eq!(
        String::from_utf8_lossy(&done.stdout).trim(),
        "[('ADDED', {'k': '1'}), ('MODIFIED', {'k': '2'}), ('MODIFIED', {'k': '2', 's': '3'}), \
         ('DELETED', {'k': '2', 's': '3'})]"
    );
}

/// Keeps a copy of every ConfigMap that asks for one.
async fn copy(map: Arc<ConfigMap>, maps: Arc<Api<ConfigMap>>) -> Result<Action, kube::Error> {
    if map.labels().get("copied").is_none() {
        return Ok(Action::await_change());
    }
    let name = format!("{}-copy", map.name_any());
    let copy = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "ownerReferences": [map.controller_owner_ref(&())]},
        "data": map.data,
    });
    maps.patch(&name, &PatchParams::apply("copier").force(), &Patch::Apply(copy)).await?;
    Ok(Action::await_change())
}

fn says(value: &'static str) -> impl Condition<ConfigMap> {
    move |map: Option<&ConfigMap>| {
        map.and_then(|map| map.data.as_ref()).and_then(|data| data.get("k")).is_some_and(|k| k == value)
    }
}

#[tokio::test]
async fn a_controller_on_kube_rs_works() {
    let server = start(18061);
    let maps: Api<ConfigMap> = Api::namespaced(server.client(), "default");
    let controller = Controller::new(maps.clone(), watcher::Config::default())
        .owns(maps.clone(), watcher::Config::default())
        .run(copy, |_, _, _| Action::requeue(Duration::from_secs(1)), Arc::new(maps.clone()))
        .for_each(|_| std::future::ready(()));
    let controller = tokio::spawn(controller);
    let within = |name, condition| tokio::time::timeout(WAIT, await_condition(maps.clone(), name, condition));

    let map = json!({"metadata": {"name": "m", "labels": {"copied": "yes"}}, "data": {"k": "1"}});
    maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap()).await.unwrap();
    within("m-copy", says("1")).await.unwrap().unwrap();
    maps.patch("m", &PatchParams::default(), &Patch::Merge(json!({"data": {"k": "2"}}))).await.unwrap();
    within("m-copy", says("2")).await.unwrap().unwrap();
    // What somebody deletes comes back, because the controller watches what it owns.
    maps.delete("m-copy", &DeleteParams::default()).await.unwrap();
    within("m-copy", says("2")).await.unwrap().unwrap();
    controller.abort();
}
