//! A driver's volume on its way to a pod and back: attached, staged once for the node, published for each pod.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use client::error::ignore_not_found;
use client::events::reference;
use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, CSIVolumeSource, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod,
    Secret, SecretReference,
};
use k8s_openapi::api::storage::v1::{CSIDriver, CSIDriverSpec, VolumeAttachment};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::request::{self, Use};
use super::{CALL, Driver};
use crate::context::Context;
use crate::plugins::csi::node_service_capability::rpc::Type as Can;
use crate::plugins::csi::{
    CapacityRange, NodeExpandVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability,
};
use crate::volumes;

/// Why a volume is not there (yet): the text of the event.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Failure(pub(super) String);

type Result<T> = std::result::Result<T, Failure>;

/// How long one try waits for the attachment, and how often it looks.
const ATTACH: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(500);
const PLUGIN: &str = "kubernetes.io~csi";
/// Below the kubelet's directory: what belongs to the node. Below a pod's: its devices.
const OF_NODE: &str = "plugins/kubernetes.io/csi";
const DEVICES: &str = "volumeDevices";
const DATA: &str = "vol_data.json";

/// What lies beside a volume's mount: upstream's names, so that either kubelet can take down what the other has set up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Data {
    driver_name: String,
    volume_handle: String,
    #[serde(rename = "specVolID")]
    spec_vol_id: String,
    node_name: String,
    #[serde(rename = "attachmentID")]
    attachment_id: String,
    /// `Persistent` or `Ephemeral`.
    volume_lifecycle_mode: String,
    /// The group that the files were given to; upstream does not know this one, and does not mind it.
    #[serde(skip_serializing_if = "String::is_empty")]
    fs_group: String,
}

impl Data {
    /// A volume that lives and dies with its pod is neither attached nor staged.
    fn is_attachable(&self) -> bool {
        self.volume_lifecycle_mode != "Ephemeral"
    }
}

fn io(what: &str) -> impl Fn(std::io::Error) -> Failure {
    move |error| Failure(format!("{what}: {error}"))
}

fn rpc(status: tonic::Status) -> Failure {
    Failure(format!("rpc error: code = {:?} desc = {}", status.code(), status.message()))
}

fn within<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL);
    request
}

/// The part of the plugins' directory where a volume is mounted for the node.
fn stage_dir(context: &Context, driver: &str, handle: &str) -> PathBuf {
    context.root.join(OF_NODE).join(driver).join(request::stage_name(handle))
}

/// Where the parts of a volume lie that a pod has: upstream's layout.
#[derive(Clone, Debug)]
struct Paths {
    /// The directory of what is known of it.
    data: PathBuf,
    /// Where its driver brings it for the pod.
    target: PathBuf,
    /// Where its driver prepares it for the node.
    staging: PathBuf,
    /// By which the pod's containers find a device; a file system is found by its target.
    link: Option<PathBuf>,
}

impl Paths {
    fn of_files(context: &Context, dir: PathBuf, driver: &str, handle: &str) -> Self {
        let staging = stage_dir(context, driver, handle).join("globalmount");
        Paths { target: dir.join("mount"), data: dir, staging, link: None }
    }

    /// Devices are kept by volume, not by pod: a link tells which pods have one.
    fn of_device(context: &Context, pod_dir: &Path, name: &str) -> Self {
        let all = context.root.join(OF_NODE).join("volumeDevices");
        Paths {
            data: all.join(name).join("data"),
            target: all.join("publish").join(name).join(pod_dir.file_name().unwrap_or_default()),
            staging: all.join("staging").join(name),
            link: Some(pod_dir.join(DEVICES).join(PLUGIN).join(name)),
        }
    }

    /// What is there while the pod has the volume, and for no other pod.
    fn mark(&self) -> &Path {
        self.link.as_deref().unwrap_or(&self.data)
    }

    /// Takes away what the driver has left of the pod's share.
    fn remove_target(&self) -> Result<()> {
        if self.link.is_none() {
            // The driver removes the mount point, or leaves it empty.
            return remove_dir(&self.target);
        }
        if self.target.is_dir() {
            remove_dir(&self.target)?;
        } else {
            absent_or(std::fs::remove_file(&self.target)).map_err(io("failed to remove the published device"))?;
        }
        // Others may have theirs beside it.
        let _ = self.target.parent().map(std::fs::remove_dir);
        Ok(())
    }

