//! What kube-proxy is told: flags, the `KubeProxyConfiguration` file, and what both come to.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser};
use client::config::ClientOptions;
use component_base::config_file::{self, ConfigError};
use component_base::feature_gates::FeatureGates;
use component_base::flags;
use component_base::logs::Format;
use component_base::metrics::Metrics;
use ipnet::IpNet;
use serde::Deserialize;

use crate::conntrack::Limits;
use crate::local::{DetectLocal, NodePortAddresses};
use crate::model::Family;
use crate::proxier::{Mode, UnknownMode};

/// How much the API server is asked, as upstream has it.
const DEFAULT_QPS: f64 = 5.0;
const DEFAULT_BURST: u32 = 10;

/// The command line, with upstream's names.
#[derive(Parser, Clone, Debug)]
#[command(name = "kube-proxy", about = "Leads Service addresses to endpoints")]
pub struct Flags {
    /// A KubeProxyConfiguration file (kubeproxy.config.k8s.io/v1alpha1); other flags are then ignored, except
    /// `--hostname-override`.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Removes all rules that a proxy of any mode wrote, and ends.
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub cleanup: bool,
    /// Sets the kernel's parameters, which takes more rights than the rest, and ends.
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub init_only: bool,
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// The pods' network: traffic from elsewhere to a cluster IP is masqueraded.
    #[arg(long, value_delimiter = ',')]
    pub cluster_cidr: Vec<IpNet>,
    #[arg(long, default_value = "")]
    pub detect_local_mode: String,
    #[arg(long, default_value = "")]
    pub pod_bridge_interface: String,
    #[arg(long, default_value = "")]
    pub pod_interface_name_prefix: String,
    #[arg(long, default_value = "")]
    pub proxy_mode: String,
    /// Networks whose addresses node ports are served on, or `primary`.
    #[arg(long, value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,
    #[arg(long)]
    pub hostname_override: Option<String>,
    #[arg(long)]
    pub healthz_bind_address: Option<SocketAddr>,
    #[arg(long)]
    pub metrics_bind_address: Option<SocketAddr>,
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub bind_address_hard_fail: bool,
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub masquerade_all: bool,
    /// Serves node ports on 127.0.0.1 too, in iptables mode.
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub iptables_localhost_nodeports: bool,
    /// Which bit of a packet's mark says that it is to be masqueraded, in iptables and ipvs mode.
    #[arg(long)]
    pub iptables_masquerade_bit: Option<u8>,
    #[arg(long, value_parser = flags::go_duration)]
    pub iptables_sync_period: Option<Duration>,
    #[arg(long, value_parser = flags::go_duration)]
    pub iptables_min_sync_period: Option<Duration>,
    /// How a virtual server of ipvs mode chooses an endpoint.
    #[arg(long, default_value = "")]
    pub ipvs_scheduler: String,
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub ipvs_strict_arp: bool,
    #[arg(long, value_delimiter = ',')]
    pub ipvs_exclude_cidrs: Vec<String>,
    #[arg(long, value_parser = flags::go_duration)]
    pub ipvs_sync_period: Option<Duration>,
    #[arg(long, value_parser = flags::go_duration)]
    pub ipvs_min_sync_period: Option<Duration>,
    #[arg(long, value_parser = flags::go_duration)]
    pub ipvs_tcp_timeout: Option<Duration>,
    #[arg(long, value_parser = flags::go_duration)]
    pub ipvs_tcpfin_timeout: Option<Duration>,
    #[arg(long, value_parser = flags::go_duration)]
    pub ipvs_udp_timeout: Option<Duration>,
    #[arg(long, default_value_t = -999)]
    pub oom_score_adj: i32,
    #[arg(long, default_value_t = Limits::default().max_per_core)]
    pub conntrack_max_per_core: u32,
    #[arg(long, default_value_t = Limits::default().min)]
    pub conntrack_min: u32,
    #[arg(long, value_parser = flags::go_duration)]
    pub conntrack_tcp_timeout_established: Option<Duration>,
    #[arg(long, value_parser = flags::go_duration)]
    pub conntrack_tcp_timeout_close_wait: Option<Duration>,
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub conntrack_tcp_be_liberal: bool,
    #[arg(long, value_parser = flags::go_duration)]
    pub conntrack_udp_timeout: Option<Duration>,
    #[arg(long, value_parser = flags::go_duration)]
    pub conntrack_udp_timeout_stream: Option<Duration>,
    #[arg(long)]
    pub feature_gates: Option<FeatureGates>,
    /// Requests to the API server per second over time.
    #[arg(long, default_value_t = DEFAULT_QPS)]
    pub kube_api_qps: f64,
    /// Requests that may go at once.
    #[arg(long, default_value_t = DEFAULT_BURST)]
    pub kube_api_burst: u32,
    /// `text` or `json`.
    #[arg(long, default_value = "text")]
    pub logging_format: Format,
    // Taken as upstream takes them; they have no effect here.
    #[arg(long, hide = true)]
    pub bind_address: Option<String>,
    #[arg(long, hide = true)]
    pub config_sync_period: Option<String>,
    #[arg(long, hide = true)]
    pub kube_api_content_type: Option<String>,
    #[arg(long, hide = true)]
    pub log_flush_frequency: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub profiling: Option<String>,
    #[arg(long, hide = true)]
    pub show_hidden_metrics_for_version: Option<String>,
    #[arg(long, hide = true)]
    pub vmodule: Option<String>,
    /// Log verbosity.
    #[arg(long, short, default_value_t = 0)]
    pub v: u8,
}

