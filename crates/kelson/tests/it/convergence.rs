//! Controllers reach the same end from wherever they are interrupted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use testing::wait::{holds_within, last_within};

use crate::apiserver::{ApiServer, WAIT};
use crate::component::{Component, server_for_components};

const PORT: u16 = 16470;
/// The disturbances are the same in every run.
const SEED: u64 = 20_261_127;

const KINDS: &str = "namespaces,deployments,replicasets,statefulsets,daemonsets,jobs,pods,controllerrevisions,services,\
                     endpoints,endpointslices,poddisruptionbudgets,resourcequotas,serviceaccounts,configmaps,replicationcontrollers";

fn workload(kind: &str, name: &str, replicas: u32) -> Value {
    let spec = json!({"containers": [{"name": "c", "image": "image"}]});
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "namespace": "work"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": spec}},
    });
    match kind {
        "StatefulSet" => object["spec"]["podManagementPolicy"] = "Parallel".into(),
        "DaemonSet" => drop(object["spec"].as_object_mut().unwrap().remove("replicas")),
        "Job" => {
            object["apiVersion"] = "batch/v1".into();
            object["spec"] =
                json!({"parallelism": replicas, "completions": replicas, "template": object["spec"]["template"]});
            object["spec"]["template"]["spec"]["restartPolicy"] = "Never".into();
        }
        _ => {}
    }
    object
}

/// What users do, in order. Where it ends does not depend on what the controllers saw on the way.
fn work(server: &ApiServer) {
    let apply = |objects: &[Value]| {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        server.kubectl_ok(&["apply", "-f", "-"], &list);
    };
    let node =
        |name: &str| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"pool": "a"}}});
    let namespace = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    apply(&[namespace("work"), namespace("goes"), node("n1"), node("n2"), node("n3")]);
    apply(&[workload("Deployment", "d1", 3), workload("Deployment", "d2", 5), workload("ReplicaSet", "r1", 4)]);
    apply(&[workload("StatefulSet", "s1", 3), workload("DaemonSet", "ds", 0), workload("Job", "j1", 2)]);
    apply(&[
        json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q", "namespace": "work"}, "spec": {"hard": {"pods": "100"}}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "svc", "namespace": "work"},
            "spec": {"selector": {"app": "d1"}, "ports": [{"port": 80}]}}),
        json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "pdb", "namespace": "work"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "d1"}}}}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "left", "namespace": "goes", "finalizers": ["example.com/x"]}}),
    ]);
    for (what, replicas) in
        [("deployment/d1", 7), ("deployment/d2", 1), ("replicaset/r1", 1), ("statefulset/s1", 5), ("deployment/d1", 2)]
    {
        server.kubectl_ok(&["-n", "work", "scale", what, &format!("--replicas={replicas}")], "");
    }
    server.kubectl_ok(&["delete", "namespace", "goes", "--wait=false"], "");
    server.kubectl_ok(&["delete", "node", "n3"], "");
    server.kubectl_ok(&["-n", "work", "scale", "statefulset/s1", "--replicas=2"], "");
    server.kubectl_ok(&["-n", "work", "delete", "job", "j1", "--wait=false"], "");
    apply(&[workload("Deployment", "d3", 2), workload("Deployment", "d4", 2), workload("Job", "j2", 3)]);
    server.kubectl_ok(&["-n", "work", "delete", "deployment", "d3", "--cascade=foreground", "--wait=false"], "");
    server.kubectl_ok(&["-n", "work", "delete", "deployment", "d4", "--cascade=orphan", "--wait=false"], "");
    server.kubectl_ok(
        &["-n", "goes", "patch", "configmap", "left", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#],
        "",
    );
}

/// How many objects there are of each kind, by who controls them and what matters of them; without what is random in a name.
fn picture(server: &ApiServer) -> BTreeMap<String, usize> {
    let said = server.kubectl_ok(&["get", KINDS, "-A", "-o", "json"], "");
    let list: Value = serde_json::from_str(&said).unwrap();
    let mut picture = BTreeMap::new();
    for object in list["items"].as_array().unwrap() {
        let metadata = &object["metadata"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let owner = metadata["ownerReferences"][0]["name"].as_str();
        let random = metadata["generateName"].is_string();
        let name = if random { format!("{}*", text(&metadata["generateName"])) } else { text(&metadata["name"]) };
        let (spec, status) = (&object["spec"], &object["status"]);
        let facts = json!([
            spec["replicas"],
            spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"],
            status["replicas"],
            status["desiredNumberScheduled"],
            status["expectedPods"],
            status["used"],
            status["active"],
            status["phase"],
            metadata["finalizers"],
            metadata["deletionTimestamp"].is_string(),
            metadata["annotations"]["deployment.kubernetes.io/revision"],
        ]);
        let key = format!("{} {}/{name} of {owner:?} {facts}", text(&object["kind"]), text(&metadata["namespace"]));
        *picture.entry(key).or_default() += 1;
    }
    picture
}

/// The picture once ten looks after the other show the same.
fn settled(server: &ApiServer) -> BTreeMap<String, usize> {
    let (mut last, mut same) = (picture(server), 0);
    let came_to_rest = holds_within(WAIT * 2, || {
        let now = picture(server);
        same = if now == last { same + 1 } else { 0 };
        last = now;
        same == 10
    });
    assert!(came_to_rest, "still moving: {last:#?}");
    last
}

/// Kills and restarts the controllers, and writes to what they are about to write to, until the work is done and some times
/// more: what it leaves to do is interrupted too.
fn disturb(server: &ApiServer, done: &AtomicBool) {
    const AFTERWARDS: usize = 4;
    let mut random = StdRng::seed_from_u64(SEED);
    let mut left = AFTERWARDS;
    while left > 0 {
        left -= usize::from(done.load(Ordering::Relaxed));
        let manager = Component::controllers(server, &[]);
        let life = Duration::from_millis(random.random_range(200..1500));
        let started = Instant::now();
        while started.elapsed() < life {
            let what = ["deployments", "replicasets", "statefulsets", "pods"][random.random_range(0..4)];
            let note = format!("touched={}", random.random::<u32>());
            // There may be nothing to write to yet, or no longer.
            server.kubectl(&["-n", "work", "annotate", what, "--all", "--overwrite", &note], "");
        }
        drop(manager);
    }
}

#[test]
fn controllers_that_are_killed_reach_the_same_end() {
    let undisturbed = {
        let server = server_for_components(PORT, &[]);
        let _manager = Component::controllers(&server, &[]);
        work(&server);
        settled(&server)
    };
    assert!(undisturbed.keys().any(|key| key.starts_with("Pod work/d1-")), "{undisturbed:#?}");
    let server = server_for_components(PORT + 1, &[]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let disturber = scope.spawn(|| disturb(&server, &done));
        work(&server);
        done.store(true, Ordering::Relaxed);
        disturber.join().unwrap();
    });
    let _manager = Component::controllers(&server, &[]);
    let last = last_within(WAIT, || picture(&server), |picture| *picture == undisturbed);
    let differ = |a: &BTreeMap<String, usize>, b: &BTreeMap<String, usize>| -> Vec<String> {
        a.iter()
            .filter(|(key, count)| b.get(*key) != Some(count))
            .map(|(key, count)| format!("{count} x {key}"))
            .collect()
    };
    let (missing, besides) = (differ(&undisturbed, &last), differ(&last, &undisturbed));
    assert!(missing.is_empty() && besides.is_empty(), "missing: {missing:#?}\nbesides: {besides:#?}");
}
