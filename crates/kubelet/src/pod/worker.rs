//! The worker of one pod: it looks at what runs, asks [`plan`] what to do, does it, and reports the status.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::events::reference;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, ObjectReference, Pod};
use tokio::sync::{Notify, watch};

use super::plan::{self, Ended, Facts, Plan};
use super::status::{self, Observed, Waiting};
use super::{container_config, sub_path};
use crate::context::Context;
use crate::env::{self, Sources};
use crate::materials;
use crate::probes::{Probes, Target};
use crate::runtime::{ContainerStatus, Phase, PodState};
use crate::volumes;

/// Restarts are held back 10 s, then twice as long each time up to 5 min, until a container has run for 10 min.
const FIRST_BACKOFF: Duration = Duration::from_secs(10);
const LONGEST_BACKOFF: Duration = Duration::from_secs(300);
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);
/// How often volumes whose content may change are brought up to date.
const VOLUME_REFRESH: Duration = Duration::from_secs(60);
/// After a failed step, the next attempt waits this long.
const RETRY: Duration = Duration::from_secs(2);
/// How many ended runs of a container are kept, for `logs --previous`.
const KEPT_RUNS: usize = 1;

/// What the manager tells a worker.
#[derive(Clone, Debug)]
pub(crate) enum Desired {
    Run(Arc<Pod>),
    /// The pod must go, with this grace period in seconds. `None` as pod: the API forgot it.
    Stop {
        pod: Arc<Pod>,
        grace: i64,
    },
}

pub(crate) struct Worker {
    context: Arc<Context>,
    desired: watch::Receiver<Desired>,
    /// Something about what runs has changed.
    woken: Arc<Notify>,
    probes: Probes,
    backoff: BTreeMap<String, Backoff>,
    waiting: BTreeMap<String, Waiting>,
    volumes_at: Option<Instant>,
    messages: BTreeMap<String, String>,
}

struct Backoff {
    wait: Duration,
    until: Instant,
}

/// What a look at the runtime found.
struct Look {
    state: PodState,
    containers: Vec<ContainerStatus>,
    ips: Vec<String>,
}

/// A step that failed; the worker comes back later.
#[derive(Debug)]
struct Failed;

impl Worker {
    pub(crate) fn new(context: Arc<Context>, desired: watch::Receiver<Desired>, woken: Arc<Notify>) -> Self {
        let probes = Probes::new(context.runtime.clone(), context.events.clone(), Arc::clone(&woken));
        let (backoff, waiting, messages) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Worker { context, desired, woken, probes, backoff, waiting, volumes_at: None, messages }
    }

