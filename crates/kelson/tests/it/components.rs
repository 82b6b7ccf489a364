//! Components beside an API server: what they tell of themselves, and who of several works.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testing::wait::{holds_within, last_within};

use crate::apiserver::{ApiServer, Said, TOKEN, WAIT};
use crate::component::{Component, server_for_components};

const PORT: u16 = 16480;

/// Asks a component's port, with a token if there is one.
fn ask(server: &ApiServer, port: u16, path: &str, token: &str) -> Said {
    let url = format!("https://127.0.0.1:{port}");
    server.kubectl_elsewhere(&url, token, &["get", "--raw", path])
}

#[test]
fn components_tell_of_themselves_to_those_who_may_ask() {
    let server = server_for_components(PORT, &[]);
    let kubeconfig = format!("--authentication-kubeconfig={}", server.dir().join("admin.conf").display());
    let authorization = kubeconfig.replace("authentication", "authorization");
    server.kubectl_ok(&["create", "clusterrole", "monitor", "--verb=get", "--non-resource-url=/metrics"], "");
    server
        .kubectl_ok(&["create", "clusterrolebinding", "m", "--clusterrole=monitor", "--serviceaccount=default:m"], "");
    server.kubectl_ok(&["create", "serviceaccount", "m"], "");
    let monitor = server.kubectl_ok(&["create", "token", "m"], "").trim().to_owned();
    let common = [&*kubeconfig, &*authorization, "--leader-elect=false", "--tls-min-version=VersionTLS13"];
    let checks = [
        (PORT + 1, "kube-controller-manager", "workqueue_depth{name=\"deployment\"}"),
        (PORT + 2, "kube-scheduler", "scheduler_pending_pods{queue=\"active\"}"),
    ];
    for (port, name, metric) in checks {
        let port_flag = format!("--secure-port={port}");
        let component = Component::start(&server, name, &[&common[..], &[&port_flag]].concat());
        let healthy = || ask(&server, port, "/healthz", "").out == "ok";
        assert!(holds_within(WAIT, healthy), "{}", component.log());
        let metrics = last_within(WAIT, || ask(&server, port, "/metrics", &monitor), |said| said.out.contains(metric));
        assert!(metrics.out.contains(metric) && metrics.out.contains("kubernetes_build_info{"), "{metrics:?}");
        let refused = ask(&server, port, "/configz", &monitor);
        assert!(refused.err.contains("cannot get path \"/configz\""), "{refused:?}");
        let anonymous = ask(&server, port, "/metrics", "");
        assert!(anonymous.err.contains("User \"system:anonymous\" cannot get path"), "{anonymous:?}");
        let nobody = ask(&server, port, "/metrics", "wrong");
        assert!(!nobody.ok && nobody.err.contains("Unauthorized"), "{nobody:?}");
        let flags = ask(&server, port, "/flagz", TOKEN).out;
        assert!(flags.contains("\ntls-min-version=VersionTLS13\n"), "{flags}");
        let status = ask(&server, port, "/statusz", TOKEN).out;
        assert!(status.starts_with(&format!("\n{name} statusz\n")), "{status}");
        let config: Value = serde_json::from_str(&ask(&server, port, "/configz", TOKEN).out).unwrap();
        let elects = match name {
            "kube-scheduler" => &config["componentconfig"]["leaderElection"]["leaderElect"],
            _ => &config["kubecontrollermanager.config.k8s.io"]["Generic"]["LeaderElection"]["leaderElect"],
        };
        assert_eq!(*elects, false, "{config:#}");
    }
}

fn holder(server: &ApiServer) -> String {
    let args =
        ["-n", "kube-system", "get", "lease", "kube-controller-manager", "-o", "jsonpath={.spec.holderIdentity}"];
    server.kubectl(&args, "").out
}

