//! Where pods go, and who makes room for whom.

use serde_json::{Value, json};

use super::{Space, checks, condition, hold, is_ready, pod, runs, template};

#[test]
fn scheduling_behaves() {
    hold(checks![
        a_node_selector_is_respected,
        host_ports_of_all_addresses_conflict,
        a_higher_priority_makes_room,
        a_critical_pod_makes_room,
        a_preempted_pod_says_so,
        replicasets_of_rising_priority_get_their_share,
    ]);
}

fn unschedulable(pod: &Value) -> Option<&str> {
    let conditions = pod["status"]["conditions"].as_array()?;
    conditions.iter().find(|c| c["type"] == "PodScheduled" && c["reason"] == "Unschedulable")?["message"].as_str()
}

fn a_node_selector_is_respected(space: &Space<'_>) {
    let mut spec = runs("sleep 100000");
    spec["nodeSelector"] = json!({"colour": "blue"});
    space.create(&pod("p", "p", spec));
    let waits = space.until("pod/p", |pod| unschedulable(pod).is_some());
    let why = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.";
    assert!(unschedulable(&waits).unwrap().starts_with(why), "{waits:#}");
    space.kubectl_ok(&["label", "node", &space.host.name, "colour=blue"], "");
    space.until("pod/p", is_ready);
    space.kubectl_ok(&["label", "node", &space.host.name, "colour-"], "");
}

fn host_ports_of_all_addresses_conflict(space: &Space<'_>) {
    let with = |name: &str, port: u16, ip: &str| {
        let mut spec = runs("sleep 100000");
        spec["containers"][0]["ports"] = json!([{"containerPort": 8080, "hostPort": port, "hostIP": ip}]);
        pod(name, name, spec)
    };
    space.create(&with("all", 54321, "0.0.0.0"));
    space.until("pod/all", is_ready);
    space.create(&with("one", 54321, &space.host.address));
    let waits = space.until("pod/one", |pod| unschedulable(pod).is_some());
    assert!(unschedulable(&waits).unwrap().contains("didn't have free ports"), "{waits:#}");
    space.create(&with("other", 54322, &space.host.address));
    space.until("pod/other", is_ready);
}

/// A resource that the node has five of, and priorities; removed again with the returned guard.
struct Scarce<'a>(&'a Space<'a>);

const RESOURCE: &str = "example.com/scarce";

impl<'a> Scarce<'a> {
    fn new(space: &'a Space<'a>, priorities: &[i32]) -> Self {
        let patch = json!({"status": {"capacity": {RESOURCE: "5"}, "allocatable": {RESOURCE: "5"}}});
        space.merge_sub(&format!("node/{}", space.host.name), "status", &patch);
        for priority in priorities {
            space.create(&json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
                "metadata": {"name": format!("p{priority}")}, "value": priority}));
        }
        Scarce(space)
    }

    fn spec(amount: u32, class: &str) -> Value {
        let mut spec = runs("sleep 100000");
        let amounts = json!({RESOURCE: amount.to_string()});
        spec["containers"][0]["resources"] = json!({"requests": amounts, "limits": amounts});
        spec["priorityClassName"] = class.into();
        spec
    }
}

impl Drop for Scarce<'_> {
    fn drop(&mut self) {
        self.0.kubectl(&["delete", "pods,replicasets", "--all", "--grace-period=0", "--force"], "");
        self.0.kubectl(&["delete", "priorityclass", "p1", "p2", "p3", "p4", "--ignore-not-found"], "");
        let gone = json!({"status": {"capacity": {RESOURCE: null}, "allocatable": {RESOURCE: null}}}).to_string();
        let node = format!("node/{}", self.0.host.name);
        self.0.kubectl(&["patch", &node, "--subresource=status", "--type=merge", "-p", &gone], "");
    }
}

fn a_higher_priority_makes_room(space: &Space<'_>) {
    let _scarce = Scarce::new(space, &[1, 2]);
    space.create(&pod("low", "low", Scarce::spec(3, "p1")));
    space.create(&pod("middle", "middle", Scarce::spec(2, "p2")));
    for name in ["pod/low", "pod/middle"] {
        space.until(name, is_ready);
    }
    space.create(&pod("high", "high", Scarce::spec(3, "p2")));
    space.until("pod/high", is_ready);
    space.until("pod/low", Value::is_null);
    assert!(is_ready(&space.get("pod/middle")), "nobody else had to go");
}

fn a_critical_pod_makes_room(space: &Space<'_>) {
    let _scarce = Scarce::new(space, &[1]);
    space.create(&pod("low", "low", Scarce::spec(4, "p1")));
    space.until("pod/low", is_ready);
    let mut critical = pod("critical", "critical", Scarce::spec(4, "system-cluster-critical"));
    critical["metadata"]["namespace"] = "kube-system".into();
    space.host.kubectl_ok(&["create", "-f", "-"], &critical.to_string());
    space.host.kubectl_ok(&["-n", "kube-system", "wait", "--for=condition=Ready", "pod/critical", "--timeout=60s"], "");
    space.until("pod/low", Value::is_null);
    space.host.kubectl_ok(&["-n", "kube-system", "delete", "pod", "critical"], "");
}

fn a_preempted_pod_says_so(space: &Space<'_>) {
    let _scarce = Scarce::new(space, &[1, 2]);
    let mut low = pod("low", "low", Scarce::spec(5, "p1"));
    low["metadata"]["finalizers"] = json!(["example.com/test"]);
    space.create(&low);
    space.until("pod/low", is_ready);
    space.create(&pod("high", "high", Scarce::spec(5, "p2")));
    let going = space.until("pod/low", |pod| !pod["metadata"]["deletionTimestamp"].is_null());
    assert_eq!(condition(&going, "DisruptionTarget"), Some("True"), "{going:#}");
    let conditions = going["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|c| c["reason"] == "PreemptionByScheduler"), "{going:#}");
    space.merge("pod/low", &json!({"metadata": {"finalizers": null}}));
    space.until("pod/high", is_ready);
}

fn replicasets_of_rising_priority_get_their_share(space: &Space<'_>) {
    let _scarce = Scarce::new(space, &[1, 2, 3, 4]);
    let set = |priority: u32, replicas: u32, amount: u32| {
        let name = format!("rs{priority}");
        json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": name}, "spec": {"replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": template(&name, Scarce::spec(amount, &format!("p{priority}")))}})
    };
    for priority in [1, 2, 3] {
        space.create(&set(priority, 1, 1));
    }
    for priority in [1, 2, 3] {
        space.until(&format!("replicaset/rs{priority}"), |set| set["status"]["readyReplicas"] == 1);
    }
    // Of five, two are free and four are wanted: the two lowest go.
    space.create(&set(4, 1, 4));
    space.until("replicaset/rs4", |set| set["status"]["readyReplicas"] == 1);
    let phase = |name: &str| {
        let pods = space.list("pods", &format!("app={name}"));
        pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).any(is_ready)
    };
    assert_eq!(["rs1", "rs2", "rs3"].map(phase), [false, false, true], "{}", space.picture());
}
