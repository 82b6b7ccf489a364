//! What a pod's resolv.conf says, for every dnsPolicy and dnsConfig. Pure.

use k8s_cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::Pod;

pub(crate) fn config_of(pod: &Pod, cluster_dns: &[String], domain: &str, host_resolv_conf: &str) -> DnsConfig {
    let spec = pod.spec.clone().unwrap_or_default();
    let host_network = spec.host_network == Some(true);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let host = || parse(host_resolv_conf);
    let mut config = match policy {
        "None" => DnsConfig::default(),
        "Default" => host(),
        "ClusterFirst" if host_network => host(),
        _ if cluster_dns.is_empty() => host(),
        _ => {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
            searches.extend(host().searches.into_iter().filter(|s| s != "."));
            DnsConfig { servers: cluster_dns.to_vec(), searches, options: vec!["ndots:5".to_owned()] }
        }
    };
    if let Some(own) = spec.dns_config {
        config.servers.extend(own.nameservers.unwrap_or_default());
        config.searches.extend(own.searches.unwrap_or_default());
        for option in own.options.unwrap_or_default() {
            let name = option.name.unwrap_or_default();
            config.options.retain(|o| o.split(':').next() != Some(name.as_str()));
            config.options.push(option.value.map_or(name.clone(), |value| format!("{name}:{value}")));
        }
    }
    let mut seen = Vec::new();
    for list in [&mut config.servers, &mut config.searches] {
        seen.clear();
        list.retain(|item| {
            !seen.contains(item) && {
                seen.push(item.clone());
                true
            }
        });
    }
    config.servers.truncate(3); // the resolver library reads no more
    config
}

fn parse(resolv_conf: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in resolv_conf.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => config.servers.extend(words.next().map(str::to_owned)),
            Some("search") => config.searches = words.map(str::to_owned).collect(),
            Some("options") => config.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(spec: serde_json::Value, servers: &[&str], searches: &[&str], options: &[&str]) {
        let pod: Pod =
            serde_json::from_value(serde_json::json!({"metadata": {"namespace": "prod"}, "spec": spec})).unwrap();
        let host = "# x\nnameserver 192.0.2.53\nsearch example.com\noptions edns0\n";
        let got = config_of(&pod, &["10.96.0.10".to_owned()], "cluster.local", host);
        assert_eq!((got.servers, got.searches, got.options), (owned(servers), owned(searches), owned(options)));
    }

    fn owned(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_policy_has_its_resolvers() {
        let cluster = ["prod.svc.cluster.local", "svc.cluster.local", "cluster.local", "example.com"];
        check(serde_json::json!({"containers": []}), &["10.96.0.10"], &cluster, &["ndots:5"]);
        let host_net = serde_json::json!({"containers": [], "hostNetwork": true});
        check(host_net, &["192.0.2.53"], &["example.com"], &["edns0"]);
        let with_host_net =
            serde_json::json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"});
        check(with_host_net, &["10.96.0.10"], &cluster, &["ndots:5"]);
        check(
            serde_json::json!({"containers": [], "dnsPolicy": "Default"}),
            &["192.0.2.53"],
            &["example.com"],
            &["edns0"],
        );
        let none = serde_json::json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.9"],
            "searches": ["a.example"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}});
        check(none, &["192.0.2.9"], &["a.example"], &["ndots:2", "edns0"]);
    }
}
