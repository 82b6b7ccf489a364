//! The container runtime, through CRI v1: the calls that the kubelet makes and the facts that it keeps of their answers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1 as cri;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tokio::sync::OnceCell;
use tonic::transport::Channel;

use crate::labels;

#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("the container runtime endpoint {0:?} is not a unix socket")]
    Endpoint(String),
    #[error("{}", .0.message())]
    Call(#[from] Box<tonic::Status>),
    #[error("validate service connection: validate CRI v1 runtime API for endpoint {endpoint:?}: {}", source.in_full())]
    Unusable { endpoint: String, source: Box<RuntimeError> },
    #[error("the container runtime answered without {0}")]
    Incomplete(&'static str),
}

impl From<tonic::Status> for RuntimeError {
    fn from(status: tonic::Status) -> Self {
        RuntimeError::Call(Box::new(status))
    }
}

impl RuntimeError {
    /// The error in the words of gRPC's client for Go, which upstream's events repeat.
    pub(crate) fn in_full(&self) -> String {
        match self {
            RuntimeError::Call(status) => format!("rpc error: code = {:?} desc = {}", status.code(), status.message()),
            other => other.to_string(),
        }
    }

    /// The same, without a code that says nothing.
    pub(crate) fn in_short(&self) -> String {
        match self {
            RuntimeError::Call(status) if status.code() == tonic::Code::Unknown => status.message().to_owned(),
            other => other.in_full(),
        }
    }
}

type Result<T> = std::result::Result<T, RuntimeError>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sandbox {
    pub id: String,
    pub attempt: u32,
    pub ready: bool,
    pub created_at: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Created,
    Running,
    Exited,
    Unknown,
}

/// A container as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub id: String,
    pub sandbox_id: String,
    pub name: String,
    pub phase: Phase,
    pub created_at: i64,
    pub restart_count: i32,
    pub hash: String,
}

/// What runs of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodState {
    pub uid: String,
    pub name: String,
    pub namespace: String,
    /// Newest first.
    pub sandboxes: Vec<Sandbox>,
    /// Newest first.
    pub containers: Vec<Listed>,
}

/// A container in full; times in nanoseconds since 1970, 0 for not yet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ContainerStatus {
    pub listed: Listed,
    pub started_at: i64,
    pub finished_at: i64,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub image: String,
    pub image_ref: String,
    pub log_path: String,
    /// Where the container's termination message lies on the host, and whether its log may stand in for it.
    pub termination_path: Option<PathBuf>,
    pub termination_fallback: bool,
    /// Who its first process runs as, where the runtime tells.
    pub user: Option<cri::LinuxContainerUser>,
}

/// What a runtime can do under one of its handlers; the empty name is the default's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Handler {
    pub name: String,
    pub recursive_read_only_mounts: bool,
    pub user_namespaces: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features {
    pub handlers: Vec<Handler>,
    pub supplemental_groups_policy: bool,
}

#[derive(Clone)]
pub(crate) struct Runtime {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    name: Arc<OnceCell<String>>,
}

/// Calls that the runtime answers from memory.
const QUICK: Duration = Duration::from_secs(120);
/// Starting a sandbox waits for the CNI plugins.
const SLOW: Duration = Duration::from_secs(240);

fn within<T>(timeout: Duration, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(timeout);
    request
}

impl Runtime {
    /// `endpoint` is `unix:///run/containerd/containerd.sock`. The connection is made with the first call, and again after
    /// the runtime was away.
    pub(crate) fn connect(endpoint: &str) -> Result<Self> {
        let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
        if !path.starts_with('/') {
            return Err(RuntimeError::Endpoint(endpoint.to_owned()));
        }
        let channel = crate::plugins::connect(Path::new(path));
        Ok(Runtime {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(16 << 20),
            images: ImageServiceClient::new(channel).max_decoding_message_size(16 << 20),
            name: Arc::default(),
        })
    }

    pub(crate) async fn version(&self) -> Result<cri::VersionResponse> {
        let request = cri::VersionRequest { version: "0.1.0".into() };
        Ok(self.runtime.clone().version(within(QUICK, request)).await?.into_inner())
    }

    /// Whether something answers there that speaks CRI v1.
    pub(crate) async fn validate(&self, endpoint: &str) -> Result<()> {
        let unusable = |source| RuntimeError::Unusable { endpoint: endpoint.to_owned(), source: Box::new(source) };
        self.version().await.map(drop).map_err(unusable)
    }