    /// Until the pod is gone from this node.
    pub(crate) async fn run(mut self) {
        loop {
            let desired = self.desired.borrow_and_update().clone();
            let pause = match &desired {
                Desired::Run(pod) => self.sync(pod).await,
                Desired::Stop { pod, grace } => {
                    if self.stop(pod, *grace).await.is_ok() {
                        return;
                    }
                    RETRY
                }
            };
            tokio::select! {
                changed = self.desired.changed() => if changed.is_err() { return },
                () = self.woken.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// One step toward the desired state. Gives how long nothing needs to be looked at if nothing happens.
    async fn sync(&mut self, pod: &Arc<Pod>) -> Duration {
        let Ok(look) = self.look(pod).await else { return RETRY };
        self.start_probes(pod, &look);
        let findings = self.probes.findings();
        let ended = ended_runs(&look);
        self.note_ends(&look);
        let backoff = self.backoff_left(pod, &look);
        let facts = Facts { pod, state: &look.state, ended: &ended, probed: &findings.probed, backoff: &backoff };
        let plan = plan::plan(&facts);
        let done = plan::has_finished(&facts);
        self.note_waiting(pod, &look, &backoff);

        let active = plan.new_sandbox || !plan.start.is_empty() || !plan.kill.is_empty();
        // The status goes out before containers start, so that everybody sees why it takes long.
        self.report(pod, &look, false).await;
        let mut failed = false;
        if active {
            failed = self.carry_out(pod, &look, &plan).await.is_err();
            if let Ok(look) = self.look(pod).await {
                self.start_probes(pod, &look);
                self.report(pod, &look, false).await;
            }
        } else if !done {
            failed = self.refresh_volumes(pod, &look).await.is_err();
        } else {
            self.probes.set_targets(Vec::new());
        }
        let mut pause = if materials::has_changing_volumes(pod) { VOLUME_REFRESH } else { Duration::from_secs(3600) };
        if failed {
            pause = RETRY;
        }
        if let Some(wait) = plan.wait {
            pause = pause.min(wait + Duration::from_millis(50));
        }
        pause
    }

    async fn look(&mut self, pod: &Pod) -> Result<Look, Failed> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let complain = |error: crate::runtime::RuntimeError| {
            tracing::warn!(pod = pod.metadata.name, %error, "cannot see what runs of the pod");
            Failed
        };
        let state = self.context.runtime.pod(uid).await.map_err(complain)?;
        let mut containers = Vec::new();
        for listed in &state.containers {
            if let Ok(mut status) = self.context.runtime.container(&listed.id).await {
                status.listed.sandbox_id.clone_from(&listed.sandbox_id);
                self.read_message(pod, &status);
                containers.push(status);
            }
        }
        let ready = state.sandboxes.first().filter(|s| s.ready);
        let ips = match ready {
            Some(_) if container_config::is_host_network(pod) => self.context.host_ips.clone(),
            Some(sandbox) => self.context.runtime.sandbox_ips(&sandbox.id).await.map_err(complain)?,
            None => Vec::new(),
        };
        Ok(Look { state, containers, ips })
    }

    /// Remembers the termination message of a run that has ended.
    fn read_message(&mut self, pod: &Pod, status: &ContainerStatus) {
        const LIMIT: usize = 4096;
        if status.listed.phase != Phase::Exited || self.messages.contains_key(&status.listed.id) {
            return;
        }
        let file = status.termination_path.as_ref().and_then(|p| std::fs::read(p).ok()).unwrap_or_default();
        let mut text = String::from_utf8_lossy(&file[..file.len().min(LIMIT)]).into_owned();
        if text.is_empty() && status.termination_fallback && status.exit_code != 0 {
            let log = container_config::log_dir(&self.context.log_root, pod)
                .join(format!("{}/{}.log", status.listed.name, status.listed.restart_count));
            text = crate::server::logs::tail(&log, 80, 2048);
        }
        self.messages.insert(status.listed.id.clone(), text);
    }

    fn start_probes(&mut self, pod: &Pod, look: &Look) {
        let ip = look.ips.first().cloned().unwrap_or_default();
        let all = plan::containers(pod).iter().chain(plan::init_containers(pod).iter().filter(|c| plan::is_sidecar(c)));
        let targets = all.filter_map(|container| {
            let running = look.containers.iter().find(|c| c.listed.name == container.name)?;
            (running.listed.phase == Phase::Running).then(|| Target {
                container_id: running.listed.id.clone(),
                container: container.clone(),
                pod_ip: ip.clone(),
                regarding: self.regarding(pod, Some(&container.name)),
                age: age_of(running.started_at),
            })
        });
        self.probes.set_targets(targets.collect());
    }

    fn regarding(&self, pod: &Pod, container: Option<&str>) -> ObjectReference {
        let mut reference = reference(pod);
        if let Some(name) = container {
            let list =
                if plan::init_containers(pod).iter().any(|c| c.name == name) { "initContainers" } else { "containers" };
            reference.field_path = Some(format!("spec.{list}{{{name}}}"));
        }
        reference
    }

    /// Notes the back-off of containers that have ended since the last look.
    fn note_ends(&mut self, look: &Look) {
        for container in &look.containers {
            let listed = &container.listed;
            let newest = look.state.containers.iter().find(|c| c.name == listed.name);
            if listed.phase != Phase::Exited || newest.map(|c| &c.id) != Some(&listed.id) {
                continue;
            }
            let since_end = age_of(container.finished_at);
            let ran =
                Duration::from_nanos(u64::try_from(container.finished_at - container.started_at).unwrap_or_default());
            // The first restart is immediate; its count tells which one this is, also after a restart of ours.
            let exponent = u32::try_from(listed.restart_count).unwrap_or_default();
            let wait = match exponent {
                0 => Duration::ZERO,
                _ if ran > FORGIVEN_AFTER => Duration::ZERO,
                n => FIRST_BACKOFF.saturating_mul(1 << (n - 1).min(5)).min(LONGEST_BACKOFF),
            };
            let until = Instant::now() + wait.saturating_sub(since_end);
            self.backoff.insert(listed.name.clone(), Backoff { wait, until });
        }
    }

    fn backoff_left(&self, pod: &Pod, look: &Look) -> BTreeMap<String, Duration> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let all = plan::containers(pod).iter().chain(plan::init_containers(pod));
        let left = all.map(|c| {
            let crash = match look.containers.iter().find(|s| s.listed.name == c.name).map(|s| s.listed.phase) {
                Some(Phase::Exited) => self
                    .backoff
                    .get(&c.name)
                    .map(|b| b.until.saturating_duration_since(Instant::now()))
                    .unwrap_or_default(),
                _ => Duration::ZERO,
            };
            (c.name.clone(), crash.max(self.context.images.backoff_left(uid, c.image.as_deref().unwrap_or_default())))
        });
        left.collect()
    }

    /// Which containers wait for a back-off, in the words of CrashLoopBackOff.
    fn note_waiting(&mut self, pod: &Pod, look: &Look, backoff: &BTreeMap<String, Duration>) {
        let meta = &pod.metadata;
        let full_name = format!(
            "{}_{}({})",
            meta.name.as_deref().unwrap_or_default(),
            meta.namespace.as_deref().unwrap_or_default(),
            meta.uid.as_deref().unwrap_or_default()
        );
        for (name, left) in backoff {
            let exited = look
                .containers
                .iter()
                .find(|c| c.listed.name == *name)
                .is_some_and(|c| c.listed.phase == Phase::Exited);
            if exited && !left.is_zero() {
                let wait = self.backoff.get(name).map(|b| b.wait).unwrap_or_default();
                let shown = component_base::flags::show_go_duration(wait);
                let message = format!("back-off {shown} restarting failed container={name} pod={full_name}");
                if self.waiting.get(name).is_none_or(|w| w.reason != "CrashLoopBackOff" || w.message != message) {
                    let text = format!("Back-off restarting failed container {name} in pod {full_name}");
                    self.context.events.warning(&self.regarding(pod, Some(name)), "BackOff", text);
                }
                self.waiting.insert(name.clone(), Waiting { reason: "CrashLoopBackOff".to_owned(), message });
            }
        }
        let running =
            |name: &str| look.containers.iter().any(|c| c.listed.name == name && c.listed.phase == Phase::Running);
        self.waiting.retain(|name, w| {
            !running(name) && (w.reason != "CrashLoopBackOff" || backoff.get(name).is_some_and(|left| !left.is_zero()))
        });
    }

    async fn carry_out(&mut self, pod: &Arc<Pod>, look: &Look, plan: &Plan) -> Result<(), Failed> {
        let runtime = self.context.runtime.clone();
        for kill in &plan.kill {
            self.context.events.normal(&self.regarding(pod, Some(&kill.name)), "Killing", kill.why.clone());
            let container = find(pod, &kill.name);
            self.stop_container(pod, container, &kill.id, self.grace_of(pod)).await?;
        }
        let materials = match materials::fetch(self.context.client.as_ref(), pod).await {
            Ok(materials) => materials,
            Err(error) => return Err(self.complain(pod, "cannot fetch what the pod refers to", &error)),
        };
        let context = Arc::clone(&self.context);
        let services = context.services();
        let no_ips = Vec::new();
        let mut sources = Sources {
            config_maps: &materials.config_maps,
            secrets: &materials.secrets,
            services: &services,
            host_ips: &context.host_ips,
            pod_ips: &no_ips,
            node_name: &context.node_name,
            node_cpu_milli: context.node_cpu_milli,
            node_memory: context.node_memory,
        };
        if !self.context.services_synced() {
            return Err(Failed); // containers without Service variables would be wrong for all their life
        }
        let volumes = self.set_up_volumes(pod, &materials, &sources).await?;

        let host = self.context.host(pod);
        let mut sandbox = look.state.sandboxes.first().cloned();
        let mut ips = look.ips.clone();
        let attempt = sandbox.as_ref().map_or(0, |s| if plan.new_sandbox { s.attempt + 1 } else { s.attempt });
        let sandbox_config = container_config::sandbox(pod, attempt, &host);
        if plan.new_sandbox {
            for old in &look.state.sandboxes {
                runtime
                    .stop_sandbox(&old.id)
                    .await
                    .map_err(|e| self.complain(pod, "cannot stop an old sandbox", &e))?;
            }
            std::fs::create_dir_all(container_config::log_dir(&self.context.log_root, pod))
                .map_err(|e| self.complain(pod, "cannot make the log directory", &e))?;
            crate::node_cgroups::make(&sandbox_config, pod, &self.context)
                .map_err(|e| self.complain(pod, "cannot make the cgroup", &e))?;
            let handler = pod
                .spec
                .as_ref()
                .and_then(|s| s.runtime_class_name.clone())
                .map_or(String::new(), |class| self.context.handler_of(&class));
            let id = match runtime.run_sandbox(sandbox_config.clone(), &handler).await {
                Ok(id) => id,
                Err(error) => {
                    let text = format!("Failed to create pod sandbox: rpc error: {error}");
                    self.context.events.warning(&reference(&**pod), "FailedCreatePodSandBox", text);
                    return Err(Failed);
                }
            };
            ips = if container_config::is_host_network(pod) {
                self.context.host_ips.clone()
            } else {
                runtime.sandbox_ips(&id).await.map_err(|e| self.complain(pod, "cannot read the pod's addresses", &e))?
            };
            sandbox = Some(crate::runtime::Sandbox { id, attempt, ready: true, created_at: 0 });
        }
        let Some(sandbox) = sandbox else { return Err(Failed) };
        sources.pod_ips = &ips;
        let mut result = Ok(());
        for name in &plan.start {
            let Some(container) = find(pod, name) else { continue };
            let started = self
                .start_container(
                    pod,
                    container,
                    look,
                    &sandbox.id,
                    &sandbox_config,
                    &host,
                    &materials,
                    &sources,
                    &volumes,
                )
                .await;
            match started {
                Ok(()) => {
                    self.waiting.remove(name);
                }
                Err(waiting) => {
                    tracing::info!(pod = pod.metadata.name, container = %name, reason = waiting.reason, message = waiting.message, "a container did not start");
                    self.waiting.insert(name.clone(), waiting);
                    result = Err(Failed);
                }
            }
        }
        result
    }

    fn complain(&self, pod: &Pod, what: &str, error: &dyn std::fmt::Display) -> Failed {
        tracing::warn!(pod = pod.metadata.name, namespace = pod.metadata.namespace, %error, "{what}");
        Failed
    }

    async fn set_up_volumes(
        &mut self,
        pod: &Arc<Pod>,
        materials: &materials::Materials,
        sources: &Sources<'_>,
    ) -> Result<BTreeMap<String, PathBuf>, Failed> {
        let context = Arc::clone(&self.context);
        let setup = volumes::Setup {
            root: &context.root,
            pod,
            materials,
            sources,
            tokens: &context.tokens,
            client: context.client.as_ref(),
        };
        match setup.all().await {
            Ok(paths) => {
                self.volumes_at = Some(Instant::now());
                Ok(paths)
            }
            Err(error) => {
                context.events.warning(&reference(&**pod), "FailedMount", error.to_string());
                Err(Failed)
            }
        }
    }

    async fn refresh_volumes(&mut self, pod: &Arc<Pod>, look: &Look) -> Result<(), Failed> {
        let due = self.volumes_at.is_none_or(|at| at.elapsed() >= VOLUME_REFRESH);
        if !due || !materials::has_changing_volumes(pod) || look.state.sandboxes.is_empty() {
            return Ok(());
        }
        let materials = materials::fetch(self.context.client.as_ref(), pod)
            .await
            .map_err(|e| self.complain(pod, "cannot fetch what the pod's volumes refer to", &e))?;
        let services = Vec::new();
        let context = Arc::clone(&self.context);
        let sources = Sources {
            config_maps: &materials.config_maps,
            secrets: &materials.secrets,
            services: &services,
            host_ips: &context.host_ips,
            pod_ips: &look.ips,
            node_name: &context.node_name,
            node_cpu_milli: context.node_cpu_milli,
            node_memory: context.node_memory,
        };
        self.set_up_volumes(pod, &materials, &sources).await.map(drop)
    }

    #[expect(clippy::too_many_arguments, reason = "the facts of one start, each owned by somebody else")]
    async fn start_container(
        &mut self,
        pod: &Arc<Pod>,
        container: &Container,
        look: &Look,
        sandbox_id: &str,
        sandbox_config: &k8s_cri::v1::PodSandboxConfig,
        host: &container_config::Host,
        materials: &materials::Materials,
        sources: &Sources<'_>,
        volumes: &BTreeMap<String, PathBuf>,
    ) -> Result<(), Waiting> {
        let context = Arc::clone(&self.context);
        let regarding = self.regarding(pod, Some(&container.name));
        let waiting = |reason: &str, message: String| Waiting { reason: reason.to_owned(), message };
        let image_ref = context.images.ensure(pod, container, &regarding, materials, &context.events).await?;
        let config_error = |message: String| {
            context.events.warning(&regarding, "Failed", format!("Error: {message}"));
            waiting("CreateContainerConfigError", message)
        };
        let vars = env::environment(pod, container, sources).map_err(|e| config_error(e.to_string()))?;
        let previous = look.state.containers.iter().find(|c| c.name == container.name);
        let attempt = previous.map_or(0, |c| u32::try_from(c.restart_count).unwrap_or_default() + 1);
        let (_held, sub_paths) = open_sub_paths(container, volumes, &vars).map_err(config_error)?;
        let files = volumes::pod_dir(&context.root, pod.metadata.uid.as_deref().unwrap_or_default());
        let termination_file = files.join("containers").join(&container.name).join(format!("{attempt}.message"));
        let written = (|| {
            std::fs::create_dir_all(termination_file.parent().unwrap_or(&files))?;
            std::fs::write(&termination_file, "")?;
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&termination_file, std::fs::Permissions::from_mode(0o666))?;
            std::fs::create_dir_all(container_config::log_dir(&context.log_root, pod).join(&container.name))?;
            if container_config::is_host_network(pod) {
                return std::io::Result::Ok(None);
            }
            let hosts = files.join("etc-hosts");
            std::fs::write(
                &hosts,
                container_config::hosts_file(pod, sources.pod_ips, &context.cluster_domain, &context.node_name),
            )?;
            Ok(Some(hosts))
        })();
        let hosts_file = written.map_err(|e| waiting("CreateContainerError", e.to_string()))?;
        let made = container_config::Made {
            pod,
            container,
            attempt,
            image_ref: &image_ref,
            env: vars,
            volumes,
            hosts_file,
            termination_file,
            sub_paths: &sub_paths,
            host,
        };
        let config = container_config::container(&made).map_err(config_error)?;
        let created = context.runtime.create_container(sandbox_id, config, sandbox_config.clone()).await;
        let id = created.map_err(|e| {
            context.events.warning(&regarding, "Failed", format!("Error: {e}"));
            waiting("CreateContainerError", e.to_string())
        })?;
        context.events.normal(&regarding, "Created", "Container created");
        if let Err(e) = context.runtime.start_container(&id).await {
            context.events.warning(&regarding, "Failed", format!("Error: {e}"));
            return Err(waiting("RunContainerError", e.to_string()));
        }
        context.events.normal(&regarding, "Started", "Container started");
        self.link_log(pod, container, &id, attempt);
        if let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref())
            && let Err(why) = self.run_hook(container, hook, &id, sources.pod_ips, Duration::from_secs(60)).await
        {
            context.events.warning(&regarding, "FailedPostStartHook", format!("PostStartHook failed: {why}"));
            let grace = self.grace_of(pod);
            // The container goes down with its hook, and comes back after its back-off.
            if self.stop_container(pod, Some(container), &id, grace).await.is_err() {
                tracing::warn!(container = container.name, "the container outlived its failed hook");
            }
            return Err(waiting("PostStartHookError", why));
        }
        self.forget_old_runs(look, &container.name).await;
        Ok(())
    }

    /// `/var/log/containers/<pod>_<namespace>_<container>-<id>.log`, by which log collectors find logs.
    fn link_log(&self, pod: &Pod, container: &Container, id: &str, attempt: u32) {
        let Some(dir) = &self.context.log_links else { return };
        let meta = &pod.metadata;
        let (name, namespace) =
            (meta.name.as_deref().unwrap_or_default(), meta.namespace.as_deref().unwrap_or_default());
        let link = dir.join(format!("{name}_{namespace}_{}-{id}.log", container.name));
        let log =
            container_config::log_dir(&self.context.log_root, pod).join(format!("{}/{attempt}.log", container.name));
        if let Err(error) = std::fs::create_dir_all(dir).and_then(|()| std::os::unix::fs::symlink(log, &link)) {
            tracing::warn!(%error, link = %link.display(), "the log's link could not be made");
        }
    }

    async fn forget_old_runs(&self, look: &Look, name: &str) {
        let old = look.state.containers.iter().filter(|c| c.name == name && c.phase == Phase::Exited).skip(KEPT_RUNS);
        for container in old {
            if let Err(error) = self.context.runtime.remove_container(&container.id).await {
                tracing::debug!(%error, id = container.id, "an old run could not be removed");
            }
        }
    }

    async fn run_hook(
        &self,
        container: &Container,
        hook: &LifecycleHandler,
        id: &str,
        ips: &[String],
        timeout: Duration,
    ) -> Result<(), String> {
        if let Some(exec) = &hook.exec {
            let done = self.context.runtime.exec(id, exec.command.clone().unwrap_or_default(), timeout).await;
            let done = done.map_err(|e| e.to_string())?;
            let shown = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
            return if done.exit_code == 0 {
                Ok(())
            } else {
                Err(format!("command exited with {}: {shown}", done.exit_code))
            };
        }
        if let Some(sleep) = &hook.sleep {
            let wanted = Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or_default());
            tokio::time::sleep(wanted.min(timeout)).await;
            return Ok(());
        }
        if let Some(get) = &hook.http_get {
            let ip = ips.first().cloned().unwrap_or_default();
            return tokio::time::timeout(timeout, crate::probes::get_once(get, &ip, container))
                .await
                .unwrap_or_else(|_| Err("the hook did not answer in time".to_owned()));
        }
        Ok(())
    }

    fn grace_of(&self, pod: &Pod) -> Duration {
        let spec = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
        Duration::from_secs(u64::try_from(spec).unwrap_or_default())
    }

    async fn stop_container(
        &self,
        pod: &Pod,
        container: Option<&Container>,
        id: &str,
        grace: Duration,
    ) -> Result<(), Failed> {
        let started = Instant::now();
        let hook = container.and_then(|c| c.lifecycle.as_ref()).and_then(|l| l.pre_stop.as_ref());
        if let (Some(hook), Some(container), false) = (hook, container, grace.is_zero()) {
            let ips: Vec<String> = pod.status.iter().filter_map(|s| s.pod_ip.clone()).collect();
            if let Err(why) = self.run_hook(container, hook, id, &ips, grace).await {
                let regarding = self.regarding(pod, Some(&container.name));
                self.context.events.warning(&regarding, "FailedPreStopHook", format!("PreStopHook failed: {why}"));
            }
        }
        // Whatever the hook took, the process has two seconds to go by itself.
        let left =
            grace.saturating_sub(started.elapsed()).max(Duration::from_secs(if grace.is_zero() { 0 } else { 2 }));
        self.context
            .runtime
            .stop_container(id, left)
            .await
            .map_err(|e| self.complain(pod, "cannot stop a container", &e))
    }

    /// Stops everything of the pod, cleans up, and lets the API forget it.
    async fn stop(&mut self, pod: &Arc<Pod>, grace: i64) -> Result<(), Failed> {
        let grace = Duration::from_secs(u64::try_from(grace).unwrap_or_default());
        self.probes.set_targets(Vec::new());
        let look = self.look(pod).await?;
        let running: Vec<&ContainerStatus> =
            look.containers.iter().filter(|c| c.listed.phase == Phase::Running).collect();
        let is_side = |c: &&ContainerStatus| {
            plan::init_containers(pod).iter().any(|i| i.name == c.listed.name && plan::is_sidecar(i))
        };
        let (sidecars, apps): (Vec<&ContainerStatus>, Vec<&ContainerStatus>) =
            running.iter().copied().partition(is_side);
        for container in &running {
            let text = format!("Stopping container {}", container.listed.name);
            self.context.events.normal(&self.regarding(pod, Some(&container.listed.name)), "Killing", text);
        }
        let began = Instant::now();
        let me = &*self;
        let stopping = apps
            .iter()
            .map(|c: &&ContainerStatus| me.stop_container(pod, find(pod, &c.listed.name), &c.listed.id, grace));
        let outcomes = futures::future::join_all(stopping).await;
        // Sidecars go after the containers that they serve, last started first, in what is left of the time.
        let mut ordered = sidecars;
        ordered.sort_by_key(|c| {
            std::cmp::Reverse(plan::init_containers(pod).iter().position(|i| i.name == c.listed.name))
        });
        for sidecar in ordered {
            let left = grace.saturating_sub(began.elapsed());
            me.stop_container(pod, find(pod, &sidecar.listed.name), &sidecar.listed.id, left).await?;
        }
        if outcomes.iter().any(Result::is_err) {
            return Err(Failed);
        }
        let runtime = self.context.runtime.clone();
        for sandbox in &look.state.sandboxes {
            runtime.stop_sandbox(&sandbox.id).await.map_err(|e| self.complain(pod, "cannot stop the sandbox", &e))?;
        }
        if let Ok(last) = self.look(pod).await {
            self.report(pod, &last, true).await;
        }
        for sandbox in &look.state.sandboxes {
            runtime
                .remove_sandbox(&sandbox.id)
                .await
                .map_err(|e| self.complain(pod, "cannot remove the sandbox", &e))?;
        }
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        volumes::tear_down(&self.context.root, uid)
            .map_err(|e| self.complain(pod, "cannot remove the pod's volumes", &e))?;
        crate::node_cgroups::remove(pod, &self.context);
        let _ = std::fs::remove_dir_all(container_config::log_dir(&self.context.log_root, pod)); // logs go with the pod
        self.context.remove_log_links(pod);
        self.context.tokens.forget(uid);
        self.context.images.forget(uid);
        self.context.statuses.finish(pod).await;
        Ok(())
    }

    async fn report(&mut self, pod: &Arc<Pod>, look: &Look, terminated: bool) {
        let findings = self.probes.findings();
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        // Our own last word; after a restart, what the API remembers of it.
        let before = self.context.statuses.current(uid).or_else(|| pod.status.clone()).unwrap_or_default();
        let status = status::status_of(&Observed {
            pod,
            before: &before,
            containers: &look.containers,
            sandbox_ready: look.state.sandboxes.first().is_some_and(|s| s.ready) && !look.ips.is_empty(),
            ips: &look.ips,
            host_ips: &self.context.host_ips,
            waiting: &self.waiting,
            probed: &findings.probed,
            ready: &findings.ready,
            messages: &self.messages,
            terminated,
            now: Timestamp::now(),
        });
        self.context.statuses.report(pod, status).await;
    }
}

