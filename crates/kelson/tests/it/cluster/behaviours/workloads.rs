//! Deployments, ReplicaSets, ReplicationControllers, DaemonSets, StatefulSets and disruption budgets.

use serde_json::{Value, json};

use super::super::host::holds_in_time;
use super::{Space, checks, condition, controller_of, hold, is_ready, name_of, pod, runs, template};

#[test]
fn workloads_behave() {
    hold(checks![
        recreating_deployment_never_runs_two_versions,
        deployment_rolls_over_to_the_last_change,
        deployment_scale_and_status_are_subresources,
        replicaset_adopts_and_releases,
        replicationcontroller_adopts_releases_and_scales,
        replicationcontroller_says_that_the_quota_is_full,
        daemonset_replaces_and_updates,
        statefulset_goes_in_order_and_halts,
        statefulset_bursts_in_parallel,
        statefulset_updates_by_partition_and_rolls_back,
        eviction_waits_for_the_budget,
        collections_are_deleted_by_label,
    ]);
}

const WEB: &str = "exec busybox httpd -f -p 8080 -h /www";
const FOREVER: &str = "sleep 100000";

fn workload(kind: &str, name: &str, replicas: u32, spec: Value) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template(name, spec)},
    });
    match kind {
        "ReplicationController" => {
            object["apiVersion"] = "v1".into();
            object["spec"]["selector"] = json!({"app": name});
        }
        "StatefulSet" => object["spec"]["serviceName"] = name.into(),
        "DaemonSet" => drop(object["spec"].as_object_mut().unwrap().remove("replicas")),
        _ => {}
    }
    object
}

fn change_env(space: &Space<'_>, what: &str, value: &str) {
    space.kubectl_ok(&["set", "env", what, &format!("COLOUR={value}")], "");
}

fn recreating_deployment_never_runs_two_versions(space: &Space<'_>) {
    let mut deployment = workload("Deployment", "d", 2, runs(FOREVER));
    deployment["spec"]["strategy"] = json!({"type": "Recreate"});
    space.create(&deployment);
    space.until("deployment/d", |d| d["status"]["availableReplicas"] == 2);
    let old = space.list("pods", "app=d")[0]["metadata"]["labels"]["pod-template-hash"].clone();
    change_env(space, "deployment/d", "blue");
    space.until_all("pods", "app=d", |pods| {
        let runs =
            |pod: &&Value| !["Failed", "Succeeded"].contains(&pod["status"]["phase"].as_str().unwrap_or_default());
        let (before, after): (Vec<&Value>, Vec<&Value>) =
            pods.iter().filter(runs).partition(|pod| pod["metadata"]["labels"]["pod-template-hash"] == old);
        assert!(before.is_empty() || after.is_empty(), "both versions at once: {pods:?}");
        after.len() == 2 && after.into_iter().all(is_ready)
    });
}

