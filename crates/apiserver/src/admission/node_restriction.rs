//! NodeRestriction: a kubelet writes its own Node, Lease and the pods bound to it, and cannot make itself more than it is.

use std::collections::BTreeSet;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::status::Status;
use async_trait::async_trait;

use super::{Operation, Plugin, Request};
use crate::lister::Lister;

const MIRROR: &str = "kubernetes.io/config.mirror";

pub(super) struct NodeRestriction {
    pub lister: Arc<dyn Lister>,
}

#[async_trait]
impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn handles(&self, request: &Request) -> bool {
        request.user.is_in("system:nodes") && request.user.name.starts_with("system:node:")
    }

    async fn admit(&self, request: &mut Request) -> Result<(), Status> {
        let node = request.user.name.trim_start_matches("system:node:").to_owned();
        if node.is_empty() {
            return Err(request.forbidden("could not determine node from user"));
        }
        match (request.gvr.group.as_str(), request.gvr.resource.as_str(), request.subresource.as_str()) {
            ("", "pods", "") => self.pod(request, &node),
            ("", "pods", "status") => self.pod_status(request, &node),
            ("", "pods", "eviction") => self.eviction(request, &node),
            ("", "nodes", _) => own_node(request, &node),
            ("", "serviceaccounts", "token") => self.token(request, &node),
            ("coordination.k8s.io", "leases", _) => lease(request, &node),
            ("storage.k8s.io", "csinodes", _) => {
                let name = if request.name.is_empty() { request.object.name() } else { &request.name };
                if name == node {
                    Ok(())
                } else {
                    Err(request.forbidden("can only access CSINode with the same name as the requesting node"))
                }
            }
            _ => Ok(()),
        }
    }
}

impl NodeRestriction {
    fn pod(&self, request: &Request, node: &str) -> Result<(), Status> {
        match request.operation {
            Operation::Create => self.mirror(request, node),
            Operation::Delete => {
                let present = self.lister.get("pods", &request.namespace, &request.name);
                match present.filter(|p| p.str_at(&["spec", "nodeName"]) != node) {
                    Some(_) => Err(request
                        .forbidden(format!("node \"{node}\" can only delete pods with spec.nodeName set to itself"))),
                    None => Ok(()),
                }
            }
            _ => Err(request.forbidden(format!("unexpected operation on pods by node \"{node}\""))),
        }
    }

    /// A node makes no pods but the mirrors of its own, and those refer to nothing of the API.
    fn mirror(&self, request: &Request, node: &str) -> Result<(), Status> {
        let pod = &request.object;
        if pod.annotation(MIRROR).is_none() {
            return Err(request.forbidden(format!(
                "pod does not have \"{MIRROR}\" annotation, node \"{node}\" can only create mirror pods"
            )));
        }
        if pod.str_at(&["spec", "nodeName"]) != node {
            return Err(
                request.forbidden(format!("node \"{node}\" can only create pods with spec.nodeName set to itself"))
            );
        }
        let [owner] = pod.meta("ownerReferences").items() else {
            return Err(request.forbidden(format!(
                "node \"{node}\" can only create pods with a single owner reference set to itself"
            )));
        };
        let itself = owner.str_at(&["apiVersion"]) == "v1"
            && owner.str_at(&["kind"]) == "Node"
            && owner.str_at(&["name"]) == node;
        let uid = self.lister.get("nodes", "", node).map(|n| n.uid().to_owned());
        if !itself || uid.as_deref() != Some(owner.str_at(&["uid"])) {
            return Err(request
                .forbidden(format!("node \"{node}\" can only create pods with an owner reference set to itself")));
        }
        let spec = &pod["spec"];
        if !spec.str_at(&["serviceAccountName"]).is_empty() {
            return Err(
                request.forbidden(format!("node \"{node}\" can not create pods that reference a service account"))
            );
        }
        let from_api = |v: &Value| {
            ["secret", "configMap", "persistentVolumeClaim", "csi", "ephemeral", "projected"]
                .iter()
                .any(|s| !v[*s].is_null())
        };
        if spec["volumes"].items().iter().any(from_api) || !spec["resourceClaims"].items().is_empty() {
            return Err(request.forbidden(format!("node \"{node}\" can not create pods that reference API objects")));
        }
        let containers = ["initContainers", "containers", "ephemeralContainers"];
        let refers = |c: &Value| {
            !c["envFrom"].items().is_empty()
                || c["env"]
                    .items()
                    .iter()
                    .any(|e| !e["valueFrom"]["secretKeyRef"].is_null() || !e["valueFrom"]["configMapKeyRef"].is_null())
        };
        if containers.iter().flat_map(|l| spec[*l].items()).any(refers) {
            return Err(request.forbidden(format!("node \"{node}\" can not create pods that reference API objects")));
        }
        Ok(())
    }

