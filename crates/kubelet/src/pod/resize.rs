//! Changes of a running pod's resources, in place: what differs, whether it fits, and the runtime told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};

use super::admission;
use super::plan;
use super::status::Resize;
use super::worker::{Look, Worker};
use crate::cgroups;
use crate::resources::{self, Amounts};
use crate::runtime::Phase;
use crate::swap;

/// How soon a change that had to wait is looked at again.
pub(super) const RETRY: Duration = Duration::from_secs(5);

/// The part of a container's resources that can change in place.
fn changeable(resources: Option<&ResourceRequirements>) -> BTreeMap<String, Option<i64>> {
    let mut all = BTreeMap::new();
    for name in ["cpu", "memory"] {
        for (what, list) in [
            ("limits", resources.and_then(|r| r.limits.as_ref())),
            ("requests", resources.and_then(|r| r.requests.as_ref())),
        ] {
            all.insert(format!("{what}.{name}"), list.and_then(|l| l.get(name)).and_then(cgroups::milli));
        }
    }
    all
}

/// The containers whose resources are not what the spec says.
pub(super) fn differing<'a>(pod: &'a Pod, actual: &BTreeMap<String, ResourceRequirements>) -> Vec<&'a Container> {
    let sidecars = plan::init_containers(pod).iter().filter(|c| plan::is_sidecar(c));
    let all = plan::containers(pod).iter().chain(sidecars);
    all.filter(|c| actual.get(&c.name).is_some_and(|a| changeable(Some(a)) != changeable(c.resources.as_ref())))
        .collect()
}

/// Whether one of the changed resources asks for a restart of the container.
pub(super) fn needs_restart(container: &Container, actual: &ResourceRequirements) -> bool {
    let (now, wanted) = (changeable(Some(actual)), changeable(container.resources.as_ref()));
    let changed = |name: &str| {
        ["limits", "requests"].iter().any(|w| {
            let key = format!("{w}.{name}");
            now.get(&key) != wanted.get(&key)
        })
    };
    container
        .resize_policy
        .iter()
        .flatten()
        .any(|p| p.restart_policy == "RestartContainer" && changed(&p.resource_name))
}

/// Whether the node can do it: the words of the condition if it cannot.
pub(super) fn obstacle(pod: &Pod, allocatable: &Amounts, others: &[&Pod]) -> Option<Resize> {
    for (name, wanted) in resources::requests(pod) {
        let capacity = allocatable.get(&name).copied().unwrap_or_default();
        if wanted > capacity && ["cpu", "memory"].contains(&name.as_str()) {
            let shown = |milli: i64| if name == "cpu" { milli } else { milli / 1000 };
            let (wanted, capacity) = (shown(wanted), shown(capacity));
            let message =
                format!("Node didn't have enough capacity: {name}, requested: {wanted}, capacity: {capacity}");
            return Some(Resize::Pending { reason: "Infeasible", message });
        }
    }
    let refusal = admission::lacking(pod, allocatable, others)?;
    Some(Resize::Pending { reason: "Deferred", message: refusal.message })
}

impl Worker {
    /// Gives running containers the resources that the spec now says. True when the status changes with it.
    pub(super) async fn bring_resources(&mut self, pod: &Arc<Pod>, look: &Look) -> bool {
        let before = (self.actual.clone(), self.resize.clone());
        self.learn_resources(pod, look);
        let differing: Vec<Container> = differing(pod, &self.actual).into_iter().cloned().collect();
        if differing.is_empty() {
            self.resize = None;
            return before.0 != self.actual || before.1.is_some();
        }
        let others = self.context.admitted.others(pod.metadata.uid.as_deref().unwrap_or_default());
        let others: Vec<&Pod> = others.iter().map(|p| &**p).collect();
        self.resize = obstacle(pod, &self.context.allocatable_now(), &others);
        if self.resize.is_some() {
            return before.1 != self.resize;
        }
        let mut error = None;
        let host = self.context.host(pod);
        // The pod's cgroup bounds those of its containers: it takes the larger of both while they change.
        if let Err(e) = crate::node_cgroups::resize(pod, &self.context) {
            error = Some(format!("failed to resize the pod's cgroup: {e}"));
        }
        for container in &differing {
            let Some(running) = look.containers.iter().find(|c| c.listed.name == container.name) else { continue };
            if running.listed.phase != Phase::Running {
                continue;
            }
            let actual = self.actual.get(&container.name).cloned().unwrap_or_default();
            if needs_restart(container, &actual) {
                let text = format!("Container {} resize requires restart", container.name);
                self.context.events.normal(&self.regarding(pod, Some(&container.name)), "Killing", text);
                let grace = self.grace_of(pod);
                if self.stop_container(pod, Some(container), &running.listed.id, grace).await.is_ok() {
                    self.keep_resources(pod, container);
                    self.woken.notify_one();
                }
                continue;
            }
            let (limits, _) = cgroups::limits_of(container.resources.as_ref(), host.node_memory);
            let mut linux = cri::LinuxContainerResources {
                cpu_period: limits.cpu_period,
                cpu_quota: if limits.cpu_quota == 0 { -1 } else { limits.cpu_quota },
                cpu_shares: limits.cpu_shares,
                memory_limit_in_bytes: limits.memory_bytes,
                ..Default::default()
            };
            swap::limit(&mut linux, pod, container, host.swap, host.node_memory);
            match self.context.runtime.update_container(&running.listed.id, linux).await {
                Ok(()) => self.keep_resources(pod, container),
                Err(e) => error = Some(format!("failed to resize container {}: {e}", container.name)),
            }
        }
        self.resize = error.is_some().then_some(Resize::InProgress { error });
        true
    }

