//! What the host must have and be, checked before anything is started.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kube_proxy::Mode;

use super::options::{Part, Settings};

/// Where distributions put CNI plugins.
const CNI_DIRS: &[&str] = &["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"];

/// A program that the node calls, and where Debian has it.
const PROGRAMS: &[(Part, &str, &str)] =
    &[(Part::KubeProxy, "conntrack", "conntrack"), (Part::PodNetwork, "nft", "nftables")];
const PROXY_PROGRAMS: &[(Mode, &str, &str)] = &[
    (Mode::Nftables, "nft", "nftables"),
    (Mode::Iptables, "iptables-restore", "iptables"),
    (Mode::Ipvs, "iptables-restore", "iptables"),
    (Mode::Ipvs, "ipvsadm", "ipvsadm"),
];
const RUNTIME_PROGRAMS: &[(&str, &str)] = &[("containerd", "containerd"), ("ctr", "containerd"), ("runc", "runc")];

/// Fails with all that is missing.
pub(crate) fn check(settings: &Settings) -> Result<()> {
    if settings.runs(Part::Kubelet) && !nix::unistd::geteuid().is_root() {
        bail!("a node must run as root; without one: --disable kubelet,kube-proxy,pod-network");
    }
    let mut missing = Vec::new();
    let mut need = |program: &str, package: &str| {
        if find_program(program).is_none() {
            missing.push(format!("{program} (Debian: {package})"));
            missing.dedup();
        }
    };
    for (part, program, package) in PROGRAMS {
        if settings.runs(*part) {
            need(program, package);
        }
    }
    for (mode, program, package) in PROXY_PROGRAMS {
        if settings.runs(Part::KubeProxy) && settings.proxy_mode == *mode {
            need(program, package);
        }
    }
    if settings.runs(Part::Kubelet) && settings.runtime_endpoint.is_none() {
        for (program, package) in RUNTIME_PROGRAMS {
            need(program, package);
        }
    }
    if settings.runs(Part::PodNetwork) && cni_bin_dir().is_none() {
        missing.push("CNI plugins (Debian: containernetworking-plugins)".to_owned());
    }
    if !missing.is_empty() {
        bail!("this host lacks {}", missing.join(", "));
    }
    Ok(())
}

pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from); // not on every user's PATH
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// The directory of the CNI plugins.
pub(crate) fn cni_bin_dir() -> Option<&'static Path> {
    CNI_DIRS.iter().map(Path::new).find(|dir| dir.join("bridge").is_file() && dir.join("host-local").is_file())
}

/// Lets the kernel forward, and lets it translate addresses of what pods of one node send to each other through Services.
pub(crate) fn prepare_kernel(settings: &Settings) -> Result<()> {
    for module in ["br_netfilter", "overlay", "nf_conntrack"] {
        // Built into many kernels; what is really missing shows below.
        let _ = std::process::Command::new("modprobe").arg("-q").arg(module).status();
    }
    let needed = [
        ("net/ipv4/ip_forward", "pods cannot reach anything"),
        ("net/bridge/bridge-nf-call-iptables", "a pod cannot reach a Service that leads to a pod of the same node"),
    ];
    let needed_for_v6 = [
        ("net/ipv6/conf/all/forwarding", "pods cannot reach anything over IPv6"),
        ("net/bridge/bridge-nf-call-ip6tables", "an IPv6 Service does not lead pods of its own node to each other"),
    ];
    let has_v6 = settings.cluster_cidrs.iter().any(|cidr| cidr.addr().is_ipv6());
    for (key, consequence) in needed.iter().chain(needed_for_v6.iter().filter(|_| has_v6)) {
        set_sysctl(key, "1").with_context(|| format!("without the kernel parameter {key}=1 {consequence}"))?;
    }
    Ok(())
}

fn set_sysctl(key: &str, value: &str) -> io::Result<()> {
    let file = Path::new("/proc/sys").join(key);
    if fs::read_to_string(&file)?.trim() == value {
        return Ok(());
    }
    fs::write(file, value)
}

/// The resolver configuration that pods and cluster DNS get: the host's, unless that leads to a resolver on the host's
/// loopback, which no pod can reach.
pub(crate) fn resolv_conf() -> PathBuf {
    let systemd = Path::new("/run/systemd/resolve/resolv.conf");
    let usual = Path::new("/etc/resolv.conf");
    if systemd.exists() && nameservers(usual).iter().all(IpAddr::is_loopback) {
        return systemd.to_owned();
    }
    usual.to_owned()
}

/// The resolvers that a file names.
pub(crate) fn nameservers(file: &Path) -> Vec<IpAddr> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut words = text.lines().map(str::split_whitespace);
    words
        .by_ref()
        .filter_map(|mut line| (line.next() == Some("nameserver")).then(|| line.next())?)
        .filter_map(|ip| ip.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameservers_are_read_from_the_hosts_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "# x\nsearch a.b\nnameserver 192.0.2.1\nnameserver ::1\noptions ndots:2\n").unwrap();
        let want: Vec<IpAddr> = vec!["192.0.2.1".parse().unwrap(), "::1".parse().unwrap()];
        assert_eq!(nameservers(file.path()), want);
        assert_eq!(nameservers(Path::new("/nonexistent")), Vec::<IpAddr>::new());
    }
}
