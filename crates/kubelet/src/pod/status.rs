//! The status of a pod from what runs of it: a pure function, with upstream's phases, conditions and reasons.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, HostIP, LinuxContainerUser, Pod, PodCondition, PodIP, PodStatus, ResourceRequirements, VolumeMount,
    VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::{self, Probed};
use crate::runtime;

/// Why a container is not running, when the runtime does not know of it: an image that cannot be pulled, a missing Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub reason: String,
    pub message: String,
}

/// A pod that may not run (any more): its status says why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Doom {
    pub reason: String,
    pub message: String,
    /// Seconds that its containers have; the pod's own where none are given.
    pub grace: Option<i64>,
    /// An eviction by this kubelet, which controllers must be able to tell from a failure.
    pub disruption: bool,
}

/// How far a change of resources in place has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resize {
    /// It cannot be done now (`Deferred`) or never on this node (`Infeasible`).
    Pending {
        reason: &'static str,
        message: String,
    },
    InProgress {
        error: Option<String>,
    },
}

/// All that a status is made of.
pub(crate) struct Observed<'a> {
    pub pod: &'a Pod,
    /// The status that was made before this one; times of changes that did not happen are taken from it.
    pub before: &'a PodStatus,
    /// Newest first, of all containers of the pod.
    pub containers: &'a [runtime::ContainerStatus],
    pub sandbox_ready: bool,
    pub ips: &'a [String],
    pub host_ips: &'a [String],
    pub waiting: &'a BTreeMap<String, Waiting>,
    pub probed: &'a BTreeMap<String, Probed>,
    /// By container name; a container without a readiness probe is ready when it runs.
    pub ready: &'a BTreeMap<String, bool>,
    pub messages: &'a BTreeMap<String, String>,
    /// By container name: the resources that it has, where they differ from those that it should have.
    pub actual: &'a BTreeMap<String, ResourceRequirements>,
    /// The pod was stopped for good; containers that left no trace count as terminated.
    pub terminated: bool,
    /// Why the pod has failed as a whole, whatever its containers did.
    pub doom: Option<&'a Doom>,
    /// A resize that has not come to its end.
    pub resize: Option<&'a Resize>,
    /// All containers go, because one has ended so that all run again.
    pub restarting: bool,
    /// The runtime's name, which container ids begin with.
    pub runtime: &'a str,
    pub now: Timestamp,
}

pub(crate) fn time_of(nanoseconds: i64) -> Option<Time> {
    (nanoseconds > 0).then(|| Timestamp::from_nanosecond(nanoseconds.into()).ok().map(Time)).flatten()
}

pub(crate) fn status_of(o: &Observed<'_>) -> PodStatus {
    let old = o.before.clone();
    let api = o.pod.status.clone().unwrap_or_default();
    let init: Vec<ContainerStatus> =
        plan::init_containers(o.pod).iter().map(|c| container_status(o, c, true)).collect();
    let apps: Vec<ContainerStatus> = plan::containers(o.pod).iter().map(|c| container_status(o, c, false)).collect();
    let phase = match old.phase.as_deref() {
        Some(ended @ ("Succeeded" | "Failed")) => ended.to_owned(), // nothing leads out of these
        _ if o.doom.is_some() => "Failed".to_owned(),
        _ => phase_of(o.pod, &init, &apps, o.terminated),
    };
    // A pod that was turned away never had containers.
    let turned_away = o.doom.is_some_and(|d| !d.disruption) && o.containers.is_empty() && old.pod_ip.is_none();
    let (init, apps) = if turned_away { (Vec::new(), Vec::new()) } else { (init, apps) };
    let ephemeral: Vec<ContainerStatus> =
        plan::ephemeral_containers(o.pod).iter().map(|(c, _)| ephemeral_status(o, c)).collect();
    let conditions = conditions_of(o, &old, &phase, &init, &apps);
    let pod_ips: Vec<PodIP> = o.ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect();
    let host_ips: Vec<HostIP> = o.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect();
    // The addresses of a pod that has ended stay as they were.
    let keep_ips = pod_ips.is_empty() && matches!(phase.as_str(), "Succeeded" | "Failed");
    PodStatus {
        conditions: Some(conditions),
        host_ip: host_ips.first().map(|h| h.ip.clone()),
        host_ips: Some(host_ips),
        pod_ip: if keep_ips { old.pod_ip } else { pod_ips.first().map(|p| p.ip.clone()) },
        pod_ips: if keep_ips { old.pod_ips } else { (!pod_ips.is_empty()).then_some(pod_ips) },
        start_time: old.start_time.or(Some(Time(o.now))),
        init_container_statuses: (!init.is_empty()).then_some(init),
        container_statuses: (!apps.is_empty()).then_some(apps),
        qos_class: Some(old.qos_class.unwrap_or_else(|| crate::cgroups::qos_class(o.pod).to_owned())),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        message: o.doom.map(|d| d.message.clone()).or(old.message),
        reason: o.doom.map(|d| d.reason.clone()).or(old.reason),
        resource_claim_statuses: api.resource_claim_statuses,
        extended_resource_claim_status: api.extended_resource_claim_status,
        nominated_node_name: old.nominated_node_name,
        observed_generation: o.pod.metadata.generation,
        phase: Some(phase),
        ..PodStatus::default()
    }
}

