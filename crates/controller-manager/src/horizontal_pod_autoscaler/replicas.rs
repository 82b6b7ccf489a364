//! From what pods use to how many there should be.

use std::{collections::HashMap, sync::Arc, time::Duration};

use apimachinery::quantity::Quantity;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::{
    pod::{condition, is_leaving, is_ready, phase},
    pod_resources::{Side, amounts_of, quantity},
};

/// What one pod uses, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    pub(super) milli: i64,
    pub(super) at: Timestamp,
    pub(super) window: SignedDuration,
}

/// By the pod's name.
pub(super) type Samples = HashMap<String, Sample>;

/// How far a ratio may be from 1 without anything being done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tolerance {
    pub(super) down: f64,
    pub(super) up: f64,
}

impl Tolerance {
    fn allows(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// What all calculations of one look share.
pub(super) struct Look<'a> {
    pub(super) current: i32,
    /// All pods that the target selects.
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) tolerance: Tolerance,
    pub(super) now: Timestamp,
    /// For how long after its start a pod's use of processors says nothing unless it is ready.
    pub(super) cpu_initialization: Duration,
    pub(super) initial_readiness: Duration,
}

/// What pods are to be brought to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Target<'a> {
    /// Percent of what each pod requests, in thousandths.
    Utilization(i32, &'a HashMap<String, i64>),
    /// On average, in thousandths.
    Average(i64),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Proposal {
    pub(super) replicas: i32,
    /// Percent, for utilization.
    pub(super) utilization: Option<i32>,
    pub(super) average_milli: i64,
}

#[derive(Debug, Default)]
struct Groups {
    ready: usize,
    unready: Vec<String>,
    missing: Vec<String>,
    ignored: Vec<String>,
}

fn after(time: Timestamp, span: Duration) -> Timestamp {
    SignedDuration::try_from(span).ok().and_then(|span| time.checked_add(span).ok()).unwrap_or(Timestamp::MAX)
}

impl Look<'_> {
    fn group(&self, samples: &Samples, is_cpu: bool) -> Groups {
        let mut groups = Groups::default();
        for pod in self.pods {
            let name = pod.metadata.name.clone().unwrap_or_default();
            match samples.get(&name) {
                _ if is_leaving(pod) || phase(pod) == "Failed" => groups.ignored.push(name),
                _ if phase(pod) == "Pending" => groups.unready.push(name),
                None => groups.missing.push(name),
                Some(sample) if is_cpu && self.is_starting(pod, sample) => groups.unready.push(name),
                Some(_) => groups.ready += 1,
            }
        }
        groups
    }

    /// What a pod uses while it starts would have more of them started.
    fn is_starting(&self, pod: &Pod, sample: &Sample) -> bool {
        let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
        let ready = condition(pod, "Ready");
        let (Some(started), Some(ready)) = (started, ready) else { return true };
        let since = ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        let is_unready = ready.status == "False";
        if after(started.0, self.cpu_initialization) > self.now {
            is_unready || since.checked_add(sample.window).is_ok_and(|whole| sample.at < whole)
        } else {
            is_unready && after(started.0, self.initial_readiness) > since
        }
    }

    /// By what each pod uses. Pods without a sample are assumed to need what speaks against a change.
    pub(super) fn by_samples(&self, mut samples: Samples, target: Target, is_cpu: bool) -> Result<Proposal, String> {
        if self.pods.is_empty() {
            return Err("no pods returned by selector while calculating replica count".to_owned());
        }
        let groups = self.group(&samples, is_cpu);
        for name in groups.ignored.iter().chain(&groups.unready) {
            samples.remove(name);
        }
        if samples.is_empty() {
            return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
        }
        let (ratio, mut proposal) = ratio_of(&samples, target)?;
        proposal.replicas = self.current;
        let counts_unready = !groups.unready.is_empty() && ratio > 1.0;
        if !counts_unready && groups.missing.is_empty() {
            if !self.tolerance.allows(ratio) {
                proposal.replicas = ceil(ratio * to_f64(groups.ready));
            }
            return Ok(proposal);
        }
        let assumed = |milli| Sample { milli, at: self.now, window: SignedDuration::ZERO };
        for name in groups.missing {
            let milli = match target {
                _ if ratio > 1.0 => 0,
                Target::Average(target) => target,
                Target::Utilization(target, requests) => {
                    requests.get(&name).copied().unwrap_or_default() * i64::from(target.max(100)) / 100
                }
            };
            if ratio != 1.0 {
                samples.insert(name, assumed(milli));
            }
        }
        if counts_unready {
            samples.extend(groups.unready.into_iter().map(|name| (name, assumed(0))));
        }
        let (new_ratio, _) = ratio_of(&samples, target)?;
        let turned = (ratio < 1.0 && new_ratio > 1.0) || (ratio > 1.0 && new_ratio < 1.0);
        if self.tolerance.allows(new_ratio) || turned {
            return Ok(proposal);
        }
        let replicas = ceil(new_ratio * to_f64(samples.len()));
        let is_contrary = (new_ratio < 1.0 && replicas > self.current) || (new_ratio > 1.0 && replicas < self.current);
        if !is_contrary {
            proposal.replicas = replicas;
        }
        Ok(proposal)
    }

    /// By one value that all pods are behind together.
    pub(super) fn by_value(&self, usage: i64, target: i64) -> i32 {
        let ratio = share(usage, target);
        if self.current == 0 {
            return ceil(ratio);
        }
        if self.tolerance.allows(ratio) {
            return self.current;
        }
        let ready = self.pods.iter().filter(|pod| phase(pod) == "Running" && is_ready(pod)).count();
        ceil(ratio * to_f64(ready))
    }

    /// By one value of which each pod is to have its part. Also tells each pod's part.
    pub(super) fn by_average(&self, usage: i64, target: i64, status_replicas: i32) -> (i32, i64) {
        let ratio = share(usage, target.saturating_mul(i64::from(status_replicas)));
        let replicas = if self.tolerance.allows(ratio) { status_replicas } else { ceil(share(usage, target)) };
        let each = share(usage, i64::from(status_replicas)).ceil();
        (replicas, if each.is_finite() { to_i64(each) } else { 0 })
    }
}

