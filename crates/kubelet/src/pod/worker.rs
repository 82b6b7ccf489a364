//! The worker of one pod: it looks at what runs, asks [`plan`] what to do, does it, and reports the status.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::events::reference;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, ResourceRequirements};
use tokio::sync::{Notify, watch};

use super::plan::{self, Ended, Facts};
use super::status::{self, Doom, Observed, Resize, Waiting};
use super::{container_config, resize};
use crate::context::Context;
use crate::probes::{Probes, Target};
use crate::runtime::{ContainerStatus, Phase, PodState};

/// Restarts are held back 10 s, then twice as long each time up to 5 min, until a container has run for 10 min.
const FIRST_BACKOFF: Duration = Duration::from_secs(10);
const LONGEST_BACKOFF: Duration = Duration::from_secs(300);
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);
/// How often volumes whose content may change are brought up to date.
pub(super) const VOLUME_REFRESH: Duration = Duration::from_secs(60);
/// After a failed step, the next attempt waits this long.
const RETRY: Duration = Duration::from_secs(2);

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
    pub(super) context: Arc<Context>,
    desired: watch::Receiver<Desired>,
    /// Something about what runs has changed.
    pub(super) woken: Arc<Notify>,
    pub(super) probes: Probes,
    backoff: BTreeMap<String, Backoff>,
    pub(super) waiting: BTreeMap<String, Waiting>,
    pub(super) volumes_at: Option<Instant>,
    /// The metadata that the volumes were made from.
    pub(super) volumes_show: Shown,
    messages: BTreeMap<String, String>,
    /// Containers that are on their way down, so that hooks and events come once.
    pub(super) stopping: BTreeSet<String>,
    /// By container name: the resources with which it runs.
    pub(super) actual: BTreeMap<String, ResourceRequirements>,
    pub(super) resize: Option<Resize>,
    doom: Option<Doom>,
    /// Everything of a pod that has ended is cleaned up.
    ended: bool,
    pub(super) mounting: Mounting,
    /// All containers go, to run again.
    restarting: bool,
}

/// When volumes that could not be set up may be tried again: after 0.5 s, then twice as long each time up to 2 min 2 s.
#[derive(Default)]
pub(super) struct Mounting {
    wait: Duration,
    until: Option<Instant>,
}

impl Mounting {
    pub(super) fn failed(&mut self) {
        self.wait = (self.wait * 2).clamp(Duration::from_millis(500), Duration::from_secs(122));
        self.until = Some(Instant::now() + self.wait);
    }

    pub(super) fn succeeded(&mut self) {
        *self = Mounting::default();
    }

    pub(super) fn left(&self) -> Duration {
        self.until.map(|until| until.saturating_duration_since(Instant::now())).unwrap_or_default()
    }
}

struct Backoff {
    wait: Duration,
    until: Instant,
    /// Which image ended, and how many runs of others there were before it: a new image begins anew.
    hash: String,
    before: i32,
}

/// What a look at the runtime found.
pub(super) struct Look {
    pub(super) state: PodState,
    pub(super) containers: Vec<ContainerStatus>,
    pub(super) ips: Vec<String>,
}

impl Look {
    pub(super) fn anything_runs(&self) -> bool {
        self.containers.iter().any(|c| c.listed.phase == Phase::Running)
    }
}

/// Labels and annotations of a pod.
pub(super) type Shown = (BTreeMap<String, String>, BTreeMap<String, String>);

/// A step that failed; the worker comes back later.
#[derive(Debug)]
pub(super) struct Failed;

impl Worker {
    pub(crate) fn new(context: Arc<Context>, desired: watch::Receiver<Desired>, woken: Arc<Notify>) -> Self {
        let probes = Probes::new(&context, Arc::clone(&woken));
        let (backoff, waiting, messages) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Worker {
            context,
            desired,
            woken,
            probes,
            backoff,
            waiting,
            volumes_at: None,
            volumes_show: Shown::default(),
            messages,
            stopping: BTreeSet::new(),
            actual: BTreeMap::new(),
            resize: None,
            doom: None,
            ended: false,
            mounting: Mounting::default(),
            restarting: false,
        }
    }

