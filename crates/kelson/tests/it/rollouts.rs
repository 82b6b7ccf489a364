//! What kubectl says of workloads: transcripts of rollout, autoscale and drain. No kubelet runs: the tests say what becomes of
//! pods.

use serde_json::{Value, json};
use testing::wait::holds_within;

use crate::apiserver::{ApiServer, WAIT};
use crate::component::{Component, server_for_components};

const PORT: u16 = 16490;

/// A cluster without nodes, and its controllers.
struct Cluster {
    server: ApiServer,
    controllers: Component,
}

impl Cluster {
    fn start(port: u16) -> Self {
        let server = server_for_components(port, &[]);
        // Nodes here never say anything.
        let controllers = Component::controllers(&server, &["--node-startup-grace-period=1h"]);
        let made = || server.kubectl(&["get", "serviceaccount", "default"], "").ok;
        assert!(holds_within(WAIT, made), "{}", controllers.log());
        Cluster { server, controllers }
    }

    fn kubectl(&self, args: &[&str]) -> String {
        self.server.kubectl_ok(args, "")
    }

    #[track_caller]
    fn check(&self, args: &[&str], want: &str) {
        assert_eq!(self.kubectl(args), want, "{args:?}");
    }

    fn create(&self, object: &Value) {
        self.server.kubectl_ok(&["create", "-f", "-"], &object.to_string());
    }

    fn pods(&self, selector: &str) -> Vec<Value> {
        let list = self.kubectl(&["get", "pods", "-l", selector, "-o", "json"]);
        serde_json::from_str::<Value>(&list).unwrap()["items"].as_array().unwrap().clone()
    }

    /// Lets all pods with these labels run and be ready, as a kubelet would say it.
    fn run_pods(&self, selector: &str) {
        for pod in self.pods(selector) {
            let name = pod["metadata"]["name"].as_str().unwrap();
            let condition =
                |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
            let status = json!({"phase": "Running", "conditions": [condition("Ready"), condition("ContainersReady")]});
            let patch = json!({"status": status}).to_string();
            // It may be gone by now.
            self.server.kubectl(&["patch", "pod", name, "--subresource=status", "--type=merge", "-p", &patch], "");
        }
    }

    /// Runs pods until something is so.
    #[track_caller]
    fn until(&self, selector: &str, holds: impl Fn() -> bool) {
        let done = holds_within(WAIT, || {
            self.run_pods(selector);
            holds()
        });
        assert!(done, "{}\n{}", self.server.kubectl(&["get", "all"], "").out, self.controllers.log());
    }

    fn has_rolled_out(&self, what: &str) -> bool {
        let said = self.server.kubectl(&["rollout", "status", what, "--watch=false"], "");
        said.out.contains("successfully rolled out")
    }
}

fn deployment(replicas: u32) -> Value {
    let spec = json!({"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "image:1"}]});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "d"}},
            "template": {"metadata": {"labels": {"app": "d"}}, "spec": spec}},
    })
}

#[test]
fn a_rollout_is_told_paused_and_undone() {
    let cluster = Cluster::start(PORT);
    cluster.create(&deployment(2));
    let waits = "Waiting for deployment \"d\" rollout to finish: 0 of 2 updated replicas are available...\n";
    let begun = || cluster.kubectl(&["rollout", "status", "deployment/d", "--watch=false"]) == waits;
    assert!(holds_within(WAIT, begun), "{}", cluster.controllers.log());
    cluster.until("app=d", || cluster.has_rolled_out("deployment/d"));
    cluster.check(&["rollout", "status", "deployment/d"], "deployment \"d\" successfully rolled out\n");

    cluster.check(&["set", "image", "deployment/d", "c=image:2"], "deployment.apps/d image updated\n");
    cluster.check(&["annotate", "deployment/d", "kubernetes.io/change-cause=two"], "deployment.apps/d annotated\n");
    cluster.until("app=d", || cluster.has_rolled_out("deployment/d"));
    let history = "deployment.apps/d \nREVISION  CHANGE-CAUSE\n1         <none>\n2         two\n\n";
    let told = || cluster.kubectl(&["rollout", "history", "deployment/d"]) == history;
    assert!(holds_within(WAIT, told), "{}", cluster.kubectl(&["rollout", "history", "deployment/d"]));
    let first = cluster.kubectl(&["rollout", "history", "deployment/d", "--revision=1"]);
    assert!(first.starts_with("deployment.apps/d with revision #1\nPod Template:\n  Labels:\tapp=d\n"), "{first}");
    assert!(first.contains("    Image:\timage:1\n"), "{first}");

    cluster.check(&["rollout", "pause", "deployment/d"], "deployment.apps/d paused\n");
    let refused = cluster.server.kubectl(&["rollout", "undo", "deployment/d"], "");
    assert!(refused.err.contains("you cannot rollback a paused deployment; resume it first"), "{refused:?}");
    cluster.check(&["set", "image", "deployment/d", "c=image:3"], "deployment.apps/d image updated\n");
    let seen = "jsonpath={.status.observedGeneration}={.metadata.generation}={.status.updatedReplicas}";
    let noticed = || {
        let said = cluster.kubectl(&["get", "deployment/d", "-o", seen]);
        let parts: Vec<&str> = said.split('=').collect();
        parts[0] == parts[1] && parts[2].is_empty()
    };
    assert!(holds_within(WAIT, noticed), "{}", cluster.kubectl(&["get", "deployment/d", "-o", "yaml"]));
    let sizes = cluster.kubectl(&["get", "replicasets", "-o", "jsonpath={.items[*].spec.replicas}"]);
    assert!(["0 2", "2 0"].contains(&&*sizes), "{sizes}");
    cluster.check(&["rollout", "resume", "deployment/d"], "deployment.apps/d resumed\n");
    cluster.until("app=d", || cluster.has_rolled_out("deployment/d"));

    cluster.check(&["rollout", "undo", "deployment/d", "--to-revision=1"], "deployment.apps/d rolled back\n");
    cluster.until("app=d", || cluster.has_rolled_out("deployment/d"));
    let image = "jsonpath={.spec.template.spec.containers[0].image}";
    cluster.check(&["get", "deployment/d", "-o", image], "image:1");
    let history = cluster.kubectl(&["rollout", "history", "deployment/d"]);
    let revisions: Vec<&str> = history.lines().skip(2).filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(revisions, ["2", "3", "4", ""], "{history}");
    let gone = cluster.server.kubectl(&["rollout", "undo", "deployment/d", "--to-revision=9"], "");
    assert_eq!(gone.err, "error: unable to find specified revision 9 in history\n");

    cluster.check(&["rollout", "restart", "deployment/d"], "deployment.apps/d restarted\n");
    cluster.until("app=d", || cluster.has_rolled_out("deployment/d"));
    cluster.check(
        &["autoscale", "deployment/d", "--min=1", "--max=3", "--cpu-percent=50"],
        "horizontalpodautoscaler.autoscaling/d autoscaled\n",
    );
    let shown = cluster.kubectl(&["get", "hpa", "d", "--no-headers"]);
    let cells: Vec<&str> = shown.split_whitespace().take(6).collect();
    assert_eq!(cells, ["d", "Deployment/d", "cpu:", "<unknown>/50%", "1", "3"], "{shown}");
}

