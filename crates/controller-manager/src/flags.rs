//! The command line of kube-controller-manager, with upstream's names and defaults, and what it completes to.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Parser};
use client::{config::ClientOptions, leader_election::LeaseConfig};
use component_base::{feature_gates::FeatureGates, flags::go_duration, secure_port::SecurePortFlags};

use ipnet::IpNet;

use crate::{
    AttachDetachConfig, Authority, ClusterSigning, Config, ControllerList, Credentials, NodeIpamConfig,
    NodeLifecycleConfig, Rates, TokenSigner, config::Concurrent, controller_flags::ControllerFlags,
};

#[derive(Debug, thiserror::Error)]
pub enum FlagsError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// All mistakes, each in a sentence.
    #[error("{}", .0.join("; "))]
    Invalid(Vec<String>),
}

#[derive(Debug, Clone, Parser)]
#[command(name = "kube-controller-manager", disable_version_flag = true)]
pub struct Flags {
    /// A file of kind `KubeControllerManagerConfiguration`; the other flags win over it.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Path to the kubeconfig file with authorization and API server location.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// The address of the API server; replaces the kubeconfig's.
    #[arg(long)]
    pub master: Option<String>,
    #[command(flatten)]
    pub secure: SecurePortFlags,
    /// 0 serves nothing.
    #[arg(long, default_value_t = 10257)]
    pub secure_port: u16,
    #[arg(long, default_value_t = 20.0)]
    pub kube_api_qps: f64,
    #[arg(long, default_value_t = 30)]
    pub kube_api_burst: u32,
    #[arg(long, default_value = "application/vnd.kubernetes.protobuf")]
    pub kube_api_content_type: String,

    /// `*` enables all that are on by default, `foo` enables foo, `-foo` disables foo.
    #[arg(long, value_delimiter = ',', default_value = "*", allow_hyphen_values = true)]
    pub controllers: Vec<String>,
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub use_service_account_credentials: bool,
    /// `A=true,B=false`.
    #[arg(long)]
    pub feature_gates: Vec<FeatureGates>,
    #[arg(long, default_value = "kubernetes")]
    pub cluster_name: String,
    #[arg(long, default_value = "0s", value_parser = go_duration)]
    pub min_resync_period: Duration,
    #[arg(long, default_value = "0s", value_parser = go_duration)]
    pub controller_start_interval: Duration,
    /// Log verbosity.
    #[arg(long, short = 'v', default_value_t = 0)]
    pub v: u8,

    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub leader_elect: bool,
    #[arg(long, default_value = "15s", value_parser = go_duration)]
    pub leader_elect_lease_duration: Duration,
    #[arg(long, default_value = "10s", value_parser = go_duration)]
    pub leader_elect_renew_deadline: Duration,
    #[arg(long, default_value = "2s", value_parser = go_duration)]
    pub leader_elect_retry_period: Duration,
    #[arg(long, default_value = "leases")]
    pub leader_elect_resource_lock: String,
    #[arg(long, default_value = "kube-controller-manager")]
    pub leader_elect_resource_name: String,
    #[arg(long, default_value = "kube-system")]
    pub leader_elect_resource_namespace: String,

    /// Published to every namespace, and put into service-account token secrets.
    #[arg(long)]
    pub root_ca_file: Option<PathBuf>,
    #[arg(long)]
    pub service_account_private_key_file: Option<PathBuf>,