fn deployment_rolls_over_to_the_last_change(space: &Space<'_>) {
    space.create(&workload("Deployment", "d", 3, runs(FOREVER)));
    space.until("deployment/d", |d| d["status"]["availableReplicas"] == 3);
    for colour in ["red", "green", "blue"] {
        change_env(space, "deployment/d", colour);
    }
    space.kubectl_ok(&["rollout", "status", "deployment/d", "--timeout=60s"], "");
    let sets = space.list("replicasets", "app=d");
    let with_pods: Vec<&Value> = sets.iter().filter(|set| set["spec"]["replicas"] != 0).collect();
    assert_eq!((sets.len(), with_pods.len()), (4, 1), "{sets:?}");
    assert_eq!(with_pods[0]["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"], "blue");
    assert_eq!(with_pods[0]["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "4");
}

fn deployment_scale_and_status_are_subresources(space: &Space<'_>) {
    space.create(&workload("Deployment", "d", 1, runs(FOREVER)));
    space.until("deployment/d", |d| d["status"]["availableReplicas"] == 1);
    let path = format!("/apis/apps/v1/namespaces/{}/deployments/d/scale", space.name);
    let mut scale: Value = serde_json::from_str(&space.kubectl_ok(&["get", "--raw", &path], "")).unwrap();
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["selector"]), (&json!(1), &json!("app=d")));
    scale["spec"]["replicas"] = 2.into();
    space.kubectl_ok(&["replace", "--raw", &path, "-f", "-"], &scale.to_string());
    space.until("deployment/d", |d| d["status"]["availableReplicas"] == 2);
    space.merge_sub("deployment/d", "scale", &json!({"spec": {"replicas": 3}}));
    space.until("deployment/d", |d| d["status"]["availableReplicas"] == 3);

    let note = json!({"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "Set from e2e test"});
    let mut status = space.get("deployment/d")["status"].clone();
    status["conditions"].as_array_mut().unwrap().push(note);
    status["readyReplicas"] = 3.into();
    space.merge_sub("deployment/d", "status", &json!({"status": status, "spec": {"replicas": 0}}));
    let now = space.get("deployment/d");
    assert_eq!(condition(&now, "StatusUpdate"), Some("True"), "{now:#}");
    assert_eq!(now["spec"]["replicas"], 3, "the status subresource changes nothing else");
}

/// A pod that was there first, and one whose labels change.
fn adopts_and_releases(space: &Space<'_>, kind: &str) {
    space.create(&pod("orphan", "a", runs(FOREVER)));
    space.create(&workload(kind, "a", 1, runs(FOREVER)));
    space.until("pod/orphan", |pod| controller_of(pod) == Some("a"));
    assert_eq!(space.list("pods", "app=a").len(), 1);
    space.merge("pod/orphan", &json!({"metadata": {"labels": {"app": "else"}}}));
    space.until("pod/orphan", |pod| controller_of(pod).is_none());
    space.until_all("pods", "app=a", |pods| pods.len() == 1 && is_ready(&pods[0]));
}

fn replicaset_adopts_and_releases(space: &Space<'_>) {
    adopts_and_releases(space, "ReplicaSet");
    space.kubectl_ok(&["scale", "replicaset/a", "--replicas=2"], "");
    space.until("replicaset/a", |set| set["status"]["readyReplicas"] == 2);
}

fn replicationcontroller_adopts_releases_and_scales(space: &Space<'_>) {
    adopts_and_releases(space, "ReplicationController");
    let path = format!("/api/v1/namespaces/{}/replicationcontrollers/a/scale", space.name);
    let mut scale: Value = serde_json::from_str(&space.kubectl_ok(&["get", "--raw", &path], "")).unwrap();
    assert_eq!(scale["spec"]["replicas"], 1);
    scale["spec"]["replicas"] = 2.into();
    space.kubectl_ok(&["replace", "--raw", &path, "-f", "-"], &scale.to_string());
    space.until("replicationcontroller/a", |rc| rc["status"]["readyReplicas"] == 2);
    space.kubectl_ok(&["delete", "replicationcontroller/a", "--cascade=orphan"], "");
    space.until_all("pods", "app=a", |pods| pods.len() == 2 && pods.iter().all(|pod| controller_of(pod).is_none()));
}

fn replicationcontroller_says_that_the_quota_is_full(space: &Space<'_>) {
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"pods": "2"}}});
    space.create(&quota);
    space.until("resourcequota/q", |quota| quota["status"]["hard"]["pods"] == "2");
    space.create(&workload("ReplicationController", "rc", 3, runs(FOREVER)));
    space.until("replicationcontroller/rc", |rc| condition(rc, "ReplicaFailure") == Some("True"));
    space.kubectl_ok(&["scale", "replicationcontroller/rc", "--replicas=2"], "");
    space.until("replicationcontroller/rc", |rc| {
        condition(rc, "ReplicaFailure").is_none() && rc["status"]["readyReplicas"] == 2
    });
}

