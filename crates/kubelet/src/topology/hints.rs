//! How what several managers would like of a container's NUMA nodes comes to one answer (KEP-693). Pure.

use std::collections::BTreeSet;

use crate::numa::{Mask, Nodes};

/// Nodes on which a manager could give what is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hint {
    /// None: any of them.
    pub mask: Option<Mask>,
    /// It is as narrow as can be.
    pub preferred: bool,
}

/// The hints for one resource; none: its manager does not mind. An empty list: it cannot be given anywhere.
pub(crate) type Hints = Option<Vec<Hint>>;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Policy {
    #[default]
    None,
    BestEffort,
    Restricted,
    SingleNumaNode,
}

impl Policy {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "none" => Policy::None,
            "best-effort" => Policy::BestEffort,
            "restricted" => Policy::Restricted,
            "single-numa-node" => Policy::SingleNumaNode,
            _ => return None,
        })
    }

    /// Where the container's resources should come from; none when it may not run here.
    pub(crate) fn decide(self, all: &[Hints], nodes: &Nodes, prefers_closest: bool) -> Option<Hint> {
        let every = Mask::of(nodes.keys().copied());
        let mut lists: Vec<Vec<Hint>> = all.iter().map(known).collect();
        if self == Policy::SingleNumaNode {
            let fits = |hint: &Hint| hint.preferred && hint.mask.is_none_or(|mask| mask.count() == 1);
            lists.iter_mut().for_each(|list| list.retain(fits));
        }
        let mut best = merge(&lists, every, nodes, prefers_closest);
        match self {
            Policy::None => Some(Hint { mask: None, preferred: true }),
            Policy::BestEffort => Some(best),
            Policy::Restricted => best.preferred.then_some(best),
            Policy::SingleNumaNode => {
                if best.mask == Some(every) {
                    best.mask = None;
                }
                best.preferred.then_some(best)
            }
        }
    }
}

fn known(hints: &Hints) -> Vec<Hint> {
    match hints {
        None => vec![Hint { mask: None, preferred: true }],
        Some(list) if list.is_empty() => vec![Hint { mask: None, preferred: false }],
        Some(list) => list.clone(),
    }
}

/// The best of what is common to one hint of each list.
fn merge(lists: &[Vec<Hint>], every: Mask, nodes: &Nodes, prefers_closest: bool) -> Hint {
    let least = lists.iter().filter_map(|list| list.iter().filter_map(|h| h.mask).map(Mask::count).min());
    let widest_of_narrowest = least.max().unwrap_or_default();
    let mut best: Option<(Mask, bool)> = None;
    // What is the same counts once: there may be hundreds of hints for each of several resources.
    let mut combinations = BTreeSet::from([Common { mask: every, first: None, preferred: true }]);
    for list in lists {
        combinations = combinations.iter().flat_map(|common| list.iter().map(|hint| common.with(*hint))).collect();
    }
    for common in combinations.into_iter().filter(|common| !common.mask.is_empty()) {
        let candidate = (common.mask, common.preferred);
        let is_better = match best {
            None => true,
            Some(now) => is_better(candidate, now, widest_of_narrowest, |a, b| {
                if prefers_closest { is_closer(a, b, nodes) } else { a.is_narrower_than(b) }
            }),
        };
        if is_better {
            best = Some(candidate);
        }
    }
    let (mask, preferred) = best.unwrap_or((every, false));
    Hint { mask: Some(mask), preferred }
}

/// One hint of each list so far.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Common {
    mask: Mask,
    first: Option<Mask>,
    preferred: bool,
}

impl Common {
    fn with(mut self, hint: Hint) -> Self {
        if let Some(mask) = hint.mask {
            // Only where all want the same nodes is it what all prefer.
            self.preferred &= *self.first.get_or_insert(mask) == mask;
            self.mask = self.mask.and(mask);
        }
        self.preferred &= hint.preferred;
        self
    }
}

/// Of two that nobody prefers, the one that is nearest to what the most demanding manager needs at least.
fn is_better(
    (mask, preferred): (Mask, bool),
    (now, now_preferred): (Mask, bool),
    needed: u32,
    narrower: impl Fn(Mask, Mask) -> bool,
) -> bool {
    if preferred != now_preferred {
        return preferred;
    }
    if preferred {
        return narrower(mask, now);
    }
    let (count, now_count) = (mask.count(), now.count());
    if now_count > needed {
        return narrower(mask, now);
    }
    if now_count == needed {
        return count == needed && narrower(mask, now);
    }
    match count {
        _ if count > needed => false,
        _ if count == needed => true,
        _ if count != now_count => count > now_count,
        _ => narrower(mask, now),
    }
}

