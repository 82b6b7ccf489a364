//! What the subsystems of one kubelet share: the facts of its node and the handles to others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use client::events::Recorder;
use client::informer::SharedInformer;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::node::v1::RuntimeClass;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::cpus::Cpus;
use crate::csi::Drivers;
use crate::devices::Devices;
use crate::dra::Claims;
use crate::eviction::Pressures;
use crate::images::Images;
use crate::materials::Tokens;
use crate::memory::Memory;
use crate::pod::admission::Dooms;
use crate::pod::container_config::{self, Host};
use crate::probes::Counts;
use crate::resources::Amounts;
use crate::runtime::{Runtime, RuntimeError};
use crate::shutdown::ShuttingDown;
use crate::statuses::Statuses;
use crate::swap::Swap;
use crate::topology::Topology;
use crate::volumes::PodCertificates;

/// The volumes that can be attached and that pods of this node have or are about to have, as the Node tells.
#[derive(Default)]
pub(crate) struct VolumesInUse {
    names: Mutex<BTreeSet<String>>,
    changed: Notify,
}

impl VolumesInUse {
    pub(crate) fn begin(&self, name: &str) {
        if self.names.lock().insert(name.to_owned()) {
            self.changed.notify_one();
        }
    }

    pub(crate) fn end(&self, name: &str) {
        if self.names.lock().remove(name) {
            self.changed.notify_one();
        }
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.names.lock().iter().cloned().collect()
    }

    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// The pods that this node has taken and that have not ended, by uid.
#[derive(Default)]
pub(crate) struct Admitted(Mutex<BTreeMap<String, Arc<Pod>>>);

impl Admitted {
    pub(crate) fn set(&self, pods: BTreeMap<String, Arc<Pod>>) {
        *self.0.lock() = pods;
    }

    pub(crate) fn others(&self, uid: &str) -> Vec<Arc<Pod>> {
        self.0.lock().iter().filter(|(u, _)| *u != uid).map(|(_, p)| Arc::clone(p)).collect()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Pod>> {
        self.0.lock().values().cloned().collect()
    }
}

pub(crate) struct Context {
    pub node_name: String,
    pub host_ips: Vec<String>,
    pub root: PathBuf,
    pub log_root: PathBuf,
    /// Where links for log collectors are made; none in tests.
    pub log_links: Option<PathBuf>,
    pub cluster_domain: String,
    pub cluster_dns: Vec<String>,
    pub resolv_conf: String,
    /// Below which pods have cgroups of their own; none: the runtime puts their containers where it likes.
    pub cgroup_root: Option<String>,
    pub node_memory: i64,
    pub swap: Swap,
    /// What pods can be given: the node's capacity without what is reserved.
    pub allocatable: Amounts,
    pub max_pods: usize,
    /// Processes that one pod may have; not positive: as many as it likes.
    pub pod_pids_limit: i64,
    /// Pods without a seccomp profile of their own get the runtime's.
    pub seccomp_default: bool,
    /// Kernel parameters that pods may set although they are not safe for everybody.
    pub unsafe_sysctls: Vec<String>,
    pub pressures: Pressures,
    /// Told when a pressure or a shutdown came or went: the Node says so at once.
    pub pressures_changed: Notify,
    pub shutting_down: ShuttingDown,
    pub probe_counts: Arc<Counts>,
    pub dooms: Dooms,
    pub devices: Arc<Devices>,
    pub cpus: Cpus,
    pub memory: Memory,
    pub topology: Topology,
    pub drivers: Drivers,
    pub claims: Claims,
    pub volumes_in_use: VolumesInUse,
    pub admitted: Admitted,
    pub node_informer: Option<SharedInformer<Node>>,
    /// `None` when the kubelet runs static pods alone.
    pub client: Option<kube::Client>,
    pub runtime: Runtime,
    pub events: Recorder,
    pub images: Images,
    pub tokens: Tokens,
    pub pod_certificates: PodCertificates,
    pub statuses: Statuses,
    pub service_informer: Option<SharedInformer<Service>>,
    pub runtime_classes: Option<SharedInformer<RuntimeClass>>,
}

/// The first address of each family: a pod's first is of the family of its node's first, whatever the runtime names first.
fn one_of_each_family(mut ips: Vec<String>, of_node: Option<&String>) -> Vec<String> {
    let is_v6 = |ip: &String| ip.contains(':');
    let first = of_node.is_some_and(is_v6);
    ips.sort_by_key(|ip| is_v6(ip) != first);
    ips.dedup_by_key(|ip| is_v6(ip));
    ips
}

impl Context {
    pub(crate) fn services(&self) -> Vec<Arc<Service>> {
        self.service_informer.as_ref().map(|i| i.lister().list()).unwrap_or_default()
    }

    pub(crate) fn services_synced(&self) -> bool {
        self.service_informer.as_ref().is_none_or(SharedInformer::has_synced)
    }

    /// The addresses of a pod with this sandbox, at most one of each family.
    pub(crate) async fn pod_ips(&self, pod: &Pod, sandbox: &str) -> Result<Vec<String>, RuntimeError> {
        if container_config::is_host_network(pod) {
            return Ok(self.host_ips.clone());
        }
        Ok(one_of_each_family(self.runtime.sandbox_ips(sandbox).await?, self.host_ips.first()))
    }

