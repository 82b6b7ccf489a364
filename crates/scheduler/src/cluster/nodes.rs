//! The columns: what is known of nodes, one array a fact, so that a pass over thousands of nodes touches only the facts it
//! is about.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};

use super::changes::{ChangeLog, Mark};
use super::images::Images;
use super::topology::{Domain, Topology, TopologyId};
use crate::pod::{HostPort, PodInfo, Uid};
use crate::resources::{Resources, ScalarId, ScalarNames, allocatable_of};
use crate::selector::{Labels, labels_of};

/// A node's place in the columns. It belongs to one node as long as that or a pod on it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIdx(u32);

impl NodeIdx {
    /// # Panics
    /// Beyond four billion nodes.
    #[must_use]
    pub fn new(at: usize) -> Self {
        Self(u32::try_from(at).expect("fewer nodes than fit 32 bits"))
    }

    #[must_use]
    pub fn at(self) -> usize {
        self.0 as usize
    }
}

/// A resource that nodes have an amount of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    /// In thousandths of a core.
    Cpu,
    Memory,
    EphemeralStorage,
    Scalar(ScalarId),
}

/// One amount of each resource for each node.
#[derive(Debug, Default)]
struct ResourceColumns {
    milli_cpu: Vec<i64>,
    memory: Vec<i64>,
    ephemeral_storage: Vec<i64>,
    /// By [`ScalarId`]; empty where no node has had any.
    scalars: Vec<Vec<i64>>,
}

impl ResourceColumns {
    fn grow(&mut self) {
        self.milli_cpu.push(0);
        self.memory.push(0);
        self.ephemeral_storage.push(0);
    }

    fn get(&self, resource: Resource, node: NodeIdx) -> i64 {
        match resource {
            Resource::Cpu => self.milli_cpu[node.at()],
            Resource::Memory => self.memory[node.at()],
            Resource::EphemeralStorage => self.ephemeral_storage[node.at()],
            Resource::Scalar(id) => {
                self.scalars.get(id.index()).and_then(|column| column.get(node.at())).copied().unwrap_or_default()
            }
        }
    }

    fn add(&mut self, node: NodeIdx, amounts: &Resources, sign: i64) {
        self.milli_cpu[node.at()] += sign * amounts.milli_cpu;
        self.memory[node.at()] += sign * amounts.memory;
        self.ephemeral_storage[node.at()] += sign * amounts.ephemeral_storage;
        for (id, amount) in &amounts.scalars {
            *self.scalar(node, *id) += sign * amount;
        }
    }

    fn set(&mut self, node: NodeIdx, amounts: &Resources) {
        self.milli_cpu[node.at()] = amounts.milli_cpu;
        self.memory[node.at()] = amounts.memory;
        self.ephemeral_storage[node.at()] = amounts.ephemeral_storage;
        for column in &mut self.scalars {
            if let Some(amount) = column.get_mut(node.at()) {
                *amount = 0;
            }
        }
        for (id, amount) in &amounts.scalars {
            *self.scalar(node, *id) = *amount;
        }
    }

    fn scalar(&mut self, node: NodeIdx, id: ScalarId) -> &mut i64 {
        if self.scalars.len() <= id.index() {
            self.scalars.resize_with(id.index() + 1, Vec::new);
        }
        let column = &mut self.scalars[id.index()];
        if column.len() <= node.at() {
            column.resize(node.at() + 1, 0);
        }
        &mut column[node.at()]
    }
}

#[derive(Debug, Default)]
pub struct Nodes {
    index: HashMap<Arc<str>, NodeIdx>,
    free: Vec<NodeIdx>,
    /// How many have an object.
    present: usize,
    names: Vec<Arc<str>>,
    /// `None` for a node that only pods speak of.
    objects: Vec<Option<Arc<Node>>>,
    unschedulable: Vec<bool>,
    allowed_pods: Vec<i64>,
    allocatable: ResourceColumns,
    requested: ResourceColumns,
    non_zero_cpu: Vec<i64>,
    non_zero_memory: Vec<i64>,
    pods: Vec<Vec<Arc<PodInfo>>>,
    ports: Vec<Vec<HostPort>>,
    pub(super) topology: Topology,
    pub(super) images: Images,
    changes: ChangeLog,
    /// Goes up when something changes that concerns every node: their number, or where images are.
    epoch: u64,
}

