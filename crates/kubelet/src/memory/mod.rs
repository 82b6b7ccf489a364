//! Memory manager (KEP-1769, policy `Static`): containers of Guaranteed pods get their memory and huge pages from NUMA nodes
//! on which it is kept for them.
//!
//! It alone knows who has which; that stands in a file too. A node serves either containers that need it alone or those that
//! need it together with the same others, never both.

mod state;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;

use crate::cgroups;
use crate::checkpoint;
use crate::numa::{Mask, Nodes, huge_page_name, masks};
use crate::pod::plan;
use crate::resources::Amounts;
use crate::topology::{Hint, Hints};
use state::{Block, Machine, State, Table};

const FILE: &str = "memory_manager_state";

/// By resource, in bytes.
type Sizes = BTreeMap<String, u64>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryPolicy {
    pub(crate) is_static: bool,
    /// By NUMA node: what no container gets.
    pub(crate) reserved: BTreeMap<usize, BTreeMap<String, u64>>,
}

pub(crate) struct Memory {
    /// None: the policy is `None`.
    given: Option<Mutex<State>>,
    file: PathBuf,
}

impl Memory {
    /// `reserved` is what the node keeps from pods altogether, in thousandths.
    ///
    /// # Errors
    /// When the policy does not fit the machine, or the file of an earlier kubelet does not.
    pub(crate) fn new(policy: &MemoryPolicy, nodes: &Nodes, reserved: &Amounts, root: &Path) -> Result<Self, String> {
        let file = root.join(FILE);
        if !policy.is_static {
            return Ok(Memory { given: None, file });
        }
        check_reserved(policy, reserved)?;
        let mut state = State::of(machine_of(policy, nodes));
        if let Some(kept) = checkpoint::read::<State>(&file, "memory manager").map_err(|e| e.to_string())? {
            if kept.policy_name != state.policy_name {
                let (ours, theirs) = (&state.policy_name, &kept.policy_name);
                return Err(format!(
                    "[memorymanager] configured policy {ours:?} differs from state checkpoint policy {theirs:?}"
                ));
            }
            let differs = || "[memorymanager] the expected machine state is different from the real one".to_owned();
            if !state::same_size(&state.machine_state, &kept.machine_state) {
                return Err(differs());
            }
            for (uid, container, blocks) in kept.all_blocks() {
                for block in blocks {
                    if !state.machine_state.has(block) {
                        return Err(differs());
                    }
                    state.machine_state.take(block, block.size);
                }
                state.entries.entry(uid.clone()).or_default().insert(container.clone(), blocks.clone());
            }
        }
        Ok(Memory { given: Some(Mutex::new(state)), file })
    }

    /// The NUMA nodes of a container as the runtime takes them; empty where all may be used.
    pub(crate) fn nodes_of(&self, pod: &Pod, container: &Container) -> String {
        let Some(given) = &self.given else { return String::new() };
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let given = given.lock();
        let blocks = given.entries.get(uid).and_then(|p| p.get(&container.name));
        let nodes = blocks.into_iter().flatten().flat_map(|b| b.numa_affinity.iter().copied());
        crate::cpus::show(&nodes.collect())
    }

    /// Which nodes would do for a container, or for the pod as a whole: hints for each kind of memory.
    pub(crate) fn wishes(&self, pod: &Pod, container: Option<&Container>) -> Vec<Hints> {
        let Some(given) = &self.given else { return Vec::new() };
        let asked = match container {
            Some(container) => asked_by(pod, container),
            None => asked_by_all(pod),
        };
        if asked.is_empty() {
            return Vec::new();
        }
        let given = given.lock();
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let held = given.entries.get(uid);
        let own = match container {
            Some(container) => held.and_then(|p| p.get(&container.name)),
            None => held.and_then(|p| p.values().next()),
        };
        let hints = match own {
            // It has them already.
            Some(blocks) => {
                let mask = Mask::of(blocks.iter().flat_map(|b| b.numa_affinity.iter().copied()));
                vec![Hint { mask: Some(mask), preferred: true }]
            }
            None => hints_for(&given, pod, &asked),
        };
        asked.keys().map(|_| Some(hints.clone())).collect()
    }

