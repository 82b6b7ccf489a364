//! The objects by which the cluster knows what `kelson up` adds to it: its DNS (the Service at the tenth address, where it
//! leads to), its default StorageClass, and what DNS, the pod network and the StorageClass's provisioner may do.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::components::DNS_PORT;
use super::options::Settings;

/// Who cluster DNS is.
pub(crate) const DNS_USER: &str = "system:cluster-dns";

/// Who makes the volumes of the default StorageClass is.
pub(crate) const LOCAL_PATH_USER: &str = "system:local-path-provisioner";
const LOCAL_PATH_CLASS: &str = "local-path";

/// Who the pod network of each node is.
pub(crate) const POD_NETWORK_USER: &str = "system:pod-network";

/// Writes what the pod network may do.
pub(crate) async fn install_pod_network(client: &Client) -> Result<()> {
    let reads = |group: &str, resources: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": ["get", "list", "watch"]});
    let rules = json!([
        reads("", &["nodes", "pods", "namespaces"]),
        reads("networking.k8s.io", &["networkpolicies"]),
        reads("discovery.k8s.io", &["endpointslices"]),
        { "apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch", "update"] },
    ]);
    allow(client, POD_NETWORK_USER, &rules).await
}

/// Writes the objects of cluster DNS as they are to be; what others added to them stays.
pub(crate) async fn install_dns(client: &Client, settings: &Settings) -> Result<()> {
    let rules = json!([
        { "apiGroups": [""], "resources": ["services"], "verbs": ["list", "watch"] },
        { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] },
    ]);
    allow(client, DNS_USER, &rules).await?;
    ensure(&Api::<Service>::namespaced(client.clone(), "kube-system"), "kube-dns", &service(settings)).await?;
    let slice = format!("kube-dns-{}", settings.node_name);
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), "kube-system");
    let ports = json!([
        { "name": "dns", "port": DNS_PORT, "protocol": "UDP" },
        { "name": "dns-tcp", "port": DNS_PORT, "protocol": "TCP" },
    ]);
    ensure(&slices, &slice, &endpoint_slice(&slice, "kube-dns", &ports, settings)).await
}

/// Writes the default StorageClass, which stays as its users have changed it, and what its provisioner may do.
pub(crate) async fn install_storage(client: &Client) -> Result<()> {
    let rules = json!([
        { "apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": ["get", "list", "watch"] },
        { "apiGroups": [""], "resources": ["persistentvolumes"],
          "verbs": ["get", "list", "watch", "create", "patch", "delete"] },
        { "apiGroups": ["storage.k8s.io"], "resources": ["storageclasses"], "verbs": ["get", "list", "watch"] },
        { "apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch", "update"] },
    ]);
    allow(client, LOCAL_PATH_USER, &rules).await?;
    let class: StorageClass = serde_json::from_value(json!({
        "metadata": {
            "name": LOCAL_PATH_CLASS,
            "annotations": { "storageclass.kubernetes.io/is-default-class": "true" },
        },
        "provisioner": local_path_provisioner::PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
    }))?;
    match Api::<StorageClass>::all(client.clone()).create(&PostParams::default(), &class).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        other => other.map(drop).context("cannot write the default StorageClass"),
    }
}

async fn ensure<K>(api: &Api<K>, name: &str, object: &Value) -> Result<()>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    let what = || format!("cannot write {} {name}", K::kind(&()));
    let new: K = serde_json::from_value(object.clone()).with_context(what)?;
    match api.create(&PostParams::default(), &new).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            api.patch(name, &PatchParams::default(), &Patch::Merge(object)).await.with_context(what)?;
        }
        other => drop(other.with_context(what)?),
    }
    Ok(())
}

/// Gives a user a role of its own name.
async fn allow(client: &Client, user: &str, rules: &Value) -> Result<()> {
    let role = json!({ "metadata": { "name": user }, "rules": rules });
    ensure(&Api::<ClusterRole>::all(client.clone()), user, &role).await?;
    let binding = json!({
        "metadata": { "name": user },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": user },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user }],
    });
    ensure(&Api::<ClusterRoleBinding>::all(client.clone()), user, &binding).await
}

fn service(settings: &Settings) -> Value {
    let ip = settings.dns_service_ip().to_string();
    json!({
        "metadata": {
            "name": "kube-dns",
            "labels": { "k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS" },
        },
        "spec": {
            "clusterIP": ip,
            "clusterIPs": [ip],
            "ports": [
                { "name": "dns", "port": 53, "protocol": "UDP", "targetPort": DNS_PORT },
                { "name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": DNS_PORT },
            ],
        },
    })
}

/// The Service has no selector, so no controller writes this for us.
fn endpoint_slice(name: &str, service: &str, ports: &Value, settings: &Settings) -> Value {
    json!({
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/service-name": service,
                "endpointslice.kubernetes.io/managed-by": "kelson",
            },
        },
        "addressType": if settings.node_ip.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{
            "addresses": [settings.node_ip.to_string()],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": settings.node_name,
        }],
        "ports": ports,
    })
}
