//! The controllers that there are, in the order in which they start.

use std::{future::Future, pin::Pin};

use component_base::feature_gates::{FeatureGates, Gate};
use k8s_openapi::api::{apps::v1::ReplicaSet, core::v1::ReplicationController};

use crate::{
    attach_detach::AttachDetachController,
    bootstrap_token::{cleaner::TokenCleaner, signer::BootstrapSigner},
    certificatesigningrequest::{ApprovingController, CleanerController, SigningController},
    clusterrole_aggregation::ClusterRoleAggregationController,
    context::Context,
    cronjob::CronJobController,
    daemonset::DaemonSetController,
    deployment::DeploymentController,
    device_taint_eviction::DeviceTaintEvictionController,
    disruption::DisruptionController,
    endpoints::EndpointsController,
    endpointslice::EndpointSliceController,
    endpointslice_mirroring::EndpointSliceMirroringController,
    ephemeral_volume::EphemeralVolumeController,
    garbage_collector,
    horizontal_pod_autoscaler::HorizontalPodAutoscalerController,
    job::JobController,
    kube_apiserver_serving_clustertrustbundle_publisher::ClusterTrustBundlePublisher,
    legacy_serviceaccount_token_cleaner::LegacyTokenCleaner,
    namespace::NamespaceController,
    node_ipam::NodeIpamController,
    node_lifecycle::NodeLifecycleController,
    persistentvolume_binder::PersistentVolumeBinder,
    persistentvolume_expander::PersistentVolumeExpander,
    pod_garbage_collector::PodGarbageCollector,
    protection::{AttributesClassProtection, ClaimProtection, VolumeProtection},
    replicaset::ReplicaController,
    resourceclaim::ResourceClaimController,
    resourcequota::ResourceQuotaController,
    root_ca_certificate_publisher::RootCaCertificatePublisher,
    selinux_warning::SelinuxWarningController,
    service_cidr::ServiceCidrController,
    serviceaccount::ServiceAccountController,
    serviceaccount_token::ServiceAccountTokenController,
    statefulset::StatefulSetController,
    storage_version_migrator::StorageVersionMigrator,
    storageversion_garbage_collector::StorageVersionGarbageCollector,
    taint_eviction::TaintEvictionController,
    ttl::TtlController,
    ttl_after_finished::TtlAfterFinished,
    validatingadmissionpolicy_status::PolicyStatusController,
};

type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One controller: its names, who it is, and how it starts. `start` returns `None` where the configuration lacks what
/// it needs.
pub(crate) struct Descriptor {
    pub(crate) name: &'static str,
    /// The name that it had before, which `--controllers` takes as well; empty for one that had none.
    pub(crate) alias: &'static str,
    /// Its service account in `kube-system`, which is also the source of its events. Empty for the one that needs the
    /// controller manager's own rights, because the others have none without it.
    pub(crate) account: &'static str,
    pub(crate) on_by_default: bool,
    pub(crate) start: fn(Context) -> Option<Running>,
}

macro_rules! controllers {
    ($($name:literal, $alias:literal, $account:literal, $on:literal, $start:expr;)*) => {
        &[$(Descriptor { name: $name, alias: $alias, account: $account, on_by_default: $on, start: $start }),*]
    };
}

