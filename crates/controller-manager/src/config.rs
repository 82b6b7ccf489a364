//! What the controller manager runs with, complete: no field means "the default".

use std::{path::PathBuf, sync::Arc, time::Duration};

use client::leader_election::LeaseConfig;
use component_base::{feature_gates::FeatureGates, secure_port::SecurePort};
use kube::Client;

use crate::{Authority, AutoscalerConfig, NodeIpamConfig, NodeLifecycleConfig, TokenSigner};

pub struct Config {
    pub controllers: ControllerList,
    pub feature_gates: FeatureGates,
    pub credentials: Credentials,
    /// Runs unelected without one.
    pub leader_election: Option<LeaseConfig>,
    /// Serves no health and metrics without one.
    pub serving: Option<SecurePort>,
    /// The flags with their values, as `/flagz` and `/configz` show them.
    pub flags: Vec<(String, String)>,
    /// PEM that is published to every namespace; without it nothing is published.
    pub root_ca: Option<String>,
    pub concurrent: Concurrent,
    pub max_endpoints_per_slice: usize,
    pub node_lifecycle: NodeLifecycleConfig,
    /// Nodes get no pod network from us without it.
    pub node_ipam: Option<NodeIpamConfig>,
    /// Nothing is signed without it.
    pub cluster_signing: Option<ClusterSigning>,
    /// Secrets get no tokens without it.
    pub token_signer: Option<TokenSigner>,
    /// Finished pods that are kept; 0 keeps all.
    pub terminated_pod_gc_threshold: usize,
    pub autoscaler: AutoscalerConfig,
    /// How often a quota is counted anew though nothing seems to have changed; zero never.
    pub resource_quota_sync_period: Duration,
    /// How often claims that wait are looked at again.
    pub volume_sync_period: Duration,
    pub attach_detach: AttachDetachConfig,
    /// Whether claims may have volumes made for them.
    pub dynamic_provisioning: bool,
    /// Endpoints of one subset that are mirrored.
    pub mirroring_max_endpoints: usize,
    /// How long a legacy token has to be unused before it goes.
    pub legacy_token_clean_up_period: Duration,
}

#[derive(Debug, Clone)]
pub struct AttachDetachConfig {
    pub sync_period: Duration,
    /// Whether volumes leave an unhealthy node after six minutes though it did not unmount them.
    pub forces_detach: bool,
}

impl Default for AttachDetachConfig {
    fn default() -> Self {
        Self { sync_period: Duration::from_secs(60), forces_detach: true }
    }
}

/// How each controller shows who it is.
#[derive(Clone)]
pub enum Credentials {
    /// All act as the controller manager itself.
    Own,
    /// Each gets tokens of its own service account in `kube-system`, over this kubeconfig's connection.
    ServiceAccounts {
        kubeconfig: PathBuf,
        /// Of each controller's client; not positive means no limit.
        qps: f64,
        burst: u32,
    },
    /// Each gets what this gives for its service account's name.
    Provided(Arc<dyn Fn(&str) -> Client + Send + Sync>),
}

/// Upstream's `--cluster-signing-*`: the CA of each signer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSigning {
    pub kube_apiserver_client: Option<Authority>,
    pub kubelet_client: Option<Authority>,
    pub kubelet_serving: Option<Authority>,
    pub legacy_unknown: Option<Authority>,
    /// The longest life of what is signed.
    pub duration: Duration,
}

impl ClusterSigning {
    /// One CA for all signers, as `--cluster-signing-cert-file` says it, and upstream's year.
    #[must_use]
    pub fn all(authority: &Authority) -> Self {
        let authority = Some(authority.clone());
        Self {
            kube_apiserver_client: authority.clone(),
            kubelet_client: authority.clone(),
            kubelet_serving: authority.clone(),
            legacy_unknown: authority,
            duration: Duration::from_secs(365 * 24 * 3600),
        }
    }
}