impl Nodes {
    /// How many nodes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.present
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.present == 0
    }

    /// How long the columns are; some places may be empty.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.names.len()
    }

    #[must_use]
    pub fn find(&self, name: &str) -> Option<NodeRef<'_>> {
        self.get(*self.index.get(name)?)
    }

    /// The node at a place, unless the place is empty.
    #[must_use]
    pub fn get(&self, at: NodeIdx) -> Option<NodeRef<'_>> {
        let object = self.objects.get(at.at())?.as_ref()?;
        Some(NodeRef { nodes: self, at, object })
    }

    pub fn iter(&self) -> impl Iterator<Item = NodeRef<'_>> {
        (0..self.capacity()).filter_map(|at| self.get(NodeIdx::new(at)))
    }

    #[must_use]
    pub fn mark(&self) -> Mark {
        self.changes.mark()
    }

    pub(crate) fn changed_since(&self, mark: Mark) -> Option<impl Iterator<Item = NodeIdx> + '_> {
        self.changes.since(mark)
    }

    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    #[must_use]
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// The column of a topology key, made if there is none.
    pub(super) fn topology_id(&mut self, key: &str) -> TopologyId {
        if let Some(id) = self.topology.id(key) {
            return id;
        }
        let labels = self.objects.iter().map(|object| object.as_deref().map(labels_of_node));
        self.topology.add(key, labels)
    }

    /// The pods on a node, whether or not the node is known.
    pub(super) fn pods_at(&self, at: NodeIdx) -> &[Arc<PodInfo>] {
        &self.pods[at.at()]
    }

    pub(super) fn place(&mut self, name: &str) -> NodeIdx {
        if let Some(at) = self.index.get(name) {
            return *at;
        }
        let name: Arc<str> = name.into();
        let at = if let Some(at) = self.free.pop() {
            self.names[at.at()] = name.clone();
            at
        } else {
            let at = NodeIdx::new(self.names.len());
            self.names.push(name.clone());
            self.objects.push(None);
            self.unschedulable.push(false);
            self.allowed_pods.push(0);
            self.allocatable.grow();
            self.requested.grow();
            self.non_zero_cpu.push(0);
            self.non_zero_memory.push(0);
            self.pods.push(Vec::new());
            self.ports.push(Vec::new());
            at
        };
        self.index.insert(name, at);
        at
    }

    /// Takes over a node's object; `None` when it is gone. A place that nothing speaks of any more is free for another
    /// node.
    pub(super) fn set(&mut self, at: NodeIdx, object: Option<Arc<Node>>, names: &mut ScalarNames) {
        let was = self.objects[at.at()].is_some();
        self.topology.set(at, object.as_deref().map(labels_of_node));
        let images_moved = self.images.set(at, object.as_deref());
        let status = object.as_ref().and_then(|node| node.status.as_ref());
        let allocatable = status.and_then(|status| status.allocatable.as_ref());
        self.allocatable.set(at, &allocatable.map(|list| allocatable_of(list, names)).unwrap_or_default());
        let pods = allocatable.and_then(|list| list.get("pods"));
        self.allowed_pods[at.at()] = pods.map_or(0, |quantity| crate::quantity::Amount::of(quantity).value());
        let spec = object.as_ref().and_then(|node| node.spec.as_ref());
        self.unschedulable[at.at()] = spec.and_then(|spec| spec.unschedulable).unwrap_or_default();
        let is = object.is_some();
        self.objects[at.at()] = object;
        self.present = self.present + usize::from(is) - usize::from(was);
        if is != was || images_moved {
            self.epoch += 1;
        }
        self.changes.push(at);
        self.forget_if_empty(at);
    }

    pub(super) fn add_pod(&mut self, at: NodeIdx, pod: Arc<PodInfo>) {
        self.put_pod(at, pod);
        self.changes.push(at);
    }

    pub(super) fn remove_pod(&mut self, at: NodeIdx, uid: &Uid) -> Option<Arc<PodInfo>> {
        let pod = self.take_pod(at, uid)?;
        self.changes.push(at);
        self.forget_if_empty(at);
        Some(pod)
    }

    /// As [`Self::add_pod`], for a while: nobody is told.
    pub(super) fn put_pod(&mut self, at: NodeIdx, pod: Arc<PodInfo>) {
        self.count_pod(at, &pod, 1);
        self.ports[at.at()].extend(pod.ports.iter().cloned());
        self.pods[at.at()].push(pod);
    }

    /// As [`Self::remove_pod`], for a while: nobody is told.
    pub(super) fn take_pod(&mut self, at: NodeIdx, uid: &Uid) -> Option<Arc<PodInfo>> {
        let position = self.pods[at.at()].iter().position(|pod| pod.uid == *uid)?;
        let pod = self.pods[at.at()].swap_remove(position);
        self.count_pod(at, &pod, -1);
        for port in &pod.ports {
            let ports = &mut self.ports[at.at()];
            if let Some(position) = ports.iter().position(|own| own == port) {
                ports.swap_remove(position);
            }
        }
        Some(pod)
    }

    /// The pod's object is another, and nothing that is counted changed.
    pub(super) fn replace_pod(&mut self, at: NodeIdx, pod: &Arc<PodInfo>) {
        if let Some(own) = self.pods[at.at()].iter_mut().find(|own| own.uid == pod.uid) {
            own.clone_from(pod);
        }
    }

    fn count_pod(&mut self, at: NodeIdx, pod: &PodInfo, sign: i64) {
        self.requested.add(at, &pod.requests.real, sign);
        let (cpu, memory) = pod.requests.non_zero;
        self.non_zero_cpu[at.at()] += sign * cpu;
        self.non_zero_memory[at.at()] += sign * memory;
    }

    fn forget_if_empty(&mut self, at: NodeIdx) {
        if self.objects[at.at()].is_none() && self.pods[at.at()].is_empty() {
            self.index.remove(&self.names[at.at()]);
            self.free.push(at);
        }
    }
}

