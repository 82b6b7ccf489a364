//! Node pressure: what runs short, since when, and which pod has to go for it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::events::reference;
use k8s_cri::v1::ContainerStats;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::pod::plan;
use crate::pod::status::Doom;
use crate::settings::Eviction;
use crate::{cgroups, labels, resources};

const PERIOD: Duration = Duration::from_secs(10);

/// What is left and what there is, by signal.
pub(crate) type Signals = BTreeMap<&'static str, (i64, i64)>;

/// The node's conditions that are true now: `MemoryPressure`, `DiskPressure`, `PIDPressure`.
#[derive(Default)]
pub(crate) struct Pressures(Mutex<BTreeSet<&'static str>>);

impl Pressures {
    pub(crate) fn has(&self, condition: &str) -> bool {
        self.0.lock().contains(condition)
    }

    pub(crate) fn all(&self) -> Vec<&'static str> {
        self.0.lock().iter().copied().collect()
    }
}

fn condition_of(signal: &str) -> &'static str {
    match signal {
        "memory.available" => "MemoryPressure",
        "pid.available" => "PIDPressure",
        _ => "DiskPressure",
    }
}

fn resource_of(signal: &str) -> &'static str {
    match signal {
        "memory.available" => "memory",
        "pid.available" => "pids",
        _ if signal.ends_with("inodesFree") => "inodes",
        _ => "ephemeral-storage",
    }
}

/// A threshold that is crossed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Crossed {
    signal: String,
    threshold: i64,
    available: i64,
    /// How long it may stay so before a pod goes: nothing for a hard one.
    patience: Duration,
    soft: bool,
}

fn crossed(settings: &Eviction, signals: &Signals) -> Vec<Crossed> {
    let hard = settings.hard.iter().map(|(s, t)| (s, t, Duration::ZERO, false));
    let soft = settings.soft.iter().map(|(s, (t, grace))| (s, t, *grace, true));
    let all = hard.chain(soft).filter_map(|(signal, threshold, patience, soft)| {
        let (available, capacity) = *signals.get(signal.as_str())?;
        let threshold = threshold.of(capacity);
        (available < threshold).then(|| Crossed { signal: signal.clone(), threshold, available, patience, soft })
    });
    let mut all: Vec<Crossed> = all.collect();
    all.sort_by_key(|c| (c.signal != "memory.available", c.soft)); // memory cannot wait
    all
}

/// What one pod uses of the resource that runs short.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Usage {
    uid: String,
    priority: i32,
    used: i64,
    requested: i64,
}

/// The pod that goes first: one above its request, of the lowest priority, the furthest above.
fn choose(usages: &[Usage]) -> Option<&Usage> {
    usages.iter().max_by_key(|u| (u.used > u.requested, std::cmp::Reverse(u.priority), u.used - u.requested))
}

/// A quantity as upstream's messages show it.
fn show(bytes: i64) -> String {
    match bytes {
        b if b != 0 && b % (1 << 30) == 0 => format!("{}Gi", b >> 30),
        b if b != 0 && b % (1 << 20) == 0 => format!("{}Mi", b >> 20),
        b if b != 0 && b % 1024 == 0 => format!("{}Ki", b >> 10),
        b => b.to_string(),
    }
}

/// What the pod's own limits forbid, in the words of its status.
fn own_limit(pod: &Pod, volumes: &BTreeMap<String, i64>, writable: &BTreeMap<String, i64>) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    for volume in spec.volumes.iter().flatten() {
        let Some(limit) = volume.empty_dir.as_ref().and_then(|e| e.size_limit.as_ref()) else { continue };
        let used = volumes.get(&volume.name).copied().unwrap_or_default();
        if cgroups::whole(limit).is_some_and(|l| l > 0 && used > l) {
            return Some(format!("Usage of EmptyDir volume \"{}\" exceeds the limit \"{}\". ", volume.name, limit.0));
        }
    }
    for container in plan::containers(pod) {
        let limit = container.resources.as_ref().and_then(|r| r.limits.as_ref()?.get("ephemeral-storage"));
        let used = writable.get(&container.name).copied().unwrap_or_default();
        if let Some(limit) = limit.filter(|l| cgroups::whole(l).is_some_and(|l| used > l)) {
            let name = &container.name;
            return Some(format!("Container {name} exceeded its local ephemeral storage limit \"{}\". ", limit.0));
        }
    }
    let limit = resources::limits(pod).get("ephemeral-storage").map(|milli| milli / 1000)?;
    let total: i64 = volumes.values().chain(writable.values()).sum();
    (total > limit)
        .then(|| format!("Pod ephemeral local storage usage exceeds the total limit of containers {}. ", show(limit)))
}

