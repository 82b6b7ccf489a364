//! What the node has, and what of it pods may be given. Pure but for one look at the disk.

use crate::config::Config;
use crate::node::Machine;
use crate::resources::{Amounts, Threshold};

pub(crate) fn of(machine: &Machine, config: &Config) -> Amounts {
    let disk = nix::sys::statvfs::statvfs(&config.root_dir).ok();
    let bytes = disk.map_or(0, |d| i64::try_from(d.blocks() * d.fragment_size()).unwrap_or(i64::MAX / 1000));
    let mut all = Amounts::from([
        ("cpu".to_owned(), machine.cpus * 1000),
        ("memory".to_owned(), machine.memory_bytes * 1000),
        ("ephemeral-storage".to_owned(), bytes.saturating_mul(1000)),
    ]);
    all.extend(machine.huge_pages.iter().map(|(name, bytes)| (name.clone(), bytes * 1000)));
    all
}

/// What the system and this kubelet keep for themselves, and what hard eviction guards.
pub(crate) fn kept_back(capacity: &Amounts, config: &Config) -> Amounts {
    let guarded = |name: &str| match name {
        "memory" => config.eviction.hard.get("memory.available"),
        "ephemeral-storage" => config.eviction.hard.get("nodefs.available"),
        _ => None,
    };
    let kept = capacity.iter().map(|(name, total)| {
        let reserved: i64 = [&config.kube_reserved, &config.system_reserved].iter().filter_map(|r| r.get(name)).sum();
        let guarded = guarded(name).map_or(0, |t: &Threshold| t.of(total / 1000).saturating_mul(1000));
        (name.clone(), reserved + guarded)
    });
    kept.collect()
}

/// Capacity without what is kept back; memory that is in huge pages is to be had as such alone.
pub(crate) fn allocatable(capacity: &Amounts, config: &Config) -> Amounts {
    let kept = kept_back(capacity, config);
    let huge: i64 = capacity.iter().filter(|(name, _)| name.starts_with("hugepages-")).map(|(_, bytes)| bytes).sum();
    let left = |(name, total): (&String, &i64)| {
        let huge = if name == "memory" { huge } else { 0 };
        (name.clone(), (total - kept[name] - huge).max(0))
    };
    capacity.iter().map(left).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_and_guarded_is_not_given_to_pods() {
        let mut config = Config::default();
        config.eviction.hard = [("memory.available".to_owned(), Threshold::Amount(100))].into();
        config.kube_reserved = Amounts::from([("cpu".to_owned(), 250)]);
        config.system_reserved = Amounts::from([("memory".to_owned(), 50_000)]);
        let capacity = Amounts::from([("cpu".to_owned(), 2000), ("memory".to_owned(), 1_000_000)]);
        let want = Amounts::from([("cpu".to_owned(), 1750), ("memory".to_owned(), 850_000)]);
        assert_eq!(allocatable(&capacity, &config), want);
        let mut with_huge_pages = capacity.clone();
        with_huge_pages.insert("hugepages-2Mi".to_owned(), 200_000);
        let left = allocatable(&with_huge_pages, &config);
        assert_eq!((left["memory"], left["hugepages-2Mi"]), (650_000, 200_000));
        assert_eq!(kept_back(&with_huge_pages, &config)["memory"], 150_000);
    }
}