    #[arg(long)]
    pub cluster_signing_cert_file: Option<PathBuf>,
    #[arg(long)]
    pub cluster_signing_key_file: Option<PathBuf>,
    #[arg(long, default_value = "8760h0m0s", value_parser = go_duration)]
    pub cluster_signing_duration: Duration,
    #[arg(long)]
    pub cluster_signing_kubelet_serving_cert_file: Option<PathBuf>,
    #[arg(long)]
    pub cluster_signing_kubelet_serving_key_file: Option<PathBuf>,
    #[arg(long)]
    pub cluster_signing_kubelet_client_cert_file: Option<PathBuf>,
    #[arg(long)]
    pub cluster_signing_kubelet_client_key_file: Option<PathBuf>,
    #[arg(long)]
    pub cluster_signing_kube_apiserver_client_cert_file: Option<PathBuf>,
    #[arg(long)]
    pub cluster_signing_kube_apiserver_client_key_file: Option<PathBuf>,
    #[arg(long)]
    pub cluster_signing_legacy_unknown_cert_file: Option<PathBuf>,
    #[arg(long)]
    pub cluster_signing_legacy_unknown_key_file: Option<PathBuf>,

    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub allocate_node_cidrs: bool,
    #[arg(long, default_value = "RangeAllocator")]
    pub cidr_allocator_type: String,
    #[arg(long, value_delimiter = ',')]
    pub cluster_cidr: Vec<IpNet>,
    #[arg(long, value_delimiter = ',')]
    pub service_cluster_ip_range: Vec<IpNet>,
    /// 24 for IPv4 and 64 for IPv6 by default.
    #[arg(long)]
    pub node_cidr_mask_size: Option<u8>,
    #[arg(long)]
    pub node_cidr_mask_size_ipv4: Option<u8>,
    #[arg(long)]
    pub node_cidr_mask_size_ipv6: Option<u8>,
    #[arg(long, default_value = "5s", value_parser = go_duration)]
    pub node_monitor_period: Duration,
    #[arg(long, default_value = "40s", value_parser = go_duration)]
    pub node_monitor_grace_period: Duration,
    #[arg(long, default_value = "1m0s", value_parser = go_duration)]
    pub node_startup_grace_period: Duration,
    #[arg(long, default_value_t = 0.1)]
    pub node_eviction_rate: f64,
    #[arg(long, default_value_t = 0.01)]
    pub secondary_node_eviction_rate: f64,
    #[arg(long, default_value_t = 50)]
    pub large_cluster_size_threshold: usize,
    #[arg(long, default_value_t = 0.55)]
    pub unhealthy_zone_threshold: f64,
    #[arg(long, default_value_t = 12_500)]
    pub terminated_pod_gc_threshold: i32,

    #[arg(long, default_value_t = 2)]
    pub concurrent_daemonset_syncs: usize,
    #[arg(long, default_value_t = 5)]
    pub concurrent_statefulset_syncs: usize,
    #[arg(long, default_value_t = 5)]
    pub concurrent_job_syncs: usize,
    #[arg(long, default_value_t = 5)]
    pub concurrent_ttl_after_finished_syncs: usize,
    #[arg(long, default_value_t = 5)]
    pub concurrent_deployment_syncs: usize,
    #[arg(long, default_value_t = 5)]
    pub concurrent_replicaset_syncs: usize,
    #[arg(long, default_value_t = 5)]
    pub concurrent_rc_syncs: usize,
    #[arg(long, default_value_t = 10)]
    pub concurrent_namespace_syncs: usize,
    #[arg(long, default_value_t = 5)]
    pub concurrent_serviceaccount_token_syncs: usize,
    #[arg(long, default_value_t = 5)]
    pub concurrent_endpoint_syncs: usize,
    #[arg(long, default_value_t = 5)]
    pub concurrent_service_endpoint_syncs: usize,
    #[arg(long, default_value_t = 20)]
    pub concurrent_gc_syncs: usize,
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub enable_garbage_collector: bool,
    #[arg(long, default_value_t = 100)]
    pub max_endpoints_per_slice: usize,
    #[command(flatten)]
    pub of_controllers: ControllerFlags,
}

impl Flags {
    /// The client's own settings.
    #[must_use]
    pub fn client_options(&self) -> ClientOptions {
        ClientOptions::limited("kube-controller-manager", self.kube_api_qps, self.kube_api_burst)
    }

