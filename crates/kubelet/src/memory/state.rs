//! The books of the memory manager, as they stand in `memory_manager_state`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;
use crate::numa::Mask;

/// One kind of memory on one node, in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Table {
    total: u64,
    system_reserved: u64,
    allocatable: u64,
    reserved: u64,
    free: u64,
}

impl Table {
    /// `left` is what is not taken for huge pages.
    pub(super) fn new(total: u64, system_reserved: u64, left: u64) -> Self {
        let allocatable = left.saturating_sub(system_reserved);
        Table { total, system_reserved, allocatable, reserved: 0, free: allocatable }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    number_of_assignments: i64,
    memory_map: BTreeMap<String, Table>,
    /// Itself and the nodes that it is used together with.
    cells: Vec<usize>,
}

/// By NUMA node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Machine(BTreeMap<usize, Node>);

/// Memory that a container has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Block {
    pub numa_affinity: Vec<usize>,
    #[serde(rename = "type")]
    pub kind: String,
    pub size: u64,
}

impl Block {
    pub(super) fn mask(&self) -> Mask {
        Mask::of(self.numa_affinity.iter().copied())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct State {
    pub policy_name: String,
    pub machine_state: Machine,
    /// By pod uid and container name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub entries: BTreeMap<String, BTreeMap<String, Vec<Block>>>,
    checksum: u32,
}

impl State {
    /// Of a machine of which nobody has anything.
    pub(super) fn of(machine_state: Machine) -> Self {
        State { policy_name: "Static".to_owned(), machine_state, entries: BTreeMap::new(), checksum: 0 }
    }

    pub(super) fn all_blocks(&self) -> impl Iterator<Item = (&String, &String, &Vec<Block>)> {
        self.entries.iter().flat_map(|(uid, pod)| pod.iter().map(move |(name, blocks)| (uid, name, blocks)))
    }
}

impl Machine {
    pub(super) fn add(&mut self, number: usize, memory_map: BTreeMap<String, Table>) {
        self.0.insert(number, Node { number_of_assignments: 0, memory_map, cells: vec![number] });
    }

    pub(super) fn nodes(&self) -> Vec<usize> {
        self.0.keys().copied().collect()
    }

    fn sum(&self, mask: Mask, kind: &str, of: impl Fn(&Table) -> u64) -> u64 {
        mask.nodes().filter_map(|node| self.0.get(&node)?.memory_map.get(kind)).map(of).sum()
    }

    pub(super) fn free(&self, mask: Mask, kind: &str) -> u64 {
        self.sum(mask, kind, |table| table.free)
    }

    pub(super) fn allocatable(&self, mask: Mask, kind: &str) -> u64 {
        self.sum(mask, kind, |table| table.allocatable)
    }

    /// Whether there is what a block is of.
    pub(super) fn has(&self, block: &Block) -> bool {
        let of_node = |node: &usize| self.0.get(node).is_some_and(|n| n.memory_map.contains_key(&block.kind));
        block.numa_affinity.iter().all(of_node)
    }

    /// Whether these nodes, used together, would mix with what they are used for already.
    pub(super) fn breaks_groups(&self, mask: Mask) -> bool {
        let nodes = || mask.nodes().filter_map(|node| self.0.get(&node));
        if mask.count() == 1 {
            return nodes().any(|node| node.cells.len() > 1);
        }
        nodes().any(|node| node.number_of_assignments > 0 && Mask::of(node.cells.iter().copied()) != mask)
    }

    /// Counts a block, and takes so many bytes for it, from the first node as far as they go.
    pub(super) fn take(&mut self, block: &Block, mut bytes: u64) {
        for number in &block.numa_affinity {
            let Some(node) = self.0.get_mut(number) else { continue };
            node.number_of_assignments += 1;
            node.cells.clone_from(&block.numa_affinity);
            let Some(table) = node.memory_map.get_mut(&block.kind) else { continue };
            let part = table.free.min(bytes);
            table.free -= part;
            table.reserved += part;
            bytes -= part;
        }
    }

    pub(super) fn give_back(&mut self, block: &Block) {
        let mut bytes = block.size;
        for number in &block.numa_affinity {
            let Some(node) = self.0.get_mut(number) else { continue };
            node.number_of_assignments -= 1;
            if node.number_of_assignments == 0 {
                node.cells = vec![*number];
            }
            let Some(table) = node.memory_map.get_mut(&block.kind) else { continue };
            let part = table.reserved.min(bytes);
            table.free += part;
            table.reserved -= part;
            bytes -= part;
        }
    }
}

/// Whether both have the same nodes with the same memory, whoever uses it.
pub(super) fn same_size(a: &Machine, b: &Machine) -> bool {
    let size = |machine: &Machine| -> BTreeMap<(usize, String), (u64, u64, u64)> {
        let each = machine.0.iter().flat_map(|(number, node)| {
            let of =
                |(kind, t): (&String, &Table)| ((*number, kind.clone()), (t.total, t.system_reserved, t.allocatable));
            node.memory_map.iter().map(of)
        });
        each.collect()
    };
    size(a) == size(b)
}

impl Checkpoint for State {
    fn printed(&self) -> String {
        let spaced = |parts: Vec<String>| parts.join(" ");
        let numbers = |list: &[usize]| spaced(list.iter().map(ToString::to_string).collect());
        let table = |(kind, t): (&String, &Table)| {
            format!(
                "{kind}:<*>{{TotalMemSize:(uint64){} SystemReserved:(uint64){} Allocatable:(uint64){} Reserved:(uint64){} Free:(uint64){}}}",
                t.total, t.system_reserved, t.allocatable, t.reserved, t.free
            )
        };
        let node = |(number, n): (&usize, &Node)| {
            format!(
                "{number}:<*>{{NumberOfAssignments:(int){} MemoryMap:(map[v1.ResourceName]*state.MemoryTable)map[{}] Cells:([]int)[{}]}}",
                n.number_of_assignments,
                spaced(n.memory_map.iter().map(table).collect()),
                numbers(&n.cells)
            )
        };
        let block = |b: &Block| {
            let (nodes, kind, size) = (numbers(&b.numa_affinity), &b.kind, b.size);
            format!("{{NUMAAffinity:([]int)[{nodes}] Type:(v1.ResourceName){kind} Size:(uint64){size}}}")
        };
        let container =
            |(name, blocks): (&String, &Vec<Block>)| format!("{name}:[{}]", spaced(blocks.iter().map(block).collect()));
        let pod = |(uid, containers): (&String, &BTreeMap<String, Vec<Block>>)| {
            format!("{uid}:map[{}]", spaced(containers.iter().map(container).collect()))
        };
        format!(
            "(*state.MemoryManagerCheckpoint){{PolicyName:(string){} MachineState:(state.NUMANodeMap)map[{}] Entries:(state.ContainerMemoryAssignments)map[{}] Checksum:(checksum.Checksum)0}}",
            self.policy_name,
            spaced(self.machine_state.0.iter().map(node).collect()),
            spaced(self.entries.iter().map(pod).collect())
        )
    }

    fn sum(&mut self) -> &mut u32 {
        &mut self.checksum
    }
}
