//! The Node object of this machine: registration, status and heartbeat.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client::error::ApiError;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus, NodeSwapStatus, NodeSystemInfo, Taint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::context::Context;
use crate::runtime::Handler;

/// A changed status is written at the next look, an unchanged one every five minutes, the Lease every ten seconds.
const LOOK: Duration = Duration::from_secs(10);
const REPORT_ANYWAY: Duration = Duration::from_secs(300);
const LEASE_SECONDS: i32 = 40;

/// What this machine is.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub cpus: i64,
    pub memory_bytes: i64,
    pub swap_bytes: i64,
    /// Bytes in huge pages, by resource; part of the memory.
    pub huge_pages: BTreeMap<String, i64>,
    pub info: NodeSystemInfo,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let meminfo = read("/proc/meminfo");
        let kib = meminfo
            .lines()
            .find_map(|l| l.strip_prefix("MemTotal:")?.trim().trim_end_matches(" kB").parse::<i64>().ok());
        let release = read("/etc/os-release");
        let pretty = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux").trim_matches('"');
        let swap_bytes = crate::swap::capacity_of(&meminfo);
        let info = NodeSystemInfo {
            swap: (swap_bytes > 0).then_some(NodeSwapStatus { capacity: Some(swap_bytes) }),
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64".to_owned(),
                "aarch64" => "arm64".to_owned(),
                other => other.to_owned(),
            },
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            machine_id: read("/etc/machine-id"),
            system_uuid: read("/sys/class/dmi/id/product_uuid"),
            kernel_version: read("/proc/sys/kernel/osrelease"),
            os_image: pretty.to_owned(),
            operating_system: "linux".to_owned(),
            kubelet_version: component_base::version::GIT_VERSION.to_owned(),
            ..NodeSystemInfo::default()
        };
        let cpus = std::thread::available_parallelism().map_or(1, |n| i64::try_from(n.get()).unwrap_or(1));
        let (memory_bytes, huge_pages) = (kib.unwrap_or_default() * 1024, BTreeMap::new());
        Machine { cpus, memory_bytes, swap_bytes, huge_pages, info }
    }
}

fn handler(known: Handler) -> NodeRuntimeHandler {
    NodeRuntimeHandler {
        name: Some(known.name),
        features: Some(NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(known.recursive_read_only_mounts),
            user_namespaces: Some(known.user_namespaces),
        }),
    }
}

pub(crate) struct NodeReporter {
    pub context: Arc<Context>,
    pub config: Config,
    pub client: kube::Client,
    pub machine: Machine,
    pub port: u16,
}

impl NodeReporter {
    pub(crate) async fn run(self, stop: CancellationToken) {
        let lease = self.renew_lease_forever(&stop);
        let status = self.report_forever(&stop);
        tokio::join!(lease, status);
    }