/// Upstream's `--concurrent-*-syncs`.
#[derive(Debug, Clone)]
pub struct Concurrent {
    pub daemonset: usize,
    pub statefulset: usize,
    pub job: usize,
    pub ttl_after_finished: usize,
    pub deployment: usize,
    pub replicaset: usize,
    pub replicationcontroller: usize,
    pub namespace: usize,
    pub serviceaccount: usize,
    pub endpoint: usize,
    pub endpointslice: usize,
    pub garbage_collector: usize,
    pub cronjob: usize,
    pub horizontal_pod_autoscaler: usize,
    pub resourcequota: usize,
    pub ephemeral_volume: usize,
    pub validating_admission_policy_status: usize,
    pub resourceclaim: usize,
    pub device_taint_eviction: usize,
    pub endpointslice_mirroring: usize,
}

impl Default for Concurrent {
    fn default() -> Self {
        Self {
            daemonset: 2,
            statefulset: 5,
            job: 5,
            ttl_after_finished: 5,
            deployment: 5,
            replicaset: 5,
            replicationcontroller: 5,
            namespace: 10,
            serviceaccount: 5,
            endpoint: 5,
            endpointslice: 5,
            garbage_collector: 20,
            cronjob: 5,
            horizontal_pod_autoscaler: 5,
            resourcequota: 5,
            ephemeral_volume: 5,
            validating_admission_policy_status: 5,
            resourceclaim: 50,
            device_taint_eviction: 10,
            endpointslice_mirroring: 5,
        }
    }
}

impl Default for Config {
    /// Upstream's defaults, without a server, an election and keys.
    fn default() -> Self {
        Self {
            controllers: ControllerList::default(),
            feature_gates: FeatureGates::default(),
            credentials: Credentials::Own,
            leader_election: None,
            serving: None,
            flags: Vec::new(),
            root_ca: None,
            concurrent: Concurrent::default(),
            max_endpoints_per_slice: 100,
            node_lifecycle: NodeLifecycleConfig::default(),
            node_ipam: None,
            cluster_signing: None,
            token_signer: None,
            terminated_pod_gc_threshold: 12_500,
            autoscaler: AutoscalerConfig::default(),
            resource_quota_sync_period: Duration::from_secs(300),
            volume_sync_period: Duration::from_secs(15),
            attach_detach: AttachDetachConfig::default(),
            dynamic_provisioning: true,
            mirroring_max_endpoints: 1000,
            legacy_token_clean_up_period: Duration::from_secs(365 * 24 * 3600),
        }
    }
}

/// Upstream's `--controllers`: `*` is all that are on by default, `name` is on, `-name` is off; the first that names a
/// controller wins over `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerList(Vec<String>);

impl Default for ControllerList {
    fn default() -> Self {
        Self(vec!["*".to_owned()])
    }
}

impl ControllerList {
    /// Reads the items of the flag; a name that no controller has is an error that names it.
    pub fn parse(items: &[String]) -> Result<Self, String> {
        for item in items {
            let name = item.strip_prefix('-').unwrap_or(item);
            if name != "*" && !crate::registry::is_known(name) {
                return Err(format!("\"{name}\" is not in the list of known controllers"));
            }
        }
        Ok(if items.is_empty() { Self::default() } else { Self(items.to_vec()) })
    }

    pub(crate) fn enables(&self, names: &[&str], on_by_default: bool) -> bool {
        let mut has_star = false;
        for item in &self.0 {
            match item.strip_prefix('-') {
                _ if item == "*" => has_star = true,
                Some(name) if names.contains(&name) => return false,
                None if names.contains(&item.as_str()) => return true,
                _ => {}
            }
        }
        has_star && on_by_default
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(items: &str) -> ControllerList {
        ControllerList::parse(&items.split(',').map(str::to_owned).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn stars_names_and_minuses_choose_controllers() {
        let names = ["deployment-controller", "deployment"];
        for (items, on_by_default, want) in [
            ("*", true, true),
            ("*", false, false),
            ("*,-deployment", true, false),
            ("-deployment-controller,*", true, false),
            ("deployment", false, true),
            ("namespace", true, false),
            ("*,deployment", false, true),
        ] {
            assert_eq!(list(items).enables(&names, on_by_default), want, "{items}");
        }
        let err = ControllerList::parse(&["nonsense".to_owned()]).unwrap_err();
        assert_eq!(err, "\"nonsense\" is not in the list of known controllers");
    }
}
