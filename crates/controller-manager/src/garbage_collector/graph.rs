//! Who owns whom: every object of every kind that can be deleted, as nodes joined by owner references.
//!
//! The graph says what to look at, never what to do: before anything is written, the objects in question are read from
//! the server, so that a graph that is behind costs a look too many but no object.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

pub(super) type Uid = Arc<str>;

#[derive(Debug, PartialEq, Eq, Hash, Clone, PartialOrd, Ord)]
pub(super) struct GroupKind {
    pub(super) group: Arc<str>,
    pub(super) kind: Arc<str>,
}

/// Where an object is found; the namespace of a cluster-scoped one is empty.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(super) struct Coordinates {
    pub(super) kind: GroupKind,
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
}

#[derive(Debug, PartialEq, Eq, Clone)]
pub(super) struct Owner {
    pub(super) uid: Uid,
    pub(super) kind: GroupKind,
    pub(super) name: Arc<str>,
    /// The owner, when it is deleted in the foreground, waits for this dependent.
    pub(super) blocks: bool,
}

/// An object as its watch shows it.
#[derive(Debug, Clone)]
pub(super) struct Observed {
    pub(super) uid: Uid,
    pub(super) at: Coordinates,
    pub(super) owners: Vec<Owner>,
    pub(super) is_leaving: bool,
    /// Its dependents are to be deleted before it goes.
    pub(super) in_foreground: bool,
    /// Its dependents are to be left alone when it goes.
    pub(super) to_orphan: bool,
}

#[derive(Debug)]
struct Node {
    at: Coordinates,
    owners: Vec<Owner>,
    dependents: HashSet<Uid>,
    is_leaving: bool,
    in_foreground: bool,
    to_orphan: bool,
    /// Only known from the references of its dependents.
    is_virtual: bool,
}

/// What to look at after a change.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// Objects that may have to be deleted, or whose foreground deletion may go on.
    pub(super) examine: Vec<Uid>,
    /// Objects that go away and leave their dependents behind.
    pub(super) orphan: Vec<Uid>,
}

/// What an examination needs to know of a node.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(super) struct Facts {
    pub(super) at: Coordinates,
    pub(super) is_virtual: bool,
    pub(super) is_leaving: bool,
    pub(super) in_foreground: bool,
    pub(super) has_dependents: bool,
    /// Some dependent waits for dependents of its own.
    pub(super) has_waiting_dependent: bool,
}

#[derive(Debug, Default)]
pub(super) struct Graph {
    nodes: HashMap<Uid, Node>,
}

impl Graph {
    /// Takes in an object that is new or changed.
    pub(super) fn observe(&mut self, object: &Observed) -> Work {
        let mut work = Work::default();
        let uid = object.uid.clone();
        let (old_owners, was_in_foreground, was_to_orphan) = match self.nodes.get_mut(&uid) {
            Some(node) => {
                let before = (std::mem::take(&mut node.owners), node.in_foreground, node.to_orphan);
                node.at = object.at.clone();
                node.owners.clone_from(&object.owners);
                node.is_leaving = object.is_leaving;
                node.in_foreground = object.in_foreground;
                node.to_orphan = object.to_orphan;
                node.is_virtual = false;
                before
            }
            None => {
                let node = Node {
                    at: object.at.clone(),
                    owners: object.owners.clone(),
                    dependents: HashSet::new(),
                    is_leaving: object.is_leaving,
                    in_foreground: object.in_foreground,
                    to_orphan: object.to_orphan,
                    is_virtual: false,
                };
                self.nodes.insert(uid.clone(), node);
                (Vec::new(), false, false)
            }
        };
        self.release_owners(&uid, &old_owners, &object.owners, &mut work);
        self.join_owners(object, &old_owners, &mut work);
        if object.is_leaving && object.to_orphan && !was_to_orphan {
            work.orphan.push(uid.clone());
        }
        if object.is_leaving && object.in_foreground && !was_in_foreground {
            work.examine.extend(self.dependents_of(&uid));
            work.examine.push(uid);
        }
        work
    }

