//! From the model to chains of iptables, with upstream's names and structure. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use sha2::{Digest, Sha256};

use crate::local::LocalTraffic;
use crate::local::Surroundings;
use crate::model::{Family, Fate, Frontend, FrontendKind, Policy, PortRules, ServiceRules};

/// A chain by its table and name.
pub(crate) type ChainId = (&'static str, String);
pub(crate) type Chains = BTreeMap<ChainId, Vec<String>>;

const NAT: &str = "nat";
const FILTER: &str = "filter";

/// Where the kernel's own chains lead to ours: table, chain, our chain, what is matched before, and upstream's comment.
pub(crate) const JUMPS: [(&str, &str, &str, bool, &str); 15] = [
    (FILTER, "INPUT", "KUBE-PROXY-FIREWALL", true, "kubernetes load balancer firewall"),
    (FILTER, "OUTPUT", "KUBE-PROXY-FIREWALL", true, "kubernetes load balancer firewall"),
    (FILTER, "FORWARD", "KUBE-PROXY-FIREWALL", true, "kubernetes load balancer firewall"),
    (FILTER, "INPUT", "KUBE-NODEPORTS", false, "kubernetes health check service ports"),
    (FILTER, "INPUT", "KUBE-EXTERNAL-SERVICES", true, "kubernetes externally-visible service portals"),
    (FILTER, "FORWARD", "KUBE-EXTERNAL-SERVICES", true, "kubernetes externally-visible service portals"),
    (FILTER, "FORWARD", "KUBE-FORWARD", false, "kubernetes forwarding rules"),
    (FILTER, "FORWARD", "KUBE-SERVICES", true, "kubernetes service portals"),
    (FILTER, "OUTPUT", "KUBE-SERVICES", true, "kubernetes service portals"),
    (FILTER, "OUTPUT", "KUBE-EXTERNAL-SERVICES", true, "kubernetes externally-visible service portals"),
    (NAT, "PREROUTING", "KUBE-SERVICES", false, "kubernetes service portals"),
    (NAT, "OUTPUT", "KUBE-SERVICES", false, "kubernetes service portals"),
    (NAT, "POSTROUTING", "KUBE-POSTROUTING", false, "kubernetes postrouting rules"),
    (FILTER, "INPUT", LOCALHOST_GUARD, false, ""),
    (FILTER, "OUTPUT", LOCALHOST_GUARD, false, ""),
];

/// Keeps others out of what is on loopback addresses only, which routes to them would open. Upstream's kubelet writes the same
/// chain for itself.
pub(crate) const LOCALHOST_GUARD: &str = "KUBE-FIREWALL";

/// Whether a family's rules need a jump.
pub(crate) fn needs(around: &Surroundings, jump: usize) -> bool {
    around.localhost || JUMPS[jump].2 != LOCALHOST_GUARD
}

/// Whether a chain is the proxy's, of any version that upstream's users may have.
pub(crate) fn is_ours(chain: &str) -> bool {
    const NAMES: [&str; 8] = [
        "KUBE-SERVICES",
        "KUBE-EXTERNAL-SERVICES",
        "KUBE-NODEPORTS",
        "KUBE-POSTROUTING",
        "KUBE-MARK-MASQ",
        "KUBE-FORWARD",
        "KUBE-PROXY-FIREWALL",
        LOCALHOST_GUARD,
    ];
    const PREFIXES: [&str; 5] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-SEP-", "KUBE-FW-"];
    NAMES.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

/// `prefix` with the first 16 letters of the base 32 form of a SHA-256, as upstream makes names that fit the kernel.
fn name_of(prefix: &str, text: &str) -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let digest = Sha256::digest(text.as_bytes());
    let bits = digest.iter().take(10).fold(0u128, |bits, byte| bits << 8 | u128::from(*byte));
    let letters = (0..16).rev().map(|i| char::from(LETTERS[usize::try_from(bits >> (5 * i) & 31).unwrap_or_default()]));
    prefix.chars().chain(letters).collect()
}

/// What stands in `--comment`.
fn comment(text: &str) -> String {
    format!("-m comment --comment \"{text}\"")
}

/// What one Service adds: chains of its own, and rules of chains that all share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fragment {
    pub own: Chains,
    pub shared: BTreeMap<ChainId, Vec<String>>,
}

/// What chooses endpoints: chains do, or they only prepare what the kernel's virtual servers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Balancer {
    Chains,
    VirtualServers,
}

/// A port and what is needed to render it.
struct Renderer<'a> {
    balancer: Balancer,
    port: &'a PortRules,
    around: &'a Surroundings,
    /// `namespace/name:port`
    name: String,
    /// What chains' names are made of.
    identity: String,
    fragment: Fragment,
}

