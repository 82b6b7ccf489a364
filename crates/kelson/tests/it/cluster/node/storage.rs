//! Volumes that outlive their pods: made out of the box, by hand, and with a pod.

use serde_json::{Value, json};

use testing::wait::last_within;

use super::super::OneNode;
use super::super::host::Host;
use super::{LONG, Walk, apply, events_of, exec, field, fields, phase, pod, sh, with};

const RUN: &str = "trap 'exit 0' TERM; while :; do sleep 0.2; done";

fn mounted(name: &str) -> Value {
    with(sh("c", RUN), json!({ "volumeMounts": [{ "name": name, "mountPath": "/data" }] }))
}

fn claim_spec(size: &str, mode: &str) -> Value {
    json!({ "accessModes": [mode], "resources": { "requests": { "storage": size } } })
}

fn claim(name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": name }, "spec": spec })
}

fn uses(name: &str, claim: &str) -> Value {
    let volume = json!({ "name": "data", "persistentVolumeClaim": { "claimName": claim } });
    pod(name, json!({ "containers": [mounted("data")], "volumes": [volume] }))
}

fn stateful_set(host: &Host, walk: &mut Walk) {
    let template = json!({ "metadata": { "labels": { "app": "db" } },
        "spec": { "terminationGracePeriodSeconds": 1, "securityContext": { "fsGroup": 3000, "runAsUser": 1000 },
            "containers": [mounted("data")] } });
    let set = json!({ "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "db" },
        "spec": { "replicas": 2, "serviceName": "db", "selector": { "matchLabels": { "app": "db" } }, "template": template,
            "volumeClaimTemplates": [{ "metadata": { "name": "data" }, "spec": claim_spec("1Gi", "ReadWriteOnce") }] } });
    apply(host, &[set]);
    let ready = last_within(LONG, || field(host, "statefulset/db", ".status.readyReplicas"), |n| n == "2");
    walk.equals("A StatefulSet with volumeClaimTemplates runs out of the box", &ready, "2");
    exec(host, "db-1", "echo mine > /data/file");
    let seen = exec(host, "db-1", "/bin/busybox stat -c '%u %g' /data/file");
    walk.equals("Its files belong to the fsGroup", &seen, "1000 3000\n");
    host.kubectl_ok(&["delete", "pod", "db-1", "--timeout=60s"], "");
    let ready = || fields(host, "pod/db-1", &[".status.phase", ".metadata.deletionTimestamp"]);
    last_within(LONG, ready, |seen| seen.trim() == "Running");
    walk.equals("Its data outlives its pods", &exec(host, "db-1", "cat /data/file"), "mine\n");

    let volume = field(host, "pvc/data-db-1", ".spec.volumeName");
    let object = format!("pv/{volume}");
    let term = ".spec.nodeAffinity.required.nodeSelectorTerms[0].matchExpressions[0]";
    let (key, node) = (format!("{term}.key"), format!("{term}.values[0]"));
    let seen = fields(host, &object, &[&key, &node, ".spec.persistentVolumeReclaimPolicy", ".spec.storageClassName"]);
    walk.equals(
        "The volume is tied to its node",
        &seen,
        &format!("kubernetes.io/hostname {} Delete local-path", host.name),
    );
    let dir = std::path::PathBuf::from(field(host, &object, ".spec.local.path"));
    walk.check("The volume is a directory of the node", dir.join("file").is_file(), &dir.display());
    host.kubectl_ok(&["delete", "statefulset", "db"], "");
    host.kubectl_ok(&["delete", "pvc", "--all", "--timeout=60s"], "");
    let left = last_within(LONG, || host.kubectl(&["get", "pv", "-o", "name"], "").out, String::is_empty);
    walk.equals("With its claim the volume goes", &left, "");
    walk.check("With the volume its data goes", !dir.exists(), &dir.display());
}