fn ratio_of(samples: &Samples, target: Target) -> Result<(f64, Proposal), String> {
    let (mut used, mut requested, mut entries) = (0_i64, 0_i64, 0_i64);
    for (name, sample) in samples {
        match target {
            Target::Average(_) => {}
            Target::Utilization(_, requests) => match requests.get(name) {
                Some(request) => requested = requested.saturating_add(*request),
                None => continue,
            },
        }
        used = used.saturating_add(sample.milli);
        entries += 1;
    }
    let average_milli = used.checked_div(entries).unwrap_or_default();
    match target {
        Target::Average(target) => {
            Ok((share(average_milli, target), Proposal { replicas: 0, utilization: None, average_milli }))
        }
        Target::Utilization(target, _) => {
            let percent = used.saturating_mul(100).checked_div(requested);
            let percent = percent.ok_or("no metrics returned matched known pods")?;
            let percent = i32::try_from(percent).unwrap_or(i32::MAX);
            let proposal = Proposal { replicas: 0, utilization: Some(percent), average_milli };
            Ok((f64::from(percent) / f64::from(target), proposal))
        }
    }
}

fn share(part: i64, whole: i64) -> f64 {
    to_float(part) / to_float(whole)
}

#[expect(clippy::cast_precision_loss, reason = "ratios need no more digits")]
fn to_float(number: i64) -> f64 {
    number as f64
}