fn find<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    plan::containers(pod).iter().chain(plan::init_containers(pod)).find(|c| c.name == name)
}

fn ended_runs(look: &Look) -> BTreeMap<String, Ended> {
    let mut ended = BTreeMap::new();
    for container in look.containers.iter().rev() {
        match container.listed.phase {
            Phase::Exited => {
                ended.insert(container.listed.name.clone(), Ended { exit_code: container.exit_code });
            }
            _ => {
                ended.remove(&container.listed.name);
            }
        }
    }
    ended
}

fn age_of(nanoseconds: i64) -> Duration {
    let now = Timestamp::now().as_nanosecond();
    u64::try_from(now - i128::from(nanoseconds)).map(Duration::from_nanos).unwrap_or_default()
}

type SubPaths = (Vec<OwnedFd>, BTreeMap<String, PathBuf>);

/// Opens the subPaths of a container's mounts. The descriptors must stay open until the container is created.
fn open_sub_paths(
    container: &Container,
    volumes: &BTreeMap<String, PathBuf>,
    vars: &[(String, String)],
) -> Result<SubPaths, String> {
    let (mut held, mut paths) = (Vec::new(), BTreeMap::new());
    for mount in container.volume_mounts.iter().flatten() {
        let plain = mount.sub_path.clone().filter(|p| !p.is_empty());
        let expanded = mount
            .sub_path_expr
            .as_ref()
            .filter(|p| !p.is_empty())
            .map(|expr| env::expand(expr, |name| vars.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())));
        let Some(path) = plain.or(expanded) else { continue };
        let Some(volume) = volumes.get(&mount.name) else { continue };
        let (fd, at) = sub_path::open(volume, &path).map_err(|e| {
            format!(
                "failed to prepare subPath for volumeMount \"{}\" of container \"{}\": {e}",
                mount.name, container.name
            )
        })?;
        held.push(fd);
        paths.insert(mount.mount_path.clone(), at);
    }
    Ok((held, paths))
}