/// The file's kind. Fields that have no effect here are taken as they are.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    client_connection: ClientConnection,
    mode: String,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: String,
    detect_local_mode: String,
    detect_local: DetectLocalFile,
    node_port_addresses: Option<Vec<String>>,
    hostname_override: String,
    healthz_bind_address: String,
    metrics_bind_address: String,
    bind_address_hard_fail: bool,
    oom_score_adj: Option<i32>,
    conntrack: ConntrackFile,
    nftables: Backend,
    iptables: Backend,
    ipvs: Backend,
    /// None changes what this proxy does.
    feature_gates: Option<BTreeMap<String, bool>>,
    #[serde(rename = "logging")]
    _logging: serde_json::Value,
    #[serde(rename = "bindAddress")]
    _bind_address: serde_json::Value,
    #[serde(rename = "enableProfiling")]
    _enable_profiling: serde_json::Value,
    #[serde(rename = "showHiddenMetricsForVersion")]
    _hidden: serde_json::Value,
    #[serde(rename = "winkernel")]
    _winkernel: serde_json::Value,
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
    qps: f64,
    burst: u32,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DetectLocalFile {
    bridge_interface: String,
    interface_name_prefix: String,
    #[serde(rename = "clusterCIDRs")]
    cluster_cidrs: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ConntrackFile {
    max_per_core: Option<u32>,
    min: Option<u32>,
    tcp_established_timeout: Option<String>,
    tcp_close_wait_timeout: Option<String>,
    tcp_be_liberal: bool,
    udp_timeout: Option<String>,
    udp_stream_timeout: Option<String>,
}

/// What the back ends have in common.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Backend {
    masquerade_all: bool,
    masquerade_bit: Option<u8>,
    sync_period: String,
    min_sync_period: String,
    /// How a virtual server of ipvs mode chooses; empty: in turn.
    scheduler: String,
    localhost_node_ports: Option<bool>,
    #[serde(rename = "excludeCIDRs")]
    exclude_cidrs: Option<Vec<String>>,
    #[serde(rename = "strictARP")]
    strict_arp: bool,
    tcp_timeout: String,
    tcp_fin_timeout: String,
    udp_timeout: String,
}

