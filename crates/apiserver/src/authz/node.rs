//! The Node authorizer: a kubelet reads what its own pods refer to, and nothing of other nodes.
//!
//! What its pods refer to is kept as a graph by node, made again when pods have changed. Everything else that a node may do
//! is in the rules of the ClusterRole `system:node`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use apimachinery::Value;
use async_trait::async_trait;
use parking_lot::RwLock;

use super::rule::Rule;
use super::{Authorizer, Decision, Verdict};
use crate::attributes::{Attributes, RequestInfo};
use crate::lister::Lister;

const NODES_GROUP: &str = "system:nodes";
const USER_PREFIX: &str = "system:node:";

pub struct NodeAuthorizer {
    lister: Arc<dyn Lister>,
    rules: Vec<Rule>,
    graph: RwLock<Option<(u64, Arc<Graph>)>>,
}

/// By node: `resource/namespace/name` of what its pods refer to.
type Graph = HashMap<String, HashSet<String>>;

impl NodeAuthorizer {
    /// `rules` are those of the ClusterRole `system:node`.
    #[must_use]
    pub fn new(lister: Arc<dyn Lister>, rules: Vec<Rule>) -> Self {
        NodeAuthorizer { lister, rules, graph: RwLock::new(None) }
    }

    fn graph(&self) -> Arc<Graph> {
        let now = self.lister.generation("pods");
        if let Some((then, graph)) = &*self.graph.read()
            && *then == now
        {
            return Arc::clone(graph);
        }
        let graph = Arc::new(graph_of(&*self.lister));
        *self.graph.write() = Some((now, Arc::clone(&graph)));
        graph
    }

    fn reaches(&self, node: &str, resource: &str, namespace: &str, name: &str) -> bool {
        self.graph().get(node).is_some_and(|set| set.contains(&key(resource, namespace, name)))
    }

    fn decide(&self, node: &str, r: &RequestInfo) -> Result<(), String> {
        let read = matches!(r.verb.as_str(), "get" | "list" | "watch");
        let by_name = || format!("no relationship found between node '{node}' and this object");
        match (r.gvr.group.as_str(), r.gvr.resource.as_str(), r.subresource.as_str()) {
            ("", "secrets" | "configmaps", "") | ("", "persistentvolumeclaims" | "persistentvolumes", _) => {
                let writes_status = r.subresource == "status" && matches!(r.verb.as_str(), "update" | "patch");
                if !(read || writes_status) {
                    return Err("can only read resources of this type".to_owned());
                }
                if r.name.is_empty() {
                    return Err("No Object name found".to_owned());
                }
                if self.reaches(node, &r.gvr.resource, &r.namespace, &r.name) { Ok(()) } else { Err(by_name()) }
            }
            ("", "serviceaccounts", "token") => {
                if r.verb == "create" && self.reaches(node, "serviceaccounts", &r.namespace, &r.name) {
                    Ok(())
                } else {
                    Err(by_name())
                }
            }
            ("", "pods", _) if read && r.verb == "get" && !r.name.is_empty() => {
                if self.reaches(node, "pods", &r.namespace, &r.name) { Ok(()) } else { Err(by_name()) }
            }
            ("", "pods", _) if read => {
                let own = format!("spec.nodeName={node}");
                if r.field_selector.as_deref().is_some_and(|s| s.split(',').any(|part| part == own)) {
                    Ok(())
                } else {
                    Err("can only list/watch pods with spec.nodeName field selector".to_owned())
                }
            }
            ("", "nodes", _) if r.verb == "get" && !r.name.is_empty() && r.name != node => {
                Err(format!("node '{node}' cannot read '{}', only its own Node object", r.name))
            }
            ("coordination.k8s.io", "leases", _) => {
                let own = r.namespace == "kube-node-lease" && (r.name == node || r.verb == "create");
                if own { Ok(()) } else { Err(format!("can only access leases of node '{node}' in kube-node-lease")) }
            }
            ("storage.k8s.io", "csinodes", _) if r.name != node && r.verb != "create" => {
                Err(format!("can only access CSINode with the same name as the requesting node '{node}'"))
            }
            _ if self.rules.iter().any(|rule| rule.allows(r)) => Ok(()),
            _ => Err(String::new()),
        }
    }
}

#[async_trait]
impl Authorizer for NodeAuthorizer {
    async fn authorize(&self, attributes: &Attributes) -> Verdict {
        let no_opinion = |reason: String| Verdict { decision: Decision::NoOpinion, reason };
        let user = &attributes.user;
        if !user.is_in(NODES_GROUP) {
            return no_opinion(String::new());
        }
        let Some(node) = user.name.strip_prefix(USER_PREFIX).filter(|n| !n.is_empty()) else {
            return no_opinion(format!("unknown node for user \"{}\"", user.name));
        };
        match self.decide(node, &attributes.request) {
            Ok(()) => Verdict { decision: Decision::Allow, reason: String::new() },
            Err(why) => no_opinion(why),
        }
    }
}

fn key(resource: &str, namespace: &str, name: &str) -> String {
    format!("{resource}/{namespace}/{name}")
}

