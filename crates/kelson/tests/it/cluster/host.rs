//! Machines made of network namespaces, joined by a switch, with no way out.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use testing::wait::holds_within;

/// How long anything in a cluster may take here, where others work on the same two cores.
pub(crate) const WAIT: Duration = Duration::from_secs(60);
/// The first two numbers of the hosts' addresses, from the range for benchmarks of networks (RFC 2544).
const RANGE: &str = "198.19";

/// A switch with hosts on it.
pub(crate) struct Network {
    name: String,
    /// The third number of the hosts' addresses.
    subnet: u8,
    dir: tempfile::TempDir,
}

impl Network {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU8 = AtomicU8::new(0);
        let subnet = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("kelson-test-{}-{subnet}", std::process::id());
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "add", "switch", "type", "bridge"]);
        ip(&["-n", &name, "link", "set", "switch", "up"]);
        Network { name, subnet, dir: tempfile::Builder::new().prefix("kelson-test-").tempdir().unwrap() }
    }

    /// The host with this number (1 to 9), with no route to anywhere but the switch.
    pub(crate) fn host(&self, number: u8) -> Host {
        let ns = format!("{}-h{number}", self.name);
        let (address, port) = (format!("{RANGE}.{}.{number}", self.subnet), format!("port{number}"));
        ip(&["netns", "add", &ns]);
        ip(&["-n", &ns, "link", "set", "lo", "up"]);
        ip(&["-n", &ns, "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", &self.name]);
        ip(&["-n", &self.name, "link", "set", &port, "master", "switch", "up"]);
        ip(&["-n", &ns, "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
        ip(&["-n", &ns, "link", "set", "eth0", "up"]);
        // Service addresses need a route before the packet filter sees them; nobody has the gateway's address.
        ip(&["-n", &ns, "route", "add", "default", "via", &format!("{RANGE}.{}.254", self.subnet)]);
        let dir = self.dir.path().join(format!("h{number}"));
        std::fs::create_dir_all(dir.join("images")).unwrap();
        Host { ns, address, ipv6: None, name: format!("node-{number}"), dir, kelson: None }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        ip(&["netns", "delete", &self.name]);
    }
}

/// A machine: a namespace, an address and a data directory.
pub(crate) struct Host {
    pub(crate) ns: String,
    pub(crate) address: String,
    pub(crate) ipv6: Option<String>,
    /// Its name as a node.
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    kelson: Option<Child>,
}

/// What a program said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) ok: bool,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Host {
    /// A program in the host's namespace. `nsenter`, because `ip netns exec` hides the cgroup mounts.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.ns)).arg(program);
        command
    }

    /// Gives the host an IPv6 address too.
    pub(crate) fn add_ipv6(&mut self) {
        let address = self.address.rsplit('.').take(2).collect::<Vec<_>>();
        let (number, subnet) = (address[0], address[1]);
        let own = format!("fd00:198:19:{subnet}::{number}");
        ip(&["-n", &self.ns, "addr", "add", &format!("{own}/64"), "dev", "eth0", "nodad"]);
        ip(&["-n", &self.ns, "-6", "route", "add", "default", "via", &format!("fd00:198:19:{subnet}::fe")]);
        self.ipv6 = Some(own);
    }

    fn addresses(&self) -> Vec<&str> {
        std::iter::once(&self.address).chain(&self.ipv6).map(String::as_str).collect()
    }

    /// Starts `kelson up` with these flags besides those that every host has.
    pub(crate) fn up(&mut self, flags: &[String]) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_file()).unwrap();
        let mut command = self.command(env!("CARGO_BIN_EXE_kelson"));
        command
            .arg("up")
            .args([
                format!("--data-dir={}", self.dir.display()),
                format!("--node-ip={}", self.addresses().join(",")),
                format!("--node-name={}", self.name),
            ])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.kelson = Some(command.spawn().unwrap());
    }

    /// Kills Kelson as a crash would. Containers and containerd go on.
    pub(crate) fn kill_kelson(&mut self) {
        let mut kelson = self.kelson.take().unwrap();
        kelson.kill().unwrap();
        kelson.wait().unwrap();
    }

    /// Takes everything of the cluster from the host.
    pub(crate) fn reset(&self) -> Said {
        self.run(env!("CARGO_BIN_EXE_kelson"), &["reset", &format!("--data-dir={}", self.dir.display())])
    }

    /// The file of its network namespace.
    pub(crate) fn namespace(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.ns)
    }

    /// Kills a container's first process, as a crash of it would. `id` as a pod's status has it.
    pub(crate) fn kill_container(&self, id: &str) {
        let id = id.strip_prefix("containerd://").unwrap();
        let socket = self.dir.join("containerd/containerd.sock").display().to_string();
        let said = self.run("ctr", &["-a", &socket, "-n", "k8s.io", "task", "kill", "--signal", "SIGKILL", id]);
        assert!(said.ok, "{said:?}");
    }

    /// Kills containerd as a crash would; gives its process id. Containers go on.
    pub(crate) fn kill_containerd(&self) -> i32 {
        let pid = std::fs::read_to_string(self.dir.join("containerd/containerd.pid")).unwrap();
        let pid = pid.trim().parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
        pid
    }

    fn log_file(&self) -> PathBuf {
        self.dir.with_extension("log")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig/admin.conf")
    }

    pub(crate) fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = self.command("kubectl");
        command.arg("--kubeconfig").arg(self.kubeconfig()).args(args);
        command.env_remove("KUBECONFIG").env("HOME", &self.dir);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn kubectl(&self, args: &[&str], input: &str) -> Said {
        said(self.kubectl_command(args), input)
    }

    /// Runs kubectl, which must succeed, and gives what it prints.
    #[track_caller]
    pub(crate) fn kubectl_ok(&self, args: &[&str], input: &str) -> String {
        let said = self.kubectl(args, input);
        assert!(said.ok, "kubectl {args:?}: {}{}\n{}", said.out, said.err, self.log());
        said.out
    }

    /// Runs a program on the host.
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> Said {
        let mut command = self.command(program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        said(command, "")
    }

    /// Asks kubectl until it prints what is wanted.
    #[track_caller]
    pub(crate) fn until(&self, args: &[&str], wanted: impl Fn(&str) -> bool) -> String {
        let mut last = self.kubectl(args, "");
        let done = holds_in_time(|| {
            last = self.kubectl(args, "");
            last.ok && wanted(&last.out)
        });
        assert!(done, "kubectl {args:?} still says {last:?}\n{}\n{}", self.picture(), self.log());
        last.out
    }

    #[track_caller]
    pub(crate) fn wait_until_node_is_ready(&self, name: &str) {
        let path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
        self.until(&["get", "node", name, "-o", path], |out| out == "True");
    }

    /// The page that answers at an address, asked for from this host.
    pub(crate) fn fetch(&self, url: &str) -> Said {
        self.run("curl", &["--silent", "--show-error", "--max-time", "2", url])
    }

    #[track_caller]
    pub(crate) fn wait_for_page(&self, url: &str, wanted: &str) {
        let mut last = self.fetch(url);
        let done = holds_in_time(|| {
            last = self.fetch(url);
            last.out.contains(wanted)
        });
        assert!(done, "{url} still says {last:?}\n{}\n{}", self.picture(), self.log());
    }

    /// What there is, for a test that fails.
    fn picture(&self) -> String {
        let all = ["get", "nodes,pods,services,endpointslices,events", "-A", "-o", "wide"];
        let said = self.kubectl(&all, "");
        format!("{}{}", said.out, said.err)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may have ended by itself.
        if let Some(mut kelson) = self.kelson.take() {
            let _ = kelson.kill();
            let _ = kelson.wait();
        }
        let reset = self.reset();
        ip(&["netns", "delete", &self.ns]);
        if !std::thread::panicking() {
            assert!(reset.ok, "something of {} stays: {reset:?}", self.dir.display());
        }
    }
}

