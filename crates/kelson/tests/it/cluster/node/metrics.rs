//! What nodes and pods use, as users, autoscalers and collectors read it.

use std::time::Duration;

use serde_json::json;

use testing::wait::last_within;

use super::super::OneNode;
use super::super::host::Host;
use super::{IMAGE, LONG, Walk, apply, field, fields, phase, pod, sh, with};

/// Uses all of the CPU that it is given.
const BUSY: &str = "trap 'exit 0' TERM; while :; do :; done";

fn top(host: &Host, walk: &mut Walk) {
    let small = json!({ "resources": { "requests": { "cpu": "100m", "memory": "8Mi" }, "limits": { "cpu": "200m", "memory": "32Mi" } } });
    apply(host, &[pod("busy", json!({ "containers": [with(sh("c", BUSY), small)] }))]);
    phase(host, "busy", &["Running"]);
    let ask = |words: &[&str]| host.kubectl(words, "").out;
    let group =
        || field(host, "apiservice/v1beta1.metrics.k8s.io", ".status.conditions[?(@.type=='Available')].status");
    walk.equals("The metrics API is available", &last_within(LONG, group, |s| s == "True"), "True");
    let nodes = last_within(LONG, || ask(&["top", "nodes", "--no-headers"]), |out| out.contains(&host.name));
    walk.contains("kubectl top shows nodes", &nodes, &host.name);
    let pods = last_within(LONG, || ask(&["top", "pods", "--no-headers"]), |out| out.contains("busy"));
    let cpu =
        pods.split_whitespace().nth(1).and_then(|cpu| cpu.strip_suffix('m')?.parse::<u32>().ok()).unwrap_or_default();
    walk.check("kubectl top shows what a pod uses", (50..=300).contains(&cpu), &pods);
    let one = "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods/busy";
    let shown = last_within(LONG, || ask(&["get", "--raw", one]), |out| out.contains("\"kind\":\"PodMetrics\""));
    walk.contains("One pod's metrics name its containers", &shown, "\"name\":\"c\"");
    let chosen = ask(&["get", "--raw", "/apis/metrics.k8s.io/v1beta1/pods?labelSelector=app%3Dnobody"]);
    walk.contains("Metrics are selected by labels", &chosen, "\"items\":[]");
}

fn autoscaling(host: &Host, walk: &mut Walk) {
    let requests =
        json!({ "resources": { "requests": { "cpu": "50m", "memory": "8Mi" }, "limits": { "cpu": "100m" } } });
    let template = json!({ "metadata": { "labels": { "app": "scaled" } },
        "spec": { "terminationGracePeriodSeconds": 1, "containers": [with(sh("c", BUSY), requests)] } });
    let deployment = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "scaled" },
        "spec": { "replicas": 1, "selector": { "matchLabels": { "app": "scaled" } }, "template": template } });
    let target = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "name": "scaled" });
    let cpu = json!({ "type": "Resource", "resource": { "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 60 } } });
    let scaler = json!({ "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": { "name": "scaled" },
        "spec": { "minReplicas": 1, "maxReplicas": 2, "scaleTargetRef": target, "metrics": [cpu] } });
    apply(host, &[deployment, scaler]);
    let replicas =
        last_within(Duration::from_secs(180), || field(host, "deployment/scaled", ".spec.replicas"), |n| n == "2");
    let conditions = fields(host, "hpa/scaled", &[".status.conditions[*].message"]);
    walk.check("A busy Deployment is scaled on CPU", replicas == "2", &conditions);
    host.kubectl_ok(&["delete", "deployment,hpa", "scaled"], "");
}

fn kubelet(host: &Host, walk: &mut Walk) {
    let probed = json!({ "name": "c", "image": IMAGE, "imagePullPolicy": "Never",
        "readinessProbe": { "httpGet": { "path": "/", "port": 8080 }, "periodSeconds": 1 } });
    let scratch = json!([{ "name": "scratch", "emptyDir": {} }]);
    let mounted = with(probed, json!({ "volumeMounts": [{ "name": "scratch", "mountPath": "/scratch" }] }));
    apply(host, &[pod("measured", json!({ "containers": [mounted], "volumes": scratch }))]);
    last_within(LONG, || field(host, "pod/measured", ".status.conditions[?(@.type=='Ready')].status"), |s| s == "True");
    let get =
        |path: &str| host.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{}/proxy/{path}", host.name)], "").out;
    let labels = "container=\"c\",namespace=\"default\",pod=\"measured\"";
    let resource = last_within(LONG, || get("metrics/resource"), |text| text.contains(labels));
    for name in
        ["container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_start_time_seconds"]
    {
        walk.contains("/metrics/resource: containers", &resource, &format!("{name}{{{labels}}} "));
    }
    for name in ["node_cpu_usage_seconds_total", "node_memory_working_set_bytes", "resource_scrape_error"] {
        walk.contains("/metrics/resource: the node", &resource, &format!("\n{name} "));
    }
    for name in ["pod_cpu_usage_seconds_total", "pod_memory_working_set_bytes"] {
        walk.contains(
            "/metrics/resource: pods",
            &resource,
            &format!("{name}{{namespace=\"default\",pod=\"measured\"}} "),
        );
    }
    let cadvisor = get("metrics/cadvisor");
    for name in [
        "container_cpu_usage_seconds_total",
        "container_memory_rss",
        "container_memory_usage_bytes",
        "machine_cpu_cores",
    ] {
        walk.contains("/metrics/cadvisor", &cadvisor, &format!("\n{name}{{"));
    }
    let probes = get("metrics/probes");
    let wanted = "prober_probe_total{container=\"c\",namespace=\"default\",pod=\"measured\"";
    walk.contains("/metrics/probes", &probes, wanted);
    let summary: serde_json::Value = serde_json::from_str(&get("stats/summary")).unwrap_or_default();
    let pods = summary["pods"].as_array().cloned().unwrap_or_default();
    let found = pods.iter().find(|p| p["podRef"]["name"] == "measured").cloned().unwrap_or_default();
    walk.check("/stats/summary: the pod's memory", found["memory"]["workingSetBytes"].as_u64() > Some(0), &found);
    walk.check("/stats/summary: its containers", found["containers"][0]["name"] == "c", &found);
    walk.check("/stats/summary: its volumes", found["volume"][0]["name"] == "scratch", &found);
    walk.check("/stats/summary: the node", summary["node"]["nodeName"] == host.name.as_str(), &summary["node"]);
    let refused =
        host.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{}/proxy/metrics", host.name), "--as=nobody"], "");
    walk.contains("The kubelet's endpoints are not for everybody", &refused.err, "Forbidden");
}

#[test]
fn what_is_used_is_shown_and_scaled_on() {
    let cluster = OneNode::start(&[]);
    let host = &cluster.host;
    let mut walk = Walk::default();
    kubelet(host, &mut walk);
    top(host, &mut walk);
    autoscaling(host, &mut walk);
    walk.end(host);
}
