//! The ipvs back end: the kernel's virtual servers choose endpoints, and a device holds the Services' addresses so that packets
//! to them come by. What virtual servers cannot do, refusing and having the node's address used, iptables does.
//!
//! A virtual server has one list of endpoints: with an external policy of Local also pods and the node itself reach only
//! this node's endpoints through an external address, as in upstream's ipvs mode.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::net::{IpAddr, SocketAddr};

use component_base::program::{self, Failed};
use ipnet::IpNet;
use serde_json::Value as Json;

use crate::config::VirtualServers;
use crate::iptables::{Balancer, Iptables};
use crate::local::{Surroundings, addresses_present};
use crate::model::{Fate, Protocol, ServiceRules};
use crate::proxier::Change;

/// Holds the Services' addresses; nothing leaves through it.
pub(crate) const DEVICE: &str = "kube-ipvs0";

/// Where a virtual server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Virtual {
    protocol: Protocol,
    at: SocketAddr,
}

impl fmt::Display for Virtual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.protocol {
            Protocol::Tcp => "-t",
            Protocol::Udp => "-u",
            Protocol::Sctp => "--sctp-service",
        };
        write!(f, "{letter} {}", self.at)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Server {
    /// For how many seconds a client stays with its endpoint.
    sticky: Option<u64>,
    endpoints: BTreeSet<SocketAddr>,
}

type Servers = BTreeMap<Virtual, Server>;

/// What the kernel has, or is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    servers: Servers,
    /// On the device.
    addresses: BTreeSet<IpAddr>,
}

pub(crate) struct Ipvs {
    rules: Iptables,
    options: VirtualServers,
    /// Of each family that rules are written for.
    surroundings: Vec<Surroundings>,
    services: BTreeMap<String, ServiceRules>,
    written: Option<State>,
}

impl Ipvs {
    pub(crate) fn new(mark: u32, surroundings: [Surroundings; 2], options: VirtualServers) -> Self {
        let rules = Iptables::new(mark, surroundings.clone(), Balancer::VirtualServers);
        let surroundings = surroundings.into();
        Ipvs { rules, options, surroundings, services: BTreeMap::new(), written: None }
    }

    /// From now on leaves out a family that the host has no rules for, unless it has none for either.
    pub(crate) async fn leave_out_unusable(&mut self) {
        self.rules.leave_out_unusable().await;
        self.surroundings.retain(|around| self.rules.has(around.family));
    }

    pub(crate) fn rules(&self) -> &Iptables {
        &self.rules
    }

