//! What brings a pod's containers down: hooks, signals in their order, and the clean-up after the last one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};

use super::container_config;
use super::plan::{self, Reset};
use super::worker::{Failed, Look, Worker, find};
use crate::runtime::{ContainerStatus, Phase};
use crate::volumes;

impl Worker {
    pub(super) async fn run_hook(
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

    pub(super) fn grace_of(&self, pod: &Pod) -> Duration {
        let spec = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
        Duration::from_secs(u64::try_from(spec).unwrap_or_default())
    }

    pub(super) async fn stop_container(
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
                self.context.events.warning(&regarding, "FailedPreStopHook", "PreStopHook failed");
                // What the hook said may be a secret: it is for the log alone.
                tracing::info!(container = container.name, why, "a preStop hook failed");
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

    /// Stops all containers that run: first those that do the work, all at once, then the sidecars that serve them, last
    /// started first, in what is left of the time.
    pub(super) async fn stop_containers(&mut self, pod: &Arc<Pod>, look: &Look, grace: Duration) -> Result<(), Failed> {
        let running: Vec<&ContainerStatus> =
            look.containers.iter().filter(|c| c.listed.phase == Phase::Running).collect();
        let place = |c: &ContainerStatus| {
            plan::init_containers(pod).iter().position(|i| i.name == c.listed.name && plan::is_sidecar(i))
        };
        let (mut sidecars, workers): (Vec<&ContainerStatus>, Vec<&ContainerStatus>) =
            running.iter().copied().partition(|c| place(c).is_some());
        for container in &running {
            if self.stopping.insert(container.listed.id.clone()) {
                let text = format!("Stopping container {}", container.listed.name);
                self.context.events.normal(&self.regarding(pod, Some(&container.listed.name)), "Killing", text);
            }
        }
        let began = Instant::now();
        let me = &*self;
        let stopping = workers.iter().map(|c| async move {
            me.stop_container(pod, find(pod, &c.listed.name).as_ref(), &c.listed.id, grace).await
        });
        let outcomes = futures::future::join_all(stopping).await;
        sidecars.sort_by_key(|c| std::cmp::Reverse(place(c)));
        for sidecar in sidecars {
            let left = grace.saturating_sub(began.elapsed());
            me.stop_container(pod, find(pod, &sidecar.listed.name).as_ref(), &sidecar.listed.id, left).await?;
        }
        if outcomes.iter().any(Result::is_err) { Err(Failed) } else { Ok(()) }
    }

    /// Ends all containers at once and forgets them, in this order, so that the pod begins anew in its sandbox. They get no
    /// time and no hooks (KEP-5532).
    pub(super) async fn reset(&mut self, all: &[Reset], pod: &Arc<Pod>) -> Result<(), Failed> {
        self.probes.set_targets(Vec::new());
        let runtime = self.context.runtime.clone();
        let running = all.iter().filter(|c| c.is_running).map(|c| {
            let text = format!("Stopping container {} to restart all containers", c.name);
            self.context.events.normal(&self.regarding(pod, Some(&c.name)), "Killing", text);
            runtime.stop_container(&c.id, Duration::ZERO)
        });
        let stopped = futures::future::try_join_all(running).await;
        stopped.map_err(|e| self.complain(pod, "cannot stop a container", &e))?;
        for container in all {
            let removed = runtime.remove_container(&container.id).await;
            removed.map_err(|e| self.complain(pod, "cannot remove a container", &e))?;
        }
        self.woken.notify_one();
        Ok(())
    }

    /// Stops everything of the pod, cleans up, and lets the API forget it.
    pub(super) async fn stop(&mut self, pod: &Arc<Pod>, grace: i64) -> Result<(), Failed> {
        let grace = Duration::from_secs(u64::try_from(grace).unwrap_or_default());
        self.probes.keep_readiness_only();
        let look = self.look(pod).await?;
        self.stop_containers(pod, &look, grace).await?;
        self.probes.set_targets(Vec::new());
        let runtime = self.context.runtime.clone();
        for sandbox in &look.state.sandboxes {
            runtime.stop_sandbox(&sandbox.id).await.map_err(|e| self.complain(pod, "cannot stop the sandbox", &e))?;
        }
        if let Ok(last) = self.look(pod).await {
            self.waiting.clear();
            self.report(pod, &last, true).await;
        }
        for sandbox in &look.state.sandboxes {
            runtime
                .remove_sandbox(&sandbox.id)
                .await
                .map_err(|e| self.complain(pod, "cannot remove the sandbox", &e))?;
        }
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let unprepared = self.context.claims.unprepare(uid).await;
        unprepared.map_err(|e| self.complain(pod, "cannot unprepare dynamic resources", &e))?;
        volumes::tear_down(&self.context, pod)
            .await
            .map_err(|e| self.complain(pod, "cannot remove the pod's volumes", &e))?;
        volumes::forget(&self.context.root, uid)
            .map_err(|e| self.complain(pod, "cannot remove the pod's files", &e))?;
        crate::node_cgroups::remove(pod, &self.context);
        let _ = std::fs::remove_dir_all(container_config::log_dir(&self.context.log_root, pod)); // logs go with the pod
        self.context.remove_log_links(pod);
        self.context.tokens.forget(uid);
        self.context.pod_certificates.forget(uid);
        self.context.images.forget(uid);
        self.context.dooms.forget(uid);
        self.context.probe_counts.forget(uid);
        self.context.statuses.finish(pod).await;
        Ok(())
    }
}
