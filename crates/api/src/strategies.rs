//! Which kind has rules of its own: one explicit list.

use crate::core::{namespace, node, pod, secret, service, volumes};
use crate::event;
use crate::named_by_path as small;
use crate::strategy::{Plain, Strategy};
use crate::workloads;

/// Group, version (`*`: all), resource, and where its rules stand.
const STRATEGIES: &[(&str, &str, &str, &dyn Strategy)] = &[
    ("", "*", "pods", &pod::PodStrategy),
    ("", "*", "services", &service::ServiceStrategy),
    ("", "*", "namespaces", &namespace::NamespaceStrategy),
    ("", "*", "nodes", &node::NodeStrategy),
    ("", "*", "secrets", &secret::SecretStrategy),
    ("", "*", "configmaps", &secret::ConfigMapStrategy),
    ("", "*", "serviceaccounts", &secret::ServiceAccountStrategy),
    ("", "*", "persistentvolumes", &volumes::VolumeStrategy),
    ("", "*", "persistentvolumeclaims", &volumes::ClaimStrategy),
    ("", "*", "events", &event::CoreEventStrategy),
    ("events.k8s.io", "*", "events", &event::EventStrategy),
    ("", "*", "endpoints", &small::EndpointsStrategy),
    ("", "*", "replicationcontrollers", &workloads::ReplicationControllerStrategy),
    ("", "*", "podtemplates", &workloads::PodTemplateStrategy),
    ("apps", "*", "deployments", &workloads::DeploymentStrategy),
    ("apps", "*", "replicasets", &workloads::ReplicaSetStrategy),
    ("apps", "*", "statefulsets", &workloads::StatefulSetStrategy),
    ("apps", "*", "daemonsets", &workloads::DaemonSetStrategy),
    ("batch", "*", "jobs", &workloads::JobStrategy),
    ("batch", "*", "cronjobs", &workloads::CronJobStrategy),
    ("discovery.k8s.io", "*", "endpointslices", &small::EndpointSliceStrategy),
    ("coordination.k8s.io", "*", "leases", &small::LeaseStrategy),
    ("scheduling.k8s.io", "*", "priorityclasses", &small::PriorityClassStrategy),
    ("certificates.k8s.io", "*", "certificatesigningrequests", &small::CertificateSigningRequestStrategy),
    ("flowcontrol.apiserver.k8s.io", "*", "flowschemas", &small::FlowControlStrategy),
    ("flowcontrol.apiserver.k8s.io", "*", "prioritylevelconfigurations", &small::FlowControlStrategy),
    ("rbac.authorization.k8s.io", "*", "roles", &small::RbacStrategy),
    ("rbac.authorization.k8s.io", "*", "clusterroles", &small::RbacStrategy),
    ("rbac.authorization.k8s.io", "*", "rolebindings", &small::BindingStrategy),
    ("rbac.authorization.k8s.io", "*", "clusterrolebindings", &small::BindingStrategy),
    ("storage.k8s.io", "*", "storageclasses", &small::StorageClassStrategy),
];

pub(crate) fn of(group: &str, version: &str, resource: &str) -> &'static dyn Strategy {
    let row = STRATEGIES.iter().find(|(g, v, r, _)| *g == group && (*v == "*" || *v == version) && *r == resource);
    row.map_or(&Plain, |(_, _, _, strategy)| *strategy)
}