    /// Keeps memory for a container, on these nodes if they are enough. One that has some keeps it.
    pub(crate) fn allocate(&self, pod: &Pod, container: &Container, hint: Hint) -> Result<(), String> {
        let Some(given) = &self.given else { return Ok(()) };
        let asked = asked_by(pod, container);
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let mut given = given.lock();
        let has_some = given.entries.get(&uid).is_some_and(|p| p.contains_key(&container.name));
        if asked.is_empty() || has_some {
            return Ok(());
        }
        let mask = choose(&given, pod, &asked, hint)?;
        if given.machine_state.breaks_groups(mask) {
            return Err("[memorymanager] preferred hint violates NUMA node allocation".to_owned());
        }
        let mut blocks = Vec::new();
        for (kind, size) in &asked {
            let block = Block { numa_affinity: mask.nodes().collect(), kind: kind.clone(), size: *size };
            let reused = reusable(&given, pod, mask, kind).min(*size);
            given.machine_state.take(&block, size - reused);
            leave_to(&mut given, pod, container, &block, reused);
            blocks.push(block);
        }
        given.entries.entry(uid).or_default().insert(container.name.clone(), blocks);
        checkpoint::write(&self.file, given.clone());
        Ok(())
    }

    /// Takes back what pods had that are here no more.
    pub(crate) fn keep_only(&self, is_here: impl Fn(&str) -> bool) {
        let Some(given) = &self.given else { return };
        let mut given = given.lock();
        let gone: Vec<_> = given.entries.extract_if(.., |uid, _| !is_here(uid)).collect();
        if gone.is_empty() {
            return;
        }
        for block in gone.into_iter().flat_map(|(_, containers)| containers.into_values()).flatten() {
            given.machine_state.give_back(&block);
        }
        checkpoint::write(&self.file, given.clone());
    }
}

fn check_reserved(policy: &MemoryPolicy, reserved: &Amounts) -> Result<(), String> {
    let mut total = Sizes::new();
    for (kind, size) in policy.reserved.values().flatten() {
        *total.entry(kind.clone()).or_default() += size;
    }
    if total.get("memory").copied().unwrap_or_default() == 0 {
        return Err("[memorymanager] you should specify the system reserved memory".to_owned());
    }
    let of_node =
        |kind: &str| u64::try_from(reserved.get(kind).copied().unwrap_or_default() / 1000).unwrap_or_default();
    for (kind, size) in total {
        let wanted = of_node(&kind);
        if wanted != size {
            return Err(format!(
                "the total amount \"{size}\" of type \"{kind}\" is not equal to the value \"{wanted}\" determined by Node Allocatable feature"
            ));
        }
    }
    Ok(())
}

/// What can be given on each node: its huge pages, and what they leave of its memory, without what is reserved.
fn machine_of(policy: &MemoryPolicy, nodes: &Nodes) -> Machine {
    let mut machine = Machine::default();
    for (number, node) in nodes {
        let reserved =
            |kind: &str| policy.reserved.get(number).and_then(|kinds| kinds.get(kind)).copied().unwrap_or_default();
        let mut tables = BTreeMap::new();
        for (page, size) in &node.huge_pages {
            let kind = huge_page_name(*page);
            let table = Table::new(*size, reserved(&kind), *size);
            tables.insert(kind, table);
        }
        let left = node.memory.saturating_sub(node.huge_pages.values().sum());
        tables.insert("memory".to_owned(), Table::new(node.memory, reserved("memory"), left));
        machine.add(*number, tables);
    }
    machine
}

/// What a container has for itself: memory and huge pages of a pod that is guaranteed all that it asks for. Pods that ask as
/// a whole are not served.
fn asked_by(pod: &Pod, container: &Container) -> Sizes {
    let as_whole = pod.spec.as_ref().and_then(|s| s.resources.as_ref()).is_some();
    if as_whole || cgroups::qos_class(pod) != "Guaranteed" {
        return Sizes::new();
    }
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|r| r.limits.as_ref());
    let requests = resources.and_then(|r| r.requests.as_ref()).or(limits);
    let is_memory = |name: &str| name == "memory" || name.starts_with("hugepages-");
    let all = requests.into_iter().flatten().filter(|(name, _)| is_memory(name));
    all.filter_map(|(name, q)| Some((name.clone(), u64::try_from(cgroups::whole(q)?).ok()?))).collect()
}