fn container_status(o: &Observed<'_>, container: &Container, is_init: bool) -> ContainerStatus {
    let runs: Vec<&runtime::ContainerStatus> =
        o.containers.iter().filter(|c| c.listed.name == container.name).collect();
    let newest = runs.first().copied();
    let previous = runs.get(1).copied();
    let waiting = o.waiting.get(&container.name);
    let state_then = |c: &runtime::ContainerStatus| terminated(c, o.messages.get(&c.listed.id), o.runtime);
    let list = if is_init { &o.before.init_container_statuses } else { &o.before.container_statuses };
    let old = list.iter().flatten().find(|c| c.name == container.name).cloned();

    let mut restart_count = match newest {
        Some(run) => run.listed.restart_count,
        None => old.as_ref().map_or(0, |old| old.restart_count),
    };
    let ended_before = || old.as_ref().and_then(ended_of);
    let (state, last_state) = match newest {
        Some(c) if c.listed.phase == runtime::Phase::Running => {
            let running = ContainerState {
                running: Some(ContainerStateRunning { started_at: time_of(c.started_at) }),
                ..ContainerState::default()
            };
            (running, previous.map(state_then).or_else(|| old.as_ref().and_then(|old| old.last_state.clone())))
        }
        Some(c) if c.listed.phase == runtime::Phase::Exited => match waiting {
            // It is waiting to run again: the run that ended becomes the last state.
            Some(w) => (waiting_state(&w.reason, &w.message), Some(state_then(c))),
            None => (state_then(c), previous.map(state_then)),
        },
        _ => match (waiting, &old) {
            (None, Some(old)) if o.terminated && old.state.as_ref().is_some_and(|s| s.terminated.is_some()) => {
                restart_count = old.restart_count;
                (old.state.clone().unwrap_or_default(), old.last_state.clone())
            }
            (None, _) if o.terminated => (lost(), None),
            (Some(w), _) => (waiting_state(&w.reason, &w.message), previous.map(state_then).or_else(ended_before)),
            (None, _) => {
                let has_inits = !plan::init_containers(o.pod).is_empty();
                (waiting_state(if has_inits { "PodInitializing" } else { "ContainerCreating" }, ""), ended_before())
            }
        },
    };
    let running = state.running.is_some();
    let started = running && o.probed.get(&container.name).is_none_or(|p| p.started);
    let ready = if is_init && !plan::is_sidecar(container) {
        state.terminated.as_ref().is_some_and(|t| t.exit_code == 0)
    } else {
        started && o.ready.get(&container.name).copied().unwrap_or(true)
    };
    ContainerStatus {
        name: container.name.clone(),
        container_id: newest.map(|c| format!("{}://{}", o.runtime, c.listed.id)),
        image: newest
            .map(|c| c.image.clone())
            .filter(|i| !i.is_empty())
            .or_else(|| container.image.clone())
            .unwrap_or_default(),
        image_id: newest.map(|c| c.image_ref.clone()).unwrap_or_default(),
        ready,
        started: Some(started),
        restart_count,
        state: Some(state),
        last_state: Some(last_state.unwrap_or_default()),
        allocated_resources: allocated(o, container).and_then(|r| r.requests.clone()).filter(|r| !r.is_empty()),
        resources: o.actual.get(&container.name).cloned().or_else(|| container.resources.clone()),
        volume_mounts: volume_mounts(container),
        user: newest.and_then(|run| run.user.as_ref()).map(|user| ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: user.uid,
                gid: user.gid,
                supplemental_groups: Some(user.supplemental_groups.clone()),
            }),
        }),
        ..ContainerStatus::default()
    }
}

