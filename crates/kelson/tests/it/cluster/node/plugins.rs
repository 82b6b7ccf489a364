//! Plugins of a node, written here and spoken to over their real interfaces: devices, and a storage driver.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kubelet::plugins::csi::node_server::{Node, NodeServer};
use kubelet::plugins::csi::node_service_capability::{Rpc, Type, rpc};
use kubelet::plugins::csi::*;
use kubelet::plugins::device_plugin::device_plugin_server::{DevicePlugin, DevicePluginServer};
use kubelet::plugins::device_plugin::registration_client::RegistrationClient;
use kubelet::plugins::device_plugin::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, Device, DevicePluginOptions, DeviceSpec, Empty,
    ListAndWatchResponse, PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest,
    PreferredAllocationResponse, RegisterRequest,
};
use kubelet::plugins::dra::v1::dra_plugin_server::{DraPlugin, DraPluginServer};
use kubelet::plugins::dra::v1::{
    self as dra, NodePrepareResourceResponse, NodePrepareResourcesRequest, NodePrepareResourcesResponse,
    NodeUnprepareResourceResponse, NodeUnprepareResourcesRequest, NodeUnprepareResourcesResponse,
};
use kubelet::plugins::dra_health::dra_resource_health_server::{DraResourceHealth, DraResourceHealthServer};
use kubelet::plugins::dra_health::{
    DeviceHealth, DeviceIdentifier, NodeWatchResourcesRequest, NodeWatchResourcesResponse,
};
use kubelet::plugins::registration::registration_server::{Registration, RegistrationServer};
use kubelet::plugins::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use testing::wait::last_within;

use super::super::OneNode;
use super::super::host::Host;
use super::{LONG, Walk, apply, exec, field, fields, phase, pod, sh, with};

const RUN: &str = "trap 'exit 0' TERM; while :; do sleep 0.2; done";

// === Devices ===