    /// Writes the changes: rules first, so that nothing passes a server that is to be refused.
    pub(crate) async fn sync(&mut self, changes: &[Change<'_>]) -> Result<usize, Failed> {
        for change in changes {
            match change.new {
                Some(rules) => drop(self.services.insert(change.key.to_owned(), rules.clone())),
                None => drop(self.services.remove(change.key)),
            }
        }
        let lines = self.rules.sync(changes).await?;
        let wanted = state(self.services.values(), &self.surroundings, &addresses_present());
        let written = match self.written.take() {
            Some(written) => written,
            None => {
                prepare(&self.options).await?;
                present(&self.options.excluded, &wanted).await?
            }
        };
        let (before, servers, after) = difference(&written, &wanted, &self.options.scheduler);
        for (program, args, script) in [
            ("ip", &["-batch", "-"][..], &before),
            ("ipvsadm", &["--restore"], &servers),
            ("ip", &["-batch", "-"], &after),
        ] {
            if !script.is_empty() {
                program::run(program, args, script).await?;
            }
        }
        self.written = Some(wanted);
        Ok(lines + [before, servers, after].iter().map(|script| script.lines().count()).sum::<usize>())
    }

    /// Looks whether the kernel still has what was written; if somebody changed it, the next sync writes it again.
    pub(crate) async fn check(&mut self) {
        self.rules.check().await;
        if let Some(written) = &self.written
            && !present(&self.options.excluded, written).await.is_ok_and(|present| present == *written)
        {
            tracing::warn!("virtual servers were changed by somebody else and are restored");
            self.written = None;
        }
    }

    /// The surroundings changed: all Services come again as `all`.
    pub(crate) fn surround(&mut self, surroundings: [Surroundings; 2], all: &[Change<'_>]) {
        self.surroundings = surroundings.iter().filter(|around| self.rules.has(around.family)).cloned().collect();
        self.rules.surround(surroundings, all);
    }
}

/// The virtual servers of these Services. `present` are the node's addresses, for node ports that are served on all.
fn state<'a>(
    services: impl Iterator<Item = &'a ServiceRules>,
    surroundings: &[Surroundings],
    present: &[IpAddr],
) -> State {
    let mut state = State::default();
    for port in services.flat_map(|rules| &rules.ports) {
        let Some(around) = surroundings.iter().find(|around| around.family == port.family) else { continue };
        let node_port_ips = || -> Vec<IpAddr> {
            let all = present.iter().filter(|ip| port.family.has(**ip) && !ip.is_loopback());
            around.node_port_ips.clone().unwrap_or_else(|| all.copied().collect())
        };
        for frontend in &port.frontends {
            state.addresses.extend(frontend.address);
            if port.fate(frontend) != Fate::Balance {
                continue;
            }
            let endpoints: BTreeSet<SocketAddr> = port.endpoints(port.policy(frontend)).iter().copied().collect();
            let server = Server { sticky: port.affinity.map(|time| time.as_secs()), endpoints };
            for ip in frontend.address.map_or_else(node_port_ips, |ip| vec![ip]) {
                let at = Virtual { protocol: port.protocol, at: SocketAddr::new(ip, frontend.port) };
                // Of two Services with the same address, the first has it.
                state.servers.entry(at).or_insert_with(|| server.clone());
            }
        }
    }
    state
}

/// What to tell `ip` first, `ipvsadm`, and `ip` at last: addresses come before their servers and go after them.
fn difference(old: &State, new: &State, scheduler: &str) -> (String, String, String) {
    let (mut before, mut servers, mut after) = (String::new(), String::new(), String::new());
    let length = |ip: &IpAddr| if ip.is_ipv4() { 32 } else { 128 };
    // Writing to a String cannot fail.
    for ip in new.addresses.difference(&old.addresses) {
        let _ = writeln!(before, "addr add {ip}/{} dev {DEVICE}", length(ip));
    }
    for at in old.servers.keys().filter(|at| !new.servers.contains_key(*at)) {
        let _ = writeln!(servers, "-D {at}");
    }
    for (at, server) in &new.servers {
        let known = old.servers.get(at);
        let sticky = server.sticky.map(|seconds| format!(" -p {seconds}")).unwrap_or_default();
        match known {
            None => drop(writeln!(servers, "-A {at} -s {scheduler}{sticky}")),
            Some(known) if known.sticky != server.sticky => {
                let _ = writeln!(servers, "-E {at} -s {scheduler}{sticky}");
            }
            Some(_) => {}
        }
        let nothing = BTreeSet::new();
        let had = known.map_or(&nothing, |known| &known.endpoints);
        for endpoint in server.endpoints.difference(had) {
            let _ = writeln!(servers, "-a {at} -r {endpoint} -m -w 1");
        }
        for endpoint in had.difference(&server.endpoints) {
            let _ = writeln!(servers, "-d {at} -r {endpoint}");
        }
    }
    for ip in old.addresses.difference(&new.addresses) {
        let _ = writeln!(after, "addr del {ip}/{} dev {DEVICE}", length(ip));
    }
    (before, servers, after)
}

/// Makes the device, and lets connections to virtual servers be tracked, so that their answers can be translated.
async fn prepare(options: &VirtualServers) -> Result<(), Failed> {
    if program::run("ip", &["link", "show", DEVICE], "").await.is_err() {
        program::run("ip", &["link", "add", DEVICE, "type", "dummy"], "").await?;
    }
    if let Err(error) = std::fs::write("/proc/sys/net/ipv4/vs/conntrack", "1") {
        tracing::warn!(%error, "connections to virtual servers are not tracked");
    }
    if options.strict_arp
        && let Err(error) = keep_addresses_to_their_links()
    {
        tracing::warn!(%error, "the link is told of Services' addresses");
    }
    if options.timeouts.iter().any(|time| !time.is_zero()) {
        let [tcp, ended, udp] = options.timeouts.map(|time| time.as_secs().to_string());
        program::run("ipvsadm", &["--set", &tcp, &ended, &udp], "").await?;
    }
    Ok(())
}

/// Makes the kernel answer ARP only for addresses of the link that asks, and ask with no others.
pub(crate) fn keep_addresses_to_their_links() -> std::io::Result<()> {
    std::fs::write("/proc/sys/net/ipv4/conf/all/arp_ignore", "1")?;
    std::fs::write("/proc/sys/net/ipv4/conf/all/arp_announce", "2")
}

/// What the kernel has of ours.
async fn present(excluded: &[IpNet], ours: &State) -> Result<State, Failed> {
    let servers = program::run("ipvsadm", &["--save", "--numeric"], "").await?;
    let addresses = program::run("ip", &["-json", "addr", "show", "dev", DEVICE], "").await?;
    let servers = without_others(read_servers(&servers), excluded, &ours.servers);
    Ok(State { servers, addresses: read_addresses(&addresses) })
}

/// Servers in the `excluded` networks are somebody else's, unless they are among `ours`.
fn without_others(mut servers: Servers, excluded: &[IpNet], ours: &Servers) -> Servers {
    servers.retain(|at, _| ours.contains_key(at) || !excluded.iter().any(|net| net.contains(&at.at.ip())));
    servers
}

/// From what `ipvsadm --save` says, which is what `--restore` takes.
fn read_servers(said: &str) -> Servers {
    let mut servers = Servers::new();
    for line in said.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |flag: &str| words.iter().position(|word| *word == flag).and_then(|i| words.get(i + 1)).copied();
        let found = [("-t", Protocol::Tcp), ("-u", Protocol::Udp), ("--sctp-service", Protocol::Sctp)]
            .into_iter()
            .find_map(|(flag, protocol)| Some(Virtual { protocol, at: after(flag)?.parse().ok()? }));
        let Some(at) = found else { continue };
        let server = servers.entry(at).or_default();
        match words.first() {
            Some(&"-A") => server.sticky = after("-p").and_then(|seconds| seconds.parse().ok()),
            _ => server.endpoints.extend(after("-r").and_then(|endpoint| endpoint.parse::<SocketAddr>().ok())),
        }
    }
    servers
}

/// From what `ip -json addr show` says; addresses that the kernel made itself are none of ours.
fn read_addresses(said: &str) -> BTreeSet<IpAddr> {
    let all: Json = serde_json::from_str(said).unwrap_or_default();
    let devices = all.as_array().into_iter().flatten();
    let addresses = devices.flat_map(|device| device["addr_info"].as_array().into_iter().flatten());
    addresses.filter(|a| a["scope"] != "link").filter_map(|a| a["local"].as_str()?.parse().ok()).collect()
}

/// Removes the device and the virtual servers, if this mode was ever used here.
pub(crate) async fn clean_up() -> Result<(), Failed> {
    if program::run("ip", &["link", "show", DEVICE], "").await.is_err() {
        return Ok(());
    }
    program::run("ipvsadm", &["--clear"], "").await?;
    program::run("ip", &["link", "del", DEVICE], "").await.map(drop)
}
