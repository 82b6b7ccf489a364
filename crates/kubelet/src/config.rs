//! What the kubelet is told: flags, the `KubeletConfiguration` file, and what both come to.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgAction, Parser};
use component_base::config_file::{self, ConfigError};
use component_base::feature_gates::FeatureGates;
use component_base::flags;
use component_base::metrics::Metrics;
use k8s_openapi::api::core::v1::Taint;
use serde::Deserialize;

use crate::cpus::CpuPolicy;
use crate::memory::MemoryPolicy;
use crate::resources::Amounts;
use crate::settings::{self, Eviction, ImageGc, Logs};
use crate::shutdown::Shutdown;
use crate::swap::SwapBehavior;
use crate::topology::TopologyPolicy;

/// The command line, with upstream's names. A flag that is given wins over the file.
#[derive(Parser, Clone, Debug)]
#[command(name = "kubelet", about = "Runs the pods of one node")]
pub struct Flags {
    /// A KubeletConfiguration file (kubelet.config.k8s.io/v1beta1).
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// How to reach the apiserver; without it only static pods run.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// A kubeconfig that may ask for the client certificate which `--kubeconfig` then holds.
    #[arg(long)]
    pub bootstrap_kubeconfig: Option<PathBuf>,
    #[arg(long)]
    pub hostname_override: Option<String>,
    /// Addresses of the node, comma-separated: one of each family.
    #[arg(long, value_delimiter = ',')]
    pub node_ip: Vec<IpAddr>,
    #[arg(long, default_value = "/var/lib/kubelet")]
    pub root_dir: PathBuf,
    #[arg(long)]
    pub cert_dir: Option<PathBuf>,
    /// Renew the client certificate before it expires.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub rotate_certificates: Option<bool>,
    /// Ask the cluster for the serving certificate, and renew it before it expires.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub rotate_server_certificates: Option<bool>,
    #[arg(long)]
    pub container_runtime_endpoint: Option<String>,
    /// Labels for the Node at its registration: `a=b,c=d`.
    #[arg(long, value_parser = flags::key_values)]
    pub node_labels: Option<BTreeMap<String, String>>,
    /// Taints for the Node at its registration: `key=value:Effect,…`.
    #[arg(long, value_delimiter = ',', value_parser = crate::node::parse_taint)]
    pub register_with_taints: Vec<Taint>,
    /// The image of pod sandboxes; the runtime's own configuration decides, this one is only kept from clean-up.
    #[arg(long)]
    pub pod_infra_container_image: Option<String>,
    /// A CredentialProviderConfig file, and the directory of the programs that it names.
    #[arg(long, requires = "image_credential_provider_bin_dir")]
    pub image_credential_provider_config: Option<PathBuf>,
    #[arg(long, requires = "image_credential_provider_config")]
    pub image_credential_provider_bin_dir: Option<PathBuf>,
    #[arg(long)]
    pub feature_gates: Option<FeatureGates>,
    /// Log verbosity.
    #[arg(long, short, default_value_t = 0)]
    pub v: u8,
}

