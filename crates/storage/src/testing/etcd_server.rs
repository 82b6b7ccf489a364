//! Servers of etcd that a test starts, kills and starts again. They listen on a loopback address that no other test
//! uses.

#![expect(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a check fails by panicking")]

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use tempfile::TempDir;

use crate::etcd::EtcdOptions;

const PROGRAM: &str = "etcd";
const START_WITHIN: Duration = Duration::from_secs(30);
const FIRST_PORT: u16 = 18000;

/// How a cluster is started.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClusterOptions {
    /// Serve TLS and demand client certificates.
    pub tls: bool,
    /// The largest database in bytes. `None`: etcd's default.
    pub quota_bytes: Option<u64>,
}

/// A cluster of etcd, in a directory of its own. It ends with this value.
pub struct EtcdCluster {
    address: IpAddr,
    members: Vec<EtcdMember>,
    tls: bool,
    dir: TempDir,
}

/// One member. Killed when dropped.
struct EtcdMember {
    client: SocketAddr,
    args: Vec<String>,
    log: PathBuf,
    /// Hears when the process serves; closed when it has ended.
    serves: Option<Receiver<()>>,
    /// The network namespace that it runs in, if it is not ours.
    namespace: Option<String>,
    process: Option<Child>,
}

impl EtcdCluster {
    /// Starts one member without TLS.
    #[must_use]
    pub fn single() -> Self {
        EtcdCluster::start(1, ClusterOptions::default())
    }

    /// Starts a cluster and waits until every member serves.
    #[must_use]
    pub fn start(size: usize, options: ClusterOptions) -> Self {
        EtcdCluster::prepare(size, options).started()
    }

    /// Starts a cluster in a network namespace.
    #[must_use]
    pub fn start_in(namespace: &str, size: usize, options: ClusterOptions) -> Self {
        let mut cluster = EtcdCluster::prepare(size, options);
        cluster.members.iter_mut().for_each(|member| member.namespace = Some(namespace.to_owned()));
        cluster.started()
    }

    fn started(mut self) -> Self {
        self.members.iter_mut().for_each(EtcdMember::spawn);
        self.members.iter_mut().for_each(EtcdMember::wait_until_it_serves);
        self
    }

    /// A cluster whose members are not started: its addresses are nobody's until [`EtcdCluster::restart`].
    #[must_use]
    pub fn prepare(size: usize, options: ClusterOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = own_address();
        if options.tls {
            write_certificates(&dir, address);
        }
        let ports: Vec<(u16, u16)> = (0..size).map(|_| (next_port(), next_port())).collect();
        let initial: Vec<String> =
            ports.iter().enumerate().map(|(i, (_, peer))| format!("m{i}=http://{address}:{peer}")).collect();
        let scheme = if options.tls { "https" } else { "http" };
        let members = ports.iter().enumerate().map(|(i, (client, peer))| {
            let mut args = vec![
                format!("--name=m{i}"),
                format!("--data-dir={}", dir.path().join(format!("m{i}")).display()),
                format!("--listen-client-urls={scheme}://{address}:{client}"),
                format!("--advertise-client-urls={scheme}://{address}:{client}"),
                format!("--listen-peer-urls=http://{address}:{peer}"),
                format!("--initial-advertise-peer-urls=http://{address}:{peer}"),
                format!("--initial-cluster={}", initial.join(",")),
                "--logger=zap".to_owned(),
            ];
            args.extend(options.quota_bytes.map(|bytes| format!("--quota-backend-bytes={bytes}")));
            if options.tls {
                let file = |name: &str| dir.path().join(name).display().to_string();
                args.push("--client-cert-auth".to_owned());
                args.push(format!("--trusted-ca-file={}", file("ca.crt")));
                args.push(format!("--cert-file={}", file("tls.crt")));
                args.push(format!("--key-file={}", file("tls.key")));
            }
            let log = dir.path().join(format!("m{i}.log"));
            EtcdMember {
                client: SocketAddr::new(address, *client),
                args,
                log,
                serves: None,
                namespace: None,
                process: None,
            }
        });
        EtcdCluster { address, members: members.collect(), tls: options.tls, dir }
    }

    /// The loopback address that is this test's own; ports from 18050 on are free on it.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The URLs of the members, in order.
    #[must_use]
    pub fn servers(&self) -> Vec<String> {
        let scheme = if self.tls { "https" } else { "http" };
        self.members.iter().map(|m| format!("{scheme}://{}", m.client)).collect()
    }