    /// Owners that lost a dependent, or that a dependent no longer holds up.
    fn release_owners(&mut self, uid: &Uid, old: &[Owner], new: &[Owner], work: &mut Work) {
        for owner in old {
            let still = new.iter().find(|candidate| candidate.uid == owner.uid);
            if still.is_none()
                && let Some(node) = self.nodes.get_mut(&owner.uid)
            {
                node.dependents.remove(uid);
            }
            if owner.blocks && still.is_none_or(|still| !still.blocks) && self.nodes.contains_key(&owner.uid) {
                work.examine.push(owner.uid.clone());
            }
        }
        self.drop_idle_virtuals(old);
    }

    fn join_owners(&mut self, object: &Observed, old: &[Owner], work: &mut Work) {
        for owner in object.owners.iter().filter(|owner| old.iter().all(|known| known.uid != owner.uid)) {
            let node = self.nodes.entry(owner.uid.clone()).or_insert_with(|| {
                // Whether it exists has to be looked up.
                work.examine.push(owner.uid.clone());
                Node {
                    at: Coordinates {
                        kind: owner.kind.clone(),
                        namespace: object.at.namespace.clone(),
                        name: owner.name.clone(),
                    },
                    owners: Vec::new(),
                    dependents: HashSet::new(),
                    is_leaving: false,
                    in_foreground: false,
                    to_orphan: false,
                    is_virtual: true,
                }
            });
            node.dependents.insert(object.uid.clone());
            // It joins an owner that is on its way out, or says of its owner something else than the owner is.
            if node.in_foreground || node.at.kind != owner.kind || node.at.name != owner.name {
                work.examine.push(object.uid.clone());
            }
        }
    }

    /// Takes out an object that is gone.
    pub(super) fn forget(&mut self, uid: &Uid) -> Work {
        let mut work = Work::default();
        let Some(node) = self.nodes.remove(uid) else { return work };
        work.examine.extend(node.dependents);
        for owner in &node.owners {
            if let Some(owner_node) = self.nodes.get_mut(&owner.uid) {
                owner_node.dependents.remove(uid);
                if owner_node.in_foreground {
                    work.examine.push(owner.uid.clone());
                }
            }
        }
        self.drop_idle_virtuals(&node.owners);
        work
    }

    /// A virtual node without dependents is of no use.
    fn drop_idle_virtuals(&mut self, owners: &[Owner]) {
        for owner in owners {
            if self.nodes.get(&owner.uid).is_some_and(|node| node.is_virtual && node.dependents.is_empty()) {
                self.nodes.remove(&owner.uid);
            }
        }
    }

    /// The real objects of a kind, for comparing with a new list.
    pub(super) fn of_kind(&self, kind: &GroupKind) -> HashSet<Uid> {
        let real = self.nodes.iter().filter(|(_, node)| !node.is_virtual && node.at.kind == *kind);
        real.map(|(uid, _)| uid.clone()).collect()
    }

    pub(super) fn facts(&self, uid: &Uid) -> Option<Facts> {
        let node = self.nodes.get(uid)?;
        let waits = |uid: &Uid| self.nodes.get(uid).is_some_and(|node| node.in_foreground);
        Some(Facts {
            at: node.at.clone(),
            is_virtual: node.is_virtual,
            is_leaving: node.is_leaving,
            in_foreground: node.in_foreground,
            has_dependents: !node.dependents.is_empty(),
            has_waiting_dependent: node.dependents.iter().any(waits),
        })
    }

    pub(super) fn dependents_of(&self, uid: &Uid) -> Vec<Uid> {
        self.nodes.get(uid).map(|node| node.dependents.iter().cloned().collect()).unwrap_or_default()
    }