pub(crate) fn fragment(service: &str, rules: &ServiceRules, around: &Surroundings, balancer: Balancer) -> Fragment {
    let mut fragment = Fragment::default();
    for port in rules.ports.iter().filter(|port| port.family == around.family) {
        let name = if port.port_name.is_empty() { service.to_owned() } else { format!("{service}:{}", port.port_name) };
        let identity = format!("{name}{}", port.protocol.name());
        let mut renderer = Renderer { balancer, port, around, name, identity, fragment };
        renderer.render();
        fragment = renderer.fragment;
    }
    if let Some(check) = rules.health_check.as_ref().filter(|_| rules.ports.iter().any(|p| p.family == around.family)) {
        let text = comment(&format!("{service} health check node port"));
        let rule = format!("{text} -m tcp -p tcp --dport {} -j ACCEPT", check.port);
        fragment.shared.entry((FILTER, "KUBE-NODEPORTS".to_owned())).or_default().push(rule);
    }
    fragment
}

impl Renderer<'_> {
    fn render(&mut self) {
        if self.balancer == Balancer::VirtualServers {
            self.prepare();
            return;
        }
        if self.port.frontends.iter().any(Frontend::is_external) {
            self.external_chain();
        }
        if self.port.internal == Policy::Local {
            self.balancing_chain(Policy::Local);
        } else {
            self.balancing_chain(Policy::Cluster);
        }
        for frontend in &self.port.frontends {
            self.frontend(frontend);
        }
    }

    fn chain(&self, prefix: &str) -> String {
        name_of(prefix, &self.identity)
    }

    fn share(&mut self, table: &'static str, chain: &str, rule: String) {
        self.fragment.shared.entry((table, chain.to_owned())).or_default().push(rule);
    }

    fn own(&mut self, chain: &str, rules: Vec<String>) {
        self.fragment.own.insert((NAT, chain.to_owned()), rules);
    }

    /// `-p tcp -d 10.96.0.9 --dport 80`
    fn destination(&self, frontend: &Frontend) -> String {
        let protocol = self.port.protocol.name();
        let address = frontend.address.map(|ip| format!(" -d {ip}")).unwrap_or_default();
        format!("-m {protocol} -p {protocol}{address} --dport {}", frontend.port)
    }

    fn frontend(&mut self, frontend: &Frontend) {
        let (kind, is_external) = match frontend.kind {
            FrontendKind::ClusterIp => ("cluster IP", false),
            FrontendKind::ExternalIp => ("external IP", true),
            FrontendKind::LoadBalancer => ("loadbalancer IP", true),
            FrontendKind::NodePort => ("", true),
        };
        let to = self.destination(frontend);
        let text = if kind.is_empty() { self.name.clone() } else { format!("{} {kind}", self.name) };
        let internal = if self.port.internal == Policy::Local { "KUBE-SVL-" } else { "KUBE-SVC-" };
        let target = self.chain(if is_external { "KUBE-EXT-" } else { internal });
        let exists = self.fragment.own.contains_key(&(NAT, target.clone()));
        if exists && !frontend.allowed.is_empty() {
            self.firewalled(frontend, &target);
        } else if exists {
            let chain = if frontend.address.is_some() { "KUBE-SERVICES" } else { "KUBE-NODEPORTS" };
            self.share(NAT, chain, format!("{} {to} -j {target}", comment(&text)));
        }
        self.refuse(frontend);
    }

    /// Says no where there is no endpoint.
    fn refuse(&mut self, frontend: &Frontend) {
        let (why, verdict) = match self.port.fate(frontend) {
            Fate::Balance => return,
            Fate::Reject => ("has no endpoints", "REJECT"),
            Fate::Drop => ("has no local endpoints", "DROP"),
        };
        // Virtual servers have their addresses on the node itself, where only rules for external ones look.
        let is_external = frontend.is_external() || self.balancer == Balancer::VirtualServers;
        let chain = if is_external { "KUBE-EXTERNAL-SERVICES" } else { "KUBE-SERVICES" };
        let (text, to) = (comment(&format!("{} {why}", self.name)), self.destination(frontend));
        let rule = |local: &str| format!("{text} {local}{to} -j {verdict}");
        let rules: Vec<String> = match (&frontend.address, &self.around.node_port_ips) {
            (Some(_), _) => vec![rule("")],
            (None, None) => vec![rule("-m addrtype --dst-type LOCAL ")],
            (None, Some(ips)) => ips.iter().map(|ip| rule(&format!("-d {ip} "))).collect(),
        };
        for rule in rules {
            self.share(FILTER, chain, rule);
        }
    }

    /// What virtual servers cannot do: refuse, and have the node's address used.
    fn prepare(&mut self) {
        for frontend in &self.port.frontends {
            self.refuse(frontend);
            let (text, to) = (comment(&self.name), self.destination(frontend));
            if !frontend.allowed.is_empty() {
                let chain = self.chain("KUBE-FW-");
                let mut rules: Vec<String> =
                    frontend.allowed.iter().map(|net| format!("{text} -s {net} -j RETURN")).collect();
                rules.push(format!("{text} -j DROP"));
                self.fragment.own.insert((FILTER, chain.clone()), rules);
                self.share(FILTER, "KUBE-PROXY-FIREWALL", format!("{text} {to} -j {chain}"));
            }
            let chain = if frontend.address.is_some() { "KUBE-SERVICES" } else { "KUBE-NODEPORTS" };
            let matches = if !frontend.is_external() {
                if self.around.masquerade_all { vec![String::new()] } else { self.pod_matches(true) }
            } else if self.port.external == Policy::Cluster {
                vec![String::new()]
            } else {
                vec!["-m addrtype --src-type LOCAL".to_owned()]
            };
            if let [from] = matches.as_slice() {
                self.share(NAT, chain, format!("{text} {to} {from} -j KUBE-MARK-MASQ").replace("  ", " "));
            }
        }
        for endpoint in &self.port.on_node {
            let (ip, port, protocol) = (endpoint.ip(), endpoint.port(), self.port.protocol.name());
            let text = comment(&format!("{} to itself", self.name));
            let rule = format!("{text} -s {ip} -d {ip} -m {protocol} -p {protocol} --dport {port} -j MASQUERADE");
            self.share(NAT, "KUBE-POSTROUTING", rule);
        }
    }

    /// A balancer's address that only some may use: what no rule lets through is dropped later.
    fn firewalled(&mut self, frontend: &Frontend, target: &str) {
        let chain = self.chain("KUBE-FW-");
        let to = self.destination(frontend);
        let text = comment(&format!("{} loadbalancer IP", self.name));
        let allowed = frontend.allowed.iter().map(|net| format!("{text} -s {net} -j {target}"));
        let mut rules = self.fragment.own.remove(&(NAT, chain.clone())).unwrap_or_default();
        rules.extend(allowed);
        rules.dedup();
        self.own(&chain, rules);
        self.share(NAT, "KUBE-SERVICES", format!("{text} {to} -j {chain}"));
        let dropped = comment(&format!("{} traffic not accepted by {chain}", self.name));
        self.share(FILTER, "KUBE-PROXY-FIREWALL", format!("{dropped} {to} -j DROP"));
    }

    fn pod_matches(&self, not: bool) -> Vec<String> {
        let not = if not { "! " } else { "" };
        match &self.around.pods {
            None => Vec::new(),
            Some(LocalTraffic::Networks(nets)) => nets.iter().map(|net| format!("{not}-s {net}")).collect(),
            // iptables writes `+` where others write `*`.
            Some(LocalTraffic::Interface(name)) => vec![format!("{not}-i {}", name.replace('*', "+"))],
        }
    }

    /// What is done with traffic from outside before it is balanced.
    fn external_chain(&mut self) {
        let name = self.chain("KUBE-EXT-");
        let cluster = self.balancing_chain(Policy::Cluster);
        let mut rules = Vec::new();
        if self.port.external == Policy::Cluster {
            let Some(cluster) = cluster else { return };
            let text = comment(&format!("masquerade traffic for {} external destinations", self.name));
            rules.push(format!("{text} -j KUBE-MARK-MASQ"));
            rules.push(format!("-j {cluster}"));
        } else {
            if let Some(cluster) = cluster {
                let text = comment(&format!("pod traffic for {} external destinations", self.name));
                rules.extend(self.pod_matches(false).into_iter().map(|pods| format!("{text} {pods} -j {cluster}")));
                let text = comment(&format!("masquerade LOCAL traffic for {} external destinations", self.name));
                rules.push(format!("{text} -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"));
                let text = comment(&format!("route LOCAL traffic for {} external destinations", self.name));
                rules.push(format!("{text} -m addrtype --src-type LOCAL -j {cluster}"));
            }
            rules.extend(self.balancing_chain(Policy::Local).map(|local| format!("-j {local}")));
            if rules.is_empty() {
                return;
            }
        }
        self.own(&name, rules);
    }

    /// The chain that leads to one of the policy's endpoints; `None` without any.
    fn balancing_chain(&mut self, policy: Policy) -> Option<String> {
        let endpoints = self.port.endpoints(policy).to_vec();
        if endpoints.is_empty() {
            return None;
        }
        let chain = self.chain(if policy == Policy::Local { "KUBE-SVL-" } else { "KUBE-SVC-" });
        let mut rules = Vec::new();
        if (policy == Policy::Local) == (self.port.internal == Policy::Local) {
            for frontend in self.port.frontends.iter().filter(|f| f.kind == FrontendKind::ClusterIp) {
                let (text, to) = (comment(&format!("{} cluster IP", self.name)), self.destination(frontend));
                if self.around.masquerade_all {
                    rules.push(format!("{text} {to} -j KUBE-MARK-MASQ"));
                } else {
                    let others = self.pod_matches(true);
                    // With several networks, only what is in none of them is from elsewhere.
                    if let [others] = others.as_slice() {
                        rules.push(format!("{text} {to} {others} -j KUBE-MARK-MASQ"));
                    }
                }
            }
        }
        let targets: Vec<(SocketAddr, String)> = endpoints.into_iter().map(|e| (e, self.endpoint_chain(e))).collect();
        if let Some(timeout) = self.port.affinity {
            for (endpoint, target) in &targets {
                let text = comment(&format!("{} -> {endpoint}", self.name));
                let seconds = timeout.as_secs();
                rules.push(format!("{text} -m recent --name {target} --rcheck --seconds {seconds} --reap -j {target}"));
            }
        }
        for (i, (endpoint, target)) in targets.iter().enumerate() {
            let text = comment(&format!("{} -> {endpoint}", self.name));
            rules.push(match targets.len() - i {
                1 => format!("{text} -j {target}"),
                #[expect(clippy::cast_precision_loss, reason = "a count of endpoints fits a float")]
                left => {
                    format!("{text} -m statistic --mode random --probability {:.10} -j {target}", 1.0 / left as f64)
                }
            });
        }
        self.own(&chain, rules);
        Some(chain)
    }

    fn endpoint_chain(&mut self, endpoint: SocketAddr) -> String {
        let chain = name_of("KUBE-SEP-", &format!("{}{endpoint}", self.identity));
        let (text, protocol) = (comment(&self.name), self.port.protocol.name());
        let remember = match self.port.affinity {
            Some(_) => format!(" -m recent --name {chain} --set"),
            None => String::new(),
        };
        let rules = vec![
            // A pod that is led back to itself must see the answer come from the Service.
            format!("{text} -s {} -j KUBE-MARK-MASQ", endpoint.ip()),
            format!("{text} -m {protocol} -p {protocol}{remember} -j DNAT --to-destination {endpoint}"),
        ];
        self.own(&chain, rules);
        chain
    }
}