pub(crate) struct Watcher {
    pub context: Arc<Context>,
    pub settings: Eviction,
}

impl Watcher {
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut since: BTreeMap<(String, bool), Instant> = BTreeMap::new();
        let mut last_seen: BTreeMap<&'static str, Instant> = BTreeMap::new();
        while stop.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
            let signals = self.look().await;
            let crossed = crossed(&self.settings, &signals);
            let now = Instant::now();
            since.retain(|(signal, soft), _| crossed.iter().any(|c| c.signal == *signal && c.soft == *soft));
            for c in &crossed {
                since.entry((c.signal.clone(), c.soft)).or_insert(now);
                last_seen.insert(condition_of(&c.signal), now);
            }
            last_seen.retain(|_, at| now.duration_since(*at) < self.settings.transition);
            let pressures: BTreeSet<&'static str> = last_seen.keys().copied().collect();
            if std::mem::replace(&mut *self.context.pressures.0.lock(), pressures.clone()) != pressures {
                self.context.pressures_changed.notify_one();
            }
            self.evict_over_limits().await;
            let due = crossed.into_iter().find(|c| {
                since.get(&(c.signal.clone(), c.soft)).is_some_and(|at| now.duration_since(*at) >= c.patience)
            });
            if let Some(due) = due {
                self.relieve(&due).await;
            }
        }
    }

    async fn look(&self) -> Signals {
        let mut signals = Signals::new();
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = |name: &str| {
            meminfo.lines().find_map(|l| l.strip_prefix(name)?.trim().trim_end_matches(" kB").parse::<i64>().ok())
        };
        if let (Some(total), Some(available)) = (kib("MemTotal:"), kib("MemAvailable:")) {
            signals.insert("memory.available", (available * 1024, total * 1024));
        }
        let mut disk = |path: &Path, bytes: &'static str, inodes: &'static str| {
            let Ok(found) = nix::sys::statvfs::statvfs(path) else { return };
            let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
            let size = found.fragment_size();
            signals.insert(bytes, (number(found.blocks_available() * size), number(found.blocks() * size)));
            if found.files() > 0 {
                signals.insert(inodes, (number(found.files_available()), number(found.files())));
            }
        };
        disk(&self.context.root, "nodefs.available", "nodefs.inodesFree");
        let images = self.context.runtime.image_file_systems().await.unwrap_or_default();
        if let Some(at) = images.into_iter().find_map(|f| f.fs_id) {
            disk(Path::new(&at.mountpoint), "imagefs.available", "imagefs.inodesFree");
        }
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let most = [text("/proc/sys/kernel/pid_max"), text("/proc/sys/kernel/threads-max")];
        let most = most.iter().filter_map(|t| t.parse::<i64>().ok()).min();
        let load = text("/proc/loadavg");
        let running = load.split(' ').nth(3).and_then(|p| p.split_once('/')?.1.parse::<i64>().ok());
        if let (Some(most), Some(running)) = (most, running) {
            signals.insert("pid.available", (most - running, most));
        }
        signals
    }

    /// One pod goes, and the next look says whether that was enough.
    async fn relieve(&self, crossed: &Crossed) {
        let resource = resource_of(&crossed.signal);
        tracing::warn!(signal = crossed.signal, available = crossed.available, "the node runs short");
        let pods = self.context.admitted.all();
        let used = self.used(resource == "memory").await;
        let is_disk = matches!(resource, "ephemeral-storage" | "inodes");
        let mut of_volumes: BTreeMap<String, i64> = BTreeMap::new();
        for pod in pods.iter().filter(|_| is_disk) {
            let sizes = self.volume_sizes(pod).await;
            of_volumes.insert(pod.metadata.uid.clone().unwrap_or_default(), sizes.values().sum());
        }
        let usages: Vec<Usage> = pods
            .iter()
            .filter(|p| !cgroups::is_critical(p))
            .map(|pod| {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                let requested = resources::requests(pod).get(resource).map_or(0, |milli| milli / 1000);
                let of_containers: i64 = used.get(&uid).map_or(0, |c| c.values().sum());
                let used = of_containers.saturating_add(of_volumes.get(&uid).copied().unwrap_or_default());
                Usage { priority: pod.spec.as_ref().and_then(|s| s.priority).unwrap_or_default(), used, requested, uid }
            })
            .filter(|u| self.context.dooms.of(&u.uid).is_none())
            .collect();
        let Some(victim) = choose(&usages) else { return };
        let Some(pod) = pods.iter().find(|p| p.metadata.uid.as_deref() == Some(victim.uid.as_str())) else { return };
        let mut message = format!(
            "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
            show(crossed.threshold),
            show(crossed.available)
        );
        for container in plan::containers(pod) {
            let request = container.resources.as_ref().and_then(|r| r.requests.as_ref()?.get(resource));
            let request_bytes = request.and_then(cgroups::whole).unwrap_or_default();
            let now = used.get(&victim.uid).and_then(|c| c.get(&container.name)).copied().unwrap_or_default();
            if now > request_bytes {
                let shown = request.map_or("0", |q| q.0.as_str());
                message.push_str(&format!(
                    "Container {} was using {}, request is {shown}, has larger consumption of {resource}. ",
                    container.name,
                    show(now)
                ));
            }
        }
        let grace = if crossed.soft { self.settings.max_grace } else { 0 };
        self.evict(pod, message, grace);
    }

    async fn evict_over_limits(&self) {
        let limited = |pod: &Pod| {
            let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
            let mut empty = volumes.filter_map(|v| v.empty_dir.as_ref());
            empty.any(|e| e.size_limit.is_some())
                || resources::limits(pod).contains_key("ephemeral-storage")
                || plan::containers(pod).iter().any(|c| {
                    c.resources
                        .as_ref()
                        .and_then(|r| r.limits.as_ref())
                        .is_some_and(|l| l.contains_key("ephemeral-storage"))
                })
        };
        let pods: Vec<Arc<Pod>> = self.context.admitted.all().into_iter().filter(|p| limited(p)).collect();
        if pods.is_empty() {
            return;
        }
        let writable = self.used(false).await;
        for pod in pods {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let sizes = self.volume_sizes(&pod).await;
            let layers = writable.get(&uid).cloned().unwrap_or_default();
            if let Some(message) = own_limit(&pod, &sizes, &layers).filter(|_| self.context.dooms.of(&uid).is_none()) {
                self.evict(&pod, message, 1);
            }
        }
    }

    /// Bytes of the pod's volumes that lie on the node's disk, by name.
    async fn volume_sizes(&self, pod: &Pod) -> BTreeMap<String, i64> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let root = crate::volumes::pod_dir(&self.context.root, uid).join("volumes/kubernetes.io~empty-dir");
        let all = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
        let names: Vec<String> = all.filter(|v| v.empty_dir.is_some()).map(|v| v.name.clone()).collect();
        let sizes = tokio::task::spawn_blocking(move || {
            names.into_iter().map(|n| (n.clone(), size_of_tree(&root.join(&n)))).collect::<BTreeMap<_, _>>()
        });
        sizes.await.unwrap_or_default()
    }

    /// By pod uid and container: bytes of memory, or of the writable layer and the logs.
    async fn used(&self, memory: bool) -> BTreeMap<String, BTreeMap<String, i64>> {
        let all = self.context.runtime.container_stats().await.unwrap_or_default();
        if memory {
            let bytes = |s: &ContainerStats| s.memory.as_ref().and_then(|m| m.working_set_bytes).map(|v| v.value);
            return by_container(&all, |stats, _| bytes(stats).unwrap_or_default());
        }
        let log_root = self.context.log_root.clone();
        let summed = tokio::task::spawn_blocking(move || {
            let layer = |s: &ContainerStats| s.writable_layer.as_ref().and_then(|w| w.used_bytes).map(|v| v.value);
            by_container(&all, |stats, label| {
                let pod = [labels::POD_NAMESPACE, labels::POD_NAME, labels::POD_UID].map(label).join("_");
                let logs = size_of_tree(&log_root.join(pod).join(label(labels::CONTAINER_NAME)));
                layer(stats).unwrap_or_default().saturating_add(u64::try_from(logs).unwrap_or_default())
            })
        });
        summed.await.unwrap_or_default()
    }

    fn evict(&self, pod: &Pod, message: String, grace: i64) {
        self.context.events.warning(&reference(pod), "Evicted", message.clone());
        let doom = Doom { reason: "Evicted".to_owned(), message, grace: Some(grace), disruption: true };
        self.context.dooms.add(pod.metadata.uid.as_deref().unwrap_or_default(), doom);
    }
}

