//! A container runtime that keeps books instead of running anything. It conforms to CRI v1 as far as kubelets can tell, and
//! can let a call hang before or after its effect.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_cri::v1::image_service_server::{ImageService, ImageServiceServer};
use k8s_cri::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use k8s_cri::v1::*;
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::sync::{Notify, watch};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;

/// Where a call hangs: the n-th of those that change something, counted from 0, before or after its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trap {
    pub(crate) call: usize,
    pub(crate) after: bool,
}

#[derive(Default)]
struct State {
    made: i64,
    sandboxes: BTreeMap<String, Sandbox>,
    containers: BTreeMap<String, Container>,
    images: Vec<String>,
    /// The calls that change something, in their order.
    calls: Vec<&'static str>,
    trap: Option<Trap>,
    /// It does not say what runs, and counts how often it was asked.
    silent: bool,
    asked_in_vain: usize,
    /// How many of the next updates it refuses.
    refused_updates: usize,
    /// What no runtime should ever be asked.
    mistakes: Vec<String>,
}

struct Sandbox {
    config: PodSandboxConfig,
    ready: bool,
    created_at: i64,
}

struct Container {
    config: ContainerConfig,
    sandbox: String,
    state: ContainerState,
    created_at: i64,
    started_at: i64,
    finished_at: i64,
    exit_code: i32,
    /// The CPUs that it was moved to.
    cpus: Option<String>,
}

#[derive(Clone, Default)]
pub(crate) struct FakeCri {
    state: Arc<Mutex<State>>,
    sprung: Arc<Notify>,
    /// How often the state changed.
    changes: watch::Sender<u64>,
}

impl FakeCri {
    /// Serves on a socket in this directory until the test's runtime ends. Gives the socket.
    pub(crate) fn serve(&self, dir: &Path) -> PathBuf {
        let socket = dir.join("cri.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (runtime, images) = (RuntimeServiceServer::new(self.clone()), ImageServiceServer::new(self.clone()));
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(runtime)
                .add_service(images)
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        socket
    }

    pub(crate) fn set_trap(&self, trap: Option<Trap>) {
        self.state.lock().trap = trap;
    }

    /// Whether it keeps to itself what runs.
    pub(crate) fn set_silent(&self, silent: bool) {
        self.state.lock().silent = silent;
    }

    pub(crate) fn refuse_updates(&self, count: usize) {
        self.state.lock().refused_updates = count;
    }

    /// Whether every container was moved to CPUs of which it knows.
    pub(crate) fn has_moved_all(&self) -> bool {
        let state = self.state.lock();
        let mut running = state.containers.values().filter(|c| c.state == ContainerState::ContainerRunning);
        running.all(|c| c.cpus.as_ref().is_some_and(|cpus| !cpus.is_empty()))
    }

    /// How often it was asked what runs and did not say it.
    pub(crate) fn asked_in_vain(&self) -> usize {
        self.state.lock().asked_in_vain
    }

    /// Returns when the condition holds, which is looked at after each change.
    pub(crate) async fn until(&self, holds: impl Fn() -> bool) {
        let mut changes = self.changes.subscribe();
        while !holds() {
            changes.changed().await.unwrap();
        }
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Returns when a call has been caught.
    pub(crate) async fn sprung(&self) {
        self.sprung.notified().await;
    }

    pub(crate) fn calls(&self) -> Vec<&'static str> {
        self.state.lock().calls.clone()
    }

    pub(crate) fn mistakes(&self) -> Vec<String> {
        self.state.lock().mistakes.clone()
    }

    /// The names of the containers that run in sandboxes that are ready, in order.
    pub(crate) fn running(&self) -> Vec<String> {
        let state = self.state.lock();
        let mut names: Vec<String> = state
            .containers
            .values()
            .filter(|c| c.state == ContainerState::ContainerRunning && state.sandboxes[&c.sandbox].ready)
            .map(|c| name_of(&c.config))
            .collect();
        names.sort();
        names
    }

    /// How many times a container was made.
    pub(crate) fn count_of(&self, name: &str) -> usize {
        self.state.lock().containers.values().filter(|c| name_of(&c.config) == name).count()
    }

    pub(crate) fn is_empty(&self) -> bool {
        let state = self.state.lock();
        state.sandboxes.is_empty() && state.containers.is_empty()
    }

    pub(crate) fn ready_sandboxes(&self) -> usize {
        self.state.lock().sandboxes.values().filter(|s| s.ready).count()
    }

    /// Ends a container, as its own process would.
    pub(crate) fn end(&self, name: &str, exit_code: i32) {
        let mut state = self.state.lock();
        let at = state.tick();
        let running = |c: &&mut Container| c.state == ContainerState::ContainerRunning && name_of(&c.config) == name;
        let container = state.containers.values_mut().find(running).unwrap();
        container.finish(at, exit_code);
        self.changed();
    }

    /// Forgets a container, as a runtime that lost its books would.
    pub(crate) fn lose(&self, name: &str) {
        self.state.lock().containers.retain(|_, c| name_of(&c.config) != name);
        self.changed();
    }

    /// Does something that changes the state; hangs before or after it where the trap says so.
    async fn change<T>(&self, call: &'static str, act: impl FnOnce(&mut State) -> Answer<T>) -> Answer<T> {
        let (index, trap) = {
            let mut state = self.state.lock();
            state.calls.push(call);
            (state.calls.len() - 1, state.trap)
        };
        let caught = trap.filter(|trap| trap.call == index);
        if caught.is_some_and(|trap| !trap.after) {
            self.hang().await;
        }
        let answer = act(&mut self.state.lock());
        self.changed();
        if caught.is_some() {
            self.hang().await;
        }
        answer
    }

    async fn hang(&self) {
        self.sprung.notify_one();
        std::future::pending::<()>().await;
    }
}

impl State {
    /// The time, which moves on each time that it is asked.
    fn tick(&mut self) -> i64 {
        self.made += 1;
        let now = jiff::Timestamp::now().as_nanosecond();
        i64::try_from(now).unwrap() + self.made
    }