#[test]
fn a_leader_that_slept_through_the_end_of_its_term_writes_nothing() {
    let server = server_for_components(PORT + 3, &[]);
    let short = [
        "--secure-port=0",
        "--leader-elect-lease-duration=3s",
        "--leader-elect-renew-deadline=2s",
        "--leader-elect-retry-period=500ms",
    ];
    let start = |controllers: &str| {
        let controllers = format!("--controllers={controllers}");
        Component::start(&server, "kube-controller-manager", &[&short[..], &[&controllers]].concat())
    };
    let mut first = start("deployment-controller");
    assert!(holds_within(WAIT, || !holder(&server).is_empty()), "{}", first.log());
    let deployment = |name: &str| {
        let template =
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        let spec = json!({"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": template});
        let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec});
        server.kubectl_ok(&["create", "-f", "-"], &object.to_string());
    };
    let sets = || server.kubectl_ok(&["get", "replicasets", "-o", "name"], "").lines().count();
    deployment("while-awake");
    assert!(holds_within(WAIT, || sets() == 1), "{}", first.log());

    let asleep = holder(&server);
    first.signal(Signal::SIGSTOP);
    // The other one has nothing to do with deployments: what becomes of them is the first one's doing.
    let _second = start("ttl-controller");
    assert!(holds_within(WAIT, || holder(&server) != asleep));
    deployment("while-asleep");
    first.signal(Signal::SIGCONT);
    let status = first.end(Duration::from_secs(30));
    assert!(!status.success() && first.log().contains("leaderelection lost"), "{status} {}", first.log());
    assert_eq!(sets(), 1, "{}", first.log());
}