    async fn report_forever(&self, stop: &CancellationToken) {
        let api: Api<Node> = Api::all(self.client.clone());
        let mut written: Option<(NodeStatus, tokio::time::Instant)> = None;
        let mut pause = Duration::from_millis(200);
        let pressed = &self.context.pressures_changed;
        while stop
            .run_until_cancelled(async {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = pressed.notified() => {}
                    () = self.context.devices.changed() => {}
                    () = self.context.volumes_in_use.changed() => {}
                }
            })
            .await
            .is_some()
        {
            pause = LOOK;
            let before = match self.ensure_registered(&api).await {
                Ok(node) => node,
                Err(error) => {
                    tracing::warn!(%error, "this node could not be registered");
                    pause = Duration::from_secs(1);
                    continue;
                }
            };
            let status = self.status(&before).await;
            if !ready(&status) {
                pause = Duration::from_millis(500); // becoming ready should show at once
            }
            let fresh = written.as_ref().is_some_and(|(s, at)| unchanged(s, &status) && at.elapsed() < REPORT_ANYWAY);
            if fresh {
                continue;
            }
            let mut patch = serde_json::json!({"status": status});
            if let Some(addresses) = patch["status"]["addresses"].as_array_mut() {
                // They are merged by their type, of which there are two where there are two families.
                addresses.push(serde_json::json!({"$patch": "replace"}));
            }
            match api.patch_status(&self.context.node_name, &PatchParams::default(), &Patch::Strategic(&patch)).await {
                Ok(_) => written = Some((status, tokio::time::Instant::now())),
                Err(error) => tracing::warn!(%error, "the node's status could not be written"),
            }
        }
    }

    async fn ensure_registered(&self, api: &Api<Node>) -> Result<Node, kube::Error> {
        match api.get(&self.context.node_name).await {
            Ok(node) => return Ok(node),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        let mut labels = BTreeMap::from([
            ("kubernetes.io/hostname".to_owned(), self.context.node_name.clone()),
            ("kubernetes.io/os".to_owned(), "linux".to_owned()),
            ("kubernetes.io/arch".to_owned(), self.machine.info.architecture.clone()),
            ("beta.kubernetes.io/os".to_owned(), "linux".to_owned()),
            ("beta.kubernetes.io/arch".to_owned(), self.machine.info.architecture.clone()),
        ]);
        labels.extend(self.config.node_labels.clone());
        let mut node = Node {
            metadata: ObjectMeta {
                name: Some(self.context.node_name.clone()),
                labels: Some(labels),
                annotations: Some(BTreeMap::from([(
                    "volumes.kubernetes.io/controller-managed-attach-detach".to_owned(),
                    "true".to_owned(),
                )])),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec {
                taints: (!self.config.register_with_taints.is_empty())
                    .then(|| self.config.register_with_taints.clone()),
                provider_id: Some(self.config.provider_id.clone()).filter(|id| !id.is_empty()),
                ..NodeSpec::default()
            }),
            status: None,
        };
        node.status = Some(self.status(&node).await);
        let made = api.create(&PostParams::default(), &node).await;
        match made {
            Ok(node) => {
                tracing::info!(node = self.context.node_name, "registered");
                Ok(node)
            }
            Err(error) if error.is_already_exists() => api.get(&self.context.node_name).await,
            Err(error) => Err(error),
        }
    }

    async fn status(&self, before: &Node) -> NodeStatus {
        let old = before.status.clone().unwrap_or_default();
        let amounts = crate::capacity::of(&self.machine, &self.config);
        let (devices, healthy) = self.context.devices.amounts();
        let mut capacity = quantities(&amounts);
        let mut allocatable = quantities(&crate::capacity::allocatable(&amounts, &self.config));
        let counted = |amounts: &crate::resources::Amounts| {
            amounts.iter().map(|(name, n)| (name.clone(), Quantity((n / 1000).to_string()))).collect::<BTreeMap<_, _>>()
        };
        capacity.extend(counted(&devices));
        allocatable.extend(counted(&healthy));
        for list in [&mut capacity, &mut allocatable] {
            list.insert("pods".to_owned(), Quantity(self.config.max_pods.to_string()));
            for size in ["hugepages-1Gi", "hugepages-2Mi"] {
                list.entry(size.to_owned()).or_insert_with(|| Quantity("0".to_owned()));
            }
        }
        let mut info = self.machine.info.clone();
        if let Ok(version) = self.context.runtime.version().await {
            info.container_runtime_version = format!("{}://{}", version.runtime_name, version.runtime_version);
        }
        let features = self.context.runtime.features().await.unwrap_or_default();
        let mut addresses: Vec<NodeAddress> = self
            .context
            .host_ips
            .iter()
            .map(|ip| NodeAddress { type_: "InternalIP".to_owned(), address: ip.clone() })
            .collect();
        addresses.push(NodeAddress { type_: "Hostname".to_owned(), address: self.context.node_name.clone() });
        NodeStatus {
            capacity: Some(capacity),
            allocatable: Some(allocatable),
            addresses: Some(addresses),
            conditions: Some(self.conditions(&old).await),
            node_info: Some(info),
            images: Some(self.images().await),
            volumes_in_use: Some(self.context.volumes_in_use.all()),
            features: Some(NodeFeatures { supplemental_groups_policy: Some(features.supplemental_groups_policy) }),
            runtime_handlers: Some(features.handlers.into_iter().map(handler).collect()),
            daemon_endpoints: Some(NodeDaemonEndpoints {
                kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(self.port) }),
            }),
            ..NodeStatus::default()
        }
    }

    async fn images(&self) -> Vec<ContainerImage> {
        let mut images: Vec<ContainerImage> = self
            .context
            .runtime
            .images()
            .await
            .unwrap_or_default()
            .into_iter()
            .map(|i| ContainerImage {
                names: Some(i.repo_digests.into_iter().chain(i.repo_tags).collect()),
                size_bytes: i64::try_from(i.size).ok(),
            })
            .collect();
        images.sort_by_key(|i| std::cmp::Reverse(i.size_bytes));
        images.truncate(self.config.max_images);
        images
    }

    async fn conditions(&self, old: &NodeStatus) -> Vec<NodeCondition> {
        let mut unmet = match self.context.runtime.unmet_conditions().await {
            Ok(unmet) => unmet
                .into_iter()
                .map(|c| match c.r#type.as_str() {
                    "NetworkReady" => {
                        format!(
                            "container runtime network not ready: NetworkReady=false reason:{} message:{}",
                            c.reason, c.message
                        )
                    }
                    _ => format!(
                        "container runtime not ready: {}=false reason:{} message:{}",
                        c.r#type, c.reason, c.message
                    ),
                })
                .collect::<Vec<_>>(),
            Err(error) => vec![format!("container runtime is down: {error}")],
        };
        if self.context.shutting_down.is_on() {
            unmet.push("node is shutting down".to_owned());
        }
        let now = Time(Timestamp::now());
        let condition = |kind: &str, status: bool, reason: &str, message: String| {
            let status = if status { "True" } else { "False" };
            let before = old.conditions.iter().flatten().find(|c| c.type_ == kind);
            let since = before.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
            NodeCondition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message),
                last_heartbeat_time: Some(now.clone()),
                last_transition_time: since.or_else(|| Some(now.clone())),
            }
        };
        let ready = if unmet.is_empty() {
            condition("Ready", true, "KubeletReady", "kubelet is posting ready status".to_owned())
        } else {
            condition(
                "Ready",
                false,
                "KubeletNotReady",
                format!("[{}]", unmet.join(", ")).replace("[container runtime is", "[container runtime is"),
            )
        };
        let pressure = |kind: &str, good: (&str, &str), bad: (&str, &str)| {
            let has = self.context.pressures.has(kind);
            let (reason, message) = if has { bad } else { good };
            condition(kind, has, reason, message.to_owned())
        };
        vec![
            pressure(
                "MemoryPressure",
                ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
                ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            ),
            pressure(
                "DiskPressure",
                ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
                ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ),
            pressure(
                "PIDPressure",
                ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            ),
            ready,
        ]
    }

    async fn renew_lease_forever(&self, stop: &CancellationToken) {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), "kube-node-lease");
        let mut pause = Duration::from_millis(500);
        while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            pause = Duration::from_secs(10);
            if let Err(error) = self.renew_lease(&api).await {
                tracing::debug!(%error, "the node's lease could not be renewed");
                pause = Duration::from_secs(1);
            }
        }
    }

    async fn renew_lease(&self, api: &Api<Lease>) -> Result<(), kube::Error> {
        let name = &self.context.node_name;
        let now = Some(MicroTime(Timestamp::now()));
        match api.get(name).await {
            Ok(mut lease) => {
                let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
                spec.renew_time = now;
                spec.holder_identity = Some(name.clone());
                spec.lease_duration_seconds = Some(LEASE_SECONDS);
                api.replace(name, &PostParams::default(), &lease).await.map(drop)
            }
            Err(error) if error.is_not_found() => {
                let node = Api::<Node>::all(self.client.clone()).get(name).await?;
                let owner = OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Node".to_owned(),
                    name: name.clone(),
                    uid: node.metadata.uid.unwrap_or_default(),
                    ..OwnerReference::default()
                };
                let lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(name.clone()),
                        owner_references: Some(vec![owner]),
                        ..ObjectMeta::default()
                    },
                    spec: Some(LeaseSpec {
                        holder_identity: Some(name.clone()),
                        lease_duration_seconds: Some(LEASE_SECONDS),
                        renew_time: now,
                        ..LeaseSpec::default()
                    }),
                };
                api.create(&PostParams::default(), &lease).await.map(drop)
            }
            Err(error) => Err(error),
        }
    }
}

