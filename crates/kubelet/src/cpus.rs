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
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::cgroups;
use crate::checkpoint::{self, Checkpoint};
use crate::context::Context;
use crate::numa::{Mask, Nodes, masks};
use crate::pod::plan;
use crate::runtime::Phase;
use crate::topology::{Hint, Hints};

pub(crate) type CpuSet = BTreeSet<usize>;
type Cores = BTreeMap<usize, (usize, usize)>;

const FILE: &str = "cpu_manager_state";
const STATIC: &str = "static";

/// By pod uid and container name.
type Given = BTreeMap<String, BTreeMap<String, CpuSet>>;

/// What stands in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    policy_name: String,
    /// What is nobody's alone.
    #[serde(alias = "defaultCPUSet")]
    default_cpu_set: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    entries: BTreeMap<String, BTreeMap<String, String>>,
    #[serde(default)]
    checksum: u32,
}

impl Checkpoint for Kept {
    fn printed(&self) -> String {
        let joined = |parts: Vec<String>| parts.join(" ");
        let container = |(name, cpus): (&String, &String)| format!("{name}:{cpus}");
        let pod = |(uid, containers): (&String, &BTreeMap<String, String>)| {
            format!("{uid}:map[{}]", joined(containers.iter().map(container).collect()))
        };
        format!(
            "(*state.CPUManagerCheckpoint){{PolicyName:(string){} DefaultCPUSet:(string){} Entries:(map[string]map[string]string)map[{}] Checksum:(checksum.Checksum)0}}",
            self.policy_name,
            self.default_cpu_set,
            joined(self.entries.iter().map(pod).collect())
        )
    }

    fn sum(&mut self) -> &mut u32 {
        &mut self.checksum
    }
}

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
    cores: Cores,
    /// The CPUs of each NUMA node.
    nodes: BTreeMap<usize, CpuSet>,
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

/// How many the pod has at the most demanding moment of its life.
fn exclusive_count_of_all(pod: &Pod) -> usize {
    let (mut sidecars, mut peak) = (0, 0);
    for init in plan::init_containers(pod) {
        let count = exclusive_count(pod, init);
        match plan::is_sidecar(init) {
            true => sidecars += count,
            false => peak = peak.max(sidecars + count),
        }
    }
    let together: usize = plan::containers(pod).iter().map(|c| exclusive_count(pod, c)).sum();
    peak.max(sidecars + together)
}

