//! Which kind has rules of its own: one explicit list.

use crate::admissionregistration::{binding as policy_binding, policy, webhooks};
use crate::apiregistration::api_service;
use crate::apiserverinternal::storage_version;
use crate::apps::{controller_revision, daemon_set, deployment, replica_set, stateful_set};
use crate::autoscaling::horizontal_pod_autoscaler;
use crate::batch::{cron_job, job};
use crate::certificates::{cluster_trust_bundle, signing_request};
use crate::coordination::lease;
use crate::core::{
    config_map, endpoints, limit_range, namespace, node, persistent_volume, persistent_volume_claim, pod, pod_template,
    replication_controller, resource_quota, secret, service, service_account,
};
use crate::discovery::endpoint_slice;
use crate::event;
use crate::extensions;
use crate::flowcontrol::{flow_schema, priority_level};
use crate::networking::{ingress, ingress_class, ip_address, network_policy, service_cidr};
use crate::node::runtime_class;
use crate::policy::pod_disruption_budget;
use crate::rbac::{binding, role};
use crate::resource_api::{device_class, resource_claim, resource_slice};
use crate::scheduling::{pod_group, priority_class};
use crate::storage::{
    csi_driver, csi_node, csi_storage_capacity, storage_class, volume_attachment, volume_attributes_class,
};
use crate::storagemigration::storage_version_migration;
use crate::strategy::{Plain, Strategy};

const ADMISSION: &str = "admissionregistration.k8s.io";

