//! The API server on a real etcd: what it writes is what upstream writes, what others wrote it serves, and it lives through
//! an etcd that is away.

use std::io::{BufRead, BufReader};
use std::sync::Arc;
use std::time::Instant;

use base64::Engine as _;
use serde_json::Value;
use storage::etcd::Etcd;
use storage::testing::etcd_server::{ClusterOptions, EtcdCluster};
use storage::{Key, Storage};

use crate::apiserver::{ApiServer, WAIT};

const PORT: u16 = 18050;

fn flags(cluster: &EtcdCluster) -> Vec<String> {
    let options = cluster.options();
    let mut flags = vec![format!("--etcd-servers={}", options.servers.join(","))];
    let files = [("cafile", options.ca_file), ("certfile", options.cert_file), ("keyfile", options.key_file)];
    flags.extend(files.into_iter().filter_map(|(name, file)| Some(format!("--etcd-{name}={}", file?.display()))));
    flags
}

fn start(cluster: &EtcdCluster, port: u16) -> ApiServer {
    ApiServer::start(cluster.address(), port, &flags(cluster))
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn objects_lie_in_etcd_as_upstream_lays_them() {
    let cluster = EtcdCluster::start(1, ClusterOptions { tls: true, ..ClusterOptions::default() });
    let server = start(&cluster, PORT);
    server.wait_until_ready();
    server.kubectl_ok(&["create", "configmap", "settings", "--from-literal=colour=green"], "");
    server.kubectl_ok(&["create", "deployment", "web", "--image=registry.example/web"], "");
    server.kubectl_ok(&["create", "service", "clusterip", "web", "--tcp=80"], "");
    let event = r#"{"apiVersion":"v1","kind":"Event","metadata":{"name":"e","namespace":"default"},
        "involvedObject":{"kind":"Pod","namespace":"default","name":"p"},"reason":"R","type":"Normal"}"#;
    server.kubectl_ok(&["create", "-f", "-"], event);
    for (key, kind) in [
        ("/registry/configmaps/default/settings", "\n\x02v1\x12\tConfigMap\x12"),
        ("/registry/deployments/default/web", "\n\x07apps/v1\x12\nDeployment\x12"),
        ("/registry/services/specs/default/web", "\n\x02v1\x12\x07Service\x12"),
        ("/registry/events/default/e", "\n\x02v1\x12\x05Event\x12"),
        ("/registry/namespaces/default", "\n\x02v1\x12\tNamespace\x12"),
    ] {
        let value = cluster.etcdctl(&["get", "--print-value-only", key]);
        assert!(value.starts_with(b"k8s\0\n"), "{key}: {:?}", String::from_utf8_lossy(&value));
        // The envelope's first field has a length before its text.
        assert_eq!(String::from_utf8_lossy(&value[6..6 + kind.len()]), kind, "{key}");
    }
    let lease_of = |key: &str| {
        json(&String::from_utf8(cluster.etcdctl(&["get", "-w", "json", key])).unwrap())["kvs"][0]["lease"].clone()
    };
    assert!(lease_of("/registry/events/default/e").is_number(), "an event has a lease");
    assert!(lease_of("/registry/configmaps/default/settings").is_null(), "nothing else has one");

    let map = json(&server.kubectl_ok(&["get", "configmap", "settings", "-o", "json"], ""));
    assert_eq!(map["data"]["colour"], "green");
    let stored = json(
        &String::from_utf8(cluster.etcdctl(&["get", "-w", "json", "/registry/configmaps/default/settings"])).unwrap(),
    );
    assert_eq!(map["metadata"]["resourceVersion"], stored["kvs"][0]["mod_revision"].to_string());
    let report = server.kubectl_ok(&["get", "--raw", "/readyz?verbose"], "");
    assert!(report.contains("[+]etcd ok\n") && report.contains("[+]etcd-readiness ok\n"), "{report}");
}

#[test]
fn objects_are_written_as_json_when_that_is_wanted() {
    let cluster = EtcdCluster::single();
    let mut flags = flags(&cluster);
    flags.extend(["--storage-media-type=application/json", "--etcd-prefix=/mine"].map(str::to_owned));
    let server = ApiServer::start(cluster.address(), PORT, &flags);
    server.wait_until_ready();
    server.kubectl_ok(&["create", "configmap", "settings", "--from-literal=colour=green"], "");
    let value = cluster.etcdctl(&["get", "--print-value-only", "/mine/configmaps/default/settings"]);
    let stored = json(&String::from_utf8(value).unwrap());
    assert_eq!((&stored["kind"], &stored["data"]["colour"]), (&"ConfigMap".into(), &"green".into()));
    assert!(stored["metadata"]["resourceVersion"].is_null());
    // Another server of the same cluster may write protobuf: each reads what the other wrote, and its writes change that.
    flags[1] = "--storage-media-type=application/vnd.kubernetes.protobuf".to_owned();
    let other = ApiServer::start(cluster.address(), PORT + 1, &flags);
    other.wait_until_ready();
    assert_eq!(other.kubectl_ok(&["get", "configmap", "settings", "-o", "jsonpath={.data.colour}"], ""), "green");
    let unchanged = other.kubectl_ok(&["get", "configmap", "settings", "-o", "json"], "");
    other.kubectl_ok(&["replace", "-f", "-"], &unchanged);
    let value = cluster.etcdctl(&["get", "--print-value-only", "/mine/configmaps/default/settings"]);
    assert!(
        value.starts_with(b"k8s\0"),
        "a replacement by the same migrates it: {:?}",
        String::from_utf8_lossy(&value)
    );
    assert_eq!(server.kubectl_ok(&["get", "configmap", "settings", "-o", "jsonpath={.data.colour}"], ""), "green");
}

