//! What Services cost the proxy: the first write of all, and a change of one endpoint.
//!
//! `unshare --net cargo run --release -p kube-proxy --example growth -- [SERVICES] [ENDPOINTS]`, as root: it writes the rules
//! of the network namespace that it is in.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[path = "../../client/tests/scripted/mod.rs"]
mod scripted;

use std::time::{Duration, Instant};

use kube_proxy::Config;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const CHANGES: usize = 50;

fn service(i: usize) -> Value {
    let ip = format!("10.{}.{}.{}", 96 + i / 62_500, i / 250 % 250, i % 250 + 1);
    json!({"metadata": {"name": format!("s{i}"), "namespace": "default", "resourceVersion": "1"},
        "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80, "protocol": "TCP"}]}})
}

fn slice(i: usize, endpoints: usize, version: usize) -> Value {
    let address = |j: usize| {
        // One endpoint is another with each version.
        let last = if j == 0 { version % 250 } else { j % 250 };
        format!("10.{}.{}.{}", 128 + i / 250 % 100, i % 250, last + 1)
    };
    let endpoints: Vec<Value> =
        (0..endpoints).map(|j| json!({"addresses": [address(j)], "conditions": {"ready": true}})).collect();
    json!({"metadata": {"name": format!("s{i}-x"), "namespace": "default", "resourceVersion": version.to_string(),
            "labels": {"kubernetes.io/service-name": format!("s{i}")}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints})
}

/// How many syncs there were.
fn syncs(config: &Config) -> u64 {
    let text = config.metrics.text();
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix("kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} "));
    line.and_then(|count| count.parse().ok()).unwrap_or_default()
}

async fn until_synced(config: &Config, more_than: u64) {
    while syncs(config) <= more_than {
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or_default() / 1024
}

#[tokio::main]
async fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|n| n.parse::<usize>().ok());
    let (services, endpoints) = (numbers.next().unwrap_or(10_000), numbers.next().unwrap_or(10));
    let lists = scripted::Lists::from([
        (SERVICES, (0..services).map(service).collect()),
        (SLICES, (0..services).map(|i| slice(i, endpoints, 1)).collect()),
        ("/api/v1/nodes", Vec::new()),
    ]);
    let (client, changes) = scripted::client(lists);
    let mut config = Config::new("node");
    (config.healthz_address, config.metrics_address, config.conntrack) = (None, None, None);
    let before = resident();
    let started = Instant::now();
    let stop = CancellationToken::new();
    let proxy = tokio::spawn(kube_proxy::run(config.clone(), client, stop.clone()));
    until_synced(&config, 0).await;
    println!("{services} Services of {endpoints} endpoints: from nothing in {:.2} s", started.elapsed().as_secs_f64());
    let mut took = Vec::new();
    for version in 2..CHANGES + 2 {
        // Longer than changes are gathered for.
        tokio::time::sleep(Duration::from_millis(30)).await;
        let (known, began) = (syncs(&config), Instant::now());
        let told = changes.send((SLICES, "MODIFIED", slice(services / 2, endpoints, version)));
        told.expect("the proxy watches");
        until_synced(&config, known).await;
        took.push(began.elapsed());
    }
    took.sort();
    let ms = |d: Duration| d.as_secs_f64() * 1000.0;
    println!(
        "a change of one endpoint: median {:.1} ms, slowest {:.1} ms",
        ms(took[CHANGES / 2]),
        ms(took[CHANGES - 1])
    );
    println!("resident memory: {} MiB, of which {before} MiB before the start", resident());
    stop.cancel();
    proxy.await.expect("the proxy ends").expect("the proxy ends well");
}