/// Whole cores first, so that siblings of a core serve one container.
fn choose(count: usize, free: &CpuSet, cores: &Cores) -> Option<CpuSet> {
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
fn look() -> Cores {
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

/// The machine's CPUs.
pub(crate) fn all() -> CpuSet {
    look().into_keys().collect()
}

/// Which CPUs who had, as an earlier kubelet wrote it down.
fn read(file: &Path, all: &CpuSet) -> Result<Given, String> {
    let Some(kept) = checkpoint::read::<Kept>(file, "cpu manager").map_err(|e| e.to_string())? else {
        return Ok(Given::new());
    };
    if kept.policy_name != STATIC {
        let theirs = kept.policy_name;
        return Err(format!("configured policy {STATIC:?} differs from state checkpoint policy {theirs:?}"));
    }
    let set = |text: &str, what: &str| parse(text).ok_or_else(|| format!("could not parse {what} {text:?}"));
    let mut known = set(&kept.default_cpu_set, "default CPU set")?;
    let mut given = Given::new();
    for (uid, containers) in kept.entries {
        for (name, cpus) in containers {
            let cpus = set(&cpus, &format!("cpuset for container {name:?} in pod {uid:?}"))?;
            known.extend(&cpus);
            given.entry(uid.clone()).or_default().insert(name, cpus);
        }
    }
    if known != *all {
        let (all, known) = (show(all), show(&known));
        return Err(format!("the set of available CPUs {all:?} doesn't match with CPUs in state {known:?}"));
    }
    Ok(given)
}

impl Cpus {
    /// # Errors
    /// When what an earlier kubelet wrote down is not of this machine and policy.
    pub(crate) fn new(policy: CpuPolicy, nodes: &Nodes, root: &Path) -> Result<Self, String> {
        let (file, cores) = (root.join(FILE), look());
        let given = match policy.is_static {
            true => read(&file, &cores.keys().copied().collect())?,
            false => Given::new(),
        };
        let nodes = nodes.iter().map(|(number, node)| (*number, node.cpus.clone())).collect();
        Ok(Cpus { policy, cores, nodes, file, given: Mutex::new(given), changed: Notify::new() })
    }

    fn all(&self) -> CpuSet {
        self.cores.keys().copied().collect()
    }

    /// What containers without CPUs of their own run on.
    fn shared(&self, given: &Given) -> CpuSet {
        let taken: CpuSet = given.values().flat_map(BTreeMap::values).flatten().copied().collect();
        self.all().difference(&taken).copied().collect()
    }

    /// What a container could have: what nobody has, and what init containers of its pod have that end before it starts.
    fn free(&self, given: &Given, pod: &Pod, container: Option<&Container>) -> CpuSet {
        let nothing = BTreeMap::new();
        let held = given.get(pod.metadata.uid.as_deref().unwrap_or_default()).unwrap_or(&nothing);
        let mut reusable = CpuSet::new();
        for other in plan::init_containers(pod).iter().chain(plan::containers(pod)) {
            let Some(cpus) = held.get(&other.name).filter(|_| container.is_none_or(|c| c.name != other.name)) else {
                continue;
            };
            let is_past = plan::init_containers(pod).iter().any(|c| c.name == other.name && !plan::is_sidecar(c));
            match is_past {
                true => reusable.extend(cpus),
                false => reusable.retain(|cpu| !cpus.contains(cpu)),
            }
        }
        let shared = self.shared(given);
        shared.difference(&self.policy.reserved).chain(&reusable).copied().collect()
    }

    /// The CPUs of a container as the runtime takes them, given now if it has none yet, of these NUMA nodes as far as they
    /// go; empty where all may be used.
    pub(crate) fn allocate(&self, pod: &Pod, container: &Container, wanted: Option<Mask>) -> Result<String, String> {
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
        let free = self.free(&given, pod, Some(container));
        let Some(chosen) = self.choose(count, &free, wanted) else {
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

    fn choose(&self, count: usize, free: &CpuSet, wanted: Option<Mask>) -> Option<CpuSet> {
        let Some(wanted) = wanted else { return choose(count, free, &self.cores) };
        let near = self.of_nodes(wanted);
        let near: CpuSet = free.intersection(&near).copied().collect();
        let mut chosen = choose(count.min(near.len()), &near, &self.cores)?;
        let left: CpuSet = free.difference(&chosen).copied().collect();
        chosen.extend(choose(count - chosen.len(), &left, &self.cores)?);
        Some(chosen)
    }

    fn of_nodes(&self, mask: Mask) -> CpuSet {
        mask.nodes().filter_map(|node| self.nodes.get(&node)).flatten().copied().collect()
    }

    /// Which NUMA nodes would do for a container, or for the pod as a whole.
    pub(crate) fn wishes(&self, pod: &Pod, container: Option<&Container>) -> Hints {
        let count = match container {
            Some(container) => exclusive_count(pod, container),
            None => exclusive_count_of_all(pod),
        };
        if !self.policy.is_static || count == 0 {
            return None;
        }
        let given = self.given.lock();
        let held = given.get(pod.metadata.uid.as_deref().unwrap_or_default());
        let own = match container {
            Some(container) => held.and_then(|p| p.get(&container.name)).cloned(),
            None => held.map(|p| p.values().flatten().copied().collect()),
        };
        let free = own.unwrap_or_else(|| self.free(&given, pod, container));
        let nodes: Vec<usize> = self.nodes.keys().copied().collect();
        let within = |mask: Mask| self.of_nodes(mask).intersection(&free).count() >= count;
        let all = masks(&nodes);
        let least = all.iter().filter(|mask| self.of_nodes(**mask).len() >= count).map(|mask| mask.count()).min();
        let fitting = all.into_iter().filter(|mask| within(*mask));
        Some(fitting.map(|mask| Hint { mask: Some(mask), preferred: Some(mask.count()) == least }).collect())
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
        let containers = |all: &BTreeMap<String, CpuSet>| all.iter().map(|(n, cpus)| (n.clone(), show(cpus))).collect();
        let kept = Kept {
            policy_name: STATIC.to_owned(),
            default_cpu_set: show(&self.shared(given)),
            entries: given.iter().map(|(uid, all)| (uid.clone(), containers(all))).collect(),
            checksum: 0,
        };
        checkpoint::write(&self.file, kept);
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

    /// Two NUMA nodes of four CPUs each, of which the first is reserved.
    fn manager(dir: &Path) -> Cpus {
        Cpus {
            policy: CpuPolicy { is_static: true, reserved: [0].into(), ..CpuPolicy::default() },
            cores: (0..8).map(|cpu| (cpu, (cpu / 4, cpu))).collect(),
            nodes: [(0, (0..4).collect()), (1, (4..8).collect())].into(),
            file: dir.join(FILE),
            given: Mutex::default(),
            changed: Notify::new(),
        }
    }

    fn pod(uid: &str, init: &[&str], containers: &[&str]) -> Pod {
        let make = |prefix: &str, all: &[&str]| -> serde_json::Value {
            let one = |(i, cpu): (usize, &&str)| {
                let amount = serde_json::json!({"cpu": cpu, "memory": "1Mi"});
                serde_json::json!({"name": format!("{prefix}{i}"), "resources": {"requests": amount, "limits": amount}})
            };
            all.iter().enumerate().map(one).collect()
        };
        let spec = serde_json::json!({"initContainers": make("i", init), "containers": make("c", containers)});
        serde_json::from_value(serde_json::json!({"metadata": {"uid": uid}, "spec": spec})).unwrap()
    }

    fn give(cpus: &Cpus, pod: &Pod, wanted: Option<Mask>) -> Result<Vec<String>, String> {
        let all = plan::init_containers(pod).iter().chain(plan::containers(pod));
        all.map(|container| cpus.allocate(pod, container, wanted)).collect()
    }

    #[test]
    fn nobody_else_has_what_one_has() {
        let dir = tempfile::tempdir().unwrap();
        let cpus = manager(dir.path());
        let check = |uid: &str, cpu: &str, want: &str| {
            assert_eq!(give(&cpus, &pod(uid, &[], &[cpu]), None).unwrap(), [want], "{uid}");
        };
        check("a", "2", "1-2");
        check("b", "500m", "0,3-7");
        check("a", "2", "1-2");
        let refused = give(&cpus, &pod("c", &[], &["6"]), None).unwrap_err();
        assert_eq!(refused, "not enough cpus available to satisfy request: requested=6, available=5");
        cpus.keep_only(|uid| uid != "a");
        assert_eq!(cpus.of("b", "c"), "0-7");
    }

    #[test]
    fn cpus_come_from_the_nodes_that_were_decided_upon() {
        let dir = tempfile::tempdir().unwrap();
        let cpus = manager(dir.path());
        let wishes = |pod: &Pod, container: Option<&Container>| {
            let one = |h: &Hint| {
                format!("{:?}{}", h.mask.unwrap().nodes().collect::<Vec<_>>(), if h.preferred { "*" } else { "" })
            };
            cpus.wishes(pod, container).map(|list| list.iter().map(one).collect::<Vec<_>>().join(" "))
        };
        let check = |pod: &Pod, want: Option<&str>| {
            assert_eq!(wishes(pod, plan::containers(pod).first()).as_deref(), want, "{pod:?}");
        };
        check(&pod("a", &[], &["500m"]), None);
        check(&pod("a", &[], &["2"]), Some("[0]* [1]* [0, 1]"));
        // Four CPUs are on the first node, but one of them is reserved.
        check(&pod("a", &[], &["4"]), Some("[1]* [0, 1]"));
        check(&pod("a", &[], &["5"]), Some("[0, 1]*"));
        let wanted = Some(Mask::of([1]));
        assert_eq!(give(&cpus, &pod("a", &[], &["2"]), wanted).unwrap(), ["4-5"]);
        check(&pod("a", &[], &["2"]), Some("[1]* [0, 1]"));
        // As many as there are of them, and others for the rest.
        assert_eq!(give(&cpus, &pod("b", &[], &["3"]), wanted).unwrap(), ["1,6-7"]);
        let both = pod("c", &["2"], &["1", "1"]);
        assert_eq!(wishes(&both, None).as_deref(), Some("[0]* [0, 1]"));
        assert_eq!(give(&cpus, &both, None).unwrap(), ["2-3", "2", "3"]);
    }

    #[test]
    fn the_file_is_as_upstream_writes_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);
        let vector = r#"{"policyName": "none", "defaultCPUSet": "4-6", "entries": {}, "checksum": 354655845}"#;
        std::fs::write(&file, vector).unwrap();
        assert_eq!(checkpoint::read::<Kept>(&file, "cpu manager").unwrap().unwrap().default_cpu_set, "4-6");
        let all: CpuSet = (0..8).collect();
        assert!(read(&file, &all).unwrap_err().contains("differs from state checkpoint policy \"none\""));
        std::fs::write(&file, vector.replace("4-6", "4-7")).unwrap();
        assert!(read(&file, &all).unwrap_err().contains("checkpoint is corrupted"));

        let cpus = manager(dir.path());
        give(&cpus, &pod("a", &[], &["2"]), None).unwrap();
        assert_eq!(read(&file, &all).unwrap(), *cpus.given.lock());
        let less: CpuSet = (0..4).collect();
        let words = "the set of available CPUs \"0-3\" doesn't match with CPUs in state \"0-7\"";
        assert_eq!(read(&file, &less).unwrap_err(), words);
    }
}
