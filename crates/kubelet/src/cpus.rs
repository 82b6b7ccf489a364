//! CPUs that a container has for itself (KEP-3570, policy `static`): containers of Guaranteed pods that ask for whole CPUs get
//! some that no other pod runs on; all others share what is left.
//!
//! It alone knows who has which; that stands in a file too, so that a restarted kubelet moves nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::cgroups;
use crate::context::Context;
use crate::pod::plan;
use crate::runtime::Phase;

pub(crate) type CpuSet = BTreeSet<usize>;

const FILE: &str = "cpu_manager_allocations.json";

/// By pod uid and container name.
type Given = BTreeMap<String, BTreeMap<String, CpuSet>>;

/// How the node's CPUs are given; with the policy `none` nobody has any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuPolicy {
    pub(crate) is_static: bool,
    /// Never given to anybody alone.
    pub(crate) reserved: CpuSet,
    /// How often it is seen to that containers run where they should.
    pub(crate) reconcile_period: Duration,
}

impl Default for CpuPolicy {
    /// Upstream's defaults.
    fn default() -> Self {
        CpuPolicy { is_static: false, reserved: CpuSet::new(), reconcile_period: Duration::from_secs(10) }
    }
}

pub(crate) struct Cpus {
    policy: CpuPolicy,
    /// Each CPU with its core: package and number.
    cores: BTreeMap<usize, (usize, usize)>,
    file: PathBuf,
    given: Mutex<Given>,
    /// Told when those who share have others to share.
    changed: Notify,
}

/// `0-3,5` as cpusets are written.
pub(crate) fn parse(text: &str) -> Option<CpuSet> {
    let mut set = CpuSet::new();
    for part in text.trim().split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        set.extend(first.trim().parse::<usize>().ok()?..=last.trim().parse().ok()?);
    }
    Some(set)
}

pub(crate) fn show(set: &CpuSet) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for cpu in set {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
            _ => parts.push((*cpu, *cpu)),
        }
    }
    let parts = parts.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
    parts.collect::<Vec<_>>().join(",")
}

/// How many CPUs a container has for itself: whole ones, in a pod that is guaranteed all that it asks for.
fn exclusive_count(pod: &Pod, container: &Container) -> usize {
    let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref().or(r.limits.as_ref()));
    let milli = requests.and_then(|r| r.get("cpu")).and_then(cgroups::milli).unwrap_or_default();
    if cgroups::qos_class(pod) != "Guaranteed" || milli % 1000 != 0 {
        return 0;
    }
    usize::try_from(milli / 1000).unwrap_or_default()
}

/// Whole cores first, so that siblings of a core serve one container.
fn choose(count: usize, free: &CpuSet, cores: &BTreeMap<usize, (usize, usize)>) -> Option<CpuSet> {
    let mut by_core: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for cpu in free {
        by_core.entry(cores.get(cpu).copied().unwrap_or((0, *cpu))).or_default().push(*cpu);
    }
    let size_of = |core: &(usize, usize)| cores.values().filter(|c| *c == core).count().max(1);
    let (whole, mut parts): (Vec<_>, Vec<_>) = by_core.iter().partition(|(core, cpus)| cpus.len() >= size_of(core));
    let mut chosen = CpuSet::new();
    for (core, cpus) in whole {
        if chosen.len() + cpus.len() <= count {
            chosen.extend(cpus);
        } else {
            parts.push((core, cpus));
        }
    }
    // What is already broken is broken further before a whole core is.
    parts.sort_by_key(|(core, cpus)| (cpus.len(), **core));
    for cpu in parts.into_iter().flat_map(|(_, cpus)| cpus) {
        if chosen.len() < count {
            chosen.insert(*cpu);
        }
    }
    (chosen.len() == count).then_some(chosen)
}