    /// Until the pod is gone from this node.
    pub(crate) async fn run(mut self) {
        loop {
            let desired = self.desired.borrow_and_update().clone();
            let interrupt = until_more_urgent(self.desired.clone(), desired.clone());
            // A step that waits (for a pull, a hook, a long grace period) is left where it is when something more urgent
            // is asked for: the runtime knows how far it came.
            let pause = match &desired {
                Desired::Run(pod) => tokio::select! {
                    pause = self.sync(pod) => pause,
                    () = interrupt => continue,
                },
                Desired::Stop { pod, grace } => tokio::select! {
                    stopped = self.stop(pod, *grace) => match stopped {
                        Ok(()) => return,
                        Err(Failed) => RETRY,
                    },
                    () = interrupt => continue,
                },
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
        const NOTHING_TO_DO: Duration = Duration::from_secs(3600);
        let Ok(look) = self.look(pod).await else { return RETRY };
        self.doom = self.doom_of(pod);
        let ended_before =
            pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(|p| p == "Failed" || p == "Succeeded");
        if self.doom.is_some() || ended_before {
            return if self.end(pod, look).await.is_ok() { NOTHING_TO_DO } else { RETRY };
        }
        self.start_probes(pod, &look);
        let findings = self.probes.findings();
        let ended = ended_runs(&look);
        self.note_ends(&look);
        let backoff = self.backoff_left(pod, &look);
        let facts = Facts { pod, state: &look.state, ended: &ended, probed: &findings.probed, backoff: &backoff };
        let plan = plan::plan(&facts);
        self.note_waiting(pod, &look, &backoff);
        if plan.finished {
            return if self.end(pod, look).await.is_ok() { NOTHING_TO_DO } else { RETRY };
        }

        self.restarting = !plan.reset.is_empty();
        let active = self.restarting || plan.new_sandbox || !plan.start.is_empty() || !plan.kill.is_empty();
        // The status goes out before containers start, so that everybody sees why it takes long.
        self.report(pod, &look, false).await;
        let mut failed = false;
        if active {
            failed = match self.restarting {
                true => self.reset(&plan.reset, pod).await.is_err(),
                false => self.carry_out(pod, &look, &plan).await.is_err(),
            };
            self.restarting &= failed;
            if let Ok(look) = self.look(pod).await {
                self.start_probes(pod, &look);
                self.report(pod, &look, false).await;
            }
        } else {
            failed |= self.refresh_volumes(pod, &look).await.is_err();
            if self.bring_resources(pod, &look).await {
                self.report(pod, &look, false).await;
            }
        }
        let mut pause = if self.has_changing_volumes(pod) { VOLUME_REFRESH } else { NOTHING_TO_DO };
        if failed {
            let left = self.mounting.left();
            pause = if left.is_zero() { RETRY } else { left };
        }
        if matches!(self.resize, Some(Resize::Pending { reason: "Deferred", .. } | Resize::InProgress { .. })) {
            pause = pause.min(resize::RETRY);
        }
        if let Some(wait) = plan.wait {
            pause = pause.min(wait + Duration::from_millis(50));
        }
        if let Some(left) = self.deadline_left(pod) {
            pause = pause.min(left + Duration::from_millis(50));
        }
        pause
    }

    /// Why this pod must not run on: it was rejected or evicted, or its time is over.
    fn doom_of(&self, pod: &Arc<Pod>) -> Option<Doom> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if let Some(doom) = self.doom.clone().or_else(|| self.context.dooms.of(uid)) {
            return Some(doom);
        }
        if !self.deadline_left(pod)?.is_zero() {
            return None;
        }
        let message = "Pod was active on the node longer than the specified deadline".to_owned();
        self.context.events.normal(&reference(&**pod), "DeadlineExceeded", message.clone());
        Some(Doom { reason: "DeadlineExceeded".to_owned(), message, grace: None, disruption: false })
    }

    fn deadline_left(&self, pod: &Pod) -> Option<Duration> {
        let allowed = u64::try_from(pod.spec.as_ref()?.active_deadline_seconds?).ok()?;
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let current = self.context.statuses.current(uid);
        let started = current.or_else(|| pod.status.clone()).and_then(|s| s.start_time)?;
        let nanoseconds = i64::try_from(started.0.as_nanosecond()).unwrap_or_default();
        Some(Duration::from_secs(allowed).saturating_sub(age_of(nanoseconds)))
    }

    /// Takes down what still runs of a pod that has ended or must end, and keeps its logs and its status.
    async fn end(&mut self, pod: &Arc<Pod>, look: Look) -> Result<(), Failed> {
        self.probes.set_targets(Vec::new());
        if self.ended {
            return Ok(());
        }
        let grace = match self.doom.as_ref().and_then(|d| d.grace) {
            Some(seconds) => Duration::from_secs(u64::try_from(seconds).unwrap_or_default()),
            None => self.grace_of(pod),
        };
        if look.anything_runs() {
            // A terminal phase is told when nothing runs any more, and not before.
            self.stop_containers(pod, &look, grace).await?;
        }
        for sandbox in look.state.sandboxes.iter().filter(|s| s.ready) {
            let stopped = self.context.runtime.stop_sandbox(&sandbox.id).await;
            stopped.map_err(|e| self.complain(pod, "cannot stop the sandbox", &e))?;
        }
        let look = self.look(pod).await?;
        self.waiting.clear();
        self.report(pod, &look, self.doom.is_some()).await;
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let unprepared = self.context.claims.unprepare(uid).await;
        unprepared.map_err(|e| self.complain(pod, "cannot unprepare dynamic resources", &e))?;
        crate::volumes::tear_down(&self.context, pod)
            .await
            .map_err(|e| self.complain(pod, "cannot remove the pod's volumes", &e))?;
        crate::node_cgroups::remove(pod, &self.context);
        self.context.images.forget(uid);
        self.context.devices.keep_only(|other| other != uid);
        self.context.cpus.keep_only(|other| other != uid);
        self.context.memory.keep_only(|other| other != uid);
        self.ended = true;
        Ok(())
    }

    pub(super) async fn look(&mut self, pod: &Pod) -> Result<Look, Failed> {
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
            Some(sandbox) => self.context.pod_ips(pod, &sandbox.id).await.map_err(complain)?,
            None => Vec::new(),
        };
        Ok(Look { state, containers, ips })
    }

