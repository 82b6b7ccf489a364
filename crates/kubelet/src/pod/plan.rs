//! What to do next for a pod: a pure decision from what it should be and what runs.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::labels;
use crate::runtime::{Phase, PodState};

/// What is known of a container beyond the list: how its last run ended, and since when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    pub exit_code: i32,
}

/// What the probes say. A container without a startup probe counts as started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Probed {
    pub started: bool,
    /// A startup or liveness probe has failed for good.
    pub failed: bool,
}

impl Default for Probed {
    fn default() -> Self {
        Probed { started: true, failed: false }
    }
}

pub(crate) struct Facts<'a> {
    pub pod: &'a Pod,
    pub state: &'a PodState,
    /// By container name: how the newest run ended, for those that have exited.
    pub ended: &'a BTreeMap<String, Ended>,
    pub probed: &'a BTreeMap<String, Probed>,
    /// By container name: how long until it may start again.
    pub backoff: &'a BTreeMap<String, Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kill {
    pub id: String,
    pub name: String,
    pub why: String,
}

/// Decided together, done in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub kill: Vec<Kill>,
    /// The sandbox is gone or stale: it and all its containers go, and a new one is made.
    pub new_sandbox: bool,
    /// Names of containers to start, in order.
    pub start: Vec<String>,
    /// Look again after this time, because a back-off ends then.
    pub wait: Option<Duration>,
}

/// A container that is started before the others and keeps running (KEP-753).
pub(crate) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

pub(crate) fn init_containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default()
}

pub(crate) fn containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default()
}

pub(crate) fn restart_policy(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always")
}

pub(crate) fn plan(facts: &Facts<'_>) -> Plan {
    let mut plan = Plan::default();
    let sandbox = facts.state.sandboxes.first().filter(|s| s.ready);
    if sandbox.is_none() {
        // Without containers that would have to run again, a dead sandbox stays dead.
        if has_finished(facts) {
            return plan;
        }
        plan.new_sandbox = true;
        let first = match init_containers(facts.pod).first() {
            Some(init) if !all_inits_done_before(facts) => vec![init.name.clone()],
            _ => containers(facts.pod).iter().filter(|c| wants_start(facts, c)).map(|c| c.name.clone()).collect(),
        };
        plan.start = first.into_iter().filter(|name| within_backoff(facts, name, &mut plan.wait)).collect();
        return plan;
    }
    if !plan_inits(facts, &mut plan) {
        return plan;
    }
    for container in containers(facts.pod) {
        plan_app(facts, container, &mut plan);
    }
    plan
}

/// True when no container of the pod will ever run again under its restart policy.
pub(crate) fn has_finished(facts: &Facts<'_>) -> bool {
    let policy = restart_policy(facts.pod);
    if policy == "Always" {
        return false;
    }
    let failed_init = init_containers(facts.pod)
        .iter()
        .any(|c| !is_sidecar(c) && policy == "Never" && facts.ended.get(&c.name).is_some_and(|e| e.exit_code != 0));
    let done = |c: &Container| facts.ended.get(&c.name).is_some_and(|e| policy == "Never" || e.exit_code == 0);
    failed_init || (!containers(facts.pod).is_empty() && containers(facts.pod).iter().all(done))
}

fn all_inits_done_before(facts: &Facts<'_>) -> bool {
    // A new sandbox runs the init containers again, except when all containers that ran are only being restarted after
    // the sandbox died: upstream runs them again then too.
    init_containers(facts.pod).is_empty()
}

fn newest<'a>(facts: &Facts<'a>, name: &str) -> Option<&'a crate::runtime::Listed> {
    let sandbox = facts.state.sandboxes.first()?;
    facts.state.containers.iter().find(|c| c.name == name && c.sandbox_id == sandbox.id)
}

fn wants_start(facts: &Facts<'_>, container: &Container) -> bool {
    match restart_policy(facts.pod) {
        "Never" => !facts.ended.contains_key(&container.name),
        "OnFailure" => facts.ended.get(&container.name).is_none_or(|e| e.exit_code != 0),
        _ => true,
    }
}

fn within_backoff(facts: &Facts<'_>, name: &str, wait: &mut Option<Duration>) -> bool {
    match facts.backoff.get(name).filter(|left| !left.is_zero()) {
        None => true,
        Some(left) => {
            *wait = Some(wait.map_or(*left, |w| w.min(*left)));
            false
        }
    }
}