/// Two devices, whose health the test sets; both are /dev/zero.
#[derive(Clone)]
struct Toys {
    health: watch::Sender<[&'static str; 2]>,
    calls: Arc<Mutex<Vec<String>>>,
}

#[tonic::async_trait]
impl DevicePlugin for Toys {
    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(options()))
    }

    type ListAndWatchStream =
        std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let lists = WatchStream::new(self.health.subscribe()).map(|health| {
            let device = |(id, health): (&str, &str)| Device { id: id.into(), health: health.into(), topology: None };
            Ok(ListAndWatchResponse { devices: ["toy-a", "toy-b"].into_iter().zip(health).map(device).collect() })
        });
        Ok(Response::new(Box::pin(lists)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let each = request.into_inner().container_requests.into_iter().map(|asked| {
            // The last ones first.
            let device_ids = asked.available_device_ids.into_iter().rev().collect();
            kubelet::plugins::device_plugin::ContainerPreferredAllocationResponse { device_ids }
        });
        Ok(Response::new(PreferredAllocationResponse { container_responses: each.collect() }))
    }

    async fn allocate(&self, request: Request<AllocateRequest>) -> Result<Response<AllocateResponse>, Status> {
        let each = request.into_inner().container_requests.into_iter().map(|asked| {
            let ids = asked.devices_ids.join(",");
            self.calls.lock().unwrap().push(format!("allocate {ids}"));
            ContainerAllocateResponse {
                envs: HashMap::from([("TOYS".to_owned(), ids)]),
                devices: vec![DeviceSpec {
                    container_path: "/dev/toy".into(),
                    host_path: "/dev/zero".into(),
                    permissions: "rw".into(),
                }],
                ..ContainerAllocateResponse::default()
            }
        });
        Ok(Response::new(AllocateResponse { container_responses: each.collect() }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        self.calls.lock().unwrap().push(format!("start {}", request.into_inner().devices_ids.join(",")));
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

fn options() -> DevicePluginOptions {
    DevicePluginOptions { pre_start_required: true, get_preferred_allocation_available: true }
}

/// Serves the plugin beside the kubelet's socket and registers there, as plugins do. Ends with the task.
async fn offer_toys(toys: Toys, dir: PathBuf) {
    let socket = dir.join("toys.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let served = Server::builder()
        .add_service(DevicePluginServer::new(toys))
        .serve_with_incoming(UnixListenerStream::new(listener));
    let register = async {
        let kubelet = connect(&dir.join("kubelet.sock"));
        let request = RegisterRequest {
            version: "v1beta1".into(),
            endpoint: "toys.sock".into(),
            resource_name: "example.com/toy".into(),
            options: Some(options()),
        };
        RegistrationClient::new(kubelet).register(request).await.unwrap();
        std::future::pending::<()>().await;
    };
    tokio::select! { served = served => served.unwrap(), () = register => {} }
}

fn connect(socket: &Path) -> tonic::transport::Channel {
    kubelet::plugins::connect(socket)
}

fn devices(host: &Host, walk: &mut Walk) {
    // Of its own, so that it can end as a process does.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let toys = Toys { health: watch::Sender::new(["Healthy", "Healthy"]), calls: Arc::default() };
    let dir = host.dir.join("kubelet/device-plugins");
    runtime.spawn(offer_toys(toys.clone(), dir));
    let node = format!("node/{}", host.name);
    let counts =
        || fields(host, &node, &[".status.capacity.example\\.com/toy", ".status.allocatable.example\\.com/toy"]);
    walk.equals("Device plugin: its devices are the node's", &last_within(LONG, counts, |c| c == "2 2"), "2 2");

    let asks = |name: &str| {
        let one = json!({ "limits": { "example.com/toy": "1" } });
        pod(name, json!({ "containers": [with(sh("c", RUN), json!({ "resources": one }))] }))
    };
    apply(host, &[asks("plays")]);
    walk.equals("Device plugin: a pod that asks for a device runs", &phase(host, "plays", &["Running"]), "Running");
    let seen = exec(host, "plays", "echo $TOYS; /bin/busybox head -c 3 /dev/toy | /bin/busybox wc -c");
    walk.equals(
        "Device plugin: the container has the device that the plugin prefers, and its variables",
        &seen,
        "toy-b\n3\n",
    );
    let calls = toys.calls.lock().unwrap().join("; ");
    walk.equals("Device plugin: Allocate, then PreStartContainer", &calls, "allocate toy-b; start toy-b");

    toys.health.send_replace(["Unhealthy", "Healthy"]);
    walk.equals("Device plugin: a sick device is none to give", &last_within(LONG, counts, |c| c == "2 1"), "2 1");
    apply(host, &[asks("waits")]);
    let condition = ".status.conditions[?(@.type=='PodScheduled')].message";
    let seen = last_within(LONG, || field(host, "pod/waits", condition), |m| m.contains("Insufficient"));
    walk.contains("Device plugin: a pod without a device to be had waits", &seen, "Insufficient example.com/toy");
    toys.health.send_replace(["Healthy", "Healthy"]);
    walk.equals("Device plugin: a device that is well again is given", &phase(host, "waits", &["Running"]), "Running");
    walk.equals("Device plugin: each device is given once", &exec(host, "waits", "echo $TOYS"), "toy-a\n");

    runtime.shutdown_background();
    walk.equals(
        "Device plugin: without the plugin nothing can be given",
        &last_within(LONG, counts, |c| c == "2 0"),
        "2 0",
    );
    walk.equals("Device plugin: what runs goes on", &field(host, "pod/plays", ".status.phase"), "Running");
    host.kubectl_ok(&["delete", "pods", "plays", "waits", "--timeout=60s"], "");
}

// === A storage driver ===

const DRIVER: &str = "disks.example.com";

/// A driver whose volumes are file systems in memory: staged once, bound into each pod. Those that are used as devices are
/// files behind loop devices.
#[derive(Clone, Default)]
struct Disks {
    /// By where it is published.
    loops: Arc<Mutex<HashMap<String, String>>>,
    calls: Arc<Mutex<Vec<String>>>,
    registered: Arc<Mutex<Option<RegistrationStatus>>>,
}

impl Disks {
    fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }

    fn said(&self) -> String {
        std::mem::take(&mut *self.calls.lock().unwrap()).join("; ")
    }
}

fn is_mounted(path: &str) -> bool {
    std::fs::read_to_string("/proc/self/mounts").unwrap().lines().any(|line| line.split(' ').nth(1) == Some(path))
}

fn failed(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

fn is_block(capability: Option<&VolumeCapability>) -> bool {
    matches!(capability.and_then(|c| c.access_type.as_ref()), Some(volume_capability::AccessType::Block(_)))
}

fn losetup(args: &[&str]) -> Result<String, Status> {
    let done = std::process::Command::new("losetup").args(args).output().map_err(failed)?;
    match done.status.success() {
        true => Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned()),
        false => Err(failed(String::from_utf8_lossy(&done.stderr))),
    }
}

#[tonic::async_trait]
impl Registration for Disks {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: DRIVER.into(),
            endpoint: String::new(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        *self.registered.lock().unwrap() = Some(request.into_inner());
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[tonic::async_trait]
impl Node for Disks {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let asked = request.into_inner();
        let device = asked.publish_context.get("device").cloned().unwrap_or_default();
        if is_block(asked.volume_capability.as_ref()) {
            self.note(format!("stage device {}", asked.volume_id));
            let file = Path::new(&asked.staging_target_path).join("disk");
            std::fs::File::create(file).and_then(|file| file.set_len(1 << 20)).map_err(failed)?;
        } else if !is_mounted(&asked.staging_target_path) {
            self.note(format!("stage {} from {device}", asked.volume_id));
            let (none, at) = (MsFlags::empty(), asked.staging_target_path.as_str());
            mount(Some("tmpfs"), at, Some("tmpfs"), none, Some("mode=0755")).map_err(failed)?;
        }
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let asked = request.into_inner();
        self.note(format!("unstage {}", asked.volume_id));
        let file = Path::new(&asked.staging_target_path).join("disk");
        if file.exists() {
            std::fs::remove_file(file).map_err(failed)?;
            return Ok(Response::new(NodeUnstageVolumeResponse {}));
        }
        umount2(asked.staging_target_path.as_str(), MntFlags::empty()).map_err(failed)?;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let asked = request.into_inner();
        let target = asked.target_path.as_str();
        if is_mounted(target) {
            self.note("publish again".to_owned());
            return Ok(Response::new(NodePublishVolumeResponse {}));
        }
        let pod = asked.volume_context.get("csi.storage.k8s.io/pod.name").cloned().unwrap_or_default();
        if is_block(asked.volume_capability.as_ref()) {
            self.note(format!("publish device {} to {pod}", asked.volume_id));
            let device = losetup(&["--find", "--show", &format!("{}/disk", asked.staging_target_path)])?;
            std::fs::File::create(target).map_err(failed)?;
            mount(Some(device.as_str()), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(failed)?;
            self.loops.lock().unwrap().insert(target.to_owned(), device);
            return Ok(Response::new(NodePublishVolumeResponse {}));
        }
        std::fs::create_dir_all(target).map_err(failed)?;
        if asked.staging_target_path.is_empty() {
            let tokens =
                asked.volume_context.get("csi.storage.k8s.io/serviceAccount.tokens").cloned().unwrap_or_default();
            let has_token = tokens.starts_with("{\"disks\":{") && tokens.contains("\"token\":\"ey");
            self.note(format!("publish inline to {pod}{}", if has_token { " with a token" } else { "" }));
            mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::empty(), None::<&str>).map_err(failed)?;
        } else {
            self.note(format!("publish {} to {pod}", asked.volume_id));
            let staged = asked.staging_target_path.as_str();
            mount(Some(staged), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(failed)?;
        }
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let asked = request.into_inner();
        let what = if asked.volume_id.starts_with("csi-") { "inline" } else { &asked.volume_id };
        self.note(format!("unpublish {what}"));
        umount2(asked.target_path.as_str(), MntFlags::empty()).map_err(failed)?;
        if let Some(device) = self.loops.lock().unwrap().remove(&asked.target_path) {
            losetup(&["--detach", &device])?;
            std::fs::remove_file(&asked.target_path).map_err(failed)?;
            return Ok(Response::new(NodeUnpublishVolumeResponse {}));
        }
        std::fs::remove_dir(&asked.target_path).map_err(failed)?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let asked = request.into_inner();
        let bytes = asked.capacity_range.map(|range| range.required_bytes).unwrap_or_default();
        self.note(format!("grow {} to {bytes}", asked.volume_id));
        Ok(Response::new(NodeExpandVolumeResponse { capacity_bytes: bytes }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let can = [rpc::Type::StageUnstageVolume, rpc::Type::ExpandVolume];
        let capabilities = can.map(|can| NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: can as i32 })) });
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities: capabilities.into() }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Result<Response<NodeGetInfoResponse>, Status> {
        let segments = HashMap::from([("topology.disks.example.com/rack".to_owned(), "r1".to_owned())]);
        Ok(Response::new(NodeGetInfoResponse {
            node_id: "disk-node".into(),
            max_volumes_per_node: 4,
            accessible_topology: Some(Topology { segments }),
        }))
    }
}

async fn offer_disks(disks: Disks, socket: PathBuf) {
    let listener = UnixListener::bind(&socket).unwrap();
    let served = Server::builder()
        .add_service(RegistrationServer::new(disks.clone()))
        .add_service(NodeServer::new(disks))
        .serve_with_incoming(UnixListenerStream::new(listener));
    served.await.unwrap();
}

fn claims() -> Vec<Value> {
    let source = json!({ "driver": DRIVER, "volumeHandle": "disk-1", "fsType": "ext4" });
    vec![
        json!({ "apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": { "name": DRIVER },
            "spec": { "podInfoOnMount": true, "requiresRepublish": true, "tokenRequests": [{ "audience": "disks" }], "volumeLifecycleModes": ["Persistent", "Ephemeral"] } }),
        json!({ "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": "disk" },
            "spec": { "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"], "csi": source,
                "storageClassName": "", "persistentVolumeReclaimPolicy": "Retain" } }),
        json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "disk" },
            "spec": { "accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": "disk",
                "resources": { "requests": { "storage": "1Gi" } } } }),
    ]
}

