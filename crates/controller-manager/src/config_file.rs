//! `--config`: a `KubeControllerManagerConfiguration` of kubecontrollermanager.config.k8s.io/v1alpha1.
//!
//! Each of its fields stands for a flag: the file is read into flags, and a flag on the command line wins over it. The kind
//! gives most of its fields no name of their own in JSON, so that the case of a name does not matter, as in Go.

use std::collections::BTreeSet;
use std::path::Path;

use component_base::config_file::{self, ConfigError};
use serde_json::{Map, Value};

const API_VERSION: &str = "kubecontrollermanager.config.k8s.io/v1alpha1";
const KIND: &str = "KubeControllerManagerConfiguration";

/// A field of the file, and its flag.
const FIELDS: &[(&str, &str)] = &[
    ("Generic.Port", "secure-port"),
    ("Generic.Address", "bind-address"),
    ("Generic.MinResyncPeriod", "min-resync-period"),
    ("Generic.ClientConnection.kubeconfig", "kubeconfig"),
    ("Generic.ClientConnection.contentType", "kube-api-content-type"),
    ("Generic.ClientConnection.qps", "kube-api-qps"),
    ("Generic.ClientConnection.burst", "kube-api-burst"),
    ("Generic.ControllerStartInterval", "controller-start-interval"),
    ("Generic.LeaderElection.leaderElect", "leader-elect"),
    ("Generic.LeaderElection.leaseDuration", "leader-elect-lease-duration"),
    ("Generic.LeaderElection.renewDeadline", "leader-elect-renew-deadline"),
    ("Generic.LeaderElection.retryPeriod", "leader-elect-retry-period"),
    ("Generic.LeaderElection.resourceLock", "leader-elect-resource-lock"),
    ("Generic.LeaderElection.resourceName", "leader-elect-resource-name"),
    ("Generic.LeaderElection.resourceNamespace", "leader-elect-resource-namespace"),
    ("Generic.Controllers", "controllers"),
    ("Generic.Debugging.enableProfiling", "profiling"),
    ("Generic.Debugging.enableContentionProfiling", "contention-profiling"),
    ("Generic.LeaderMigrationEnabled", "enable-leader-migration"),
    ("KubeCloudShared.CloudProvider.Name", "cloud-provider"),
    ("KubeCloudShared.CloudProvider.CloudConfigFile", "cloud-config"),
    ("KubeCloudShared.ExternalCloudVolumePlugin", "external-cloud-volume-plugin"),
    ("KubeCloudShared.UseServiceAccountCredentials", "use-service-account-credentials"),
    ("KubeCloudShared.RouteReconciliationPeriod", "route-reconciliation-period"),
    ("KubeCloudShared.NodeMonitorPeriod", "node-monitor-period"),
    ("KubeCloudShared.ClusterName", "cluster-name"),
    ("KubeCloudShared.ClusterCIDR", "cluster-cidr"),
    ("KubeCloudShared.AllocateNodeCIDRs", "allocate-node-cidrs"),
    ("KubeCloudShared.CIDRAllocatorType", "cidr-allocator-type"),
    ("KubeCloudShared.ConfigureCloudRoutes", "configure-cloud-routes"),
    ("AttachDetachController.DisableAttachDetachReconcilerSync", "disable-attach-detach-reconcile-sync"),
    ("AttachDetachController.ReconcilerSyncLoopPeriod", "attach-detach-reconcile-sync-period"),
    ("AttachDetachController.DisableForceDetachOnTimeout", "disable-force-detach-on-timeout"),
    ("CSRSigningController.ClusterSigningCertFile", "cluster-signing-cert-file"),
    ("CSRSigningController.ClusterSigningKeyFile", "cluster-signing-key-file"),
    ("CSRSigningController.ClusterSigningDuration", "cluster-signing-duration"),
    ("CSRSigningController.KubeletServingSignerConfiguration.CertFile", "cluster-signing-kubelet-serving-cert-file"),
    ("CSRSigningController.KubeletServingSignerConfiguration.KeyFile", "cluster-signing-kubelet-serving-key-file"),
    ("CSRSigningController.KubeletClientSignerConfiguration.CertFile", "cluster-signing-kubelet-client-cert-file"),
    ("CSRSigningController.KubeletClientSignerConfiguration.KeyFile", "cluster-signing-kubelet-client-key-file"),
    (
        "CSRSigningController.KubeAPIServerClientSignerConfiguration.CertFile",
        "cluster-signing-kube-apiserver-client-cert-file",
    ),
    (
        "CSRSigningController.KubeAPIServerClientSignerConfiguration.KeyFile",
        "cluster-signing-kube-apiserver-client-key-file",
    ),
    ("CSRSigningController.LegacyUnknownSignerConfiguration.CertFile", "cluster-signing-legacy-unknown-cert-file"),
    ("CSRSigningController.LegacyUnknownSignerConfiguration.KeyFile", "cluster-signing-legacy-unknown-key-file"),
    ("DaemonSetController.ConcurrentDaemonSetSyncs", "concurrent-daemonset-syncs"),
    ("DeploymentController.ConcurrentDeploymentSyncs", "concurrent-deployment-syncs"),
    ("StatefulSetController.ConcurrentStatefulSetSyncs", "concurrent-statefulset-syncs"),
    ("EndpointController.ConcurrentEndpointSyncs", "concurrent-endpoint-syncs"),
    ("EndpointController.EndpointUpdatesBatchPeriod", "endpoint-updates-batch-period"),
    ("EndpointSliceController.ConcurrentServiceEndpointSyncs", "concurrent-service-endpoint-syncs"),
    ("EndpointSliceController.MaxEndpointsPerSlice", "max-endpoints-per-slice"),
    ("EndpointSliceController.EndpointUpdatesBatchPeriod", "endpointslice-updates-batch-period"),
    (
        "EndpointSliceMirroringController.MirroringConcurrentServiceEndpointSyncs",
        "mirroring-concurrent-service-endpoint-syncs",
    ),
    ("EndpointSliceMirroringController.MirroringMaxEndpointsPerSubset", "mirroring-max-endpoints-per-subset"),
    (
        "EndpointSliceMirroringController.MirroringEndpointUpdatesBatchPeriod",
        "mirroring-endpointslice-updates-batch-period",
    ),
    ("EphemeralVolumeController.ConcurrentEphemeralVolumeSyncs", "concurrent-ephemeralvolume-syncs"),
    ("GarbageCollectorController.EnableGarbageCollector", "enable-garbage-collector"),
    ("GarbageCollectorController.ConcurrentGCSyncs", "concurrent-gc-syncs"),
    ("HPAController.ConcurrentHorizontalPodAutoscalerSyncs", "concurrent-horizontal-pod-autoscaler-syncs"),
    ("HPAController.HorizontalPodAutoscalerSyncPeriod", "horizontal-pod-autoscaler-sync-period"),
    (
        "HPAController.HorizontalPodAutoscalerDownscaleStabilizationWindow",
        "horizontal-pod-autoscaler-downscale-stabilization",
    ),
    ("HPAController.HorizontalPodAutoscalerTolerance", "horizontal-pod-autoscaler-tolerance"),
    (
        "HPAController.HorizontalPodAutoscalerCPUInitializationPeriod",
        "horizontal-pod-autoscaler-cpu-initialization-period",
    ),
    ("HPAController.HorizontalPodAutoscalerInitialReadinessDelay", "horizontal-pod-autoscaler-initial-readiness-delay"),
    ("JobController.ConcurrentJobSyncs", "concurrent-job-syncs"),
    ("CronJobController.ConcurrentCronJobSyncs", "concurrent-cron-job-syncs"),
    ("LegacySATokenCleaner.CleanUpPeriod", "legacy-service-account-token-clean-up-period"),
    ("NamespaceController.NamespaceSyncPeriod", "namespace-sync-period"),
    ("NamespaceController.ConcurrentNamespaceSyncs", "concurrent-namespace-syncs"),
    ("NodeIPAMController.ServiceCIDR", "service-cluster-ip-range"),
    ("NodeIPAMController.NodeCIDRMaskSize", "node-cidr-mask-size"),
    ("NodeIPAMController.NodeCIDRMaskSizeIPv4", "node-cidr-mask-size-ipv4"),
    ("NodeIPAMController.NodeCIDRMaskSizeIPv6", "node-cidr-mask-size-ipv6"),
    ("NodeLifecycleController.NodeEvictionRate", "node-eviction-rate"),
    ("NodeLifecycleController.SecondaryNodeEvictionRate", "secondary-node-eviction-rate"),
    ("NodeLifecycleController.NodeStartupGracePeriod", "node-startup-grace-period"),
    ("NodeLifecycleController.NodeMonitorGracePeriod", "node-monitor-grace-period"),
    ("NodeLifecycleController.LargeClusterSizeThreshold", "large-cluster-size-threshold"),
    ("NodeLifecycleController.UnhealthyZoneThreshold", "unhealthy-zone-threshold"),
    ("PersistentVolumeBinderController.PVClaimBinderSyncPeriod", "pvclaimbinder-sync-period"),
    ("PersistentVolumeBinderController.VolumeConfiguration.EnableHostPathProvisioning", "enable-hostpath-provisioner"),
    ("PersistentVolumeBinderController.VolumeConfiguration.EnableDynamicProvisioning", "enable-dynamic-provisioning"),
    ("PersistentVolumeBinderController.VolumeConfiguration.FlexVolumePluginDir", "flex-volume-plugin-dir"),
    ("PodGCController.TerminatedPodGCThreshold", "terminated-pod-gc-threshold"),
    ("ReplicaSetController.ConcurrentRSSyncs", "concurrent-replicaset-syncs"),
    ("ReplicationController.ConcurrentRCSyncs", "concurrent-rc-syncs"),
    ("ResourceQuotaController.ResourceQuotaSyncPeriod", "resource-quota-sync-period"),
    ("ResourceQuotaController.ConcurrentResourceQuotaSyncs", "concurrent-resource-quota-syncs"),
    ("SAController.ServiceAccountKeyFile", "service-account-private-key-file"),
    ("SAController.ConcurrentSATokenSyncs", "concurrent-serviceaccount-token-syncs"),
    ("SAController.RootCAFile", "root-ca-file"),
    ("ServiceController.ConcurrentServiceSyncs", "concurrent-service-syncs"),
    ("TTLAfterFinishedController.ConcurrentTTLSyncs", "concurrent-ttl-after-finished-syncs"),
    (
        "ValidatingAdmissionPolicyStatusController.ConcurrentPolicySyncs",
        "concurrent-validating-admission-policy-status-syncs",
    ),
];