/// Group, version (`*`: all), resource, and where its rules stand.
const STRATEGIES: &[(&str, &str, &str, &dyn Strategy)] = &[
    ("", "*", "pods", &pod::PodStrategy),
    ("", "*", "services", &service::ServiceStrategy),
    ("", "*", "namespaces", &namespace::NamespaceStrategy),
    ("", "*", "nodes", &node::NodeStrategy),
    ("", "*", "secrets", &secret::SecretStrategy),
    ("", "*", "configmaps", &config_map::ConfigMapStrategy),
    ("", "*", "serviceaccounts", &service_account::ServiceAccountStrategy),
    ("", "*", "persistentvolumes", &persistent_volume::VolumeStrategy),
    ("", "*", "persistentvolumeclaims", &persistent_volume_claim::ClaimStrategy),
    ("", "*", "events", &event::CoreEventStrategy),
    ("events.k8s.io", "*", "events", &event::EventStrategy),
    ("", "*", "endpoints", &endpoints::EndpointsStrategy),
    ("", "*", "replicationcontrollers", &replication_controller::ReplicationControllerStrategy),
    ("", "*", "podtemplates", &pod_template::PodTemplateStrategy),
    ("apps", "*", "deployments", &deployment::DeploymentStrategy),
    ("apps", "*", "replicasets", &replica_set::ReplicaSetStrategy),
    ("apps", "*", "statefulsets", &stateful_set::StatefulSetStrategy),
    ("apps", "*", "daemonsets", &daemon_set::DaemonSetStrategy),
    ("apps", "*", "controllerrevisions", &controller_revision::ControllerRevisionStrategy),
    ("autoscaling", "v1", "horizontalpodautoscalers", &horizontal_pod_autoscaler::V1Strategy),
    ("autoscaling", "v2", "horizontalpodautoscalers", &horizontal_pod_autoscaler::V2Strategy),
    ("policy", "*", "poddisruptionbudgets", &pod_disruption_budget::PodDisruptionBudgetStrategy),
    ("batch", "*", "jobs", &job::JobStrategy),
    ("batch", "*", "cronjobs", &cron_job::CronJobStrategy),
    ("discovery.k8s.io", "*", "endpointslices", &endpoint_slice::EndpointSliceStrategy),
    ("coordination.k8s.io", "*", "leases", &lease::LeaseStrategy),
    ("scheduling.k8s.io", "*", "priorityclasses", &priority_class::PriorityClassStrategy),
    ("scheduling.k8s.io", "*", "workloads", &pod_group::WorkloadStrategy),
    ("scheduling.k8s.io", "*", "podgroups", &pod_group::PodGroupStrategy),
    ("certificates.k8s.io", "*", "clustertrustbundles", &cluster_trust_bundle::ClusterTrustBundleStrategy),
    ("internal.apiserver.k8s.io", "*", "storageversions", &storage_version::StorageVersionStrategy),
    (
        "storagemigration.k8s.io",
        "*",
        "storageversionmigrations",
        &storage_version_migration::StorageVersionMigrationStrategy,
    ),
    ("certificates.k8s.io", "*", "certificatesigningrequests", &signing_request::CertificateSigningRequestStrategy),
    ("flowcontrol.apiserver.k8s.io", "*", "flowschemas", &flow_schema::FlowSchemaStrategy),
    ("flowcontrol.apiserver.k8s.io", "*", "prioritylevelconfigurations", &priority_level::PriorityLevelStrategy),
    ("rbac.authorization.k8s.io", "*", "roles", &role::RoleStrategy { namespaced: true }),
    ("rbac.authorization.k8s.io", "*", "clusterroles", &role::RoleStrategy { namespaced: false }),
    ("rbac.authorization.k8s.io", "*", "rolebindings", &binding::BindingStrategy { namespaced: true }),
    ("rbac.authorization.k8s.io", "*", "clusterrolebindings", &binding::BindingStrategy { namespaced: false }),
    ("storage.k8s.io", "*", "storageclasses", &storage_class::StorageClassStrategy),
    ("", "*", "limitranges", &limit_range::LimitRangeStrategy),
    ("", "*", "resourcequotas", &resource_quota::ResourceQuotaStrategy),
    ("storage.k8s.io", "*", "csidrivers", &csi_driver::CsiDriverStrategy),
    ("storage.k8s.io", "*", "csinodes", &csi_node::CsiNodeStrategy),
    ("storage.k8s.io", "*", "csistoragecapacities", &csi_storage_capacity::CsiStorageCapacityStrategy),
    ("storage.k8s.io", "*", "volumeattachments", &volume_attachment::VolumeAttachmentStrategy),
    ("storage.k8s.io", "*", "volumeattributesclasses", &volume_attributes_class::VolumeAttributesClassStrategy),
    ("networking.k8s.io", "*", "ingresses", &ingress::IngressStrategy),
    ("networking.k8s.io", "*", "ingressclasses", &ingress_class::IngressClassStrategy),
    ("networking.k8s.io", "*", "networkpolicies", &network_policy::NetworkPolicyStrategy),
    ("networking.k8s.io", "*", "ipaddresses", &ip_address::IpAddressStrategy),
    ("networking.k8s.io", "*", "servicecidrs", &service_cidr::ServiceCidrStrategy),
    ("resource.k8s.io", "*", "deviceclasses", &device_class::DeviceClassStrategy),
    ("resource.k8s.io", "*", "resourceclaims", &resource_claim::ResourceClaimStrategy),
    ("resource.k8s.io", "*", "resourceclaimtemplates", &resource_claim::ResourceClaimTemplateStrategy),
    ("resource.k8s.io", "*", "resourceslices", &resource_slice::ResourceSliceStrategy),
    ("node.k8s.io", "*", "runtimeclasses", &runtime_class::RuntimeClassStrategy),
    ("apiregistration.k8s.io", "*", "apiservices", &api_service::ApiServiceStrategy),
    (ADMISSION, "*", "validatingwebhookconfigurations", &webhooks::WebhookConfigurationStrategy { mutating: false }),
    (ADMISSION, "*", "mutatingwebhookconfigurations", &webhooks::WebhookConfigurationStrategy { mutating: true }),
    (ADMISSION, "*", "validatingadmissionpolicies", &policy::PolicyStrategy { mutating: false }),
    (ADMISSION, "*", "mutatingadmissionpolicies", &policy::PolicyStrategy { mutating: true }),
    (ADMISSION, "*", "validatingadmissionpolicybindings", &policy_binding::PolicyBindingStrategy { mutating: false }),
    (ADMISSION, "*", "mutatingadmissionpolicybindings", &policy_binding::PolicyBindingStrategy { mutating: true }),
    ("apiextensions.k8s.io", "*", "customresourcedefinitions", &extensions::DefinitionStrategy),
];

pub(crate) fn of(group: &str, version: &str, resource: &str) -> &'static dyn Strategy {
    let row = STRATEGIES.iter().find(|(g, v, r, _)| *g == group && (*v == "*" || *v == version) && *r == resource);
    row.map_or(&Plain, |(_, _, _, strategy)| *strategy)
}
