//! How much of the node's swap a container may use (KEP-2400). Pure.

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::cgroups;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SwapBehavior {
    /// Containers use none, whatever the node has.
    #[default]
    NoSwap,
    /// Containers of Burstable pods use as much of it as they asked for of the memory.
    LimitedSwap,
}

/// The node's swap and how pods may use it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Swap {
    pub behavior: SwapBehavior,
    /// In bytes; 0: there is none, and nothing to limit.
    pub capacity: i64,
    pub is_cgroup_v2: bool,
}

/// `SwapTotal` of `/proc/meminfo` in bytes.
pub(crate) fn capacity_of(meminfo: &str) -> i64 {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("SwapTotal:"));
    let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<i64>().ok());
    kib.unwrap_or_default() * 1024
}

/// Bytes of swap that a container may use. `None`: nothing is to be said about it.
fn limit_of(pod: &Pod, container: &Container, swap: Swap, node_memory: i64) -> Option<i64> {
    if swap.capacity <= 0 {
        return None;
    }
    let resources = container.resources.as_ref();
    let memory = |list: Option<&std::collections::BTreeMap<_, _>>| list?.get("memory").and_then(cgroups::whole);
    let limit = memory(resources.and_then(|r| r.limits.as_ref()));
    let request = memory(resources.and_then(|r| r.requests.as_ref())).or(limit).unwrap_or_default();
    let may = swap.behavior == SwapBehavior::LimitedSwap
        && cgroups::qos_class(pod) == "Burstable"
        && !cgroups::is_critical(pod)
        && limit != Some(request);
    if !may || node_memory <= 0 {
        return Some(0);
    }
    let share = i128::from(request) * i128::from(swap.capacity) / i128::from(node_memory);
    i64::try_from(share).ok()
}

/// Says in a container's resources what it may use. cgroups v1 count memory and swap together, v2 swap alone.
pub(crate) fn limit(
    resources: &mut cri::LinuxContainerResources,
    pod: &Pod,
    container: &Container,
    swap: Swap,
    node_memory: i64,
) {
    let Some(bytes) = limit_of(pod, container, swap, node_memory) else { return };
    if swap.is_cgroup_v2 {
        resources.unified.insert("memory.swap.max".to_owned(), bytes.to_string());
    } else if resources.memory_limit_in_bytes > 0 {
        resources.memory_swap_limit_in_bytes = resources.memory_limit_in_bytes.saturating_add(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(behavior: SwapBehavior, capacity: i64, resources: serde_json::Value, want: Option<i64>) {
        let pod: Pod = serde_json::from_value(
            serde_json::json!({"spec": {"containers": [{"name": "c", "resources": resources}]}}),
        )
        .unwrap();
        let swap = Swap { behavior, capacity, is_cgroup_v2: true };
        assert_eq!(limit_of(&pod, &crate::pod::plan::containers(&pod)[0], swap, 4 << 30), want);
    }

    #[test]
    fn swap_is_shared_out_as_memory_was_asked_for() {
        use SwapBehavior::{LimitedSwap, NoSwap};
        let burstable = || serde_json::json!({"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}});
        check(LimitedSwap, 2 << 30, burstable(), Some(512 << 20));
        check(NoSwap, 2 << 30, burstable(), Some(0));
        check(LimitedSwap, 0, burstable(), None);
        check(LimitedSwap, 2 << 30, serde_json::json!({}), Some(0));
        let guaranteed = serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        check(LimitedSwap, 2 << 30, guaranteed, Some(0));
        let same = serde_json::json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "1Gi"}});
        check(LimitedSwap, 2 << 30, same, Some(0));
        assert_eq!(capacity_of("MemTotal: 1 kB\nSwapTotal:       2048 kB\n"), 2 << 20);
    }
}