fn daemonset_replaces_and_updates(space: &Space<'_>) {
    space.create(&workload("DaemonSet", "ds", 0, runs(FOREVER)));
    let ready = |set: &Value| set["status"]["numberReady"] == 1 && set["status"]["updatedNumberScheduled"] == 1;
    space.until("daemonset/ds", ready);
    let first = name_of(&space.list("pods", "app=ds")[0]).to_owned();
    space.kubectl_ok(&["delete", "pod", &first], "");
    space.until_all("pods", "app=ds", |pods| pods.len() == 1 && name_of(&pods[0]) != first && is_ready(&pods[0]));
    change_env(space, "daemonset/ds", "blue");
    space.kubectl_ok(&["rollout", "status", "daemonset/ds", "--timeout=60s"], "");
    let pods = space.until_all("pods", "app=ds", |pods| pods.len() == 1 && is_ready(&pods[0]));
    assert_eq!(pods[0]["spec"]["containers"][0]["env"][0]["value"], "blue");
    let revisions = space.list("controllerrevisions", "app=ds");
    assert_eq!(revisions.iter().filter_map(|r| r["revision"].as_u64()).max(), Some(2), "{revisions:?}");
    let status = json!({"status": {"conditions": [{"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "m"}]}});
    space.merge_sub("daemonset/ds", "status", &status);
    assert_eq!(condition(&space.get("daemonset/ds"), "StatusUpdate"), Some("True"));
}

/// Ready while /tmp/ready is there.
fn ready_by_file() -> Value {
    let mut spec = runs(&format!("touch /tmp/ready; {WEB}"));
    spec["containers"][0]["readinessProbe"] =
        json!({"exec": {"command": ["cat", "/tmp/ready"]}, "periodSeconds": 1, "failureThreshold": 1});
    spec
}

fn be_unready(space: &Space<'_>, pod: &str, unready: bool) {
    let verb = if unready { "mv /tmp/ready /tmp/away" } else { "mv /tmp/away /tmp/ready" };
    space.kubectl_ok(&["exec", pod, "--", "busybox", "sh", "-c", &verb.replace("mv", "busybox mv")], "");
    space.until(&format!("pod/{pod}"), |pod| is_ready(pod) != unready);
}

fn statefulset_goes_in_order_and_halts(space: &Space<'_>) {
    space.create(&workload("StatefulSet", "ss", 1, ready_by_file()));
    space.until("pod/ss-0", is_ready);
    be_unready(space, "ss-0", true);
    space.kubectl_ok(&["scale", "statefulset/ss", "--replicas=3"], "");
    space.until("statefulset/ss", |set| set["status"]["observedGeneration"] == set["metadata"]["generation"]);
    assert_eq!(space.list("pods", "app=ss").len(), 1, "it does not go on with a pod that is not ready");
    be_unready(space, "ss-0", false);
    let pods = space.until_all("pods", "app=ss", |pods| pods.len() == 3 && pods.iter().all(is_ready));
    let mut by_age: Vec<(&str, &str)> =
        pods.iter().map(|pod| (pod["metadata"]["creationTimestamp"].as_str().unwrap(), name_of(pod))).collect();
    by_age.sort_unstable();
    assert_eq!(by_age.iter().map(|(_, name)| *name).collect::<Vec<_>>(), ["ss-0", "ss-1", "ss-2"]);

    for pod in ["ss-0", "ss-1", "ss-2"] {
        be_unready(space, pod, true);
    }
    space.kubectl_ok(&["scale", "statefulset/ss", "--replicas=0"], "");
    space.until("statefulset/ss", |set| set["status"]["observedGeneration"] == set["metadata"]["generation"]);
    assert_eq!(space.list("pods", "app=ss").len(), 3, "it does not go down with pods that are not ready");
    // The last goes as soon as it is ready, and then the one before it.
    for (pod, left) in [("ss-2", 2), ("ss-1", 1)] {
        space.kubectl_ok(&["exec", pod, "--", "busybox", "mv", "/tmp/away", "/tmp/ready"], "");
        space.until(&format!("pod/{pod}"), Value::is_null);
        assert!(space.list("pods", "app=ss").len() <= left);
    }
    space.until_all("pods", "app=ss", <[Value]>::is_empty);
}

fn statefulset_bursts_in_parallel(space: &Space<'_>) {
    let mut set = workload("StatefulSet", "ss", 1, ready_by_file());
    set["spec"]["podManagementPolicy"] = "Parallel".into();
    space.create(&set);
    space.until("pod/ss-0", is_ready);
    be_unready(space, "ss-0", true);
    space.kubectl_ok(&["scale", "statefulset/ss", "--replicas=3"], "");
    space.until_all("pods", "app=ss", |pods| pods.len() == 3 && pods.iter().filter(|pod| is_ready(pod)).count() == 2);
    space.kubectl_ok(&["scale", "statefulset/ss", "--replicas=0"], "");
    space.until_all("pods", "app=ss", <[Value]>::is_empty);
}

fn statefulset_updates_by_partition_and_rolls_back(space: &Space<'_>) {
    let mut set = workload("StatefulSet", "ss", 3, runs(FOREVER));
    set["spec"]["updateStrategy"] = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 3}});
    space.create(&set);
    let first = space.until("statefulset/ss", |set| set["status"]["readyReplicas"] == 3);
    let first = first["status"]["currentRevision"].as_str().unwrap().to_owned();
    change_env(space, "statefulset/ss", "blue");
    let changed = space.until("statefulset/ss", |set| set["status"]["updateRevision"] != first.as_str());
    let second = changed["status"]["updateRevision"].as_str().unwrap().to_owned();
    let revisions = |pods: &[Value]| -> Vec<String> {
        let mut all: Vec<(String, String)> = pods
            .iter()
            .filter(|pod| is_ready(pod))
            .map(|pod| {
                let revision = &pod["metadata"]["labels"]["controller-revision-hash"];
                (name_of(pod).to_owned(), revision.as_str().unwrap_or_default().to_owned())
            })
            .collect();
        all.sort_unstable();
        all.into_iter().map(|(_, revision)| revision).collect()
    };
    // A canary, and a pod below the partition that comes back as it was.
    space.merge("statefulset/ss", &json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 2}}}}));
    let canary = [&first, &first, &second].map(String::clone);
    space.until_all("pods", "app=ss", |pods| revisions(pods) == canary);
    for pod in ["ss-0", "ss-2"] {
        let uid = space.get(&format!("pod/{pod}"))["metadata"]["uid"].clone();
        space.kubectl_ok(&["delete", "pod", pod], "");
        space.until(&format!("pod/{pod}"), |pod| pod["metadata"]["uid"] != uid && is_ready(pod));
    }
    space.until_all("pods", "app=ss", |pods| revisions(pods) == canary);
    // The rest.
    space.merge("statefulset/ss", &json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 0}}}}));
    space.until("statefulset/ss", |set| {
        set["status"]["currentRevision"] == second.as_str() && set["status"]["updatedReplicas"] == 3
    });
    // Back: the first revision again, not a third one.
    space.kubectl_ok(&["rollout", "undo", "statefulset/ss"], "");
    space.until("statefulset/ss", |set| {
        set["status"]["currentRevision"] == first.as_str() && set["status"]["readyReplicas"] == 3
    });
    let all = space.list("controllerrevisions", "app=ss");
    assert_eq!(all.len(), 2, "{all:?}");
}

