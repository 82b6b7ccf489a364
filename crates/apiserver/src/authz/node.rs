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
use crate::attributes::{Attributes, RequestInfo, UserInfo};
use crate::lister::Lister;

const NODES_GROUP: &str = "system:nodes";
const USER_PREFIX: &str = "system:node:";

pub struct NodeAuthorizer {
    lister: Arc<dyn Lister>,
    rules: Vec<Rule>,
    graph: RwLock<Option<(Generations, Arc<Graph>)>>,
}

/// By node: `resource/namespace/name` of what its pods refer to.
type Graph = HashMap<String, HashSet<String>>;
/// Of what the graph is made from.
type Generations = [u64; 3];

const LEASES: &str = "kube-node-lease";
const OWN_VERBS: &[&str] = &["get", "create", "update", "patch", "delete"];

impl NodeAuthorizer {
    /// `rules` are those of the ClusterRole `system:node`.
    #[must_use]
    pub fn new(lister: Arc<dyn Lister>, rules: Vec<Rule>) -> Self {
        NodeAuthorizer { lister, rules, graph: RwLock::new(None) }
    }

    fn graph(&self) -> Arc<Graph> {
        let now = ["pods", "persistentvolumeclaims", "persistentvolumes"].map(|of| self.lister.generation(of));
        if let Some((then, graph)) = &*self.graph.read()
            && *then == now
        {
            return Arc::clone(graph);
        }
        let graph = Arc::new(graph_of(&*self.lister));
        *self.graph.write() = Some((now, Arc::clone(&graph)));
        graph
    }

    fn decide(&self, node: &str, r: &RequestInfo) -> Result<(), String> {
        let (verb, part) = (r.verb.as_str(), r.subresource.as_str());
        match (r.gvr.group.as_str(), r.gvr.resource.as_str()) {
            ("", "secrets" | "configmaps") => self.read_in_namespace(node, r),
            ("", "persistentvolumeclaims") if part == "status" => {
                demand(matches!(verb, "update" | "patch"), "can only get/update/patch this type")?;
                self.related(node, r)
            }
            ("", "persistentvolumeclaims" | "persistentvolumes")
            | ("resource.k8s.io", "resourceclaims")
            | ("storage.k8s.io", "volumeattachments") => self.read_one(node, r),
            ("", "serviceaccounts") if verb == "get" => self.read_one(node, r),
            ("", "serviceaccounts") => {
                let one = verb == "create" && !r.name.is_empty();
                demand(one, "can only create tokens for individual service accounts")?;
                demand(part == "token", "can only create token subresource of serviceaccount")?;
                self.related(node, r)
            }
            ("coordination.k8s.io", "leases") => {
                let why = "can only get, create, update, patch, or delete a node lease";
                demand(OWN_VERBS.contains(&verb), why)?;
                let why = format!("can only access leases in the {LEASES:?} system namespace");
                demand(r.namespace == LEASES, &why)?;
                own(node, r, "can only access node lease with the same name as the requesting node")
            }
            ("storage.k8s.io", "csinodes") => {
                demand(OWN_VERBS.contains(&verb), "can only get, create, update, patch, or delete a CSINode")?;
                demand(part.is_empty(), "cannot authorize CSINode subresources")?;
                own(node, r, "can only access CSINode with the same name as the requesting node")
            }
            ("resource.k8s.io", "resourceslices") => self.slice(node, r),
            ("", "nodes") => node_itself(node, r),
            ("", "pods") => self.pod(node, r),
            _ => demand(self.rules.iter().any(|rule| rule.allows(r)), ""),
        }
    }

    fn read_in_namespace(&self, node: &str, r: &RequestInfo) -> Result<(), String> {
        let reads = matches!(r.verb.as_str(), "get" | "list" | "watch");
        demand(reads, "can only read resources of this type")?;
        demand(r.subresource.is_empty(), "cannot read subresource")?;
        demand(!r.namespace.is_empty(), "can only read namespaced object of this type")?;
        self.related(node, r)
    }