/// Plans the init containers; true when the app containers may run.
fn plan_inits(facts: &Facts<'_>, plan: &mut Plan) -> bool {
    let inits = init_containers(facts.pod);
    // Once an app container exists in this sandbox, the ordinary init containers are done: they may have been removed.
    let apps_began = containers(facts.pod).iter().any(|c| newest(facts, &c.name).is_some());
    for init in inits {
        let now = newest(facts, &init.name);
        let probed = facts.probed.get(&init.name).copied().unwrap_or_default();
        if is_sidecar(init) {
            match now.map(|c| c.phase) {
                Some(Phase::Running) if probed.failed => kill(plan, now, init, "failed its probe"),
                Some(Phase::Running) if probed.started => {}
                Some(Phase::Running) => return apps_began,
                _ => {
                    if within_backoff(facts, &init.name, &mut plan.wait) {
                        plan.start.push(init.name.clone());
                    }
                    if !apps_began {
                        return false; // the next one starts when this one has
                    }
                }
            }
            continue;
        }
        if apps_began {
            continue;
        }
        match now.map(|c| c.phase) {
            Some(Phase::Running | Phase::Created) => return false,
            Some(Phase::Exited | Phase::Unknown) => {
                let succeeded = facts.ended.get(&init.name).is_some_and(|e| e.exit_code == 0);
                if succeeded {
                    continue;
                }
                if restart_policy(facts.pod) != "Never" && within_backoff(facts, &init.name, &mut plan.wait) {
                    plan.start.push(init.name.clone());
                }
                return false;
            }
            None => {
                if within_backoff(facts, &init.name, &mut plan.wait) {
                    plan.start.push(init.name.clone());
                }
                return false;
            }
        }
    }
    true
}

fn plan_app(facts: &Facts<'_>, container: &Container, plan: &mut Plan) {
    let now = newest(facts, &container.name);
    let probed = facts.probed.get(&container.name).copied().unwrap_or_default();
    match now.map(|c| c.phase) {
        Some(Phase::Running) => {
            let changed = now.is_some_and(|c| !c.hash.is_empty() && c.hash != labels::hash_of(container));
            if changed {
                kill(plan, now, container, "definition changed");
            } else if probed.failed {
                kill(
                    plan,
                    now,
                    container,
                    if probed.started { "failed liveness probe" } else { "failed startup probe" },
                );
            } else {
                return;
            }
            if changed || restart_policy(facts.pod) != "Never" {
                plan.start.push(container.name.clone());
            }
        }
        _ => {
            if wants_start(facts, container) && within_backoff(facts, &container.name, &mut plan.wait) {
                plan.start.push(container.name.clone());
            }
        }
    }
}

