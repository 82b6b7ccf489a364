//! The recent past of one resource: what watches that resume, and lists at an exact past revision, are served from.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use storage::Revision;

use super::object::Object;

/// One change of one object. At least one of both is there.
#[derive(Clone)]
pub struct Change {
    pub revision: Revision,
    pub current: Option<Arc<Object>>,
    pub previous: Option<Arc<Object>>,
}

impl Change {
    /// The object as it is now, or as it was last.
    #[must_use]
    pub fn object(&self) -> &Arc<Object> {
        // Made only with one of both; the dispatcher relies on it for the key.
        self.current.as_ref().or(self.previous.as_ref()).unwrap_or_else(|| unreachable!("a change of nothing"))
    }
}

/// Changes younger than this are kept as long as the ring has room: clients that were cut off come back within it.
const FRESH: Duration = Duration::from_secs(75);
/// So many changes are kept however old they are.
const KEPT_ANYWAY: usize = 100;
const MAX_CHANGES: usize = 50_000;
/// What the replaced versions that only the ring still holds may take, in bytes.
const MAX_BYTES: usize = 16 << 20;

pub(super) struct Ring {
    changes: VecDeque<(Instant, Arc<Change>)>,
    bytes: usize,
    /// Everything after this revision is here.
    floor: Revision,
}

impl Ring {
    pub(super) fn new(floor: Revision) -> Self {
        Ring { changes: VecDeque::new(), bytes: 0, floor }
    }

    /// The revision that a watch may resume after at the earliest.
    pub(super) fn floor(&self) -> Revision {
        self.floor
    }

    pub(super) fn push(&mut self, change: Arc<Change>, now: Instant) {
        self.bytes += weight(&change);
        self.changes.push_back((now, change));
        self.trim(now);
    }

    /// Drops what is too old or too much. Also called from time to time, so that a burst is not kept forever.
    pub(super) fn trim(&mut self, now: Instant) {
        while let Some((at, _)) = self.changes.front() {
            let crowded = self.changes.len() > MAX_CHANGES || self.bytes > MAX_BYTES;
            let stale = self.changes.len() > KEPT_ANYWAY && now.duration_since(*at) > FRESH;
            if !crowded && !stale {
                break;
            }
            if let Some((_, change)) = self.changes.pop_front() {
                self.bytes -= weight(&change);
                self.floor = change.revision;
            }
        }
        if self.changes.capacity() > 1024 && self.changes.capacity() / 4 > self.changes.len() {
            self.changes.shrink_to_fit();
        }
    }

    /// The changes after a revision, oldest first; `None` when some of them are gone.
    pub(super) fn since(&self, after: Revision) -> Option<impl DoubleEndedIterator<Item = &Arc<Change>>> {
        if after < self.floor {
            return None;
        }
        let from = self.changes.partition_point(|(_, change)| change.revision <= after);
        Some(self.changes.range(from..).map(|(_, change)| change))
    }
}

/// What a change keeps in memory that the live data does not.
fn weight(change: &Change) -> usize {
    change.previous.as_ref().map_or(0, |object| object.body.len()) + 256
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::fixture;

    #[test]
    fn what_is_stale_goes_but_the_last_hundred_stay() {
        let start = Instant::now();
        let mut ring = Ring::new(Revision(1));
        for n in 2..=300 {
            ring.push(Arc::new(fixture::created("a", n)), start);
        }
        assert_eq!(ring.since(Revision(1)).map(Iterator::count), Some(299));
        ring.trim(start + FRESH * 2);
        assert_eq!(ring.floor(), Revision(200));
        assert!(ring.since(Revision(199)).is_none());
        assert_eq!(ring.since(Revision(200)).map(Iterator::count), Some(100));
        assert_eq!(ring.since(Revision(300)).map(Iterator::count), Some(0));
    }
}