    fn container(&mut self, id: &str) -> Result<&mut Container, Status> {
        self.containers.get_mut(id).ok_or_else(|| Status::not_found(format!("no container {id:?}")))
    }
}

impl Container {
    fn finish(&mut self, at: i64, exit_code: i32) {
        if self.state == ContainerState::ContainerRunning {
            (self.state, self.finished_at, self.exit_code) = (ContainerState::ContainerExited, at, exit_code);
        }
    }
}

fn name_of(config: &ContainerConfig) -> String {
    config.metadata.as_ref().unwrap().name.clone()
}

fn selected(labels: &HashMap<String, String>, wanted: &HashMap<String, String>) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}

fn unimplemented<T>(call: &str) -> Answer<T> {
    Err(Status::unimplemented(format!("this runtime cannot {call}")))
}

#[tonic::async_trait]
impl RuntimeService for FakeCri {
    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        Ok(Response::new(VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "fake".into(),
            runtime_version: "1".into(),
            runtime_api_version: "v1".into(),
        }))
    }

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        let config = request.into_inner().config.unwrap();
        self.change("RunPodSandbox", |state| {
            let created_at = state.tick();
            let id = format!("sandbox-{}", state.made);
            state.sandboxes.insert(id.clone(), Sandbox { config, ready: true, created_at });
            Ok(Response::new(RunPodSandboxResponse { pod_sandbox_id: id }))
        })
        .await
    }

    async fn stop_pod_sandbox(&self, request: Request<StopPodSandboxRequest>) -> Answer<StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.change("StopPodSandbox", |state| {
            let at = state.tick();
            state.containers.values_mut().filter(|c| c.sandbox == id).for_each(|c| c.finish(at, 137));
            if let Some(sandbox) = state.sandboxes.get_mut(&id) {
                sandbox.ready = false;
            }
            Ok(Response::new(StopPodSandboxResponse {}))
        })
        .await
    }

    async fn remove_pod_sandbox(&self, request: Request<RemovePodSandboxRequest>) -> Answer<RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.change("RemovePodSandbox", |state| {
            if state.sandboxes.get(&id).is_some_and(|s| s.ready) {
                state.mistakes.push(format!("{id} was removed before it was stopped"));
            }
            state.sandboxes.remove(&id);
            state.containers.retain(|_, c| c.sandbox != id);
            Ok(Response::new(RemovePodSandboxResponse {}))
        })
        .await
    }

    async fn pod_sandbox_status(&self, request: Request<PodSandboxStatusRequest>) -> Answer<PodSandboxStatusResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let state = self.state.lock();
        let sandbox = state.sandboxes.get(&id).ok_or_else(|| Status::not_found(format!("no sandbox {id:?}")))?;
        let network = PodSandboxNetworkStatus { ip: "192.0.2.77".into(), additional_ips: Vec::new() };
        let status = PodSandboxStatus {
            id,
            metadata: sandbox.config.metadata.clone(),
            state: state_of(sandbox),
            created_at: sandbox.created_at,
            network: Some(network),
            ..PodSandboxStatus::default()
        };
        Ok(Response::new(PodSandboxStatusResponse { status: Some(status), ..PodSandboxStatusResponse::default() }))
    }

    async fn list_pod_sandbox(&self, request: Request<ListPodSandboxRequest>) -> Answer<ListPodSandboxResponse> {
        let wanted = request.into_inner().filter.unwrap_or_default().label_selector;
        let mut state = self.state.lock();
        if state.silent {
            state.asked_in_vain += 1;
            self.changed();
            return Err(Status::unavailable("it is not known yet what runs"));
        }
        let found = state.sandboxes.iter().filter(|(_, s)| selected(&s.config.labels, &wanted));
        let items = found.map(|(id, s)| PodSandbox {
            id: id.clone(),
            metadata: s.config.metadata.clone(),
            state: state_of(s),
            created_at: s.created_at,
            labels: s.config.labels.clone(),
            ..PodSandbox::default()
        });
        Ok(Response::new(ListPodSandboxResponse { items: items.collect() }))
    }

    async fn create_container(&self, request: Request<CreateContainerRequest>) -> Answer<CreateContainerResponse> {
        let asked = request.into_inner();
        self.change("CreateContainer", |state| {
            if !state.sandboxes.get(&asked.pod_sandbox_id).is_some_and(|s| s.ready) {
                return Err(Status::not_found("no such sandbox is ready"));
            }
            let created_at = state.tick();
            let id = format!("container-{}", state.made);
            let container = Container {
                config: asked.config.unwrap(),
                sandbox: asked.pod_sandbox_id,
                state: ContainerState::ContainerCreated,
                created_at,
                started_at: 0,
                finished_at: 0,
                exit_code: 0,
                cpus: None,
            };
            state.containers.insert(id.clone(), container);
            Ok(Response::new(CreateContainerResponse { container_id: id }))
        })
        .await
    }

    /// A container whose command is `ends` has ended by the time that it has started.
    async fn start_container(&self, request: Request<StartContainerRequest>) -> Answer<StartContainerResponse> {
        let id = request.into_inner().container_id;
        self.change("StartContainer", |state| {
            let at = state.tick();
            let (name, sandbox) = {
                let container = state.container(&id)?;
                (name_of(&container.config), container.sandbox.clone())
            };
            let twin = |(other, c): (&String, &Container)| {
                *other != id
                    && c.sandbox == sandbox
                    && c.state == ContainerState::ContainerRunning
                    && name_of(&c.config) == name
            };
            if state.containers.iter().any(twin) {
                state.mistakes.push(format!("{name} was started while it ran"));
            }
            let container = state.container(&id)?;
            container.started_at = at;
            container.state = ContainerState::ContainerRunning;
            if container.config.command == ["ends"] {
                container.finish(at + 1, 0);
            }
            Ok(Response::new(StartContainerResponse {}))
        })
        .await
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        let id = request.into_inner().container_id;
        self.change("StopContainer", |state| {
            let at = state.tick();
            if let Ok(container) = state.container(&id) {
                container.finish(at, 137);
            }
            Ok(Response::new(StopContainerResponse {}))
        })
        .await
    }

    async fn remove_container(&self, request: Request<RemoveContainerRequest>) -> Answer<RemoveContainerResponse> {
        let id = request.into_inner().container_id;
        self.change("RemoveContainer", |state| {
            if state.containers.get(&id).is_some_and(|c| c.state == ContainerState::ContainerRunning) {
                state.mistakes.push(format!("{id} was removed while it ran"));
            }
            state.containers.remove(&id);
            Ok(Response::new(RemoveContainerResponse {}))
        })
        .await
    }

    async fn list_containers(&self, request: Request<ListContainersRequest>) -> Answer<ListContainersResponse> {
        let wanted = request.into_inner().filter.unwrap_or_default().label_selector;
        let state = self.state.lock();
        let found = state.containers.iter().filter(|(_, c)| selected(&c.config.labels, &wanted));
        let containers = found.map(|(id, c)| k8s_cri::v1::Container {
            id: id.clone(),
            pod_sandbox_id: c.sandbox.clone(),
            metadata: c.config.metadata.clone(),
            image: c.config.image.clone(),
            state: c.state as i32,
            created_at: c.created_at,
            labels: c.config.labels.clone(),
            annotations: c.config.annotations.clone(),
            ..k8s_cri::v1::Container::default()
        });
        Ok(Response::new(ListContainersResponse { containers: containers.collect() }))
    }

    async fn container_status(&self, request: Request<ContainerStatusRequest>) -> Answer<ContainerStatusResponse> {
        let id = request.into_inner().container_id;
        let mut state = self.state.lock();
        let c = state.container(&id)?;
        let status = ContainerStatus {
            id,
            metadata: c.config.metadata.clone(),
            state: c.state as i32,
            created_at: c.created_at,
            started_at: c.started_at,
            finished_at: c.finished_at,
            exit_code: c.exit_code,
            image: c.config.image.clone(),
            image_ref: "fake@sha256:00".into(),
            labels: c.config.labels.clone(),
            annotations: c.config.annotations.clone(),
            mounts: c.config.mounts.clone(),
            log_path: c.config.log_path.clone(),
            ..ContainerStatus::default()
        };
        Ok(Response::new(ContainerStatusResponse { status: Some(status), ..ContainerStatusResponse::default() }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Answer<StatusResponse> {
        let met = |kind: &str| RuntimeCondition { r#type: kind.into(), status: true, ..RuntimeCondition::default() };
        let status = RuntimeStatus { conditions: vec![met("RuntimeReady"), met("NetworkReady")] };
        Ok(Response::new(StatusResponse { status: Some(status), ..StatusResponse::default() }))
    }

    async fn list_container_stats(&self, _: Request<ListContainerStatsRequest>) -> Answer<ListContainerStatsResponse> {
        Ok(Response::new(ListContainerStatsResponse::default()))
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        let asked = request.into_inner();
        let mut state = self.state.lock();
        if state.refused_updates > 0 {
            state.refused_updates -= 1;
            return Err(Status::unavailable("not now"));
        }
        state.container(&asked.container_id)?.cpus = asked.linux.map(|linux| linux.cpuset_cpus);
        self.changed();
        Ok(Response::new(UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(&self, _: Request<ReopenContainerLogRequest>) -> Answer<ReopenContainerLogResponse> {
        unimplemented("reopen logs")
    }

    async fn exec_sync(&self, _: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        unimplemented("exec")
    }

    async fn exec(&self, _: Request<ExecRequest>) -> Answer<ExecResponse> {
        unimplemented("exec")
    }

    async fn attach(&self, _: Request<AttachRequest>) -> Answer<AttachResponse> {
        unimplemented("attach")
    }

    async fn port_forward(&self, _: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        unimplemented("forward ports")
    }

    async fn container_stats(&self, _: Request<ContainerStatsRequest>) -> Answer<ContainerStatsResponse> {
        unimplemented("measure one container")
    }

    async fn pod_sandbox_stats(&self, _: Request<PodSandboxStatsRequest>) -> Answer<PodSandboxStatsResponse> {
        unimplemented("measure one pod")
    }

    async fn list_pod_sandbox_stats(
        &self,
        _: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        unimplemented("measure pods")
    }

    async fn update_runtime_config(
        &self,
        _: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        Ok(Response::new(UpdateRuntimeConfigResponse {}))
    }

    async fn checkpoint_container(
        &self,
        _: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        unimplemented("checkpoint")
    }

    type GetContainerEventsStream = tokio_stream::Pending<Result<ContainerEventResponse, Status>>;

    async fn get_container_events(&self, _: Request<GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        unimplemented("tell of events")
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        unimplemented("describe metrics")
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        unimplemented("give metrics")
    }

    async fn runtime_config(&self, _: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        unimplemented("tell its configuration")
    }
}

fn state_of(sandbox: &Sandbox) -> i32 {
    let state = if sandbox.ready { PodSandboxState::SandboxReady } else { PodSandboxState::SandboxNotready };
    state as i32
}

fn image(name: &str) -> Image {
    Image { id: format!("id-of-{name}"), repo_tags: vec![name.into()], size: 1, ..Image::default() }
}

#[tonic::async_trait]
impl ImageService for FakeCri {
    async fn list_images(&self, _: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        let images = self.state.lock().images.iter().map(|name| image(name)).collect();
        Ok(Response::new(ListImagesResponse { images }))
    }

    async fn image_status(&self, request: Request<ImageStatusRequest>) -> Answer<ImageStatusResponse> {
        let asked = request.into_inner().image.unwrap_or_default().image;
        let state = self.state.lock();
        let known = state.images.iter().find(|name| **name == asked || image(name).id == asked);
        let image = known.map(|name| image(name));
        Ok(Response::new(ImageStatusResponse { image, ..ImageStatusResponse::default() }))
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        let name = request.into_inner().image.unwrap_or_default().image;
        self.change("PullImage", |state| {
            if !state.images.contains(&name) {
                state.images.push(name.clone());
            }
            Ok(Response::new(PullImageResponse { image_ref: image(&name).id }))
        })
        .await
    }

    async fn remove_image(&self, _: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        Ok(Response::new(ImageFsInfoResponse::default()))
    }
}