/// The machine's CPUs and their cores.
fn look() -> BTreeMap<usize, (usize, usize)> {
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").ok().and_then(|text| parse(&text));
    let number = |cpu: usize, file: &str| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/{file}");
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    let core = |cpu: usize| {
        let package = number(cpu, "physical_package_id").unwrap_or_default();
        (package, number(cpu, "core_id").unwrap_or(cpu))
    };
    online.unwrap_or_default().into_iter().map(|cpu| (cpu, core(cpu))).collect()
}

impl Cpus {
    pub(crate) fn new(policy: CpuPolicy, root: &Path) -> Self {
        let file = root.join(FILE);
        let kept = std::fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let given = Mutex::new(kept.unwrap_or_default());
        Cpus { policy, cores: look(), file, given, changed: Notify::new() }
    }

    fn all(&self) -> CpuSet {
        self.cores.keys().copied().collect()
    }

    /// What containers without CPUs of their own run on.
    fn shared(&self, given: &Given) -> CpuSet {
        let taken: CpuSet = given.values().flat_map(BTreeMap::values).flatten().copied().collect();
        self.all().difference(&taken).copied().collect()
    }

    /// The CPUs of a container as the runtime takes them, given now if it has none yet; empty where all may be used.
    pub(crate) fn allocate(&self, pod: &Pod, container: &Container) -> Result<String, String> {
        if !self.policy.is_static {
            return Ok(String::new());
        }
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let mut given = self.given.lock();
        if let Some(own) = given.get(&uid).and_then(|p| p.get(&container.name)) {
            return Ok(show(own));
        }
        let count = exclusive_count(pod, container);
        if count == 0 {
            return Ok(show(&self.shared(&given)));
        }
        // An init container that has ended leaves its CPUs to those after it.
        let is_past = |name: &str| plan::init_containers(pod).iter().any(|c| c.name == name && !plan::is_sidecar(c));
        if let Some(own) = given.get_mut(&uid) {
            own.retain(|name, _| !is_past(name));
        }
        let free: CpuSet = self.shared(&given).difference(&self.policy.reserved).copied().collect();
        let Some(chosen) = choose(count, &free, &self.cores) else {
            return Err(format!(
                "not enough cpus available to satisfy request: requested={count}, available={}",
                free.len()
            ));
        };
        let text = show(&chosen);
        given.entry(uid).or_default().insert(container.name.clone(), chosen);
        self.write(&given);
        self.changed.notify_one();
        Ok(text)
    }

    /// Takes back what pods had that are here no more.
    pub(crate) fn keep_only(&self, is_here: impl Fn(&str) -> bool) {
        let mut given = self.given.lock();
        let before = given.len();
        given.retain(|uid, _| is_here(uid));
        if given.len() != before {
            self.write(&given);
            self.changed.notify_one();
        }
    }

    fn of(&self, uid: &str, container: &str) -> String {
        let given = self.given.lock();
        let own = given.get(uid).and_then(|p| p.get(container));
        own.map_or_else(|| show(&self.shared(&given)), show)
    }

    fn write(&self, given: &Given) {
        let fresh = self.file.with_extension("new");
        let written = std::fs::write(&fresh, serde_json::to_vec(given).unwrap_or_default())
            .and_then(|()| std::fs::rename(&fresh, &self.file));
        if let Err(error) = written {
            tracing::error!(%error, file = %self.file.display(), "who has which CPU could not be written down");
        }
    }
}

