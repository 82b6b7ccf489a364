//! What a cluster survives.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::PostParams;
use storage::testing::etcd_server::{ClusterOptions, EtcdCluster};
use testing::netns::inside;

use super::host::{Host, Network, holds_in_time, pack_image};
use super::{OneNode, hello, turn};

const READY: &str = "jsonpath={.status.readyReplicas}";
const STARTED: &str = "jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[0].containerID} \
                       {.status.containerStatuses[0].restartCount}{\"\\n\"}{end}";

fn run_hello(host: &Host) {
    host.kubectl_ok(&["apply", "-f", "-"], &hello());
    host.until(&["get", "deployment", "hello", "-o", READY], |n| n == "2");
}

#[test]
fn a_killed_container_restarts_and_a_killed_pod_is_replaced() {
    let cluster = OneNode::start(&[]);
    let host = &cluster.host;
    run_hello(host);
    let name = host.kubectl_ok(&["get", "pods", "-o", "jsonpath={.items[0].metadata.name}"], "");
    let id = "jsonpath={.status.containerStatuses[0].containerID}";
    host.kill_container(&host.kubectl_ok(&["get", "pod", &name, "-o", id], ""));
    let restarts = "jsonpath={.status.containerStatuses[0].restartCount}";
    host.until(&["get", "pod", &name, "-o", restarts], |n| n == "1");
    host.until(&["get", "deployment", "hello", "-o", READY], |n| n == "2");

    host.kubectl_ok(&["delete", "pod", &name, "--grace-period=0", "--force"], "");
    host.until(&["get", "pods", "-o", "name"], |names| !names.contains(&name) && names.lines().count() == 2);
    host.until(&["get", "deployment", "hello", "-o", READY], |n| n == "2");
    host.wait_for_page(&format!("http://{}:30080/", host.address), "Hello from Kelson");
}

#[test]
fn containerd_can_be_killed_under_running_pods() {
    let cluster = OneNode::start(&[]);
    let host = &cluster.host;
    run_hello(host);
    let before = host.kubectl_ok(&["get", "pods", "-o", STARTED], "");
    let killed = host.kill_containerd();
    host.wait_for_page(&format!("http://{}:30080/", host.address), "Hello from Kelson");
    let file = host.dir.join("containerd/containerd.pid");
    let is_new = || std::fs::read_to_string(&file).is_ok_and(|pid| pid.trim() != killed.to_string());
    assert!(holds_in_time(is_new), "containerd is not started again\n{}", host.log());
    host.wait_until_node_is_ready(&host.name);
    assert_eq!(host.kubectl_ok(&["get", "pods", "-o", STARTED], ""), before, "containers were started again");
    // The new one runs pods as the old one did, and sees what becomes of the old one's.
    host.kubectl_ok(&["scale", "deployment", "hello", "--replicas=3"], "");
    host.until(&["get", "deployment", "hello", "-o", READY], |n| n == "3");
    let name = host.kubectl_ok(&["get", "pods", "-o", "jsonpath={.items[0].metadata.name}"], "");
    let id = "jsonpath={.status.containerStatuses[0].containerID}";
    host.kill_container(&host.kubectl_ok(&["get", "pod", &name, "-o", id], ""));
    let restarts = "jsonpath={.status.containerStatuses[0].restartCount}";
    host.until(&["get", "pod", &name, "-o", restarts], |n| n == "1");
}

#[test]
fn a_node_that_stops_is_not_ready_and_its_pods_move() {
    let _turn = turn();
    let network = Network::new();
    let (mut one, mut two) = (network.host(1), network.host(2));
    for host in [&one, &two] {
        pack_image(host);
    }
    one.up(&[]);
    one.wait_until_node_is_ready(&one.name);
    // The second trusts the first's authority.
    let copied = std::process::Command::new("cp").arg("-r").args([one.dir.join("pki"), two.dir.clone()]).status();
    assert!(copied.unwrap().success());
    two.up(&[format!("--server=https://{}:6443", one.address)]);
    one.wait_until_node_is_ready(&two.name);

    // Pods of both nodes, spread by hand, answer through one Service on either node.
    one.kubectl_ok(&["cordon", &one.name], "");
    let tolerant = hello().replacen(
        "      containers:",
        "      tolerations:\n      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}\n      containers:",
        1,
    );
    one.kubectl_ok(&["apply", "-f", "-"], &tolerant);
    one.until(&["get", "deployment", "hello", "-o", READY], |n| n == "2");
    one.kubectl_ok(&["uncordon", &one.name], "");
    for host in [&one, &two] {
        one.wait_for_page(&format!("http://{}:30080/", host.address), "Hello from Kelson");
        host.wait_for_page(&format!("http://{}:30080/", one.address), "Hello from Kelson");
    }
    two.kill_kelson();
    let path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
    one.until(&["get", "node", &two.name, "-o", path], |out| out == "Unknown");
    let taints = "jsonpath={.spec.taints[*].key}";
    one.until(&["get", "node", &two.name, "-o", taints], |keys| keys.contains("node.kubernetes.io/unreachable"));
    let nodes = "jsonpath={.items[?(@.status.phase=='Running')].spec.nodeName}";
    one.until(&["get", "pods", "-o", nodes], |names| names.matches(one.name.as_str()).count() == 2);
    one.until(&["get", "deployment", "hello", "-o", READY], |n| n == "2");
    one.wait_for_page(&format!("http://{}:30080/", one.address), "Hello from Kelson");
}