/// The chains that are there without any Service. What Services share comes before `last`.
pub(crate) struct Skeleton {
    pub chains: Chains,
    pub last: Chains,
}

pub(crate) fn skeleton(around: &Surroundings, mark: u32) -> Skeleton {
    let mark = format!("{mark:#010x}");
    let id = |table, chain: &str| (table, chain.to_owned());
    let mut chains = Chains::new();
    for chain in ["KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS", "KUBE-PROXY-FIREWALL"] {
        chains.insert(id(FILTER, chain), Vec::new());
    }
    chains.insert(
        id(FILTER, "KUBE-FORWARD"),
        vec![
            "-m conntrack --ctstate INVALID -j DROP".to_owned(),
            format!("{} -m mark --mark {mark}/{mark} -j ACCEPT", comment("kubernetes forwarding rules")),
            format!(
                "{} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                comment("kubernetes forwarding conntrack rule")
            ),
        ],
    );
    for chain in ["KUBE-SERVICES", "KUBE-NODEPORTS"] {
        chains.insert(id(NAT, chain), Vec::new());
    }
    chains.insert(id(NAT, "KUBE-MARK-MASQ"), vec![format!("-j MARK --or-mark {mark}")]);
    chains.insert(id(NAT, "KUBE-POSTROUTING"), Vec::new());
    let postrouting = vec![
        format!("-m mark ! --mark {mark}/{mark} -j RETURN"),
        format!("-j MARK --xor-mark {mark}"),
        format!("{} -j MASQUERADE --random-fully", comment("kubernetes service traffic requiring SNAT")),
    ];
    if around.localhost {
        let text = comment("block incoming localnet connections");
        let unasked = "-d 127.0.0.0/8 ! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT";
        chains.insert(id(FILTER, LOCALHOST_GUARD), vec![format!("{text} {unasked} -j DROP")]);
    }
    let text = comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain");
    let but_localhost = match around.family {
        _ if around.localhost => "",
        Family::V4 => "! -d 127.0.0.0/8 ",
        Family::V6 => "! -d ::1/128 ",
    };
    let node_ports = match &around.node_port_ips {
        None => vec![format!("{text} -m addrtype --dst-type LOCAL {but_localhost}-j KUBE-NODEPORTS")],
        Some(ips) => ips.iter().map(|ip: &IpAddr| format!("{text} -d {ip} -j KUBE-NODEPORTS")).collect(),
    };
    Skeleton {
        chains,
        last: [(id(NAT, "KUBE-SERVICES"), node_ports), (id(NAT, "KUBE-POSTROUTING"), postrouting)].into(),
    }
}
