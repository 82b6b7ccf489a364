//! The flags of `kelson up`, and what they complete to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;

use super::layout::Layout;

/// What runs in a cluster, by the names that `--disable` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    KubeApiserver,
    KubeControllerManager,
    KubeScheduler,
    Kubelet,
    KubeProxy,
    ClusterDns,
    PodNetwork,
    LocalPathProvisioner,
    MetricsServer,
}

/// What a machine that joins a cluster leaves to others.
const CONTROL_PLANE: [Part; 5] =
    [Part::KubeApiserver, Part::KubeControllerManager, Part::KubeScheduler, Part::ClusterDns, Part::MetricsServer];

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Everything that the cluster keeps: state, keys, images, containers.
    #[arg(long, default_value = "/var/lib/kelson")]
    data_dir: PathBuf,
    /// Members of an etcd cluster to keep the state in (scheme://ip:port), separated by commas; by default it is kept in
    /// the data directory.
    #[arg(long, value_delimiter = ',')]
    etcd_servers: Vec<String>,
    /// The authority that etcd's certificates are checked with.
    #[arg(long)]
    etcd_cafile: Option<PathBuf>,
    /// The certificate that etcd is shown.
    #[arg(long, requires = "etcd_keyfile")]
    etcd_certfile: Option<PathBuf>,
    #[arg(long, requires = "etcd_certfile")]
    etcd_keyfile: Option<PathBuf>,
    /// Socket of a CRI v1 runtime (unix:///run/containerd/containerd.sock); by default a containerd of our own is started.
    #[arg(long)]
    container_runtime_endpoint: Option<String>,
    /// The node's name; by default the host's.
    #[arg(long)]
    node_name: Option<String>,
    /// The addresses by which other nodes and pods reach this one: one, or one of each family; by default those of the default
    /// routes of the families that the cluster has.
    #[arg(long, value_delimiter = ',')]
    node_ip: Vec<IpAddr>,
    /// The networks that pods get their addresses from: one, or one of each family.
    #[arg(long, value_delimiter = ',', default_value = "10.244.0.0/16")]
    cluster_cidr: Vec<IpNet>,
    /// The networks that Services get their addresses from: one, or one of each family.
    #[arg(long, value_delimiter = ',', default_value = "10.96.0.0/16")]
    service_cidr: Vec<IpNet>,
    /// How packets get from node to node: `host-gw`, where all nodes are on one network, or `vxlan`.
    #[arg(long, default_value = "host-gw")]
    pod_network_backend: pod_network::Backend,
    /// The size of pods' packets; by default what the node's network takes, less what the back end adds.
    #[arg(long)]
    pod_network_mtu: Option<u32>,
    /// What leads Services' addresses to endpoints: `nftables`, `iptables` or `ipvs`.
    #[arg(long, default_value = "nftables")]
    proxy_mode: kube_proxy::Mode,
    /// The domain of the names that cluster DNS answers for.
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// The resolvers that cluster DNS asks for other names (`ip` or `ip:port`); by default the host's.
    #[arg(long, value_delimiter = ',', value_parser = dns_server)]
    dns_upstreams: Option<Vec<SocketAddr>>,
    /// A domain that has a resolver of its own, as `domain=ip` or `domain=ip:port`; may be given several times.
    #[arg(long, value_parser = stub_domain)]
    dns_stub_domain: Vec<(String, SocketAddr)>,
    /// Where the API server listens.
    #[arg(long, default_value = "0.0.0.0")]
    bind_address: IpAddr,
    #[arg(long, default_value_t = 6443)]
    secure_port: u16,
    /// The API server of a cluster that this machine joins as a node (https://host:port). No control plane runs here then;
    /// the cluster's `pki` must be in the data directory.
    #[arg(long)]
    server: Option<String>,
    /// Where the administrator's kubeconfig is written too; it is always in the data directory.
    #[arg(long)]
    write_kubeconfig: Option<PathBuf>,
    /// A KubeletConfiguration file with what this node's kubelet is to do besides what the cluster needs of it.
    #[arg(long)]
    kubelet_config: Option<PathBuf>,
    /// Leaves a part of the cluster out, so that something else can stand in for it; may be given several times.
    #[arg(long, value_delimiter = ',')]
    disable: Vec<Part>,
    /// Log verbosity.
    #[arg(long, short = 'v', default_value_t = 0)]
    pub(crate) v: u8,
}

