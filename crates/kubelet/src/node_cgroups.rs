//! The cgroup of a pod, where its containers' cgroups are made by the runtime. On v1 every controller has a hierarchy of its
//! own; on v2 there is one.

use std::io;
use std::path::{Path, PathBuf};

use k8s_cri::v1::PodSandboxConfig;
use k8s_openapi::api::core::v1::Pod;

use crate::cgroups;
use crate::context::Context;
use crate::resources::{self, Amounts};

const MOUNT: &str = "/sys/fs/cgroup";

enum Layout {
    /// The hierarchies that matter to pods, each mounted under its controller's name.
    V1(Vec<PathBuf>),
    V2(PathBuf),
}

fn layout() -> Layout {
    match libcgroups::common::get_cgroup_setup() {
        Ok(libcgroups::common::CgroupSetup::Unified) => Layout::V2(PathBuf::from(MOUNT)),
        _ => {
            let controllers = [
                "cpu",
                "cpuacct",
                "cpuset",
                "memory",
                "pids",
                "blkio",
                "devices",
                "freezer",
                "hugetlb",
                "net_cls",
                "net_prio",
                "perf_event",
            ];
            let roots = controllers.iter().map(|c| Path::new(MOUNT).join(c)).filter(|p| p.is_dir());
            Layout::V1(roots.collect())
        }
    }
}

/// Whether the host has the one hierarchy of cgroups v2.
pub(crate) fn is_unified() -> bool {
    matches!(layout(), Layout::V2(_))
}

/// Makes the pod's cgroup with the sum of its containers' limits, and at most `pids` processes where that is positive.
pub(crate) fn make(sandbox: &PodSandboxConfig, pod: &Pod, pids: i64) -> io::Result<()> {
    let parent = sandbox.linux.as_ref().map(|l| l.cgroup_parent.trim_start_matches('/').to_owned());
    let Some(parent) = parent.filter(|p| !p.is_empty()) else { return Ok(()) };
    match layout() {
        Layout::V2(root) => {
            let mut at = root;
            for part in Path::new(&parent).components() {
                // Children may use what their parent hands down; a controller that the kernel lacks is left out.
                for controller in ["+cpu", "+memory", "+pids", "+cpuset", "+io"] {
                    let _ = std::fs::write(at.join("cgroup.subtree_control"), controller);
                }
                at.push(part);
                std::fs::create_dir_all(&at)?;
            }
        }
        Layout::V1(roots) => {
            for root in roots {
                let dir = root.join(&parent);
                make_v1(&root, &dir)?;
            }
        }
    }
    if pids > 0 {
        let roots = match layout() {
            Layout::V1(roots) => roots,
            Layout::V2(root) => vec![root],
        };
        for root in roots {
            write(&root.join(&parent).join("pids.max"), &pids.to_string())?;
        }
    }
    apply(&parent, &Wanted::of(pod))
}

/// A new cpuset of v1 has no CPUs and no memory until it is told which.
fn make_v1(root: &Path, dir: &Path) -> io::Result<()> {
    let Ok(below) = dir.strip_prefix(root) else { return Ok(()) };
    let mut at = root.to_owned();
    for part in below.components() {
        let parent = at.clone();
        at.push(part);
        std::fs::create_dir_all(&at)?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if std::fs::read_to_string(at.join(file)).is_ok_and(|now| now.trim().is_empty()) {
                std::fs::write(at.join(file), std::fs::read(parent.join(file))?)?;
            }
        }
    }
    Ok(())
}

/// Files of a controller that is not there are no error.
fn write(path: &Path, value: &str) -> io::Result<()> {
    if path.exists() { std::fs::write(path, value) } else { Ok(()) }
}

#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    shares: i64,
    /// 0: at least one container has no limit, so the pod has none.
    quota: i64,
    memory: i64,
}

impl Wanted {
    fn of(pod: &Pod) -> Self {
        let (requests, limits) = (resources::requests(pod), resources::limits(pod));
        let of = |amounts: &Amounts, name: &str| amounts.get(name).copied().unwrap_or_default();
        let cpu_limit = of(&limits, "cpu");
        Wanted {
            shares: (of(&requests, "cpu") * 1024 / 1000).clamp(2, 262_144),
            quota: if cpu_limit == 0 { 0 } else { (cpu_limit * 100).max(1000) },
            memory: of(&limits, "memory") / 1000,
        }
    }
}

/// Gives the cgroup of a pod that runs what its spec now says.
pub(crate) fn resize(pod: &Pod, context: &Context) -> io::Result<()> {
    let Some(root) = &context.cgroup_root else { return Ok(()) };
    let relative = cgroups::pod_cgroup(pod, root);
    apply(relative.trim_start_matches('/'), &Wanted::of(pod))
}

/// A limit that is smaller than what a container below still has is refused by the kernel until that one has changed.
fn apply(parent: &str, wanted: &Wanted) -> io::Result<()> {
    match layout() {
        Layout::V2(root) => {
            let at = root.join(parent);
            write(&at.join("cpu.weight"), &(1 + (wanted.shares - 2) * 9999 / 262_142).to_string())?;
            let quota = if wanted.quota > 0 { format!("{} 100000", wanted.quota) } else { "max 100000".to_owned() };
            write(&at.join("cpu.max"), &quota)?;
            let memory = if wanted.memory > 0 { wanted.memory.to_string() } else { "max".to_owned() };
            write(&at.join("memory.max"), &memory)
        }
        Layout::V1(roots) => {
            for root in roots {
                let dir = root.join(parent);
                write(&dir.join("cpu.shares"), &wanted.shares.to_string())?;
                write(&dir.join("cpu.cfs_period_us"), "100000")?;
                write(&dir.join("cpu.cfs_quota_us"), &if wanted.quota > 0 { wanted.quota } else { -1 }.to_string())?;
                let memory = if wanted.memory > 0 { wanted.memory } else { -1 };
                write(&dir.join("memory.limit_in_bytes"), &memory.to_string())?;
            }
            Ok(())
        }
    }
}

/// Removes the pod's cgroup and those that the runtime left below it.
pub(crate) fn remove(pod: &Pod, context: &Context) {
    let Some(root) = &context.cgroup_root else { return };
    let relative = cgroups::pod_cgroup(pod, root);
    let relative = relative.trim_start_matches('/');
    let roots = match layout() {
        Layout::V1(roots) => roots,
        Layout::V2(root) => vec![root],
    };
    for root in roots {
        remove_below(&root.join(relative));
    }
}

fn remove_below(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_below(&entry.path());
        }
    }
    // A cgroup with processes in it cannot be removed; the next clean-up tries again.
    let _ = std::fs::remove_dir(dir);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_limited_only_when_all_its_containers_are() {
        let pod = |second: serde_json::Value| -> Pod {
            serde_json::from_value(serde_json::json!({"spec": {"containers": [
                {"name": "a", "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}}}, {"name": "b", "resources": second}]}}))
            .unwrap()
        };
        let both = Wanted::of(&pod(serde_json::json!({"limits": {"cpu": "1", "memory": "64Mi"}})));
        assert_eq!(both, Wanted { shares: 512 + 1024, quota: 150_000, memory: 128 << 20 });
        let one = Wanted::of(&pod(serde_json::json!({})));
        assert_eq!((one.quota, one.memory), (0, 0));
    }
}