/// What the node has set aside for the container: while a resize waits, what it asked for before.
fn allocated<'a>(o: &'a Observed<'_>, container: &'a Container) -> Option<&'a ResourceRequirements> {
    let waits = matches!(o.resize, Some(Resize::Pending { .. }));
    o.actual.get(&container.name).filter(|_| waits).or(container.resources.as_ref())
}

/// How the last run ended of a container that the runtime knows no more; none: it never ran.
pub(super) fn ended_of(status: &ContainerStatus) -> Option<ContainerState> {
    let ended = |state: &Option<ContainerState>| state.clone().filter(|s| s.terminated.is_some());
    let was_running = status.state.as_ref().is_some_and(|s| s.running.is_some());
    ended(&status.state).or_else(|| was_running.then(lost)).or_else(|| ended(&status.last_state))
}

/// An ephemeral container neither restarts nor counts for the pod's readiness.
fn ephemeral_status(o: &Observed<'_>, container: &Container) -> ContainerStatus {
    let mut status = container_status(o, container, false);
    (status.ready, status.started) = (false, None);
    status
}

fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let one = |m: &VolumeMount| VolumeMountStatus {
        name: m.name.clone(),
        mount_path: m.mount_path.clone(),
        read_only: m.read_only.filter(|r| *r),
        recursive_read_only: (m.read_only == Some(true))
            .then(|| m.recursive_read_only.clone().filter(|r| r == "Enabled").unwrap_or_else(|| "Disabled".to_owned())),
        ..VolumeMountStatus::default()
    };
    container.volume_mounts.as_ref().filter(|m| !m.is_empty()).map(|m| m.iter().map(one).collect())
}

fn waiting_state(reason: &str, message: &str) -> ContainerState {
    let message = (!message.is_empty()).then(|| message.to_owned());
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn terminated(c: &runtime::ContainerStatus, message: Option<&String>, runtime: &str) -> ContainerState {
    let reason = match (c.reason.as_str(), c.exit_code) {
        ("", 0) => "Completed",
        ("", _) => "Error",
        (given, _) => given,
    };
    let message = message.cloned().or_else(|| Some(c.message.clone())).filter(|m| !m.is_empty());
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: c.exit_code,
            reason: Some(reason.to_owned()),
            message,
            started_at: time_of(c.started_at),
            finished_at: time_of(c.finished_at),
            container_id: Some(format!("{runtime}://{}", c.listed.id)),
            signal: None,
        }),
        ..ContainerState::default()
    }
}

fn lost() -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: 137,
            reason: Some("ContainerStatusUnknown".to_owned()),
            message: Some("The container could not be located when the pod was terminated".to_owned()),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    }
}