fn eviction_waits_for_the_budget(space: &Space<'_>) {
    space.create(&workload("ReplicaSet", "rs", 2, runs(FOREVER)));
    space.until("replicaset/rs", |set| set["status"]["readyReplicas"] == 2);
    let budget = json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "pdb"},
        "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "rs"}}},
    });
    space.create(&budget);
    space.until("pdb/pdb", |pdb| pdb["status"]["currentHealthy"] == 2 && pdb["status"]["disruptionsAllowed"] == 0);
    let pod = name_of(&space.list("pods", "app=rs")[0]).to_owned();
    let refused = space.evict(&pod);
    let wanted = "Cannot evict pod as it would violate the pod's disruption budget.";
    assert!(!refused.ok && refused.err.contains(wanted), "{refused:?}");
    space.merge("pdb/pdb", &json!({"spec": {"minAvailable": 1}}));
    assert!(holds_in_time(|| space.evict(&pod).ok), "still refused");
    space.until(&format!("pod/{pod}"), |pod| {
        pod.is_null()
            || condition(pod, "DisruptionTarget") == Some("True")
            || !pod["metadata"]["deletionTimestamp"].is_null()
    });
}

fn collections_are_deleted_by_label(space: &Space<'_>) {
    for (kind, plural) in [
        ("Deployment", "apps/v1/namespaces/NS/deployments"),
        ("ReplicaSet", "apps/v1/namespaces/NS/replicasets"),
        ("StatefulSet", "apps/v1/namespaces/NS/statefulsets"),
        ("DaemonSet", "apps/v1/namespaces/NS/daemonsets"),
    ] {
        let name = kind.to_lowercase();
        space.create(&workload(kind, &name, 0, runs(FOREVER)));
        space.create(&workload(kind, "stays", 0, runs(FOREVER)));
        let path = format!("/apis/{}?labelSelector=app%3D{name}", plural.replace("NS", space.name));
        space.kubectl_ok(&["delete", "--raw", &path], "");
        space.until_all(&name, "app", |left| left.len() == 1 && name_of(&left[0]) == "stays");
        space.kubectl_ok(&["delete", &name, "stays"], "");
    }
}