/// The options, complete and checked.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub layout: Layout,
    pub etcd: Option<Etcd>,
    /// Somebody else's runtime.
    pub runtime_endpoint: Option<String>,
    pub node_name: String,
    /// The first is of the family of Services' first network.
    pub node_ips: Vec<IpAddr>,
    pub cluster_cidrs: Vec<IpNet>,
    pub service_cidrs: Vec<IpNet>,
    pub pod_network_backend: pod_network::Backend,
    pub pod_network_mtu: Option<u32>,
    pub proxy_mode: kube_proxy::Mode,
    pub cluster_domain: String,
    pub dns_upstreams: Option<Vec<SocketAddr>>,
    pub dns_stub_domains: Vec<(String, Vec<SocketAddr>)>,
    pub api_address: SocketAddr,
    pub write_kubeconfig: Option<PathBuf>,
    pub kubelet_config: Option<PathBuf>,
    /// The API server of the cluster that this node joins.
    server: Option<String>,
    disabled: Vec<Part>,
}

#[derive(Clone, Debug)]
pub(crate) struct Etcd {
    pub servers: Vec<String>,
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}

impl Options {
    pub(crate) fn complete(self) -> Result<Settings> {
        let data_dir =
            std::path::absolute(&self.data_dir).with_context(|| format!("--data-dir {}", self.data_dir.display()))?;
        let node_name = match self.node_name {
            Some(name) => name,
            None => nix::unistd::gethostname()?.to_string_lossy().to_lowercase(),
        };
        check_node_name(&node_name)?;
        check_families("--cluster-cidr", "network", self.cluster_cidr.iter().map(IpNet::addr))?;
        check_families("--service-cidr", "network", self.service_cidr.iter().map(IpNet::addr))?;
        let node_ips = node_ips(&self.node_ip, &self.service_cidr, &self.cluster_cidr)?;
        for service in &self.service_cidr {
            if let Some(pods) = self.cluster_cidr.iter().find(|pods| overlap(pods, service)) {
                bail!("--service-cidr {service} and --cluster-cidr {pods} overlap");
            }
            // The tenth address is that of cluster DNS.
            if service.hosts().nth(9).is_none() {
                bail!("--service-cidr {service} is too small");
            }
        }
        let mut disabled = self.disable;
        if self.server.is_some() {
            disabled.extend(CONTROL_PLANE);
        }
        let etcd = (!self.etcd_servers.is_empty()).then_some(Etcd {
            servers: self.etcd_servers,
            ca_file: self.etcd_cafile,
            cert_file: self.etcd_certfile,
            key_file: self.etcd_keyfile,
        });
        let mut dns_stub_domains: Vec<(String, Vec<SocketAddr>)> = Vec::new();
        for (domain, server) in self.dns_stub_domain {
            match dns_stub_domains.iter_mut().find(|(known, _)| *known == domain) {
                Some((_, servers)) => servers.push(server),
                None => dns_stub_domains.push((domain, vec![server])),
            }
        }
        Ok(Settings {
            layout: Layout::new(data_dir),
            etcd,
            runtime_endpoint: self.container_runtime_endpoint,
            node_name,
            node_ips,
            cluster_cidrs: self.cluster_cidr,
            service_cidrs: self.service_cidr,
            pod_network_backend: self.pod_network_backend,
            pod_network_mtu: self.pod_network_mtu,
            proxy_mode: self.proxy_mode,
            cluster_domain: self.cluster_domain,
            dns_upstreams: self.dns_upstreams,
            dns_stub_domains,
            api_address: SocketAddr::new(self.bind_address, self.secure_port),
            write_kubeconfig: self.write_kubeconfig,
            kubelet_config: self.kubelet_config,
            server: self.server,
            disabled,
        })
    }
}

impl Settings {
    pub(crate) fn runs(&self, part: Part) -> bool {
        !self.disabled.contains(&part)
    }

    /// The node's address of the family of Services' first network.
    pub(crate) fn node_ip(&self) -> IpAddr {
        // `Options::complete` has seen to it that there is one.
        self.node_ips.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    }

    /// The first address of the service network, which leads to the API server.
    pub(crate) fn api_service_ip(&self) -> IpAddr {
        nth_service_ip(&self.service_cidrs, 1)
    }

