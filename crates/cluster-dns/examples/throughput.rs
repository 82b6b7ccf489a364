//! How many questions cluster DNS answers on one core.
//!
//! `cargo run --release -p cluster-dns --example throughput -- [SECONDS]`: a server with one thread, asked over loopback by
//! clients with some questions under way each. Where clients share the server's core, the answers for each second of the
//! server's own processor time are what counts.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[path = "../../client/tests/scripted/mod.rs"]
mod scripted;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use component_base::metrics::Metrics;
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const SERVICES: usize = 1000;
const CLIENTS: usize = 2;
/// Questions of one client that are not answered yet.
const UNDER_WAY: usize = 32;

fn service(i: usize) -> Value {
    let ip = format!("10.96.{}.{}", i / 250, i % 250 + 1);
    json!({"metadata": {"name": format!("s{i}"), "namespace": "default", "resourceVersion": "1"},
        "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}})
}

fn question(i: usize) -> Vec<u8> {
    let mut message = Message::new(u16::try_from(i).unwrap_or_default(), MessageType::Query, OpCode::Query);
    let name = Name::from_ascii(format!("s{}.default.svc.cluster.local.", i % SERVICES)).expect("a name");
    message.add_query(Query::query(name, RecordType::A));
    message.to_vec().expect("a message")
}

/// Asks until it is told to stop, counting answers.
fn ask(server: SocketAddr, stop: &AtomicBool, answered: &AtomicU64) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.connect(server).expect("a socket of the server");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a time limit");
    let questions: Vec<Vec<u8>> = (0..SERVICES).map(question).collect();
    let mut next = questions.iter().cycle();
    let mut buffer = [0; 512];
    let mut open = 0;
    while !stop.load(Ordering::Relaxed) {
        while open < UNDER_WAY {
            open += usize::from(next.next().is_some_and(|question| socket.send(question).is_ok()));
        }
        match socket.recv(&mut buffer) {
            Ok(_) => {
                open -= 1;
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => open = 0, // lost
        }
    }
}

/// Processor time of the calling thread, in seconds.
fn processor_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = stat.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or_default();
    Duration::from_nanos(nanoseconds).as_secs_f64()
}

fn main() {
    let seconds = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(5);
    let address: SocketAddr = UdpSocket::bind("127.0.0.1:0").and_then(|s| s.local_addr()).expect("a free port");
    let stop = CancellationToken::new();
    let until = stop.clone();
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let lists = scripted::Lists::from([
                ("/api/v1/services", (0..SERVICES).map(service).collect()),
                ("/apis/discovery.k8s.io/v1/endpointslices", Vec::new()),
            ]);
            let (client, _changes) = scripted::client(lists);
            let config = cluster_dns::Config {
                listen: vec![address],
                cluster_domain: "cluster.local".to_owned(),
                upstreams: Vec::new(),
                stub_domains: Vec::new(),
                serving: None,
                metrics: Metrics::new(),
            };
            let before = processor_time();
            cluster_dns::run(config, client, until).await.expect("the server runs");
            processor_time() - before
        })
    });
    let (done, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (done, answered) = (Arc::clone(&done), Arc::clone(&answered));
            std::thread::spawn(move || ask(address, &done, &answered))
        })
        .collect();
    while answered.load(Ordering::Relaxed) == 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let (began, first) = (Instant::now(), answered.load(Ordering::Relaxed));
    std::thread::sleep(Duration::from_secs(seconds));
    #[expect(clippy::cast_precision_loss, reason = "a count of answers fits a float")]
    let (all, counted) = {
        let now = answered.load(Ordering::Relaxed);
        (now as f64, (now - first) as f64)
    };
    let elapsed = began.elapsed().as_secs_f64();
    done.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().expect("a client ends"));
    stop.cancel();
    let busy = server.join().expect("the server ends");
    println!(
        "{:.0} answers a second; {:.0} for each second of the server's processor time",
        counted / elapsed,
        all / busy
    );
}