fn labels_of_node(node: &Node) -> &Labels {
    labels_of(node.metadata.labels.as_ref())
}

/// One node, read through the columns.
#[derive(Clone, Copy, Debug)]
pub struct NodeRef<'a> {
    nodes: &'a Nodes,
    at: NodeIdx,
    object: &'a Arc<Node>,
}

impl<'a> NodeRef<'a> {
    #[must_use]
    pub fn idx(self) -> NodeIdx {
        self.at
    }

    #[must_use]
    pub fn nodes(self) -> &'a Nodes {
        self.nodes
    }

    #[must_use]
    pub fn name(self) -> &'a Arc<str> {
        &self.nodes.names[self.at.at()]
    }

    #[must_use]
    pub fn object(self) -> &'a Arc<Node> {
        self.object
    }

    #[must_use]
    pub fn labels(self) -> &'a Labels {
        labels_of_node(self.object)
    }

    #[must_use]
    pub fn taints(self) -> &'a [Taint] {
        self.object.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
    }

    #[must_use]
    pub fn is_unschedulable(self) -> bool {
        self.nodes.unschedulable[self.at.at()]
    }

    /// What pods may use of a resource.
    #[must_use]
    pub fn allocatable(self, resource: Resource) -> i64 {
        self.nodes.allocatable.get(resource, self.at)
    }

    /// What the pods on the node ask for.
    #[must_use]
    pub fn requested(self, resource: Resource) -> i64 {
        self.nodes.requested.get(resource, self.at)
    }

    /// As [`Self::requested`], with something assumed for containers that ask for no CPU or memory.
    #[must_use]
    pub fn non_zero_requested(self, resource: Resource) -> i64 {
        match resource {
            Resource::Cpu => self.nodes.non_zero_cpu[self.at.at()],
            Resource::Memory => self.nodes.non_zero_memory[self.at.at()],
            other => self.requested(other),
        }
    }

    #[must_use]
    pub fn allowed_pods(self) -> i64 {
        self.nodes.allowed_pods[self.at.at()]
    }

    #[must_use]
    pub fn pods(self) -> &'a [Arc<PodInfo>] {
        &self.nodes.pods[self.at.at()]
    }

    /// Ports of the host that are taken.
    #[must_use]
    pub fn ports(self) -> &'a [HostPort] {
        &self.nodes.ports[self.at.at()]
    }

    /// The column of a topology key, if somebody asked for one.
    #[must_use]
    pub fn topology(self, key: &str) -> Option<TopologyId> {
        self.nodes.topology.id(key)
    }

    #[must_use]
    pub fn domain(self, topology: TopologyId) -> Option<Domain> {
        self.nodes.topology.domain(topology, self.at)
    }
}