/// The command line, with what the file that it names in `--config` adds to it.
///
/// # Errors
/// When the file cannot be read, is of another kind, or has a field that the kind does not know.
pub fn with_config_file(args: Vec<String>) -> Result<Vec<String>, ConfigError> {
    let Some(file) = value_of(&args, "config") else { return Ok(args) };
    let path = Path::new(&file);
    let fields: Map<String, Value> = config_file::load(path, &[API_VERSION], KIND)?;
    let mut flags = Vec::new();
    let mut unknown = Vec::new();
    read(&fields, "", &mut flags, &mut unknown);
    if !unknown.is_empty() {
        return Err(ConfigError::Unknown { path: path.to_owned(), fields: unknown });
    }
    let given: BTreeSet<String> = args.iter().filter_map(|arg| name_of(arg)).collect();
    let from_file = flags.into_iter().filter(|(flag, _)| !given.contains(*flag));
    Ok(from_file.map(|(flag, value)| format!("--{flag}={value}")).chain(args).collect())
}

/// Gathers the flags that stand for these fields; those that have no place in the kind are named in `unknown`.
fn read(fields: &Map<String, Value>, prefix: &str, flags: &mut Vec<(&'static str, String)>, unknown: &mut Vec<String>) {
    for (name, value) in fields {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        if let Some((_, flag)) = FIELDS.iter().find(|(field, _)| field.eq_ignore_ascii_case(&path)) {
            flags.extend(shown(value).map(|value| (*flag, value)));
            continue;
        }
        let holds_fields = |field: &str| {
            field.as_bytes().get(path.len()) == Some(&b'.')
                && field.get(..path.len()).is_some_and(|start| start.eq_ignore_ascii_case(&path))
        };
        match value {
            Value::Object(inner) if FIELDS.iter().any(|(field, _)| holds_fields(field)) => {
                read(inner, &path, flags, unknown);
            }
            Value::Null => {}
            _ => unknown.push(format!("unknown field \"{path}\"")),
        }
    }
}

/// A value as a flag takes it; `None`: the field says nothing.
fn shown(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => (!text.is_empty()).then(|| text.clone()),
        Value::Array(items) => Some(items.iter().filter_map(shown).collect::<Vec<_>>().join(",")),
        other => Some(other.to_string()),
    }
}