    /// What it calls itself. Until it has answered for the first time it is taken for the one that most nodes have.
    pub(crate) async fn name(&self) -> String {
        let asked = self.name.get_or_try_init(|| async { self.version().await.map(|v| v.runtime_name) }).await;
        asked.map_or_else(|_| "containerd".to_owned(), Clone::clone)
    }

    /// Conditions that are not met, as `type: message`; empty when the runtime and its network are ready.
    pub(crate) async fn unmet_conditions(&self) -> Result<Vec<cri::RuntimeCondition>> {
        let answer = self.runtime.clone().status(within(QUICK, cri::StatusRequest::default())).await?.into_inner();
        let conditions = answer.status.ok_or(RuntimeError::Incomplete("a status"))?.conditions;
        Ok(conditions.into_iter().filter(|c| !c.status).collect())
    }

    /// What it says that it can do; a runtime that does not know the question can do none of it.
    pub(crate) async fn features(&self) -> Result<Features> {
        let answer = self.runtime.clone().status(within(QUICK, cri::StatusRequest::default())).await?.into_inner();
        let handler = |h: cri::RuntimeHandler| {
            let features = h.features.unwrap_or_default();
            let (rro, users) = (features.recursive_read_only_mounts, features.user_namespaces);
            Handler { name: h.name, recursive_read_only_mounts: rro, user_namespaces: users }
        };
        Ok(Features {
            handlers: answer.runtime_handlers.into_iter().map(handler).collect(),
            supplemental_groups_policy: answer.features.is_some_and(|f| f.supplemental_groups_policy),
        })
    }

    /// Everything that the runtime runs for Kubernetes, by pod uid.
    pub(crate) async fn list(&self) -> Result<BTreeMap<String, PodState>> {
        self.list_where(HashMap::new()).await
    }

    pub(crate) async fn pod(&self, uid: &str) -> Result<PodState> {
        let selector = HashMap::from([(labels::POD_UID.to_owned(), uid.to_owned())]);
        Ok(self.list_where(selector).await?.remove(uid).unwrap_or_default())
    }

    async fn list_where(&self, label_selector: HashMap<String, String>) -> Result<BTreeMap<String, PodState>> {
        let mut client = self.runtime.clone();
        let filter = cri::PodSandboxFilter { label_selector: label_selector.clone(), ..Default::default() };
        let sandboxes = client
            .list_pod_sandbox(within(QUICK, cri::ListPodSandboxRequest { filter: Some(filter) }))
            .await?
            .into_inner()
            .items;
        let filter = cri::ContainerFilter { label_selector, ..Default::default() };
        let containers = client
            .list_containers(within(QUICK, cri::ListContainersRequest { filter: Some(filter) }))
            .await?
            .into_inner()
            .containers;
        Ok(group(sandboxes, containers))
    }

