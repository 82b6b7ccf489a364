//! What clients were told, held against what the store went through.
//!
//! The store numbers its changes, so that no order has to be searched for: the changes are the order. A history is
//! linearizable if each answer fits to a moment in it that lies behind everything that anybody had been told before the
//! question, and before everything that was only asked for after the answer.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Instant;

/// A change of the store; `None` as state: the object was deleted.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) revision: u64,
    pub(super) name: String,
    pub(super) state: Option<State>,
}

/// An object as far as it matters here. No two writes write the same `value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) uid: String,
    pub(super) value: String,
}

/// A question and its answer.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) asked: Instant,
    pub(super) answered: Instant,
    pub(super) told: Told,
}

#[derive(Clone, Debug)]
pub(super) enum Told {
    /// `over`: the revision that was to be replaced; `None`: it was to be made.
    Wrote {
        name: String,
        value: String,
        over: Option<u64>,
        revision: u64,
    },
    Deleted {
        name: String,
        uid: String,
    },
    /// The object is there, in this revision.
    Saw {
        name: String,
        value: String,
        revision: u64,
    },
    /// The object is there, and in another revision than this one.
    Exists {
        name: String,
        but: Option<u64>,
    },
    Absent {
        name: String,
    },
    /// Each object with its own revision.
    Listed {
        revision: u64,
        objects: BTreeMap<String, (u64, String)>,
    },
    /// Whether something was written (`None`: deleted) nobody knows.
    Unknown {
        value: Option<String>,
    },
}

pub(super) struct History {
    changes: Vec<Change>,
    calls: Vec<Call>,
}

impl History {
    pub(super) fn new(mut changes: Vec<Change>, calls: Vec<Call>) -> Self {
        changes.sort_by_key(|change| change.revision);
        History { changes, calls }
    }

    /// Everything in the history that no server without concurrency could have said.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = self.unasked();
        for call in &self.calls {
            let (from, to) = (self.known_before(call.asked), self.first_asked_after(call.answered).saturating_sub(1));
            if !self.fits(&call.told, from..=to) {
                faults.push(format!("between {from} and {to}: {:?}", call.told));
            }
        }
        faults
    }

    /// Changes that nobody asked for, or that were made twice.
    fn unasked(&self) -> Vec<String> {
        let mut asked: BTreeSet<Option<&str>> = BTreeSet::new();
        for call in &self.calls {
            match &call.told {
                Told::Wrote { value, .. } => drop(asked.insert(Some(value))),
                Told::Unknown { value } => drop(asked.insert(value.as_deref())),
                Told::Deleted { .. } => drop(asked.insert(None)),
                _ => {}
            }
        }
        let mut made = BTreeSet::new();
        let is_fault = |change: &&Change| {
            let value = change.state.as_ref().map(|state| state.value.as_str());
            !asked.contains(&value) || value.is_some_and(|value| !made.insert(value.to_owned()))
        };
        self.changes.iter().filter(is_fault).map(|change| format!("not asked for: {change:?}")).collect()
    }

    /// The revision up to which everything had happened when an answer was given, as far as the answer shows it.
    fn shown_by(&self, told: &Told) -> Option<u64> {
        match told {
            Told::Wrote { revision, .. } | Told::Saw { revision, .. } | Told::Listed { revision, .. } => {
                Some(*revision)
            }
            Told::Deleted { name, uid } => self.deletion(name, uid),
            Told::Exists { .. } | Told::Absent { .. } | Told::Unknown { .. } => None,
        }
    }

    fn known_before(&self, asked: Instant) -> u64 {
        let before = self.calls.iter().filter(|call| call.answered < asked);
        before.filter_map(|call| self.shown_by(&call.told)).max().unwrap_or(0)
    }

    fn first_asked_after(&self, answered: Instant) -> u64 {
        let after = self.calls.iter().filter(|call| call.asked > answered);
        let writes = after.filter(|call| matches!(call.told, Told::Wrote { .. } | Told::Deleted { .. }));
        writes.filter_map(|call| self.shown_by(&call.told)).min().unwrap_or(u64::MAX)
    }

    fn deletion(&self, name: &str, uid: &str) -> Option<u64> {
        let deletions = self.changes.iter().filter(|change| change.name == name && change.state.is_none());
        let of_it = |revision: &u64| self.state(name, revision - 1).is_some_and(|(_, state)| state.uid == uid);
        deletions.map(|change| change.revision).find(of_it)
    }

    /// An object at a revision, and since when it is so.
    fn state(&self, name: &str, at: u64) -> Option<(u64, &State)> {
        let past = self.changes.iter().take_while(|change| change.revision <= at);
        let last = past.filter(|change| change.name == name).last()?;
        Some((last.revision, last.state.as_ref()?))
    }

    fn fits(&self, told: &Told, window: RangeInclusive<u64>) -> bool {
        match told {
            Told::Wrote { name, value, over, revision } => {
                let before = self.state(name, revision - 1).map(|(since, _)| since);
                let is_it =
                    self.state(name, *revision).is_some_and(|(at, state)| at == *revision && state.value == *value);
                // What is known before a write is older than it.
                is_it && before == *over && *window.start() < *revision && *revision <= *window.end()
            }
            Told::Deleted { name, uid } => {
                self.deletion(name, uid).is_some_and(|at| *window.start() < at && at <= *window.end())
            }
            Told::Saw { name, value, revision } => {
                self.ever(name, window, |now| now.is_some_and(|(at, state)| at == *revision && state.value == *value))
            }
            Told::Exists { name, but } => self.ever(name, window, |now| now.is_some_and(|(at, _)| Some(at) != *but)),
            Told::Absent { name } => self.ever(name, window, |now| now.is_none()),
            Told::Listed { revision, objects } => window.contains(revision) && self.list(*revision) == *objects,
            Told::Unknown { .. } => true,
        }
    }

    /// Whether something holds of an object at some moment of a window.
    fn ever(&self, name: &str, window: RangeInclusive<u64>, holds: impl Fn(Option<(u64, &State)>) -> bool) -> bool {
        let within = self.changes.iter().map(|change| change.revision).filter(|revision| window.contains(revision));
        std::iter::once(*window.start()).chain(within).any(|at| holds(self.state(name, at)))
    }

    fn list(&self, at: u64) -> BTreeMap<String, (u64, String)> {
        let names: BTreeSet<&str> = self.changes.iter().map(|change| change.name.as_str()).collect();
        let there = |name: &str| {
            let (since, state) = self.state(name, at)?;
            Some((name.to_owned(), (since, state.value.clone())))
        };
        names.into_iter().filter_map(there).collect()
    }
}