    /// The tenth address of the service network, which leads to cluster DNS.
    pub(crate) fn dns_service_ip(&self) -> IpAddr {
        nth_service_ip(&self.service_cidrs, 10)
    }

    /// How everything outside this process reaches the API server.
    pub(crate) fn api_url(&self) -> String {
        let own = || format!("https://{}", SocketAddr::new(self.node_ip(), self.api_address.port()));
        self.server.clone().unwrap_or_else(own)
    }
}

/// `Options::complete` has seen to it that there is such an address.
fn nth_service_ip(cidrs: &[IpNet], n: usize) -> IpAddr {
    let ip = cidrs.first().and_then(|cidr| cidr.hosts().nth(n - usize::from(cidr.addr().is_ipv4())));
    ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

/// A lower-case RFC 1123 subdomain, as the API server wants it of every node.
fn check_node_name(name: &str) -> Result<()> {
    let is_word = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.first().is_some_and(|c| is_word(*c))
            && bytes.last().is_some_and(|c| is_word(*c))
            && bytes.iter().all(|c| is_word(*c) || *c == b'-')
    };
    if name.len() > 253 || !name.split('.').all(label) {
        bail!("{name:?} cannot be a node's name (lower-case letters, digits, '-' and '.'): give --node-name");
    }
    Ok(())
}

fn dns_server(text: &str) -> Result<SocketAddr, String> {
    let alone = || text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 53));
    text.parse().ok().or_else(alone).ok_or_else(|| format!("{text:?} is no address"))
}

fn stub_domain(text: &str) -> Result<(String, SocketAddr), String> {
    let (domain, server) = text.split_once('=').ok_or("expected domain=address")?;
    Ok((domain.to_owned(), dns_server(server)?))
}

fn check_families(flag: &str, what: &str, addresses: impl Iterator<Item = IpAddr>) -> Result<()> {
    match addresses.map(|ip| ip.is_ipv4()).collect::<Vec<_>>().as_slice() {
        [_] | [true, false] | [false, true] => Ok(()),
        _ => bail!("{flag} must be one {what}, or one of each family"),
    }
}

