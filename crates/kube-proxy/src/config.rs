//! What kube-proxy is told: flags, the `KubeProxyConfiguration` file, and what both come to.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use component_base::config_file::{self, ConfigError};
use component_base::feature_gates::FeatureGates;
use component_base::flags;
use component_base::metrics::Metrics;
use ipnet::IpNet;
use serde::Deserialize;

/// The command line, with upstream's names.
#[derive(Parser, Clone, Debug)]
#[command(name = "kube-proxy", about = "Leads Service addresses to endpoints")]
pub struct Flags {
    /// A KubeProxyConfiguration file (kubeproxy.config.k8s.io/v1alpha1); other flags are then ignored, except
    /// `--hostname-override`.
    #[arg(long)]
    pub config: Option<PathBuf>,
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// The pods' network: traffic from elsewhere to a cluster IP is masqueraded.
    #[arg(long, value_delimiter = ',')]
    pub cluster_cidr: Vec<IpNet>,
    #[arg(long, default_value = "")]
    pub proxy_mode: String,
    #[arg(long)]
    pub hostname_override: Option<String>,
    #[arg(long)]
    pub healthz_bind_address: Option<SocketAddr>,
    #[arg(long)]
    pub metrics_bind_address: Option<SocketAddr>,
    #[arg(long)]
    pub feature_gates: Option<FeatureGates>,
    /// Log verbosity.
    #[arg(long, short, default_value_t = 0)]
    pub v: u8,
}

/// The file's kind. Sections that have no effect here are taken as they are.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    client_connection: ClientConnection,
    mode: String,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: String,
    hostname_override: String,
    healthz_bind_address: String,
    metrics_bind_address: String,
    nftables: Nftables,
    #[serde(rename = "featureGates")]
    _feature_gates: serde_json::Value,
    #[serde(rename = "logging")]
    _logging: serde_json::Value,
    #[serde(rename = "bindAddress")]
    _bind_address: serde_json::Value,
    #[serde(rename = "bindAddressHardFail")]
    _bind_address_hard_fail: serde_json::Value,
    #[serde(rename = "enableProfiling")]
    _enable_profiling: serde_json::Value,
    #[serde(rename = "showHiddenMetricsForVersion")]
    _hidden: serde_json::Value,
    #[serde(rename = "iptables")]
    _iptables: serde_json::Value,
    #[serde(rename = "ipvs")]
    _ipvs: serde_json::Value,
    #[serde(rename = "winkernel")]
    _winkernel: serde_json::Value,
    #[serde(rename = "detectLocalMode")]
    _detect_local_mode: serde_json::Value,
    #[serde(rename = "detectLocal")]
    _detect_local: serde_json::Value,
    #[serde(rename = "nodePortAddresses")]
    _node_port_addresses: serde_json::Value,
    #[serde(rename = "oomScoreAdj")]
    _oom_score_adj: serde_json::Value,
    #[serde(rename = "conntrack")]
    _conntrack: serde_json::Value,
    #[serde(rename = "configSyncPeriod")]
    _config_sync_period: serde_json::Value,
    #[serde(rename = "portRange")]
    _port_range: serde_json::Value,
    #[serde(rename = "windowsRunAsService")]
    _windows: serde_json::Value,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClientConnection {
    kubeconfig: String,
    #[serde(rename = "acceptContentTypes")]
    _accept: serde_json::Value,
    #[serde(rename = "contentType")]
    _content_type: serde_json::Value,
    #[serde(rename = "qps")]
    _qps: serde_json::Value,
    #[serde(rename = "burst")]
    _burst: serde_json::Value,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Nftables {
    masquerade_all: bool,
    sync_period: String,
    #[serde(rename = "masqueradeBit")]
    _masquerade_bit: serde_json::Value,
    #[serde(rename = "minSyncPeriod")]
    _min_sync_period: serde_json::Value,
}

/// What kube-proxy runs with.
#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    pub kubeconfig: Option<PathBuf>,
    pub cluster_cidrs: Vec<IpNet>,
    /// Masquerade everything that goes to a cluster IP.
    pub masquerade_all: bool,
    /// How often everything is written again.
    pub sync_period: Duration,
    pub healthz_address: Option<SocketAddr>,
    pub metrics_address: Option<SocketAddr>,
    pub metrics: Metrics,
}

