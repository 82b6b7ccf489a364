//! The controllers that there are, in the order in which they start.

use std::{future::Future, pin::Pin};

use k8s_openapi::api::{apps::v1::ReplicaSet, core::v1::ReplicationController};

use crate::{
    certificatesigningrequest::{ApprovingController, CleanerController, SigningController},
    clusterrole_aggregation::ClusterRoleAggregationController,
    context::Context,
    daemonset::DaemonSetController,
    deployment::DeploymentController,
    endpoints::EndpointsController,
    endpointslice::EndpointSliceController,
    garbage_collector,
    job::JobController,
    namespace::NamespaceController,
    node_ipam::NodeIpamController,
    node_lifecycle::NodeLifecycleController,
    pod_garbage_collector::PodGarbageCollector,
    replicaset::ReplicaController,
    root_ca_certificate_publisher::RootCaCertificatePublisher,
    serviceaccount::ServiceAccountController,
    serviceaccount_token::ServiceAccountTokenController,
    statefulset::StatefulSetController,
    taint_eviction::TaintEvictionController,
    ttl_after_finished::TtlAfterFinished,
};

type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One controller: its names, who it is, and how it starts. `start` returns `None` where the configuration lacks what
/// it needs.
pub(crate) struct Descriptor {
    pub(crate) name: &'static str,
    /// The name that it had before, which `--controllers` takes as well.
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
};

pub(crate) fn is_known(name: &str) -> bool {
    CONTROLLERS.iter().any(|controller| controller.name == name || controller.alias == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = CONTROLLERS.iter().flat_map(|controller| [controller.name, controller.alias]).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