    /// Each signer's own CA, else the common one.
    fn cluster_signing(&self) -> Option<ClusterSigning> {
        let authority = |certificate: &Option<PathBuf>, key: &Option<PathBuf>| {
            Some(Authority { certificate: certificate.clone()?, key: key.clone()? })
        };
        let common = authority(&self.cluster_signing_cert_file, &self.cluster_signing_key_file);
        let own = |certificate, key| authority(certificate, key).or_else(|| common.clone());
        let signing = ClusterSigning {
            kube_apiserver_client: own(
                &self.cluster_signing_kube_apiserver_client_cert_file,
                &self.cluster_signing_kube_apiserver_client_key_file,
            ),
            kubelet_client: own(
                &self.cluster_signing_kubelet_client_cert_file,
                &self.cluster_signing_kubelet_client_key_file,
            ),
            kubelet_serving: own(
                &self.cluster_signing_kubelet_serving_cert_file,
                &self.cluster_signing_kubelet_serving_key_file,
            ),
            legacy_unknown: own(
                &self.cluster_signing_legacy_unknown_cert_file,
                &self.cluster_signing_legacy_unknown_key_file,
            ),
            duration: self.cluster_signing_duration,
        };
        let signers = [
            &signing.kube_apiserver_client,
            &signing.kubelet_client,
            &signing.kubelet_serving,
            &signing.legacy_unknown,
        ];
        signers.iter().any(|signer| signer.is_some()).then_some(signing)
    }

    /// The prefix length of a node's share of the network.
    fn node_mask(&self, network: &IpNet) -> u8 {
        let (own, default) = match network {
            IpNet::V4(_) => (self.node_cidr_mask_size_ipv4, 24),
            IpNet::V6(_) => (self.node_cidr_mask_size_ipv6, 64),
        };
        let only = self.node_cidr_mask_size.filter(|_| self.cluster_cidr.len() == 1);
        own.or(only).unwrap_or(default)
    }