    /// After a restart of the kubelet: what its containers were given stands in the pod's directory.
    fn learn_resources(&mut self, pod: &Pod, look: &Look) {
        let dir = self.resources_dir(pod);
        for container in look.containers.iter().filter(|c| c.listed.phase == Phase::Running) {
            let name = &container.listed.name;
            if self.actual.contains_key(name) {
                continue;
            }
            let kept = std::fs::read(dir.join(name)).ok().and_then(|text| serde_json::from_slice(&text).ok());
            let spec = || super::worker::find(pod, name).and_then(|c| c.resources);
            if let Some(known) = kept.or_else(spec) {
                self.actual.insert(name.clone(), known);
            }
        }
    }

    pub(super) fn keep_resources(&mut self, pod: &Pod, container: &Container) {
        let resources = container.resources.clone().unwrap_or_default();
        let dir = self.resources_dir(pod);
        let written = std::fs::create_dir_all(&dir).and_then(|()| {
            let text = serde_json::to_vec(&resources).map_err(std::io::Error::other)?;
            std::fs::write(dir.join(&container.name), text)
        });
        if let Err(error) = written {
            tracing::warn!(%error, container = container.name, "the container's resources could not be kept");
        }
        self.actual.insert(container.name.clone(), resources);
    }

    fn resources_dir(&self, pod: &Pod) -> std::path::PathBuf {
        crate::volumes::pod_dir(&self.context.root, pod.metadata.uid.as_deref().unwrap_or_default()).join("resources")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(cpu: &str, policy: &str) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c",
            "resources": {"requests": {"cpu": cpu, "memory": "64Mi"}},
            "resizePolicy": [{"resourceName": "cpu", "restartPolicy": policy}]}]}}))
        .unwrap()
    }

    fn actual(cpu: &str) -> BTreeMap<String, ResourceRequirements> {
        let resources = plan::containers(&pod(cpu, "NotRequired"))[0].resources.clone().unwrap();
        BTreeMap::from([("c".to_owned(), resources)])
    }

    #[test]
    fn only_what_differs_is_changed() {
        let check = |spec: &str, now: &str, want: usize| {
            assert_eq!(differing(&pod(spec, "NotRequired"), &actual(now)).len(), want, "{spec} {now}");
        };
        check("1", "1", 0);
        check("1", "1000m", 0);
        check("2", "1", 1);
        let changed = pod("2", "RestartContainer");
        assert!(needs_restart(&plan::containers(&changed)[0], &actual("1")["c"]));
        assert!(!needs_restart(&plan::containers(&changed)[0], &actual("2")["c"]));
    }

    #[test]
    fn what_cannot_be_done_now_waits_and_what_can_never_be_done_says_so() {
        let allocatable = Amounts::from([("cpu".to_owned(), 2000), ("memory".to_owned(), i64::MAX)]);
        let reason = |cpu: &str, other: &str| match obstacle(
            &pod(cpu, "NotRequired"),
            &allocatable,
            &[&pod(other, "NotRequired")],
        ) {
            Some(Resize::Pending { reason, .. }) => reason,
            _ => "",
        };
        assert_eq!(reason("1", "1"), "");
        assert_eq!(reason("1500m", "1"), "Deferred");
        assert_eq!(reason("3", "1"), "Infeasible");
    }
}