    pub(crate) async fn sandbox_ips(&self, id: &str) -> Result<Vec<String>> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        let answer = self.runtime.clone().pod_sandbox_status(within(QUICK, request)).await?.into_inner();
        let Some(network) = answer.status.and_then(|s| s.network).filter(|n| !n.ip.is_empty()) else {
            return Ok(Vec::new());
        };
        Ok(std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip)).collect())
    }

    pub(crate) async fn container(&self, id: &str) -> Result<ContainerStatus> {
        let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: false };
        let answer = self.runtime.clone().container_status(within(QUICK, request)).await?.into_inner();
        let status = answer.status.ok_or(RuntimeError::Incomplete("a container status"))?;
        Ok(status_of(status))
    }

    pub(crate) async fn run_sandbox(&self, config: cri::PodSandboxConfig, handler: &str) -> Result<String> {
        let request = cri::RunPodSandboxRequest { config: Some(config), runtime_handler: handler.to_owned() };
        Ok(self.runtime.clone().run_pod_sandbox(within(SLOW, request)).await?.into_inner().pod_sandbox_id)
    }

    pub(crate) async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.into() };
        self.runtime.clone().stop_pod_sandbox(within(SLOW, request)).await?;
        Ok(())
    }

    pub(crate) async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        self.runtime.clone().remove_pod_sandbox(within(SLOW, request)).await?;
        Ok(())
    }

    pub(crate) async fn create_container(
        &self,
        sandbox_id: &str,
        config: cri::ContainerConfig,
        sandbox: cri::PodSandboxConfig,
    ) -> Result<String> {
        let (config, sandbox_config) = (Some(config), Some(sandbox));
        let request = cri::CreateContainerRequest { pod_sandbox_id: sandbox_id.into(), config, sandbox_config };
        Ok(self.runtime.clone().create_container(within(SLOW, request)).await?.into_inner().container_id)
    }

    pub(crate) async fn start_container(&self, id: &str) -> Result<()> {
        let request = cri::StartContainerRequest { container_id: id.into() };
        self.runtime.clone().start_container(within(SLOW, request)).await?;
        Ok(())
    }

    /// Sends the stop signal, waits up to `grace`, and kills.
    pub(crate) async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let request = cri::StopContainerRequest { container_id: id.into(), timeout };
        self.runtime.clone().stop_container(within(grace + QUICK, request)).await?;
        Ok(())
    }

    pub(crate) async fn remove_container(&self, id: &str) -> Result<()> {
        let request = cri::RemoveContainerRequest { container_id: id.into() };
        self.runtime.clone().remove_container(within(QUICK, request)).await?;
        Ok(())
    }

    pub(crate) async fn update_container(&self, id: &str, linux: cri::LinuxContainerResources) -> Result<()> {
        let request =
            cri::UpdateContainerResourcesRequest { container_id: id.into(), linux: Some(linux), ..Default::default() };
        self.runtime.clone().update_container_resources(within(QUICK, request)).await?;
        Ok(())
    }

    /// Writes a container's state into `file`; `timeout` in seconds, 0: the runtime's own.
    pub(crate) async fn checkpoint(&self, id: &str, file: &Path, timeout: i64) -> Result<()> {
        let location = file.to_string_lossy().into_owned();
        let request = cri::CheckpointContainerRequest { container_id: id.into(), location, timeout };
        let seconds = Duration::from_secs(u64::try_from(timeout).unwrap_or_default());
        self.runtime.clone().checkpoint_container(within(seconds + SLOW, request)).await?;
        Ok(())
    }

    pub(crate) async fn reopen_log(&self, id: &str) -> Result<()> {
        let request = cri::ReopenContainerLogRequest { container_id: id.into() };
        self.runtime.clone().reopen_container_log(within(QUICK, request)).await?;
        Ok(())
    }

    /// The images of all containers, under the names that the runtime knows them by.
    pub(crate) async fn images_in_use(&self) -> Result<BTreeSet<String>> {
        let request = cri::ListContainersRequest::default();
        let all = self.runtime.clone().list_containers(within(QUICK, request)).await?.into_inner().containers;
        let names = all.into_iter().flat_map(|c| [Some(c.image_ref), Some(c.image_id), c.image.map(|i| i.image)]);
        Ok(names.flatten().filter(|n| !n.is_empty()).collect())
    }

    pub(crate) async fn remove_image(&self, image: &str) -> Result<()> {
        let request = cri::RemoveImageRequest { image: Some(spec_of(image)) };
        self.images.clone().remove_image(within(QUICK, request)).await?;
        Ok(())
    }

    /// Bytes and inodes that images take, by the file system's mount point.
    pub(crate) async fn image_file_systems(&self) -> Result<Vec<cri::FilesystemUsage>> {
        let answer = self.images.clone().image_fs_info(within(QUICK, cri::ImageFsInfoRequest {})).await?;
        Ok(answer.into_inner().image_filesystems)
    }

    pub(crate) async fn exec(&self, id: &str, cmd: Vec<String>, timeout: Duration) -> Result<cri::ExecSyncResponse> {
        let seconds = i64::try_from(timeout.as_secs()).unwrap_or_default();
        let request = cri::ExecSyncRequest { container_id: id.into(), cmd, timeout: seconds };
        Ok(self.runtime.clone().exec_sync(within(timeout + QUICK, request)).await?.into_inner())
    }

    /// The URL at which the runtime streams an exec.
    pub(crate) async fn exec_url(&self, request: cri::ExecRequest) -> Result<String> {
        Ok(self.runtime.clone().exec(within(QUICK, request)).await?.into_inner().url)
    }

    pub(crate) async fn attach_url(&self, request: cri::AttachRequest) -> Result<String> {
        Ok(self.runtime.clone().attach(within(QUICK, request)).await?.into_inner().url)
    }

    pub(crate) async fn port_forward_url(&self, sandbox_id: &str, ports: Vec<i32>) -> Result<String> {
        let request = cri::PortForwardRequest { pod_sandbox_id: sandbox_id.into(), port: ports };
        Ok(self.runtime.clone().port_forward(within(QUICK, request)).await?.into_inner().url)
    }

    pub(crate) async fn container_stats(&self) -> Result<Vec<cri::ContainerStats>> {
        let request = cri::ListContainerStatsRequest::default();
        Ok(self.runtime.clone().list_container_stats(within(QUICK, request)).await?.into_inner().stats)
    }

    pub(crate) async fn image(&self, image: &str) -> Result<Option<cri::Image>> {
        let request = cri::ImageStatusRequest { image: Some(spec_of(image)), verbose: false };
        Ok(self.images.clone().image_status(within(QUICK, request)).await?.into_inner().image)
    }

    pub(crate) async fn images(&self) -> Result<Vec<cri::Image>> {
        Ok(self.images.clone().list_images(within(QUICK, cri::ListImagesRequest::default())).await?.into_inner().images)
    }

    pub(crate) async fn pull(&self, image: &str, auth: Option<cri::AuthConfig>) -> Result<String> {
        let request = cri::PullImageRequest { image: Some(spec_of(image)), auth, sandbox_config: None };
        // A pull has no deadline of its own: the runtime gives up when nothing moves.
        Ok(self.images.clone().pull_image(request).await?.into_inner().image_ref)
    }
}