fn phase_of(pod: &Pod, init: &[ContainerStatus], apps: &[ContainerStatus], stopped: bool) -> String {
    let policy = plan::restart_policy(pod);
    let state = |s: &ContainerStatus| s.state.clone().unwrap_or_default();
    let ran_before = |s: &ContainerStatus| s.last_state.as_ref().is_some_and(|s| s.terminated.is_some());
    let apps_began = apps.iter().any(|s| state(s).waiting.is_none() || ran_before(s));
    let (mut pending, mut running, mut waiting) = (0, 0, 0);
    for (container, status) in plan::init_containers(pod).iter().zip(init) {
        let now = state(status);
        if plan::is_sidecar(container) {
            match (now.running.is_some(), now.waiting.is_some()) {
                (true, _) => {
                    running += 1;
                    pending += usize::from(status.started != Some(true) && !apps_began);
                }
                (_, true) if !ran_before(status) => waiting += 1,
                _ => {} // one that has ended says nothing of the pod
            }
            continue;
        }
        match now.terminated {
            Some(t) if t.exit_code == 0 => {}
            Some(t) if stopped || !plan::restarts_after(pod, container, true, t.exit_code) => {
                return "Failed".to_owned();
            }
            _ => pending += usize::from(!apps_began),
        }
    }
    let (mut ended, mut succeeded, mut restarting) = (0, 0, false);
    for (container, status) in plan::containers(pod).iter().zip(apps) {
        let now = state(status);
        match (now.running.is_some(), &now.terminated) {
            (true, _) => running += 1,
            (_, Some(t)) => {
                ended += 1;
                succeeded += usize::from(t.exit_code == 0);
                restarting |= plan::restarts_after(pod, container, false, t.exit_code);
            }
            _ if ran_before(status) => {
                ended += 1;
                restarting = true; // it has run before and will run again
            }
            _ => waiting += 1,
        }
    }
    let phase = if stopped {
        if waiting == 0 && pending == 0 && ended > 0 && succeeded == ended { "Succeeded" } else { "Failed" }
    } else if pending > 0 || waiting > 0 {
        "Pending"
    } else if running > 0 || restarting || (ended > 0 && policy == "Always" && succeeded < ended) {
        "Running"
    } else if ended == 0 {
        "Pending"
    } else if succeeded == ended {
        "Succeeded"
    } else {
        "Failed"
    };
    phase.to_owned()
}

const OURS: &[&str] = &[
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    "PodResizePending",
    "PodResizeInProgress",
    RESTARTING,
];
const RESTARTING: &str = "AllContainersRestarting";

