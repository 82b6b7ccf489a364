//! What to do next for a pod: a pure decision from what it should be and what runs.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ContainerRestartRule, Pod};

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
    /// The text of the Killing event.
    pub why: String,
    pub cause: Cause,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    Changed,
    Liveness,
    Startup,
}

/// A container that goes and is forgotten, so that its pod begins anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reset {
    pub id: String,
    pub name: String,
    pub is_running: bool,
}

/// Decided together, done in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// All containers of the pod, when one of them has ended so that all run again; then nothing else is done.
    pub reset: Vec<Reset>,
    pub kill: Vec<Kill>,
    /// The sandbox is gone or stale: it and all its containers go, and a new one is made.
    pub new_sandbox: bool,
    /// Names of containers to start, in order.
    pub start: Vec<String>,
    /// Look again after this time, because a back-off ends then.
    pub wait: Option<Duration>,
    /// No container will ever run again: once the last one has stopped, the sandbox goes.
    pub finished: bool,
}

/// An init container that is started before the others and keeps running (KEP-753).
pub(crate) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

pub(crate) fn init_containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default()
}

pub(crate) fn containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default()
}

/// The pod's ephemeral containers in the words of ordinary ones, each with the container whose processes it sees.
pub(crate) fn ephemeral_containers(pod: &Pod) -> Vec<(Container, Option<String>)> {
    let all = pod.spec.iter().flat_map(|s| s.ephemeral_containers.iter().flatten());
    let plain = all.filter_map(|e| {
        let mut fields = serde_json::to_value(e).ok()?;
        fields.as_object_mut()?.remove("targetContainerName");
        let target = e.target_container_name.clone().filter(|t| !t.is_empty());
        Some((serde_json::from_value(fields).ok()?, target))
    });
    plain.collect()
}

pub(crate) fn restart_policy(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always")
}

/// What the first of a container's rules says that is about this exit code.
fn action_after(container: &Container, exit_code: i32) -> Option<&str> {
    let is_about = |rule: &&ContainerRestartRule| {
        let Some(codes) = &rule.exit_codes else { return false };
        let listed = codes.values.iter().flatten().any(|v| *v == exit_code);
        match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        }
    };
    container.restart_policy_rules.iter().flatten().find(is_about).map(|rule| rule.action.as_str())
}

const RESTART_ALL: &str = "RestartAllContainers";

/// Whether a container may end so that all containers of the pod run again (KEP-5532).
pub(crate) fn may_restart_all(pod: &Pod) -> bool {
    let mut rules =
        containers(pod).iter().chain(init_containers(pod)).flat_map(|c| c.restart_policy_rules.iter().flatten());
    rules.any(|rule| rule.action == RESTART_ALL)
}

/// Whether a container that ended with this code runs again: its rules come first, then its own policy, then the pod's.
pub(crate) fn restarts_after(pod: &Pod, container: &Container, is_init: bool, exit_code: i32) -> bool {
    if matches!(action_after(container, exit_code), Some("Restart" | RESTART_ALL)) {
        return true;
    }
    match container.restart_policy.as_deref().unwrap_or_else(|| restart_policy(pod)) {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => !is_init || is_sidecar(container) || exit_code != 0,
    }
}

pub(crate) fn plan(facts: &Facts<'_>) -> Plan {
    let mut plan = Plan::default();
    if has_finished(facts) {
        plan.finished = true;
        return plan;
    }
    let sandbox = facts.state.sandboxes.first().filter(|s| s.ready);
    if sandbox.is_none() {
        plan.new_sandbox = true;
        // A new sandbox runs the init containers again, as upstream does.
        let first = match init_containers(facts.pod).first() {
            Some(init) => vec![init.name.clone()],
            None => containers(facts.pod).iter().filter(|c| wants_start(facts, c)).map(|c| c.name.clone()).collect(),
        };
        plan.start = first.into_iter().filter(|name| within_backoff(facts, name, &mut plan.wait)).collect();
        return plan;
    }
    plan.reset = reset(facts);
    if !plan.reset.is_empty() {
        return plan;
    }
    for (container, _) in ephemeral_containers(facts.pod) {
        // An ephemeral container runs once.
        if newest(facts, &container.name).is_none() && within_backoff(facts, &container.name, &mut plan.wait) {
            plan.start.push(container.name);
        }
    }
    if !plan_inits(facts, &mut plan) {
        return plan;
    }
    for container in containers(facts.pod) {
        plan_app(facts, container, &mut plan);
    }
    plan
}

