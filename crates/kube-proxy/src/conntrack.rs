//! UDP has no connections that end: the kernel's memory of flows to an endpoint that is gone would swallow packets. Also the
//! size of that memory, and how long it lasts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::model::{Family, Frontend, PortRules, Protocol, ServiceRules};
use crate::proxier::Change;

/// Flows to forget.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stale {
    /// Those that were sent to an endpoint which is gone.
    Endpoint {
        service: IpAddr,
        endpoint: IpAddr,
    },
    /// Those to an address that had no endpoint until now.
    Service {
        service: IpAddr,
        port: u16,
    },
    NodePortEndpoint {
        family: Family,
        port: u16,
        endpoint: IpAddr,
    },
    NodePort {
        family: Family,
        port: u16,
    },
}

impl Stale {
    fn family(&self) -> Family {
        match self {
            Stale::Endpoint { service, .. } | Stale::Service { service, .. } => Family::of(*service),
            Stale::NodePortEndpoint { family, .. } | Stale::NodePort { family, .. } => *family,
        }
    }
}

/// Forgets what the changes made stale. Gives the number of flows that there were of each family.
pub(crate) async fn forget_stale(changes: &[Change<'_>]) -> BTreeMap<Family, u64> {
    let mut forgotten = BTreeMap::new();
    for stale in changes.iter().flat_map(|change| plan(change.old, change.new)).collect::<BTreeSet<_>>() {
        let mut command = Command::new("conntrack");
        command.args(arguments(&stale)).stdout(Stdio::piped()).stderr(Stdio::null());
        match command.output().await {
            // Exit code 1 also means that there was nothing to forget; each that is forgotten is a line.
            Ok(output) => *forgotten.entry(stale.family()).or_default() += lines_in(&output.stdout),
            Err(error) => {
                tracing::warn!(%error, "stale UDP flows could not be forgotten");
                break;
            }
        }
    }
    forgotten
}

fn lines_in(text: &[u8]) -> u64 {
    text.iter().filter(|c| **c == b'\n').count() as u64
}

fn arguments(stale: &Stale) -> Vec<String> {
    let words = match stale {
        Stale::Endpoint { service, endpoint } => {
            vec!["--orig-dst".into(), service.to_string(), "--reply-src".into(), endpoint.to_string()]
        }
        Stale::Service { service, port } => {
            vec!["--orig-dst".into(), service.to_string(), "--orig-port-dst".into(), port.to_string()]
        }
        Stale::NodePortEndpoint { port, endpoint, .. } => {
            vec!["--orig-port-dst".into(), port.to_string(), "--reply-src".into(), endpoint.to_string()]
        }
        Stale::NodePort { port, .. } => vec!["--orig-port-dst".into(), port.to_string()],
    };
    let family = if stale.family() == Family::V4 { "ipv4" } else { "ipv6" };
    ["-D", "-p", "udp", "-f", family].into_iter().map(str::to_owned).chain(words).collect()
}

fn plan(old: Option<&ServiceRules>, new: Option<&ServiceRules>) -> Vec<Stale> {
    let ports = |rules: Option<&'_ ServiceRules>| {
        let all = rules.map(|rules| rules.ports.clone()).unwrap_or_default();
        all.into_iter().filter(|p| p.protocol == Protocol::Udp).collect::<Vec<_>>()
    };
    let (old, new) = (ports(old), ports(new));
    let mut stale = Vec::new();
    for before in &old {
        let now = counterpart(before, &new);
        let gone = before
            .cluster
            .iter()
            .chain(&before.local)
            .filter(|e| now.is_none_or(|now| !now.cluster.contains(e) && !now.local.contains(e)));
        for endpoint in gone {
            stale.extend(before.frontends.iter().map(|frontend| to_endpoint(before.family, frontend, endpoint.ip())));
        }
    }
    for now in &new {
        let had_none = counterpart(now, &old).is_none_or(|before| !before.has_any);
        if had_none && now.has_any {
            stale.extend(now.frontends.iter().map(|frontend| match frontend.address {
                Some(service) => Stale::Service { service, port: frontend.port },
                None => Stale::NodePort { family: now.family, port: frontend.port },
            }));
        }
    }
    stale
}

fn to_endpoint(family: Family, frontend: &Frontend, endpoint: IpAddr) -> Stale {
    match frontend.address {
        Some(service) => Stale::Endpoint { service, endpoint },
        None => Stale::NodePortEndpoint { family, port: frontend.port, endpoint },
    }
}