    fn read_one(&self, node: &str, r: &RequestInfo) -> Result<(), String> {
        demand(r.verb == "get", "can only get individual resources of this type")?;
        demand(r.subresource.is_empty(), "cannot get subresource")?;
        self.related(node, r)
    }

    /// Of pods that are its own, all; NodeRestriction looks at what it writes.
    fn pod(&self, node: &str, r: &RequestInfo) -> Result<(), String> {
        match (r.subresource.as_str(), r.verb.as_str()) {
            ("", "get") => self.read_one(node, r),
            ("", "list" | "watch") => {
                if narrowed_to(r, "spec.nodeName", node) {
                    return Ok(());
                }
                demand(!r.name.is_empty(), "can only list/watch pods with spec.nodeName field selector")?;
                self.related(node, r)
            }
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
            _ => Err(String::new()),
        }
    }

    fn slice(&self, node: &str, r: &RequestInfo) -> Result<(), String> {
        demand(r.subresource.is_empty(), "cannot authorize ResourceSlice subresources")?;
        match r.verb.as_str() {
            // NodeRestriction looks at whose it is.
            "create" => Ok(()),
            "get" | "update" | "patch" | "delete" => self.related(node, r),
            "watch" | "list" | "deletecollection" => demand(
                narrowed_to(r, "spec.nodeName", node),
                "can only list/watch/deletecollection resourceslices with nodeName field selector",
            ),
            _ => Err(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, \
                      delete, deletecollection"
                    .to_owned(),
            ),
        }
    }

    /// Is the object one that has to do with the node?
    fn related(&self, node: &str, r: &RequestInfo) -> Result<(), String> {
        demand(!r.name.is_empty(), "No Object name found")?;
        let says = |resource: &str| {
            let object = self.lister.get(resource, "", &r.name);
            object.is_some_and(|object| object.str_at(&["spec", "nodeName"]) == node)
        };
        let related = match r.gvr.resource.as_str() {
            "resourceslices" => says("resourceslices.resource.k8s.io"),
            "volumeattachments" => says("volumeattachments.storage.k8s.io"),
            resource => self.graph().get(node).is_some_and(|set| set.contains(&key(resource, &r.namespace, &r.name))),
        };
        demand(related, &format!("no relationship found between node '{node}' and this object"))
    }
}

/// The node that a user is.
pub(super) fn name_of(user: &UserInfo) -> Option<&str> {
    let name = user.name.strip_prefix(USER_PREFIX).filter(|name| !name.is_empty());
    name.filter(|_| user.is_in(NODES_GROUP))
}

fn demand(holds: bool, otherwise: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.to_owned()) }
}

/// By the node's name; who creates has none yet, and NodeRestriction looks at it then.
fn own(node: &str, r: &RequestInfo, otherwise: &str) -> Result<(), String> {
    demand(r.verb == "create" || r.name == node, otherwise)
}

fn narrowed_to(r: &RequestInfo, field: &str, node: &str) -> bool {
    r.field_selector.selector.terms.iter().any(|term| term.equal && term.field == field && term.value == node)
}

/// By name alone, so that a kubelet can ask for its Node before there is one.
fn node_itself(node: &str, r: &RequestInfo) -> Result<(), String> {
    match (r.subresource.as_str(), r.verb.as_str()) {
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
        ("", "get" | "list" | "watch") if r.name == node => Ok(()),
        ("", "get" | "list" | "watch") if r.name.is_empty() => {
            Err(format!("node '{node}' cannot read all nodes, only its own Node object"))
        }
        ("", "get" | "list" | "watch") => {
            Err(format!("node '{node}' cannot read '{}', only its own Node object", r.name))
        }
        _ => Err(String::new()),
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
        let Some(node) = name_of(user) else {
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
                let volume = claim.str_at(&["spec", "volumeName"]);
                references.insert(key("persistentvolumes", "", volume));
                if let Some(volume) = lister.get("persistentvolumes", "", volume) {
                    references.extend(secrets_of(&volume));
                }
            }
        }
    }
    graph
}