fn conditions_of(
    o: &Observed<'_>,
    old: &PodStatus,
    phase: &str,
    init: &[ContainerStatus],
    apps: &[ContainerStatus],
) -> Vec<PodCondition> {
    let ended = matches!(phase, "Succeeded" | "Failed");
    let sidecars = plan::init_containers(o.pod).iter().zip(init).filter(|(c, _)| plan::is_sidecar(c)).map(|(_, s)| s);
    let unready: Vec<&str> = sidecars.chain(apps).filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
    let incomplete: Vec<&str> = plan::init_containers(o.pod)
        .iter()
        .zip(init)
        .filter(|(c, s)| if plan::is_sidecar(c) { s.started != Some(true) } else { !s.ready })
        .map(|(_, s)| s.name.as_str())
        .collect();
    let apps_began = apps.iter().any(|s| s.state.as_ref().is_some_and(|s| s.waiting.is_none()));
    let reason = |word: &str| if phase == "Succeeded" { "PodCompleted".to_owned() } else { word.to_owned() };
    let containers_ready = match (ended, unready.is_empty()) {
        (true, _) => {
            Err((if phase == "Failed" { "PodFailed".to_owned() } else { "PodCompleted".to_owned() }, String::new()))
        }
        (false, true) => Ok(()),
        (false, false) => {
            Err((reason("ContainersNotReady"), format!("containers with unready status: [{}]", unready.join(" "))))
        }
    };
    let gates = o.pod.spec.as_ref().and_then(|s| s.readiness_gates.as_deref()).unwrap_or_default();
    let api = o.pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let unmet: Vec<String> = gates
        .iter()
        .filter_map(|gate| {
            let kind = &gate.condition_type;
            match api.iter().find(|c| c.type_ == *kind).map(|c| c.status.as_str()) {
                Some("True") => None,
                Some(other) => Some(format!("the status of pod readiness gate {kind:?} is not \"True\", but {other}")),
                None => Some(format!("corresponding condition of pod readiness gate {kind:?} does not exist.")),
            }
        })
        .collect();
    let ready = match (&containers_ready, unmet.is_empty()) {
        (Ok(()), true) => Ok(()),
        (Ok(()), false) => Err(("ReadinessGatesNotReady".to_owned(), unmet.join(", "))),
        (Err(why), _) => Err(why.clone()),
    };
    // Where all containers run again, the pod stays what it was.
    let was_initialized = plan::may_restart_all(o.pod)
        && old.conditions.iter().flatten().any(|c| c.type_ == "Initialized" && c.status == "True");
    let initialized = if incomplete.is_empty() || apps_began || was_initialized {
        Ok(())
    } else {
        Err((
            reason("ContainersNotInitialized"),
            format!("containers with incomplete status: [{}]", incomplete.join(" ")),
        ))
    };
    let sandbox = if o.sandbox_ready { Ok(()) } else { Err((String::new(), String::new())) };
    let mut conditions: Vec<PodCondition> = api.iter().filter(|c| !OURS.contains(&c.type_.as_str())).cloned().collect();
    let mut push = |kind: &str, value: Result<(), (String, String)>| {
        let before = old.conditions.iter().flatten().find(|c| c.type_ == kind);
        let status = if value.is_ok() { "True" } else { "False" };
        let since = before.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
        let (reason, message) = value.err().unwrap_or_default();
        conditions.push(PodCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: (!reason.is_empty()).then_some(reason),
            message: (!message.is_empty()).then_some(message),
            last_transition_time: since.or(Some(Time(o.now))),
            observed_generation: o.pod.metadata.generation,
            ..PodCondition::default()
        });
    };
    push("PodReadyToStartContainers", sandbox);
    push("Initialized", initialized);
    push("Ready", ready);
    push("ContainersReady", containers_ready);
    push("PodScheduled", Ok(()));
    if plan::may_restart_all(o.pod) && !o.restarting {
        let reason = match phase {
            "Succeeded" => "PodCompleted",
            "Failed" => "PodFailed",
            _ => "",
        };
        push(RESTARTING, Err((reason.to_owned(), String::new())));
    }
    let mut add = |kind: &str, reason: Option<&str>, message: Option<String>| {
        let before = old.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == "True");
        conditions.retain(|c| c.type_ != kind);
        conditions.push(PodCondition {
            type_: kind.to_owned(),
            status: "True".to_owned(),
            reason: reason.map(str::to_owned),
            message,
            last_transition_time: before.and_then(|c| c.last_transition_time.clone()).or(Some(Time(o.now))),
            observed_generation: o.pod.metadata.generation,
            ..PodCondition::default()
        });
    };
    match o.resize {
        Some(Resize::Pending { reason, message }) => add("PodResizePending", Some(reason), Some(message.clone())),
        Some(Resize::InProgress { error }) => {
            add("PodResizeInProgress", error.is_some().then_some("Error"), error.clone());
        }
        None => {}
    }
    if o.restarting {
        let message = "container exited with restart policy rule".to_owned();
        add(RESTARTING, Some("RestartAllContainersStarted"), Some(message));
    }
    if let Some(doom) = o.doom.filter(|d| d.disruption) {
        add("DisruptionTarget", Some("TerminationByKubelet"), Some(doom.message.clone()));
    }
    conditions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{Listed, Phase};

    fn run(name: &str, phase: Phase, exit_code: i32) -> runtime::ContainerStatus {
        runtime::ContainerStatus {
            listed: Listed {
                id: format!("id-{name}"),
                sandbox_id: "s".into(),
                name: name.into(),
                phase,
                created_at: 1,
                restart_count: 2,
                hash: String::new(),
            },
            started_at: 1_000_000_000,
            finished_at: 2_000_000_000,
            exit_code,
            reason: String::new(),
            message: String::new(),
            image: "i".into(),
            image_ref: "i@sha256:1".into(),
            log_path: String::new(),
            termination_path: None,
            termination_fallback: false,
            user: None,
        }
    }

    fn status(spec: serde_json::Value, runs: &[runtime::ContainerStatus], waiting: &[(&str, &str)]) -> PodStatus {
        status_after(&PodStatus::default(), spec, runs, waiting)
    }

    #[test]
    fn a_sidecar_that_is_not_ready_keeps_its_pod_from_being_so() {
        let spec = serde_json::json!({"initContainers": [{"name": "side", "restartPolicy": "Always"}],
            "containers": [{"name": "web"}]});
        let status = status(spec, &[run("web", Phase::Running, 0), run("side", Phase::Exited, 1)], &[]);
        let found = status.conditions.iter().flatten().find(|c| c.type_ == "ContainersReady").unwrap();
        assert_eq!(found.message.as_deref(), Some("containers with unready status: [side]"));
    }

    #[test]
    fn readiness_gates_say_what_they_lack() {
        let pod = serde_json::json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "web"}],
            "readinessGates": [{"conditionType": "a"}, {"conditionType": "b"}, {"conditionType": "c"}]},
            "status": {"conditions": [{"type": "a", "status": "True"}, {"type": "b", "status": "Unknown"}]}});
        let status = status_with(
            &PodStatus::default(),
            &serde_json::from_value(pod).unwrap(),
            &[run("web", Phase::Running, 0)],
            &[],
            None,
        );
        let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready").unwrap();
        let words = "the status of pod readiness gate \"b\" is not \"True\", but Unknown, \
            corresponding condition of pod readiness gate \"c\" does not exist.";
        assert_eq!(ready.message.as_deref(), Some(words));
    }

    #[test]
    fn while_a_resize_waits_what_was_asked_for_before_is_set_aside() {
        let resources = |cpu: &str| serde_json::json!({"requests": {"cpu": cpu}});
        let pod = serde_json::json!({"spec": {"containers": [{"name": "web", "resources": resources("2")}]}});
        let actual = BTreeMap::from([("web".to_owned(), serde_json::from_value(resources("1")).unwrap())]);
        let allocated = |resize: Option<&Resize>| {
            let runs = [run("web", Phase::Running, 0)];
            let pod = serde_json::from_value(pod.clone()).unwrap();
            let status = status_with(&PodStatus::default(), &pod, &runs, &[], Some((resize, &actual)));
            status.container_statuses.unwrap()[0].allocated_resources.clone().unwrap()["cpu"].0.clone()
        };
        assert_eq!(allocated(Some(&Resize::Pending { reason: "Deferred", message: String::new() })), "1");
        assert_eq!(allocated(Some(&Resize::InProgress { error: None })), "2");
        assert_eq!(allocated(None), "2");
    }

    fn status_after(
        before: &PodStatus,
        spec: serde_json::Value,
        runs: &[runtime::ContainerStatus],
        waiting: &[(&str, &str)],
    ) -> PodStatus {
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
        status_with(before, &pod, runs, waiting, None)
    }

    type Resizing<'a> = (Option<&'a Resize>, &'a BTreeMap<String, ResourceRequirements>);

    fn status_with(
        before: &PodStatus,
        pod: &Pod,
        runs: &[runtime::ContainerStatus],
        waiting: &[(&str, &str)],
        resizing: Option<Resizing<'_>>,
    ) -> PodStatus {
        let nothing = BTreeMap::new();
        let (resize, actual) = resizing.unwrap_or((None, &nothing));
        let waiting = waiting
            .iter()
            .map(|(n, r)| ((*n).to_owned(), Waiting { reason: (*r).to_owned(), message: "m".into() }))
            .collect();
        status_of(&Observed {
            pod,
            before,
            containers: runs,
            sandbox_ready: true,
            ips: &["10.244.0.2".to_owned()],
            host_ips: &["192.0.2.1".to_owned()],
            waiting: &waiting,
            probed: &BTreeMap::new(),
            ready: &BTreeMap::new(),
            messages: &BTreeMap::new(),
            terminated: false,
            doom: None,
            resize,
            restarting: false,
            actual,
            runtime: "containerd",
            now: Timestamp::UNIX_EPOCH,
        })
    }

    fn condition(status: &PodStatus, kind: &str) -> (String, String) {
        let c = status.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap();
        (c.status.clone(), c.reason.clone().unwrap_or_default())
    }

    fn web(policy: &str) -> serde_json::Value {
        serde_json::json!({"restartPolicy": policy, "containers": [{"name": "web", "image": "i"}]})
    }

    #[test]
    fn a_pod_without_containers_yet_is_pending() {
        let status = status(web("Always"), &[], &[]);
        assert_eq!(status.phase.as_deref(), Some("Pending"));
        let state = status.container_statuses.as_ref().unwrap()[0].state.clone().unwrap();
        assert_eq!(state.waiting.unwrap().reason.unwrap(), "ContainerCreating");
        assert_eq!(condition(&status, "Ready"), ("False".into(), "ContainersNotReady".into()));
    }

    #[test]
    fn a_running_container_makes_the_pod_run_and_be_ready() {
        let status = status(web("Always"), &[run("web", Phase::Running, 0)], &[]);
        assert_eq!(status.phase.as_deref(), Some("Running"));
        assert_eq!(condition(&status, "Ready").0, "True");
        assert_eq!(status.container_statuses.unwrap()[0].restart_count, 2);
    }

    #[test]
    fn a_crash_loop_is_running_but_not_ready() {
        let status = status(web("Always"), &[run("web", Phase::Exited, 1)], &[("web", "CrashLoopBackOff")]);
        assert_eq!(status.phase.as_deref(), Some("Running"));
        let web = &status.container_statuses.as_ref().unwrap()[0];
        assert_eq!(web.state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref(), Some("CrashLoopBackOff"));
        let last = web.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
        assert_eq!((last.exit_code, last.reason.as_deref()), (1, Some("Error")));
        assert_eq!(condition(&status, "ContainersReady").0, "False");
    }

    #[test]
    fn a_job_pod_ends() {
        let ok = status(web("Never"), &[run("web", Phase::Exited, 0)], &[]);
        assert_eq!(ok.phase.as_deref(), Some("Succeeded"));
        assert_eq!(condition(&ok, "Ready"), ("False".into(), "PodCompleted".into()));
        let bad = status(web("Never"), &[run("web", Phase::Exited, 3)], &[]);
        assert_eq!(bad.phase.as_deref(), Some("Failed"));
        assert_eq!(condition(&bad, "Ready"), ("False".into(), "PodFailed".into()));
    }

    #[test]
    fn a_failed_init_container_keeps_the_pod_pending() {
        let spec = serde_json::json!({"initContainers": [{"name": "a"}], "containers": [{"name": "web"}]});
        let status = status(spec, &[run("a", Phase::Exited, 1)], &[]);
        assert_eq!(status.phase.as_deref(), Some("Pending"));
        assert_eq!(condition(&status, "Initialized"), ("False".into(), "ContainersNotInitialized".into()));
        let web = status.container_statuses.as_ref().unwrap()[0].state.clone().unwrap();
        assert_eq!(web.waiting.unwrap().reason.unwrap(), "PodInitializing");
    }

    #[test]
    fn what_the_runtime_has_forgotten_of_a_container_its_status_remembers() {
        let before = status(web("Always"), &[run("web", Phase::Exited, 42)], &[]);
        let gone = status_after(&before, web("Always"), &[], &[]);
        let web_of = |status: &PodStatus| status.container_statuses.as_ref().unwrap()[0].clone();
        let code_of = |c: &ContainerStatus| c.last_state.as_ref().unwrap().terminated.as_ref().map(|t| t.exit_code);
        assert_eq!((web_of(&gone).restart_count, code_of(&web_of(&gone))), (2, Some(42)));
        assert!(ended_of(&web_of(&gone)).is_some());
        let again = status_after(&gone, web("Always"), &[run("web", Phase::Running, 0)], &[]);
        assert_eq!(code_of(&web_of(&again)), Some(42));
        let lost = status_after(&again, web("Always"), &[], &[]);
        assert_eq!(code_of(&web_of(&lost)), Some(137));
        assert!(ended_of(&web_of(&status(web("Always"), &[], &[]))).is_none());
    }

    #[test]
    fn a_pod_whose_containers_may_all_restart_says_whether_they_do() {
        let rule =
            serde_json::json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
        let spec = serde_json::json!({"containers": [{"name": "web", "restartPolicyRules": rule}]});
        let status = status(spec, &[run("web", Phase::Running, 0)], &[]);
        assert_eq!(condition(&status, RESTARTING), ("False".into(), String::new()));
    }
}