    /// Reads the files that the flags name and checks everything together. `identity` is this instance's name in leader
    /// election.
    pub fn complete(self, identity: &str) -> Result<Config, FlagsError> {
        let mut mistakes = Vec::new();
        let controllers = ControllerList::parse(&self.controllers).unwrap_or_else(|mistake| {
            mistakes.push(mistake);
            ControllerList::default()
        });
        let lease = LeaseConfig {
            namespace: self.leader_elect_resource_namespace.clone(),
            lease_duration: self.leader_elect_lease_duration,
            renew_deadline: self.leader_elect_renew_deadline,
            retry_period: self.leader_elect_retry_period,
            ..LeaseConfig::new(&self.leader_elect_resource_name, identity)
        };
        if self.leader_elect {
            mistakes.extend(lease.validate().err().map(str::to_owned));
        }
        if self.leader_elect_resource_lock != "leases" {
            mistakes.push(format!("resourceLock value must be \"leases\", not {:?}", self.leader_elect_resource_lock));
        }
        if !(1..=1000).contains(&self.max_endpoints_per_slice) {
            mistakes.push("--max-endpoints-per-slice must be between 1 and 1000".to_owned());
        }
        let serving = self.secure.clone().complete(self.secure_port, false).unwrap_or_else(|wrong| {
            mistakes.extend(wrong);
            None
        });
        let credentials = match (&self.kubeconfig, self.use_service_account_credentials) {
            (_, false) => Credentials::Own,
            (Some(kubeconfig), true) => Credentials::ServiceAccounts {
                kubeconfig: kubeconfig.clone(),
                qps: self.kube_api_qps,
                burst: self.kube_api_burst,
            },
            (None, true) => {
                mistakes.push("--use-service-account-credentials needs --kubeconfig".to_owned());
                Credentials::Own
            }
        };
        let node_ipam = self.allocate_node_cidrs.then(|| NodeIpamConfig {
            cluster_cidrs: self.cluster_cidr.iter().map(|network| (*network, self.node_mask(network))).collect(),
            service_cidrs: self.service_cluster_ip_range.clone(),
        });
        if node_ipam.as_ref().is_some_and(|config| config.cluster_cidrs.is_empty()) {
            mistakes.push("--allocate-node-cidrs needs --cluster-cidr".to_owned());
        }
        if self.cidr_allocator_type != "RangeAllocator" {
            mistakes.push(format!("--cidr-allocator-type {:?} is not known", self.cidr_allocator_type));
        }
        if !mistakes.is_empty() {
            return Err(FlagsError::Invalid(mistakes));
        }
        let cluster_signing = self.cluster_signing();
        let of_controllers = &self.of_controllers;
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).map_err(|source| FlagsError::Read { path: path.clone(), source })
        };
        let token_signer = match &self.service_account_private_key_file {
            Some(path) => Some(TokenSigner::from_pem(&read(path)?).map_err(|_| {
                let mistake = format!("--service-account-private-key-file: {} is no private key", path.display());
                FlagsError::Invalid(vec![mistake])
            })?),
            None => None,
        };
        Ok(Config {
            controllers,
            feature_gates: self.feature_gates.iter().fold(FeatureGates::default(), FeatureGates::overridden_by),
            credentials,
            leader_election: self.leader_elect.then_some(lease),
            serving,
            flags: Vec::new(),
            root_ca: self.root_ca_file.as_ref().map(read).transpose()?,
            concurrent: Concurrent {
                daemonset: self.concurrent_daemonset_syncs,
                statefulset: self.concurrent_statefulset_syncs,
                job: self.concurrent_job_syncs,
                ttl_after_finished: self.concurrent_ttl_after_finished_syncs,
                deployment: self.concurrent_deployment_syncs,
                replicaset: self.concurrent_replicaset_syncs,
                replicationcontroller: self.concurrent_rc_syncs,
                namespace: self.concurrent_namespace_syncs,
                serviceaccount: self.concurrent_serviceaccount_token_syncs,
                endpoint: self.concurrent_endpoint_syncs,
                endpointslice: self.concurrent_service_endpoint_syncs,
                garbage_collector: if self.enable_garbage_collector { self.concurrent_gc_syncs } else { 0 },
                cronjob: of_controllers.concurrent_cron_job_syncs,
                horizontal_pod_autoscaler: of_controllers.concurrent_horizontal_pod_autoscaler_syncs,
                resourcequota: of_controllers.concurrent_resource_quota_syncs,
                ephemeral_volume: of_controllers.concurrent_ephemeralvolume_syncs,
                validating_admission_policy_status: of_controllers.concurrent_validating_admission_policy_status_syncs,
                resourceclaim: of_controllers.concurrent_resource_claim_syncs,
                device_taint_eviction: of_controllers.concurrent_device_taint_eviction_syncs,
                endpointslice_mirroring: of_controllers.mirroring_concurrent_service_endpoint_syncs,
            },
            autoscaler: of_controllers.autoscaler(),
            resource_quota_sync_period: of_controllers.resource_quota_sync_period,
            volume_sync_period: of_controllers.pvclaimbinder_sync_period,
            attach_detach: AttachDetachConfig {
                sync_period: of_controllers.attach_detach_reconcile_sync_period,
                forces_detach: !of_controllers.disable_force_detach_on_timeout,
            },
            dynamic_provisioning: of_controllers.enable_dynamic_provisioning,
            mirroring_max_endpoints: of_controllers.mirroring_max_endpoints_per_subset,
            legacy_token_clean_up_period: of_controllers.legacy_service_account_token_clean_up_period,
            max_endpoints_per_slice: self.max_endpoints_per_slice,
            node_lifecycle: NodeLifecycleConfig {
                grace: self.node_monitor_grace_period,
                startup_grace: self.node_startup_grace_period,
                rates: Rates {
                    primary: self.node_eviction_rate,
                    secondary: self.secondary_node_eviction_rate,
                    large_cluster: self.large_cluster_size_threshold,
                    unhealthy_threshold: self.unhealthy_zone_threshold,
                },
            },
            node_ipam,
            cluster_signing,
            token_signer,
            terminated_pod_gc_threshold: usize::try_from(self.terminated_pod_gc_threshold).unwrap_or_default(),
        })
    }
}
