//! Network namespaces as machines, with no way out.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// Runs `ip` with these words, which must succeed, and gives what it prints.
#[track_caller]
pub fn ip(args: &str) -> String {
    let done = Command::new("ip").args(args.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {args}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// Does something on a thread that is in the namespace of this file.
pub fn inside<T: Send>(namespace: &Path, work: impl FnOnce() -> T + Send) -> T {
    let namespace = std::fs::File::open(namespace).unwrap();
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Namespaces that go when the test ends. Each has its loopback and forwards packets.
pub struct Namespaces {
    prefix: String,
    names: Vec<&'static str>,
}

impl Namespaces {
    /// `tag` tells the tests of one crate from those of another.
    #[must_use]
    pub fn new(tag: &str, names: &[&'static str]) -> Self {
        static COUNT: AtomicU8 = AtomicU8::new(0);
        let prefix = format!("kelson-{tag}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let all = Namespaces { prefix, names: names.to_vec() };
        for name in names {
            ip(&format!("netns add {}", all.ns(name)));
            all.ip(name, "link set lo up");
            // Addresses are ours to give; nobody has to be asked whether they are taken.
            for setting in
                ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv6.conf.default.accept_dad=0"]
            {
                ip(&format!("netns exec {} sysctl -qw {setting}", all.ns(name)));
            }
        }
        all
    }

    /// The system's name of one.
    #[must_use]
    pub fn ns(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// Runs `ip` in one.
    #[track_caller]
    pub fn ip(&self, name: &str, args: &str) -> String {
        ip(&format!("-n {} {args}", self.ns(name)))
    }

    pub fn inside<T: Send>(&self, name: &str, work: impl FnOnce() -> T + Send) -> T {
        inside(&PathBuf::from("/run/netns").join(self.ns(name)), work)
    }

    /// Runs something asynchronous in one.
    pub fn block_on<T: Send>(&self, name: &str, work: impl Future<Output = T> + Send) -> T {
        self.inside(name, || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work))
    }

    /// Serves at an address, telling each caller the address that it comes from.
    pub fn serve(&self, name: &str, address: &str) {
        let listener = self.inside(name, || TcpListener::bind(address).unwrap());
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let Ok(mut socket) = socket else { return };
                let from = socket.peer_addr().map(|a| a.ip().to_string()).unwrap_or_default();
                // A caller may go away.
                let _ = socket.write_all(from.as_bytes());
            }
        });
    }

    /// What a caller hears from a [`serve`](Self::serve), or `refused`, or `silence`.
    pub fn call(&self, from: &str, to: &str, patience: Duration) -> String {
        let to: SocketAddr = to.parse().unwrap();
        self.inside(from, || match TcpStream::connect_timeout(&to, patience) {
            Ok(mut socket) => {
                let mut heard = String::new();
                socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                // What was heard until then counts.
                let _ = socket.read_to_string(&mut heard);
                heard
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => "refused".to_owned(),
            Err(_) => "silence".to_owned(),
        })
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            // Nothing can be done about one that stays.
            let _ = Command::new("ip").args(["netns", "delete", &self.ns(name)]).status();
        }
    }
}