/// All runs of all containers, when one has ended so that all run again and may do so now. The run that ended so comes last:
/// while it is there, nobody forgets that the others must go.
fn reset(facts: &Facts<'_>) -> Vec<Reset> {
    let all: Vec<&Container> = init_containers(facts.pod).iter().chain(containers(facts.pod)).collect();
    let asks = |container: &&&Container| {
        let ended = facts
            .ended
            .get(&container.name)
            .filter(|_| newest(facts, &container.name).is_some_and(|run| run.phase == Phase::Exited));
        let is_held_back = facts.backoff.get(&container.name).is_some_and(|left| !left.is_zero());
        !is_held_back && ended.is_some_and(|e| action_after(container, e.exit_code) == Some(RESTART_ALL))
    };
    let sources: Vec<&str> = all.iter().filter(asks).map(|c| c.name.as_str()).collect();
    if sources.is_empty() {
        return Vec::new();
    }
    let runs = facts.state.containers.iter().filter(|run| all.iter().any(|c| c.name == run.name));
    let (last, mut first): (Vec<_>, Vec<_>) = runs.partition(|run| sources.contains(&run.name.as_str()));
    // Newest last.
    first.extend(last.into_iter().rev());
    let one = |run: &crate::runtime::Listed| Reset {
        id: run.id.clone(),
        name: run.name.clone(),
        is_running: run.phase == Phase::Running,
    };
    first.into_iter().map(one).collect()
}

/// True when no container of the pod will ever run again under its restart policy.
pub(crate) fn has_finished(facts: &Facts<'_>) -> bool {
    let over = |c: &Container, is_init: bool| {
        facts.ended.get(&c.name).filter(|e| !restarts_after(facts.pod, c, is_init, e.exit_code))
    };
    let failed_init =
        init_containers(facts.pod).iter().any(|c| !is_sidecar(c) && over(c, true).is_some_and(|e| e.exit_code != 0));
    let apps = containers(facts.pod);
    failed_init || (!apps.is_empty() && apps.iter().all(|c| over(c, false).is_some()))
}

fn newest<'a>(facts: &Facts<'a>, name: &str) -> Option<&'a crate::runtime::Listed> {
    let sandbox = facts.state.sandboxes.first()?;
    facts.state.containers.iter().find(|c| c.name == name && c.sandbox_id == sandbox.id)
}

