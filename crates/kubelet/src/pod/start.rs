//! What brings a pod's containers up: volumes, the sandbox, and each container in turn.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::events::reference;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::admission::Refusal;
use super::plan::{self, Cause, Plan};
use super::status::{self, Waiting};
use super::worker::{Failed, Look, Shown, VOLUME_REFRESH, Worker, find};
use super::{container_config, sub_path};
use crate::devices::AllocateError;
use crate::env::{self, Sources};
use crate::env_file::{self, EnvFiles};
use crate::runtime::Phase;
use crate::volumes::{Source, Volumes};
use crate::{materials, topology, volumes};

/// How many ended runs of a container are kept, for `logs --previous`.
const KEPT_RUNS: usize = 1;

impl Worker {
    pub(super) async fn carry_out(&mut self, pod: &Arc<Pod>, look: &Look, plan: &Plan) -> Result<(), Failed> {
        let runtime = self.context.runtime.clone();
        for kill in &plan.kill {
            self.context.events.normal(&self.regarding(pod, Some(&kill.name)), "Killing", kill.why.clone());
            let container = find(pod, &kill.name);
            let probe = container.as_ref().and_then(|c| match kill.cause {
                Cause::Liveness => c.liveness_probe.as_ref(),
                Cause::Startup => c.startup_probe.as_ref(),
                Cause::Changed => None,
            });
            let own = probe.and_then(|p| p.termination_grace_period_seconds).and_then(|s| u64::try_from(s).ok());
            let grace = own.map_or_else(|| self.grace_of(pod), Duration::from_secs);
            self.stop_container(pod, container.as_ref(), &kill.id, grace).await?;
        }
        if !self.mounting.left().is_zero() {
            return Err(Failed);
        }
        let has_begun = !look.state.sandboxes.is_empty() || !look.state.containers.is_empty();
        if !has_begun && let Err(refusal) = topology::admit(&self.context, pod).await {
            self.turn_away(pod, refusal);
            return Err(Failed);
        }
        if let Err(why) = self.context.claims.prepare(&self.context, pod).await {
            self.mounting.failed();
            let text = format!("Failed to prepare dynamic resources: {why}");
            self.context.events.warning(&reference(&**pod), "FailedPrepareDynamicResources", text);
            return Err(Failed);
        }
        let materials = match materials::fetch(self.context.client.as_ref(), pod).await {
            Ok(materials) => materials,
            Err(error) => return Err(self.complain(pod, "cannot fetch what the pod refers to", &error)),
        };
        let context = Arc::clone(&self.context);
        let services = context.services();
        let (no_ips, no_files) = (Vec::new(), EnvFiles::new());
        let mut sources = Sources {
            config_maps: &materials.config_maps,
            secrets: &materials.secrets,
            files: &no_files,
            services: &services,
            host_ips: &context.host_ips,
            pod_ips: &no_ips,
            node_name: &context.node_name,
            node_cpu_milli: context.allocatable_of("cpu"),
            node_memory: context.allocatable_of("memory") / 1000,
            node_storage: context.allocatable_of("ephemeral-storage") / 1000,
        };
        if !self.context.services_synced() {
            return Err(Failed); // containers without Service variables would be wrong for all their life
        }
        let mut volumes = self.set_up_volumes(pod, &materials, &sources).await?;
        if let Err(waiting) = self.pull_image_volumes(pod, &materials, &mut volumes).await {
            for name in &plan.start {
                self.waiting.insert(name.clone(), waiting.clone());
            }
            return Err(Failed);
        }

        let host = self.context.host(pod);
        let mut sandbox = look.state.sandboxes.first().cloned();
        let mut ips = look.ips.clone();
        let attempt = sandbox.as_ref().map_or(0, |s| if plan.new_sandbox { s.attempt + 1 } else { s.attempt });
        let sandbox_config = match container_config::sandbox(pod, attempt, &host) {
            Ok(config) => config,
            Err(why) => {
                let text = format!("Failed to create pod sandbox: {why}");
                self.context.events.warning(&reference(&**pod), "FailedCreatePodSandBox", text);
                return Err(Failed);
            }
        };
        if plan.new_sandbox {
            if !look.state.sandboxes.is_empty() {
                let text = "Pod sandbox changed, it will be killed and re-created.";
                self.context.events.normal(&reference(&**pod), "SandboxChanged", text);
            }
            for old in &look.state.sandboxes {
                runtime
                    .stop_sandbox(&old.id)
                    .await
                    .map_err(|e| self.complain(pod, "cannot stop an old sandbox", &e))?;
            }
            std::fs::create_dir_all(container_config::log_dir(&self.context.log_root, pod))
                .map_err(|e| self.complain(pod, "cannot make the log directory", &e))?;
            crate::node_cgroups::make(&sandbox_config, pod, self.context.pod_pids_limit)
                .map_err(|e| self.complain(pod, "cannot make the cgroup", &e))?;
            let handler = pod
                .spec
                .as_ref()
                .and_then(|s| s.runtime_class_name.clone())
                .map_or(String::new(), |class| self.context.handler_of(&class));
            if pod.spec.as_ref().and_then(|s| s.host_users) == Some(false) {
                // The CRI version spoken here cannot say that a runtime gives pods users of their own, so none is believed to.
                let text = format!(
                    "Failed to create pod sandbox: RuntimeClass handler {handler:?} does not support user namespaces"
                );
                self.context.events.warning(&reference(&**pod), "FailedCreatePodSandBox", text);
                return Err(Failed);
            }
            let id = match runtime.run_sandbox(sandbox_config.clone(), &handler).await {
                Ok(id) => id,
                Err(error) => {
                    let text = format!("Failed to create pod sandbox: {}", error.in_full());
                    self.context.events.warning(&reference(&**pod), "FailedCreatePodSandBox", text);
                    return Err(Failed);
                }
            };
            let found = self.context.pod_ips(pod, &id).await;
            ips = found.map_err(|e| self.complain(pod, "cannot read the pod's addresses", &e))?;
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
                    &container,
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

    /// Nothing of the pod has run yet, and nothing will: its controller makes another.
    fn turn_away(&self, pod: &Arc<Pod>, refusal: Refusal) {
        self.context.events.warning(&reference(&**pod), &refusal.reason, refusal.message.clone());
        self.context.dooms.add(pod.metadata.uid.as_deref().unwrap_or_default(), refusal.into_doom());
    }

    async fn set_up_volumes(
        &mut self,
        pod: &Arc<Pod>,
        materials: &materials::Materials,
        sources: &Sources<'_>,
    ) -> Result<Volumes, Failed> {
        let context = Arc::clone(&self.context);
        let setup = volumes::Setup { context: &context, pod, materials, sources };
        match setup.all().await {
            Ok(volumes) => {
                self.volumes_at = Some(Instant::now());
                self.volumes_show = shown_of(pod);
                self.mounting.succeeded();
                Ok(volumes)
            }
            Err(error) => {
                self.mounting.failed();
                context.events.warning(&reference(&**pod), "FailedMount", error.to_string());
                Err(Failed)
            }
        }
    }

    /// Volumes that are images: the runtime mounts them, by what a pull has found.
    async fn pull_image_volumes(
        &self,
        pod: &Arc<Pod>,
        materials: &materials::Materials,
        volumes: &mut Volumes,
    ) -> Result<(), Waiting> {
        for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
            let Some(image) = &volume.image else { continue };
            let wanted = Container {
                image: image.reference.clone(),
                image_pull_policy: image.pull_policy.clone(),
                ..Container::default()
            };
            let (context, regarding) = (&self.context, reference(&**pod));
            let found = context.images.ensure(pod, &wanted, &regarding, materials, &context.events).await?;
            volumes.insert(volume.name.clone(), Source::Image(found.id));
        }
        Ok(())
    }

    /// Whether volumes of the pod have to be looked at again while it runs.
    pub(super) fn has_changing_volumes(&self, pod: &Pod) -> bool {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        materials::has_changing_volumes(pod) || self.context.drivers.looks_again(uid)
    }

    pub(super) async fn refresh_volumes(&mut self, pod: &Arc<Pod>, look: &Look) -> Result<(), Failed> {
        let due = self.volumes_at.is_none_or(|at| at.elapsed() >= VOLUME_REFRESH) || self.volumes_show != shown_of(pod);
        if !due || !self.has_changing_volumes(pod) || look.state.sandboxes.is_empty() {
            return Ok(());
        }
        let materials = materials::fetch(self.context.client.as_ref(), pod)
            .await
            .map_err(|e| self.complain(pod, "cannot fetch what the pod's volumes refer to", &e))?;
        let (services, no_files) = (Vec::new(), EnvFiles::new());
        let context = Arc::clone(&self.context);
        let sources = Sources {
            config_maps: &materials.config_maps,
            secrets: &materials.secrets,
            files: &no_files,
            services: &services,
            host_ips: &context.host_ips,
            pod_ips: &look.ips,
            node_name: &context.node_name,
            node_cpu_milli: context.allocatable_of("cpu"),
            node_memory: context.allocatable_of("memory") / 1000,
            node_storage: context.allocatable_of("ephemeral-storage") / 1000,
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
        volumes: &Volumes,
    ) -> Result<(), Waiting> {
        let context = Arc::clone(&self.context);
        let regarding = self.regarding(pod, Some(&container.name));
        let waiting = |reason: &str, message: String| Waiting { reason: reason.to_owned(), message };
        let image = match context.images.ensure(pod, container, &regarding, materials, &context.events).await {
            Ok(image) => image,
            Err(waiting) => {
                context.events.warning(&regarding, "Failed", format!("Error: {}", waiting.reason));
                return Err(waiting);
            }
        };
        let config_error = |message: String| {
            context.events.warning(&regarding, "Failed", format!("Error: {message}"));
            waiting("CreateContainerConfigError", message)
        };
        verify_user(pod, container, &image).map_err(config_error)?;
        let env_files = env_file::read(container, volumes);
        let sources = &Sources { files: &env_files, ..*sources };
        let mut vars = env::environment(pod, container, sources).map_err(|e| config_error(e.to_string()))?;
        let devices = context.devices.allocate(pod, container).await;
        let granted =
            devices.and_then(|d| Ok((d, context.cpus.allocate(pod, container, None).map_err(AllocateError)?)));
        let (devices, cpus) = match granted {
            Ok(granted) => granted,
            Err(error) => {
                if look.state.containers.is_empty() {
                    let refusal = Refusal { reason: "UnexpectedAdmissionError".to_owned(), message: error.to_string() };
                    self.turn_away(pod, refusal);
                }
                return Err(config_error(error.to_string()));
            }
        };
        vars.extend(devices.envs.clone());
        let cdi_devices = context.claims.cdi_devices(pod, container).map_err(config_error)?;
        let wants_recursion = container.volume_mounts.iter().flatten().any(container_config::wants_recursive_read_only);
        let recursive_read_only = wants_recursion && {
            let class = pod.spec.as_ref().and_then(|s| s.runtime_class_name.as_deref());
            let handler = class.map(|class| context.handler_of(class)).unwrap_or_default();
            let found = context.runtime.features().await.map_err(|e| waiting("CreateContainerError", e.to_string()))?;
            found.handlers.iter().any(|h| h.name == handler && h.recursive_read_only_mounts)
        };
        let previous = look.state.containers.iter().find(|c| c.name == container.name);
        // Of a container that the runtime has forgotten, the status remembers how often it ran.
        let restarts = previous.map(|c| c.restart_count).or_else(|| self.remembered_restarts(pod, &container.name));
        let attempt = restarts.map_or(0, |count| u32::try_from(count).unwrap_or_default() + 1);
        let files = volumes::pod_dir(&context.root, pod.metadata.uid.as_deref().unwrap_or_default());
        let sub_paths = bind_sub_paths(&files, container, volumes, &vars).map_err(config_error)?;
        let termination_file = files.join("containers").join(&container.name).join(format!("{attempt}.message"));
        let written = (|| {
            std::fs::create_dir_all(termination_file.parent().unwrap_or(&files))?;
            std::fs::write(&termination_file, "")?;
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&termination_file, std::fs::Permissions::from_mode(0o666))?;
            std::fs::create_dir_all(container_config::log_dir(&context.log_root, pod).join(&container.name))?;
            let hosts = files.join("etc-hosts");
            let of_host = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
            let (domain, node) = (&context.cluster_domain, &context.node_name);
            let text = container_config::hosts_file(pod, sources.pod_ips, domain, node, &of_host);
            std::fs::write(&hosts, text)?;
            std::io::Result::Ok(hosts)
        })();
        let hosts_file = written.map_err(|e| waiting("CreateContainerError", e.to_string()))?;
        let made = container_config::Made {
            pod,
            container,
            attempt,
            image_ref: &image.id,
            env: vars,
            volumes,
            hosts_file,
            termination_file,
            sub_paths: &sub_paths,
            devices: &devices,
            cdi_devices,
            cpus,
            memory_nodes: context.memory.nodes_of(pod, container),
            recursive_read_only,
            target_id: target_of(pod, container, look),
            host,
        };
        let config = container_config::container(&made).map_err(config_error)?;
        let created = context.runtime.create_container(sandbox_id, config, sandbox_config.clone()).await;
        let id = created.map_err(|e| {
            context.events.warning(&regarding, "Failed", format!("Error: {e}"));
            waiting("CreateContainerError", e.to_string())
        })?;
        context.events.normal(&regarding, "Created", "Container created");
        self.keep_resources(pod, container);
        if let Err(e) = context.runtime.start_container(&id).await {
            context.events.warning(&regarding, "Failed", format!("Error: {e}"));
            return Err(waiting("RunContainerError", e.to_string()));
        }
        context.events.normal(&regarding, "Started", "Container started");
        self.link_log(pod, container, &id, attempt);
        if let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref())
            && let Err(why) = self.run_hook(container, hook, &id, sources.pod_ips, Duration::from_secs(60)).await
        {
            context.events.warning(&regarding, "FailedPostStartHook", "PostStartHook failed");
            context.events.normal(&regarding, "Killing", "FailedPostStartHook");
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

    fn remembered_restarts(&self, pod: &Pod, name: &str) -> Option<i32> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let status = self.context.statuses.current(uid).or_else(|| pod.status.clone())?;
        let mut all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
        let known = all.find(|c| c.name == name)?;
        status::ended_of(known).map(|_| known.restart_count)
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
}

/// What downward API volumes show of the pod and what may change while it runs.
fn shown_of(pod: &Pod) -> Shown {
    (pod.metadata.labels.clone().unwrap_or_default(), pod.metadata.annotations.clone().unwrap_or_default())
}

/// The running container whose processes an ephemeral container asks to see.
fn target_of(pod: &Pod, container: &Container, look: &Look) -> Option<String> {
    let all = plan::ephemeral_containers(pod);
    let target = all.into_iter().find(|(c, _)| c.name == container.name)?.1?;
    look.containers
        .iter()
        .find(|c| c.listed.name == target && c.listed.phase == Phase::Running)
        .map(|c| c.listed.id.clone())
}

/// Upstream's refusal of containers that must not run as root and would, or might.
fn verify_user(pod: &Pod, container: &Container, image: &k8s_cri::v1::Image) -> Result<(), String> {
    let of_pod = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let own = container.security_context.as_ref();
    let non_root = own.and_then(|s| s.run_as_non_root).or_else(|| of_pod.and_then(|s| s.run_as_non_root));
    if non_root != Some(true) {
        return Ok(());
    }
    let meta = &pod.metadata;
    let shown = |s: &Option<String>| s.clone().unwrap_or_default();
    let who = format!(
        "(pod: \"{}_{}({})\", container: {})",
        shown(&meta.name),
        shown(&meta.namespace),
        shown(&meta.uid),
        container.name
    );
    match own.and_then(|s| s.run_as_user).or_else(|| of_pod.and_then(|s| s.run_as_user)) {
        Some(0) => return Err(format!("container's runAsUser breaks non-root policy {who}")),
        Some(_) => return Ok(()),
        None => {}
    }
    match (&image.uid, image.username.as_str()) {
        (Some(uid), _) if uid.value == 0 => Err(format!("container has runAsNonRoot and image will run as root {who}")),
        (Some(_), _) => Ok(()),
        (None, "") => Err(format!("container has runAsNonRoot and image will run as root {who}")),
        (None, name) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {who}"
        )),
    }
}

