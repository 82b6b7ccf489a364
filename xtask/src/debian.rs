//! What Debian must provide.

use anyhow::{Result, bail};

use crate::shell;

/// What a node needs: runtime, CNI plugins, packet filter, and the tools that Kelson calls.
pub(crate) const NODE: &[&str] = &[
    "containerd",
    "runc",
    "containernetworking-plugins",
    "nftables",
    "iptables",
    "conntrack",
    "iproute2",
    "busybox-static",
    "util-linux",
    "protobuf-compiler", // the CRI client is generated when it is built
];

/// What the tests need on top of that.
pub(crate) const TEST: &[&str] = &["etcd-server", "etcd-client", "curl", "openssl", "python3-yaml", "python3-venv"];

/// Installs those packages that are missing.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let mut missing: Vec<&str> = packages.iter().copied().filter(|p| !is_installed(p)).collect();
    if !shell::has("kubectl") {
        missing.push("kubernetes-client");
    }
    if missing.is_empty() {
        return Ok(());
    }
    if !shell::has("apt-get") {
        bail!("this is no Debian machine: install {} by hand", missing.join(", "));
    }
    println!("installing {}", missing.join(" "));
    shell::run("apt-get", &["update", "-q"])?;
    let mut args = vec!["install", "-y", "-q", "--no-install-recommends"];
    args.extend(missing);
    shell::run("env", &[&["DEBIAN_FRONTEND=noninteractive", "apt-get"], args.as_slice()].concat())
}

fn is_installed(package: &str) -> bool {
    shell::output("dpkg-query", &["-W", "-f=${Status}", package]).is_ok_and(|s| s.contains("install ok installed"))
}
