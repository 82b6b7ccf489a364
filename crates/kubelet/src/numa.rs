//! The machine's NUMA nodes: which CPUs and how much memory each has, and how far they are from each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::cgroups;
use crate::cpus::{self, CpuSet};

/// A set of NUMA nodes, one bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mask(u64);

impl Mask {
    pub(crate) fn of(nodes: impl IntoIterator<Item = usize>) -> Self {
        Mask(nodes.into_iter().filter(|node| *node < 64).fold(0, |bits, node| bits | 1 << node))
    }

    pub(crate) fn count(self) -> u32 {
        self.0.count_ones()
    }

    pub(crate) fn has(self, node: usize) -> bool {
        node < 64 && self.0 & (1 << node) != 0
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Mask(self.0 & other.0)
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn contains(self, other: Self) -> bool {
        self.and(other) == other
    }

    pub(crate) fn nodes(self) -> impl Iterator<Item = usize> {
        (0..64).filter(move |node| self.has(*node))
    }

    /// Fewer nodes; of as many, those with the lower numbers.
    pub(crate) fn is_narrower_than(self, other: Self) -> bool {
        (self.count(), self) < (other.count(), other)
    }
}

/// All sets of these nodes but the empty one, the small ones first.
pub(crate) fn masks(nodes: &[usize]) -> Vec<Mask> {
    let count = nodes.len().min(16); // more of them than any policy takes
    let chosen = |bits: u64| Mask::of((0..count).filter(|i| bits & (1 << i) != 0).map(|i| nodes[i]));
    let mut all: Vec<Mask> = (1..1u64 << count).map(chosen).collect();
    all.sort_by_key(|mask| (mask.count(), *mask));
    all
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Node {
    pub cpus: CpuSet,
    /// In bytes.
    pub memory: u64,
    /// By the size of a page, the size of all; both in bytes.
    pub huge_pages: BTreeMap<u64, u64>,
    /// To each node in turn, as the firmware has it: 10 to itself.
    pub distances: Vec<u32>,
}

pub(crate) type Nodes = BTreeMap<usize, Node>;

/// The nodes that the kernel tells of below `/sys/devices/system/node`; one that has everything where it tells of none.
pub(crate) fn look(dir: &Path, all_cpus: &CpuSet, all_memory: u64) -> Nodes {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let numbers: BTreeSet<usize> = cpus::parse(&read(&dir.join("online"))).unwrap_or_default();
    let nodes: Nodes = numbers
        .into_iter()
        .map(|number| {
            let dir = dir.join(format!("node{number}"));
            let memory = read(&dir.join("meminfo"));
            let kib = |line: &str| -> Option<u64> {
                line.split_once("MemTotal:")?.1.trim().strip_suffix(" kB")?.parse().ok()
            };
            let node = Node {
                cpus: cpus::parse(&read(&dir.join("cpulist"))).unwrap_or_default(),
                memory: memory.lines().find_map(kib).unwrap_or_default() * 1024,
                huge_pages: huge_pages(&dir.join("hugepages")),
                distances: read(&dir.join("distance")).split_whitespace().filter_map(|n| n.parse().ok()).collect(),
            };
            (number, node)
        })
        .collect();
    if nodes.is_empty() {
        let node = Node { cpus: all_cpus.clone(), memory: all_memory, distances: vec![10], ..Node::default() };
        return Nodes::from([(0, node)]);
    }
    nodes
}

/// The resource that pages of this size, in bytes, are.
pub(crate) fn huge_page_name(size: u64) -> String {
    format!("hugepages-{}", cgroups::show_binary(size))
}

/// Bytes in huge pages of all nodes, by resource.
pub(crate) fn huge_pages_of(nodes: &Nodes) -> BTreeMap<String, i64> {
    let mut all = BTreeMap::new();
    for (size, bytes) in nodes.values().flat_map(|node| &node.huge_pages) {
        *all.entry(huge_page_name(*size)).or_default() += i64::try_from(*bytes).unwrap_or(i64::MAX / 1000);
    }
    all
}

fn huge_pages(dir: &Path) -> BTreeMap<u64, u64> {
    let sizes = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let of = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let size = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok()? * 1024;
        let count: u64 = std::fs::read_to_string(entry.path().join("nr_hugepages")).ok()?.trim().parse().ok()?;
        Some((size, size * count))
    };
    sizes.filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_nodes_come_small_ones_first() {
        let all: Vec<Vec<usize>> = masks(&[0, 1, 3]).into_iter().map(|m| m.nodes().collect()).collect();
        assert_eq!(all, [vec![0], vec![1], vec![3], vec![0, 1], vec![0, 3], vec![1, 3], vec![0, 1, 3]]);
        assert!(Mask::of([3]).is_narrower_than(Mask::of([0, 1])));
        assert!(Mask::of([0, 3]).is_narrower_than(Mask::of([1, 3])));
    }

    #[test]
    fn nodes_are_as_the_kernel_tells() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put("online", "0-1\n");
        put("node0/cpulist", "0-1\n");
        put("node0/meminfo", "Node 0 MemTotal:       1024 kB\nNode 0 MemFree: 1 kB\n");
        put("node0/distance", "10 21\n");
        put("node0/hugepages/hugepages-2048kB/nr_hugepages", "3\n");
        put("node1/cpulist", "2-3\n");
        let nodes = look(dir.path(), &CpuSet::new(), 0);
        let first = Node {
            cpus: [0, 1].into(),
            memory: 1 << 20,
            huge_pages: [(2 << 20, 6 << 20)].into(),
            distances: vec![10, 21],
        };
        assert_eq!((&nodes[&0], &nodes[&1].cpus), (&first, &[2, 3].into()));
        assert_eq!(huge_pages_of(&nodes), [("hugepages-2Mi".to_owned(), 6 << 20)].into());
        let alone = look(&dir.path().join("none"), &[7].into(), 5);
        assert_eq!((alone.len(), alone[&0].memory, &alone[&0].cpus), (1, 5, &[7].into()));
    }
}
