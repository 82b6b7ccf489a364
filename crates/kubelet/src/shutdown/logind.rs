//! logind, through the programs that come with it: a client for its bus would be a large part of this program's build, for
//! four messages in the life of a node.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

const CALL: Duration = Duration::from_secs(30);
const LOGIN: [&str; 3] = ["org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"];
const SYSTEMD: [&str; 3] =
    ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"];
const SHUTDOWN: &str = "type='signal',interface='org.freedesktop.login1.Manager',member='PrepareForShutdown',path='/org/freedesktop/login1'";

pub(crate) struct Logind {
    busctl: PathBuf,
    systemd_inhibit: PathBuf,
    /// Where logind's configuration is added to.
    config_dir: PathBuf,
}

impl Default for Logind {
    fn default() -> Self {
        Logind {
            busctl: "busctl".into(),
            systemd_inhibit: "systemd-inhibit".into(),
            config_dir: "/etc/systemd/logind.conf.d".into(),
        }
    }
}

/// While it is held, logind waits with a shutdown. It goes with the program that holds it.
pub(super) struct Lock {
    _holder: Child,
}

/// What logind says: that a shutdown begins, or that it was called off.
pub(super) struct Signals {
    _monitor: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Signals {
    /// Nothing when there is nobody to say it any more.
    pub(super) async fn next(&mut self) -> Option<bool> {
        while let Ok(Some(line)) = self.lines.next_line().await {
            let message: Value = serde_json::from_str(&line).unwrap_or_default();
            if message["member"] == "PrepareForShutdown"
                && let Some(is_on) = message["payload"]["data"][0].as_bool()
            {
                return Some(is_on);
            }
        }
        None
    }
}

impl Logind {
    async fn call(&self, args: &[&str]) -> Result<Value, String> {
        let done = Command::new(&self.busctl).args(["--system", "--json=short"]).args(args).kill_on_drop(true).output();
        let done = tokio::time::timeout(CALL, done).await.map_err(|_| "logind does not answer".to_owned())?;
        let done = done.map_err(|e| format!("{}: {e}", self.busctl.display()))?;
        if !done.status.success() {
            return Err(String::from_utf8_lossy(&done.stderr).trim().to_owned());
        }
        Ok(serde_json::from_slice(&done.stdout).unwrap_or_default())
    }

    /// How long logind lets itself be held up.
    async fn longest_delay(&self) -> Result<Duration, String> {
        let [service, path, interface] = LOGIN;
        let said = self.call(&["get-property", service, path, interface, "InhibitDelayMaxUSec"]).await?;
        let micros = said["data"].as_u64().ok_or("logind does not say how long it waits")?;
        Ok(Duration::from_micros(micros))
    }

    /// Has logind wait so long if it would not, as upstream does: by a file of its configuration.
    pub(super) async fn allow(&self, wanted: Duration) -> Result<(), String> {
        if wanted <= self.longest_delay().await? {
            return Ok(());
        }
        let text = format!("# Kubelet logind override\n[Login]\nInhibitDelayMaxSec={}\n", wanted.as_secs());
        let written = std::fs::create_dir_all(&self.config_dir)
            .and_then(|()| std::fs::write(self.config_dir.join("99-kubelet.conf"), text));
        written.map_err(|e| format!("unable to override inhibit delay by shutdown manager: {e}"))?;
        let [service, path, interface] = SYSTEMD;
        let reload = ["call", service, path, interface, "KillUnit", "ssi", "systemd-logind.service", "all", "1"];
        self.call(&reload).await?;
        let now = self.longest_delay().await?;
        if wanted <= now {
            return Ok(());
        }
        let shown = component_base::flags::show_go_duration;
        Err(format!(
            "node shutdown manager was unable to update logind InhibitDelayMaxSec to {} (ShutdownGracePeriod), current value of InhibitDelayMaxSec ({}) is less than requested ShutdownGracePeriod",
            shown(wanted),
            shown(now)
        ))
    }

    /// Takes the lock, and returns when it is held.
    pub(super) async fn hold(&self) -> Result<Lock, String> {
        let failed = |e: std::io::Error| format!("failed creating systemd inhibitor: {e}");
        let mut holder = Command::new(&self.systemd_inhibit)
            .args(["--what=shutdown", "--who=kubelet", "--mode=delay"])
            .args(["--why=Kubelet needs time to handle node shutdown", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        // What it runs begins when the lock is held: it repeats what it is told.
        if let (Some(input), Some(output)) = (&mut holder.stdin, &mut holder.stdout) {
            let mut heard = [0];
            let told = async {
                input.write_all(b".").await?;
                output.read_exact(&mut heard).await
            };
            let told = tokio::time::timeout(CALL, told).await;
            told.map_err(|_| "logind gives no lock".to_owned())?.map_err(failed)?;
        }
        Ok(Lock { _holder: holder })
    }

    pub(super) fn signals(&self) -> Result<Signals, String> {
        let mut monitor = Command::new(&self.busctl)
            .args(["--system", "--json=short", &format!("--match={SHUTDOWN}"), "monitor"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| format!("failed to monitor shutdown: {e}"))?;
        let output = monitor.stdout.take().ok_or("failed to monitor shutdown")?;
        Ok(Signals { _monitor: monitor, lines: BufReader::new(output).lines() })
    }
}

#[cfg(test)]
impl Logind {
    /// With programs of the test's own in this directory.
    pub(super) fn in_dir(dir: &std::path::Path) -> Self {
        let at = |name: &str| dir.join(name);
        Logind { busctl: at("busctl"), systemd_inhibit: at("systemd-inhibit"), config_dir: at("logind.conf.d") }
    }
}