/// The kind, as these values of the flags make it.
pub(crate) fn shown_of(flags: &[(String, String)]) -> Value {
    let mut shown = Map::from_iter([("kind".to_owned(), KIND.into()), ("apiVersion".to_owned(), API_VERSION.into())]);
    for (field, flag) in FIELDS {
        let Some((_, value)) = flags.iter().find(|(name, _)| name == flag) else { continue };
        let mut parts: Vec<&str> = field.split('.').collect();
        let Some(name) = parts.pop() else { continue };
        let mut fields = &mut shown;
        for part in parts {
            let inner = fields.entry(part).or_insert_with(|| Value::Object(Map::new()));
            let Value::Object(inner) = inner else { unreachable!("{field}: {part} has fields") };
            fields = inner;
        }
        fields.insert(name.to_owned(), value_of_flag(flag, value));
    }
    Value::Object(shown)
}

/// The reverse of [`shown`].
fn value_of_flag(flag: &str, value: &str) -> Value {
    if flag == "controllers" {
        return value.split(',').collect();
    }
    match serde_json::from_str(value) {
        Ok(plain @ (Value::Bool(_) | Value::Number(_))) => plain,
        _ => value.into(),
    }
}

/// The flag that an argument gives, with dashes.
fn name_of(arg: &str) -> Option<String> {
    let flag = arg.strip_prefix("--")?;
    Some(flag.split('=').next().unwrap_or(flag).replace('_', "-"))
}

