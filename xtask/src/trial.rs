//! Where the trial cluster lives: its network namespace, its addresses and its files.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::shell;

pub(crate) const NAMESPACE: &str = "kelson-trial";
pub(crate) const HOST_LINK: &str = "kelson-trial0";
/// From the range for benchmarks of networks (RFC 2544), which no host on the internet has.
pub(crate) const HOST_ADDRESS: &str = "198.18.77.1";
pub(crate) const NODE_ADDRESS: &str = "198.18.77.2";

/// `target/trial`: everything that the trial cluster writes.
pub(crate) fn dir() -> PathBuf {
    shell::root().join("target/trial")
}

pub(crate) fn data_dir() -> PathBuf {
    dir().join("data")
}

pub(crate) fn kubeconfig() -> PathBuf {
    dir().join("kubeconfig")
}

pub(crate) fn pid_file() -> PathBuf {
    dir().join("kelson.pid")
}

pub(crate) fn log_file() -> PathBuf {
    dir().join("kelson.log")
}

pub(crate) fn namespace_exists() -> bool {
    std::path::Path::new("/run/netns").join(NAMESPACE).exists()
}

/// A command inside the trial's network namespace. `nsenter`, because `ip netns exec` hides the cgroup mounts.
pub(crate) fn inside(program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{NAMESPACE}")).arg(program);
    command
}

/// The namespace, one veth pair to the host, and a default route that leads nowhere: Service addresses need a route
/// before the packet filter sees them, and nothing may leave.
pub(crate) fn make_namespace() -> Result<()> {
    let ns = NAMESPACE;
    shell::run("ip", &["netns", "add", ns])?;
    shell::run("ip", &["link", "add", HOST_LINK, "type", "veth", "peer", "name", "eth0", "netns", ns])?;
    shell::run("ip", &["addr", "add", &format!("{HOST_ADDRESS}/30"), "dev", HOST_LINK])?;
    shell::run("ip", &["link", "set", HOST_LINK, "up"])?;
    for words in [
        "link set lo up",
        &format!("addr add {NODE_ADDRESS}/30 dev eth0"),
        "link set eth0 up",
        "link add nowhere type veth peer name nowhere-end",
        "link set nowhere-end up",
        "link set nowhere up",
        "route add default dev nowhere",
    ] {
        let args: Vec<&str> = ["-n", ns].into_iter().chain(words.split(' ')).collect();
        shell::run("ip", &args)?;
    }
    Ok(())
}