/// Whether something becomes true in time.
pub(crate) fn holds_in_time(holds: impl FnMut() -> bool) -> bool {
    holds_within(WAIT, holds)
}

pub(crate) fn said(mut command: Command, input: &str) -> Said {
    let mut process = command.spawn().unwrap();
    // It may end without reading all of it.
    let _ = process.stdin.take().unwrap().write_all(input.as_bytes());
    let output = process.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Said { ok: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
}

fn ip(args: &[&str]) {
    let done = Command::new("ip").args(args).output().unwrap();
    let complaint = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() || std::thread::panicking(), "ip {args:?}: {complaint}");
}

/// Packs busybox and a page into the image that the tests' pods run.
pub(crate) fn pack_image(host: &Host) {
    let root = host.dir.with_extension("rootfs");
    for dir in ["bin", "www", "tmp", "etc"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("the Debian package busybox-static is needed");
    for applet in ["sh", "ls", "cat", "echo", "sleep", "wget", "nslookup", "nc", "tar", "env", "hostname", "kill", "id"]
    {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    std::fs::write(root.join("www/index.html"), "Hello from Kelson\n").unwrap();
    pack(&root, &host.dir.join("images/hello.tar"));
}

fn pack(root: &Path, archive: &Path) {
    let words = ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"];
    let done = Command::new(env!("CARGO_BIN_EXE_kelson"))
        .args(["images", "pack"])
        .args([archive, root])
        .arg("--name=kelson.local/hello:1")
        .args(words.map(|word| format!("--cmd={word}")))
        .status();
    assert!(done.unwrap().success());
}
