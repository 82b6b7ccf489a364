//! The objects by which the cluster knows what `kelson up` adds to it: its DNS (the Service at the tenth address, where it
//! leads to), its default StorageClass, the API of its metrics, and what DNS, the pod network, the StorageClass's provisioner
//! and the metrics server may do.

use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::components::{DNS_PORT, METRICS_PORT};
use super::options::Settings;

/// How long a role may take to be known, and how often it is looked.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOKS: Duration = Duration::from_millis(5);

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

/// Who measures nodes and pods is.
pub(crate) const METRICS_USER: &str = "system:metrics-server";
const METRICS: &str = "metrics-server";

/// Writes the objects through which the API server passes metrics.k8s.io on. `authority` signed the server's certificate.
pub(crate) async fn install_metrics(client: &Client, settings: &Settings, authority: &[u8]) -> Result<()> {
    let rules = json!([
        { "apiGroups": [""], "resources": ["nodes", "pods"], "verbs": ["get", "list"] },
        { "apiGroups": [""], "resources": ["nodes/proxy", "nodes/metrics"], "verbs": ["get"] },
    ]);
    allow(client, METRICS_USER, &rules).await?;
    let readers = json!({
        "metadata": {
            "name": "system:aggregated-metrics-reader",
            "labels": {
                "rbac.authorization.k8s.io/aggregate-to-admin": "true",
                "rbac.authorization.k8s.io/aggregate-to-edit": "true",
                "rbac.authorization.k8s.io/aggregate-to-view": "true",
            },
        },
        "rules": [{ "apiGroups": ["metrics.k8s.io"], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"] }],
    });
    ensure(&Api::<ClusterRole>::all(client.clone()), "system:aggregated-metrics-reader", &readers).await?;
    let port = json!({ "name": "https", "port": 443, "protocol": "TCP", "targetPort": METRICS_PORT });
    let service = json!({
        "metadata": { "name": METRICS, "labels": { "k8s-app": METRICS } },
        "spec": { "ports": [port] },
    });
    ensure(&Api::<Service>::namespaced(client.clone(), "kube-system"), METRICS, &service).await?;
    let ports = json!([{ "name": "https", "port": METRICS_PORT, "protocol": "TCP" }]);
    let name = format!("{METRICS}-{}", settings.node_name);
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), "kube-system");
    ensure(&slices, &name, &endpoint_slice(&name, METRICS, &ports, settings)).await?;
    let group = json!({
        "metadata": { "name": "v1beta1.metrics.k8s.io", "labels": { "k8s-app": METRICS } },
        "spec": {
            "group": "metrics.k8s.io",
            "version": "v1beta1",
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "caBundle": STANDARD.encode(authority),
            "service": { "namespace": "kube-system", "name": METRICS, "port": 443 },
        },
    });
    ensure(&Api::<APIService>::all(client.clone()), "v1beta1.metrics.k8s.io", &group).await
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
    ensure(&Api::<ClusterRoleBinding>::all(client.clone()), user, &binding).await?;
    wait_until_allowed(client, user, rules).await
}

/// The API server learns of a role a moment after it is written; who is refused until then would wait long to ask again.
async fn wait_until_allowed(client: &Client, user: &str, rules: &Value) -> Result<()> {
    let rule = |field: &str| rules[0][field][0].clone();
    let attributes = json!({ "group": rule("apiGroups"), "resource": rule("resources"), "verb": rule("verbs") });
    let review = json!({ "metadata": {}, "spec": { "user": user, "resourceAttributes": attributes } });
    let review: SubjectAccessReview = serde_json::from_value(review)?;
    let reviews = Api::<SubjectAccessReview>::all(client.clone());
    let allowed = async {
        loop {
            let answer = reviews.create(&PostParams::default(), &review).await?;
            if answer.status.is_some_and(|status| status.allowed) {
                return Result::<()>::Ok(());
            }
            tokio::time::sleep(LOOKS).await;
        }
    };
    tokio::time::timeout(PATIENCE, allowed).await.with_context(|| format!("the role of {user} does not take effect"))?
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
        "addressType": if settings.node_ip().is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{
            "addresses": [settings.node_ip().to_string()],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": settings.node_name,
        }],
        "ports": ports,
    })
}
