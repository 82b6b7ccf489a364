//! Random small clusters, dense in coincidences.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use serde_json::{Value, json};

use crate::cluster::Cluster;

/// Numbers to decide by; zeros when they are used up, so that failures shrink to plain worlds.
pub(super) struct Tape {
    numbers: Vec<u16>,
    at: usize,
}

impl Tape {
    pub(super) fn new(numbers: &[u16]) -> Self {
        Self { numbers: numbers.to_vec(), at: 0 }
    }

    fn below(&mut self, bound: usize) -> usize {
        let number = self.numbers.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        usize::from(number) % bound
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) nodes: Vec<Node>,
    pub(super) namespaces: Vec<Namespace>,
    pub(super) services: Vec<Service>,
    pub(super) placed: Vec<Pod>,
    pub(super) pod: Pod,
}

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap_or_else(|err| panic!("{err}"))
}

const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";

fn node(tape: &mut Tape, at: usize) -> Node {
    let mut labels = json!({});
    if !tape.one_in(6) {
        labels[HOST] = json!(format!("n{at}"));
    }
    if !tape.one_in(5) {
        labels[ZONE] = json!(tape.pick(&["a", "b", "c"]));
    }
    if tape.one_in(3) {
        labels["disk"] = json!(tape.pick(&["ssd", "hdd"]));
    }
    let mut taints = Vec::new();
    if tape.one_in(4) {
        let effect = tape.pick(&["NoSchedule", "PreferNoSchedule", "NoExecute"]);
        taints.push(json!({"key": tape.pick(&["k", "l"]), "value": "v", "effect": effect}));
    }
    let images: Vec<Value> = (0..tape.below(3))
        .map(|_| json!({"names": [tape.pick(&["app:1", "side:1"])], "sizeBytes": 700_000_000}))
        .collect();
    typed(json!({
        "metadata": {"name": format!("n{at}"), "labels": labels},
        "spec": {"taints": taints, "unschedulable": tape.one_in(10)},
        "status": {
            "allocatable": {
                "cpu": format!("{}m", 500 * (1 + tape.below(6))),
                "memory": format!("{}Mi", 512 * (1 + tape.below(6))),
                "pods": format!("{}", 2 + tape.below(8)),
            },
            "images": images,
        },
    }))
}

fn selector(tape: &mut Tape) -> Value {
    match tape.below(6) {
        0 => json!({"matchLabels": {"app": tape.pick(&["x", "y"])}}),
        1 => json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["x", "y"]}]}),
        2 => json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}),
        3 => json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["x"]}]}),
        4 => json!({}),
        _ => Value::Null,
    }
}

fn term(tape: &mut Tape) -> Value {
    let mut term = json!({"topologyKey": tape.pick(&[ZONE, HOST, "disk"]), "labelSelector": selector(tape)});
    match tape.below(6) {
        0 => term["namespaces"] = json!(["one", "two"]),
        1 => term["namespaceSelector"] = json!({"matchLabels": {"team": "t"}}),
        2 => term["namespaceSelector"] = json!({}),
        _ => {}
    }
    if tape.one_in(6) && !term["labelSelector"].is_null() {
        term["matchLabelKeys"] = json!(["tier"]);
    }
    if tape.one_in(8) && !term["labelSelector"].is_null() {
        term["mismatchLabelKeys"] = json!(["app"]);
    }
    term
}

fn terms(tape: &mut Tape, rarely: usize) -> Value {
    let list = |tape: &mut Tape| -> Vec<Value> {
        if tape.one_in(rarely) { (0..=tape.below(2)).map(|_| term(tape)).collect() } else { Vec::new() }
    };
    let weighted = |tape: &mut Tape, terms: Vec<Value>| -> Vec<Value> {
        terms.into_iter().map(|term| json!({"weight": 1 + tape.below(100), "podAffinityTerm": term})).collect()
    };
    let (near, far) = (list(tape), list(tape));
    let (like, dislike) = (list(tape), list(tape));
    json!({
        "podAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": near,
            "preferredDuringSchedulingIgnoredDuringExecution": weighted(tape, like),
        },
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": far,
            "preferredDuringSchedulingIgnoredDuringExecution": weighted(tape, dislike),
        },
    })
}

fn labels(tape: &mut Tape) -> Value {
    let mut labels = json!({"app": tape.pick(&["x", "y", "z"])});
    if tape.one_in(2) {
        labels["tier"] = json!(tape.pick(&["1", "2"]));
    }
    labels
}

