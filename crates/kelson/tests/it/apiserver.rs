//! `kelson kube-apiserver` in a process of its own, and kubectl against it.

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use testing::wait::last_within;

pub(crate) const WAIT: Duration = Duration::from_secs(60);
pub(crate) const TOKEN: &str = "test-token";

/// A server. Killed when dropped.
pub(crate) struct ApiServer {
    process: Child,
    command: Command,
    pub(crate) url: String,
    log: PathBuf,
    dir: tempfile::TempDir,
}

/// What kubectl said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) ok: bool,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said { ok: output.status.success(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

impl ApiServer {
    /// Starts a server with these flags besides those that every server here has. It may not be ready yet.
    pub(crate) fn start(address: IpAddr, port: u16, flags: &[String]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let tokens = file("tokens.csv", &format!("{TOKEN},admin,1,system:masters\n"));
        let key = file("sa.key", &rcgen::KeyPair::generate().unwrap().serialize_pem());
        let log = dir.path().join("log");
        let output = std::fs::File::create(&log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kelson"));
        command.arg("kube-apiserver").args([
            format!("--bind-address={address}"),
            format!("--secure-port={port}"),
            format!("--cert-dir={}", dir.path().display()),
            format!("--token-auth-file={tokens}"),
            format!("--service-account-key-file={key}"),
            format!("--service-account-signing-key-file={key}"),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
        ]);
        if !flags.iter().any(|flag| flag.starts_with("--etcd-servers=")) {
            command.arg(format!("--data-dir={}", dir.path().join("store").display()));
        }
        command.args(flags).stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        ApiServer { process: command.spawn().unwrap(), command, url: format!("https://{address}:{port}"), log, dir }
    }

    /// Kills it as a crash would, and starts it on what it left.
    pub(crate) fn kill_and_start_again(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = self.command.spawn().unwrap();
    }

    pub(crate) fn client(&self) -> kube::Client {
        let mut config = kube::Config::new(self.url.parse().unwrap());
        config.accept_invalid_certs = true;
        config.auth_info.token = Some(TOKEN.to_owned().into());
        kube::Client::try_from(config).unwrap()
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `/readyz` is as it should be.
    pub(crate) fn wait_until_ready(&self) {
        self.wait_for("/readyz", |said| said.ok);
    }

    /// Asks for a path until the answer is as wanted.
    pub(crate) fn wait_for(&self, path: &str, wanted: impl Fn(&Said) -> bool) -> Said {
        let said = last_within(WAIT, || self.kubectl(&["get", "--raw", path], ""), &wanted);
        assert!(wanted(&said), "{path}: {said:?}\n{}", self.log());
        said
    }

    fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.env_remove("KUBECONFIG").env("HOME", self.dir());
        command.args(["--server", &self.url, "--insecure-skip-tls-verify", "--token", TOKEN]).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs kubectl against another server, with this token if there is one.
    pub(crate) fn kubectl_elsewhere(&self, url: &str, token: &str, args: &[&str]) -> Said {
        let mut command = Command::new("kubectl");
        command.env_remove("KUBECONFIG").env("HOME", self.dir());
        command.args(["--server", url, "--insecure-skip-tls-verify"]).args(args);
        if token.is_empty() {
            // kubectl asks at the terminal where it has no credentials at all; of these the server takes no notice.
            command.args(["--username=none", "--password=none"]);
        } else {
            command.args(["--token", token]);
        }
        Said::of(&command.stdin(Stdio::null()).output().unwrap())
    }

    /// Runs kubectl; `input` is its standard input.
    pub(crate) fn kubectl(&self, args: &[&str], input: &str) -> Said {
        let mut process = self.spawn_kubectl(args);
        process.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        Said::of(&process.wait_with_output().unwrap())
    }

    /// Runs kubectl, which must succeed, and gives what it prints.
    pub(crate) fn kubectl_ok(&self, args: &[&str], input: &str) -> String {
        let said = self.kubectl(args, input);
        assert!(said.ok, "kubectl {args:?}: {}\n{}", said.err, self.log());
        said.out
    }

    /// Starts kubectl and lets it run.
    pub(crate) fn spawn_kubectl(&self, args: &[&str]) -> Child {
        self.kubectl_command(args).spawn().unwrap_or_else(|e| {
            panic!("kubectl cannot be started ({e}): these tests need the Debian package kubernetes-client")
        })
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