/// A claim of which a pod wants the device.
fn device_claim() -> Vec<Value> {
    let name = json!({ "name": "device" });
    vec![
        json!({ "apiVersion": "v1", "kind": "PersistentVolume", "metadata": name,
            "spec": { "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"], "volumeMode": "Block",
                "csi": { "driver": DRIVER, "volumeHandle": "disk-2" },
                "storageClassName": "", "persistentVolumeReclaimPolicy": "Retain" } }),
        json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": name,
            "spec": { "accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": "device", "volumeMode": "Block",
                "resources": { "requests": { "storage": "1Gi" } } } }),
    ]
}

fn block_device(host: &Host, walk: &mut Walk, disks: &Disks) {
    apply(host, &device_claim());
    let mapped = json!({ "volumeDevices": [{ "name": "v", "devicePath": "/dev/disk" }] });
    let volumes = json!([{ "name": "v", "persistentVolumeClaim": { "claimName": "device" } }]);
    apply(host, &[pod("raw", json!({ "containers": [with(sh("c", RUN), mapped)], "volumes": volumes }))]);
    attach(host);
    walk.equals("CSI: a pod with a driver's device runs", &phase(host, "raw", &["Running"]), "Running");
    walk.equals(
        "CSI: staged and published as a device",
        &disks.said(),
        "stage device disk-2; publish device disk-2 to raw",
    );
    let script = "echo written > /dev/disk && /bin/busybox head -c 8 /dev/disk && /bin/busybox stat -c %F /dev/disk";
    walk.equals("CSI: the container has the device", &exec(host, "raw", script), "written\nblock special file\n");
    host.kubectl_ok(&["delete", "pod", "raw", "--timeout=60s"], "");
    walk.equals("CSI: the device goes with its pod", &disks.said(), "unpublish disk-2; unstage disk-2");
    let left =
        last_within(LONG, || host.kubectl(&["get", "volumeattachments", "-o", "name"], "").out, String::is_empty);
    walk.equals("CSI: and is detached", &left, "");
}