    /// The dependents that hold up the foreground deletion of `uid`, and whether each waits for its own already.
    pub(super) fn blocking_dependents_of(&self, uid: &Uid) -> Vec<(Uid, bool)> {
        let blocks = |dependent: &Uid| {
            let node = self.nodes.get(dependent)?;
            let blocks = node.owners.iter().any(|owner| owner.uid == *uid && owner.blocks);
            blocks.then(|| (dependent.clone(), node.in_foreground))
        };
        self.nodes.get(uid).into_iter().flat_map(|node| &node.dependents).filter_map(blocks).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &str) -> GroupKind {
        GroupKind { group: "".into(), kind: name.into() }
    }

    /// `name<-owner,owner! flags`: `!` blocks; flags `leaving`, `foreground`, `orphan`.
    fn object(text: &str) -> Observed {
        let (head, flags) = text.split_once(' ').unwrap_or((text, ""));
        let (name, owners) = head.split_once("<-").unwrap_or((head, ""));
        let owner = |text: &str| {
            let name = text.trim_end_matches('!');
            Owner { uid: name.into(), kind: kind("X"), name: name.into(), blocks: text.ends_with('!') }
        };
        Observed {
            uid: name.into(),
            at: Coordinates { kind: kind("X"), namespace: "ns".into(), name: name.into() },
            owners: owners.split(',').filter(|text| !text.is_empty()).map(owner).collect(),
            is_leaving: flags.contains("leaving"),
            in_foreground: flags.contains("foreground"),
            to_orphan: flags.contains("orphan"),
        }
    }

    fn show(mut work: Work) -> String {
        work.examine.sort();
        let mut text = work.examine.join(" ");
        if !work.orphan.is_empty() {
            text = format!("{text} orphan:{}", work.orphan.join(" ")).trim_start().to_owned();
        }
        text
    }

    #[test]
    fn an_unknown_owner_is_looked_up_until_it_shows() {
        let mut graph = Graph::default();
        assert_eq!(show(graph.observe(&object("rs<-dep"))), "dep");
        assert!(graph.facts(&"dep".into()).unwrap().is_virtual);
        assert_eq!(show(graph.observe(&object("dep"))), "");
        assert!(!graph.facts(&"dep".into()).unwrap().is_virtual);
        assert_eq!(graph.dependents_of(&"dep".into()), [Uid::from("rs")]);
    }

    #[test]
    fn dependents_are_examined_when_their_owner_is_gone() {
        let mut graph = Graph::default();
        for text in ["dep", "rs<-dep", "pod<-rs"] {
            graph.observe(&object(text));
        }
        assert_eq!(show(graph.forget(&"dep".into())), "rs");
        assert_eq!(show(graph.forget(&"rs".into())), "pod");
        assert_eq!(show(graph.forget(&"pod".into())), "");
        assert!(graph.nodes.is_empty());
    }

    #[test]
    fn foreground_deletion_goes_on_when_dependents_leave_or_let_go() {
        let mut graph = Graph::default();
        for text in ["rs", "a<-rs!", "b<-rs!", "c<-rs"] {
            graph.observe(&object(text));
        }
        assert_eq!(show(graph.observe(&object("rs leaving foreground"))), "a b c rs");
        assert_eq!(show(graph.observe(&object("rs leaving foreground"))), "");
        assert_eq!(graph.blocking_dependents_of(&"rs".into()).len(), 2);
        assert_eq!(show(graph.forget(&"a".into())), "rs");
        assert_eq!(show(graph.observe(&object("b<-rs"))), "rs");
        assert!(graph.blocking_dependents_of(&"rs".into()).is_empty());
        assert_eq!(show(graph.observe(&object("late<-rs!"))), "late");
    }

    #[test]
    fn orphaning_is_told_once() {
        let mut graph = Graph::default();
        graph.observe(&object("rs"));
        assert_eq!(show(graph.observe(&object("rs leaving orphan"))), "orphan:rs");
        assert_eq!(show(graph.observe(&object("rs leaving orphan"))), "");
    }

    #[test]
    fn an_unknown_owner_that_nobody_names_any_more_is_dropped() {
        let mut graph = Graph::default();
        graph.observe(&object("a<-ghost"));
        graph.observe(&object("a"));
        assert!(!graph.nodes.contains_key("ghost"));
    }
}
