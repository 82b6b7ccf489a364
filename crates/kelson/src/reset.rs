//! `kelson reset`: nothing of a cluster stays on this machine: no process, no container, no mount, no rule, no route, no file.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host_network;
use crate::up::Layout;

/// How long processes may take to end when they are asked to.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOKS: Duration = Duration::from_millis(50);

/// Ends what runs below a data directory, unmounts what is mounted there, takes back what was written to the host's network, and
/// removes the directory.
pub(crate) async fn run(data_dir: &Path) -> Result<()> {
    let dir = std::path::absolute(data_dir)?;
    if dir.parent().is_none() {
        bail!("{} is no data directory", dir.display());
    }
    end_processes(&dir).await;
    unmount_below(&dir)?;
    // As long as something of it stays, the directory says what.
    host_network::take_back(&Layout::new(dir.clone())).await?;
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

async fn end_processes(dir: &Path) {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let began = Instant::now();
        let mut left = processes_of(dir);
        for pid in &left {
            // It may be gone before it is told to go.
            let _ = kill(*pid, signal);
        }
        while !left.is_empty() && began.elapsed() < PATIENCE {
            tokio::time::sleep(LOOKS).await;
            left = processes_of(dir);
        }
        if left.is_empty() {
            break;
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

    #[tokio::test]
    async fn a_data_directory_is_removed_and_may_be_gone() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("data");
        fs::create_dir_all(dir.join("store")).unwrap();
        run(&dir).await.unwrap();
        assert!(!dir.exists());
        run(&dir).await.unwrap();
        assert!(run(Path::new("/")).await.is_err());
    }

    #[test]
    fn a_process_has_a_parent() {
        assert_eq!(parent_of(Pid::this()), Some(Pid::parent()));
    }
}