/// The secrets that a node needs to mount a volume.
fn secrets_of(volume: &Value) -> Vec<String> {
    let (spec, of_claim) = (&volume["spec"], volume.str_at(&["spec", "claimRef", "namespace"]));
    let mut found = Vec::new();
    let mut add = |namespace: &str, name: &str| {
        if !name.is_empty() {
            found.push(key("secrets", if namespace.is_empty() { of_claim } else { namespace }, name));
        }
    };
    add(spec.str_at(&["azureFile", "secretNamespace"]), spec.str_at(&["azureFile", "secretName"]));
    for plugin in ["cephfs", "flexVolume", "iscsi", "rbd", "scaleIO", "storageos"] {
        let secret = spec.at(&[plugin, "secretRef"]);
        add(secret.str_at(&["namespace"]), secret.str_at(&["name"]));
    }
    for purpose in ["nodePublishSecretRef", "nodeStageSecretRef", "nodeExpandSecretRef"] {
        let secret = spec.at(&["csi", purpose]);
        add(secret.str_at(&["namespace"]), secret.str_at(&["name"]));
    }
    found
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
    for claim in spec["resourceClaims"].items() {
        add("resourceclaims", claim.str_at(&["resourceClaimName"]));
    }
    let status = &pod["status"];
    for made in status["resourceClaimStatuses"].items() {
        add("resourceclaims", made.str_at(&["resourceClaimName"]));
    }
    add("resourceclaims", status.str_at(&["extendedResourceClaimStatus", "resourceClaimName"]));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attributes::Narrowed;
    use crate::lister::fixture::MapLister;
    use apimachinery::meta::Gvr;
    use apimachinery::selector::FieldSelector;

    const OBJECTS: &[(&str, &str)] = &[
        (
            "pods",
            r#"{"metadata":{"name":"p","namespace":"prod"},"spec":{"nodeName":"n1","serviceAccountName":"sa",
            "ephemeralContainers":[{"name":"e","envFrom":[{"secretRef":{"name":"hidden"}}]}],
            "resourceClaims":[{"name":"gpu","resourceClaimName":"gpus"}],
            "volumes":[{"name":"c","configMap":{"name":"cm"}},{"name":"d","persistentVolumeClaim":{"claimName":"data"}}]}}"#,
        ),
        ("persistentvolumeclaims", r#"{"metadata":{"name":"data","namespace":"prod"},"spec":{"volumeName":"pv"}}"#),
        (
            "persistentvolumes",
            r#"{"metadata":{"name":"pv"},"spec":{"csi":{"nodeStageSecretRef":{"name":"key","namespace":"csi"}}}}"#,
        ),
        ("volumeattachments.storage.k8s.io", r#"{"metadata":{"name":"va"},"spec":{"nodeName":"n1"}}"#),
        ("resourceslices.resource.k8s.io", r#"{"metadata":{"name":"other"},"spec":{"nodeName":"n2"}}"#),
    ];

    /// `VERB RESOURCE[/SUBRESOURCE] [NAMESPACE/]NAME [?FIELDSELECTOR]` asked by the node n1: `""` where it is allowed.
    #[track_caller]
    fn check(question: &str, want: &str) {
        let lister = MapLister::default();
        for (resource, object) in OBJECTS {
            lister.put(resource, serde_json::from_str(object).unwrap());
        }
        let authorizer = NodeAuthorizer::new(Arc::new(lister), Vec::new());
        let (question, selector) = question.split_once(" ?").unwrap_or((question, ""));
        let mut words = question.split(' ');
        let (verb, resource) = (words.next().unwrap(), words.next().unwrap());
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
        let (namespace, name) = words.next().map_or(("", ""), |at| at.split_once('/').unwrap_or(("", at)));
        let request = RequestInfo {
            is_resource: true,
            verb: verb.into(),
            gvr: Gvr::new(group, "v1", resource),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: name.into(),
            field_selector: Narrowed::of(FieldSelector::parse(selector)),
            ..RequestInfo::default()
        };
        assert_eq!(authorizer.decide("n1", &request).err().unwrap_or_default(), want, "{question}");
    }

    const UNRELATED: &str = "no relationship found between node 'n1' and this object";

    #[test]
    fn a_node_reads_what_its_pods_refer_to() {
        check("get configmaps prod/cm", "");
        check("get secrets prod/hidden", "");
        check("get secrets csi/key", "");
        check("get secrets prod/other", UNRELATED);
        check("update configmaps prod/cm", "can only read resources of this type");
        check("list secrets prod/", "No Object name found");
        check("get persistentvolumes pv", "");
        check("list persistentvolumes", "can only get individual resources of this type");
        check("patch persistentvolumeclaims/status prod/data", "");
        check("get resourceclaims.resource.k8s.io prod/gpus", "");
        check("get volumeattachments.storage.k8s.io va", "");
        check("create serviceaccounts/token prod/sa", "");
        check("create serviceaccounts/token prod/admin", UNRELATED);
        check("delete serviceaccounts prod/sa", "can only create tokens for individual service accounts");
    }

    #[test]
    fn a_node_watches_its_own_pods_only() {
        check("watch pods  ?spec.nodeName=n1", "");
        check("watch pods  ?status.phase!=Failed,spec.nodeName==n1", "");
        let why = "can only list/watch pods with spec.nodeName field selector";
        check("watch pods  ?spec.nodeName=n2", why);
        check("watch pods  ?spec.nodeName!=n1", why);
        check("list pods", why);
        check("list pods prod/p", "");
        check("get pods prod/p", "");
        check("get pods prod/q", UNRELATED);
        check("create pods/eviction prod/q", "");
        let why = "can only list/watch/deletecollection resourceslices with nodeName field selector";
        check("list resourceslices.resource.k8s.io", why);
        check("deletecollection resourceslices.resource.k8s.io  ?spec.nodeName=n1", "");
        check("delete resourceslices.resource.k8s.io other", UNRELATED);
    }

    #[test]
    fn a_node_reads_itself_and_no_other() {
        check("get nodes n1", "");
        check("get nodes n2", "node 'n1' cannot read 'n2', only its own Node object");
        check("list nodes", "node 'n1' cannot read all nodes, only its own Node object");
        check("patch leases.coordination.k8s.io kube-node-lease/n1", "");
        let why = "can only access node lease with the same name as the requesting node";
        check("patch leases.coordination.k8s.io kube-node-lease/n2", why);
        let why = "can only access leases in the \"kube-node-lease\" system namespace";
        check("get leases.coordination.k8s.io default/n1", why);
        let why = "can only access CSINode with the same name as the requesting node";
        check("update csinodes.storage.k8s.io n2", why);
    }

    #[tokio::test]
    async fn only_nodes_are_judged() {
        let authorizer = NodeAuthorizer::new(Arc::new(MapLister::default()), Vec::new());
        let request = RequestInfo {
            is_resource: true,
            verb: "get".into(),
            gvr: Gvr::new("", "v1", "nodes"),
            name: "n1".into(),
            ..RequestInfo::default()
        };
        let ask = async |name: &str, groups: &[&str]| {
            let groups = groups.iter().map(ToString::to_string).collect();
            let user = UserInfo { name: name.into(), groups, ..UserInfo::default() };
            authorizer.authorize(&Attributes { user: Arc::new(user), request: Arc::new(request.clone()) }).await
        };
        assert_eq!(ask("system:node:n1", &[NODES_GROUP]).await.decision, Decision::Allow);
        assert_eq!(ask("system:node:n1", &[]).await.decision, Decision::NoOpinion);
        assert_eq!(ask("jane", &[NODES_GROUP]).await.reason, "unknown node for user \"jane\"");
    }
}