fn with_a_pod(host: &Host, walk: &mut Walk) {
    let template = json!({ "spec": claim_spec("1Gi", "ReadWriteOnce") });
    let volume = json!({ "name": "scratch", "ephemeral": { "volumeClaimTemplate": template } });
    apply(host, &[pod("brings-its-own", json!({ "containers": [mounted("scratch")], "volumes": [volume] }))]);
    walk.equals(
        "A generic ephemeral volume is made for its pod",
        &phase(host, "brings-its-own", &["Running"]),
        "Running",
    );
    walk.equals("Its claim has the pod's name", &field(host, "pvc/brings-its-own-scratch", ".status.phase"), "Bound");
    host.kubectl_ok(&["delete", "pod", "brings-its-own", "--timeout=60s"], "");
    let left = last_within(LONG, || host.kubectl(&["get", "pvc,pv", "-o", "name"], "").out, String::is_empty);
    walk.equals("It goes with its pod", &left, "");
}

fn one_pod_alone(host: &Host, walk: &mut Walk) {
    apply(host, &[claim("alone", claim_spec("1Gi", "ReadWriteOncePod")), uses("has-it", "alone")]);
    phase(host, "has-it", &["Running"]);
    apply(host, &[uses("wants-it", "alone")]);
    let condition = ".status.conditions[?(@.type=='PodScheduled')].message";
    let seen = last_within(LONG, || field(host, "pod/wants-it", condition), |m| m.contains("ReadWriteOncePod"));
    walk.contains("A ReadWriteOncePod volume is one pod's alone", &seen, "ReadWriteOncePod");
    // The kubelet sees to it by itself, too.
    let mut bound = uses("comes-by-itself", "alone");
    bound["spec"]["nodeName"] = host.name.as_str().into();
    apply(host, &[bound]);
    let events = || events_of(host, "comes-by-itself");
    let wanted = "volume uses the ReadWriteOncePod access mode and is already in use by another pod";
    walk.contains(
        "Also when nobody scheduled the other pod",
        &last_within(LONG, events, |text| text.contains(wanted)),
        wanted,
    );
    host.kubectl_ok(&["delete", "pods", "--all", "--timeout=60s"], "");
    host.kubectl_ok(&["delete", "pvc", "--all", "--timeout=60s"], "");
}

fn by_hand(host: &Host, walk: &mut Walk) {
    let dir = host.dir.join("by-hand");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("file"), "was here before\n").unwrap();
    let affinity = json!({ "required": { "nodeSelectorTerms": [{ "matchExpressions": [
        { "key": "kubernetes.io/hostname", "operator": "In", "values": [host.name] }] }] } });
    let volume = json!({ "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": "by-hand" },
        "spec": { "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"], "storageClassName": "manual",
            "persistentVolumeReclaimPolicy": "Retain", "local": { "path": dir }, "nodeAffinity": affinity } });
    let mut spec = claim_spec("1Gi", "ReadWriteOnce");
    spec["storageClassName"] = "manual".into();
    let mut reader = uses("reads", "by-hand");
    reader["spec"]["volumes"][0]["persistentVolumeClaim"]["readOnly"] = true.into();
    apply(host, &[volume, claim("by-hand", spec), reader]);
    phase(host, "reads", &["Running"]);
    walk.equals(
        "A local volume shows what its directory holds",
        &exec(host, "reads", "cat /data/file"),
        "was here before\n",
    );
    let seen = exec(host, "reads", "echo x > /data/file");
    walk.contains("A claim that is read-only for its pod is mounted so", &seen, "Read-only file system");
    host.kubectl_ok(&["delete", "pods", "--all", "--timeout=60s"], "");
    host.kubectl_ok(&["delete", "pvc", "--all", "--timeout=60s"], "");
    let seen = last_within(LONG, || field(host, "pv/by-hand", ".status.phase"), |phase| phase == "Released");
    walk.equals("A volume that is to be kept is kept", &seen, "Released");
    walk.check("With its data", dir.join("file").is_file(), &dir.display());
}

#[test]
fn volumes_come_and_go_as_they_are_claimed() {
    let cluster = OneNode::start(&[]);
    let host = &cluster.host;
    let mut walk = Walk::default();
    stateful_set(host, &mut walk);
    with_a_pod(host, &mut walk);
    one_pod_alone(host, &mut walk);
    by_hand(host, &mut walk);
    walk.end(host);
}
