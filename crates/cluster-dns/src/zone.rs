//! What a name of the cluster's domain asks for. Pure.

use std::net::IpAddr;

/// The cluster's domain as labels, `["cluster", "local"]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Domain(Vec<String>);

/// A question about the cluster, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// The domain itself.
    Apex,
    /// A name that has others below it (`svc`, a namespace): it exists and has no records.
    Inner,
    /// `dns-version`.
    Version,
    /// `ns.dns`, which answers for the domain.
    NameServer,
    Service {
        name: String,
        namespace: String,
    },
    /// `_port._protocol.service.namespace.svc`
    Port {
        port: String,
        protocol: String,
        name: String,
        namespace: String,
    },
    /// `hostname.service.namespace.svc`
    Endpoint {
        hostname: String,
        name: String,
        namespace: String,
    },
    /// `10-244-0-7.namespace.pod`
    Pod {
        address: IpAddr,
    },
    Unknown,
}

impl Domain {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let labels: Vec<String> = text.trim_end_matches('.').split('.').map(str::to_ascii_lowercase).collect();
        let good =
            |l: &String| !l.is_empty() && l.len() <= 63 && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        labels.iter().all(good).then_some(Domain(labels))
    }

    /// The name with a dot at its end.
    pub(crate) fn fqdn(&self) -> String {
        format!("{}.", self.0.join("."))
    }

    /// What `labels` (lower case, most specific first) ask for; `None` when the name is not below the domain.
    pub(crate) fn subject(&self, labels: &[String]) -> Option<Subject> {
        let below = labels.len().checked_sub(self.0.len())?;
        if labels[below..] != self.0 {
            return None;
        }
        let text = |s: &String| s.clone();
        Some(match &labels[..below] {
            [] => Subject::Apex,
            [one] => match one.as_str() {
                "svc" | "pod" | "dns" => Subject::Inner,
                "dns-version" => Subject::Version,
                _ => Subject::Unknown,
            },
            [ns, dns] if ns == "ns" && dns == "dns" => Subject::NameServer,
            [_, kind] if kind == "svc" || kind == "pod" => Subject::Inner,
            [name, namespace, svc] if svc == "svc" => Subject::Service { name: text(name), namespace: text(namespace) },
            [dashed, _, pod] if pod == "pod" => {
                address_of_dashed(dashed).map_or(Subject::Unknown, |address| Subject::Pod { address })
            }
            [hostname, name, namespace, svc] if svc == "svc" && !hostname.starts_with('_') => {
                Subject::Endpoint { hostname: text(hostname), name: text(name), namespace: text(namespace) }
            }
            [port, protocol, name, namespace, svc] if svc == "svc" => {
                match (port.strip_prefix('_'), protocol.strip_prefix('_')) {
                    (Some(port), Some(protocol)) => Subject::Port {
                        port: port.to_owned(),
                        protocol: protocol.to_owned(),
                        name: text(name),
                        namespace: text(namespace),
                    },
                    _ => Subject::Unknown,
                }
            }
            _ => Subject::Unknown,
        })
    }
}

/// `10-244-0-7` or `2001-db8--1`, as the specification writes a pod's address.
fn address_of_dashed(text: &str) -> Option<IpAddr> {
    text.replace('-', ".").parse().ok().or_else(|| text.replace('-', ":").parse().ok())
}

/// The label for an address that has no hostname.
pub(crate) fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// The address that a name of `in-addr.arpa` or `ip6.arpa` asks about.
pub(crate) fn reverse_address(labels: &[String]) -> Option<IpAddr> {
    let (parts, suffix) = labels.split_at_checked(labels.len().checked_sub(2)?)?;
    match (suffix[0].as_str(), suffix[1].as_str(), parts.len()) {
        ("in-addr", "arpa", 4) => {
            let octets: Vec<u8> = parts.iter().rev().map(|p| p.parse().ok()).collect::<Option<_>>()?;
            Some(IpAddr::from(<[u8; 4]>::try_from(octets).ok()?))
        }
        ("ip6", "arpa", 32) => {
            let mut nibbles = parts.iter().rev().map(|p| u128::from_str_radix(p, 16).ok().filter(|n| *n < 16));
            let bits = nibbles.try_fold(0, |bits, nibble| Some(bits << 4 | nibble?))?;
            Some(IpAddr::from(bits.to_be_bytes()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(name: &str) -> Vec<String> {
        name.split('.').map(str::to_owned).collect()
    }

    #[track_caller]
    fn check(name: &str, want: Option<Subject>) {
        assert_eq!(Domain::parse("cluster.local").unwrap().subject(&labels(name)), want, "{name}");
    }

    #[test]
    fn names_are_taken_apart_as_the_specification_says() {
        let (name, namespace) = ("web".to_owned(), "prod".to_owned());
        check(
            "web.prod.svc.cluster.local",
            Some(Subject::Service { name: name.clone(), namespace: namespace.clone() }),
        );
        check(
            "_http._tcp.web.prod.svc.cluster.local",
            Some(Subject::Port {
                port: "http".into(),
                protocol: "tcp".into(),
                name: name.clone(),
                namespace: namespace.clone(),
            }),
        );
        check("db-0.web.prod.svc.cluster.local", Some(Subject::Endpoint { hostname: "db-0".into(), name, namespace }));
        check("10-244-0-7.prod.pod.cluster.local", Some(Subject::Pod { address: [10, 244, 0, 7].into() }));
        check("dns-version.cluster.local", Some(Subject::Version));
        check("ns.dns.cluster.local", Some(Subject::NameServer));
        check("dns.cluster.local", Some(Subject::Inner));
        check("prod.svc.cluster.local", Some(Subject::Inner));
        check("svc.cluster.local", Some(Subject::Inner));
        check("cluster.local", Some(Subject::Apex));
        check("web.prod.cluster.local", Some(Subject::Unknown));
        check("example.com", None);
        check("local", None);
    }

    #[test]
    fn reverse_names_give_addresses() {
        assert_eq!(reverse_address(&labels("7.0.244.10.in-addr.arpa")), Some([10, 244, 0, 7].into()));
        let six = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa";
        assert_eq!(reverse_address(&labels(six)), Some("2001:db8::1".parse().unwrap()));
        assert_eq!(reverse_address(&labels("0.244.10.in-addr.arpa")), None);
        assert_eq!(reverse_address(&labels("300.0.244.10.in-addr.arpa")), None);
    }

    #[test]
    fn addresses_go_there_and_back() {
        for text in ["10.244.0.7", "2001:db8::1"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(address_of_dashed(&dashed(address)), Some(address));
        }
    }
}