/// The changes that the answers themselves tell of. They are all that matter where nothing is deleted: a change that nobody
/// was told of cannot have been replaced by anybody.
pub(super) fn changes_told(calls: &[Call]) -> Vec<Change> {
    let mut changes = BTreeSet::new();
    for call in calls {
        match &call.told {
            Told::Wrote { name, value, revision, .. } | Told::Saw { name, value, revision } => {
                changes.insert((*revision, name.clone(), value.clone()));
            }
            Told::Listed { objects, .. } => {
                changes.extend(objects.iter().map(|(name, (since, value))| (*since, name.clone(), value.clone())));
            }
            _ => {}
        }
    }
    let change = |(revision, name, value)| Change { revision, name, state: Some(State { uid: String::new(), value }) };
    changes.into_iter().map(change).collect()
}

/// The checker is worth what it finds: one history that is right, and each way in which it could be wrong.
#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn state(value: &str) -> Option<State> {
        Some(State { uid: "u".to_owned(), value: value.to_owned() })
    }

    fn wrote(value: &str, over: Option<u64>, revision: u64) -> Told {
        Told::Wrote { name: "a".to_owned(), value: value.to_owned(), over, revision }
    }

    fn saw(value: &str, revision: u64) -> Told {
        Told::Saw { name: "a".to_owned(), value: value.to_owned(), revision }
    }

    fn listed(revision: u64, objects: &[(u64, &str)]) -> Told {
        let objects = objects.iter().map(|(since, value)| ("a".to_owned(), (*since, (*value).to_owned())));
        Told::Listed { revision, objects: objects.collect() }
    }

    /// Written at 1, 2 and 3, deleted at 4; each call takes from the moment `from` to the moment `to`.
    #[track_caller]
    fn check(calls: &[(u64, u64, Told)], right: bool) {
        let start = Instant::now();
        let at = |moment: u64| start + Duration::from_millis(moment);
        let changes = [(1, state("x")), (2, state("y")), (3, state("z")), (4, None)];
        let changes = changes.map(|(revision, state)| Change { revision, name: "a".to_owned(), state });
        let calls =
            calls.iter().map(|(from, to, told)| Call { asked: at(*from), answered: at(*to), told: told.clone() });
        let history = History::new(changes.to_vec(), calls.collect());
        assert_eq!(history.faults().is_empty(), right, "{:?}", history.faults());
    }

    fn writes() -> Vec<(u64, u64, Told)> {
        vec![
            (10, 20, wrote("x", None, 1)),
            (30, 50, wrote("y", Some(1), 2)),
            (60, 65, Told::Unknown { value: Some("z".to_owned()) }),
            (80, 90, Told::Deleted { name: "a".to_owned(), uid: "u".to_owned() }),
        ]
    }

    #[track_caller]
    fn check_read(from: u64, to: u64, told: Told, right: bool) {
        check(&[writes(), vec![(from, to, told)]].concat(), right);
    }

    #[test]
    fn a_history_in_order_is_right() {
        check(&writes(), true);
        check_read(35, 36, saw("x", 1), true); // the second write is on its way: before it
        check_read(35, 36, saw("y", 2), true); // or behind it
        check_read(70, 71, saw("z", 3), true); // what nobody knows of may have happened
        check_read(95, 96, Told::Absent { name: "a".to_owned() }, true);
        check_read(70, 71, listed(2, &[(2, "y")]), true);
    }

    #[test]
    fn answers_out_of_order_are_found() {
        check_read(55, 56, saw("x", 1), false); // the second write had been acknowledged
        check_read(22, 23, saw("y", 2), false); // nobody had asked for it yet
        check_read(22, 23, Told::Absent { name: "a".to_owned() }, false);
        check_read(95, 96, Told::Exists { name: "a".to_owned(), but: None }, false);
        check_read(22, 23, Told::Exists { name: "a".to_owned(), but: Some(1) }, false);
        check_read(70, 71, listed(1, &[(1, "x")]), false);
        check_read(70, 71, listed(2, &[]), false);
    }

    #[test]
    fn writes_that_are_lost_or_made_up_are_found() {
        check_read(55, 56, wrote("lost", Some(2), 9), false);
        check_read(55, 56, wrote("z", Some(1), 3), false); // over another revision than it said
        check(&writes()[..2], false); // the last two changes were not asked for
    }

    #[test]
    fn answers_tell_of_changes() {
        let now = Instant::now();
        let calls = [wrote("x", None, 1), saw("y", 2), listed(9, &[(2, "y")]), Told::Absent { name: "b".to_owned() }];
        let calls = calls.map(|told| Call { asked: now, answered: now, told });
        let told: Vec<(u64, String)> =
            changes_told(&calls).into_iter().map(|change| (change.revision, change.state.unwrap().value)).collect();
        assert_eq!(told, [(1, "x".to_owned()), (2, "y".to_owned())]);
    }
}
