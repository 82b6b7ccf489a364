//! A containerd of our own below the data directory, so that the user's containers and ours know nothing of each other.
//!
//! It outlives a kelson that was killed: the next one takes it over. Containers outlive both.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::host;
use super::layout::Layout;
use crate::images::PAUSE_IMAGE;
use crate::private_file;

const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
const LOOKS: Duration = Duration::from_millis(20);
/// Between a failure to start it and the next attempt.
const BREAK: Duration = Duration::from_secs(1);
/// Bit of `CAP_SYS_RESOURCE` in the capability sets of /proc/self/status.
const SYS_RESOURCE: u32 = 24;

/// The containerd that runs, and whoever starts it again when it ends by itself.
pub(crate) struct Containerd {
    keeper: JoinHandle<Process>,
    stop: CancellationToken,
    pid_file: PathBuf,
}

enum Process {
    Ours(Box<Child>),
    /// Of an earlier kelson.
    TakenOver(Pid),
}

impl Process {
    fn pid(&self) -> Option<Pid> {
        match self {
            Process::Ours(child) => child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw),
            Process::TakenOver(pid) => Some(*pid),
        }
    }

    async fn ended(&mut self) {
        match self {
            Process::Ours(child) => drop(child.wait().await),
            // It is nobody's child any more: it can only be asked whether it is still there.
            Process::TakenOver(pid) => {
                while kill(*pid, None).is_ok() {
                    tokio::time::sleep(BREAK).await;
                }
            }
        }
    }
}

impl Containerd {
    /// Starts it, or takes over the one that runs, and waits until it answers. From then on it is started again whenever it
    /// ends, until [`Containerd::stop`]; containers do not notice.
    pub(crate) async fn start(layout: &Layout) -> Result<Self> {
        let dir = layout.containerd();
        fs::create_dir_all(dir.join("certs.d")).with_context(|| format!("cannot make {}", dir.display()))?;
        fs::create_dir_all(layout.cni_conf())?;
        let pid_file = dir.join("containerd.pid");
        let process = begin(layout, &pid_file).await?;
        let stop = CancellationToken::new();
        let keeper = tokio::spawn(keep(process, layout.clone(), pid_file.clone(), stop.clone()));
        Ok(Containerd { keeper, stop, pid_file })
    }

    /// Stops it; containers go on.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        let Ok(mut process) = self.keeper.await else { return };
        let Some(pid) = process.pid() else { return };
        if kill(pid, Signal::SIGTERM).is_ok() && tokio::time::timeout(STOP_TIMEOUT, process.ended()).await.is_err() {
            tracing::warn!(%pid, "containerd does not stop, it is left running");
            return;
        }
        if let Err(error) = fs::remove_file(&self.pid_file) {
            tracing::debug!(%error, "containerd's pid file stays");
        }
    }
}

/// Starts containerd again whenever it ends. Gives what runs when `stop` comes.
async fn keep(mut process: Process, layout: Layout, pid_file: PathBuf, stop: CancellationToken) -> Process {
    while stop.run_until_cancelled(process.ended()).await.is_some() {
        tracing::error!("containerd has ended, it is started again");
        loop {
            match begin(&layout, &pid_file).await {
                Ok(next) => {
                    process = next;
                    break;
                }
                Err(error) => tracing::error!("containerd cannot be started again: {error:#}"),
            }
            if stop.run_until_cancelled(tokio::time::sleep(BREAK)).await.is_none() {
                return process;
            }
        }
    }
    process
}

async fn begin(layout: &Layout, pid_file: &Path) -> Result<Process> {
    let (dir, socket) = (layout.containerd(), layout.containerd_socket());
    if let Some(pid) = running(pid_file, &dir) {
        wait_for(&socket, || Ok(())).await?;
        tracing::info!(%pid, "taking over the containerd that runs");
        return Ok(Process::TakenOver(pid));
    }
    let config = dir.join("config.toml");
    private_file::write(&config, config_of(layout, may_raise_limits()).as_bytes())?;
    let log = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(dir.join("containerd.log"))?;
    let program = host::find_program("containerd").context("containerd is not installed")?;
    let mut child = Command::new(program)
        .arg("--config")
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0) // an interrupt at the terminal is for us, we stop it when its time has come
        .spawn()
        .context("cannot start containerd")?;
    if let Some(pid) = child.id() {
        private_file::write(pid_file, pid.to_string().as_bytes())?;
    }
    let log = dir.join("containerd.log");
    wait_for(&socket, || match child.try_wait()? {
        Some(status) => bail!("containerd ended with {status}: {}", last_line(&log)),
        None => Ok(()),
    })
    .await?;
    Ok(Process::Ours(Box::new(child)))
}

/// The containerd of an earlier kelson, if it still runs.
fn running(pid_file: &Path, dir: &Path) -> Option<Pid> {
    let pid: i32 = fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
    // The number may belong to another process by now.
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let ours = String::from_utf8_lossy(&command).contains(&*dir.to_string_lossy());
    ours.then(|| Pid::from_raw(pid))
}

async fn wait_for(socket: &Path, mut still_possible: impl FnMut() -> Result<()>) -> Result<()> {
    let began = Instant::now();
    while let Err(error) = UnixStream::connect(socket).await {
        still_possible()?;
        if began.elapsed() > START_TIMEOUT {
            return Err(error).with_context(|| format!("containerd does not answer on {}", socket.display()));
        }
        tokio::time::sleep(LOOKS).await;
    }
    Ok(())
}

fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().last().unwrap_or("its log is empty").to_owned()
}

/// Whether we may lower OOM scores. Inside of most containers we may not, and every container would fail to start.
fn may_raise_limits() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or_default();
    bits >> SYS_RESOURCE & 1 == 1
}

fn config_of(layout: &Layout, may_raise_limits: bool) -> String {
    let dir = layout.containerd();
    let dir = dir.display();
    let cni = layout.cni_conf();
    let (cni, bin) = (cni.display(), host::cni_bin_dir().unwrap_or(Path::new("/opt/cni/bin")).display());
    format!(
        r#"# Written at every start of kelson. Mirrors and credentials of registries belong into certs.d.
version = 2
root = "{dir}/root"
state = "{dir}/state"

[grpc]
  address = "{dir}/containerd.sock"

[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = {restrict}
  disable_tcp_service = true

[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{dir}/certs.d"

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{bin}"
  conf_dir = "{cni}"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
{crun}"#,
        restrict = !may_raise_limits,
        crun = host::find_program("crun").map(|program| handler("crun", &program)).unwrap_or_default(),
    )
}

/// Another OCI runtime, for RuntimeClasses with this handler.
fn handler(name: &str, program: &Path) -> String {
    format!(
        r#"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}.options]
  BinaryName = "{}"
"#,
        program.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_belongs_to_another_process_is_not_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("containerd.pid");
        assert_eq!(running(&pid_file, dir.path()), None);
        fs::write(&pid_file, std::process::id().to_string()).unwrap();
        assert_eq!(running(&pid_file, dir.path()), None);
    }

    #[tokio::test]
    async fn one_that_ended_is_not_waited_for() {
        let socket = Path::new("/nonexistent/containerd.sock");
        let error = wait_for(socket, || bail!("containerd ended with 1: no space left")).await.unwrap_err();
        assert_eq!(error.to_string(), "containerd ended with 1: no space left");
    }
}