#[rustfmt::skip]
pub(crate) const CONTROLLERS: &[Descriptor] = controllers! {
    "serviceaccount-controller", "serviceaccount", "service-account-controller", true, |context| {
        let workers = context.config.concurrent.serviceaccount;
        let controller = ServiceAccountController::new(&context);
        Some(Box::pin(context.run(controller, workers)))
    };
    "root-ca-certificate-publisher-controller", "root-ca-cert-publisher", "root-ca-cert-publisher", true, |context| {
        let bundle = context.config.root_ca.clone()?;
        let controller = RootCaCertificatePublisher::new(&context, bundle);
        Some(Box::pin(context.run(controller, 1)))
    };
    "namespace-controller", "namespace", "namespace-controller", true, |context| {
        let workers = context.config.concurrent.namespace;
        let controller = NamespaceController::new(&context);
        Some(Box::pin(context.run(controller, workers)))
    };
    "replicationcontroller-controller", "replicationcontroller", "replication-controller", true, |context| {
        let workers = context.config.concurrent.replicationcontroller;
        let controller = ReplicaController::<ReplicationController>::new(&context);
        Some(Box::pin(context.run(controller, workers)))
    };
    "replicaset-controller", "replicaset", "replicaset-controller", true, |context| {
        let workers = context.config.concurrent.replicaset;
        let controller = ReplicaController::<ReplicaSet>::new(&context);
        Some(Box::pin(context.run(controller, workers)))
    };
    "deployment-controller", "deployment", "deployment-controller", true, |context| {
        let workers = context.config.concurrent.deployment;
        let controller = DeploymentController::new(&context);
        Some(Box::pin(context.run(controller, workers)))
    };
    "daemonset-controller", "daemonset", "daemon-set-controller", true, |context| {
        let workers = context.config.concurrent.daemonset;
        let controller = DaemonSetController::new(&context);
        Some(Box::pin(context.run(controller, workers)))
    };
    "statefulset-controller", "statefulset", "statefulset-controller", true, |context| {
        let workers = context.config.concurrent.statefulset;
        let controller = StatefulSetController::new(&context);
        Some(Box::pin(context.run(controller, workers)))
    };
    "job-controller", "job", "job-controller", true, |context| {
        let workers = context.config.concurrent.job;
        let controller = JobController::new(&context);
        Some(Box::pin(context.run(controller, workers)))
    };
    "cronjob-controller", "cronjob", "cronjob-controller", true, |context| {
        let workers = context.config.concurrent.cronjob;
        let controller = CronJobController::new(&context);
        Some(Box::pin(context.run(controller, workers)))
    };
    "disruption-controller", "disruption", "disruption-controller", true, |context| {
        let controller = DisruptionController::new(&context);
        Some(Box::pin(context.run(controller, 1)))
    };
    "horizontal-pod-autoscaler-controller", "horizontalpodautoscaling", "horizontal-pod-autoscaler", true, |context| {
        let workers = context.config.concurrent.horizontal_pod_autoscaler;
        let controller = HorizontalPodAutoscalerController::new(&context);
        Some(Box::pin(context.run(controller, workers)))
    };
    "resourcequota-controller", "resourcequota", "resourcequota-controller", true, |context| {
        let workers = context.config.concurrent.resourcequota;
        let controller = ResourceQuotaController::new(&context);
        Some(Box::pin(context.run(controller, workers)))
    };
    "ttl-after-finished-controller", "ttl-after-finished", "ttl-after-finished-controller", true, |context| {
        let workers = context.config.concurrent.ttl_after_finished;
        let controller = TtlAfterFinished::new(&context);
        Some(Box::pin(context.run(controller, workers)))
    };
    "garbage-collector-controller", "garbagecollector", "generic-garbage-collector", true, |context| {
        (context.config.concurrent.garbage_collector > 0).then(|| Box::pin(garbage_collector::run(context)) as Running)
    };
    "node-ipam-controller", "nodeipam", "node-controller", true, |context| {
        let config = context.config.node_ipam.clone()?;
        let controller = NodeIpamController::new(&context, &config)?;
        Some(Box::pin(context.run(controller, 30)))
    };
    "node-lifecycle-controller", "nodelifecycle", "node-controller", true, |context| {
        let controller = NodeLifecycleController::new(&context);
        Some(Box::pin(context.run(controller, 8)))
    };
    "taint-eviction-controller", "tainteviction", "node-controller", true, |context| {
        let controller = TaintEvictionController::new(&context);
        Some(Box::pin(context.run(controller, 8)))
    };
    "pod-garbage-collector-controller", "podgc", "pod-garbage-collector", true, |context| {
        let threshold = context.config.terminated_pod_gc_threshold;
        let controller = PodGarbageCollector::new(&context, threshold);
        Some(Box::pin(context.run(controller, 1)))
    };
    "serviceaccount-token-controller", "serviceaccount-token", "", true, |context| {
        let signer = context.config.token_signer.clone()?;
        let workers = context.config.concurrent.serviceaccount;
        let controller = ServiceAccountTokenController::new(&context, signer);
        Some(Box::pin(context.run(controller, workers)))
    };
    "certificatesigningrequest-signing-controller", "csrsigning", "certificate-controller", true, |context| {
        let signing = context.config.cluster_signing.clone()?;
        let controller = SigningController::new(&context, signing);
        Some(Box::pin(context.run(controller, 5)))
    };
    "certificatesigningrequest-approving-controller", "csrapproving", "certificate-controller", true, |context| {
        let controller = ApprovingController::new(&context);
        Some(Box::pin(context.run(controller, 5)))
    };
    "certificatesigningrequest-cleaner-controller", "csrcleaner", "certificate-controller", true, |context| {
        let controller = CleanerController::new(&context);
        Some(Box::pin(context.run(controller, 1)))
    };
    "clusterrole-aggregation-controller", "clusterrole-aggregation", "clusterrole-aggregation-controller", true, |context| {
        let controller = ClusterRoleAggregationController::new(&context);
        Some(Box::pin(context.run(controller, 5)))
    };
    "endpoints-controller", "endpoint", "endpoint-controller", true, |context| {
        let workers = context.config.concurrent.endpoint;
        let controller = EndpointsController::new(&context);
        Some(Box::pin(context.run(controller, workers)))
    };
    "endpointslice-controller", "endpointslice", "endpointslice-controller", true, |context| {
        let workers = context.config.concurrent.endpointslice;
        let controller = EndpointSliceController::new(&context);
        Some(Box::pin(context.run(controller, workers)))
    };
    "endpointslice-mirroring-controller", "endpointslicemirroring", "endpointslicemirroring-controller", true, |context| {
        let workers = context.config.concurrent.endpointslice_mirroring;
        let controller = EndpointSliceMirroringController::new(&context);
        Some(Box::pin(context.run(controller, workers)))
    };
    "ttl-controller", "ttl", "ttl-controller", true, |context| {
        let controller = TtlController::new(&context);
        Some(Box::pin(context.run(controller, 5)))
    };
    "bootstrap-signer-controller", "bootstrapsigner", "bootstrap-signer", false, |context| {
        let controller = BootstrapSigner::new(&context);
        Some(Box::pin(context.run(controller, 1)))
    };
    "token-cleaner-controller", "tokencleaner", "token-cleaner", false, |context| {
        let controller = TokenCleaner::new(&context);
        Some(Box::pin(context.run(controller, 1)))
    };
    "persistentvolumeclaim-protection-controller", "pvc-protection", "pvc-protection-controller", true, |context| {
        let controller = ClaimProtection::new(&context);
        Some(Box::pin(context.run(controller, 1)))
    };
    "persistentvolume-protection-controller", "pv-protection", "pv-protection-controller", true, |context| {
        let controller = VolumeProtection::new(&context);
        Some(Box::pin(context.run(controller, 1)))
    };
    "volumeattributesclass-protection-controller", "", "volumeattributesclass-protection-controller", true, |context| {
        let controller = AttributesClassProtection::new(&context);
        Some(Box::pin(context.run(controller, 1)))
    };
    "ephemeral-volume-controller", "ephemeral-volume", "ephemeral-volume-controller", true, |context| {
        let workers = context.config.concurrent.ephemeral_volume;
        let controller = EphemeralVolumeController::new(&context);
        Some(Box::pin(context.run(controller, workers)))
    };
    "legacy-serviceaccount-token-cleaner-controller", "legacy-service-account-token-cleaner", "legacy-service-account-token-cleaner", true, |context| {
        let controller = LegacyTokenCleaner::new(&context);
        Some(Box::pin(context.run(controller, 1)))
    };
    "validatingadmissionpolicy-status-controller", "", "validatingadmissionpolicy-status-controller", true, |context| {
        let workers = context.config.concurrent.validating_admission_policy_status;
        let controller = PolicyStatusController::new(&context);
        Some(Box::pin(context.run(controller, workers)))
    };
    "service-cidr-controller", "", "service-cidrs-controller", true, |context| {
        let controller = ServiceCidrController::new(&context);
        Some(Box::pin(context.run(controller, 5)))
    };
    "persistentvolume-binder-controller", "persistentvolume-binder", "persistent-volume-binder", true, |context| {
        let controller = PersistentVolumeBinder::new(&context);
        Some(Box::pin(context.run(controller, 1)))
    };
    "persistentvolume-expander-controller", "persistentvolume-expander", "expand-controller", true, |context| {
        let controller = PersistentVolumeExpander::new(&context);
        Some(Box::pin(context.run(controller, 1)))
    };
    "resourceclaim-controller", "resource-claim-controller", "resource-claim-controller", true, |context| {
        let workers = context.config.concurrent.resourceclaim;
        let controller = ResourceClaimController::new(&context);
        Some(Box::pin(context.run(controller, workers)))
    };
    "persistentvolume-attach-detach-controller", "attachdetach", "attachdetach-controller", true, |context| {
        let controller = AttachDetachController::new(&context);
        Some(Box::pin(context.run(controller, 10)))
    };
    "device-taint-eviction-controller", "", "device-taint-eviction-controller", true, |context| {
        let workers = context.config.concurrent.device_taint_eviction;
        let controller = DeviceTaintEvictionController::new(&context);
        Some(Box::pin(context.run(controller, workers)))
    };
    "selinux-warning-controller", "", "selinux-warning-controller", false, |context| {
        let controller = SelinuxWarningController::new(&context);
        Some(Box::pin(context.run(controller, 1)))
    };
    "storageversion-garbage-collector-controller", "storage-version-gc", "storage-version-garbage-collector", true, |context| {
        let controller = StorageVersionGarbageCollector::new(&context);
        Some(Box::pin(context.run(controller, 1)))
    };
    "storage-version-migrator-controller", "", "storage-version-migrator-controller", true, |context| {
        let controller = StorageVersionMigrator::new(&context);
        Some(Box::pin(context.run(controller, 5)))
    };
    "kube-apiserver-serving-clustertrustbundle-publisher-controller", "", "kube-apiserver-serving-clustertrustbundle-publisher", true, |context| {
        let anchors = context.config.root_ca.clone()?;
        let controller = ClusterTrustBundlePublisher::new(&context, anchors);
        Some(Box::pin(context.run(controller, 1)))
    };
    // Upstream runs this only behind a gate that is off; its name is known all the same.
    "podcertificaterequest-cleaner-controller", "", "podcertificaterequestcleaner", false, |_| None;
    // These belong to the cloud-controller-manager; their names are known all the same.
    "service-lb-controller", "service", "service-controller", false, |_| None;
    "node-route-controller", "route", "route-controller", false, |_| None;
    "cloud-node-lifecycle-controller", "cloud-node-lifecycle", "node-controller", false, |_| None;
};

