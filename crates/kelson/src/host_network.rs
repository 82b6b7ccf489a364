//! What a node writes to the host's network, outside of its data directory: noted before it is written, so that a reset can take
//! it back, and nothing else.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use component_base::program;
use nix::mount::{MntFlags, umount2};
use serde_json::Value;
use tokio::process::Command;

use crate::private_file;
use crate::up::{BRIDGE, Layout, cni_bin_dir};

/// Who writes to the host's network.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Writes {
    /// kube-proxy.
    Services,
    Pods,
}

impl Writes {
    fn file(self, layout: &Layout) -> PathBuf {
        layout.network().join(match self {
            Writes::Services => "services",
            Writes::Pods => "pods",
        })
    }
}

/// The network namespace that this process is in, as the kernel names it.
fn own_namespace() -> Result<String> {
    let link = fs::read_link("/proc/self/ns/net").context("cannot see which network namespace this is")?;
    Ok(link.to_string_lossy().into_owned())
}

/// Notes that this node is about to write to the host's network.
pub(crate) fn note(layout: &Layout, writes: Writes) -> Result<()> {
    private_file::create_dir(&layout.network())?;
    let file = writes.file(layout);
    fs::write(&file, own_namespace()?).with_context(|| format!("cannot write {}", file.display()))
}

/// Takes back what a node of this data directory wrote, after its processes have ended. Rules of another network namespace than
/// this one are left to go with it.
pub(crate) async fn take_back(layout: &Layout) -> Result<()> {
    let here = own_namespace()?;
    let wrote = |writes: Writes| fs::read_to_string(writes.file(layout)).is_ok_and(|namespace| namespace == here);
    // The first failure is told; what can be taken back all the same is.
    let mut taken = Ok(());
    for attachment in attachments(Path::new(CNI_RESULTS), &layout.ipam()) {
        taken = taken.and(attachment.remove(wrote(Writes::Pods)).await);
    }
    if wrote(Writes::Services) {
        taken = taken.and(kube_proxy::clean_up().await.map_err(Into::into));
    }
    if wrote(Writes::Pods) {
        taken = taken.and(pod_network::clean_up(BRIDGE).await.map_err(Into::into));
    }
    taken
}

/// Where libcni remembers what it has set up.
const CNI_RESULTS: &str = "/var/lib/cni/results";

/// A pod's attachment to the network, as libcni remembers it, also after a crash of the runtime.
#[derive(Debug, PartialEq, Eq)]
struct Attachment {
    container: String,
    interface: String,
    /// The file of the pod's network namespace.
    namespace: Option<PathBuf>,
    /// What each plugin is to be told, the last one first, as it is undone.
    plugins: Vec<Value>,
}

/// The attachments whose addresses are kept in this directory.
fn attachments(results: &Path, ipam: &Path) -> Vec<Attachment> {
    let files = fs::read_dir(results).into_iter().flatten().flatten();
    files.filter_map(|file| attachment(&fs::read(file.path()).ok()?, ipam)).collect()
}

/// Reads what libcni wrote; none if it is of somebody else's pod.
fn attachment(cached: &[u8], ipam: &Path) -> Option<Attachment> {
    let cached: Value = serde_json::from_slice(cached).ok()?;
    let list: Value = serde_json::from_slice(&STANDARD.decode(cached["config"].as_str()?).ok()?).ok()?;
    let plugins = list["plugins"].as_array()?;
    if !plugins.iter().any(|plugin| plugin["ipam"]["dataDir"].as_str().map(Path::new) == Some(ipam)) {
        return None;
    }
    let told = |plugin: &Value| {
        let mut told = plugin.clone();
        for (field, value) in
            [("cniVersion", &list["cniVersion"]), ("name", &list["name"]), ("prevResult", &cached["result"])]
        {
            told[field] = value.clone();
        }
        let capabilities = plugin["capabilities"].as_object().into_iter().flatten();
        for (capability, _) in capabilities.filter(|(_, wanted)| **wanted == true) {
            told["runtimeConfig"][capability] = cached["capabilityArgs"][capability].clone();
        }
        told
    };
    let namespace = cached["result"]["interfaces"].as_array().into_iter().flatten().find_map(|i| i["sandbox"].as_str());
    Some(Attachment {
        container: cached["containerId"].as_str()?.to_owned(),
        interface: cached["ifName"].as_str()?.to_owned(),
        namespace: namespace.map(PathBuf::from).filter(|path| is_made_by_cni(path)),
        plugins: plugins.iter().rev().map(told).collect(),
    })
}