    /// This node's object, as the API has it.
    pub(crate) fn node(&self) -> Option<Arc<Node>> {
        self.node_informer.as_ref()?.lister().get(&client::ObjectKey::cluster(&self.node_name))
    }

    /// What pods can be given now: the node's own resources, its devices, and what others have put into its Node.
    pub(crate) fn allocatable_now(&self) -> Amounts {
        let node = self.node();
        let told = node.as_ref().and_then(|n| n.status.as_ref()).and_then(|s| s.allocatable.as_ref());
        let mut all = crate::resources::amounts(told);
        all.extend(self.devices.amounts().1);
        all.extend(self.allocatable.clone());
        all
    }

    pub(crate) fn allocatable_of(&self, resource: &str) -> i64 {
        self.allocatable.get(resource).copied().unwrap_or_default()
    }

    /// The runtime's handler of a RuntimeClass; the class' own name where the class is not known yet.
    pub(crate) fn handler_of(&self, class: &str) -> String {
        let known = self.runtime_classes.as_ref().and_then(|i| i.lister().get(&client::ObjectKey::cluster(class)));
        known.map_or_else(|| class.to_owned(), |c| c.handler.clone())
    }

    pub(crate) fn host(&self, pod: &Pod) -> Host {
        Host {
            log_root: self.log_root.clone(),
            cgroup_root: self.cgroup_root.clone(),
            node_memory: self.node_memory,
            swap: self.swap,
            seccomp_default: self.seccomp_default,
            cluster_domain: self.cluster_domain.clone(),
            node_name: self.node_name.clone(),
            dns: crate::dns::config_of(pod, &self.cluster_dns, &self.cluster_domain, &self.resolv_conf),
        }
    }

    pub(crate) fn remove_log_links(&self, pod: &Pod) {
        let Some(dir) = &self.log_links else { return };
        let meta = &pod.metadata;
        let (name, namespace) =
            (meta.name.as_deref().unwrap_or_default(), meta.namespace.as_deref().unwrap_or_default());
        let prefix = format!("{name}_{namespace}_");
        for entry in std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
            let dangling = std::fs::metadata(entry.path()).is_err();
            if entry.file_name().to_string_lossy().starts_with(&prefix) && dangling {
                let _ = std::fs::remove_file(entry.path()); // a link that stays hurts nobody
            }
        }
    }
}

#[cfg(test)]
impl Context {
    /// A node without an apiserver, whose container runtime does not answer.
    pub(crate) fn alone(root: &std::path::Path) -> Self {
        use crate::memory::MemoryPolicy;
        use crate::numa::Nodes;
        use crate::topology::TopologyPolicy;
        let runtime = Runtime::connect("unix:///nowhere").unwrap();
        Context {
            node_name: "n1".to_owned(),
            host_ips: Vec::new(),
            root: root.to_owned(),
            log_root: root.join("logs"),
            log_links: None,
            cluster_domain: String::new(),
            cluster_dns: Vec::new(),
            resolv_conf: String::new(),
            cgroup_root: None,
            node_memory: 0,
            swap: Swap::default(),
            allocatable: Amounts::new(),
            max_pods: 10,
            pod_pids_limit: 0,
            seccomp_default: false,
            unsafe_sysctls: Vec::new(),
            pressures: Pressures::default(),
            pressures_changed: Notify::new(),
            shutting_down: ShuttingDown::default(),
            probe_counts: Arc::default(),
            dooms: Dooms::default(),
            devices: Arc::new(Devices::new(root)),
            cpus: Cpus::new(crate::cpus::CpuPolicy::default(), &Nodes::new(), root).unwrap(),
            memory: Memory::new(&MemoryPolicy::default(), &Nodes::new(), &Amounts::new(), root).unwrap(),
            topology: Topology::new(TopologyPolicy::default(), Nodes::new()).unwrap(),
            drivers: Drivers::default(),
            claims: Claims::new(root).unwrap(),
            volumes_in_use: VolumesInUse::default(),
            admitted: Admitted::default(),
            node_informer: None,
            client: None,
            images: Images::new(runtime.clone(), 1, crate::credential_provider::Providers::default()),
            runtime,
            events: Recorder::collecting(8).0,
            tokens: Tokens::default(),
            pod_certificates: PodCertificates::default(),
            statuses: Statuses::default(),
            service_informer: None,
            runtime_classes: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_first_address_is_of_its_nodes_first_family() {
        let of = |ips: &[&str], node: &str| {
            one_of_each_family(ips.iter().map(|ip| (*ip).to_owned()).collect(), Some(&node.to_owned())).join(" ")
        };
        assert_eq!(of(&["10.244.0.2", "fd00::2"], "192.0.2.1"), "10.244.0.2 fd00::2");
        assert_eq!(of(&["10.244.0.2", "fd00::2"], "2001:db8::1"), "fd00::2 10.244.0.2");
        assert_eq!(of(&["10.244.0.2", "10.244.0.3"], "2001:db8::1"), "10.244.0.2");
    }
}