/// What the attacher beside a driver does: it says that the volume is attached, and where.
fn attach(host: &Host) {
    let name =
        last_within(LONG, || host.kubectl(&["get", "volumeattachments", "-o", "name"], "").out, |out| !out.is_empty());
    let patch = json!({ "status": { "attached": true, "attachmentMetadata": { "device": "/dev/disk1" } } }).to_string();
    host.kubectl_ok(&["patch", name.trim(), "--subresource=status", "--type=merge", "-p", &patch], "");
}

fn storage_driver(host: &Host, walk: &mut Walk, runtime: &tokio::runtime::Runtime) {
    let disks = Disks::default();
    let socket = host.dir.join("kubelet/plugins_registry/disks.example.com-reg.sock");
    let serving = runtime.spawn(offer_disks(disks.clone(), socket.clone()));
    let csi_node = format!("csinode/{}", host.name);
    let of_driver = ["name", "nodeID", "topologyKeys[0]", "allocatable.count"].map(|f| format!(".spec.drivers[0].{f}"));
    let of_driver = of_driver.each_ref().map(String::as_str);
    let wanted = "disks.example.com disk-node topology.disks.example.com/rack 4";
    walk.equals(
        "CSI: a driver that registers is in CSINode",
        &last_within(LONG, || fields(host, &csi_node, &of_driver), |s| s == wanted),
        wanted,
    );
    let told = last_within(
        LONG,
        || format!("{:?}", disks.registered.lock().unwrap().as_ref().map(|s| s.plugin_registered)),
        |s| s == "Some(true)",
    );
    walk.equals("CSI: the driver is told that it is registered", &told, "Some(true)");
    let labels = field(host, &format!("node/{}", host.name), ".metadata.labels.topology\\.disks\\.example\\.com/rack");
    walk.equals("CSI: the driver's topology is the node's label", &labels, "r1");

    apply(host, &claims());
    let mounted = json!({ "volumeMounts": [{ "name": "v", "mountPath": "/v" }, { "name": "i", "mountPath": "/i" }] });
    let uses = |name: &str| {
        pod(
            name,
            json!({
                "securityContext": { "fsGroup": 2000 },
                "containers": [with(sh("c", RUN), mounted.clone())],
                "volumes": [
                    { "name": "v", "persistentVolumeClaim": { "claimName": "disk" } },
                    { "name": "i", "csi": { "driver": DRIVER, "volumeAttributes": { "kind": "scratch" } } }],
            }),
        )
    };
    apply(host, &[uses("first")]);
    attach(host);
    walk.equals(
        "CSI: a pod with a driver's volume runs once it is attached",
        &phase(host, "first", &["Running"]),
        "Running",
    );
    walk.equals(
        "CSI: staged with what the attachment says, published with the pod's name",
        &disks.said(),
        "stage disk-1 from /dev/disk1; publish disk-1 to first; publish inline to first with a token",
    );
    exec(host, "first", "echo kept > /v/file; echo gone > /i/file");
    host.kubectl_ok(&["annotate", "pod", "first", "seen=again"], "");
    let again = last_within(LONG, || disks.said(), |said| said.contains("publish again"));
    walk.contains("CSI: a driver that asks for it is told of the volume again", &again, "publish again");
    let mode = exec(host, "first", "/bin/busybox stat -c '%A %g' /v");
    walk.equals("CSI: the volume belongs to the fsGroup", &mode, "drwxrwsr-x 2000\n");
    let in_use = field(host, &format!("node/{}", host.name), ".status.volumesInUse");
    walk.contains("CSI: the Node tells which volumes it has", &in_use, "kubernetes.io/csi/disks.example.com^disk-1");

    let larger = json!({ "spec": { "capacity": { "storage": "2Gi" } } }).to_string();
    host.kubectl_ok(&["patch", "pv", "disk", "--type=merge", "-p", &larger], "");
    host.kubectl_ok(&["annotate", "pod", "first", "seen=larger", "--overwrite"], "");
    let told = last_within(LONG, || field(host, "pvc/disk", ".status.capacity.storage"), |size| size == "2Gi");
    walk.equals("CSI: a claim is told that its volume has grown", &told, "2Gi");
    let grown = disks.said();
    walk.contains("CSI: and its file system has, below a pod that runs", &grown, "grow disk-1 to 2147483648");

    apply(host, &[uses("second")]);
    walk.equals("CSI: another pod of the node shares the volume", &phase(host, "second", &["Running"]), "Running");
    walk.equals("CSI: what the first wrote the second reads", &exec(host, "second", "cat /v/file; ls /i"), "kept\n");
    host.kubectl_ok(&["delete", "pod", "first", "--timeout=60s"], "");
    let said = disks.said();
    walk.check(
        "CSI: the stage stays while a pod needs it",
        said.contains("unpublish disk-1") && !said.contains("unstage"),
        &said,
    );
    host.kubectl_ok(&["delete", "pod", "second", "--timeout=60s"], "");
    let said = disks.said();
    walk.check("CSI: the last pod takes the stage with it", said.ends_with("unstage disk-1"), &said);
    let left =
        last_within(LONG, || host.kubectl(&["get", "volumeattachments", "-o", "name"], "").out, String::is_empty);
    walk.equals("CSI: and then the volume is detached", &left, "");

    block_device(host, walk, &disks);

    serving.abort();
    std::fs::remove_file(&socket).unwrap();
    let gone =
        last_within(Duration::from_secs(30), || field(host, &csi_node, ".spec.drivers[*].name"), String::is_empty);
    walk.equals("CSI: a driver that goes leaves CSINode", &gone, "");
}