    /// Remembers the termination message of a run that has ended.
    fn read_message(&mut self, pod: &Pod, status: &ContainerStatus) {
        const LIMIT: u64 = 4096;
        if status.listed.phase != Phase::Exited || self.messages.contains_key(&status.listed.id) {
            return;
        }
        let file = status.termination_path.as_ref().and_then(|p| read_start(p, LIMIT).ok()).unwrap_or_default();
        let mut text = String::from_utf8_lossy(&file).into_owned();
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

    pub(super) fn regarding(&self, pod: &Pod, container: Option<&str>) -> ObjectReference {
        let mut reference = reference(pod);
        if let Some(name) = container {
            let is = |c: &Container| c.name == name;
            let list = match (plan::init_containers(pod).iter().any(is), plan::containers(pod).iter().any(is)) {
                (true, _) => "initContainers",
                (_, false) => "ephemeralContainers",
                _ => "containers",
            };
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
            // One that never started did not run, whatever its times say.
            let ran = if container.started_at > 0 { container.finished_at - container.started_at } else { 0 };
            let ran = Duration::from_nanos(u64::try_from(ran).unwrap_or_default());
            // The first restart is immediate; its count tells which one this is, also after a restart of ours.
            let before = runs_before(self.backoff.get(&listed.name), &listed.hash, listed.restart_count);
            let wait = wait_after(listed.restart_count - before, ran);
            let until = Instant::now() + wait.saturating_sub(since_end);
            let hash = listed.hash.clone();
            self.backoff.insert(listed.name.clone(), Backoff { wait, until, hash, before });
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
        // A pull that failed and may not be tried again yet.
        for (name, left) in backoff {
            let Some(failed) = self.waiting.get(name).filter(|w| w.reason == "ErrImagePull" && !left.is_zero()) else {
                continue;
            };
            let image = find(pod, name).and_then(|c| c.image).unwrap_or_default();
            let text = format!("Back-off pulling image \"{image}\"");
            let message = format!("{text}: ErrImagePull: {}", failed.message);
            let regarding = self.regarding(pod, Some(name));
            self.context.events.normal(&regarding, "BackOff", text);
            self.context.events.warning(&regarding, "Failed", "Error: ImagePullBackOff");
            self.waiting.insert(name.clone(), Waiting { reason: "ImagePullBackOff".to_owned(), message });
        }
        let running =
            |name: &str| look.containers.iter().any(|c| c.listed.name == name && c.listed.phase == Phase::Running);
        self.waiting.retain(|name, w| {
            !running(name) && (w.reason != "CrashLoopBackOff" || backoff.get(name).is_some_and(|left| !left.is_zero()))
        });
    }

    pub(super) fn complain(&self, pod: &Pod, what: &str, error: &dyn std::fmt::Display) -> Failed {
        tracing::warn!(pod = pod.metadata.name, namespace = pod.metadata.namespace, %error, "{what}");
        Failed
    }

    pub(super) async fn report(&mut self, pod: &Arc<Pod>, look: &Look, terminated: bool) {
        let findings = self.probes.findings();
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        // Our own last word; after a restart, what the API remembers of it.
        let before = self.context.statuses.current(uid).or_else(|| pod.status.clone()).unwrap_or_default();
        let mut status = status::status_of(&Observed {
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
            doom: self.doom.as_ref(),
            resize: self.resize.as_ref(),
            restarting: self.restarting,
            actual: &self.actual,
            runtime: &self.context.runtime.name().await,
            now: Timestamp::now(),
        });
        for container in status.container_statuses.iter_mut().flatten() {
            let spec = plan::containers(pod).iter().find(|c| c.name == container.name);
            let health = spec.map(|spec| self.context.claims.health(pod, spec)).filter(|health| !health.is_empty());
            container.allocated_resources_status = health;
        }
        self.context.statuses.report(pod, status).await;
    }
}

pub(crate) fn find(pod: &Pod, name: &str) -> Option<Container> {
    let ordinary = plan::containers(pod).iter().chain(plan::init_containers(pod)).find(|c| c.name == name).cloned();
    ordinary.or_else(|| plan::ephemeral_containers(pod).into_iter().map(|(c, _)| c).find(|c| c.name == name))
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

/// The first bytes of a file that a container wrote: how long it is, is the container's choice.
fn read_start(path: &std::path::Path, limit: u64) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut start = Vec::new();
    std::fs::File::open(path)?.take(limit).read_to_end(&mut start)?;
    Ok(start)
}

/// How many runs of other images there were before this one.
fn runs_before(known: Option<&Backoff>, hash: &str, restart_count: i32) -> i32 {
    match known {
        Some(known) if known.hash == hash => known.before,
        Some(_) => restart_count,
        None => 0,
    }
}

/// How long the next start is held back after the n-th restart, which ran that long.
fn wait_after(restarts: i32, ran: Duration) -> Duration {
    match u32::try_from(restarts).unwrap_or_default() {
        0 => Duration::ZERO,
        _ if ran > FORGIVEN_AFTER => Duration::ZERO,
        n => FIRST_BACKOFF.saturating_mul(1 << (n - 1).min(5)).min(LONGEST_BACKOFF),
    }
}

fn age_of(nanoseconds: i64) -> Duration {
    let now = Timestamp::now().as_nanosecond();
    u64::try_from(now - i128::from(nanoseconds)).map(Duration::from_nanos).unwrap_or_default()
}

/// Returns when something is asked that cannot wait for what is being done: the pod must go, or must go faster.
async fn until_more_urgent(mut desired: watch::Receiver<Desired>, now: Desired) {
    loop {
        if desired.changed().await.is_err() {
            return std::future::pending().await; // the kubelet stops; pods run on
        }
        match (&now, &*desired.borrow_and_update()) {
            (Desired::Run(_), Desired::Stop { .. }) => return,
            (Desired::Stop { grace: before, .. }, Desired::Stop { grace, .. }) if grace < before => return,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_are_held_back_longer_and_longer_until_the_image_changes() {
        let known = |hash: &str, before: i32| Backoff {
            wait: Duration::ZERO,
            until: Instant::now(),
            hash: hash.to_owned(),
            before,
        };
        let check = |known: Option<&Backoff>, hash: &str, count: i32, want: u64| {
            let restarts = count - runs_before(known, hash, count);
            assert_eq!(wait_after(restarts, Duration::ZERO).as_secs(), want, "{hash} {count}");
        };
        check(None, "a", 0, 0);
        check(Some(&known("a", 0)), "a", 1, 10);
        check(Some(&known("a", 0)), "a", 3, 40);
        check(Some(&known("a", 0)), "a", 30, 300);
        check(Some(&known("a", 0)), "b", 4, 0);
        check(Some(&known("b", 4)), "b", 5, 10);
        assert_eq!(wait_after(3, FORGIVEN_AFTER * 2), Duration::ZERO);
    }
}
