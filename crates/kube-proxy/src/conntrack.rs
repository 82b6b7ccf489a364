//! UDP has no connections that end: the kernel's memory of flows to an endpoint that is gone would swallow packets.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Stdio;

use tokio::process::Command;

use crate::model::{Model, PortModel, Protocol};

/// One `conntrack -D` to run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stale {
    /// Flows that were sent to an endpoint which is gone.
    Endpoint { service: IpAddr, endpoint: IpAddr },
    /// Flows to an address that had no endpoint until now.
    Service { service: IpAddr, port: u16 },
}

pub(crate) async fn forget_stale(before: &Model, now: &Model) {
    for stale in plan(before, now) {
        let args = arguments(&stale);
        let done = Command::new("conntrack").args(&args).stdout(Stdio::null()).stderr(Stdio::null()).status().await;
        // Exit code 1 also means that there was nothing to forget.
        if let Err(error) = done {
            tracing::warn!(%error, "stale UDP flows could not be forgotten");
            return;
        }
    }
}

fn arguments(stale: &Stale) -> Vec<String> {
    let family = |ip: &IpAddr| if ip.is_ipv4() { "ipv4" } else { "ipv6" };
    let words: Vec<String> = match stale {
        Stale::Endpoint { service, endpoint } => {
            vec![
                "-f".into(),
                family(service).into(),
                "--orig-dst".into(),
                service.to_string(),
                "--dst-nat".into(),
                endpoint.to_string(),
            ]
        }
        Stale::Service { service, port } => {
            vec![
                "-f".into(),
                family(service).into(),
                "--orig-dst".into(),
                service.to_string(),
                "--orig-port-dst".into(),
                port.to_string(),
            ]
        }
    };
    ["-D", "-p", "udp"].into_iter().map(str::to_owned).chain(words).collect()
}

fn plan(before: &Model, now: &Model) -> BTreeSet<Stale> {
    let mut stale = BTreeSet::new();
    for (name, old) in before.ports.iter().filter(|(_, p)| p.protocol == Protocol::Udp) {
        let new = now.ports.get(name);
        for endpoint in old.endpoints.iter().filter(|e| new.is_none_or(|n| !n.endpoints.contains(e))) {
            for service in services(old).filter(|s| s.is_ipv4() == endpoint.is_ipv4()) {
                stale.insert(Stale::Endpoint { service, endpoint: endpoint.ip() });
            }
        }
        if let Some(new) = new.filter(|n| old.endpoints.is_empty() && !n.endpoints.is_empty()) {
            stale.extend(services(new).map(|service| Stale::Service { service, port: new.port }));
        }
    }
    stale
}

fn services(port: &PortModel) -> impl Iterator<Item = IpAddr> + '_ {
    port.cluster_ips.iter().chain(&port.external_ips).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture::model;
    use serde_json::json;

    fn udp(endpoints: serde_json::Value) -> Model {
        model(json!({"clusterIP": "10.96.0.9", "ports": [{"port": 53, "protocol": "UDP"}]}), endpoints)
    }

    #[test]
    fn flows_to_what_is_gone_are_forgotten() {
        let one = udp(json!([{"addresses": ["10.244.0.2"]}]));
        let gone = plan(&one, &udp(json!([])));
        let (service, endpoint) = ([10, 96, 0, 9].into(), [10, 244, 0, 2].into());
        assert_eq!(gone.into_iter().collect::<Vec<_>>(), [Stale::Endpoint { service, endpoint }]);
        let came = plan(&udp(json!([])), &one);
        assert_eq!(came.into_iter().collect::<Vec<_>>(), [Stale::Service { service, port: 53 }]);
        assert!(plan(&one, &one).is_empty());
    }
}
