//! Each component's configuration in this cluster.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Parser;
use client::leader_election::LeaseConfig;
use component_base::metrics::Metrics;
use component_base::secure_port::SecurePort;
use serde_json::json;

use super::connection::Connection;
use super::host;
use super::layout::Layout;
use super::options::Settings;
use crate::pki::{Pair, Pki};

/// Cluster DNS listens here, so that the host may have a resolver of its own on port 53.
pub(crate) const DNS_PORT: u16 = 10053;
/// Where cluster DNS tells of itself; the port that CoreDNS uses.
const DNS_METRICS_PORT: u16 = 9153;
/// The metrics API listens here, for the API server alone.
pub(crate) const METRICS_PORT: u16 = 4443;
const CONTROLLER_MANAGER_PORT: u16 = 10257;
const SCHEDULER_PORT: u16 = 10259;
/// What the pods of a node are attached to.
pub(crate) const BRIDGE: &str = "cni0";
/// A node's share of the pod network, as upstream has it.
const NODE_MASKS: (u8, u8) = (24, 64);

/// The API server's configuration, through the flags that one would give it alone.
pub(crate) fn apiserver(settings: &Settings, pki: &Pki) -> Result<apiserver::Config> {
    let flags = apiserver::Flags::try_parse_from(apiserver_flags(settings, pki))
        .context("the API server does not take our flags")?;
    Ok(flags.complete()?)
}

fn apiserver_flags(settings: &Settings, pki: &Pki) -> Vec<String> {
    let mut flags = vec!["kube-apiserver".to_owned()];
    let mut set = |flag: &str, value: &str| flags.push(format!("--{flag}={value}"));
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let ranges: Vec<String> = settings.service_cidrs.iter().map(ToString::to_string).collect();
    let issuer = format!("https://kubernetes.default.svc.{}", settings.cluster_domain);
    match &settings.etcd {
        Some(etcd) => {
            set("etcd-servers", &etcd.servers.join(","));
            let files =
                [("etcd-cafile", &etcd.ca_file), ("etcd-certfile", &etcd.cert_file), ("etcd-keyfile", &etcd.key_file)];
            for (flag, file) in files {
                file.iter().for_each(|file| set(flag, &text(file)));
            }
        }
        None => set("data-dir", &text(&settings.layout.store())),
    }
    set("bind-address", &settings.api_address.ip().to_string());
    set("secure-port", &settings.api_address.port().to_string());
    set("advertise-address", &settings.node_ip().to_string());
    set("service-cluster-ip-range", &ranges.join(","));
    set("service-account-issuer", &issuer);
    set("service-account-key-file", &text(&pki.service_account_public_key()));
    set("service-account-signing-key-file", &text(&pki.service_account_key()));
    set("authorization-mode", "Node,RBAC");
    set("enable-admission-plugins", "NodeRestriction");
    set("enable-bootstrap-token-auth", "true");
    set("allow-privileged", "true");
    set("client-ca-file", &text(&pki.ca()));
    set("kubelet-certificate-authority", &text(&pki.ca()));
    set("kubelet-preferred-address-types", "InternalIP,Hostname");
    set("requestheader-client-ca-file", &text(&pki.front_proxy_ca()));
    set("requestheader-allowed-names", "front-proxy-client");
    set("requestheader-username-headers", "X-Remote-User");
    set("requestheader-group-headers", "X-Remote-Group");
    set("requestheader-extra-headers-prefix", "X-Remote-Extra-");
    let pairs = [
        ("apiserver", "tls-cert-file", "tls-private-key-file"),
        ("apiserver-kubelet-client", "kubelet-client-certificate", "kubelet-client-key"),
        ("front-proxy-client", "proxy-client-cert-file", "proxy-client-key-file"),
    ];
    for (name, cert_flag, key_flag) in pairs {
        let Pair { cert, key } = pki.pair(name);
        set(cert_flag, &text(&cert));
        set(key_flag, &text(&key));
    }
    flags
}

