//! Volumes on a driver that keeps books instead of mounting anything.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use super::*;
use crate::plugins::csi::node_client::NodeClient;
use crate::plugins::csi::node_server::{Node, NodeServer};
use crate::plugins::csi::volume_capability::AccessType;
use crate::plugins::csi::{
    NodeExpandVolumeResponse, NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse, NodeGetInfoRequest,
    NodeGetInfoResponse, NodePublishVolumeResponse, NodeStageVolumeResponse, NodeUnpublishVolumeResponse,
    NodeUnstageVolumeResponse,
};

const DRIVER: &str = "disks.example.com";
const DEVICE: &str = "kubernetes.io/csi/disks.example.com^disk-1";

type Answer<T> = std::result::Result<Response<T>, Status>;

#[derive(Clone)]
struct Books {
    calls: watch::Sender<Vec<&'static str>>,
    /// Calls of this name never end.
    hangs_at: Arc<Mutex<Option<&'static str>>>,
    grows: Arc<AtomicBool>,
}

impl Books {
    async fn note(&self, call: &'static str) {
        self.calls.send_modify(|calls| calls.push(call));
        if *self.hangs_at.lock() == Some(call) {
            std::future::pending::<()>().await;
        }
    }

    fn said(&self) -> String {
        self.calls.borrow().join(" ")
    }

    async fn until_asked_to(&self, call: &str) {
        self.calls.subscribe().wait_for(|calls| calls.contains(&call)).await.unwrap();
    }
}

#[tonic::async_trait]
impl Node for Books {
    async fn node_stage_volume(&self, _: Request<NodeStageVolumeRequest>) -> Answer<NodeStageVolumeResponse> {
        self.note("stage").await;
        Ok(Response::new(Default::default()))
    }

