//! `cargo xtask down`: nothing of the trial cluster stays.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{shell, trial};

pub(crate) fn run() -> Result<()> {
    let dir = trial::dir();
    for signal in ["-TERM", "-KILL"] {
        let pids = processes_of(&dir);
        if pids.is_empty() {
            break;
        }
        let mut args = vec![signal.to_owned()];
        args.extend(pids);
        // Some may be gone before they are told to go.
        let _ = shell::output("kill", &args);
        let started = Instant::now();
        while !processes_of(&dir).is_empty() && started.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    unmount_below(&dir)?;
    if trial::namespace_exists() {
        // Its end of the veth pair goes with it, and so does ours.
        shell::run("ip", &["netns", "delete", trial::NAMESPACE])?;
    }
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    println!("the trial cluster is gone");
    Ok(())
}

/// Processes that belong to the trial cluster: kelson, containerd and the shims have its directory on their command line;
/// containers are in its network namespace or below one of those shims.
fn processes_of(dir: &Path) -> Vec<String> {
    let needle = dir.to_string_lossy().into_owned();
    let own = std::process::id().to_string();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids: Vec<String> = entries
        .filter_map(Result::ok)
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|b| b.is_ascii_digit()) && *name != own)
        .collect();
    let mut ours: Vec<String> = pids
        .iter()
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| String::from_utf8_lossy(&c).contains(&needle))
        })
        .cloned()
        .collect();
    // Children of the shims, to any depth.
    loop {
        let more: Vec<String> = pids
            .iter()
            .filter(|p| !ours.contains(p) && parent_of(p).is_some_and(|pp| ours.contains(&pp)))
            .cloned()
            .collect();
        if more.is_empty() {
            return ours;
        }
        ours.extend(more);
    }
}

fn parent_of(pid: &str) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name stands in parentheses and may hold spaces.
    stat.rsplit_once(") ")?.1.split(' ').nth(1).map(str::to_owned)
}

fn unmount_below(dir: &Path) -> Result<()> {
    let prefix = format!("{}/", dir.display());
    for _ in 0..10 {
        let mounts = fs::read_to_string("/proc/mounts")?;
        let mut below: Vec<&str> =
            mounts.lines().filter_map(|l| l.split(' ').nth(1)).filter(|m| m.starts_with(&prefix)).collect();
        if below.is_empty() {
            return Ok(());
        }
        below.sort_unstable();
        for mount in below.iter().rev() {
            let _ = shell::output("umount", &["-l", mount]);
        }
    }
    bail!("something below {} stays mounted", dir.display())
}