/// Kills Kelson in the middle of 1,000 concurrent writes: what was acknowledged is there afterwards, and no container has
/// noticed. `meanwhile` happens with the crash.
fn survives_a_crash(host: &mut Host, flags: &[String], meanwhile: impl FnOnce()) {
    const WRITES: usize = 1000;
    run_hello(host);
    let before = host.kubectl_ok(&["get", "pods", "-o", STARTED], "");
    let acknowledged = AtomicUsize::new(0);
    let written: Mutex<Vec<String>> = Mutex::default();
    let kubeconfig = host.kubeconfig();
    let namespace = host.namespace();
    std::thread::scope(|scope| {
        let writers = scope.spawn(|| {
            inside(&namespace, || write_config_maps(&kubeconfig, WRITES, &acknowledged, &written));
        });
        // In the middle: some are through, most are not.
        assert!(holds_in_time(|| acknowledged.load(Ordering::Relaxed) > WRITES / 20));
        host.kill_kelson();
        meanwhile();
        writers.join().unwrap();
    });
    let written = written.into_inner().unwrap();
    assert!(written.len() < WRITES, "the crash came too late to be one");
    host.wait_for_page(&format!("http://{}:30080/", host.address), "Hello from Kelson");
    host.up(flags);
    host.until(&["get", "--raw", "/readyz"], |out| out == "ok");
    let kept = host.kubectl_ok(&["get", "configmaps", "-o", "name"], "");
    let kept: HashSet<&str> = kept.lines().filter_map(|line| line.strip_prefix("configmap/")).collect();
    let lost: Vec<&String> = written.iter().filter(|name| !kept.contains(name.as_str())).collect();
    assert!(lost.is_empty(), "{} of {} acknowledged writes are lost: {lost:?}", lost.len(), written.len());
    host.wait_until_node_is_ready(&host.name);
    host.until(&["get", "deployment", "hello", "-o", READY], |n| n == "2");
    assert_eq!(host.kubectl_ok(&["get", "pods", "-o", STARTED], ""), before, "containers were started again");
}

/// Writes all at once and notes which were acknowledged.
fn write_config_maps(kubeconfig: &Path, count: usize, acknowledged: &AtomicUsize, written: &Mutex<Vec<String>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = client::config::ClientOptions::unlimited("test");
        let client = client::config::from_kubeconfig(kubeconfig, &options).await.unwrap();
        let maps: Api<ConfigMap> = Api::namespaced(client, "default");
        let writes = (0..count).map(|i| {
            let maps = maps.clone();
            async move {
                let mut map = ConfigMap::default();
                let name = format!("w{i}");
                map.metadata.name = Some(name.clone());
                // One that is not answered may or may not be there.
                if maps.create(&PostParams::default(), &map).await.is_ok() {
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                    written.lock().unwrap().push(name);
                }
            }
        });
        futures::future::join_all(writes).await;
    });
}

#[test]
fn a_crash_loses_no_acknowledged_write_and_no_container() {
    let mut cluster = OneNode::start(&[]);
    survives_a_crash(&mut cluster.host, &[], || {});
}

#[test]
fn a_crash_and_the_loss_of_an_etcd_member_lose_no_acknowledged_write_and_no_container() {
    let _turn = turn();
    let network = Network::new();
    let mut host = network.host(1);
    pack_image(&host);
    let mut etcd = EtcdCluster::start_in(&host.ns, 3, ClusterOptions { tls: true, ..ClusterOptions::default() });
    let options = etcd.options();
    let file = |file: Option<std::path::PathBuf>| file.unwrap().display().to_string();
    let flags = [
        format!("--etcd-servers={}", options.servers.join(",")),
        format!("--etcd-cafile={}", file(options.ca_file)),
        format!("--etcd-certfile={}", file(options.cert_file)),
        format!("--etcd-keyfile={}", file(options.key_file)),
    ];
    host.up(&flags);
    host.wait_until_node_is_ready(&host.name);
    survives_a_crash(&mut host, &flags, || etcd.kill(0));
}