    fn pod_status(&self, request: &Request, node: &str) -> Result<(), Status> {
        if request.old_object.str_at(&["spec", "nodeName"]) != node {
            return Err(request.forbidden(format!(
                "node \"{node}\" can only update pod status for pods with spec.nodeName set to itself"
            )));
        }
        if request.object.meta("labels") != request.old_object.meta("labels") {
            return Err(request.forbidden(format!("node \"{node}\" cannot update labels through pod status")));
        }
        Ok(())
    }

    fn eviction(&self, request: &Request, node: &str) -> Result<(), Status> {
        let pod = self.lister.get("pods", &request.namespace, &request.name);
        match pod.filter(|p| p.str_at(&["spec", "nodeName"]) != node) {
            Some(_) => {
                Err(request.forbidden(format!("node {node} can only evict pods with spec.nodeName set to itself")))
            }
            None => Ok(()),
        }
    }

    fn token(&self, request: &Request, node: &str) -> Result<(), Status> {
        let reference = &request.object["spec"]["boundObjectRef"];
        if reference.str_at(&["kind"]) != "Pod" || reference.str_at(&["name"]).is_empty() {
            return Err(request.forbidden("node requested token not bound to a pod"));
        }
        let pod = self.lister.get("pods", &request.namespace, reference.str_at(&["name"]));
        let Some(pod) = pod.filter(|p| p.uid() == reference.str_at(&["uid"])) else {
            return Err(request.forbidden("node requested token bound to a pod that does not exist"));
        };
        if pod.str_at(&["spec", "nodeName"]) != node {
            return Err(request.forbidden("node requested token bound to a pod scheduled on a different node"));
        }
        Ok(())
    }
}

fn own_node(request: &Request, node: &str) -> Result<(), Status> {
    let name = if request.name.is_empty() { request.object.name() } else { request.name.as_str() };
    if name != node {
        return Err(request.forbidden(format!("node \"{node}\" is not allowed to modify node \"{name}\"")));
    }
    if request.operation == Operation::Delete {
        return Ok(());
    }
    let changed = changed_labels(&request.object, &request.old_object);
    let forbidden: Vec<String> = changed.into_iter().filter(|label| !may_label(label)).collect();
    if !forbidden.is_empty() {
        let list = forbidden.join(", ");
        return Err(request.forbidden(format!("is not allowed to modify labels: {list}")));
    }
    if request.operation == Operation::Update {
        if request.object["spec"]["taints"] != request.old_object["spec"]["taints"] {
            return Err(request.forbidden(format!("node \"{node}\" is not allowed to modify taints")));
        }
        if request.object.meta("ownerReferences") != request.old_object.meta("ownerReferences") {
            return Err(request.forbidden(format!("node \"{node}\" is not allowed to modify ownerReferences")));
        }
    }
    Ok(())
}

fn changed_labels(new: &Value, old: &Value) -> BTreeSet<String> {
    let (new, old) = (new.meta("labels").entries(), old.meta("labels").entries());
    let keys: BTreeSet<String> = new.keys().chain(old.keys()).map(ToString::to_string).collect();
    keys.into_iter().filter(|k| new.get(k) != old.get(k)).collect()
}

/// Labels that a node may give itself: none of Kubernetes' own, except these.
fn may_label(label: &str) -> bool {
    const OWN: &[&str] = &[
        "kubernetes.io/hostname",
        "kubernetes.io/arch",
        "kubernetes.io/os",
        "beta.kubernetes.io/instance-type",
        "beta.kubernetes.io/arch",
        "beta.kubernetes.io/os",
        "node.kubernetes.io/instance-type",
        "failure-domain.beta.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/zone",
    ];
    let Some((domain, _)) = label.split_once('/') else { return true };
    let below = |suffix: &str| domain == suffix || domain.ends_with(&format!(".{suffix}"));
    if !(below("kubernetes.io") || below("k8s.io")) {
        return true;
    }
    OWN.contains(&label) || below("kubelet.kubernetes.io") || below("node.kubernetes.io")
}

fn lease(request: &Request, node: &str) -> Result<(), Status> {
    if request.namespace != "kube-node-lease" {
        return Err(request.forbidden("can only access leases in the \"kube-node-lease\" system namespace"));
    }
    let name = if request.name.is_empty() { request.object.name() } else { request.name.as_str() };
    if name != node {
        return Err(request.forbidden("can only access node lease with the same name as the requesting node"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_labels_itself_within_bounds() {
        for good in ["app", "example.com/x", "kubernetes.io/os", "foo.kubelet.kubernetes.io/x", "node.kubernetes.io/x"]
        {
            assert!(may_label(good), "{good}");
        }
        for bad in ["node-role.kubernetes.io/control-plane", "node-restriction.kubernetes.io/x", "k8s.io/x"] {
            assert!(!may_label(bad), "{bad}");
        }
    }
}
