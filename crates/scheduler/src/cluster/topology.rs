//! Columns of topology: for each topology key that somebody asked about, the domain that each node is in.

use std::collections::HashMap;
use std::sync::Arc;

use super::NodeIdx;
use crate::selector::Labels;

/// A topology key that has a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopologyId(usize);

/// A value of a topology key, as a small number: of use as an index only, and only while a node is in the domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Domain(u32);

impl Domain {
    const NONE: u32 = u32::MAX;

    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug, Default)]
pub struct Topology {
    ids: HashMap<Arc<str>, TopologyId>,
    columns: Vec<Column>,
}

#[derive(Debug)]
struct Column {
    key: Arc<str>,
    /// The domain of each node.
    domains: Vec<u32>,
    values: HashMap<Box<str>, u32>,
    /// By domain: its nodes. A domain without nodes is free to be used for another value.
    nodes: Vec<u32>,
    free: Vec<u32>,
}

impl Topology {
    pub(super) fn id(&self, key: &str) -> Option<TopologyId> {
        self.ids.get(key).copied()
    }

    /// Adds a column over the nodes that `labels` gives, in the order of their numbers.
    pub(super) fn add<'a>(&mut self, key: &str, labels: impl Iterator<Item = Option<&'a Labels>>) -> TopologyId {
        let key: Arc<str> = key.into();
        let id = TopologyId(self.columns.len());
        let (domains, values, nodes, free) = (Vec::new(), HashMap::new(), Vec::new(), Vec::new());
        let mut column = Column { key: key.clone(), domains, values, nodes, free };
        for (at, labels) in labels.enumerate() {
            column.set(NodeIdx::new(at), labels);
        }
        self.columns.push(column);
        self.ids.insert(key, id);
        id
    }

    /// Takes over a node's labels; without labels the node is in no domain.
    pub(super) fn set(&mut self, node: NodeIdx, labels: Option<&Labels>) {
        for column in &mut self.columns {
            column.set(node, labels);
        }
    }

    #[must_use]
    pub fn domain(&self, id: TopologyId, node: NodeIdx) -> Option<Domain> {
        let domain = *self.columns[id.0].domains.get(node.at())?;
        (domain != Domain::NONE).then_some(Domain(domain))
    }

    /// A number that every domain's index is below.
    #[must_use]
    pub fn bound(&self, id: TopologyId) -> usize {
        self.columns[id.0].nodes.len()
    }

    /// The domain of a value, if a node has it.
    #[must_use]
    pub fn domain_of(&self, id: TopologyId, value: &str) -> Option<Domain> {
        self.columns[id.0].values.get(value).copied().map(Domain)
    }
}

impl Column {
    fn set(&mut self, node: NodeIdx, labels: Option<&Labels>) {
        if self.domains.len() <= node.at() {
            self.domains.resize(node.at() + 1, Domain::NONE);
        }
        let value = labels.and_then(|labels| labels.get(&*self.key));
        let new = value.map_or(Domain::NONE, |value| self.enter(value));
        let old = std::mem::replace(&mut self.domains[node.at()], new);
        if old != Domain::NONE {
            self.leave(old);
        }
    }

    fn enter(&mut self, value: &str) -> u32 {
        if let Some(domain) = self.values.get(value) {
            self.nodes[*domain as usize] += 1;
            return *domain;
        }
        let domain = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(0);
            // Domains are at most as many as nodes, which are counted in 32 bits.
            u32::try_from(self.nodes.len() - 1).unwrap_or(Domain::NONE)
        });
        self.nodes[domain as usize] = 1;
        self.values.insert(value.into(), domain);
        domain
    }

    fn leave(&mut self, domain: u32) {
        self.nodes[domain as usize] -= 1;
        if self.nodes[domain as usize] == 0 {
            self.values.retain(|_, own| *own != domain);
            self.free.push(domain);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(value: &str) -> Labels {
        [("zone".to_owned(), value.to_owned())].into()
    }

    #[test]
    fn nodes_of_one_value_share_a_domain() {
        let mut topology = Topology::default();
        let labels = [zone("a"), zone("b"), zone("a"), Labels::new()];
        let id = topology.add("zone", labels.iter().map(Some));
        let domain = |topology: &Topology, at| topology.domain(id, NodeIdx::new(at));
        assert_eq!(domain(&topology, 0), domain(&topology, 2));
        assert_ne!(domain(&topology, 0), domain(&topology, 1));
        assert_eq!((domain(&topology, 3), domain(&topology, 9)), (None, None));
        assert_eq!((topology.id("zone"), topology.bound(id)), (Some(id), 2));
    }

    #[test]
    fn a_domain_without_nodes_is_used_again() {
        let mut topology = Topology::default();
        let id = topology.add("zone", [zone("a"), zone("b")].iter().map(Some));
        let old = topology.domain_of(id, "b").unwrap();
        topology.set(NodeIdx::new(1), Some(&zone("a")));
        assert_eq!(topology.domain_of(id, "b"), None);
        topology.set(NodeIdx::new(1), None);
        topology.set(NodeIdx::new(5), Some(&zone("c")));
        assert_eq!(topology.domain_of(id, "c"), Some(old));
        assert_eq!(topology.bound(id), 2);
    }
}