/// The part of `KubeletConfiguration` that is read here; [`settings`] reads more of it, and the rest of upstream's fields is
/// taken without effect.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    address: Option<IpAddr>,
    port: Option<u16>,
    healthz_port: Option<u16>,
    healthz_bind_address: Option<IpAddr>,
    authentication: Authentication,
    authorization: Authorization,
    #[serde(rename = "clusterDNS")]
    cluster_dns: Vec<String>,
    cluster_domain: Option<String>,
    container_runtime_endpoint: Option<String>,
    tls_cert_file: Option<PathBuf>,
    tls_private_key_file: Option<PathBuf>,
    rotate_certificates: Option<bool>,
    #[serde(rename = "serverTLSBootstrap")]
    server_tls_bootstrap: Option<bool>,
    static_pod_path: Option<PathBuf>,
    #[serde(rename = "staticPodURL")]
    static_pod_url: Option<String>,
    #[serde(rename = "staticPodURLHeader")]
    static_pod_url_header: BTreeMap<String, Vec<String>>,
    max_pods: Option<u32>,
    max_parallel_image_pulls: Option<usize>,
    serialize_image_pulls: Option<bool>,
    resolv_conf: Option<PathBuf>,
    pod_logs_dir: Option<String>,
    cgroup_root: Option<String>,
    feature_gates: BTreeMap<String, bool>,
    register_node: Option<bool>,
    register_with_taints: Vec<Taint>,
    allowed_unsafe_sysctls: Vec<String>,
    enable_system_log_handler: Option<bool>,
    enable_system_log_query: bool,
    #[serde(rename = "cgroupsPerQOS")]
    cgroups_per_qos: Option<bool>,
    #[serde(flatten)]
    others: BTreeMap<String, serde_json::Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Authentication {
    x509: X509,
    webhook: Enabled,
    anonymous: Enabled,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct X509 {
    #[serde(rename = "clientCAFile")]
    client_ca_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Enabled {
    enabled: Option<bool>,
    #[serde(rename = "cacheTTL")]
    _cache_ttl: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Authorization {
    mode: Option<String>,
    #[serde(rename = "webhook")]
    _webhook: Option<serde_json::Value>,
}

/// The fields of upstream's v1beta1 that are taken without effect here.
const IGNORED: &[&str] = &[
    "cgroupDriver",
    "configMapAndSecretChangeDetectionStrategy",
    "containerLogMaxWorkers",
    "contentType",
    "cpuCFSQuota",
    "cpuCFSQuotaPeriod",
    "crashLoopBackOff",
    "enableContentionProfiling",
    "enableControllerAttachDetach",
    "enableDebugFlagsHandler",
    "enableDebuggingHandlers",
    "enableProfilingHandler",
    "enableServer",
    "enforceNodeAllocatable",
    "eventBurst",
    "eventRecordQPS",
    "failCgroupV1",
    "failSwapOn",
    "hairpinMode",
    "imagePullCredentialsVerificationPolicy",
    "imageServiceEndpoint",
    "iptablesDropBit",
    "iptablesMasqueradeBit",
    "kernelMemcgNotification",
    "kubeAPIBurst",
    "kubeAPIQPS",
    "kubeReservedCgroup",
    "kubeletCgroups",
    "localStorageCapacityIsolation",
    "logging",
    "makeIPTablesUtilChains",
    "maxOpenFiles",
    "memoryThrottlingFactor",
    "nodeLeaseDurationSeconds",
    "nodeStatusReportFrequency",
    "nodeStatusUpdateFrequency",
    "oomScoreAdj",
    "podCIDR",
    "podsPerCore",
    "preloadedImagesVerificationAllowlist",
    "protectKernelDefaults",
    "qosReserved",
    "readOnlyPort",
    "registryBurst",
    "registryPullQPS",
    "runOnce",
    "runtimeRequestTimeout",
    "showHiddenMetricsForVersion",
    "singleProcessOOMKill",
    "streamingConnectionIdleTimeout",
    "syncFrequency",
    "systemCgroups",
    "systemReservedCgroup",
    "tlsCipherSuites",
    "tlsMinVersion",
    "tracing",
    "userNamespaces",
    "volumePluginDir",
    "volumeStatsAggPeriod",
];

/// The fields of a file that say something and have no effect.
pub(crate) fn ignored(file: &serde_json::Value) -> Vec<&'static str> {
    let says_nothing = |value: &serde_json::Value| match value {
        serde_json::Value::Null => true,
        serde_json::Value::Bool(on) => !on,
        serde_json::Value::Number(number) => number.as_f64() == Some(0.0),
        serde_json::Value::String(text) => text.is_empty() || text == "0s",
        serde_json::Value::Array(items) => items.is_empty(),
        serde_json::Value::Object(members) => members.is_empty(),
    };
    IGNORED.iter().copied().filter(|name| file.get(name).is_some_and(|value| !says_nothing(value))).collect()
}

/// What the kubelet runs with.
#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    pub node_ips: Vec<IpAddr>,
    pub root_dir: PathBuf,
    pub log_root: PathBuf,
    /// Where links to container logs are made for log collectors.
    pub log_links: Option<PathBuf>,
    pub runtime_endpoint: String,
    pub address: SocketAddr,
    pub healthz_address: Option<SocketAddr>,
    pub client_ca_file: Option<PathBuf>,
    pub anonymous_auth: bool,
    /// Tokens are checked by TokenReview.
    pub webhook_authentication: bool,
    /// Requests are checked by SubjectAccessReview; otherwise everybody authenticated may do everything.
    pub webhook_authorization: bool,
    pub tls: Option<(PathBuf, PathBuf)>,
    pub cert_dir: PathBuf,
    pub rotate_certificates: bool,
    /// The serving certificate comes from the cluster; ignored where `tls` names one.
    pub server_tls_bootstrap: bool,
    pub static_pod_path: Option<PathBuf>,
    /// A URL that names static pods, and the headers that it is asked with.
    pub static_pod_url: Option<(String, Vec<(String, String)>)>,
    pub http_check_frequency: Duration,
    pub cluster_dns: Vec<String>,
    pub cluster_domain: String,
    pub resolv_conf: PathBuf,
    pub cgroup_root: String,
    pub max_pods: u32,
    pub parallel_pulls: usize,
    pub register_node: bool,
    pub node_labels: BTreeMap<String, String>,
    pub register_with_taints: Vec<Taint>,
    pub eviction: Eviction,
    pub image_gc: ImageGc,
    pub logs: Logs,
    pub shutdown: Shutdown,
    pub kube_reserved: BTreeMap<String, i64>,
    pub system_reserved: BTreeMap<String, i64>,
    pub seccomp_default: bool,
    pub pod_pids_limit: i64,
    pub allowed_unsafe_sysctls: Vec<String>,
    pub cpu_policy: CpuPolicy,
    pub memory_policy: MemoryPolicy,
    pub topology_policy: TopologyPolicy,
    pub swap: SwapBehavior,
    /// The file that names programs which give credentials for registries, and the directory where they are.
    pub credential_providers: Option<(PathBuf, PathBuf)>,
    /// Whether `/logs/` shows what is below `/var/log`, and whether the logs of services can be asked for there.
    pub system_logs: bool,
    pub system_log_query: bool,
    /// Whether each pod has a cgroup of its own, below that of its quality of service.
    pub cgroups_per_qos: bool,
    /// How often the directory of static pods is read.
    pub file_check_frequency: Duration,
    pub provider_id: String,
    pub max_images: usize,
    /// The file as it was read, for `/configz`.
    pub file: serde_json::Value,
    pub metrics: Metrics,
}

impl Default for Config {
    /// Upstream's defaults.
    fn default() -> Self {
        Config {
            node_name: String::new(),
            node_ips: Vec::new(),
            root_dir: "/var/lib/kubelet".into(),
            log_root: "/var/log/pods".into(),
            log_links: Some("/var/log/containers".into()),
            runtime_endpoint: "unix:///run/containerd/containerd.sock".to_owned(),
            address: ([0, 0, 0, 0], 10250).into(),
            healthz_address: Some(([127, 0, 0, 1], 10248).into()),
            client_ca_file: None,
            anonymous_auth: false,
            webhook_authentication: true,
            webhook_authorization: true,
            tls: None,
            cert_dir: "/var/lib/kubelet/pki".into(),
            rotate_certificates: false,
            server_tls_bootstrap: false,
            static_pod_path: None,
            static_pod_url: None,
            http_check_frequency: Duration::from_secs(20),
            cluster_dns: Vec::new(),
            cluster_domain: String::new(),
            resolv_conf: "/etc/resolv.conf".into(),
            cgroup_root: "/".to_owned(),
            max_pods: 110,
            parallel_pulls: 4,
            register_node: true,
            node_labels: BTreeMap::new(),
            register_with_taints: Vec::new(),
            eviction: Eviction::default(),
            image_gc: ImageGc::default(),
            logs: Logs::default(),
            shutdown: Shutdown::default(),
            kube_reserved: Amounts::new(),
            system_reserved: Amounts::new(),
            seccomp_default: false,
            pod_pids_limit: -1,
            allowed_unsafe_sysctls: Vec::new(),
            cpu_policy: CpuPolicy::default(),
            memory_policy: MemoryPolicy::default(),
            topology_policy: TopologyPolicy::default(),
            swap: SwapBehavior::default(),
            credential_providers: None,
            system_logs: true,
            system_log_query: false,
            cgroups_per_qos: true,
            file_check_frequency: Duration::from_secs(20),
            provider_id: String::new(),
            max_images: 50,
            file: serde_json::Value::Null,
            metrics: Metrics::new(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum FlagError {
    #[error(transparent)]
    File(#[from] ConfigError),
    #[error("{}: strict decoding error: {}", path.display(), fields.join(", "))]
    Unknown { path: PathBuf, fields: Vec<String> },
    #[error("{}: {problem}", path.display())]
    Invalid { path: PathBuf, problem: String },
}

impl Flags {
    /// Flags over file over defaults.
    ///
    /// # Errors
    /// When the file cannot be read or says something that makes no sense.
    pub fn complete(&self) -> Result<Config, FlagError> {
        let file = match &self.config {
            Some(path) => read_file(path)?,
            None => File::default(),
        };
        let defaults = Config::default();
        let settings = settings::of(&file.others)
            .map_err(|problem| FlagError::Invalid { path: self.config.clone().unwrap_or_default(), problem })?;
        let raw = match &self.config {
            Some(path) => config_file::load(path, &["kubelet.config.k8s.io/v1beta1"], "KubeletConfiguration")?,
            None => serde_json::Value::Null,
        };
        let node_name = self.hostname_override.clone().unwrap_or_else(hostname).to_lowercase();
        let node_ips = if self.node_ip.is_empty() { default_addresses() } else { self.node_ip.clone() };
        let healthz = match file.healthz_port {
            Some(0) => None,
            port => Some(SocketAddr::new(
                file.healthz_bind_address.unwrap_or_else(|| [127, 0, 0, 1].into()),
                port.unwrap_or(10248),
            )),
        };
        let serial = file.serialize_image_pulls == Some(true);
        Ok(Config {
            node_name,
            node_ips,
            root_dir: self.root_dir.clone(),
            log_root: file.pod_logs_dir.map_or(defaults.log_root, PathBuf::from),
            runtime_endpoint: self
                .container_runtime_endpoint
                .clone()
                .or(file.container_runtime_endpoint)
                .unwrap_or(defaults.runtime_endpoint),
            address: SocketAddr::new(file.address.unwrap_or_else(|| [0, 0, 0, 0].into()), file.port.unwrap_or(10250)),
            healthz_address: healthz,
            client_ca_file: file.authentication.x509.client_ca_file,
            anonymous_auth: file.authentication.anonymous.enabled.unwrap_or(false),
            webhook_authentication: file.authentication.webhook.enabled.unwrap_or(true),
            webhook_authorization: file.authorization.mode.as_deref() != Some("AlwaysAllow"),
            tls: file.tls_cert_file.zip(file.tls_private_key_file),
            cert_dir: self.cert_dir.clone().unwrap_or_else(|| self.root_dir.join("pki")),
            rotate_certificates: self.rotate_certificates.or(file.rotate_certificates).unwrap_or_default(),
            server_tls_bootstrap: self.rotate_server_certificates.or(file.server_tls_bootstrap).unwrap_or_default(),
            static_pod_path: file.static_pod_path,
            static_pod_url: file.static_pod_url.filter(|url| !url.is_empty()).map(|url| {
                let headers = file.static_pod_url_header.into_iter();
                (url, headers.flat_map(|(name, values)| values.into_iter().map(move |v| (name.clone(), v))).collect())
            }),
            http_check_frequency: settings.http_check_frequency,
            cluster_dns: file.cluster_dns,
            cluster_domain: file.cluster_domain.unwrap_or_default(),
            resolv_conf: file.resolv_conf.unwrap_or(defaults.resolv_conf),
            cgroup_root: file.cgroup_root.filter(|r| !r.is_empty()).unwrap_or(defaults.cgroup_root),
            max_pods: file.max_pods.unwrap_or(defaults.max_pods),
            parallel_pulls: if serial { 1 } else { file.max_parallel_image_pulls.unwrap_or(defaults.parallel_pulls) },
            register_node: file.register_node.unwrap_or(true),
            node_labels: self.node_labels.clone().unwrap_or_default(),
            register_with_taints: if self.register_with_taints.is_empty() {
                file.register_with_taints
            } else {
                self.register_with_taints.clone()
            },
            eviction: settings.eviction,
            image_gc: settings.image_gc,
            logs: settings.logs,
            shutdown: settings.shutdown,
            kube_reserved: settings.kube_reserved,
            system_reserved: settings.system_reserved,
            seccomp_default: settings.seccomp_default,
            pod_pids_limit: settings.pod_pids_limit,
            allowed_unsafe_sysctls: file.allowed_unsafe_sysctls,
            cpu_policy: settings.cpu_policy,
            memory_policy: settings.memory_policy,
            topology_policy: settings.topology_policy,
            swap: settings.swap,
            credential_providers: self
                .image_credential_provider_config
                .clone()
                .zip(self.image_credential_provider_bin_dir.clone()),
            system_logs: file.enable_system_log_handler.unwrap_or(true),
            system_log_query: file.enable_system_log_query,
            cgroups_per_qos: file.cgroups_per_qos.unwrap_or(true),
            file_check_frequency: settings.file_check_frequency,
            provider_id: settings.provider_id,
            max_images: settings.max_images,
            file: raw,
            ..defaults
        })
    }
}

fn read_file(path: &Path) -> Result<File, FlagError> {
    let file: File = config_file::load(path, &["kubelet.config.k8s.io/v1beta1"], "KubeletConfiguration")?;
    let unknown: Vec<String> = file
        .others
        .keys()
        .filter(|name| !IGNORED.contains(&name.as_str()) && !settings::FIELDS.contains(&name.as_str()))
        .map(|name| format!("unknown field \"{name}\""))
        .collect();
    if !unknown.is_empty() {
        return Err(FlagError::Unknown { path: path.to_owned(), fields: unknown });
    }
    match file.authorization.mode.as_deref() {
        None | Some("Webhook" | "AlwaysAllow") => Ok(file),
        Some(mode) => {
            Err(FlagError::Invalid { path: path.to_owned(), problem: format!("unknown authorization mode {mode}") })
        }
    }
}

fn hostname() -> String {
    nix::unistd::gethostname().ok().and_then(|h| h.into_string().ok()).unwrap_or_else(|| "localhost".to_owned())
}

/// The address from which this machine would reach others; no packet is sent to find it.
fn default_addresses() -> Vec<IpAddr> {
    let probe =
        std::net::UdpSocket::bind("0.0.0.0:0").and_then(|s| s.connect("192.0.2.1:9").and_then(|()| s.local_addr()));
    probe.map_or_else(|_| vec![[127, 0, 0, 1].into()], |a| vec![a.ip()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(file: &str, args: &[&str]) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubelet.yaml");
        std::fs::write(&path, format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{file}"))
            .unwrap();
        let mut all = vec![format!("--config={}", path.display())];
        all.extend(args.iter().map(ToString::to_string));
        flags::parse::<Flags>("kubelet", all).map_err(|e| e.0)?.complete().map_err(|e| e.to_string())
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = "clusterDNS: [10.96.0.10]\nport: 10260\ncontainerRuntimeEndpoint: unix:///a\nevictionHard: {memory.available: 1Gi}\n\
                    authentication: {x509: {clientCAFile: /ca}, webhook: {enabled: true, cacheTTL: 2m}, anonymous: {enabled: false}}\n";
        let args = [
            "--hostname-override=Node1",
            "--node-ip=192.0.2.1",
            "--container-runtime-endpoint=unix:///b",
            "--v=2",
            "--register-with-taints=a=b:NoSchedule",
        ];
        let config = complete(file, &args).unwrap();
        assert_eq!(config.node_name, "node1");
        assert_eq!(config.runtime_endpoint, "unix:///b");
        assert_eq!((config.address.port(), config.cluster_dns), (10260, vec!["10.96.0.10".to_owned()]));
        assert_eq!(config.register_with_taints[0].effect, "NoSchedule");
        assert_eq!(config.client_ca_file, Some("/ca".into()));
    }

    #[test]
    fn mistakes_are_named() {
        assert!(complete("clusterDNSS: []\n", &[]).unwrap_err().contains("unknown field \"clusterDNSS\""));
        assert!(complete("", &["--no-such-flag"]).unwrap_err().contains("unknown flag: --no-such-flag"));
        assert!(
            complete("authorization: {mode: Maybe}\n", &[]).unwrap_err().contains("unknown authorization mode Maybe")
        );
        assert!(complete("", &["--register-with-taints=a=b:Never"]).is_err());
    }

    #[test]
    fn fields_without_effect_are_taken_and_named() {
        let text = "cgroupDriver: systemd\nsyncFrequency: 0s\ncpuManagerPolicy: none\nlogging: {}\nruntimeRequestTimeout: 1m\n";
        let config = complete(text, &[]).unwrap();
        assert_eq!(ignored(&config.file), ["cgroupDriver", "runtimeRequestTimeout"]);
        assert!(!IGNORED.iter().any(|name| settings::FIELDS.contains(name)));
    }
}
