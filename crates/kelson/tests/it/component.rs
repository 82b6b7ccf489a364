//! Components in processes of their own, beside an API server.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use testing::wait::holds_within;

use crate::apiserver::{ApiServer, TOKEN};

/// An API server with what its components need: a kubeconfig and an authority.
pub(crate) fn server_for_components(port: u16, flags: &[String]) -> ApiServer {
    let server = ApiServer::start(Ipv4Addr::LOCALHOST.into(), port, flags);
    server.wait_until_ready();
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server.url, "insecure-skip-tls-verify": true}}],
        "users": [{"name": "u", "user": {"token": TOKEN}}],
    });
    std::fs::write(server.dir().join("admin.conf"), kubeconfig.to_string()).unwrap();
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = authority.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
    std::fs::write(server.dir().join("ca.crt"), certificate.pem()).unwrap();
    server
}

/// Killed when dropped, as a crash would end it.
pub(crate) struct Component {
    process: Child,
    log: PathBuf,
}

impl Component {
    /// Starts a component of `server` with these flags, besides those that say where the server is.
    pub(crate) fn start(server: &ApiServer, name: &str, flags: &[&str]) -> Self {
        let kubeconfig = server.dir().join("admin.conf");
        let log = server.dir().join(format!("{name}-{}.log", rand::random::<u32>()));
        let output = std::fs::File::create(&log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kelson"));
        command.arg(name).arg(format!("--kubeconfig={}", kubeconfig.display())).args(flags);
        command.args(["--kube-api-qps=1000", "--kube-api-burst=1000"]);
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        Component { process: command.spawn().unwrap(), log }
    }

    /// The controllers, unelected and without a port.
    pub(crate) fn controllers(server: &ApiServer, flags: &[&str]) -> Self {
        let ca = format!("--root-ca-file={}", server.dir().join("ca.crt").display());
        let usual = [ca.as_str(), "--leader-elect=false", "--secure-port=0"];
        Self::start(server, "kube-controller-manager", &[&usual, flags].concat())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.process.id()).unwrap()), signal).unwrap();
    }

    /// How it ended by itself.
    pub(crate) fn end(&mut self, within: Duration) -> ExitStatus {
        let mut status = None;
        let ended = holds_within(within, || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        assert!(ended, "it does not end:\n{}", self.log());
        status.unwrap()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