/// What is counted of each container, by its pod's uid and its name; `count` can ask for labels.
fn by_container(
    all: &[ContainerStats],
    count: impl Fn(&ContainerStats, &dyn Fn(&str) -> String) -> u64,
) -> BTreeMap<String, BTreeMap<String, i64>> {
    let mut counts: BTreeMap<String, BTreeMap<String, i64>> = BTreeMap::new();
    for stats in all {
        let Some(attributes) = &stats.attributes else { continue };
        let label = |key: &str| attributes.labels.get(key).cloned().unwrap_or_default();
        let value = i64::try_from(count(stats, &label)).unwrap_or(i64::MAX);
        counts.entry(label(labels::POD_UID)).or_default().insert(label(labels::CONTAINER_NAME), value);
    }
    counts
}

/// Disk blocks below a directory, in bytes; links are not followed.
pub(crate) fn size_of_tree(path: &Path) -> i64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(found) = std::fs::symlink_metadata(path) else { return 0 };
    let own = i64::try_from(found.blocks() * 512).unwrap_or(i64::MAX);
    if !found.is_dir() {
        return own;
    }
    let below = std::fs::read_dir(path).into_iter().flatten().filter_map(Result::ok).map(|e| size_of_tree(&e.path()));
    own.saturating_add(below.fold(0, i64::saturating_add))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Threshold;

    fn usage(uid: &str, priority: i32, used: i64, requested: i64) -> Usage {
        Usage { uid: uid.into(), priority, used, requested }
    }

    #[test]
    fn containers_are_counted_each_for_its_pod() {
        let stats = |pod: &str, name: &str| {
            let labels = [(labels::POD_UID, pod), (labels::CONTAINER_NAME, name)];
            let labels = labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
            let attributes = Some(k8s_cri::v1::ContainerAttributes { labels, ..Default::default() });
            ContainerStats { attributes, ..Default::default() }
        };
        let all = [stats("p", "a"), stats("p", "bc"), stats("q", "a"), ContainerStats::default()];
        let counts = by_container(&all, |_, label| u64::try_from(label(labels::CONTAINER_NAME).len()).unwrap());
        let of = |pod: &str| counts[pod].iter().map(|(name, n)| format!("{name}={n}")).collect::<Vec<_>>().join(" ");
        assert_eq!((of("p"), of("q")), ("a=1 bc=2".to_owned(), "a=1".to_owned()));
        assert_eq!(counts.len(), 2);
    }

    #[test]
    fn the_pod_above_its_request_and_of_least_priority_goes_first() {
        let check = |usages: &[Usage], want: &str| assert_eq!(choose(usages).map(|u| u.uid.as_str()), Some(want));
        check(&[usage("a", 0, 10, 20), usage("b", 100, 30, 20)], "b");
        check(&[usage("a", 0, 30, 20), usage("b", 100, 90, 20)], "a");
        check(&[usage("a", 0, 30, 20), usage("b", 0, 90, 20)], "b");
        assert_eq!(choose(&[]), None);
    }

    #[test]
    fn thresholds_are_crossed_from_below() {
        let mut settings = Eviction { hard: BTreeMap::new(), ..Eviction::default() };
        settings.hard.insert("memory.available".into(), Threshold::Amount(100));
        settings.soft.insert("nodefs.available".into(), (Threshold::Share(0.5), Duration::from_secs(9)));
        let check = |memory: i64, disk: i64, want: &[&str]| {
            let signals = Signals::from([("memory.available", (memory, 1000)), ("nodefs.available", (disk, 1000))]);
            let got: Vec<String> = crossed(&settings, &signals).into_iter().map(|c| c.signal).collect();
            assert_eq!(got, want);
        };
        check(100, 500, &[]);
        check(99, 500, &["memory.available"]);
        check(99, 499, &["memory.available", "nodefs.available"]);
    }

    #[test]
    fn a_pods_own_limits_are_named() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}],
            "containers": [{"name": "c", "resources": {"limits": {"ephemeral-storage": "2Mi"}}}]}}))
        .unwrap();
        let check = |volume: i64, layer: i64, want: Option<&str>| {
            let (volumes, layers) = (BTreeMap::from([("v".into(), volume)]), BTreeMap::from([("c".into(), layer)]));
            assert_eq!(own_limit(&pod, &volumes, &layers).as_deref(), want);
        };
        check(1 << 20, 0, None);
        check(2 << 20, 0, Some("Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". "));
        check(0, 3 << 20, Some("Container c exceeded its local ephemeral storage limit \"2Mi\". "));
        let both = "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. ";
        check(1 << 20, (1 << 20) + 1, Some(both));
    }
}