/// How ipvs mode uses virtual servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualServers {
    /// How one chooses an endpoint, as `ipvsadm` calls it.
    pub scheduler: String,
    /// Whether the node tells the link only of addresses that are on it, not of Services'.
    pub strict_arp: bool,
    /// Networks whose virtual servers are somebody else's.
    pub excluded: Vec<IpNet>,
    /// How long the kernel remembers an idle TCP connection, one that is ended, and a flow of UDP; zero: as long as it did.
    pub timeouts: [Duration; 3],
}

impl Default for VirtualServers {
    fn default() -> Self {
        let timeouts = [Duration::ZERO; 3];
        VirtualServers { scheduler: "rr".to_owned(), strict_arp: false, excluded: Vec::new(), timeouts }
    }
}

/// What kube-proxy runs with.
#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    pub kubeconfig: Option<PathBuf>,
    /// How the API server is asked.
    pub client: ClientOptions,
    pub mode: Mode,
    pub virtual_servers: VirtualServers,
    pub detect_local: DetectLocal,
    pub node_port_addresses: NodePortAddresses,
    /// Whether node ports are served on localhost, as far as iptables mode can and that is among their addresses.
    pub localhost_node_ports: bool,
    /// Masquerade everything that goes to a cluster IP.
    pub masquerade_all: bool,
    /// Which bit of a packet's mark says that it is to be masqueraded: 0 to 31.
    pub masquerade_bit: u8,
    /// How often it is looked whether the rules are still there.
    pub sync_period: Duration,
    /// The least time between two writes.
    pub min_sync_period: Duration,
    pub healthz_address: Option<SocketAddr>,
    pub metrics_address: Option<SocketAddr>,
    /// Whether an address that cannot be served on ends the program.
    pub bind_address_hard_fail: bool,
    /// How readily the kernel ends this process when memory is short; `None` leaves that as it is.
    pub oom_score_adj: Option<i32>,
    /// Limits of connection tracking; `None` leaves them as they are.
    pub conntrack: Option<Limits>,
    /// Settings that were given and have no effect here, by name.
    pub ignored: Vec<String>,
    /// What `/configz` shows.
    pub configz: serde_json::Value,
    pub metrics: Metrics,
}

impl Config {
    /// Upstream's defaults for a node.
    #[must_use]
    pub fn new(node_name: &str) -> Self {
        Config {
            node_name: node_name.to_owned(),
            kubeconfig: None,
            client: ClientOptions::limited("kube-proxy", DEFAULT_QPS, DEFAULT_BURST),
            mode: Mode::default(),
            virtual_servers: VirtualServers::default(),
            detect_local: DetectLocal::Nothing,
            node_port_addresses: NodePortAddresses::Primary,
            localhost_node_ports: true,
            masquerade_all: false,
            masquerade_bit: 14,
            sync_period: Duration::from_secs(30),
            min_sync_period: Duration::ZERO,
            healthz_address: Some(([0, 0, 0, 0], 10256).into()),
            metrics_address: Some(([127, 0, 0, 1], 10249).into()),
            bind_address_hard_fail: false,
            oom_score_adj: None,
            conntrack: Some(Limits::default()),
            ignored: Vec::new(),
            configz: serde_json::json!({}),
            metrics: Metrics::new(),
        }
    }