/// Gates of controllers that work on kinds which are not stable yet. Unless they are on, they do not start.
const GATES: &[(&str, Gate)] = &[
    ("storageversion-garbage-collector-controller", gate("StorageVersionAPI")),
    ("storage-version-migrator-controller", gate("StorageVersionMigrator")),
    ("kube-apiserver-serving-clustertrustbundle-publisher-controller", gate("ClusterTrustBundle")),
];

const fn gate(name: &'static str) -> Gate {
    Gate { name, default: false, locked: false }
}

impl Descriptor {
    /// Whether the gates let it start.
    pub(crate) fn is_let(&self, gates: &FeatureGates) -> bool {
        GATES.iter().filter(|(name, _)| *name == self.name).all(|(_, gate)| gates.enabled(*gate))
    }
}

pub(crate) fn is_known(name: &str) -> bool {
    CONTROLLERS.iter().any(|controller| controller.name == name || controller.alias == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_stable_waits_for_its_gate() {
        let started = |gates: &str| {
            let gates = gates.parse().unwrap();
            let let_in = CONTROLLERS.iter().filter(|controller| controller.is_let(&gates));
            let_in.filter(|controller| GATES.iter().any(|(name, _)| *name == controller.name)).count()
        };
        assert_eq!(started(""), 0);
        assert_eq!(started("ClusterTrustBundle=true,StorageVersionMigrator=true"), 2);
        assert!(GATES.iter().all(|(name, _)| is_known(name)));
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = CONTROLLERS.iter().flat_map(|controller| [controller.name, controller.alias]).collect();
        names.retain(|name| !name.is_empty());
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
