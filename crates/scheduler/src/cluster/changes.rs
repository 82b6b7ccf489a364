//! Which nodes changed, in order, so that whoever worked something out over all nodes looks only at those again.

use std::collections::VecDeque;

use super::NodeIdx;

/// A place in the log; what is cached is right as of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(u64);

#[derive(Debug, Default)]
pub(crate) struct ChangeLog {
    recent: VecDeque<NodeIdx>,
    /// The place of the first of `recent`.
    start: u64,
}

/// Changes that are kept at least, whatever the number of nodes: beyond, looking at every node is cheaper anyway.
const KEPT: usize = 16 * 1024;

impl ChangeLog {
    pub(crate) fn push(&mut self, node: NodeIdx) {
        self.recent.push_back(node);
        if self.recent.len() > KEPT {
            self.recent.pop_front();
            self.start += 1;
        }
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark(self.start + self.recent.len() as u64)
    }

    /// The nodes that changed since `mark`, some of them perhaps more than once; `None` if that is not known any more.
    pub(crate) fn since(&self, mark: Mark) -> Option<impl Iterator<Item = NodeIdx> + '_> {
        let skip = usize::try_from(mark.0.checked_sub(self.start)?).ok()?;
        Some(self.recent.range(skip.min(self.recent.len())..).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_from_a_mark_until_they_are_forgotten() {
        let mut log = ChangeLog::default();
        let begin = log.mark();
        log.push(NodeIdx::new(1));
        let middle = log.mark();
        log.push(NodeIdx::new(2));
        let since = |log: &ChangeLog, mark| log.since(mark).map(|nodes| nodes.map(NodeIdx::at).collect::<Vec<_>>());
        assert_eq!(since(&log, begin), Some(vec![1, 2]));
        assert_eq!(since(&log, middle), Some(vec![2]));
        assert_eq!(since(&log, log.mark()), Some(vec![]));
        for _ in 0..KEPT {
            log.push(NodeIdx::new(3));
        }
        assert_eq!(since(&log, begin), None);
        assert_eq!(since(&log, middle), None);
    }
}