fn graph_of(lister: &dyn Lister) -> Graph {
    let mut graph = Graph::new();
    for pod in lister.list("pods", "") {
        let node = pod.str_at(&["spec", "nodeName"]);
        if node.is_empty() {
            continue;
        }
        let references = graph.entry(node.to_owned()).or_default();
        let namespace = pod.namespace();
        references.insert(key("pods", namespace, pod.name()));
        // A mirror pod is made by the node itself: it must not widen what the node may read.
        if pod.annotation("kubernetes.io/config.mirror").is_some() {
            continue;
        }
        for (resource, name) in references_of(&pod) {
            references.insert(key(resource, namespace, &name));
            if resource == "persistentvolumeclaims"
                && let Some(claim) = lister.get("persistentvolumeclaims", namespace, &name)
            {
                references.insert(key("persistentvolumes", "", claim.str_at(&["spec", "volumeName"])));
            }
        }
    }
    graph
}

/// The ConfigMaps, Secrets, claims and the service account that a pod names. One visitor over all container kinds.
fn references_of(pod: &Value) -> Vec<(&'static str, String)> {
    let spec = &pod["spec"];
    let mut found = Vec::new();
    let mut add = |resource: &'static str, name: &str| {
        if !name.is_empty() {
            found.push((resource, name.to_owned()));
        }
    };
    add("serviceaccounts", spec.str_at(&["serviceAccountName"]));
    for secret in spec["imagePullSecrets"].items() {
        add("secrets", secret.str_at(&["name"]));
    }
    let containers = ["initContainers", "containers", "ephemeralContainers"];
    for container in containers.iter().flat_map(|list| spec[*list].items()) {
        for source in container["envFrom"].items() {
            add("configmaps", source.str_at(&["configMapRef", "name"]));
            add("secrets", source.str_at(&["secretRef", "name"]));
        }
        for var in container["env"].items() {
            add("configmaps", var.str_at(&["valueFrom", "configMapKeyRef", "name"]));
            add("secrets", var.str_at(&["valueFrom", "secretKeyRef", "name"]));
        }
    }
    for volume in spec["volumes"].items() {
        add("configmaps", volume.str_at(&["configMap", "name"]));
        add("secrets", volume.str_at(&["secret", "secretName"]));
        add("persistentvolumeclaims", volume.str_at(&["persistentVolumeClaim", "claimName"]));
        if !volume["ephemeral"].is_null() {
            add("persistentvolumeclaims", &format!("{}-{}", pod.name(), volume.str_at(&["name"])));
        }
        for plugin in ["cephfs", "flexVolume", "iscsi", "rbd", "scaleIO", "storageos"] {
            add("secrets", volume.str_at(&[plugin, "secretRef", "name"]));
        }
        add("secrets", volume.str_at(&["csi", "nodePublishSecretRef", "name"]));
        for source in volume["projected"]["sources"].items() {
            add("configmaps", source.str_at(&["configMap", "name"]));
            add("secrets", source.str_at(&["secret", "name"]));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attributes::UserInfo;
    use crate::lister::fixture::MapLister;
    use apimachinery::meta::Gvr;

    async fn check(verb: &str, resource: &str, namespace: &str, name: &str, selector: Option<&str>) -> Decision {
        let lister = MapLister::default();
        let pod = r#"{"metadata":{"name":"p","namespace":"prod"},"spec":{"nodeName":"n1","serviceAccountName":"sa",
            "ephemeralContainers":[{"name":"e","envFrom":[{"secretRef":{"name":"hidden"}}]}],
            "volumes":[{"name":"c","configMap":{"name":"cm"}}]}}"#;
        lister.put("pods", serde_json::from_str(pod).unwrap());
        let authorizer = NodeAuthorizer::new(Arc::new(lister), Vec::new());
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let request = RequestInfo {
            is_resource: true,
            verb: verb.into(),
            gvr: Gvr::new("", "v1", resource),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: name.into(),
            field_selector: selector.map(str::to_owned),
            ..RequestInfo::default()
        };
        let user = UserInfo { name: "system:node:n1".into(), groups: vec![NODES_GROUP.into()], ..UserInfo::default() };
        authorizer.authorize(&Attributes { user: Arc::new(user), request: Arc::new(request) }).await.decision
    }

    #[tokio::test]
    async fn a_node_reads_what_its_pods_refer_to() {
        assert_eq!(check("get", "configmaps", "prod", "cm", None).await, Decision::Allow);
        assert_eq!(check("get", "secrets", "prod", "hidden", None).await, Decision::Allow);
        assert_eq!(check("get", "secrets", "prod", "other", None).await, Decision::NoOpinion);
        assert_eq!(check("update", "configmaps", "prod", "cm", None).await, Decision::NoOpinion);
        assert_eq!(check("list", "secrets", "prod", "", None).await, Decision::NoOpinion);
        assert_eq!(check("create", "serviceaccounts/token", "prod", "sa", None).await, Decision::Allow);
        assert_eq!(check("create", "serviceaccounts/token", "prod", "admin", None).await, Decision::NoOpinion);
    }

    #[tokio::test]
    async fn a_node_watches_its_own_pods_only() {
        assert_eq!(check("watch", "pods", "", "", Some("spec.nodeName=n1")).await, Decision::Allow);
        assert_eq!(check("watch", "pods", "", "", Some("spec.nodeName=n2")).await, Decision::NoOpinion);
        assert_eq!(check("list", "pods", "", "", None).await, Decision::NoOpinion);
        assert_eq!(check("get", "pods", "prod", "p", None).await, Decision::Allow);
        assert_eq!(check("get", "nodes", "", "n2", None).await, Decision::NoOpinion);
    }
}
