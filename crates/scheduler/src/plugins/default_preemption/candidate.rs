//! Nodes on which room can be made, and which of them it costs least on.

use std::cmp::Ordering;
use std::sync::Arc;

use super::started;
use crate::pod::PodInfo;

/// A node and the pods that have to leave it, the most important one first.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub node: Arc<str>,
    pub victims: Vec<Arc<PodInfo>>,
    /// How many of the victims a disruption budget does not allow to be evicted.
    pub violations: usize,
}

/// By priority, then by age.
pub(super) fn more_important(a: &PodInfo, b: &PodInfo) -> Ordering {
    b.priority.cmp(&a.priority).then_with(|| started(a).cmp(&started(b)))
}

impl Candidate {
    fn highest(&self) -> i32 {
        self.victims.first().map_or(i32::MIN, |victim| victim.priority)
    }

    /// Counted from the lowest priority that there is, so that more victims always cost more.
    fn sum(&self) -> i64 {
        let each = self.victims.iter().map(|victim| i64::from(victim.priority) + i64::from(i32::MAX) + 1);
        each.sum()
    }

    /// When the oldest of its most important victims was started.
    fn oldest(&self) -> Option<jiff::Timestamp> {
        let highest = self.highest();
        self.victims.iter().filter(|victim| victim.priority == highest).map(|victim| started(victim)).min()
    }

    /// What it costs, in the order in which it matters; the youngest victims cost least.
    fn cost(&self) -> (usize, i32, i64, usize, std::cmp::Reverse<Option<jiff::Timestamp>>) {
        let oldest = std::cmp::Reverse(self.oldest());
        (self.violations, self.highest(), self.sum(), self.victims.len(), oldest)
    }
}

/// The candidate that costs least, the first of them if there are several.
pub(super) fn choose(candidates: Vec<Candidate>) -> Option<Candidate> {
    candidates.into_iter().min_by_key(Candidate::cost)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::ScalarNames;

    /// Victims as priority and minute of start.
    fn candidate(node: &str, violations: usize, victims: &[(i32, u32)]) -> Candidate {
        let victims = victims.iter().map(|(priority, minute)| {
            let pod = json!({"metadata": {"name": "v"}, "spec": {"containers": [], "priority": priority},
                "status": {"startTime": format!("2026-01-01T00:{minute:02}:00Z")}});
            Arc::new(PodInfo::new(Arc::new(serde_json::from_value(pod).unwrap()), &mut ScalarNames::default()))
        });
        Candidate { node: node.into(), victims: victims.collect(), violations }
    }

    #[track_caller]
    fn check(candidates: Vec<Candidate>, want: &str) {
        assert_eq!(&*choose(candidates).unwrap().node, want);
    }

    #[test]
    fn the_cheapest_node_is_chosen() {
        check(vec![candidate("a", 1, &[(1, 0)]), candidate("b", 0, &[(9, 0), (9, 0)])], "b");
        check(vec![candidate("a", 0, &[(5, 0)]), candidate("b", 0, &[(4, 0), (4, 0)])], "b");
        check(vec![candidate("a", 0, &[(5, 0), (1, 0)]), candidate("b", 0, &[(5, 0), (0, 0)])], "b");
        check(vec![candidate("a", 0, &[(5, 0), (-9, 0)]), candidate("b", 0, &[(5, 0)])], "b");
        check(vec![candidate("a", 0, &[(5, 1)]), candidate("b", 0, &[(5, 2)])], "b");
        check(vec![candidate("a", 0, &[(5, 1)]), candidate("b", 0, &[(5, 1)])], "a");
    }
}