// === A driver for dynamic resources ===

const TOYS: &str = "toys.example.com";

/// A driver that prepares whatever was allocated.
#[derive(Clone)]
struct Claims {
    calls: Arc<Mutex<Vec<String>>>,
    /// 1: healthy, 2: not.
    health: watch::Sender<i32>,
}

impl Claims {
    fn said(&self) -> String {
        std::mem::take(&mut *self.calls.lock().unwrap()).join("; ")
    }
}

#[tonic::async_trait]
impl Registration for Claims {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "DRAPlugin".into(),
            name: TOYS.into(),
            endpoint: String::new(),
            supported_versions: vec!["v1.DRAPlugin".into(), "v1alpha1.DRAResourceHealth".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        self.calls.lock().unwrap().push(format!("registered {}", request.into_inner().plugin_registered));
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[tonic::async_trait]
impl DraPlugin for Claims {
    async fn node_prepare_resources(
        &self,
        request: Request<NodePrepareResourcesRequest>,
    ) -> Result<Response<NodePrepareResourcesResponse>, Status> {
        let claims = request.into_inner().claims.into_iter().map(|claim| {
            self.calls.lock().unwrap().push(format!("prepare {}", claim.name));
            let device = dra::Device {
                request_names: vec!["toy".into()],
                pool_name: "pool".into(),
                device_name: "one".into(),
                ..dra::Device::default()
            };
            (claim.uid, NodePrepareResourceResponse { devices: vec![device], error: String::new() })
        });
        Ok(Response::new(NodePrepareResourcesResponse { claims: claims.collect() }))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<NodeUnprepareResourcesRequest>,
    ) -> Result<Response<NodeUnprepareResourcesResponse>, Status> {
        let claims = request.into_inner().claims.into_iter().map(|claim| {
            self.calls.lock().unwrap().push(format!("unprepare {}", claim.name));
            (claim.uid, NodeUnprepareResourceResponse::default())
        });
        Ok(Response::new(NodeUnprepareResourcesResponse { claims: claims.collect() }))
    }
}

#[tonic::async_trait]
impl DraResourceHealth for Claims {
    type NodeWatchResourcesStream =
        std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<NodeWatchResourcesResponse, Status>> + Send>>;

    async fn node_watch_resources(
        &self,
        _: Request<NodeWatchResourcesRequest>,
    ) -> Result<Response<Self::NodeWatchResourcesStream>, Status> {
        let told = WatchStream::new(self.health.subscribe()).map(|health| {
            let device = Some(DeviceIdentifier { pool_name: "pool".into(), device_name: "one".into() });
            let device = DeviceHealth { device, health, health_check_timeout_seconds: 600, ..DeviceHealth::default() };
            Ok(NodeWatchResourcesResponse { devices: vec![device] })
        });
        Ok(Response::new(Box::pin(told)))
    }
}

async fn offer_claims(claims: Claims, socket: PathBuf) {
    let listener = UnixListener::bind(&socket).unwrap();
    let served = Server::builder()
        .add_service(RegistrationServer::new(claims.clone()))
        .add_service(DraResourceHealthServer::new(claims.clone()))
        .add_service(DraPluginServer::new(claims))
        .serve_with_incoming(UnixListenerStream::new(listener));
    served.await.unwrap();
}

/// What a driver publishes, and who wants it.
fn toys(host: &Host) -> Vec<Value> {
    let resource = |kind: &str, name: &str, spec: Value| json!({ "apiVersion": "resource.k8s.io/v1", "kind": kind, "metadata": { "name": name }, "spec": spec });
    let of_driver = format!("device.driver == \"{TOYS}\"");
    let request = json!({ "name": "toy", "exactly": { "deviceClassName": TOYS } });
    vec![
        resource("DeviceClass", TOYS, json!({ "selectors": [{ "cel": { "expression": of_driver } }] })),
        resource(
            "ResourceSlice",
            "toys",
            json!({ "driver": TOYS, "nodeName": host.name, "devices": [{ "name": "one" }],
                "pool": { "name": "pool", "generation": 1, "resourceSliceCount": 1 } }),
        ),
        resource("ResourceClaimTemplate", "toy", json!({ "spec": { "devices": { "requests": [request] } } })),
    ]
}

fn dynamic_resources(host: &Host, walk: &mut Walk, runtime: &tokio::runtime::Runtime) {
    let claims = Claims { calls: Arc::default(), health: watch::Sender::new(1) };
    let socket = host.dir.join("kubelet/plugins_registry/toys.example.com-reg.sock");
    let serving = runtime.spawn(offer_claims(claims.clone(), socket.clone()));
    let told = last_within(LONG, || claims.calls.lock().unwrap().join("; "), |said| said.contains("registered"));
    walk.equals("DRA: a driver is told that it is registered", &told, "registered true");
    claims.said();
    apply(host, &toys(host));
    let used = json!({ "resources": { "claims": [{ "name": "mine" }] } });
    let claim = json!([{ "name": "mine", "resourceClaimTemplateName": "toy" }]);
    let spec = json!({ "containers": [with(sh("c", RUN), used)], "resourceClaims": claim });
    apply(host, &[pod("toying", spec)]);
    walk.equals("DRA: a pod with a claim runs", &phase(host, "toying", &["Running"]), "Running");
    let name = field(host, "pod/toying", ".status.resourceClaimStatuses[0].resourceClaimName");
    walk.equals("DRA: its claim was prepared before", &claims.said(), &format!("prepare {name}"));
    let path = ".status.containerStatuses[0].allocatedResourcesStatus[0].resources[0]";
    let health = || fields(host, "pod/toying", &[&format!("{path}.resourceID"), &format!("{path}.health")]);
    let wanted = "toys.example.com/pool/one Healthy";
    walk.equals("DRA: its status tells how its device is", &last_within(LONG, health, |h| h == wanted), wanted);
    claims.health.send_replace(2);
    let wanted = "toys.example.com/pool/one Unhealthy";
    walk.equals("DRA: and that it is not well any more", &last_within(LONG, health, |h| h == wanted), wanted);
    host.kubectl_ok(&["delete", "pod", "toying", "--timeout=60s"], "");
    walk.equals("DRA: the claim is given back with its pod", &claims.said(), &format!("unprepare {name}"));
    serving.abort();
    std::fs::remove_file(&socket).unwrap();
    let left = last_within(LONG, || host.kubectl(&["get", "resourceslices", "-o", "name"], "").out, String::is_empty);
    walk.equals("DRA: the ResourceSlices of a driver that went go after a while", &left, "");
}

#[test]
fn plugins_serve_the_node() {
    let cluster = OneNode::start(&[]);
    let host = &cluster.host;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut walk = Walk::default();
    devices(host, &mut walk);
    storage_driver(host, &mut walk, &runtime);
    dynamic_resources(host, &mut walk, &runtime);
    walk.end(host);
}