/// The last value that the command line has for a flag.
fn value_of(args: &[String], flag: &str) -> Option<String> {
    let at = args.iter().rposition(|arg| name_of(arg).as_deref() == Some(flag))?;
    match args[at].split_once('=') {
        Some((_, value)) => Some(value.to_owned()),
        None => args.get(at + 1).cloned(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::Flags;

    fn expanded(file: &str, args: &[&str]) -> Result<Flags, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{file}")).unwrap();
        let args = args.iter().map(ToString::to_string).chain([format!("--config={}", path.display())]);
        let args = with_config_file(args.collect()).map_err(|e| e.to_string())?;
        component_base::flags::parse("kube-controller-manager", args).map_err(|(text, _)| text)
    }

    #[test]
    fn every_field_stands_for_a_flag_that_there_is() {
        let command = Flags::command();
        let known: BTreeSet<&str> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
        let missing: Vec<&str> = FIELDS.iter().map(|(_, flag)| *flag).filter(|flag| !known.contains(flag)).collect();
        assert_eq!(missing, Vec::<&str>::new());
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file = "\
Generic:
  Controllers: ['*', '-ttl']
  leaderElection: {leaderElect: false, leaseDuration: 30s}
  ClientConnection: {kubeconfig: /etc/one, qps: 50.5}
deploymentController: {concurrentDeploymentSyncs: 7}
KubeCloudShared: {ClusterCIDR: 10.9.0.0/16}
";
        let flags = expanded(file, &["--concurrent_deployment_syncs=9", "--cluster-cidr", "10.8.0.0/16"]).unwrap();
        assert_eq!((flags.controllers, flags.leader_elect), (vec!["*".to_owned(), "-ttl".to_owned()], false));
        assert_eq!(flags.leader_elect_lease_duration.as_secs(), 30);
        assert_eq!(
            (flags.kubeconfig.unwrap().to_str(), flags.kube_api_qps.to_string()),
            (Some("/etc/one"), "50.5".to_owned())
        );
        assert_eq!(flags.concurrent_deployment_syncs, 9);
        assert_eq!(flags.cluster_cidr, ["10.8.0.0/16".parse().unwrap()]);
    }

    #[test]
    fn the_configuration_is_shown_as_the_file_would_have_it() {
        let args: Vec<String> = ["--concurrent-deployment-syncs=7", "--controllers=*,-ttl"].map(str::to_owned).into();
        let shown = shown_of(&component_base::flags::shown::<Flags>("kube-controller-manager", &args));
        assert_eq!(shown["DeploymentController"], serde_json::json!({ "ConcurrentDeploymentSyncs": 7 }));
        assert_eq!(shown["Generic"]["Controllers"], serde_json::json!(["*", "-ttl"]));
        assert_eq!(shown["Generic"]["LeaderElection"]["leaseDuration"], "15s");
        assert_eq!(shown["KubeCloudShared"]["AllocateNodeCIDRs"], false);
    }

    #[test]
    fn mistakes_are_named() {
        let error = expanded("Generic: {Prot: 1}\nnothing: true\n", &[]).unwrap_err();
        assert!(
            error.ends_with("strict decoding error: unknown field \"Generic.Prot\", unknown field \"nothing\""),
            "{error}"
        );
        let error = expanded("Generic: {Port: many}\n", &[]).unwrap_err();
        assert!(error.contains("--secure-port") && error.contains("many"), "{error}");
    }
}