/// Of as many nodes, those that are nearer to each other on average.
fn is_closer(a: Mask, b: Mask, nodes: &Nodes) -> bool {
    if a.count() != b.count() {
        return a.is_narrower_than(b);
    }
    // Of as many nodes, the sum tells as much as the average.
    let distance = |mask: Mask| -> u32 {
        let between = |from: usize| {
            let all = nodes.get(&from).map(|n| n.distances.as_slice()).unwrap_or_default();
            nodes.keys().zip(all).filter(|(to, _)| mask.has(**to)).map(|(_, d)| *d).sum::<u32>()
        };
        mask.nodes().map(between).sum()
    };
    (distance(a), a) < (distance(b), b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numa::Node;

    /// `01*` is a preferred hint for the nodes 0 and 1, `any` one for all.
    fn hints(text: &str) -> Hints {
        let hint = |word: &str| match word.strip_suffix('*') {
            Some(nodes) => (nodes.to_owned(), true),
            None => (word.to_owned(), false),
        };
        let mask = |text: &str| Mask::of(text.bytes().map(|digit| usize::from(digit - b'0')));
        let list = text.split_whitespace().map(hint);
        (text != "any").then(|| list.map(|(n, preferred)| Hint { mask: Some(mask(&n)), preferred }).collect())
    }

    fn machine(count: usize) -> Nodes {
        // A ring: neighbours are near.
        let distance = |a: usize, b: usize| match a.abs_diff(b) {
            0 => 10,
            d if d == 1 || d == count - 1 => 20,
            _ => 40,
        };
        let node = |a| Node { distances: (0..count).map(|b| distance(a, b)).collect(), ..Node::default() };
        (0..count).map(|a| (a, node(a))).collect()
    }

    fn shown(hint: Option<Hint>) -> String {
        match hint {
            None => "refused".to_owned(),
            Some(Hint { mask, preferred }) => {
                let nodes = mask.map_or("any".to_owned(), |m| m.nodes().map(|n| n.to_string()).collect());
                format!("{nodes}{}", if preferred { "*" } else { "" })
            }
        }
    }

    #[track_caller]
    fn check(nodes: usize, lists: &[&str], want: [&str; 3]) {
        let all: Vec<Hints> = lists.iter().map(|text| hints(text)).collect();
        let policies = [Policy::BestEffort, Policy::Restricted, Policy::SingleNumaNode];
        let got = policies.map(|policy| shown(policy.decide(&all, &machine(nodes), false)));
        assert_eq!(got, want, "{lists:?}");
    }

    #[test]
    fn nobody_minds() {
        check(2, &["any"], ["01*", "01*", "any*"]);
        check(2, &[], ["01*", "01*", "any*"]);
    }

    #[test]
    fn one_wish_is_followed() {
        check(2, &["0* 1*"], ["0*", "0*", "0*"]);
        check(2, &["0* 01", "any"], ["0*", "0*", "0*"]);
        check(2, &["01*"], ["01*", "01*", "refused"]);
        check(2, &[""], ["01", "refused", "refused"]);
    }

    #[test]
    fn several_wishes_are_met_where_they_can_be() {
        check(2, &["0* 1* 01", "1* 01"], ["1*", "1*", "1*"]);
        check(2, &["0*", "1*"], ["01", "refused", "refused"]);
        check(2, &["0* 01", "1* 01"], ["0", "refused", "refused"]);
        check(2, &["01", "0* 1* 01"], ["01", "refused", "refused"]);
    }

    #[test]
    fn what_nobody_prefers_is_as_wide_as_the_most_demanding_needs() {
        // The first needs two nodes at least.
        check(4, &["01 23 0123", "0 1 2 3 01 0123"], ["01", "refused", "refused"]);
    }

    #[test]
    fn near_nodes_are_better_where_that_is_asked_for() {
        let all = [hints("02* 03* 12*")];
        let got = |closest| shown(Policy::BestEffort.decide(&all, &machine(4), closest));
        assert_eq!((got(false).as_str(), got(true).as_str()), ("02*", "12*"));
    }
}