pub(crate) fn controller_manager(
    settings: &Settings,
    pki: &Pki,
    connection: &Connection,
) -> Result<controller_manager::Config> {
    let ca = pki.pair("ca");
    let authority = controller_manager::Authority { certificate: ca.cert.clone(), key: ca.key };
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let mask = |ip: IpAddr| if ip.is_ipv4() { NODE_MASKS.0 } else { NODE_MASKS.1 };
    Ok(controller_manager::Config {
        credentials: connection.controllers(),
        leader_election: elected(settings, "kube-controller-manager"),
        serving: Some(SecurePort { client_ca: Some(pki.ca()), ..SecurePort::new(loopback(CONTROLLER_MANAGER_PORT)) }),
        root_ca: Some(read(&ca.cert)?),
        node_ipam: Some(controller_manager::NodeIpamConfig {
            cluster_cidrs: settings.cluster_cidrs.iter().map(|cidr| (*cidr, mask(cidr.addr()))).collect(),
            service_cidrs: settings.service_cidrs.clone(),
        }),
        cluster_signing: Some(controller_manager::ClusterSigning::all(&authority)),
        token_signer: Some(controller_manager::TokenSigner::from_pem(&read(&pki.service_account_key())?)?),
        ..controller_manager::Config::default()
    })
}

pub(crate) fn scheduler(settings: &Settings, pki: &Pki) -> scheduler::Config {
    scheduler::Config {
        leader_election: elected(settings, "kube-scheduler"),
        serving: Some(SecurePort { client_ca: Some(pki.ca()), ..SecurePort::new(loopback(SCHEDULER_PORT)) }),
        ..scheduler::Config::default()
    }
}

/// With a store that others can share, several instances choose one that works.
fn elected(settings: &Settings, name: &str) -> Option<LeaseConfig> {
    let identity = format!("{}_{}", settings.node_name, std::process::id());
    settings.etcd.is_some().then(|| LeaseConfig::new(name, &identity))
}

/// What a KubeletConfiguration may not say here, each with what decides it instead.
const SETTLED: &[(&str, &str)] = &[
    ("authentication.x509.clientCAFile", "the cluster's own authority"),
    ("clusterDNS", "--service-cidr"),
    ("clusterDomain", "--cluster-domain"),
    ("containerRuntimeEndpoint", "--container-runtime-endpoint"),
    ("podLogsDir", "--data-dir"),
    ("serverTLSBootstrap", "the cluster's own authority"),
    ("tlsCertFile", "the cluster's own authority"),
    ("tlsPrivateKeyFile", "the cluster's own authority"),
];

/// What the user's file says of the node, as far as it is his to say.
fn kubelet_of_file(file: Option<&Path>, layout: &Layout) -> Result<kubelet::Config> {
    let flag = file.map(|file| format!("--config={}", file.display()));
    let flags = kubelet::Flags::try_parse_from(std::iter::once("kubelet".to_owned()).chain(flag))?;
    let mut given = flags.complete()?;
    let says = |field: &str| {
        let value = given.file.pointer(&format!("/{}", field.replace('.', "/")));
        value.is_some_and(|v| !v.is_null() && *v != json!(false) && *v != json!("") && *v != json!([]))
    };
    if let Some((field, instead)) = SETTLED.iter().find(|(field, _)| says(field)) {
        bail!("--kubelet-config: {field} is not for the file to say: {instead} decides it");
    }
    if given.file["evictionHard"].is_null() {
        given.eviction = given.eviction.on_a_shared_disk();
    }
    if given.file["resolvConf"].is_null() {
        given.resolv_conf = host::resolv_conf();
    }
    given.static_pod_path.get_or_insert_with(|| layout.manifests());
    Ok(given)
}

/// How the node is joined to the cluster stands above what the file says.
pub(crate) fn kubelet(settings: &Settings, pki: &Pki) -> Result<kubelet::Config> {
    let Pair { cert, key } = pki.pair("kubelet-serving");
    let layout = &settings.layout;
    let own_runtime = || format!("unix://{}", layout.containerd_socket().display());
    Ok(kubelet::Config {
        node_name: settings.node_name.clone(),
        node_ips: settings.node_ips.clone(),
        root_dir: layout.kubelet(),
        cert_dir: layout.kubelet().join("pki"),
        log_root: layout.pod_logs(),
        log_links: Some(layout.container_log_links()),
        runtime_endpoint: settings.runtime_endpoint.clone().unwrap_or_else(own_runtime),
        client_ca_file: Some(pki.ca()),
        tls: Some((cert, key)),
        cluster_dns: vec![settings.dns_service_ip().to_string()],
        cluster_domain: settings.cluster_domain.clone(),
        ..kubelet_of_file(settings.kubelet_config.as_deref(), layout)?
    })
}