/// Where secrets are stored as they are, or encrypted.
fn encryption(first: &str, second: &str) -> String {
    let provider = |name: &str| match name {
        "identity" => json!({"identity": {}}),
        _ => json!({"aescbc": {"keys": [{"name": "k", "secret": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="}]}}),
    };
    let rule = json!({"resources": ["secrets"], "providers": [provider(first), provider(second)]});
    json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration", "resources": [rule]})
        .to_string()
}

#[test]
fn controllers_of_kinds_that_are_not_stable_work_behind_their_gates() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("encryption.json");
    std::fs::write(&file, encryption("identity", "aescbc")).unwrap();
    let served =
        ["storagemigration.k8s.io/v1beta1", "internal.apiserver.k8s.io/v1alpha1", "certificates.k8s.io/v1beta1"];
    let flags = [
        format!("--encryption-provider-config={}", file.display()),
        format!("--runtime-config={}", served.map(|version| format!("{version}=true")).join(",")),
    ];
    let mut server = server_for_components(PORT + 4, &flags);
    let get = |server: &ApiServer, what: &str, path: &str| {
        server.kubectl(&["get", what, "-o", &format!("jsonpath={{{path}}}")], "").out
    };
    server.kubectl_ok(&["create", "secret", "generic", "old", "--from-literal=a=b"], "");
    let before = get(&server, "secret/old", ".metadata.resourceVersion");
    std::fs::write(&file, encryption("aescbc", "identity")).unwrap();
    server.kill_and_start_again();
    server.wait_until_ready();

    let version = json!({"apiVersion": "internal.apiserver.k8s.io/v1alpha1", "kind": "StorageVersion",
        "metadata": {"name": "core.pods"}, "spec": {}});
    server.kubectl_ok(&["create", "-f", "-"], &version.to_string());
    let of_server = json!([{"apiServerID": "gone", "encodingVersion": "v1", "decodableVersions": ["v1"]}]);
    let patch = json!({"status": {"storageVersions": of_server}}).to_string();
    server.kubectl_ok(
        &["patch", "storageversion", "core.pods", "--subresource=status", "--type=merge", "-p", &patch],
        "",
    );
    let migration = json!({"apiVersion": "storagemigration.k8s.io/v1beta1", "kind": "StorageVersionMigration",
        "metadata": {"name": "m"}, "spec": {"resource": {"group": "", "resource": "secrets"}}});
    server.kubectl_ok(&["create", "-f", "-"], &migration.to_string());

    let gates = "--feature-gates=StorageVersionAPI=true,StorageVersionMigrator=true,ClusterTrustBundle=true";
    let controllers = Component::controllers(&server, &[gates]);
    let condition = |name: &str| {
        get(&server, "storageversionmigration/m", &format!(".status.conditions[?(@.type==\"{name}\")].status"))
    };
    assert!(holds_within(WAIT, || condition("Succeeded") == "True"), "{}", controllers.log());
    assert_eq!(condition("Running"), "False");
    let (began, after) = (
        get(&server, "storageversionmigration/m", ".status.resourceVersion"),
        get(&server, "secret/old", ".metadata.resourceVersion"),
    );
    let number = |version: &str| version.parse::<u64>().unwrap();
    assert!(number(&before) <= number(&began) && number(&began) < number(&after), "{before} {began} {after}");
    assert_eq!(get(&server, "secret/old", ".metadata.managedFields[*].manager"), "kubectl-create");
    let gone = || !server.kubectl(&["get", "storageversion", "core.pods"], "").ok;
    assert!(holds_within(WAIT, gone), "{}", controllers.log());
    let bundles = || get(&server, "clustertrustbundles", ".items[*].metadata.name");
    let published = holds_within(WAIT, || bundles().starts_with("kubernetes.io:kube-apiserver-serving:"));
    assert!(published, "{} {}", bundles(), controllers.log());
}

#[test]
fn a_gang_has_nodes_for_enough_of_its_pods_or_for_none() {
    let flags = ["--runtime-config=scheduling.k8s.io/v1alpha2=true".to_owned()];
    let server = server_for_components(PORT + 5, &flags);
    let create = |object: &Value| drop(server.kubectl_ok(&["create", "-f", "-"], &object.to_string()));
    let node = |name: &str| {
        create(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}));
        let status = json!({"status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "10"},
            "conditions": [{"type": "Ready", "status": "True"}]}});
        server.kubectl_ok(
            &["patch", "node", name, "--subresource=status", "--type=merge", "-p", &status.to_string()],
            "",
        );
        let taints = json!({"spec": {"taints": null}}).to_string();
        server.kubectl_ok(&["patch", "node", name, "--type=merge", "-p", &taints], "");
    };
    let pod = |name: &str, group: Option<&str>| {
        let requests = json!({"requests": {"cpu": "2"}});
        let mut spec = json!({"terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "i", "resources": requests}]});
        if let Some(group) = group {
            spec["schedulingGroup"] = json!({"podGroupName": group});
        }
        create(
            &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"gang": group.is_some().to_string()}}, "spec": spec}),
        );
    };
    let made = || server.kubectl(&["create", "serviceaccount", "default"], "").ok;
    assert!(holds_within(WAIT, made));
    node("n1");
    node("n2");
    create(&json!({"apiVersion": "scheduling.k8s.io/v1alpha2", "kind": "PodGroup", "metadata": {"name": "g"},
        "spec": {"schedulingPolicy": {"gang": {"minCount": 3}}}}));
    let gate = "--feature-gates=GangScheduling=true";
    let scheduler = Component::start(&server, "kube-scheduler", &["--leader-elect=false", "--secure-port=0", gate]);
    ["a", "b", "c"].iter().for_each(|name| pod(name, Some("g")));
    let group = |path: &str| server.kubectl(&["get", "podgroup", "g", "-o", &format!("jsonpath={{{path}}}")], "").out;
    let reason = || group(".status.conditions[?(@.type==\"PodGroupScheduled\")].reason");
    assert!(holds_within(WAIT, || reason() == "Unschedulable"), "{}", scheduler.log());
    let why = group(".status.conditions[0].message");
    assert!(
        why.starts_with("2 of 3 pods that the group needs found a node: 0/2 nodes are available: 2 Insufficient cpu."),
        "{why}"
    );
    let placed =
        || server.kubectl(&["get", "pods", "-l", "gang=true", "-o", "jsonpath={.items[*].spec.nodeName}"], "").out;
    assert_eq!(placed(), "");
    // What none of them keeps is there for others.
    pod("single", None);
    let runs = || !server.kubectl(&["get", "pod", "single", "-o", "jsonpath={.spec.nodeName}"], "").out.is_empty();
    assert!(holds_within(WAIT, runs), "{}", scheduler.log());
    node("n3");
    node("n4");
    assert!(holds_within(WAIT, || placed().split(' ').count() == 3), "{} {}", placed(), scheduler.log());
    assert!(holds_within(WAIT, || reason() == "Scheduled"), "{}", scheduler.log());
    let shown = server.kubectl_ok(&["get", "podgroups", "--no-headers"], "");
    let cells: Vec<&str> = shown.split_whitespace().take(4).collect();
    assert_eq!(cells, ["g", "Gang", "<none>", "Scheduled"], "{shown}");
}
