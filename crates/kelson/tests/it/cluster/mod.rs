//! Whole clusters on machines made of network namespaces: containers, packets and kubectl are real.

mod behaviours;
mod faults;
mod host;
mod network;
mod node;
mod probes;
mod streams;
mod workload;

use std::sync::{Mutex, MutexGuard, PoisonError};

use host::{Host, Network, pack_image};

/// A cluster on one host, with the hello image on it. Fields are dropped in order: the host before its network, and the
/// turn last.
struct OneNode {
    host: Host,
    _network: Network,
    _turn: MutexGuard<'static, ()>,
}

/// One cluster at a time: each takes most of a small machine.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OneNode {
    fn start(flags: &[String]) -> Self {
        Self::prepared(|_| flags.to_vec())
    }

    /// As `start`, after something was done to the host. Gives the flags.
    fn prepared(prepare: impl FnOnce(&mut Host) -> Vec<String>) -> Self {
        let turn = turn();
        let network = Network::new();
        let mut host = network.host(1);
        pack_image(&host);
        let flags = prepare(&mut host);
        host.up(&flags);
        host.wait_until_node_is_ready(&host.name);
        OneNode { host, _network: network, _turn: turn }
    }
}

/// The workload of `examples/hello.yaml`.
fn hello() -> String {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/hello.yaml");
    std::fs::read_to_string(file).unwrap()
}