fn wants_start(facts: &Facts<'_>, container: &Container) -> bool {
    facts.ended.get(&container.name).is_none_or(|e| restarts_after(facts.pod, container, false, e.exit_code))
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
                Some(Phase::Running) if probed.failed => {
                    kill(plan, now, init, probe_cause(probed), true);
                    plan.start.push(init.name.clone());
                    if !apps_began {
                        return false;
                    }
                }
                Some(Phase::Running) if probed.started => {}
                Some(Phase::Running) => {
                    if !apps_began {
                        return false;
                    }
                }
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
            Some(Phase::Running) => return false,
            Some(Phase::Exited | Phase::Unknown) => {
                let code = facts.ended.get(&init.name).map_or(-1, |e| e.exit_code);
                let again = restarts_after(facts.pod, init, true, code);
                if code == 0 && !again {
                    continue;
                }
                if again && within_backoff(facts, &init.name, &mut plan.wait) {
                    plan.start.push(init.name.clone());
                }
                return false;
            }
            Some(Phase::Created) | None => {
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
            let cause = match (changed, probed.failed) {
                (true, _) => Cause::Changed,
                (_, true) => probe_cause(probed),
                _ => return,
            };
            // Probes kill with 137 or what the program makes of the signal: a failure for every policy but Never.
            let again = changed || restarts_after(facts.pod, container, false, 137);
            kill(plan, now, container, cause, again);
            if again {
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

fn probe_cause(probed: Probed) -> Cause {
    if probed.started { Cause::Liveness } else { Cause::Startup }
}

/// Words of the Killing event, as upstream has them.
fn kill(plan: &mut Plan, now: Option<&crate::runtime::Listed>, container: &Container, cause: Cause, again: bool) {
    if let Some(c) = now {
        let what = match cause {
            Cause::Changed => "definition changed",
            Cause::Liveness => "failed liveness probe",
            Cause::Startup => "failed startup probe",
        };
        let then = if again { ", will be restarted" } else { "" };
        let why = format!("Container {} {what}{then}", container.name);
        plan.kill.push(Kill { id: c.id.clone(), name: c.name.clone(), why, cause });
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
        assert_eq!(plan, Plan { finished: true, ..Plan::default() });
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

    #[test]
    fn a_pod_has_finished_when_its_containers_have_whatever_its_sidecars_do() {
        let spec = serde_json::json!({"restartPolicy": "Never", "containers": [{"name": "web"}],
            "initContainers": [{"name": "a", "restartPolicy": "Always"}]});
        let now = state(&[("a", Phase::Running), ("web", Phase::Exited)]);
        assert!(decide(Case { ended: &[("web", 0)], ..case(spec, now) }).finished);
    }

    #[test]
    fn a_container_restarts_by_its_rules_then_its_own_policy_then_the_pods() {
        let check = |container: serde_json::Value, code: i32, want: bool| {
            let pod = pod(one("Never"));
            let container: Container = serde_json::from_value(container).unwrap();
            assert_eq!(restarts_after(&pod, &container, false, code), want, "{container:?} {code}");
        };
        check(serde_json::json!({"name": "c"}), 1, false);
        check(serde_json::json!({"name": "c", "restartPolicy": "OnFailure"}), 1, true);
        check(serde_json::json!({"name": "c", "restartPolicy": "OnFailure"}), 0, false);
        let rule = |operator: &str| {
            serde_json::json!({"name": "c", "restartPolicy": "Never", "restartPolicyRules": [
                {"action": "Restart", "exitCodes": {"operator": operator, "values": [42]}}]})
        };
        check(rule("In"), 42, true);
        check(rule("In"), 1, false);
        check(rule("NotIn"), 42, false);
        check(rule("NotIn"), 1, true);
    }

    #[test]
    fn a_container_may_end_so_that_all_run_again() {
        let rule =
            serde_json::json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
        let spec = serde_json::json!({"restartPolicy": "Never", "initContainers": [{"name": "a"}],
            "containers": [{"name": "web", "restartPolicy": "Never", "restartPolicyRules": rule}, {"name": "other"}],
            "ephemeralContainers": [{"name": "debug"}]});
        let runs = || {
            let phases = [Phase::Exited, Phase::Exited, Phase::Running, Phase::Running];
            state(&["a", "web", "other", "debug"].into_iter().zip(phases).collect::<Vec<_>>())
        };
        let reset = |ended: &'static [(&'static str, i32)], backoff: &'static [(&'static str, u64)]| {
            let plan = decide(Case { ended, backoff, ..case(spec.clone(), runs()) });
            assert!(!plan.finished && plan.start.is_empty());
            plan.reset.into_iter().map(|r| (r.name, r.is_running)).collect::<Vec<_>>()
        };
        let all = [("a", false), ("other", true), ("web", false)].map(|(name, runs)| (name.to_owned(), runs));
        assert_eq!(reset(&[("a", 0), ("web", 42)], &[]), all);
        assert_eq!(reset(&[("a", 0), ("web", 42)], &[("web", 10)]), []);
        assert_eq!(reset(&[("a", 0), ("web", 1)], &[]), []);
        // When they are gone, the pod begins anew.
        assert_eq!(decide(case(spec.clone(), state(&[("debug", Phase::Running)]))).start, ["a"]);
    }

    #[test]
    fn an_ephemeral_container_runs_once() {
        let spec = serde_json::json!({"containers": [{"name": "web"}],
            "ephemeralContainers": [{"name": "debug", "targetContainerName": "web"}]});
        assert_eq!(decide(case(spec.clone(), state(&[("web", Phase::Running)]))).start, ["debug"]);
        let ran = state(&[("web", Phase::Running), ("debug", Phase::Exited)]);
        assert!(decide(Case { ended: &[("debug", 1)], ..case(spec, ran) }).start.is_empty());
    }
}
