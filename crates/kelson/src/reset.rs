//! `kelson reset`: nothing of a cluster stays on this machine: no process, no container, no mount, no file.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long processes may take to end when they are asked to.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOKS: Duration = Duration::from_millis(50);

/// Ends what runs below a data directory, unmounts what is mounted there, and removes it.
pub(crate) fn run(data_dir: &Path) -> Result<()> {
    let dir = std::path::absolute(data_dir)?;
    if dir.parent().is_none() {
        bail!("{} is no data directory", dir.display());
    }
    let networks = networks_of_pods(&dir);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let began = Instant::now();
        let mut left = processes_of(&dir);
        for pid in &left {
            // It may be gone before it is told to go.
            let _ = kill(*pid, signal);
        }
        while !left.is_empty() && began.elapsed() < PATIENCE {
            std::thread::sleep(LOOKS);
            left = processes_of(&dir);
        }
        if left.is_empty() {
            break;
        }
    }
    unmount_below(&dir)?;
    for network in networks {
        network.remove();
    }
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// What the network of a pod leaves outside of the data directory.
struct PodNetwork {
    sandbox: String,
    namespace: PathBuf,
}

/// Where containerd keeps the specifications of what runs.
const TASKS: &str = "containerd/state/io.containerd.runtime.v2.task/k8s.io";
/// Where CNI remembers what it has set up.
const CNI_RESULTS: &str = "/var/lib/cni/results";

/// The networks of the sandboxes that run.
fn networks_of_pods(dir: &Path) -> Vec<PodNetwork> {
    let tasks = fs::read_dir(dir.join(TASKS)).into_iter().flatten();
    let network_of = |task: fs::DirEntry| {
        let specification = fs::read(task.path().join("config.json")).ok()?;
        let namespace = network_namespace(&specification)?;
        Some(PodNetwork { sandbox: task.file_name().to_str()?.to_owned(), namespace })
    };
    tasks.filter_map(|task| network_of(task.ok()?)).collect()
}

/// The network namespace in an OCI specification, if CNI made it.
fn network_namespace(specification: &[u8]) -> Option<PathBuf> {
    let specification: serde_json::Value = serde_json::from_slice(specification).ok()?;
    let namespaces = specification["linux"]["namespaces"].as_array()?;
    let path = PathBuf::from(namespaces.iter().find(|namespace| namespace["type"] == "network")?["path"].as_str()?);
    let name = path.file_name()?.to_str()?;
    (name.starts_with("cni-") && path.parent()?.ends_with("run/netns")).then_some(path)
}

impl PodNetwork {
    /// The interfaces go with their namespace. A container of the same pod may have had it removed already.
    fn remove(self) {
        let _ = umount2(&self.namespace, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(&self.namespace);
        let mark = format!("-{}-", self.sandbox);
        for result in fs::read_dir(CNI_RESULTS).into_iter().flatten().flatten() {
            if result.file_name().to_string_lossy().contains(&mark) {
                let _ = fs::remove_file(result.path());
            }
        }
    }
}

/// Kelson itself, containerd and the shims have the directory on their command line; containers are below the shims.
fn processes_of(dir: &Path) -> Vec<Pid> {
    let needle = dir.to_string_lossy().into_owned();
    let own = Pid::this();
    let all: Vec<Pid> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok().map(Pid::from_raw))
        .filter(|pid| *pid != own && Some(*pid) != parent_of(own))
        .collect();
    let mut ours: Vec<Pid> = all.iter().copied().filter(|pid| is_named(*pid, &needle)).collect();
    loop {
        let known = |pid: &Pid| ours.contains(pid);
        let more: Vec<Pid> =
            all.iter().copied().filter(|pid| !known(pid) && parent_of(*pid).is_some_and(|p| known(&p))).collect();
        if more.is_empty() {
            return ours;
        }
        ours.extend(more);
    }
}

/// Is it one of our programs, with the directory (or something below it) among its words?
fn is_named(pid: Pid, dir: &str) -> bool {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = command.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let program = words.next().unwrap_or_default().into_owned();
    let program = program.rsplit('/').next().unwrap_or_default();
    let known = program.starts_with("containerd") || program == "kelson" || program == "runc";
    known && words.any(|word| word.contains(dir))
}

fn parent_of(pid: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name stands in parentheses and may hold spaces.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok().map(Pid::from_raw)
}

fn unmount_below(dir: &Path) -> Result<()> {
    let prefix = format!("{}/", dir.display());
    // Something can be mounted several times on one place.
    for _ in 0..10 {
        let mounts = fs::read_to_string("/proc/mounts")?;
        let mut below: Vec<&str> =
            mounts.lines().filter_map(|l| l.split(' ').nth(1)).filter(|m| m.starts_with(&prefix)).collect();
        if below.is_empty() {
            return Ok(());
        }
        below.sort_unstable();
        for mount in below.iter().rev() {
            // What stays is seen in the next round.
            let _ = umount2(*mount, MntFlags::MNT_DETACH);
        }
    }
    bail!("something below {} stays mounted", dir.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_is_removed_and_may_be_gone() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("data");
        fs::create_dir_all(dir.join("store")).unwrap();
        run(&dir).unwrap();
        assert!(!dir.exists());
        run(&dir).unwrap();
        assert!(run(Path::new("/")).is_err());
    }

    #[test]
    fn only_networks_that_cni_made_are_removed() {
        let with = |path: &str| {
            format!(r#"{{"linux":{{"namespaces":[{{"type":"pid"}},{{"type":"network","path":"{path}"}}]}}}}"#)
                .into_bytes()
        };
        let made = "/var/run/netns/cni-1";
        assert_eq!(network_namespace(&with(made)), Some(made.into()));
        for other in ["/proc/1/ns/net", "/run/netns/mine", "/elsewhere/cni-1"] {
            assert_eq!(network_namespace(&with(other)), None, "{other}");
        }
        assert_eq!(network_namespace(br#"{"linux":{"namespaces":[{"type":"network"}]}}"#), None);
        assert_eq!(network_namespace(b"nonsense"), None);
    }

    #[test]
    fn a_process_has_a_parent() {
        assert_eq!(parent_of(Pid::this()), Some(Pid::parent()));
    }
}