/// What the pod needs at the most demanding moment of its life.
fn asked_by_all(pod: &Pod) -> Sizes {
    let (mut sidecars, mut peak) = (Sizes::new(), Sizes::new());
    for init in plan::init_containers(pod) {
        for (kind, size) in asked_by(pod, init) {
            let beside = sidecars.entry(kind.clone()).or_default();
            if plan::is_sidecar(init) {
                *beside += size;
            } else {
                let most = peak.entry(kind).or_default();
                *most = (*most).max(*beside + size);
            }
        }
    }
    let mut all = sidecars;
    for container in plan::containers(pod) {
        for (kind, size) in asked_by(pod, container) {
            *all.entry(kind).or_default() += size;
        }
    }
    for (kind, size) in &mut all {
        *size = (*size).max(peak.get(kind).copied().unwrap_or_default());
    }
    all
}

/// What init containers of the pod that have ended by then leave on exactly these nodes.
fn reusable(given: &State, pod: &Pod, mask: Mask, kind: &str) -> u64 {
    let held = given.entries.get(pod.metadata.uid.as_deref().unwrap_or_default());
    let past = plan::init_containers(pod).iter().filter(|c| !plan::is_sidecar(c));
    let blocks = past.filter_map(|c| held?.get(&c.name)).flatten();
    blocks.filter(|b| b.kind == kind && b.mask() == mask).map(|b| b.size).sum()
}

/// What a container reuses of init containers is counted as its own from now on, and not as theirs.
fn leave_to(given: &mut State, pod: &Pod, container: &Container, block: &Block, mut reused: u64) {
    let Some(held) = given.entries.get_mut(pod.metadata.uid.as_deref().unwrap_or_default()) else { return };
    for init in plan::init_containers(pod).iter().filter(|c| !plan::is_sidecar(c) && c.name != container.name) {
        let blocks = held.get_mut(&init.name).into_iter().flatten();
        for theirs in blocks.filter(|b| b.kind == block.kind && b.mask() == block.mask()) {
            let part = theirs.size.min(reused);
            theirs.size -= part;
            reused -= part;
        }
    }
}

fn hints_for(given: &State, pod: &Pod, asked: &Sizes) -> Vec<Hint> {
    let machine = &given.machine_state;
    let nodes = machine.nodes();
    let mut least = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
    let mut fitting = Vec::new();
    for mask in masks(&nodes) {
        if asked.iter().any(|(kind, size)| machine.allocatable(mask, kind) < *size) {
            continue;
        }
        least = least.min(mask.count());
        let has_free =
            asked.iter().all(|(kind, size)| machine.free(mask, kind) + reusable(given, pod, mask, kind) >= *size);
        if has_free && !machine.breaks_groups(mask) {
            fitting.push(mask);
        }
    }
    fitting.into_iter().map(|mask| Hint { mask: Some(mask), preferred: mask.count() == least }).collect()
}

/// The narrowest of the preferred ones, else the narrowest.
fn best_of(hints: Vec<Hint>) -> Option<Hint> {
    let width = |hint: &Hint| hint.mask.map(|mask| (mask.count(), mask));
    hints.into_iter().min_by_key(|hint| (!hint.preferred, width(hint)))
}

/// The nodes that were decided upon, or as many more as it takes.
fn choose(given: &State, pod: &Pod, asked: &Sizes, hint: Hint) -> Result<Mask, String> {
    let mut preferred = hint.preferred;
    let mask = match hint.mask {
        Some(mask) => mask,
        None => {
            let best = best_of(hints_for(given, pod, asked)).ok_or(
                "[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available",
            )?;
            if hint.preferred && !best.preferred {
                return Err("[memorymanager] failed to find the default preferred hint".to_owned());
            }
            preferred = best.preferred;
            best.mask.unwrap_or_default()
        }
    };
    let is_enough = |mask: Mask| asked.iter().all(|(kind, size)| given.machine_state.free(mask, kind) >= *size);
    let with_reused = |mask: Mask| {
        asked
            .iter()
            .all(|(kind, size)| given.machine_state.free(mask, kind) + reusable(given, pod, mask, kind) >= *size)
    };
    if is_enough(mask) || with_reused(mask) {
        return Ok(mask);
    }
    let wider = hints_for(given, pod, asked).into_iter().filter(|h| h.mask.is_some_and(|m| m.contains(mask)));
    let best = best_of(wider.collect())
        .ok_or("[memorymanager] failed to find NUMA nodes to extend the current topology hint")?;
    if preferred && !best.preferred {
        return Err("[memorymanager] failed to find the extended preferred hint".to_owned());
    }
    Ok(best.mask.unwrap_or_default())
}

#[cfg(test)]
mod tests;