    /// Takes away what is left of the node's share, once its driver has done so.
    fn remove_staging(&self) -> Result<()> {
        remove_dir(&self.staging)?;
        match (&self.link, self.staging.parent()) {
            (None, Some(home)) => {
                remove_data(home)?;
                remove_dir(home)
            }
            _ => Ok(()),
        }
    }

    /// Takes away what tells of the volume, after the volume. `is_last`: no other pod has it.
    fn remove_mark(&self, is_last: bool) -> Result<()> {
        if is_last || self.link.is_none() {
            remove_data(&self.data)?;
            remove_dir(&self.data)?;
        }
        let Some(link) = &self.link else { return Ok(()) };
        if is_last && let Some(of_volume) = self.data.parent() {
            remove_dir(of_volume)?;
        }
        absent_or(std::fs::remove_file(link)).map_err(io("failed to remove the device's link"))
    }
}

async fn driver_spec(context: &Context, name: &str) -> Result<Option<CSIDriverSpec>> {
    let Some(client) = &context.client else { return Ok(None) };
    let found = ignore_not_found(Api::<CSIDriver>::all(client.clone()).get(name).await);
    Ok(found.map_err(|e| Failure(format!("cannot get CSIDriver {name}: {e}")))?.map(|d| d.spec))
}

async fn secret(context: &Context, namespace: &str, name: &str) -> Result<HashMap<String, String>> {
    let client =
        context.client.as_ref().ok_or_else(|| Failure("there is no apiserver to ask for a secret".to_owned()))?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let found = secrets.get(name).await;
    let found = found.map_err(|e| Failure(format!("fetching NodeStageSecretRef {namespace}/{name} failed: {e}")))?;
    let data = found.data.unwrap_or_default().into_iter();
    Ok(data.map(|(k, v)| (k, String::from_utf8_lossy(&v.0).into_owned())).collect())
}

async fn secret_of(context: &Context, named: Option<&SecretReference>) -> Result<HashMap<String, String>> {
    let Some(named) = named else { return Ok(HashMap::new()) };
    secret(context, named.namespace.as_deref().unwrap_or_default(), named.name.as_deref().unwrap_or_default()).await
}

/// A claim's volume on its way to a pod.
struct Claimed<'a> {
    pod: &'a Pod,
    csi: &'a CSIPersistentVolumeSource,
    data: Data,
    paths: Paths,
    /// Whether its driver prepares it for the node.
    is_staged: bool,
    capability: VolumeCapability,
    read_only: bool,
}

/// Brings a claim's volume to the pod. Gives where its file system is, or the link to its device.
pub(crate) async fn set_up(
    context: &Context,
    pod: &Pod,
    volume: &PersistentVolume,
    claim: &PersistentVolumeClaim,
    read_only: bool,
) -> Result<PathBuf> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let nothing = PersistentVolumeSpec::default();
    let spec = volume.spec.as_ref().unwrap_or(&nothing);
    let Some(csi) = &spec.csi else { return Err(Failure("it is no volume of a CSI driver".to_owned())) };
    let mut driver = context.drivers.get(&csi.driver)?;
    let known = driver_spec(context, &csi.driver).await?;
    let is_device = spec.volume_mode.as_deref() == Some("Block");
    let by_driver = driver.can.contains(&Can::VolumeMountGroup) && !is_device;
    let how = Use {
        access_mode: request::access_mode(spec),
        fs_type: csi.fs_type.as_deref().unwrap_or_default(),
        mount_options: spec.mount_options.clone().unwrap_or_default(),
        group: volumes::fs_group_of(pod).filter(|_| by_driver),
        is_device,
    };
    let claimed = Claimed {
        pod,
        csi,
        data: Data {
            driver_name: csi.driver.clone(),
            volume_handle: csi.volume_handle.clone(),
            spec_vol_id: name.to_owned(),
            node_name: context.node_name.clone(),
            attachment_id: request::attachment_name(&csi.volume_handle, &csi.driver, &context.node_name),
            volume_lifecycle_mode: "Persistent".to_owned(),
            fs_group: String::new(),
        },
        paths: match is_device {
            true => Paths::of_device(context, &pod_dir(context, pod), name),
            false => Paths::of_files(context, volume_dir(context, pod, name), &csi.driver, &csi.volume_handle),
        },
        is_staged: driver.can.contains(&Can::StageUnstageVolume),
        capability: request::capability(&how, &driver.can),
        read_only: read_only || csi.read_only == Some(true),
    };
    let paths = &claimed.paths;
    begin(context, paths, &claimed.data).await?;
    if driver.can.contains(&Can::ExpandVolume) {
        context.drivers.look_again(pod);
    }
    let was_there = is_published(context, pod, known.as_ref(), paths);
    if !was_there {
        claimed.mount(context, &mut driver, known.as_ref()).await?;
    }
    // An earlier try may have come as far as this; and what is mounted may be asked to grow.
    if let Err(failure) = claimed.expand(context, &mut driver, spec, claim).await {
        let text = format!("NodeExpandVolume.NodeExpandVolume failed for volume \"{name}\" : {failure}");
        context.events.warning(&reference(pod), "VolumeResizeFailed", text);
        if !was_there {
            return Err(failure);
        }
    }
    if is_device {
        return Ok(paths.mark().to_owned());
    }
    let policy = known.as_ref().and_then(|d| d.fs_group_policy.as_deref());
    if !claimed.read_only && !by_driver && request::owns_files(policy, &how) {
        own(pod, &paths.data).await?;
    }
    Ok(paths.target.clone())
}