    /// The kernel leads packets of 127.0.0.1 elsewhere only where it is told to, which only iptables mode does.
    pub(crate) fn serves_localhost(&self) -> bool {
        self.mode == Mode::Iptables && self.localhost_node_ports && self.node_port_addresses.include_localhost()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum FlagError {
    #[error(transparent)]
    File(#[from] ConfigError),
    #[error(transparent)]
    Mode(#[from] UnknownMode),
    #[error("{field}: Invalid value: {value:?}")]
    Invalid { field: &'static str, value: String },
    #[error(
        "clusterCIDR: Invalid value: {value:?}: only one CIDR allowed or a valid DualStack CIDR (e.g. 10.100.0.0/16,fde4:8dba:82e1::/48)"
    )]
    SeveralNetworks { value: String },
}

impl Flags {
    /// # Errors
    /// When the file cannot be read or says something that makes no sense.
    pub fn complete(&self, host: &str) -> Result<Config, FlagError> {
        let file = match &self.config {
            Some(path) => config_file::load(path, &["kubeproxy.config.k8s.io/v1alpha1"], "KubeProxyConfiguration")?,
            None => self.as_file(),
        };
        let override_ = self.hostname_override.clone().filter(|h| !h.is_empty());
        let named = override_.or_else(|| Some(file.hostname_override.clone()).filter(|h| !h.is_empty()));
        let mut config = Config::new(&named.unwrap_or_else(|| host.to_owned()));
        let given = Some(&file.client_connection.kubeconfig).filter(|k| !k.is_empty()).map(PathBuf::from);
        config.kubeconfig = given.or_else(|| self.kubeconfig.clone());
        let mut config = file.complete(config)?;
        let without_effect = [
            ("bind-address", &self.bind_address),
            ("config-sync-period", &self.config_sync_period),
            ("kube-api-content-type", &self.kube_api_content_type),
            ("log-flush-frequency", &self.log_flush_frequency),
            ("profiling", &self.profiling),
            ("show-hidden-metrics-for-version", &self.show_hidden_metrics_for_version),
            ("vmodule", &self.vmodule),
        ];
        let given = without_effect.iter().filter(|(_, value)| value.is_some());
        config.ignored.extend(given.map(|(flag, _)| format!("--{flag}")));
        Ok(config)
    }

    /// What the flags say, in the file's words.
    fn as_file(&self) -> File {
        let text = |address: Option<SocketAddr>| address.map(|a| a.to_string()).unwrap_or_default();
        let time = |time: Option<Duration>| time.map(flags::show_go_duration);
        let text_of = |duration: Option<Duration>| time(duration).unwrap_or_default();
        let masquerade_all = self.masquerade_all;
        let client_connection =
            ClientConnection { qps: self.kube_api_qps, burst: self.kube_api_burst, ..ClientConnection::default() };
        File {
            client_connection,
            mode: self.proxy_mode.clone(),
            cluster_cidr: show(&self.cluster_cidr),
            detect_local_mode: self.detect_local_mode.clone(),
            detect_local: DetectLocalFile {
                bridge_interface: self.pod_bridge_interface.clone(),
                interface_name_prefix: self.pod_interface_name_prefix.clone(),
                cluster_cidrs: Vec::new(),
            },
            node_port_addresses: (!self.nodeport_addresses.is_empty()).then(|| self.nodeport_addresses.clone()),
            healthz_bind_address: text(self.healthz_bind_address),
            metrics_bind_address: text(self.metrics_bind_address),
            bind_address_hard_fail: self.bind_address_hard_fail,
            oom_score_adj: Some(self.oom_score_adj),
            conntrack: ConntrackFile {
                max_per_core: Some(self.conntrack_max_per_core),
                min: Some(self.conntrack_min),
                tcp_established_timeout: time(self.conntrack_tcp_timeout_established),
                tcp_close_wait_timeout: time(self.conntrack_tcp_timeout_close_wait),
                tcp_be_liberal: self.conntrack_tcp_be_liberal,
                udp_timeout: time(self.conntrack_udp_timeout),
                udp_stream_timeout: time(self.conntrack_udp_timeout_stream),
            },
            nftables: Backend { masquerade_all, ..Backend::default() },
            iptables: Backend {
                masquerade_all,
                masquerade_bit: self.iptables_masquerade_bit,
                sync_period: text_of(self.iptables_sync_period),
                min_sync_period: text_of(self.iptables_min_sync_period),
                localhost_node_ports: Some(self.iptables_localhost_nodeports),
                ..Backend::default()
            },
            ipvs: Backend {
                masquerade_all,
                masquerade_bit: self.iptables_masquerade_bit,
                sync_period: text_of(self.ipvs_sync_period),
                min_sync_period: text_of(self.ipvs_min_sync_period),
                scheduler: self.ipvs_scheduler.clone(),
                strict_arp: self.ipvs_strict_arp,
                exclude_cidrs: (!self.ipvs_exclude_cidrs.is_empty()).then(|| self.ipvs_exclude_cidrs.clone()),
                tcp_timeout: text_of(self.ipvs_tcp_timeout),
                tcp_fin_timeout: text_of(self.ipvs_tcpfin_timeout),
                udp_timeout: text_of(self.ipvs_udp_timeout),
                localhost_node_ports: None,
            },
            feature_gates: self.feature_gates.as_ref().map(|gates| {
                let names = gates.check(&[]).unwrap_or_default();
                names.into_iter().map(|name| (name, true)).collect()
            }),
            ..File::default()
        }
    }
}

impl File {
    fn complete(self, mut config: Config) -> Result<Config, FlagError> {
        config.mode = if self.mode.is_empty() { Mode::default() } else { self.mode.parse()? };
        // In a file, nothing means the default.
        if self.client_connection.qps != 0.0 {
            config.client.qps = self.client_connection.qps;
        }
        if self.client_connection.burst != 0 {
            config.client.burst = self.client_connection.burst;
        }
        config.detect_local = self.detect_local()?;
        config.node_port_addresses = self.node_port_addresses(config.mode)?;
        config.healthz_address =
            address("healthzBindAddress", &self.healthz_bind_address, 10256, config.healthz_address)?;
        config.metrics_address =
            address("metricsBindAddress", &self.metrics_bind_address, 10249, config.metrics_address)?;
        config.bind_address_hard_fail = self.bind_address_hard_fail;
        config.oom_score_adj = Some(self.oom_score_adj.unwrap_or(-999));
        config.conntrack = Some(self.conntrack.complete()?);
        let backend = match config.mode {
            Mode::Nftables => &self.nftables,
            Mode::Iptables => &self.iptables,
            Mode::Ipvs => &self.ipvs,
        };
        config.masquerade_all = backend.masquerade_all;
        config.localhost_node_ports = self.iptables.localhost_node_ports.unwrap_or(config.localhost_node_ports);
        if !self.ipvs.scheduler.is_empty() {
            config.virtual_servers.scheduler.clone_from(&self.ipvs.scheduler);
        }
        config.virtual_servers.strict_arp = self.ipvs.strict_arp;
        let excluded = self.ipvs.exclude_cidrs.iter().flatten().map(String::as_str);
        config.virtual_servers.excluded = networks("ipvs.excludeCIDRs", excluded)?;
        let timeout = |field, text| Ok::<_, FlagError>(duration(field, text)?.unwrap_or_default());
        config.virtual_servers.timeouts = [
            timeout("ipvs.tcpTimeout", &self.ipvs.tcp_timeout)?,
            timeout("ipvs.tcpFinTimeout", &self.ipvs.tcp_fin_timeout)?,
            timeout("ipvs.udpTimeout", &self.ipvs.udp_timeout)?,
        ];
        config.ignored = self.ignored();
        if let Some(bit) = backend.masquerade_bit {
            let invalid = || FlagError::Invalid { field: "masqueradeBit", value: bit.to_string() };
            config.masquerade_bit = Some(bit).filter(|bit| *bit < 32).ok_or_else(invalid)?;
        }
        if let Some(period) = duration("syncPeriod", &backend.sync_period)?.filter(|p| !p.is_zero()) {
            config.sync_period = period;
        }
        config.min_sync_period = duration("minSyncPeriod", &backend.min_sync_period)?.unwrap_or(config.min_sync_period);
        config.configz = self.configz(&config);
        Ok(config)
    }

    /// What is set and changes nothing.
    fn ignored(&self) -> Vec<String> {
        let gates = self.feature_gates.iter().flat_map(BTreeMap::keys);
        gates.map(|gate| format!("featureGates.{gate}")).collect()
    }

    fn detect_local(&self) -> Result<DetectLocal, FlagError> {
        let texts = self.cluster_cidr.split(',').chain(self.detect_local.cluster_cidrs.iter().map(String::as_str));
        let cidrs = networks("clusterCIDR", texts)?;
        for family in Family::BOTH {
            // iptables cannot say in one rule that a packet is from none of several networks.
            if cidrs.iter().filter(|cidr| family.has(cidr.addr())).count() > 1 {
                return Err(FlagError::SeveralNetworks { value: show(&cidrs) });
            }
        }
        Ok(match self.detect_local_mode.as_str() {
            "" | "ClusterCIDR" if cidrs.is_empty() => DetectLocal::Nothing,
            "" | "ClusterCIDR" => DetectLocal::ClusterCidr(cidrs),
            "NodeCIDR" => DetectLocal::NodeCidr,
            "BridgeInterface" => DetectLocal::BridgeInterface(self.detect_local.bridge_interface.clone()),
            "InterfaceNamePrefix" => DetectLocal::InterfaceNamePrefix(self.detect_local.interface_name_prefix.clone()),
            other => return Err(FlagError::Invalid { field: "detectLocalMode", value: other.to_owned() }),
        })
    }

    fn node_port_addresses(&self, mode: Mode) -> Result<NodePortAddresses, FlagError> {
        match self.node_port_addresses.as_deref() {
            // Upstream's default of the older modes is from before there was another.
            None | Some([]) if mode != Mode::Nftables => Ok(NodePortAddresses::All),
            None | Some([]) => Ok(NodePortAddresses::Primary),
            Some([one]) if one == "primary" => Ok(NodePortAddresses::Primary),
            Some(list) => {
                Ok(NodePortAddresses::Within(networks("nodePortAddresses", list.iter().map(String::as_str))?))
            }
        }
    }

    fn configz(&self, config: &Config) -> serde_json::Value {
        let shown = |address: Option<SocketAddr>| address.map(|a| a.to_string()).unwrap_or_default();
        serde_json::json!({"kubeproxy.config.k8s.io": {
            "mode": config.mode.name(),
            "clusterCIDR": self.cluster_cidr,
            "detectLocalMode": self.detect_local_mode,
            "nodePortAddresses": self.node_port_addresses,
            "hostnameOverride": config.node_name,
            "healthzBindAddress": shown(config.healthz_address),
            "metricsBindAddress": shown(config.metrics_address),
            "bindAddressHardFail": config.bind_address_hard_fail,
            "oomScoreAdj": config.oom_score_adj,
            config.mode.name(): {
                "masqueradeAll": config.masquerade_all,
                "masqueradeBit": config.masquerade_bit,
                "syncPeriod": flags::show_go_duration(config.sync_period),
                "minSyncPeriod": flags::show_go_duration(config.min_sync_period),
            },
        }})
    }
}

impl ConntrackFile {
    fn complete(&self) -> Result<Limits, FlagError> {
        let defaults = Limits::default();
        let time = |field, text: &Option<String>, default| match text {
            Some(text) => duration(field, text),
            None => Ok(default),
        };
        Ok(Limits {
            max_per_core: self.max_per_core.unwrap_or(defaults.max_per_core),
            min: self.min.unwrap_or(defaults.min),
            tcp_established_timeout: time(
                "conntrack.tcpEstablishedTimeout",
                &self.tcp_established_timeout,
                defaults.tcp_established_timeout,
            )?,
            tcp_close_wait_timeout: time(
                "conntrack.tcpCloseWaitTimeout",
                &self.tcp_close_wait_timeout,
                defaults.tcp_close_wait_timeout,
            )?,
            tcp_be_liberal: self.tcp_be_liberal,
            udp_timeout: time("conntrack.udpTimeout", &self.udp_timeout, None)?,
            udp_stream_timeout: time("conntrack.udpStreamTimeout", &self.udp_stream_timeout, None)?,
        })
    }
}

fn networks<'a>(field: &'static str, texts: impl Iterator<Item = &'a str>) -> Result<Vec<IpNet>, FlagError> {
    texts
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .map(|text| text.parse().map_err(|_| FlagError::Invalid { field, value: text.to_owned() }))
        .collect()
}

fn show(networks: &[IpNet]) -> String {
    networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// An address with a port, or one alone, which gets the default port.
fn address(
    field: &'static str,
    text: &str,
    port: u16,
    default: Option<SocketAddr>,
) -> Result<Option<SocketAddr>, FlagError> {
    if text.is_empty() {
        return Ok(default);
    }
    let alone = || text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port));
    let read = text.parse().ok().or_else(alone).ok_or_else(|| FlagError::Invalid { field, value: text.to_owned() })?;
    Ok(Some(read).filter(|address: &SocketAddr| address.port() != 0))
}

fn duration(field: &'static str, text: &str) -> Result<Option<Duration>, FlagError> {
    if text.is_empty() {
        return Ok(None);
    }
    flags::go_duration(text).map(Some).map_err(|_| FlagError::Invalid { field, value: text.to_owned() })
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
        assert_eq!(config.detect_local, DetectLocal::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap()]));
        let conntrack = config.conntrack.unwrap();
        assert_eq!((conntrack.max_per_core, conntrack.min), (0, 0));
        assert_eq!(conntrack.tcp_close_wait_timeout, Some(Duration::from_secs(3600)));
    }

    #[test]
    fn flags_and_file_come_to_the_same() {
        let args = [
            "--cluster-cidr=10.244.0.0/16",
            "--detect-local-mode=NodeCIDR",
            "--nodeport-addresses=192.0.2.0/24",
            "--healthz-bind-address=127.0.0.1:18256",
            "--conntrack-min=7",
            "--conntrack-udp-timeout=10s",
            "--masquerade-all",
        ];
        let flags = flags::parse::<Flags>("kube-proxy", args.map(str::to_owned)).unwrap().complete("host").unwrap();
        let file = complete(
            "clusterCIDR: 10.244.0.0/16\ndetectLocalMode: NodeCIDR\nnodePortAddresses: [192.0.2.0/24]\n\
             healthzBindAddress: 127.0.0.1:18256\nconntrack: {min: 7, udpTimeout: 10s}\nnftables: {masqueradeAll: true}\n",
        )
        .unwrap();
        let shown = |config: &Config| format!("{:?}", Config { metrics: Metrics::new(), ..config.clone() });
        assert_eq!(shown(&flags), shown(&file));
        assert_eq!(flags.detect_local, DetectLocal::NodeCidr);
        assert_eq!(flags.healthz_address, Some(([127, 0, 0, 1], 18256).into()));
    }

    #[test]
    fn addresses_may_lack_a_port_and_port_0_serves_nothing() {
        let config = complete("healthzBindAddress: 127.0.0.1\nmetricsBindAddress: 0.0.0.0:0\n").unwrap();
        assert_eq!(config.healthz_address, Some(([127, 0, 0, 1], 10256).into()));
        assert_eq!(config.metrics_address, None);
    }

    #[test]
    fn localhost_has_node_ports_in_iptables_mode_alone() {
        let serves = |file: &str| complete(file).unwrap().serves_localhost();
        assert!(serves("mode: iptables\n"));
        assert!(!serves("mode: iptables\niptables: {localhostNodePorts: false}\n"));
        assert!(!serves("mode: iptables\nnodePortAddresses: [192.0.2.0/24]\n"));
        assert!(!serves("mode: nftables\nnodePortAddresses: [0.0.0.0/0]\n"));
        let flags = |flag: &str| {
            let flags = flags::parse::<Flags>("kube-proxy", ["--proxy-mode=iptables", flag].map(str::to_owned));
            flags.unwrap().complete("host").unwrap().serves_localhost()
        };
        assert!(flags("--v=0") && !flags("--iptables-localhost-nodeports=false"));
    }

    #[test]
    fn what_is_set_without_effect_is_named() {
        let ignored = |file: &str| complete(file).unwrap().ignored;
        let gates = "featureGates: {NFTablesProxyMode: true}\n";
        assert_eq!(ignored(&format!("mode: nftables\n{gates}")), ["featureGates.NFTablesProxyMode"]);
        let flags = flags::parse::<Flags>("kube-proxy", ["--feature-gates=A=false".to_owned()]).unwrap();
        assert_eq!(flags.complete("host").unwrap().ignored, ["featureGates.A"]);
        let args = ["--bind-address=0.0.0.0", "--profiling", "--kube-api-qps=50", "--logging-format=json"];
        let flags = flags::parse::<Flags>("kube-proxy", args.map(str::to_owned)).unwrap();
        assert_eq!(flags.logging_format, Format::Json);
        let config = flags.complete("host").unwrap();
        assert_eq!(config.ignored, ["--bind-address", "--profiling"]);
        assert_eq!((config.client.qps, config.client.burst), (50.0, 10));
        let config = complete("clientConnection: {qps: 7, burst: 8}\n").unwrap();
        assert_eq!((config.client.qps, config.client.burst), (7.0, 8));
        let ipvs = complete(
            "mode: ipvs\nipvs: {tcpTimeout: 0s, udpTimeout: 5s, strictARP: true, excludeCIDRs: [192.0.2.0/24], scheduler: lc}\n\
             clusterCIDR: '10.244.0.0/16,fd00:244::/48'\n",
        )
        .unwrap();
        assert!(ipvs.ignored.is_empty());
        let excluded = vec!["192.0.2.0/24".parse().unwrap()];
        let timeouts = [0, 0, 5].map(Duration::from_secs);
        let want = VirtualServers { scheduler: "lc".into(), strict_arp: true, excluded, timeouts };
        assert_eq!(ipvs.virtual_servers, want);
        let flags = [
            "--proxy-mode=ipvs",
            "--ipvs-udp-timeout=5s",
            "--ipvs-strict-arp",
            "--ipvs-exclude-cidrs=192.0.2.0/24",
            "--ipvs-scheduler=lc",
            "--ipvs-sync-period=7s",
            "--iptables-masquerade-bit=5",
        ];
        let flags = flags::parse::<Flags>("kube-proxy", flags.map(str::to_owned)).unwrap().complete("host").unwrap();
        assert_eq!((flags.virtual_servers, flags.sync_period), (want, Duration::from_secs(7)));
        assert_eq!(flags.masquerade_bit, 5);
    }

    #[test]
    fn mistakes_are_named() {
        assert!(complete("mode: magic\n").unwrap_err().contains("magic"));
        assert!(complete("clusterCIDRS: x\n").unwrap_err().contains("unknown field \"clusterCIDRS\""));
        for (field, line) in [
            ("clusterCIDR", "clusterCIDR: nowhere"),
            ("detectLocalMode", "detectLocalMode: Guess"),
            ("nodePortAddresses", "nodePortAddresses: [here]"),
            ("masqueradeBit", "nftables: {masqueradeBit: 32}"),
            ("syncPeriod", "nftables: {syncPeriod: soon}"),
            ("conntrack.udpTimeout", "conntrack: {udpTimeout: soon}"),
            ("clusterCIDR", "clusterCIDR: '10.244.0.0/16,10.245.0.0/16'"),
            ("ipvs.excludeCIDRs", "ipvs: {excludeCIDRs: [there]}"),
        ] {
            assert!(complete(&format!("{line}\n")).unwrap_err().starts_with(field), "{line}");
        }
    }
}
