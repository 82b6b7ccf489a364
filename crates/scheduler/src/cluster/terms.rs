//! Which affinity terms the pods on nodes have, and in which domains: what existing pods say about pods to come.

use std::collections::HashMap;

use super::NodeIdx;
use super::topology::{Topology, TopologyId};
use crate::pod::{AffinityTerm, PodInfo};
use crate::selector::Labels;

/// What a term is for the pod that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TermKind {
    Required,
    RequiredAnti,
    /// With its weight, negative for anti-affinity.
    Preferred(i64),
}

/// A term that pods on nodes have.
#[derive(Debug)]
pub struct OwnedTerm {
    pub kind: TermKind,
    pub term: AffinityTerm,
    pub topology: TopologyId,
    /// How many pods with the term are in each domain.
    pub domains: Vec<u32>,
    pods: usize,
}

#[derive(Debug, Default)]
pub struct OwnedTerms {
    ids: HashMap<(TermKind, AffinityTerm), usize>,
    terms: Vec<Option<OwnedTerm>>,
    free: Vec<usize>,
    /// Terms by the namespaces that they name; those with a selector of namespaces stand under `anywhere`.
    by_namespace: HashMap<Box<str>, Vec<usize>>,
    anywhere: Vec<usize>,
}

impl OwnedTerms {
    /// The terms that mean the pod.
    pub fn matching<'a>(
        &'a self,
        pod: &'a PodInfo,
        namespace_labels: &'a Labels,
    ) -> impl Iterator<Item = &'a OwnedTerm> {
        let here = self.by_namespace.get(pod.namespace()).into_iter().flatten();
        let candidates = here.chain(&self.anywhere).filter_map(|at| self.terms[*at].as_ref());
        candidates.filter(|own| own.term.pods.matches(pod.namespace(), pod.labels(), namespace_labels))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// A pod with terms came to a node or left it. Every term's topology has a column by then.
    pub(super) fn change(&mut self, node: NodeIdx, pod: &PodInfo, topology: &Topology, came: bool) {
        for (kind, term) in terms_of(pod) {
            let Some(id) = topology.id(&term.topology_key) else { continue };
            let at = match self.ids.get(&(kind, term.clone())) {
                Some(at) => *at,
                None if came => self.insert(kind, term, id),
                None => continue,
            };
            let Some(own) = &mut self.terms[at] else { continue };
            if let Some(domain) = topology.domain(id, node) {
                if own.domains.len() <= domain.index() {
                    own.domains.resize(domain.index() + 1, 0);
                }
                let count = &mut own.domains[domain.index()];
                *count = if came { *count + 1 } else { count.saturating_sub(1) };
            }
            own.pods = if came { own.pods + 1 } else { own.pods - 1 };
            if own.pods == 0 {
                self.remove(at);
            }
        }
    }

    fn insert(&mut self, kind: TermKind, term: &AffinityTerm, topology: TopologyId) -> usize {
        let own = OwnedTerm { kind, term: term.clone(), topology, domains: Vec::new(), pods: 0 };
        let at = self.free.pop().unwrap_or_else(|| {
            self.terms.push(None);
            self.terms.len() - 1
        });
        if own.term.pods.namespace_selector.is_some() {
            self.anywhere.push(at);
        } else {
            for namespace in &own.term.pods.namespaces {
                self.by_namespace.entry(namespace.clone()).or_default().push(at);
            }
        }
        self.ids.insert((kind, term.clone()), at);
        self.terms[at] = Some(own);
        at
    }

    fn remove(&mut self, at: usize) {
        let Some(own) = self.terms[at].take() else { return };
        self.anywhere.retain(|own| *own != at);
        for namespace in &own.term.pods.namespaces {
            if let Some(list) = self.by_namespace.get_mut(namespace) {
                list.retain(|own| *own != at);
                if list.is_empty() {
                    self.by_namespace.remove(namespace);
                }
            }
        }
        self.ids.remove(&(own.kind, own.term));
        self.free.push(at);
    }
}

/// A pod's terms, each with what it is.
pub fn terms_of(pod: &PodInfo) -> impl Iterator<Item = (TermKind, &AffinityTerm)> {
    pod.affinity.iter().flat_map(|affinity| {
        let required = affinity.required.iter().map(|term| (TermKind::Required, term));
        let anti = affinity.required_anti.iter().map(|term| (TermKind::RequiredAnti, term));
        let preferred = affinity.preferred.iter().map(|w| (TermKind::Preferred(w.weight), &w.term));
        required.chain(anti).chain(preferred)
    })
}