/// Amounts as a Node shows them: memory and disk in Ki where they are whole ones.
fn quantities(amounts: &crate::resources::Amounts) -> BTreeMap<String, Quantity> {
    let show = |name: &str, milli: i64| match name {
        "cpu" if milli % 1000 == 0 => (milli / 1000).to_string(),
        "cpu" => format!("{milli}m"),
        _ if milli % 1_024_000 == 0 => format!("{}Ki", milli / 1_024_000),
        _ => (milli / 1000).to_string(),
    };
    amounts.iter().map(|(name, milli)| (name.clone(), Quantity(show(name, *milli)))).collect()
}

fn ready(status: &NodeStatus) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Heartbeats apart, is it the same status?
fn unchanged(a: &NodeStatus, b: &NodeStatus) -> bool {
    let still = |s: &NodeStatus| {
        let mut s = s.clone();
        for c in s.conditions.iter_mut().flatten() {
            c.last_heartbeat_time = None;
            c.last_transition_time = None;
        }
        s
    };
    still(a) == still(b)
}

/// `key=value:Effect`, as `--register-with-taints` has it.
pub(crate) fn parse_taint(text: &str) -> Result<Taint, String> {
    let wrong = || format!("invalid taint spec: {text}");
    let (key_value, effect) = text.rsplit_once(':').ok_or_else(wrong)?;
    if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
        return Err(format!("invalid taint effect: {effect}, unsupported taint effect"));
    }
    let (key, value) = key_value.split_once('=').map_or((key_value, None), |(k, v)| (k, Some(v.to_owned())));
    if key.is_empty() {
        return Err(wrong());
    }
    Ok(Taint { key: key.to_owned(), value, effect: effect.to_owned(), time_added: None })
}
