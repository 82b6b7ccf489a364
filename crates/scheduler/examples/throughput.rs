//! How many pods are decided on in a second, in process: `throughput [nodes] [pods]`.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::time::Instant;

use k8s_openapi::api::core::v1::{Node, Pod};
use scheduler::Config;
use scheduler::listers::Listers;
use scheduler::simulation::{Decision, Simulation};
use serde_json::{Value, json};

fn node(at: usize) -> Node {
    let value = json!({
        "metadata": {"name": format!("node-{at}"), "labels": {
            "kubernetes.io/hostname": format!("node-{at}"),
            "topology.kubernetes.io/zone": format!("zone-{}", at % 3)}},
        "status": {"allocatable": {"cpu": "4", "memory": "32Gi", "pods": "110"}},
    });
    serde_json::from_value(value).expect("a node")
}

fn pod(name: &str, spec: &Value) -> Pod {
    let mut value = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "bench"}},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "100m", "memory": "100Mi"}}}]},
    });
    for (field, own) in spec.as_object().into_iter().flatten() {
        value["spec"][field] = own.clone();
    }
    serde_json::from_value(value).expect("a pod")
}

fn main() {
    let mut args = std::env::args().skip(1).filter_map(|arg| arg.parse::<usize>().ok());
    let (nodes, pods) = (args.next().unwrap_or(5_000), args.next().unwrap_or(10_000));
    let app = json!({"matchLabels": {"app": "bench"}});
    let spread = |when: &str| {
        json!({"topologySpreadConstraints": [{"maxSkew": 5, "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": when, "labelSelector": app}]})
    };
    let terms = json!([{"topologyKey": "kubernetes.io/hostname", "labelSelector": app}]);
    let apart = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}});
    let zone = json!([{"topologyKey": "topology.kubernetes.io/zone", "labelSelector": app}]);
    let near = json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": zone}}});
    let in_zone =
        json!({"matchExpressions": [{"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["zone-1"]}]});
    let affine = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [in_zone]}}}});
    for (variant, spec, pods) in [
        ("plain", json!({}), pods),
        ("node affinity", affine, pods),
        ("topology spread", spread("DoNotSchedule"), pods.min(5_000)),
        ("preferred topology spread", spread("ScheduleAnyway"), pods.min(5_000)),
        ("required anti-affinity", apart, pods.min(2_000)),
        ("required affinity", near, pods.min(5_000)),
    ] {
        let mut simulation = Simulation::new(&Config::default(), Listers::empty()).expect("the defaults are right");
        (0..nodes).for_each(|at| simulation.set_node(node(at)));
        (0..pods).for_each(|at| simulation.set_pod(pod(&format!("pod-{at}"), &spec)));
        let began = Instant::now();
        let bound = simulation.schedule_all().iter().filter(|own| matches!(own, Decision::Bound { .. })).count();
        let took = began.elapsed().as_secs_f64();
        println!("{variant}: {bound} of {pods} pods on {nodes} nodes in {took:.2} s, {:.0} pods/s", pods as f64 / took);
    }
}
