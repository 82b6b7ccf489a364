//! What is decided, and what users read of it.

use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use scheduler::Config;
use scheduler::listers::{Listers, fixed};
use scheduler::simulation::{Decision, Simulation};
use serde_json::{Value, json};

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn node(name: &str, cpu: &str, zone: &str) -> Node {
    typed(json!({
        "metadata": {"name": name, "labels": {"zone": zone, "kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}},
    }))
}

fn pod(name: &str, spec: Value) -> Pod {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
    });
    for (field, value) in spec.as_object().unwrap() {
        pod["spec"][field] = value.clone();
    }
    typed(pod)
}

fn simulation(listers: Listers) -> Simulation {
    Simulation::new(&Config::default(), listers).unwrap()
}

/// The decisions on `pods`, a line each.
fn decisions(mut simulation: Simulation, nodes: Vec<Node>, pods: Vec<Pod>) -> String {
    for node in nodes {
        simulation.set_node(node);
    }
    let mut lines = Vec::new();
    for pod in pods {
        simulation.set_pod(pod);
        lines.extend(simulation.schedule_all().into_iter().map(|decision| match decision {
            Decision::Bound { pod, node } => format!("{} to {node}", pod.as_str()),
            Decision::Unschedulable { pod, message, room: None } => format!("{}: {message}", pod.as_str()),
            Decision::Unschedulable { pod, message, room: Some((node, victims)) } => {
                let victims: Vec<_> = victims.iter().map(|victim| victim.as_str().to_owned()).collect();
                format!("{}: {message} ({node} without {})", pod.as_str(), victims.join(", "))
            }
        }));
    }
    lines.join("\n")
}

#[track_caller]
fn check(nodes: Vec<Node>, pods: Vec<Pod>, want: &expect_test::Expect) {
    want.assert_eq(&decisions(simulation(Listers::empty()), nodes, pods));
}

#[test]
fn each_reason_is_told_with_its_nodes_and_why_preemption_does_not_help() {
    let mut cordoned = node("b", "4", "z");
    cordoned.spec = Some(typed(json!({"unschedulable": true})));
    check(
        vec![node("a", "500m", "z"), cordoned],
        vec![pod("p", json!({}))],
        &expect_test::expect![[
            "p: 0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable. no new claims to deallocate, \
             preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
        ]],
    );
}

#[test]
fn a_full_node_without_less_important_pods_has_no_victims() {
    check(
        vec![node("a", "1", "z")],
        vec![pod("p", json!({})), pod("q", json!({}))],
        &expect_test::expect![[
            "p to a\nq: 0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 nodes \
             are available: 1 No preemption victims found for incoming pod."
        ]],
    );
    check(
        vec![node("a", "1", "z")],
        vec![pod("p", json!({})), pod("q", json!({"priority": 5, "preemptionPolicy": "Never"}))],
        &expect_test::expect![[
            "p to a\nq: 0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: not \
             eligible due to preemptionPolicy=Never."
        ]],
    );
}

#[test]
fn the_least_important_pods_make_room() {
    check(
        vec![node("a", "2", "z")],
        vec![
            pod("low", json!({"priority": 1})),
            pod("middle", json!({"priority": 2})),
            pod("high", json!({"priority": 3})),
        ],
        &expect_test::expect![[
            "low to a\nmiddle to a\nhigh: 0/1 nodes are available: 1 Insufficient cpu. (a without low)"
        ]],
    );
}

#[test]
fn pods_are_spread_and_kept_apart() {
    let spread = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]});
    check(
        vec![node("a", "1", "x"), node("b", "4", "y")],
        vec![pod("1", spread.clone()), pod("2", spread.clone()), pod("3", spread)],
        &expect_test::expect![["1 to b\n2 to a\n3 to b"]],
    );
    let apart = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}}});
    check(
        vec![node("a", "4", "x")],
        vec![pod("1", apart.clone()), pod("2", apart), pod("3", json!({}))],
        &expect_test::expect![[
            "1 to a\n2: 0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules. no new claims to \
             deallocate, preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.\n3: 0/1 \
             nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules. no new claims to \
             deallocate, preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
        ]],
    );
}

#[test]
fn a_claim_that_should_be_bound_already_is_told_before_nodes_are_looked_at() {
    let claim: PersistentVolumeClaim = typed(json!({"metadata": {"name": "data", "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}));
    let listers = Listers { claims: fixed(vec![claim]), ..Listers::empty() };
    let volumes = |claim: &str| json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]});
    let got = decisions(
        simulation(listers),
        vec![node("a", "4", "x"), node("b", "4", "x")],
        vec![pod("p", volumes("data")), pod("q", volumes("other"))],
    );
    expect_test::expect![[
        "p: 0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found\nq: 0/2 nodes are \
         available: persistentvolumeclaim \"other\" not found. not found"
    ]]
    .assert_eq(&got);
}