    async fn node_unstage_volume(&self, _: Request<NodeUnstageVolumeRequest>) -> Answer<NodeUnstageVolumeResponse> {
        self.note("unstage").await;
        Ok(Response::new(Default::default()))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Answer<NodePublishVolumeResponse> {
        self.note("publish").await;
        let asked = request.into_inner();
        match asked.volume_capability.and_then(|c| c.access_type) {
            Some(AccessType::Block(_)) => drop(std::fs::File::create(asked.target_path)?),
            _ => std::fs::create_dir_all(asked.target_path)?,
        }
        Ok(Response::new(Default::default()))
    }

    async fn node_unpublish_volume(
        &self,
        _: Request<NodeUnpublishVolumeRequest>,
    ) -> Answer<NodeUnpublishVolumeResponse> {
        self.note("unpublish").await;
        Ok(Response::new(Default::default()))
    }

    async fn node_expand_volume(&self, _: Request<NodeExpandVolumeRequest>) -> Answer<NodeExpandVolumeResponse> {
        self.note("expand").await;
        if !self.grows.load(Ordering::Relaxed) {
            return Err(Status::internal("it cannot grow now"));
        }
        Ok(Response::new(Default::default()))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Answer<NodeGetCapabilitiesResponse> {
        Ok(Response::new(Default::default()))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Answer<NodeGetInfoResponse> {
        Ok(Response::new(Default::default()))
    }
}

/// A node with the driver.
struct Machine {
    _dir: tempfile::TempDir,
    context: Context,
    books: Books,
    /// The size that the claim was told.
    told: &'static str,
    mode: &'static str,
    notes: tokio::sync::mpsc::Receiver<client::events::Note>,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (events, notes) = client::events::Recorder::collecting(8);
        let context = Context { events, ..Context::alone(&dir.path().join("root")) };
        let books = Books { calls: watch::Sender::default(), hangs_at: Arc::default(), grows: Arc::default() };
        let socket = dir.path().join("csi.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = tonic::transport::Server::builder().add_service(NodeServer::new(books.clone()));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        let client = NodeClient::new(crate::plugins::connect(&socket));
        let driver = Driver { client, can: vec![Can::StageUnstageVolume, Can::ExpandVolume] };
        context.drivers.by_name.lock().insert(DRIVER.to_owned(), driver);
        Machine { _dir: dir, context, books, told: "1Gi", mode: "Filesystem", notes }
    }

    async fn set_up(&self, pod: &Pod) -> std::result::Result<PathBuf, String> {
        let volume = serde_json::from_value(json!({ "metadata": { "name": "disk" }, "spec": {
            "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"], "volumeMode": self.mode,
            "csi": { "driver": DRIVER, "volumeHandle": "disk-1", "fsType": "ext4" } } }));
        let claim = serde_json::from_value(json!({ "status": { "capacity": { "storage": self.told } } }));
        set_up(&self.context, pod, &volume.unwrap(), &claim.unwrap(), false).await.map_err(|e| e.to_string())
    }

    async fn tear_down(&self, pod: &Pod) -> std::result::Result<(), String> {
        let uid = pod.metadata.uid.as_deref().unwrap();
        tear_down(&self.context, &volumes::pod_dir(&self.context.root, uid)).await.map_err(|e| e.to_string())
    }

    fn is_staged(&self) -> bool {
        stage_dir(&self.context, DRIVER, "disk-1").exists()
    }
}

fn pod(uid: &str) -> Pod {
    serde_json::from_value(json!({ "metadata": { "name": uid, "uid": uid }, "spec": { "containers": [] } })).unwrap()
}

#[tokio::test]
async fn a_pod_that_goes_while_its_volume_is_staged_leaves_nothing() {
    let machine = Machine::new();
    *machine.books.hangs_at.lock() = Some("stage");
    let pod = pod("a");
    // The worker drops what it does when its pod is to go.
    tokio::select! {
        done = machine.set_up(&pod) => panic!("{done:?}"),
        () = machine.books.until_asked_to("stage") => {}
    }
    assert_eq!(machine.context.volumes_in_use.all(), [DEVICE]);
    machine.tear_down(&pod).await.unwrap();
    assert_eq!(machine.books.said(), "stage unpublish unstage");
    assert!(machine.context.volumes_in_use.all().is_empty());
    assert!(!machine.is_staged());
}

#[tokio::test]
async fn a_volume_that_another_pod_is_about_to_use_keeps_its_stage() {
    let machine = Machine::new();
    let (going, coming) = (pod("a"), pod("b"));
    machine.set_up(&going).await.unwrap();
    machine.books.calls.send_modify(Vec::clear);
    *machine.books.hangs_at.lock() = Some("stage");
    tokio::select! {
        done = machine.set_up(&coming) => panic!("{done:?}"),
        () = machine.books.until_asked_to("stage") => {}
    }
    machine.tear_down(&going).await.unwrap();
    assert_eq!(machine.books.said(), "stage unpublish");
    assert!(machine.is_staged());
    assert_eq!(machine.context.volumes_in_use.all(), [DEVICE]);
    machine.tear_down(&coming).await.unwrap();
    assert_eq!(machine.books.said(), "stage unpublish unpublish unstage");
    assert!(machine.context.volumes_in_use.all().is_empty());
}

#[tokio::test]
async fn a_stage_that_could_not_be_undone_is_undone_later() {
    let machine = Machine::new();
    let pod = pod("a");
    machine.set_up(&pod).await.unwrap();
    *machine.books.hangs_at.lock() = Some("unstage");
    tokio::select! {
        done = machine.tear_down(&pod) => panic!("{done:?}"),
        () = machine.books.until_asked_to("unstage") => {}
    }
    assert_eq!(machine.context.volumes_in_use.all(), [DEVICE]);
    *machine.books.hangs_at.lock() = None;
    machine.tear_down(&pod).await.unwrap();
    assert_eq!(machine.books.said(), "stage publish unpublish unstage unpublish unstage");
    assert!(machine.context.volumes_in_use.all().is_empty());
}

#[tokio::test]
async fn a_volume_whose_driver_never_came_to_it_goes_without_the_driver() {
    let machine = Machine::new();
    let dir = volume_dir(&machine.context, &pod("a"), "disk");
    let data = Data { driver_name: DRIVER.to_owned(), volume_handle: "disk-1".to_owned(), ..Data::default() };
    let paths = Paths::of_files(&machine.context, dir.clone(), DRIVER, "disk-1");
    begin(&machine.context, &paths, &data).await.unwrap();
    machine.context.drivers.by_name.lock().clear();
    machine.tear_down(&pod("a")).await.unwrap();
    assert!(!dir.exists());
    assert!(machine.context.volumes_in_use.all().is_empty());
}

#[tokio::test]
async fn what_a_first_try_did_not_reach_the_next_one_does() {
    let mut machine = Machine::new();
    machine.told = "512Mi";
    let mut pod = pod("a");
    let group = nix::unistd::getgid().as_raw();
    let context = serde_json::from_value(json!({ "fsGroup": group }));
    pod.spec.as_mut().unwrap().security_context = Some(context.unwrap());
    let refused = machine.set_up(&pod).await.unwrap_err();
    assert_eq!(refused, "rpc error: code = Internal desc = it cannot grow now");
    machine.books.grows.store(true, Ordering::Relaxed);
    let path = machine.set_up(&pod).await.unwrap();
    let mode_of = || std::fs::metadata(&path).unwrap().mode() & 0o2070;
    assert_eq!(mode_of(), 0o2070, "the group has the volume");
    assert!(machine.context.drivers.looks_again("a"), "it may grow again");
    // What a container does with the modes afterwards is its own affair.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    machine.set_up(&pod).await.unwrap();
    assert_eq!(mode_of(), 0);
}

#[tokio::test]
async fn a_device_is_brought_to_each_pod_by_a_link_and_goes_with_the_last() {
    let machine = Machine { mode: "Block", ..Machine::new() };
    let link = machine.set_up(&pod("a")).await.unwrap();
    assert_eq!(link, machine.context.root.join("pods/a/volumeDevices/kubernetes.io~csi/disk"));
    let node = machine.context.root.join("plugins/kubernetes.io/csi/volumeDevices");
    assert_eq!(std::fs::read_link(&link).unwrap(), node.join("publish/disk/a"));
    assert!(node.join("staging/disk").is_dir() && node.join("disk/data/vol_data.json").is_file());
    machine.set_up(&pod("b")).await.unwrap();
    assert_eq!(devices_in_use(&machine.context), [DEVICE.to_owned()].into());
    machine.tear_down(&pod("a")).await.unwrap();
    assert!(!machine.books.said().contains("unstage") && node.join("disk/data").exists());
    machine.tear_down(&pod("b")).await.unwrap();
    assert_eq!(machine.books.said(), "stage publish stage publish unpublish unpublish unstage");
    assert!(machine.context.volumes_in_use.all().is_empty());
    let left = ["publish/disk", "staging/disk", "disk"].map(|path| node.join(path).exists());
    assert_eq!((left, link.is_symlink()), ([false; 3], false));
}

#[tokio::test]
async fn a_volume_that_cannot_grow_now_says_so() {
    let mut machine = Machine { told: "512Mi", ..Machine::new() };
    machine.set_up(&pod("a")).await.unwrap_err();
    let note = machine.notes.recv().await.unwrap();
    assert_eq!(note.reason, "VolumeResizeFailed");
    assert!(note.message.contains("failed for volume \"disk\" : rpc error"), "{}", note.message);
}