/// Mounts the subPaths of a container's volume mounts. Gives where, by the mount's path in the container.
fn bind_sub_paths(
    pod_dir: &Path,
    container: &Container,
    volumes: &Volumes,
    vars: &[(String, String)],
) -> Result<BTreeMap<String, PathBuf>, String> {
    let mut paths = BTreeMap::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let plain = mount.sub_path.clone().filter(|p| !p.is_empty());
        let expression = mount.sub_path_expr.as_ref().filter(|p| !p.is_empty());
        let Some(path) = (match expression {
            Some(expression) => Some(expanded(expression, vars)?),
            None => plain,
        }) else {
            continue;
        };
        let Some(Source::Path(volume)) = volumes.get(&mount.name) else { continue };
        let at = pod_dir.join("volume-subpaths").join(&mount.name).join(&container.name).join(index.to_string());
        sub_path::bind(volume, &path, &at).map_err(|e| {
            format!(
                "failed to prepare subPath for volumeMount \"{}\" of container \"{}\": {e}",
                mount.name, container.name
            )
        })?;
        paths.insert(mount.mount_path.clone(), at);
    }
    Ok(paths)
}

/// A `subPathExpr` with its variables put in: all of them must be there, and what comes out must lead downwards.
fn expanded(expression: &str, vars: &[(String, String)]) -> Result<String, String> {
    let missing = std::cell::RefCell::new(BTreeSet::new());
    let path = env::expand(expression, |name| {
        let found = vars.iter().find(|(n, v)| n == name && !v.is_empty()).map(|(_, v)| v.as_str());
        if found.is_none() {
            missing.borrow_mut().insert(name.to_owned());
        }
        found
    });
    let missing = missing.into_inner();
    if !missing.is_empty() {
        return Err(format!("missing value for {}", missing.into_iter().collect::<Vec<_>>().join(", ")));
    }
    if path.starts_with('/') {
        return Err(format!("error SubPath `{path}` must not be an absolute path"));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(format!("unable to provision SubPath `{path}`: must not contain '..'"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sub_path_with_variables_leads_downwards_and_lacks_nothing() {
        let vars = [("A", "a"), ("UP", "../x"), ("ROOT", "/x")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        let check = |expression: &str, want: Result<&str, &str>| {
            assert_eq!(expanded(expression, &vars).as_deref().map_err(String::as_str), want, "{expression}");
        };
        check("$(A)/b", Ok("a/b"));
        check("$(NONE)", Err("missing value for NONE"));
        check("$(ROOT)", Err("error SubPath `/x` must not be an absolute path"));
        check("$(UP)", Err("unable to provision SubPath `../x`: must not contain '..'"));
    }
}
