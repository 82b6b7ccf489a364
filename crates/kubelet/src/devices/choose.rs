//! Which devices a container gets. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::numa::{Mask, masks};
use crate::topology::Hint;

/// What there is of one resource, and what one container needs of it.
#[derive(Debug)]
pub(super) struct Need<'a> {
    pub resource: &'a str,
    pub count: usize,
    pub healthy: &'a BTreeSet<String>,
    /// Given to other pods, or to other containers of this one that run beside this container.
    pub taken: &'a BTreeSet<String>,
    /// Given to init containers of this pod, which have ended by then.
    pub reusable: &'a BTreeSet<String>,
}

/// What can be given; upstream's words when it is not enough.
pub(super) fn available(need: &Need<'_>) -> Result<BTreeSet<String>, String> {
    let free: BTreeSet<String> = need.healthy.difference(need.taken).cloned().collect();
    let all: BTreeSet<String> = free.union(need.reusable).filter(|d| need.healthy.contains(*d)).cloned().collect();
    if all.len() < need.count {
        return Err(format!(
            "requested number of devices unavailable for {}. Requested: {}, Available: {}",
            need.resource,
            need.count,
            all.len()
        ));
    }
    Ok(all)
}

/// The devices that must be among those that are given: what the pod's init containers had.
pub(super) fn kept(need: &Need<'_>, available: &BTreeSet<String>) -> BTreeSet<String> {
    need.reusable.intersection(available).take(need.count).cloned().collect()
}

/// What is left of both when devices near these NUMA nodes come first: only they are available where they are enough, else
/// all of them are kept.
pub(super) fn align(
    count: usize,
    available: BTreeSet<String>,
    mut kept: BTreeSet<String>,
    near: Mask,
    nodes: &BTreeMap<String, Mask>,
) -> (BTreeSet<String>, BTreeSet<String>) {
    let is_near = |device: &&String| nodes.get(*device).is_some_and(|mask| !mask.and(near).is_empty());
    let aligned: BTreeSet<String> = available.iter().filter(is_near).cloned().collect();
    if aligned.union(&kept).count() >= count {
        return (&aligned | &kept, kept);
    }
    kept.extend(aligned);
    (available, kept)
}

/// The sets of nodes whose devices would be enough, the smallest of those that could ever be preferred.
pub(super) fn hints(
    count: usize,
    available: &BTreeSet<String>,
    nodes: &BTreeMap<String, Mask>,
    numbers: &[usize],
) -> Vec<Hint> {
    let all = masks(numbers);
    let within = |mask: Mask| nodes.iter().filter(move |(_, near)| !near.and(mask).is_empty());
    let least = all.iter().filter(|mask| within(**mask).count() >= count).map(|mask| mask.count()).min();
    let is_enough = |mask: &Mask| within(*mask).filter(|(device, _)| available.contains(*device)).count() >= count;
    let fitting = all.iter().copied().filter(is_enough);
    fitting.map(|mask| Hint { mask: Some(mask), preferred: Some(mask.count()) == least }).collect()
}

/// The plugin's preference as far as it can be followed, then what is left in order.
pub(super) fn choose(
    count: usize,
    available: &BTreeSet<String>,
    kept: BTreeSet<String>,
    preferred: &[String],
) -> BTreeSet<String> {
    let mut chosen = kept;
    let wanted = preferred.iter().filter(|d| available.contains(*d)).chain(available);
    for device in wanted {
        if chosen.len() >= count {
            break;
        }
        chosen.insert(device.clone());
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &str) -> BTreeSet<String> {
        names.split_whitespace().map(str::to_owned).collect()
    }

    #[track_caller]
    fn check(count: usize, taken: &str, reusable: &str, preferred: &str, want: Result<&str, &str>) {
        let (healthy, taken, reusable) = (set("a b c d"), set(taken), set(reusable));
        let need = Need { resource: "x/y", count, healthy: &healthy, taken: &taken, reusable: &reusable };
        let got = available(&need).map(|all| {
            let preferred: Vec<String> = preferred.split_whitespace().map(str::to_owned).collect();
            let kept = kept(&need, &all);
            choose(count, &all, kept, &preferred).into_iter().collect::<Vec<_>>().join(" ")
        });
        assert_eq!(got.as_deref().map_err(String::as_str), want);
    }

    #[test]
    fn devices_are_given_once_and_those_of_init_containers_again() {
        check(2, "", "", "", Ok("a b"));
        check(2, "a", "", "", Ok("b c"));
        check(2, "", "", "d c", Ok("c d"));
        check(2, "a b c", "c", "a", Ok("c d"));
        check(1, "", "sick d", "", Ok("d"));
        let words = "requested number of devices unavailable for x/y. Requested: 3, Available: 2";
        check(3, "a b", "", "", Err(words));
    }

    /// `a` and `b` are near node 0, `c` is near node 1, and `d` is near neither.
    fn near() -> BTreeMap<String, Mask> {
        [("a", 0), ("b", 0), ("c", 1)].map(|(device, node)| (device.to_owned(), Mask::of([node]))).into()
    }

    #[test]
    fn near_devices_come_first() {
        let check = |count: usize, kept: &str, node: usize, want: (&str, &str)| {
            let got = align(count, set("a b c d"), set(kept), Mask::of([node]), &near());
            assert_eq!(got, (set(want.0), set(want.1)), "{count} {kept} {node}");
        };
        check(1, "", 0, ("a b", ""));
        check(2, "d", 1, ("c d", "d"));
        check(2, "", 1, ("a b c d", "c"));
    }

    #[test]
    fn hints_are_the_nodes_that_have_enough() {
        let check = |count: usize, available: &str, want: &str| {
            let got = hints(count, &set(available), &near(), &[0, 1]);
            let one = |h: &Hint| {
                let nodes: String = h.mask.unwrap().nodes().map(|n| n.to_string()).collect();
                nodes + if h.preferred { "*" } else { "" }
            };
            assert_eq!(got.iter().map(one).collect::<Vec<_>>().join(" "), want, "{count} of {available}");
        };
        check(1, "a b c d", "0* 1* 01");
        check(2, "a b c d", "0* 01");
        check(2, "a c", "01");
        check(3, "a b c", "01*");
        check(4, "a b c d", "");
    }
}
