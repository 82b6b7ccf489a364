//! Taking back what this crate wrote to the host's network, and what CNI plugins leave there after the last pod.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use component_base::program::{self, Failed};
use futures::TryStreamExt;
use futures::future::BoxFuture;
use rtnetlink::Handle;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

use crate::{masquerade, policy, routes, tunnel};

#[derive(Debug, thiserror::Error)]
pub enum CleanUpError {
    #[error("cannot open a netlink socket")]
    Socket(#[source] std::io::Error),
    #[error("the kernel does not remove a link or a route")]
    Kernel(#[from] rtnetlink::Error),
    #[error(transparent)]
    Program(#[from] Failed),
    #[error("the bridge {0} is used by somebody else and stays")]
    Bridge(String),
}

/// How long the kernel may take to remove the links of namespaces that are gone.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOKS: Duration = Duration::from_millis(20);

/// Removes rules, routes, the tunnel, and the bridge that pods were attached to.
///
/// # Errors
/// With the first that cannot be removed; the others are all the same.
pub fn clean_up(bridge: &str) -> BoxFuture<'static, Result<(), CleanUpError>> {
    Box::pin(remove_all(bridge.to_owned()))
}

async fn remove_all(bridge: String) -> Result<(), CleanUpError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(CleanUpError::Socket)?;
    let connection = tokio::spawn(connection);
    let removed = [
        remove_tables().await.map_err(Into::into),
        routes::sync(&handle, &BTreeMap::new(), None).await.map_err(Into::into),
        tunnel::sync(&handle, None, 0).await.map(drop).map_err(Into::into),
        remove_bridge(&handle, bridge).await,
        remove_host_ports().await.map_err(Into::into),
    ];
    connection.abort();
    removed.into_iter().collect()
}

async fn remove_tables() -> Result<(), Failed> {
    let tables = [masquerade::TABLE, policy::TABLE];
    // One that is not there cannot be deleted.
    let script: String = tables.iter().map(|table| format!("add table {table}\ndelete table {table}\n")).collect();
    program::run("nft", &["-f", "-"], &script).await.map(drop)
}

async fn remove_bridge(handle: &Handle, name: String) -> Result<(), CleanUpError> {
    let is_bridge = |link: &LinkMessage| {
        let infos =
            link.attributes.iter().filter_map(|a| if let LinkAttribute::LinkInfo(i) = a { Some(i) } else { None });
        infos.flatten().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Bridge)))
    };
    let Some(bridge) = tunnel::link(handle, &name).await?.filter(is_bridge) else { return Ok(()) };
    let index = bridge.header.index;
    let began = Instant::now();
    while has_ports(handle, index).await? {
        if began.elapsed() > PATIENCE {
            return Err(CleanUpError::Bridge(name));
        }
        tokio::time::sleep(LOOKS).await;
    }
    Ok(handle.link().del(index).execute().await?)
}

async fn has_ports(handle: &Handle, bridge: u32) -> Result<bool, rtnetlink::Error> {
    let mut links = handle.link().get().execute();
    let mut found = false;
    while let Some(link) = links.try_next().await? {
        found |= link.attributes.contains(&LinkAttribute::Controller(bridge));
    }
    Ok(found)
}

/// Removes what the plugin `portmap` needs for all pods, if none is left that needs it.
async fn remove_host_ports() -> Result<(), Failed> {
    for iptables in ["iptables", "ip6tables"] {
        // A host without the program has no such rules.
        let Ok(said) = program::run(&format!("{iptables}-save"), &["-t", "nat"], "").await else { continue };
        let script = without_host_ports(&said);
        if !script.is_empty() {
            program::run(&format!("{iptables}-restore"), &["--wait=5", "--noflush"], &script).await?;
        }
    }
    Ok(())
}

/// Of what `iptables-save` says, to `iptables-restore` without the chains that `portmap` shares among pods.
fn without_host_ports(said: &str) -> String {
    const SHARED: &str = "CNI-HOSTPORT-";
    const OF_POD: &str = "CNI-DN-";
    let chains = || said.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next());
    if !chains().any(|chain| chain.starts_with(SHARED)) || chains().any(|chain| chain.starts_with(OF_POD)) {
        return String::new();
    }
    let mut script = "*nat\n".to_owned();
    for rule in said.lines().filter_map(|line| line.strip_prefix("-A ")) {
        let target = rule.rsplit_once("-j ").map_or("", |(_, target)| target);
        if target.starts_with(SHARED) && !rule.starts_with("CNI-") {
            // Writing to a String cannot fail.
            let _ = writeln!(script, "-D {rule}");
        }
    }
    for chain in chains().filter(|chain| chain.starts_with(SHARED)) {
        let _ = writeln!(script, ":{chain} - [0:0]");
    }
    for chain in chains().filter(|chain| chain.starts_with(SHARED)) {
        let _ = writeln!(script, "-X {chain}");
    }
    script + "COMMIT\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:CNI-HOSTPORT-DNAT - [0:0]\n:CNI-HOSTPORT-MASQ - [0:0]\n\
        -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n-A PREROUTING -j OTHER\n\
        -A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE\nCOMMIT\n";

    #[test]
    fn what_host_ports_share_goes_with_the_last_pod() {
        let want = "*nat\n-D PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n:CNI-HOSTPORT-DNAT - [0:0]\n\
            :CNI-HOSTPORT-MASQ - [0:0]\n-X CNI-HOSTPORT-DNAT\n-X CNI-HOSTPORT-MASQ\nCOMMIT\n";
        assert_eq!(without_host_ports(SAVED), want);
        assert_eq!(
            without_host_ports(&SAVED.replace(":CNI-HOSTPORT-MASQ", ":CNI-DN-1234 - [0:0]\n:CNI-HOSTPORT-MASQ")),
            ""
        );
        assert_eq!(without_host_ports("*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n"), "");
    }
}