fn is_made_by_cni(namespace: &Path) -> bool {
    let name = namespace.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("cni-") && namespace.parent().is_some_and(|parent| parent.ends_with("run/netns"))
}

impl Attachment {
    /// Lets the plugins undo what they did, where that can be `undone` here, and forgets the pod.
    async fn remove(self, undone: bool) -> Result<()> {
        let mut done = Ok(());
        if undone && let Some(dir) = cni_bin_dir() {
            for plugin in &self.plugins {
                done = done.and(self.undo(dir, plugin).await.context("cannot take a pod from the network"));
            }
        }
        if let Some(namespace) = &self.namespace {
            // A container of the same pod may have had it removed already.
            let _ = umount2(namespace, MntFlags::MNT_DETACH);
            let _ = fs::remove_file(namespace);
        }
        // Also the result of its loopback.
        let mark = format!("-{}-", self.container);
        for result in fs::read_dir(CNI_RESULTS).into_iter().flatten().flatten() {
            if result.file_name().to_string_lossy().contains(&mark) {
                let _ = fs::remove_file(result.path());
            }
        }
        done
    }

    /// Calls a plugin with `DEL` (CNI specification 0.4.0).
    async fn undo(&self, dir: &Path, plugin: &Value) -> Result<()> {
        let name = plugin["type"].as_str().unwrap_or_default();
        // Without its namespace the plugin still gives back the pod's address and the node's ports.
        let namespace = self.namespace.as_deref().filter(|path| path.exists()).unwrap_or(Path::new(""));
        let mut command = Command::new(dir.join(name));
        command.env("CNI_COMMAND", "DEL").env("CNI_CONTAINERID", &self.container).env("CNI_IFNAME", &self.interface);
        command.env("CNI_NETNS", namespace).env("CNI_PATH", dir);
        program::run_command(command, name, &plugin.to_string()).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cached(ipam: &str, sandbox: &str) -> Vec<u8> {
        let plugins = json!([{"type": "bridge", "ipam": {"type": "host-local", "dataDir": ipam}}, {"type": "portmap", "capabilities": {"portMappings": true}}]);
        let list = json!({"cniVersion": "0.4.0", "name": "kelson", "plugins": plugins}).to_string();
        let interfaces = json!([{"name": "cni0"}, {"name": "eth0", "sandbox": sandbox}]);
        let cached = json!({"kind": "cniCacheV1", "containerId": "1234", "ifName": "eth0", "networkName": "kelson",
            "capabilityArgs": {"portMappings": [{"hostPort": 8888}], "dns": {}},
            "config": STANDARD.encode(list), "result": {"interfaces": interfaces}});
        cached.to_string().into_bytes()
    }

    #[test]
    fn pods_of_the_data_directory_are_taken_off_the_network_and_no_others() {
        let ipam = Path::new("/data/cni/networks");
        let own = attachment(&cached("/data/cni/networks", "/var/run/netns/cni-1"), ipam).unwrap();
        assert_eq!((own.container.as_str(), own.interface.as_str()), ("1234", "eth0"));
        assert_eq!(own.namespace, Some("/var/run/netns/cni-1".into()));
        let told: Vec<_> = own.plugins.iter().map(|p| (p["type"].as_str(), p["name"].as_str())).collect();
        assert_eq!(told, [(Some("portmap"), Some("kelson")), (Some("bridge"), Some("kelson"))]);
        assert_eq!(own.plugins[0]["runtimeConfig"], json!({"portMappings": [{"hostPort": 8888}]}));
        assert_eq!(own.plugins[1]["runtimeConfig"], Value::Null);
        assert_eq!(attachment(&cached("/other/cni/networks", "/var/run/netns/cni-1"), ipam), None);
        assert_eq!(attachment(b"nonsense", ipam), None);
    }

    #[test]
    fn only_namespaces_that_cni_made_are_removed() {
        let ipam = Path::new("/data/cni/networks");
        for other in ["/proc/1/ns/net", "/run/netns/mine", "/elsewhere/cni-1"] {
            let attachment = attachment(&cached("/data/cni/networks", other), ipam).unwrap();
            assert_eq!(attachment.namespace, None, "{other}");
        }
    }

    #[tokio::test]
    async fn another_namespace_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().into());
        private_file::create_dir(&layout.network()).unwrap();
        for writes in [Writes::Services, Writes::Pods] {
            fs::write(writes.file(&layout), "net:[0]").unwrap();
        }
        // No right is needed for nothing.
        take_back(&layout).await.unwrap();
    }
}
