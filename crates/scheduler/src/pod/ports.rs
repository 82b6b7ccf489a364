//! Ports of the host that pods ask for.

use k8s_openapi::api::core::v1::PodSpec;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    pub port: i32,
    pub protocol: Protocol,
    /// `0.0.0.0` for every address.
    pub ip: Box<str>,
}

const EVERY_ADDRESS: &str = "0.0.0.0";

impl HostPort {
    /// Whether two pods with these ports cannot be on one node.
    #[must_use]
    pub fn conflicts_with(&self, other: &Self) -> bool {
        let shares_address = *self.ip == *other.ip || *self.ip == *EVERY_ADDRESS || *other.ip == *EVERY_ADDRESS;
        self.port == other.port && self.protocol == other.protocol && shares_address
    }
}

/// The ports of application containers and of sidecars, sorted.
pub(super) fn host_ports_of(spec: &PodSpec) -> Box<[HostPort]> {
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = sidecars.chain(&spec.containers).flat_map(|container| container.ports.iter().flatten());
    let mut ports: Vec<HostPort> = ports
        .filter_map(|port| {
            let protocol = match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            };
            let ip = port.host_ip.as_deref().filter(|ip| !ip.is_empty()).unwrap_or(EVERY_ADDRESS).into();
            port.host_port.filter(|port| *port > 0).map(|port| HostPort { port, protocol, ip })
        })
        .collect();
    ports.sort_unstable();
    ports.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(port: i32, protocol: Protocol, ip: &str) -> HostPort {
        HostPort { port, protocol, ip: ip.into() }
    }

    #[test]
    fn ports_conflict_on_a_shared_address() {
        use Protocol::{Tcp, Udp};
        for (a, b, want) in [
            (port(80, Tcp, "0.0.0.0"), port(80, Tcp, "127.0.0.1"), true),
            (port(80, Tcp, "127.0.0.1"), port(80, Tcp, "127.0.0.1"), true),
            (port(80, Tcp, "127.0.0.1"), port(80, Tcp, "127.0.0.2"), false),
            (port(80, Tcp, "0.0.0.0"), port(80, Udp, "0.0.0.0"), false),
            (port(80, Tcp, "0.0.0.0"), port(81, Tcp, "0.0.0.0"), false),
        ] {
            assert_eq!(a.conflicts_with(&b), want, "{a:?} {b:?}");
            assert_eq!(b.conflicts_with(&a), want, "{b:?} {a:?}");
        }
    }

    #[test]
    fn only_ports_of_the_host_count() {
        let spec: PodSpec = serde_json::from_value(serde_json::json!({
            "containers": [{"name": "a", "ports": [{"containerPort": 1}, {"containerPort": 2, "hostPort": 20}]}],
            "initContainers": [
                {"name": "i", "ports": [{"containerPort": 3, "hostPort": 30}]},
                {"name": "s", "restartPolicy": "Always", "ports": [{"containerPort": 4, "hostPort": 5, "hostIP": "::1"}]}],
        }))
        .unwrap();
        let ports = host_ports_of(&spec);
        assert_eq!(*ports, [port(5, Protocol::Tcp, "::1"), port(20, Protocol::Tcp, "0.0.0.0")]);
    }
}