/// Moves those who share to what there is to share: whenever that changes, and again where it did not succeed.
pub(crate) async fn keep_apart(context: Arc<Context>, stop: CancellationToken) {
    if !context.cpus.policy.is_static {
        return;
    }
    // By container: where it was put last.
    let mut put: BTreeMap<String, String> = BTreeMap::new();
    let mut tick = tokio::time::interval(context.cpus.policy.reconcile_period);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = context.cpus.changed.notified() => {}
            _ = tick.tick() => {}
        }
        let Ok(pods) = context.runtime.list().await else { continue };
        let running: BTreeMap<&str, (&str, &str)> = pods
            .values()
            .flat_map(|p| {
                p.containers
                    .iter()
                    .filter(|c| c.phase == Phase::Running)
                    .map(|c| (c.id.as_str(), (p.uid.as_str(), c.name.as_str())))
            })
            .collect();
        put.retain(|id, _| running.contains_key(id.as_str()));
        for (id, (uid, name)) in running {
            let wanted = context.cpus.of(uid, name);
            if put.get(id) == Some(&wanted) {
                continue;
            }
            let linux = cri::LinuxContainerResources { cpuset_cpus: wanted.clone(), ..Default::default() };
            match context.runtime.update_container(id, linux).await {
                Ok(()) => drop(put.insert(id.to_owned(), wanted)),
                Err(error) => tracing::warn!(id, %error, "a container could not be moved to other CPUs"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_written_as_ranges() {
        for text in ["0", "0-3", "0-1,3,5-7", ""] {
            assert_eq!(show(&parse(text).unwrap()), text);
        }
        assert_eq!(parse("1-x"), None);
    }

    #[test]
    fn whole_cores_are_given_first_and_broken_ones_next() {
        // Two packages with two cores of two threads each: 0 and 4 are siblings, 1 and 5, …
        let cores: BTreeMap<usize, (usize, usize)> = (0..8).map(|cpu| (cpu, (cpu % 4 / 2, cpu % 4))).collect();
        let check = |count: usize, free: &str, want: Option<&str>| {
            let got = choose(count, &parse(free).unwrap(), &cores);
            assert_eq!(got.map(|set| show(&set)).as_deref(), want, "{count} of {free}");
        };
        check(2, "0-7", Some("0,4"));
        check(1, "0-7", Some("0"));
        check(1, "1-7", Some("4"));
        check(3, "1-7", Some("1,4-5"));
        check(2, "1-3,5-7", Some("1,5"));
        check(7, "1-6", None);
    }

    #[test]
    fn only_whole_cpus_of_guaranteed_pods_are_exclusive() {
        let check = |cpu: &str, limit: &str, want: usize| {
            let pod: Pod =
                serde_json::from_value(serde_json::json!({"spec": {"containers": [{"name": "c", "resources": {
                "requests": {"cpu": cpu, "memory": "1Mi"}, "limits": {"cpu": limit, "memory": "1Mi"}}}]}}))
                .unwrap();
            assert_eq!(exclusive_count(&pod, &plan::containers(&pod)[0]), want, "{cpu} {limit}");
        };
        check("2", "2", 2);
        check("1500m", "1500m", 0);
        check("1", "2", 0);
    }

    #[test]
    fn nobody_else_has_what_one_has() {
        let dir = tempfile::tempdir().unwrap();
        let cpus = Cpus {
            policy: CpuPolicy { is_static: true, reserved: [0].into(), ..CpuPolicy::default() },
            cores: (0..4).map(|cpu| (cpu, (0, cpu))).collect(),
            file: dir.path().join(FILE),
            given: Mutex::default(),
            changed: Notify::new(),
        };
        let pod = |uid: &str, cpu: &str| -> Pod {
            let amount = serde_json::json!({"cpu": cpu, "memory": "1Mi"});
            serde_json::from_value(serde_json::json!({"metadata": {"uid": uid}, "spec": {"containers": [
                {"name": "c", "resources": {"requests": amount, "limits": amount}}]}}))
            .unwrap()
        };
        let give = |pod: &Pod| cpus.allocate(pod, &plan::containers(pod)[0]);
        assert_eq!(give(&pod("a", "2")).as_deref(), Ok("1-2"));
        assert_eq!(give(&pod("b", "500m")).as_deref(), Ok("0,3"));
        assert_eq!(give(&pod("a", "2")).as_deref(), Ok("1-2"));
        let refused = give(&pod("c", "2")).unwrap_err();
        assert_eq!(refused, "not enough cpus available to satisfy request: requested=2, available=1");
        cpus.keep_only(|uid| uid != "a");
        assert_eq!(cpus.of("b", "c"), "0-3");
    }
}