impl Config {
    /// Upstream's defaults for a node.
    #[must_use]
    pub fn new(node_name: &str) -> Self {
        Config {
            node_name: node_name.to_owned(),
            kubeconfig: None,
            cluster_cidrs: Vec::new(),
            masquerade_all: false,
            sync_period: Duration::from_secs(30),
            healthz_address: Some(([0, 0, 0, 0], 10256).into()),
            metrics_address: Some(([127, 0, 0, 1], 10249).into()),
            metrics: Metrics::new(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum FlagError {
    #[error(transparent)]
    File(#[from] ConfigError),
    #[error("unknown proxy-mode: {0:?} (this build has \"nftables\")")]
    Mode(String),
    #[error("{field}: Invalid value: {value:?}")]
    Invalid { field: &'static str, value: String },
}

impl Flags {
    /// # Errors
    /// When the file cannot be read or says something that makes no sense.
    pub fn complete(&self, host: &str) -> Result<Config, FlagError> {
        let override_ = self.hostname_override.clone().filter(|h| !h.is_empty());
        let mut config = Config::new(&override_.clone().unwrap_or_else(|| host.to_owned()));
        let Some(path) = &self.config else {
            check_mode(&self.proxy_mode)?;
            config.kubeconfig.clone_from(&self.kubeconfig);
            config.cluster_cidrs.clone_from(&self.cluster_cidr);
            config.healthz_address = self.healthz_bind_address.or(config.healthz_address);
            config.metrics_address = self.metrics_bind_address.or(config.metrics_address);
            return Ok(config);
        };
        let file: File = config_file::load(path, &["kubeproxy.config.k8s.io/v1alpha1"], "KubeProxyConfiguration")?;
        check_mode(&file.mode)?;
        if override_.is_none() && !file.hostname_override.is_empty() {
            config.node_name = file.hostname_override;
        }
        let given = Some(file.client_connection.kubeconfig).filter(|k| !k.is_empty()).map(PathBuf::from);
        config.kubeconfig = given.or_else(|| self.kubeconfig.clone());
        for text in file.cluster_cidr.split(',').map(str::trim).filter(|c| !c.is_empty()) {
            let cidr = text.parse().map_err(|_| FlagError::Invalid { field: "clusterCIDR", value: text.to_owned() })?;
            config.cluster_cidrs.push(cidr);
        }
        let address = |field, text: String, default| match text.as_str() {
            "" => Ok(default),
            _ => text.parse().map(Some).map_err(|_| FlagError::Invalid { field, value: text.clone() }),
        };
        config.healthz_address = address("healthzBindAddress", file.healthz_bind_address, config.healthz_address)?;
        config.metrics_address = address("metricsBindAddress", file.metrics_bind_address, config.metrics_address)?;
        config.masquerade_all = file.nftables.masquerade_all;
        if let Ok(period) = flags::go_duration(&file.nftables.sync_period)
            && !period.is_zero()
        {
            config.sync_period = period;
        }
        Ok(config)
    }
}

fn check_mode(mode: &str) -> Result<(), FlagError> {
    if matches!(mode, "" | "nftables") { Ok(()) } else { Err(FlagError::Mode(mode.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(file: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy.yaml");
        std::fs::write(
            &path,
            format!("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{file}"),
        )
        .unwrap();
        let args = [format!("--config={}", path.display())];
        flags::parse::<Flags>("kube-proxy", args).map_err(|e| e.0)?.complete("host").map_err(|e| e.to_string())
    }

    #[test]
    fn the_file_is_read_as_upstream_writes_it() {
        let config = complete(
            "clientConnection: {kubeconfig: /k}\nmode: nftables\nclusterCIDR: 10.244.0.0/16\nhostnameOverride: node1\n\
             conntrack: {maxPerCore: 0, min: 0}\n",
        )
        .unwrap();
        assert_eq!((config.node_name.as_str(), config.kubeconfig), ("node1", Some("/k".into())));
        assert_eq!(config.cluster_cidrs, ["10.244.0.0/16".parse().unwrap()]);
    }

    #[test]
    fn mistakes_are_named() {
        assert!(complete("mode: magic\n").unwrap_err().contains("magic"));
        assert!(complete("clusterCIDRS: x\n").unwrap_err().contains("unknown field \"clusterCIDRS\""));
        assert!(complete("clusterCIDR: nowhere\n").unwrap_err().contains("clusterCIDR"));
    }
}