/// Where upstream keeps what is served under a path.
fn key_of(path: &str) -> String {
    let mut rest: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    rest.drain(..if rest[0] == "api" { 2 } else { 3 });
    let (namespace, resource, name) = match rest.as_slice() {
        ["namespaces", namespace, resource, name] => (Some(*namespace), *resource, *name),
        [resource, name] => (None, *resource, *name),
        other => panic!("{other:?}"),
    };
    let folder = match resource {
        "nodes" => "minions",
        "services" => "services/specs",
        "ingresses" => "ingress",
        other => other,
    };
    let namespace = namespace.map(|n| format!("{n}/")).unwrap_or_default();
    format!("/registry/{folder}/{namespace}{name}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_upstream_wrote_is_served() {
    let cluster = EtcdCluster::single();
    let store = Arc::new(Etcd::new(&cluster.options()).await.unwrap());
    let recorded: Vec<Value> =
        include_str!("../../../apimachinery/tests/data/objects.jsonl").lines().map(json).collect();
    for row in &recorded {
        let value = base64::engine::general_purpose::STANDARD.decode(row["protobuf"].as_str().unwrap()).unwrap();
        let key = key_of(row["path"].as_str().unwrap());
        store.create(&Key::new(&key), value.into(), None).await.unwrap();
    }
    let server = start(&cluster, PORT);
    server.wait_until_ready();
    for row in &recorded {
        let path = row["path"].as_str().unwrap();
        let mut served = json(&server.kubectl_ok(&["get", "--raw", path], ""));
        let mut wanted = row["json"].clone();
        served["metadata"]["resourceVersion"].take();
        wanted["metadata"]["resourceVersion"].take();
        assert_eq!(served, wanted, "{path}");
    }
}

#[test]
fn a_server_waits_for_its_etcd() {
    let mut cluster = EtcdCluster::prepare(1, ClusterOptions::default());
    let server = start(&cluster, PORT);
    let said = server.wait_for("/readyz?verbose", |said| said.err.contains("[-]etcd failed"));
    assert!(said.err.contains("[-]etcd failed: reason withheld"), "{said:?}");
    assert!(said.err.contains("[-]etcd-readiness failed"), "{said:?}");
    let said = server.kubectl(&["get", "--raw", "/livez/etcd"], "");
    assert!(!said.ok && said.err.contains("error getting data from etcd"), "{said:?}");
    let url = &cluster.servers()[0];
    assert!(server.log().contains(&format!("{url}: ")), "the log says which etcd and why:\n{}", server.log());
    cluster.restart(0);
    server.wait_until_ready();

    // And again when it goes away later; a watch lives on.
    let mut watch = server.spawn_kubectl(&["get", "configmaps", "--watch-only", "-o", "name"]);
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    server.kubectl_ok(&["create", "configmap", "warm-up"], "");
    cluster.kill(0);
    server.wait_for("/readyz", |said| !said.ok);
    cluster.restart(0);
    server.wait_until_ready();
    server.kubectl_ok(&["create", "configmap", "after"], "");
    let seen = lines.by_ref().map_while(Result::ok).find(|line| line == "configmap/after");
    assert_eq!(seen.as_deref(), Some("configmap/after"));
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn old_revisions_are_compacted() {
    let cluster = EtcdCluster::single();
    let mut flags = flags(&cluster);
    flags.push("--etcd-compaction-interval=1s".to_owned());
    let server = ApiServer::start(cluster.address(), PORT, &flags);
    server.wait_until_ready();
    let started = Instant::now();
    let compacted = || {
        let value = cluster.etcdctl(&["get", "--print-value-only", "compact_rev_key"]);
        String::from_utf8(value).unwrap().trim().parse::<u64>().unwrap_or(0)
    };
    while compacted() == 0 {
        assert!(started.elapsed() < WAIT, "nothing was compacted:\n{}", server.log());
    }
    server.kubectl_ok(&["create", "configmap", "after"], "");
}

#[test]
fn two_servers_share_an_etcd() {
    let cluster = EtcdCluster::single();
    let (one, two) = (start(&cluster, PORT), start(&cluster, PORT + 1));
    one.wait_until_ready();
    two.wait_until_ready();
    for i in 0..5 {
        one.kubectl_ok(&["create", "configmap", &format!("c{i}")], "");
        // A list without a resourceVersion is of now, whoever is asked.
        let names = two.kubectl_ok(&["get", "configmaps", "-o", "name"], "");
        assert!(names.contains(&format!("configmap/c{i}\n")), "{names}");
    }
    // Each updates from its cache, and none undoes what the other did.
    for i in 0..10 {
        let server = if i % 2 == 0 { &one } else { &two };
        let patch = format!(r#"{{"data":{{"k{i}":"v"}}}}"#);
        server.kubectl_ok(&["patch", "configmap", "c1", "--type=merge", "-p", &patch], "");
        // Nothing to write, and a precondition that the other's cache may not know of yet.
        let other = if i % 2 == 0 { &two } else { &one };
        let now = server.kubectl_ok(&["get", "configmap", "c1", "-o", "json"], "");
        let again = other.kubectl_ok(&["replace", "-f", "-", "-o", "json"], &now);
        assert_eq!(json(&now)["metadata"]["resourceVersion"], json(&again)["metadata"]["resourceVersion"]);
    }
    let data = json(&one.kubectl_ok(&["get", "configmap", "c1", "-o", "json"], ""))["data"].clone();
    assert_eq!(data.as_object().map(serde_json::Map::len), Some(10), "{data}");
    two.kubectl_ok(&["delete", "configmap", "c0"], "");
    assert!(!one.kubectl_ok(&["get", "configmaps", "-o", "name"], "").contains("c0"));
}