/// Brings a volume that the pod itself describes.
pub(crate) async fn set_up_inline(context: &Context, pod: &Pod, name: &str, csi: &CSIVolumeSource) -> Result<PathBuf> {
    let mut driver = context.drivers.get(&csi.driver)?;
    let known = driver_spec(context, &csi.driver).await?;
    let modes = known.as_ref().and_then(|d| d.volume_lifecycle_modes.clone()).unwrap_or_default();
    if !modes.iter().any(|mode| mode == "Ephemeral") {
        let driver = &csi.driver;
        return Err(Failure(format!(
            "volume mode \"Ephemeral\" not supported by driver {driver} (only supports {modes:?})"
        )));
    }
    let handle = request::inline_handle(pod.metadata.uid.as_deref().unwrap_or_default(), name);
    let paths = Paths::of_files(context, volume_dir(context, pod, name), &csi.driver, &handle);
    let by_driver = driver.can.contains(&Can::VolumeMountGroup);
    let how = Use {
        access_mode: "ReadWriteOnce",
        fs_type: csi.fs_type.as_deref().unwrap_or_default(),
        mount_options: Vec::new(),
        group: volumes::fs_group_of(pod).filter(|_| by_driver),
        is_device: false,
    };
    if !is_published(context, pod, known.as_ref(), &paths) {
        let data = Data {
            driver_name: csi.driver.clone(),
            volume_handle: handle.clone(),
            spec_vol_id: name.to_owned(),
            node_name: context.node_name.clone(),
            volume_lifecycle_mode: "Ephemeral".to_owned(),
            ..Data::default()
        };
        let secrets = match &csi.node_publish_secret_ref {
            Some(r) => secret(context, pod.metadata.namespace.as_deref().unwrap_or_default(), &r.name).await?,
            None => HashMap::new(),
        };
        let mut attributes = request::context_of(csi.volume_attributes.as_ref(), pod, known.as_ref(), true);
        attributes.extend(tokens(context, pod, known.as_ref()).await?);
        let asked = NodePublishVolumeRequest {
            volume_id: handle,
            target_path: text(&paths.target),
            volume_capability: Some(request::capability(&how, &driver.can)),
            readonly: csi.read_only == Some(true),
            secrets,
            volume_context: attributes,
            ..NodePublishVolumeRequest::default()
        };
        begin(context, &paths, &data).await?;
        driver.client.node_publish_volume(within(asked)).await.map_err(rpc)?;
    }
    let policy = known.as_ref().and_then(|d| d.fs_group_policy.as_deref());
    if csi.read_only != Some(true) && !by_driver && request::owns_files(policy, &how) {
        own(pod, &paths.data).await?;
    }
    Ok(paths.target)
}

/// Whether the pod has the volume, and its driver does not ask to be told again.
fn is_published(context: &Context, pod: &Pod, driver: Option<&CSIDriverSpec>, paths: &Paths) -> bool {
    use std::os::unix::fs::FileTypeExt;
    if driver.and_then(|d| d.requires_republish) == Some(true) {
        context.drivers.look_again(pod);
        return false;
    }
    match paths.link {
        Some(_) => std::fs::metadata(&paths.target).is_ok_and(|found| found.file_type().is_block_device()),
        None => volumes::is_mounted(&paths.target),
    }
}