#[test]
fn sets_keep_the_history_of_their_templates() {
    let cluster = Cluster::start(PORT + 1);
    let template = json!({"metadata": {"labels": {"app": "s"}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "image:1"}]}});
    let spec =
        json!({"replicas": 2, "serviceName": "s", "selector": {"matchLabels": {"app": "s"}}, "template": template});
    cluster.create(&json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "s"}, "spec": spec}));
    let complete = |revision: &str| {
        let said = cluster.server.kubectl(&["rollout", "status", "statefulset/s", "--watch=false"], "");
        said.out.starts_with("statefulset rolling update complete 2 pods at revision s-") || said.out.contains(revision)
    };
    cluster.until("app=s", || complete("partitioned roll out complete"));
    cluster.check(&["set", "image", "statefulset/s", "c=image:2"], "statefulset.apps/s image updated\n");
    let images =
        || cluster.pods("app=s").iter().filter(|pod| pod["spec"]["containers"][0]["image"] == "image:2").count();
    cluster.until("app=s", || images() == 2 && complete("partitioned"));
    cluster.check(
        &["rollout", "history", "statefulset/s"],
        "statefulset.apps/s \nREVISION  CHANGE-CAUSE\n1         <none>\n2         <none>\n\n",
    );
    cluster.check(&["rollout", "undo", "statefulset/s"], "statefulset.apps/s rolled back\n");
    cluster.until("app=s", || images() == 0 && complete("partitioned"));
    let history = cluster.kubectl(&["rollout", "history", "statefulset/s"]);
    let revisions: Vec<&str> = history.lines().skip(2).filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(revisions, ["2", "3", ""], "{history}");
}

#[test]
fn a_drain_waits_for_the_budget() {
    let cluster = Cluster::start(PORT + 2);
    for node in ["n1", "n2"] {
        cluster.create(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}}));
    }
    let mut deployment = deployment(2);
    deployment["spec"]["template"]["spec"]["nodeName"] = "n1".into();
    cluster.create(&deployment);
    cluster.create(&json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"},
        "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "d"}}}}));
    let budget = |field: &str| cluster.kubectl(&["get", "pdb", "b", "-o", &format!("jsonpath={{.status.{field}}}")]);
    cluster.until("app=d", || budget("currentHealthy") == "2" && budget("disruptionsAllowed") == "0");
    cluster.check(&["cordon", "n1"], "node/n1 cordoned\n");
    cluster.check(&["cordon", "n1"], "node/n1 already cordoned\n");
    let blocked = cluster.server.kubectl(&["drain", "n1", "--timeout=2s"], "");
    assert!(!blocked.ok && blocked.out.starts_with("node/n1 already cordoned\n"), "{blocked:?}");
    let why = "(will retry after 5s): Cannot evict pod as it would violate the pod's disruption budget.";
    assert!(blocked.err.contains(why), "{blocked:?}");

    // New pods go elsewhere, and the budget lets one go after the other.
    let elsewhere = json!({"spec": {"template": {"spec": {"nodeName": "n2"}}}}).to_string();
    cluster.kubectl(&["patch", "deployment/d", "--type=merge", "-p", &elsewhere]);
    cluster.until("app=d", || cluster.has_rolled_out("deployment/d"));
    let drained = cluster.kubectl(&["drain", "n1", "--timeout=60s"]);
    assert_eq!(drained, "node/n1 already cordoned\nnode/n1 drained\n");
    cluster.check(&["uncordon", "n1"], "node/n1 uncordoned\n");
    cluster.check(&["drain", "n1"], "node/n1 cordoned\nnode/n1 drained\n");
}