pub(crate) fn kube_proxy(settings: &Settings) -> kube_proxy::Config {
    let mut config = kube_proxy::Config::new(&settings.node_name);
    config.mode = settings.proxy_mode;
    config.detect_local = kube_proxy::DetectLocal::ClusterCidr(settings.cluster_cidrs.clone());
    config
}

pub(crate) fn cluster_dns(settings: &Settings) -> cluster_dns::Config {
    let of_host = || {
        let servers = host::nameservers(&host::resolv_conf()).into_iter();
        // A question to ourselves would come back to us for ever.
        servers.filter(|ip| *ip != settings.dns_service_ip()).map(|ip| SocketAddr::new(ip, 53)).collect()
    };
    cluster_dns::Config {
        listen: vec![SocketAddr::new(settings.node_ip(), DNS_PORT)],
        cluster_domain: settings.cluster_domain.clone(),
        upstreams: settings.dns_upstreams.clone().unwrap_or_else(of_host),
        stub_domains: settings.dns_stub_domains.clone(),
        serving: Some(SocketAddr::new(settings.node_ip(), DNS_METRICS_PORT)),
        metrics: Metrics::new(),
    }
}

pub(crate) fn pod_network(settings: &Settings) -> pod_network::Config {
    pod_network::Config {
        node_name: settings.node_name.clone(),
        cni_conf_dir: settings.layout.cni_conf(),
        ipam_dir: settings.layout.ipam(),
        cluster_cidrs: settings.cluster_cidrs.clone(),
        bridge: BRIDGE.to_owned(),
        mtu: settings.pod_network_mtu,
        backend: settings.pod_network_backend,
    }
}

pub(crate) fn local_path_provisioner(settings: &Settings) -> local_path_provisioner::Config {
    local_path_provisioner::Config { node_name: settings.node_name.clone(), dir: settings.layout.volumes() }
}

pub(crate) fn metrics_server(settings: &Settings, pki: &Pki) -> metrics_server::Config {
    let Pair { cert, key } = pki.pair("metrics-server");
    metrics_server::Config {
        address: SocketAddr::new(settings.node_ip(), METRICS_PORT),
        certificate: cert,
        key,
        front_proxy_ca: pki.front_proxy_ca(),
        front_proxy_names: vec!["front-proxy-client".to_owned()],
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<kubelet::Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kubelet.yaml");
        let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        std::fs::write(&file, format!("{head}{text}\n")).unwrap();
        kubelet_of_file(Some(&file), &Layout::new("/data".into())).map_err(|e| e.to_string())
    }

    #[test]
    fn a_file_says_what_is_its_to_say() {
        let config = of("staticPodPath: /pods\nresolvConf: /run/resolv.conf\nclusterDNS: []").unwrap();
        assert_eq!(config.static_pod_path, Some("/pods".into()));
        assert_eq!(config.resolv_conf, Path::new("/run/resolv.conf"));
        let config = of("maxPods: 5").unwrap();
        assert_eq!((config.static_pod_path, config.max_pods), (Some("/data/manifests".into()), 5));
    }

    #[test]
    fn what_the_cluster_decides_is_refused_by_name() {
        let check = |text: &str, want: &str| assert!(of(text).unwrap_err().contains(want), "{text}");
        check("clusterDomain: example.com", "clusterDomain is not for the file to say: --cluster-domain decides it");
        check("clusterDNS: [192.0.2.1]", "--service-cidr");
        check("containerRuntimeEndpoint: unix:///x", "--container-runtime-endpoint");
        check("authentication: {x509: {clientCAFile: /ca}}", "authentication.x509.clientCAFile");
        check("tlsCertFile: /cert", "tlsCertFile");
        check("podLogsDir: /logs", "podLogsDir");
    }
}