fn to_f64(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

#[expect(clippy::cast_possible_truncation, reason = "saturates")]
fn to_i64(number: f64) -> i64 {
    number as i64
}

#[expect(clippy::cast_possible_truncation, reason = "saturates")]
fn ceil(number: f64) -> i32 {
    number.ceil() as i32
}

/// What each pod, or one container of each, requests of a resource, in thousandths.
pub(super) fn requests(
    pods: &[Arc<Pod>],
    container: Option<&str>,
    resource: &str,
) -> Result<HashMap<String, i64>, String> {
    let mut requests = HashMap::new();
    for pod in pods {
        let Some(spec) = &pod.spec else { continue };
        let name = pod.metadata.name.clone().unwrap_or_default();
        let whole = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        if let (None, Some(amount)) = (container, whole.and_then(|requests| requests.get(resource))) {
            requests.insert(name, quantity(amount).milli_value());
            continue;
        }
        let sidecars = spec.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|one| one.restart_policy.as_deref() == Some("Always"));
        let counts = |one: &&Container| container.is_none_or(|name| one.name == name);
        let mut sum = Quantity::default();
        for one in spec.containers.iter().chain(sidecars).filter(counts) {
            let amounts = amounts_of(one.resources.as_ref(), Side::Requests);
            let amount = amounts
                .get(resource)
                .ok_or_else(|| format!("missing request for {resource} in container {} of Pod {name}", one.name))?;
            sum = sum.saturating_add(*amount);
        }
        requests.insert(name, sum.milli_value());
    }
    Ok(requests)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// `ready`, `unready`, `starting`, `pending`, `failed`.
    fn pod(index: usize, kind: &str) -> Arc<Pod> {
        let phase = match kind {
            "pending" => "Pending",
            "failed" => "Failed",
            _ => "Running",
        };
        let ready = if kind == "ready" { "True" } else { "False" };
        let started = if kind == "starting" { at(990) } else { at(0) };
        let since = if kind == "unready" { at(5) } else { at(500) };
        Arc::new(
            serde_json::from_value(json!({
                "metadata": { "name": format!("p{index}") },
                "status": {
                    "phase": phase,
                    "startTime": started,
                    "conditions": [{ "type": "Ready", "status": ready, "lastTransitionTime": since }],
                },
            }))
            .unwrap(),
        )
    }

    /// `pods`: kind and use of processors in thousandths each; every pod requests 1000.
    fn propose(current: i32, pods: &[(&str, Option<i64>)], target: Option<i32>) -> Result<Proposal, String> {
        let samples = pods.iter().enumerate().filter_map(|(index, (_, milli))| {
            Some((format!("p{index}"), Sample { milli: (*milli)?, at: at(999), window: SignedDuration::from_secs(30) }))
        });
        let samples = samples.collect();
        let requests = (0..pods.len()).map(|index| (format!("p{index}"), 1000)).collect();
        let pods: Vec<_> = pods.iter().enumerate().map(|(index, (kind, _))| pod(index, kind)).collect();
        let look = Look {
            current,
            pods: &pods,
            tolerance: Tolerance { down: 0.1, up: 0.1 },
            now: at(1000),
            cpu_initialization: Duration::from_secs(300),
            initial_readiness: Duration::from_secs(30),
        };
        let target = target.map_or(Target::Average(500), |percent| Target::Utilization(percent, &requests));
        look.by_samples(samples, target, true)
    }

    #[track_caller]
    fn check(current: i32, pods: &[(&str, Option<i64>)], target: Option<i32>, want: i32) {
        assert_eq!(propose(current, pods, target).unwrap().replicas, want);
    }

    #[test]
    fn the_ratio_of_use_to_target_gives_the_number() {
        check(3, &[("ready", Some(300)), ("ready", Some(500)), ("ready", Some(700))], Some(30), 5);
        check(3, &[("ready", Some(100)), ("ready", Some(300)), ("ready", Some(500))], Some(50), 2);
        check(3, &[("ready", Some(1010)), ("ready", Some(1030)), ("ready", Some(1020))], Some(100), 3);
        check(2, &[("ready", Some(1000)), ("ready", Some(1000))], None, 4);
    }

    #[test]
    fn pods_that_say_nothing_speak_against_a_change() {
        check(3, &[("ready", Some(300)), ("ready", Some(500)), ("starting", Some(700))], Some(30), 3);
        check(3, &[("ready", Some(400)), ("pending", None), ("pending", None)], Some(30), 3);
        check(3, &[("ready", Some(900)), ("ready", Some(900)), ("failed", Some(1))], Some(30), 6);
        check(3, &[("ready", Some(100)), ("ready", Some(100)), ("ready", None)], Some(50), 3);
        check(2, &[("ready", Some(1000)), ("ready", None)], Some(50), 2);
        check(4, &[("ready", Some(100)), ("unready", Some(100))], Some(100), 1);
    }

    #[test]
    fn without_samples_nothing_is_proposed() {
        let err = propose(1, &[("pending", None)], Some(50)).unwrap_err();
        assert_eq!(err, "did not receive metrics for targeted pods (pods might be unready)");
        let err = propose(1, &[], Some(50)).unwrap_err();
        assert_eq!(err, "no pods returned by selector while calculating replica count");
        let pod = json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "c" }] } });
        let err = requests(&[Arc::new(serde_json::from_value(pod).unwrap())], None, "cpu").unwrap_err();
        assert_eq!(err, "missing request for cpu in container c of Pod p");
    }
}
