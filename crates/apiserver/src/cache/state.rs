//! What the cache of one resource holds: the live objects, how to find them, and their recent past.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

use compact_str::CompactString;
use imbl::OrdMap;
use storage::{Key, Revision};

use super::object::{Object, Shape};
use super::ring::{Change, Ring};
use super::selection::Selection;

pub(super) type Objects = OrdMap<Key, Arc<Object>>;

pub(super) struct State {
    objects: Objects,
    /// The last change of this resource.
    revision: Revision,
    ring: Ring,
    /// The objects that have a label or an indexed field with that value.
    postings: HashMap<Posting, BTreeMap<Key, Arc<Object>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Posting {
    Label(CompactString, CompactString),
    Field(usize, CompactString),
}

impl State {
    pub(super) fn new(objects: impl IntoIterator<Item = Arc<Object>>, revision: Revision, shape: &Shape) -> Self {
        let mut state = State { objects: OrdMap::new(), revision, ring: Ring::new(revision), postings: HashMap::new() };
        for object in objects {
            state.post(shape, &object);
            state.objects.insert(object.key.clone(), object);
        }
        state
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    pub(super) fn ring(&self) -> &Ring {
        &self.ring
    }

    pub(super) fn trim(&mut self, now: Instant) {
        self.ring.trim(now);
        self.objects.values().for_each(|object| object.forget_message());
    }

    /// Takes a change in: the new version of an object, or its end.
    pub(super) fn apply(
        &mut self,
        shape: &Shape,
        key: &Key,
        current: Option<Arc<Object>>,
        revision: Revision,
    ) -> Option<Arc<Change>> {
        let previous = match &current {
            Some(object) => self.objects.insert(key.clone(), Arc::clone(object)),
            None => self.objects.remove(key),
        };
        if current.is_none() && previous.is_none() {
            return None;
        }
        if let Some(object) = &previous {
            self.unpost(shape, object);
        }
        if let Some(object) = &current {
            self.post(shape, object);
        }
        self.revision = revision;
        let change = Arc::new(Change { revision, current, previous });
        self.ring.push(Arc::clone(&change), Instant::now());
        Some(change)
    }

    /// Exchanges an object without a change that anybody could be told of: the past is forgotten.
    pub(super) fn replace(&mut self, shape: &Shape, key: &Key, current: Option<Arc<Object>>, revision: Revision) {
        if let Some(previous) = self.objects.remove(key) {
            self.unpost(shape, &previous);
        }
        if let Some(object) = current {
            self.post(shape, &object);
            self.objects.insert(key.clone(), object);
        }
        self.revision = revision;
        self.ring = Ring::new(revision);
    }

    fn post(&mut self, shape: &Shape, object: &Arc<Object>) {
        for posting in postings_of(shape, object) {
            self.postings.entry(posting).or_default().insert(object.key.clone(), Arc::clone(object));
        }
    }

    fn unpost(&mut self, shape: &Shape, object: &Object) {
        for posting in postings_of(shape, object) {
            if let Some(list) = self.postings.get_mut(&posting) {
                list.remove(&object.key);
                if list.is_empty() {
                    self.postings.remove(&posting);
                }
            }
        }
    }

    /// The live objects that a selection means, in key order.
    pub(super) fn select(&self, shape: &Shape, selection: &Selection) -> Vec<Arc<Object>> {
        if let Some(key) = selection.only_key(shape) {
            return self.get(&key).filter(|o| selection.matches(shape, o)).cloned().into_iter().collect();
        }
        if let Some(list) = self.narrowest(shape, selection) {
            let Some(list) = list else { return Vec::new() };
            return list.values().filter(|o| selection.matches(shape, o)).cloned().collect();
        }
        select_from(&self.objects, shape, selection, None).cloned().collect()
    }

    /// The shorter of the lists that the selection's demands lead to: `None` when it demands nothing that is indexed,
    /// `Some(None)` when nothing has what it demands.
    #[expect(clippy::option_option, reason = "no index and no match are different answers")]
    fn narrowest(&self, shape: &Shape, selection: &Selection) -> Option<Option<&BTreeMap<Key, Arc<Object>>>> {
        let field = selection.required_field().filter(|(i, _)| is_indexed(shape, *i));
        let field = field.map(|(i, value)| Posting::Field(i, value.into()));
        let label = selection.required_label().map(|(k, v)| Posting::Label(k.into(), v.into()));
        let wanted: Vec<Posting> = field.into_iter().chain(label).collect();
        if wanted.is_empty() {
            return None;
        }
        let lists: Option<Vec<_>> = wanted.iter().map(|posting| self.postings.get(posting)).collect();
        Some(lists.and_then(|lists| lists.into_iter().min_by_key(|list| list.len())))
    }

    /// All objects as they were at a revision: now, or a past that the ring still remembers. `None` beyond that.
    pub(super) fn snapshot(&self, at: Revision) -> Option<Objects> {
        let mut objects = self.objects.clone();
        if at >= self.revision {
            return Some(objects);
        }
        for change in self.ring.since(at)?.rev() {
            match &change.previous {
                Some(previous) => objects.insert(previous.key.clone(), Arc::clone(previous)),
                None => objects.remove(&change.object().key),
            };
        }
        Some(objects)
    }
}

/// Only fields that name a node are worth a list of their own: others have few values or are seldom asked for.
fn is_indexed(shape: &Shape, field: usize) -> bool {
    shape.fields.get(field).is_some_and(|(label, _)| *label == "spec.nodeName")
}

fn postings_of(shape: &Shape, object: &Object) -> Vec<Posting> {
    let labels = object.labels().iter().map(|(k, v)| Posting::Label(k.clone(), v.clone()));
    let fields = (0..shape.fields.len()).filter(|i| is_indexed(shape, *i));
    labels.chain(fields.map(|i| Posting::Field(i, object.field(i).into()))).collect()
}

/// The objects of a map that a selection means, in key order, from `after` on (exclusive).
pub(super) fn select_from<'a>(
    objects: &'a Objects,
    shape: &'a Shape,
    selection: &'a Selection,
    after: Option<&Key>,
) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
    let namespace = selection.namespace.as_deref().filter(|_| shape.namespaced);
    let prefix = namespace.map_or_else(|| shape.prefix.clone(), |ns| format!("{}{ns}/", shape.prefix));
    let start = match after {
        Some(key) => Bound::Excluded(key.clone()),
        None => Bound::Included(Key(prefix.as_str().into())),
    };
    objects
        .range((start, Bound::Unbounded))
        .map(|(_, object)| object)
        .take_while(move |object| object.key.0.starts_with(&prefix))
        .filter(move |object| selection.matches(shape, object))
}
