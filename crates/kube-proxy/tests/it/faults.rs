//! What happens to rules when something goes wrong, or much happens at once.

use std::process::Command;
use std::time::Duration;

use kube_proxy::Config;
use serde_json::{Value, json};
use testing::netns::Namespaces;
use tokio_util::sync::CancellationToken;

use crate::scripted;

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
/// How long anything may take on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(120);

fn service(i: usize) -> Value {
    let ip = format!("10.96.0.{}", i + 1);
    json!({"metadata": {"name": format!("s{i}"), "namespace": "default", "resourceVersion": "1"},
        "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80, "protocol": "TCP"}]}})
}

/// The endpoints of a Service, another one with each version.
fn slice(i: usize, version: usize) -> Value {
    json!({"metadata": {"name": format!("s{i}-x"), "namespace": "default", "resourceVersion": (version + 1).to_string(),
            "labels": {"kubernetes.io/service-name": format!("s{i}")}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [endpoint(i, version)], "conditions": {"ready": true}}]})
}

fn endpoint(i: usize, version: usize) -> String {
    format!("10.{}.{}.{}", 128 + version / 200, version % 200, i + 1)
}

fn quiet() -> Config {
    let mut config = Config::new("node");
    (config.healthz_address, config.metrics_address, config.conntrack) = (None, None, None);
    config
}

/// Which endpoint each Service has in the kernel, as `nft` lists them.
fn endpoints(net: &Namespaces) -> String {
    let words = ["netns", "exec", &net.ns("node"), "nft", "list", "map", "ip", "kube-proxy", "endpoints-tcp"];
    let listed = Command::new("ip").args(words).output().unwrap();
    String::from_utf8_lossy(&listed.stdout).into_owned()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    testing::wait::until(what, PATIENCE, || std::future::ready(holds())).await;
}

fn syncs(config: &Config) -> u64 {
    let counted = "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} ";
    let text = config.metrics.text();
    text.lines().find_map(|line| line.strip_prefix(counted)).and_then(|n| n.parse().ok()).unwrap_or_default()
}

#[test]
fn ten_thousand_changes_of_endpoints_are_written_together_and_the_last_of_each_holds() {
    const SERVICES_CHANGED: usize = 100;
    const CHANGES: usize = 100; // of each
    let net = Namespaces::new("proxy", &["node"]);
    let lists = scripted::Lists::from([
        (SERVICES, (0..SERVICES_CHANGED).map(service).collect()),
        (SLICES, (0..SERVICES_CHANGED).map(|i| slice(i, 0)).collect()),
        ("/api/v1/nodes", Vec::new()),
    ]);
    net.block_on("node", async {
        let (client, changes) = scripted::client(lists);
        let (config, stop) = (quiet(), CancellationToken::new());
        let proxy = tokio::spawn(kube_proxy::run(config.clone(), client, stop.clone()));
        until("rules", || syncs(&config) > 0).await;
        assert!(endpoints(&net).contains(&endpoint(7, 0)));
        for version in 1..=CHANGES {
            for i in 0..SERVICES_CHANGED {
                changes.send((SLICES, "MODIFIED", slice(i, version))).unwrap();
            }
            // The proxy hears of them while they come.
            until("all heard", || changes.is_empty()).await;
        }
        until("the last change", || endpoints(&net).contains(&endpoint(SERVICES_CHANGED - 1, CHANGES))).await;
        let now = endpoints(&net);
        for i in 0..SERVICES_CHANGED {
            assert!(now.contains(&format!("{} . 8080", endpoint(i, CHANGES))), "{i}: {now}");
        }
        assert_eq!(now.matches(" . 8080").count(), SERVICES_CHANGED, "{now}");
        let writes = syncs(&config);
        assert!(writes < 2_000, "{writes} writes of 10,000 changes");
        stop.cancel();
        proxy.await.unwrap().unwrap();
    });
}