    /// How a client reaches it.
    #[must_use]
    pub fn options(&self) -> EtcdOptions {
        let file = |name: &str| self.tls.then(|| self.dir.path().join(name));
        EtcdOptions {
            servers: self.servers(),
            ca_file: file("ca.crt"),
            cert_file: file("tls.crt"),
            key_file: file("tls.key"),
            prefix: "/registry".to_owned(),
        }
    }

    /// Ends a member at once, as a crash would.
    pub fn kill(&mut self, index: usize) {
        let mut process = self.members[index].process.take().expect("a member that runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Stops a member's clock: it holds its connections and answers nothing, as behind a broken network.
    pub fn freeze(&self, index: usize) {
        self.signal(index, "-STOP");
    }

    pub fn thaw(&self, index: usize) {
        self.signal(index, "-CONT");
    }

    fn signal(&self, index: usize, signal: &str) {
        let process = self.members[index].process.as_ref().expect("a member that runs");
        assert!(Command::new("kill").args([signal, &process.id().to_string()]).status().unwrap().success());
    }

    /// Starts a member that does not run, with the data that it has.
    pub fn restart(&mut self, index: usize) {
        self.members[index].spawn();
        self.members[index].wait_until_it_serves();
    }

    /// Runs `etcdctl` on the cluster and gives what it prints.
    #[must_use]
    pub fn etcdctl(&self, args: &[&str]) -> Vec<u8> {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", self.servers().join(",")));
        if self.tls {
            let options = self.options();
            for (flag, file) in
                [("--cacert", options.ca_file), ("--cert", options.cert_file), ("--key", options.key_file)]
            {
                command.arg(format!("{flag}={}", file.unwrap().display()));
            }
        }
        let output = command.args(args).output().unwrap_or_else(|e| missing("etcdctl", "etcd-client", &e));
        assert!(output.status.success(), "etcdctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }
}

impl EtcdMember {
    fn spawn(&mut self) {
        let mut command = Command::new(if self.namespace.is_some() { "nsenter" } else { PROGRAM });
        if let Some(namespace) = &self.namespace {
            command.arg(format!("--net=/run/netns/{namespace}")).arg(PROGRAM);
        }
        command.args(&self.args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap_or_else(|e| missing(PROGRAM, "etcd-server", &e));
        let (tell, serves) = mpsc::channel();
        let (output, log) = (process.stderr.take().unwrap(), self.log.clone());
        std::thread::spawn(move || keep_log(output, &log, &tell));
        (self.process, self.serves) = (Some(process), Some(serves));
    }

    /// Etcd opens its client port only when it has joined its cluster.
    fn wait_until_it_serves(&mut self) {
        let heard = self.serves.take().expect("a member that was started").recv_timeout(START_WITHIN);
        if let Err(why) = heard {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            panic!("etcd does not serve on {}: {why}:\n{log}", self.client);
        }
    }
}

/// Writes down what a member says until it ends, and tells when it serves.
fn keep_log(output: ChildStderr, log: &Path, serves: &Sender<()>) {
    let mut log = std::fs::File::options().create(true).append(true).open(log).unwrap();
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        writeln!(log, "{line}").unwrap();
        if line.contains("serving client traffic") {
            // Who waited for it may have given up.
            let _ = serves.send(());
        }
    }
}

impl Drop for EtcdMember {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn missing(program: &str, package: &str, error: &std::io::Error) -> ! {
    panic!("{program} cannot be started ({error}): these tests need the Debian package {package}")
}

/// Of 127.64.0.0/10, by the process's id: tests run in processes of their own, many at a time.
/// Differs between test processes by their ids, and between the tests of one process by a count.
fn own_address() -> IpAddr {
    static COUNT: AtomicU8 = AtomicU8::new(0);
    let [.., middle, low] = std::process::id().to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, 64 | (COUNT.fetch_add(1, Ordering::Relaxed) & 0x3f), middle, low))
}

fn next_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(FIRST_PORT);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// An authority, and one certificate for servers and clients.
fn write_certificates(dir: &TempDir, address: IpAddr) {
    let write = |name: &str, text: &str| {
        std::fs::File::create(dir.path().join(name)).unwrap().write_all(text.as_bytes()).unwrap();
    };
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "etcd-ca");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "kube-apiserver-etcd-client");
    params.subject_alt_names.push(SanType::IpAddress(address));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    write("ca.crt", &issuer.pem());
    write("tls.crt", &certificate.pem());
    write("tls.key", &key.serialize_pem());
}