/// The node's addresses, that of the family of Services' first network first: the API server and cluster DNS are behind Services
/// of that family.
fn node_ips(given: &[IpAddr], services: &[IpNet], pods: &[IpNet]) -> Result<Vec<IpAddr>> {
    let wants_v4 = services.first().is_none_or(|cidr| cidr.addr().is_ipv4());
    let mut ips = given.to_vec();
    if given.is_empty() {
        let has = |v4: bool| services.iter().chain(pods).any(|cidr| cidr.addr().is_ipv4() == v4);
        ips.extend([true, false].into_iter().filter(|v4| has(*v4)).filter_map(address_of_default_route));
    } else {
        check_families("--node-ip", "address", given.iter().copied())?;
    }
    if let Some(ip) = ips.iter().find(|ip| ip.is_unspecified() || ip.is_multicast() || ip.is_loopback()) {
        bail!("--node-ip {ip}: other nodes and pods cannot reach this address");
    }
    ips.sort_by_key(|ip| ip.is_ipv4() != wants_v4);
    let family = if wants_v4 { "IPv4" } else { "IPv6" };
    match ips.first() {
        Some(first) if first.is_ipv4() == wants_v4 => Ok(ips),
        None if given.is_empty() => bail!("this host has no default route to take its address from: give --node-ip"),
        _ => bail!("Services have {family} addresses first, and so must the node: give --node-ip"),
    }
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// The source address that the kernel would use for packets to the rest of the world. Nothing is sent.
fn address_of_default_route(v4: bool) -> Option<IpAddr> {
    // Addresses that are kept for documentation, so that only the default route leads there.
    let (any, somewhere): (IpAddr, IpAddr) = match v4 {
        true => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
        false => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((somewhere, 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn complete(args: &[&str]) -> Result<Settings, String> {
        let all = ["up", "--node-ip=192.0.2.7,2001:db8::7", "--node-name=n1"].iter().chain(args);
        let cli = Cli::try_parse_from(all).map_err(|err| err.to_string())?;
        cli.options.complete().map_err(|err| err.to_string())
    }

    #[test]
    fn the_first_and_the_tenth_address_of_the_service_network_are_taken() {
        for (cidr, api, dns) in
            [("10.96.0.0/16", "10.96.0.1", "10.96.0.10"), ("fd00:96::/112", "fd00:96::1", "fd00:96::a")]
        {
            let settings = complete(&["--cluster-cidr=10.244.0.0/16", &format!("--service-cidr={cidr}")]).unwrap();
            assert_eq!(settings.api_service_ip(), api.parse::<IpAddr>().unwrap());
            assert_eq!(settings.dns_service_ip(), dns.parse::<IpAddr>().unwrap());
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (args, mistake) in [
            (
                &["--service-cidr=10.244.128.0/20"][..],
                "--service-cidr 10.244.128.0/20 and --cluster-cidr 10.244.0.0/16 overlap",
            ),
            (&["--service-cidr=10.96.0.0/29"], "--service-cidr 10.96.0.0/29 is too small"),
            (&["--cluster-cidr=10.1.0.0/16,10.2.0.0/16"], "--cluster-cidr must be one network, or one of each family"),
            (&["--node-ip=2001:db8::8"], "--node-ip must be one address, or one of each family"),
        ] {
            assert_eq!(complete(args).err().as_deref(), Some(mistake));
        }
        let unknown = complete(&["--proxy-mode=magic"]).err().unwrap();
        assert!(
            unknown.contains("unknown proxy-mode: \"magic\" (valid: \"nftables\", \"iptables\", \"ipvs\")"),
            "{unknown}"
        );
        let unknown = complete(&["--disable=kube-chef"]).err().unwrap();
        assert!(unknown.contains("invalid value 'kube-chef' for '--disable"), "{unknown}");
        assert!(check_node_name("Node_1").is_err());
    }

    #[test]
    fn a_node_is_reached_first_where_services_are() {
        let ips = |given: &[&str], services: &str| {
            let given: Vec<IpAddr> = given.iter().map(|ip| ip.parse().unwrap()).collect();
            let shown = |ips: Vec<IpAddr>| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            node_ips(&given, &[services.parse().unwrap()], &[]).map(shown).map_err(|error| error.to_string())
        };
        assert_eq!(ips(&["2001:db8::7", "192.0.2.7"], "10.96.0.0/16").unwrap(), "192.0.2.7,2001:db8::7");
        assert_eq!(ips(&["192.0.2.7", "2001:db8::7"], "fd00:96::/112").unwrap(), "2001:db8::7,192.0.2.7");
        let lacks = "Services have IPv6 addresses first, and so must the node: give --node-ip";
        assert_eq!(ips(&["192.0.2.7"], "fd00:96::/112").unwrap_err(), lacks);
        assert!(ips(&["127.0.0.1"], "10.96.0.0/16").unwrap_err().starts_with("--node-ip 127.0.0.1: "));
    }

    #[test]
    fn domains_may_have_resolvers_of_their_own() {
        let stub = "--dns-stub-domain=corp.example=192.0.2.53";
        let settings =
            complete(&[stub, "--dns-stub-domain=corp.example=[2001:db8::53]:5353", "--dns-upstreams=192.0.2.1"]);
        let settings = settings.unwrap();
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert_eq!(settings.dns_upstreams, Some(vec![address("192.0.2.1:53")]));
        let servers = vec![address("192.0.2.53:53"), address("[2001:db8::53]:5353")];
        assert_eq!(settings.dns_stub_domains, [("corp.example".to_owned(), servers)]);
        assert!(complete(&["--dns-stub-domain=corp.example"]).is_err());
    }

    #[test]
    fn a_part_can_be_left_out() {
        let settings = complete(&["--disable=kube-scheduler,cluster-dns"]).unwrap();
        assert!(!settings.runs(Part::KubeScheduler) && !settings.runs(Part::ClusterDns));
        assert!(settings.runs(Part::Kubelet));
    }

    #[test]
    fn a_node_that_joins_runs_no_control_plane() {
        let settings = complete(&["--server=https://192.0.2.1:6443"]).unwrap();
        assert!(CONTROL_PLANE.iter().all(|part| !settings.runs(*part)));
        assert!(settings.runs(Part::Kubelet) && settings.runs(Part::PodNetwork));
        assert_eq!(settings.api_url(), "https://192.0.2.1:6443");
    }
}
