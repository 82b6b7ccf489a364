//! Which devices a container gets. Pure.

use std::collections::BTreeSet;

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
}
