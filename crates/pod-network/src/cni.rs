//! The CNI configuration of this node: a bridge with addresses from the node's pod CIDRs, host ports through `portmap`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde_json::json;

use crate::Config;

const FILE: &str = "10-kelson.conflist";

/// The conflist (CNI specification 0.4.0, which containerd 1.6 and Debian's plugins speak).
pub(crate) fn conflist(config: &Config, pod_cidrs: &[IpNet], mtu: Option<u32>) -> String {
    let ranges: Vec<_> = pod_cidrs.iter().map(|cidr| json!([{"subnet": cidr.trunc().to_string()}])).collect();
    let defaults = pod_cidrs.iter().map(|cidr| if cidr.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" });
    let routes: Vec<_> = defaults.map(|dst| json!({"dst": dst})).collect();
    let mut bridge = json!({
        "type": "bridge",
        "bridge": config.bridge,
        "isGateway": true,
        "ipMasq": false,
        "hairpinMode": true,
        "ipam": {"type": "host-local", "dataDir": config.ipam_dir, "ranges": ranges, "routes": routes},
    });
    if let Some(mtu) = mtu {
        bridge["mtu"] = json!(mtu);
    }
    let list = json!({
        "cniVersion": "0.4.0",
        "name": "kelson",
        "plugins": [bridge, {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}],
    });
    format!("{list:#}\n")
}

/// Writes the configuration if it differs from what is there, so that the runtime does not reload it for nothing.
pub(crate) fn write_conflist(dir: &Path, content: &str) -> io::Result<()> {
    let path: PathBuf = dir.join(FILE);
    if std::fs::read_to_string(&path).is_ok_and(|now| now == content) {
        return Ok(());
    }
    std::fs::create_dir_all(dir)?;
    // A leading dot and another ending: the runtime does not take the half-written file for a configuration.
    let new = dir.join(format!(".{FILE}.new"));
    let mut file = std::fs::File::create(&new)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dual_stack_node_has_a_range_and_a_default_route_of_each_family() {
        let config = Config {
            node_name: "a".into(),
            cni_conf_dir: "/x".into(),
            ipam_dir: "/y".into(),
            cluster_cidrs: Vec::new(),
            bridge: "cni0".into(),
            mtu: None,
            backend: crate::Backend::HostGateway,
        };
        let text = conflist(&config, &["10.244.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()], Some(1450));
        let list: serde_json::Value = serde_json::from_str(&text).unwrap();
        let ipam = &list["plugins"][0]["ipam"];
        assert_eq!(ipam["ranges"], json!([[{"subnet": "10.244.0.0/24"}], [{"subnet": "fd00::/64"}]]));
        assert_eq!(ipam["routes"], json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]));
        assert_eq!(ipam["dataDir"], json!("/y"));
        assert_eq!(list["plugins"][0]["mtu"], json!(1450));
    }

    #[test]
    fn an_equal_configuration_is_not_written_again() {
        let dir = tempfile::tempdir().unwrap();
        write_conflist(dir.path(), "one").unwrap();
        let before = std::fs::metadata(dir.path().join(FILE)).unwrap().modified().unwrap();
        write_conflist(dir.path(), "one").unwrap();
        assert_eq!(std::fs::metadata(dir.path().join(FILE)).unwrap().modified().unwrap(), before);
        write_conflist(dir.path(), "two").unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join(FILE)).unwrap(), "two");
    }
}