fn pod(tape: &mut Tape, name: &str, rarely: usize) -> Value {
    let mut requests = json!({});
    if !tape.one_in(4) {
        requests["cpu"] = json!(format!("{}m", 100 * (1 + tape.below(6))));
    }
    if !tape.one_in(4) {
        requests["memory"] = json!(format!("{}Mi", 64 * (1 + tape.below(8))));
    }
    let mut container =
        json!({"name": "c", "image": tape.pick(&["app:1", "none"]), "resources": {"requests": requests}});
    if tape.one_in(8) {
        container["ports"] = json!([{"containerPort": 80, "hostPort": 80}]);
    }
    json!({
        "metadata": {"name": name, "uid": name, "namespace": tape.pick(&["one", "two", "three"]), "labels": labels(tape)},
        "spec": {"containers": [container], "affinity": terms(tape, rarely)},
    })
}

fn spread(tape: &mut Tape) -> Value {
    let when = tape.pick(&["DoNotSchedule", "ScheduleAnyway"]);
    let mut constraint = json!({
        "topologyKey": tape.pick(&[ZONE, HOST, "disk"]),
        "whenUnsatisfiable": when,
        "maxSkew": 1 + tape.below(3),
        "labelSelector": selector(tape),
    });
    if when == "DoNotSchedule" && tape.one_in(3) {
        constraint["minDomains"] = json!(1 + tape.below(4));
    }
    if tape.one_in(3) {
        constraint["nodeAffinityPolicy"] = json!(tape.pick(&["Honor", "Ignore"]));
    }
    if tape.one_in(3) {
        constraint["nodeTaintsPolicy"] = json!(tape.pick(&["Honor", "Ignore"]));
    }
    if tape.one_in(4) && !constraint["labelSelector"].is_null() {
        constraint["matchLabelKeys"] = json!(["tier", "absent"]);
    }
    constraint
}

fn incoming(tape: &mut Tape) -> Pod {
    let mut pod = pod(tape, "new", 4);
    if tape.one_in(3) {
        pod["spec"]["tolerations"] = json!([{"key": tape.pick(&["k", "l"]), "operator": "Exists"}]);
    }
    if tape.one_in(6) {
        pod["spec"]["nodeSelector"] = json!({"disk": "ssd"});
    }
    if tape.one_in(4) {
        let prefers = json!({"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]});
        pod["spec"]["affinity"]["nodeAffinity"] = json!({"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1 + tape.below(50), "preference": prefers}]});
    }
    let constraints: Vec<Value> = (0..tape.below(3)).map(|_| spread(tape)).collect();
    pod["spec"]["topologySpreadConstraints"] = json!(constraints);
    typed(pod)
}

fn placed(tape: &mut Tape, at: usize, nodes: usize) -> Pod {
    let mut placed = pod(tape, &format!("p{at}"), 8);
    placed["spec"]["nodeName"] = json!(format!("n{}", tape.below(nodes)));
    if tape.one_in(8) {
        placed["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    typed(placed)
}

impl World {
    pub(super) fn of(tape: &mut Tape) -> Self {
        let pod = incoming(tape);
        let namespaces = ["one", "two", "three"].map(|name| {
            let labels = if tape.one_in(2) { json!({"team": "t"}) } else { json!({}) };
            typed(json!({"metadata": {"name": name, "labels": labels}}))
        });
        let services = (0..tape.below(2))
            .map(|at| {
                let selector = json!({"app": tape.pick(&["x", "y"])});
                let namespace = tape.pick(&["one", "two", "three"]);
                typed(json!({"metadata": {"name": format!("s{at}"), "namespace": namespace}, "spec": {"selector": selector}}))
            })
            .collect();
        let count = 1 + tape.below(6);
        let nodes: Vec<Node> = (0..count).map(|at| node(tape, at)).collect();
        let placed = (0..tape.below(10)).map(|at| placed(tape, at, count)).collect();
        Self { nodes, namespaces: namespaces.into(), services, placed, pod }
    }

    /// Changes a node, or puts a pod in the place of another.
    pub(super) fn change(&mut self, tape: &mut Tape, step: usize, more: u16) {
        let mut tape = Tape { numbers: vec![more.rotate_left(u32::try_from(step).unwrap_or(0)); 8], at: tape.at % 3 };
        if tape.one_in(2) {
            let at = tape.below(self.nodes.len());
            self.nodes[at] = node(&mut tape, at);
        } else if !self.placed.is_empty() {
            let at = tape.below(self.placed.len());
            self.placed[at] = placed(&mut tape, at, self.nodes.len());
        }
    }
}

/// Takes over everything again.
pub(super) fn apply(world: &World, cluster: &mut Cluster) {
    for node in &world.nodes {
        cluster.set_node(Arc::new(node.clone()));
    }
    for pod in &world.placed {
        let pod = cluster.pod_info(Arc::new(pod.clone()));
        cluster.set_pod(pod);
    }
}