/// Words of the Killing event, as upstream has them.
fn kill(plan: &mut Plan, now: Option<&crate::runtime::Listed>, container: &Container, cause: &str) {
    if let Some(c) = now {
        let why = match cause {
            "definition changed" => format!("Container {} definition changed, will be restarted", container.name),
            other => format!("Container {} {other}, will be restarted", container.name),
        };
        plan.kill.push(Kill { id: c.id.clone(), name: c.name.clone(), why });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{Listed, Sandbox};

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "p", "uid": "u"}, "spec": spec})).unwrap()
    }

    fn state(containers: &[(&str, Phase)]) -> PodState {
        let listed = |(i, (name, phase)): (usize, &(&str, Phase))| Listed {
            id: format!("id-{name}"),
            sandbox_id: "s".into(),
            name: (*name).into(),
            phase: *phase,
            created_at: i as i64,
            restart_count: 0,
            hash: String::new(),
        };
        PodState {
            uid: "u".into(),
            sandboxes: vec![Sandbox { id: "s".into(), attempt: 0, ready: true, created_at: 1 }],
            containers: containers.iter().enumerate().map(listed).collect(),
            ..PodState::default()
        }
    }

    struct Case {
        spec: serde_json::Value,
        state: PodState,
        ended: &'static [(&'static str, i32)],
        probed: &'static [(&'static str, Probed)],
        backoff: &'static [(&'static str, u64)],
    }

    fn decide(case: Case) -> Plan {
        let ended = case.ended.iter().map(|(n, e)| ((*n).to_owned(), Ended { exit_code: *e })).collect();
        let probed = case.probed.iter().map(|(n, p)| ((*n).to_owned(), *p)).collect();
        let backoff = case.backoff.iter().map(|(n, s)| ((*n).to_owned(), Duration::from_secs(*s))).collect();
        let facts =
            Facts { pod: &pod(case.spec), state: &case.state, ended: &ended, probed: &probed, backoff: &backoff };
        plan(&facts)
    }

    fn case(spec: serde_json::Value, state: PodState) -> Case {
        Case { spec, state, ended: &[], probed: &[], backoff: &[] }
    }

    fn one(policy: &str) -> serde_json::Value {
        serde_json::json!({"restartPolicy": policy, "containers": [{"name": "web"}]})
    }

    #[test]
    fn a_new_pod_gets_a_sandbox_and_its_containers() {
        let plan = decide(case(one("Always"), PodState::default()));
        assert!(plan.new_sandbox);
        assert_eq!(plan.start, ["web"]);
    }

    #[test]
    fn an_exited_container_restarts_as_its_policy_says() {
        let check = |policy: &str, code: &'static [(&'static str, i32)]| {
            decide(Case { ended: code, ..case(one(policy), state(&[("web", Phase::Exited)])) }).start.len()
        };
        assert_eq!(check("Always", &[("web", 0)]), 1);
        assert_eq!(check("OnFailure", &[("web", 1)]), 1);
        assert_eq!(check("OnFailure", &[("web", 0)]), 0);
        assert_eq!(check("Never", &[("web", 1)]), 0);
    }

    #[test]
    fn a_back_off_is_waited_for() {
        let plan = decide(Case {
            ended: &[("web", 1)],
            backoff: &[("web", 20)],
            ..case(one("Always"), state(&[("web", Phase::Exited)]))
        });
        assert_eq!((plan.start.len(), plan.wait), (0, Some(Duration::from_secs(20))));
    }

    #[test]
    fn init_containers_run_one_after_the_other() {
        let spec =
            serde_json::json!({"initContainers": [{"name": "a"}, {"name": "b"}], "containers": [{"name": "web"}]});
        assert_eq!(decide(case(spec.clone(), state(&[]))).start, ["a"]);
        assert_eq!(decide(case(spec.clone(), state(&[("a", Phase::Running)]))).start, Vec::<String>::new());
        let done = Case { ended: &[("a", 0)], ..case(spec.clone(), state(&[("a", Phase::Exited)])) };
        assert_eq!(decide(done).start, ["b"]);
        let both = state(&[("a", Phase::Exited), ("b", Phase::Exited)]);
        assert_eq!(decide(Case { ended: &[("a", 0), ("b", 0)], ..case(spec, both) }).start, ["web"]);
    }

    #[test]
    fn a_sidecar_lets_the_next_ones_start_once_it_has_started() {
        let spec = serde_json::json!({
            "initContainers": [{"name": "side", "restartPolicy": "Always"}], "containers": [{"name": "web"}]});
        assert_eq!(decide(case(spec.clone(), state(&[]))).start, ["side"]);
        let waiting = &[("side", Probed { started: false, failed: false })];
        let running = state(&[("side", Phase::Running)]);
        assert!(decide(Case { probed: waiting, ..case(spec.clone(), running.clone()) }).start.is_empty());
        assert_eq!(decide(case(spec.clone(), running)).start, ["web"]);
        let died = state(&[("side", Phase::Exited), ("web", Phase::Running)]);
        assert_eq!(decide(Case { ended: &[("side", 1)], ..case(spec, died) }).start, ["side"]);
    }

    #[test]
    fn a_failed_liveness_probe_restarts_the_container() {
        let failed = &[("web", Probed { started: true, failed: true })];
        let plan = decide(Case { probed: failed, ..case(one("Always"), state(&[("web", Phase::Running)])) });
        assert_eq!(plan.kill[0].why, "Container web failed liveness probe, will be restarted");
        assert_eq!(plan.start, ["web"]);
    }

    #[test]
    fn a_finished_pod_stays_finished_without_its_sandbox() {
        let mut gone = state(&[("web", Phase::Exited)]);
        gone.sandboxes[0].ready = false;
        let plan = decide(Case { ended: &[("web", 0)], ..case(one("OnFailure"), gone.clone()) });
        assert_eq!(plan, Plan::default());
        assert!(decide(Case { ended: &[("web", 1)], ..case(one("Always"), gone) }).new_sandbox);
    }

    #[test]
    fn a_changed_image_replaces_the_container() {
        let mut running = state(&[("web", Phase::Running)]);
        running.containers[0].hash = "old".into();
        let plan = decide(case(one("Always"), running));
        assert_eq!(plan.kill[0].why, "Container web definition changed, will be restarted");
        assert_eq!(plan.start, ["web"]);
    }
}