fn counterpart<'a>(port: &PortRules, all: &'a [PortRules]) -> Option<&'a PortRules> {
    all.iter().find(|p| p.family == port.family && p.port_name == port.port_name)
}

/// How many connections the kernel keeps in mind, and how long; `None` leaves the host's setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub max_per_core: u32,
    pub min: u32,
    pub tcp_established_timeout: Option<Duration>,
    pub tcp_close_wait_timeout: Option<Duration>,
    pub tcp_be_liberal: bool,
    pub udp_timeout: Option<Duration>,
    pub udp_stream_timeout: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_per_core: 32 * 1024,
            min: 128 * 1024,
            tcp_established_timeout: Some(Duration::from_secs(24 * 3600)),
            tcp_close_wait_timeout: Some(Duration::from_secs(3600)),
            tcp_be_liberal: false,
            udp_timeout: None,
            udp_stream_timeout: None,
        }
    }
}

/// A kernel parameter below `net/netfilter`, its value, and whether a greater one may stay.
type Parameter = (&'static str, u64, bool);

fn parameters(limits: &Limits, cores: u32) -> Vec<Parameter> {
    let mut all = Vec::new();
    if limits.max_per_core > 0 {
        let max = limits.max_per_core.saturating_mul(cores).max(limits.min);
        all.push(("nf_conntrack_max", u64::from(max), true));
    }
    let times = [
        ("nf_conntrack_tcp_timeout_established", limits.tcp_established_timeout),
        ("nf_conntrack_tcp_timeout_close_wait", limits.tcp_close_wait_timeout),
        ("nf_conntrack_udp_timeout", limits.udp_timeout),
        ("nf_conntrack_udp_timeout_stream", limits.udp_stream_timeout),
    ];
    all.extend(times.iter().filter_map(|(name, time)| Some((*name, time.filter(|t| !t.is_zero())?.as_secs(), false))));
    if limits.tcp_be_liberal {
        all.push(("nf_conntrack_tcp_be_liberal", 1, false));
    }
    all
}

/// Gives the kernel its limits. In a container or another network namespace it may not take them.
pub(crate) fn set_limits(limits: &Limits) {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    for (name, value, may_be_more) in parameters(limits, u32::try_from(cores).unwrap_or(1)) {
        let file = Path::new("/proc/sys/net/netfilter").join(name);
        let now = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse::<u64>().ok());
        if now == Some(value) || (may_be_more && now.is_some_and(|now| now > value)) {
            continue;
        }
        if let Err(error) = std::fs::write(&file, value.to_string()) {
            tracing::info!(name, value, %error, "a limit of connection tracking stays as it is");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture;
    use serde_json::{Value, json};

    fn udp(endpoints: &Value) -> ServiceRules {
        let spec = json!({"clusterIP": "10.96.0.9", "ports": [{"port": 53, "protocol": "UDP", "nodePort": 30053}]});
        fixture::rules(spec, endpoints).unwrap()
    }

    #[test]
    fn flows_to_what_is_gone_are_forgotten() {
        let (none, one) = (udp(&json!([])), udp(&json!([{"addresses": ["10.244.0.2"]}])));
        let (service, endpoint) = ([10, 96, 0, 9].into(), [10, 244, 0, 2].into());
        let family = Family::V4;
        let gone = [Stale::Endpoint { service, endpoint }, Stale::NodePortEndpoint { family, port: 30053, endpoint }];
        assert_eq!(plan(Some(&one), Some(&none)), gone);
        assert_eq!(plan(Some(&one), None), gone);
        let came = [Stale::Service { service, port: 53 }, Stale::NodePort { family, port: 30053 }];
        assert_eq!(plan(Some(&none), Some(&one)), came);
        assert!(plan(Some(&one), Some(&one)).is_empty());
    }

    #[test]
    fn limits_grow_with_the_cores_and_never_shrink() {
        let of = |cores| parameters(&Limits::default(), cores)[0];
        assert_eq!(of(1), ("nf_conntrack_max", 131_072, true));
        assert_eq!(of(8), ("nf_conntrack_max", 262_144, true));
        let off = Limits { max_per_core: 0, tcp_established_timeout: Some(Duration::ZERO), ..Limits::default() };
        assert_eq!(parameters(&off, 8), [("nf_conntrack_tcp_timeout_close_wait", 3600, false)]);
    }
}