/// Gives the files of a mounted volume to the pod's group, once.
async fn own(pod: &Pod, dir: &Path) -> Result<()> {
    let (Some(group), Some(data)) = (volumes::fs_group_of(pod), read_data(dir)) else { return Ok(()) };
    let fs_group = group.to_string();
    if data.fs_group == fs_group {
        return Ok(());
    }
    volumes::own(pod, &dir.join("mount")).await.map_err(io("applyFSGroup failed"))?;
    write_data(dir, &Data { fs_group, ..data })
}

/// The pod's tokens for the audiences that the driver asks for, as drivers take them: one attribute in JSON.
async fn tokens(context: &Context, pod: &Pod, driver: Option<&CSIDriverSpec>) -> Result<Option<(String, String)>> {
    let wanted = driver.and_then(|d| d.token_requests.as_deref()).unwrap_or_default();
    let Some(client) = context.client.as_ref().filter(|_| !wanted.is_empty()) else { return Ok(None) };
    let mut all = serde_json::Map::new();
    for request in wanted {
        let audience = Some(request.audience.as_str()).filter(|a| !a.is_empty());
        let token = context.tokens.get(client, pod, audience, request.expiration_seconds).await;
        let token = token.map_err(|e| Failure(format!("failed to fetch token: {e}")))?;
        let shown = json!({ "token": token.text, "expirationTimestamp": token.expires.to_string() });
        all.insert(request.audience.clone(), shown);
    }
    let attribute = "csi.storage.k8s.io/serviceAccount.tokens".to_owned();
    Ok(Some((attribute, serde_json::Value::Object(all).to_string())))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn pod_dir(context: &Context, pod: &Pod) -> PathBuf {
    volumes::pod_dir(&context.root, pod.metadata.uid.as_deref().unwrap_or_default())
}

fn volume_dir(context: &Context, pod: &Pod, name: &str) -> PathBuf {
    pod_dir(context, pod).join("volumes").join(PLUGIN).join(name)
}

/// Waits for the attacher. Gives what the attachment says to the node.
async fn attached(context: &Context, csi: &CSIPersistentVolumeSource, name: &str) -> Result<HashMap<String, String>> {
    let Some(client) = &context.client else { return Ok(HashMap::new()) };
    let api: Api<VolumeAttachment> = Api::all(client.clone());
    let began = tokio::time::Instant::now();
    let (driver, handle) = (&csi.driver, &csi.volume_handle);
    loop {
        let found = ignore_not_found(api.get(name).await);
        let found =
            found.map_err(|e| Failure(format!("volume {handle} has GET error for volume attachment {name}: {e}")))?;
        let status = found.and_then(|a| a.status).unwrap_or_default();
        if status.attached {
            return Ok(status.attachment_metadata.unwrap_or_default().into_iter().collect());
        }
        if let Some(message) = status.attach_error.and_then(|e| e.message) {
            return Err(Failure(message));
        }
        if began.elapsed() > ATTACH {
            let words = "timed out waiting for external-attacher of";
            return Err(Failure(format!("{words} {driver} CSI driver to attach volume {handle}")));
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Claimed<'_> {
    /// Brings the volume to the node and to the pod, once it is attached.
    async fn mount(&self, context: &Context, driver: &mut Driver, known: Option<&CSIDriverSpec>) -> Result<()> {
        let must_attach = known.and_then(|d| d.attach_required) != Some(false);
        let published = match must_attach {
            true => attached(context, self.csi, &self.data.attachment_id).await?,
            false => HashMap::new(),
        };
        let _turn = context.drivers.turns.take(&device_of(&self.data)).await;
        self.stage(context, driver, &published).await?;
        let mut attributes = request::context_of(self.csi.volume_attributes.as_ref(), self.pod, known, false);
        attributes.extend(tokens(context, self.pod, known).await?);
        let asked = NodePublishVolumeRequest {
            volume_id: self.csi.volume_handle.clone(),
            publish_context: published,
            staging_target_path: self.staging_path(),
            target_path: text(&self.paths.target),
            volume_capability: Some(self.capability.clone()),
            readonly: self.read_only,
            secrets: secret_of(context, self.csi.node_publish_secret_ref.as_ref()).await?,
            volume_context: attributes,
        };
        if self.paths.link.is_some() {
            let dir = self.paths.target.parent().unwrap_or(&self.paths.target);
            std::fs::create_dir_all(dir).map_err(io("failed to create the directory of published devices"))?;
        }
        driver.client.node_publish_volume(within(asked)).await.map_err(rpc)?;
        Ok(())
    }

    fn staging_path(&self) -> String {
        if self.is_staged { text(&self.paths.staging) } else { String::new() }
    }

    /// Prepares the volume for the node, where the driver has that step. It may be told again: drivers take that as done.
    async fn stage(&self, context: &Context, driver: &mut Driver, published: &HashMap<String, String>) -> Result<()> {
        if !self.is_staged {
            return Ok(());
        }
        let target = &self.paths.staging;
        std::fs::create_dir_all(target).map_err(io("failed to create the staging directory"))?;
        if self.paths.link.is_none() {
            write_data(&stage_dir(context, &self.csi.driver, &self.csi.volume_handle), &self.data)?;
        }
        let asked = NodeStageVolumeRequest {
            volume_id: self.csi.volume_handle.clone(),
            publish_context: published.clone(),
            staging_target_path: text(target),
            volume_capability: Some(self.capability.clone()),
            secrets: secret_of(context, self.csi.node_stage_secret_ref.as_ref()).await?,
            volume_context: self.csi.volume_attributes.clone().unwrap_or_default().into_iter().collect(),
        };
        driver.client.node_stage_volume(within(asked)).await.map_err(rpc)?;
        Ok(())
    }

    /// Lets the file system grow to the size that the volume has got, and tells the claim.
    async fn expand(
        &self,
        context: &Context,
        driver: &mut Driver,
        spec: &PersistentVolumeSpec,
        claim: &PersistentVolumeClaim,
    ) -> Result<()> {
        let size = |list: Option<&BTreeMap<String, _>>| list?.get("storage").and_then(crate::cgroups::whole);
        let has = size(spec.capacity.as_ref()).unwrap_or_default();
        let told = size(claim.status.as_ref().and_then(|s| s.capacity.as_ref())).unwrap_or(has);
        if !driver.can.contains(&Can::ExpandVolume) || has <= told {
            return Ok(());
        }
        let asked = NodeExpandVolumeRequest {
            volume_id: self.csi.volume_handle.clone(),
            volume_path: text(&self.paths.target),
            capacity_range: Some(CapacityRange { required_bytes: has, limit_bytes: 0 }),
            staging_target_path: self.staging_path(),
            volume_capability: Some(self.capability.clone()),
            secrets: HashMap::new(),
        };
        driver.client.node_expand_volume(within(asked)).await.map_err(rpc)?;
        let text = format!("MountVolume.NodeExpandVolume succeeded for volume \"{}\"", self.data.spec_vol_id);
        context.events.normal(&reference(self.pod), "FileSystemResizeSuccessful", text);
        let Some(client) = &context.client else { return Ok(()) };
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(client.clone(), claim.metadata.namespace.as_deref().unwrap_or_default());
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        let patch = Patch::Merge(request::expanded(claim, spec.capacity.as_ref()));
        let told = claims.patch_status(name, &PatchParams::default(), &patch).await;
        told.map(drop).map_err(|e| Failure(format!("the claim could not be told its new size: {e}")))
    }
}

/// Notes that the pod has the volume, before anything is asked of its driver.
async fn begin(context: &Context, paths: &Paths, data: &Data) -> Result<()> {
    let _turn = context.drivers.turns.take(&device_of(data)).await;
    let dir = &paths.data;
    std::fs::create_dir_all(dir).map_err(io("failed to create the volume's directory"))?;
    if read_data(dir).is_none() {
        write_data(dir, data)?;
    }
    if let Some(link) = &paths.link {
        let made =
            std::fs::create_dir_all(link.parent().unwrap_or(link)).and_then(|()| {
                match std::os::unix::fs::symlink(&paths.target, link) {
                    Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
                    made => made,
                }
            });
        made.map_err(io("failed to link the device"))?;
    }
    if data.is_attachable() {
        context.volumes_in_use.begin(&device_of(data));
    }
    Ok(())
}

/// Whole or not at all: a volume of which nothing is known stays for ever.
fn write_data(dir: &Path, data: &Data) -> Result<()> {
    let text = serde_json::to_vec(data).map_err(|e| Failure(e.to_string()))?;
    // Beside the directory, under a name that no volume can have.
    let fresh = dir.with_file_name(format!("{}~", dir.file_name().unwrap_or_default().to_string_lossy()));
    let written = std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, dir.join(DATA)));
    written.map_err(io("failed to write down the volume's data"))
}

/// Takes down what drivers have mounted for a pod, and for the node where no other pod needs it.
pub(crate) async fn tear_down(context: &Context, pod_dir: &Path) -> Result<()> {
    if let Some(uid) = pod_dir.file_name() {
        context.drivers.looked_after.lock().remove(&*uid.to_string_lossy());
    }
    for (paths, data) in held_by(context, pod_dir) {
        let _turn = context.drivers.turns.take(&device_of(&data)).await;
        let is_untouched = !paths.target.exists() && !paths.staging.exists();
        let mut driver = match context.drivers.get(&data.driver_name) {
            Ok(driver) => Some(driver),
            Err(_) if is_untouched => None, // it was never asked for anything
            Err(missing) => return Err(missing),
        };
        if let Some(driver) = &mut driver {
            let target_path = text(&paths.target);
            let asked = NodeUnpublishVolumeRequest { volume_id: data.volume_handle.clone(), target_path };
            driver.client.node_unpublish_volume(within(asked)).await.map_err(rpc)?;
        }
        paths.remove_target()?;
        let is_last = !is_used_elsewhere(context, &data, &paths);
        if data.is_attachable() && is_last {
            if let Some(driver) = &mut driver {
                unstage(driver, &paths, &data).await?;
            }
            context.volumes_in_use.end(&device_of(&data));
        }
        paths.remove_mark(is_last)?;
    }
    Ok(())
}

async fn unstage(driver: &mut Driver, paths: &Paths, data: &Data) -> Result<()> {
    if driver.can.contains(&Can::StageUnstageVolume) && paths.staging.exists() {
        let staging_target_path = text(&paths.staging);
        let asked = NodeUnstageVolumeRequest { volume_id: data.volume_handle.clone(), staging_target_path };
        driver.client.node_unstage_volume(within(asked)).await.map_err(rpc)?;
        paths.remove_staging()?;
    }
    Ok(())
}

fn remove_dir(dir: &Path) -> Result<()> {
    absent_or(std::fs::remove_dir(dir)).map_err(io("failed to remove the volume's directory"))
}

fn remove_data(dir: &Path) -> Result<()> {
    absent_or(std::fs::remove_file(dir.join(DATA))).map_err(io("failed to remove the volume's data"))
}

fn absent_or(done: std::io::Result<()>) -> std::io::Result<()> {
    match done {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn read_data(dir: &Path) -> Option<Data> {
    serde_json::from_slice(&std::fs::read(dir.join(DATA)).ok()?).ok()
}

fn below(dir: &Path) -> impl Iterator<Item = std::fs::DirEntry> + use<> {
    std::fs::read_dir(dir).into_iter().flatten().filter_map(std::result::Result::ok)
}

/// The volumes of drivers that a pod has, as they lie on the disk.
fn held_by(context: &Context, pod_dir: &Path) -> Vec<(Paths, Data)> {
    let files = below(&pod_dir.join("volumes").join(PLUGIN)).filter_map(|entry| {
        let data = read_data(&entry.path())?;
        Some((Paths::of_files(context, entry.path(), &data.driver_name, &data.volume_handle), data))
    });
    let devices = below(&pod_dir.join(DEVICES).join(PLUGIN)).filter_map(|entry| {
        let paths = Paths::of_device(context, pod_dir, &entry.file_name().to_string_lossy());
        let data = read_data(&paths.data)?;
        Some((paths, data))
    });
    files.chain(devices).collect()
}

fn all_held(context: &Context) -> impl Iterator<Item = (Paths, Data)> {
    below(&context.root.join("pods")).flat_map(|pod| held_by(context, &pod.path()))
}

fn is_used_elsewhere(context: &Context, data: &Data, paths: &Paths) -> bool {
    all_held(context).any(|(at, other)| at.mark() != paths.mark() && device_of(&other) == device_of(data))
}

/// The volume's name in a Node's status.
fn device_of(data: &Data) -> String {
    format!("kubernetes.io/csi/{}^{}", data.driver_name, data.volume_handle)
}

/// What pods have of volumes that can be attached, as it lies on the disk.
pub(crate) fn devices_in_use(context: &Context) -> BTreeSet<String> {
    all_held(context).filter(|(_, d)| d.is_attachable()).map(|(_, d)| device_of(&d)).collect()
}

#[cfg(test)]
mod tests;