fn spec_of(image: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: image.to_owned(), ..Default::default() }
}

fn group(sandboxes: Vec<cri::PodSandbox>, containers: Vec<cri::Container>) -> BTreeMap<String, PodState> {
    let mut pods: BTreeMap<String, PodState> = BTreeMap::new();
    for s in sandboxes {
        let Some(meta) = s.metadata else { continue };
        let pod = pods.entry(meta.uid.clone()).or_default();
        (pod.uid, pod.name, pod.namespace) = (meta.uid, meta.name, meta.namespace);
        let ready = s.state == cri::PodSandboxState::SandboxReady as i32;
        pod.sandboxes.push(Sandbox { id: s.id, attempt: meta.attempt, ready, created_at: s.created_at });
    }
    for c in containers {
        let Some(uid) = c.labels.get(labels::POD_UID).cloned() else { continue };
        let pod = pods.entry(uid.clone()).or_default();
        pod.uid = uid;
        let (name, namespace) = (c.labels.get(labels::POD_NAME), c.labels.get(labels::POD_NAMESPACE));
        pod.name = name.cloned().unwrap_or_default();
        pod.namespace = namespace.cloned().unwrap_or_default();
        let name = c.metadata.map(|m| m.name).unwrap_or_default();
        pod.containers.push(listed(c.id, c.pod_sandbox_id, name, c.state, c.created_at, &c.annotations));
    }
    for pod in pods.values_mut() {
        pod.sandboxes.sort_by_key(|s| std::cmp::Reverse(s.created_at));
        pod.containers.sort_by_key(|c| std::cmp::Reverse(c.created_at));
    }
    pods
}

fn listed(
    id: String,
    sandbox_id: String,
    name: String,
    state: i32,
    created_at: i64,
    annotations: &HashMap<String, String>,
) -> Listed {
    let phase = match cri::ContainerState::try_from(state) {
        Ok(cri::ContainerState::ContainerCreated) => Phase::Created,
        Ok(cri::ContainerState::ContainerRunning) => Phase::Running,
        Ok(cri::ContainerState::ContainerExited) => Phase::Exited,
        _ => Phase::Unknown,
    };
    let restart_count = annotations.get(labels::RESTART_COUNT).and_then(|c| c.parse().ok()).unwrap_or_default();
    let hash = annotations.get(labels::HASH).cloned().unwrap_or_default();
    Listed { id, sandbox_id, name, phase, created_at, restart_count, hash }
}

fn status_of(s: cri::ContainerStatus) -> ContainerStatus {
    let in_container = s.annotations.get(labels::TERMINATION_PATH);
    let mounted = s.mounts.iter().find(|m| Some(&m.container_path) == in_container);
    let fallback = s.annotations.get(labels::TERMINATION_POLICY).is_some_and(|p| p == "FallbackToLogsOnError");
    let name = s.metadata.map(|m| m.name).unwrap_or_default();
    ContainerStatus {
        termination_path: mounted.map(|m| PathBuf::from(&m.host_path)),
        termination_fallback: fallback,
        listed: listed(s.id, String::new(), name, s.state, s.created_at, &s.annotations),
        started_at: s.started_at,
        finished_at: s.finished_at,
        exit_code: s.exit_code,
        reason: s.reason,
        message: s.message,
        image: s.image.map(|i| i.image).unwrap_or_default(),
        image_ref: s.image_ref,
        log_path: s.log_path,
        user: s.user.and_then(|u| u.linux),
    }
}
