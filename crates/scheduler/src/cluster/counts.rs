//! Columns of counts: for each selection of pods that some constraint asks about, how many such pods each node has.
//!
//! A column is made when it is first asked for, by looking at every pod, and kept up to date from then on.

use std::collections::HashMap;
use std::sync::Arc;

use super::NodeIdx;
use crate::pod::{PodInfo, PodSelection};
use crate::selector::Labels;

/// Which pods are counted: those that all of the selections select.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CountKey {
    pub all_of: Box<[PodSelection]>,
    /// Leave out pods that are being deleted.
    pub skip_terminating: bool,
}

impl CountKey {
    fn counts(&self, pod: &PodInfo, namespace_labels: &Labels) -> bool {
        !(self.skip_terminating && pod.is_terminating())
            && self.all_of.iter().all(|s| s.matches(pod.namespace(), pod.labels(), namespace_labels))
    }

    /// The only namespaces with pods that count, if they are known by name.
    fn namespaces(&self) -> Option<&[Box<str>]> {
        self.all_of.iter().find(|s| s.namespace_selector.is_none()).map(|s| &*s.namespaces)
    }
}

/// A column, good until the cluster changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountId(usize);

#[derive(Debug, Default)]
pub struct PodCounts {
    ids: HashMap<Arc<CountKey>, CountId>,
    /// `None`: free for another column.
    columns: Vec<Option<Column>>,
    /// Columns by the namespaces of their pods; those that may have pods of any stand under `anywhere`.
    by_namespace: HashMap<Box<str>, Vec<usize>>,
    anywhere: Vec<usize>,
    clock: u64,
}

#[derive(Debug)]
struct Column {
    key: Arc<CountKey>,
    counts: Vec<u32>,
    used: u64,
}

/// Columns that are kept; beyond, the half that was not used for longest goes.
const KEPT: usize = 512;

impl PodCounts {
    /// How many pods that the column counts are on the node.
    #[must_use]
    pub fn on_node(&self, id: CountId, node: NodeIdx) -> u32 {
        let column = self.columns[id.0].as_ref();
        column.and_then(|column| column.counts.get(node.at())).copied().unwrap_or_default()
    }

    pub(super) fn id(&mut self, key: &CountKey) -> Option<CountId> {
        let id = *self.ids.get(key)?;
        self.clock += 1;
        if let Some(column) = &mut self.columns[id.0] {
            column.used = self.clock;
        }
        Some(id)
    }

    /// Adds a column for the pods of `all`, each with its node and the labels of its namespace.
    pub(super) fn add<'a>(
        &mut self,
        key: CountKey,
        all: impl Iterator<Item = (NodeIdx, &'a PodInfo, &'a Labels)>,
    ) -> CountId {
        if self.ids.len() >= KEPT {
            self.forget_half();
        }
        self.clock += 1;
        let mut column = Column { key: Arc::new(key), counts: Vec::new(), used: self.clock };
        for (node, pod, namespace_labels) in all {
            column.change(node, pod, namespace_labels, true);
        }
        let free = self.columns.iter().position(Option::is_none);
        let id = CountId(free.unwrap_or(self.columns.len()));
        match column.key.namespaces() {
            Some(namespaces) => {
                for namespace in namespaces {
                    self.by_namespace.entry(namespace.clone()).or_default().push(id.0);
                }
            }
            None => self.anywhere.push(id.0),
        }
        self.ids.insert(column.key.clone(), id);
        if free.is_some() {
            self.columns[id.0] = Some(column);
        } else {
            self.columns.push(Some(column));
        }
        id
    }

    /// A pod came to a node or left it.
    pub(super) fn change(&mut self, node: NodeIdx, pod: &PodInfo, namespace_labels: &Labels, came: bool) {
        let here = self.by_namespace.get(pod.namespace()).into_iter().flatten();
        for at in here.chain(&self.anywhere) {
            if let Some(column) = &mut self.columns[*at] {
                column.change(node, pod, namespace_labels, came);
            }
        }
    }

    /// Drops the columns that depend on the labels of namespaces, because these changed.
    pub(super) fn forget_namespace_selectors(&mut self) {
        self.forget(|column| column.key.all_of.iter().any(|s| s.namespace_selector.is_some()));
    }

    fn forget_half(&mut self) {
        let mut used: Vec<u64> = self.columns.iter().flatten().map(|column| column.used).collect();
        let half = used.len() / 2;
        let (_, middle, _) = used.select_nth_unstable(half);
        let middle = *middle;
        self.forget(|column| column.used < middle);
    }

    fn forget(&mut self, which: impl Fn(&Column) -> bool) {
        for slot in &mut self.columns {
            if slot.as_ref().is_some_and(&which) {
                *slot = None;
            }
        }
        let columns = &self.columns;
        self.ids.retain(|_, id| columns[id.0].is_some());
        self.anywhere.retain(|at| columns[*at].is_some());
        self.by_namespace.retain(|_, list| {
            list.retain(|at| columns[*at].is_some());
            !list.is_empty()
        });
    }
}

impl Column {
    fn change(&mut self, node: NodeIdx, pod: &PodInfo, namespace_labels: &Labels, came: bool) {
        if !self.key.counts(pod, namespace_labels) {
            return;
        }
        if self.counts.len() <= node.at() {
            self.counts.resize(node.at() + 1, 0);
        }
        let count = &mut self.counts[node.at()];
        *count = if came { *count + 1 } else { count.saturating_sub(1) };
    }
}
