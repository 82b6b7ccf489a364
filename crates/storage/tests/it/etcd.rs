//! What the client of etcd promises beyond the suite: nothing acknowledged is lost while members come and go, what is
//! wrong is said clearly, and history is compacted by upstream's protocol.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use storage::etcd::{ConfigError, Etcd, EtcdOptions};
use storage::testing::etcd_server::{ClusterOptions, EtcdCluster};
use storage::{Key, KeyRange, Revision, Storage, StorageError, Ttl, WatchEvent};
use tokio::sync::watch;

const WAIT: Duration = Duration::from_secs(60);

async fn open(cluster: &EtcdCluster) -> Arc<Etcd> {
    Arc::new(Etcd::new(&cluster.options()).await.unwrap())
}

fn everything() -> KeyRange {
    KeyRange::prefix("/registry/")
}

/// Writers that create and update keys, and the revisions that were acknowledged to them.
struct Load {
    writers: Vec<tokio::task::JoinHandle<Vec<(Key, Bytes, Revision)>>>,
    written: watch::Sender<usize>,
    stop: Arc<std::sync::atomic::AtomicBool>,
}

impl Load {
    fn start(store: &Arc<Etcd>) -> Self {
        let written = watch::Sender::new(0);
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let writers = (0..8).map(|w| {
            let (store, written, stop) = (Arc::clone(store), written.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for i in 0.. {
                    if stop.load(std::sync::atomic::Ordering::Relaxed) {
                        break;
                    }
                    let key = Key::new(&format!("/registry/load/w{w}/{i}"));
                    // A write that fails claims nothing; the next one may do better.
                    let first = Bytes::from(format!("{w}.{i}.1"));
                    let Ok(created) = store.create(&key, first.clone(), None).await else { continue };
                    let second = Bytes::from(format!("{w}.{i}.2"));
                    match store.update(&key, second.clone(), created, None).await {
                        Ok(revision) => acknowledged.push((key, second, revision)),
                        Err(StorageError::Conflict { .. } | StorageError::NotFound { .. }) => {
                            panic!("nobody else writes {}, and yet it is not as it was acknowledged", key.as_str())
                        }
                        Err(_) => {}
                    }
                    written.send_modify(|written| *written += 1);
                }
                acknowledged
            })
        });
        Load { writers: writers.collect(), written, stop }
    }

    async fn run_for(&self, writes: usize) {
        let mut written = self.written.subscribe();
        let target = *written.borrow() + writes;
        let reached = written.wait_for(|written| *written >= target);
        tokio::time::timeout(WAIT, reached).await.expect("writes go on").unwrap();
    }

    async fn finish(self) -> Vec<(Key, Bytes, Revision)> {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let mut acknowledged = Vec::new();
        for writer in self.writers {
            acknowledged.extend(writer.await.unwrap());
        }
        acknowledged
    }
}

/// Everything that was acknowledged is in the store and came through the watch, once and in order.
async fn check_all(store: &Etcd, mut watch: storage::WatchStream, acknowledged: &[(Key, Bytes, Revision)]) {
    let page = store.range(&everything(), 0, None).await.unwrap();
    let held: std::collections::HashMap<_, _> =
        page.entries.iter().map(|e| (e.key.clone(), (e.value.clone(), e.mod_revision))).collect();
    for (key, value, revision) in acknowledged {
        assert_eq!(held.get(key), Some(&(value.clone(), *revision)), "{} was acknowledged", key.as_str());
    }
    let mut seen = std::collections::HashMap::new();
    let mut last = Revision(0);
    while seen.len() < held.len() || seen != held {
        let event = tokio::time::timeout(WAIT, watch.next()).await.expect("every change in time");
        match event.unwrap().unwrap() {
            WatchEvent::Put { entry, previous } => {
                assert!(entry.mod_revision > last, "{} after {last}", entry.mod_revision);
                last = entry.mod_revision;
                let known = seen.insert(entry.key.clone(), (entry.value, entry.mod_revision));
                assert_eq!(known, previous.map(|p| (p.value, p.mod_revision)), "a gap before {}", entry.key.as_str());
            }
            WatchEvent::Progress(_) => {}
            other @ WatchEvent::Delete { .. } => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_write_is_lost_when_a_member_is_killed() {
    let mut cluster = EtcdCluster::start(3, ClusterOptions::default());
    let store = open(&cluster).await;
    let watch = store.watch(&everything(), store.revision().await.unwrap()).await.unwrap();
    let load = Load::start(&store);
    load.run_for(100).await;
    // One after the other, so that the member that is asked, and the leader, are among them.
    for member in 0..3 {
        cluster.kill(member);
        load.run_for(100).await;
        cluster.restart(member);
        load.run_for(100).await;
    }
    let acknowledged = load.finish().await;
    assert!(acknowledged.len() >= 500, "{}", acknowledged.len());
    check_all(&store, watch, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_hangs_is_left() {
    let cluster = EtcdCluster::start(3, ClusterOptions::default());
    let mut options = cluster.options();
    // The order decides who is asked first: make it the one that will hang.
    let first = std::process::id() as usize % 3;
    options.servers.rotate_right(first);
    let store = Arc::new(Etcd::new(&options).await.unwrap());
    let watch = store.watch(&everything(), store.revision().await.unwrap()).await.unwrap();
    let load = Load::start(&store);
    load.run_for(50).await;
    cluster.freeze(0);
    load.run_for(50).await;
    cluster.thaw(0);
    let acknowledged = load.finish().await;
    check_all(&store, watch, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_waits_for_a_cluster_that_starts() {
    let mut cluster = EtcdCluster::prepare(1, ClusterOptions::default());
    let store = open(&cluster).await;
    let write = tokio::spawn(async move { store.create(&Key::new("/registry/a"), "1".into(), None).await });
    cluster.restart(0);
    assert!(write.await.unwrap().unwrap() > Revision(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_cluster_is_named() {
    let cluster = EtcdCluster::prepare(2, ClusterOptions::default());
    let store = open(&cluster).await;
    match store.revision().await {
        Err(StorageError::Unavailable { reason }) => {
            assert!(cluster.servers().iter().any(|s| reason.contains(s)), "{reason}");
            assert!(reason.contains("onnection refused"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_authority_is_refused() {
    let cluster = EtcdCluster::start(1, ClusterOptions { tls: true, ..ClusterOptions::default() });
    let other = EtcdCluster::prepare(1, ClusterOptions { tls: true, ..ClusterOptions::default() });
    let options = EtcdOptions { ca_file: other.options().ca_file, ..cluster.options() };
    match Etcd::new(&options).await.unwrap().revision().await {
        Err(StorageError::Unavailable { reason }) => assert!(reason.contains("certificate"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn mistakes_in_the_options_are_named() {
    let none = EtcdOptions::default();
    let with = |server: &str| EtcdOptions { servers: vec![server.to_owned()], ..EtcdOptions::default() };
    let half = EtcdOptions { cert_file: Some("/x".into()), ..with("https://127.0.0.1:1") };
    let gone = EtcdOptions { ca_file: Some("/nowhere/ca.crt".into()), ..with("https://127.0.0.1:1") };
    assert!(matches!(Etcd::new(&none).await, Err(ConfigError::NoServers)));
    assert!(matches!(Etcd::new(&with("127.0.0.1:2379")).await, Err(ConfigError::Scheme(_))));
    assert!(matches!(Etcd::new(&half).await, Err(ConfigError::File { .. } | ConfigError::HalfIdentity)));
    match Etcd::new(&gone).await {
        Err(error @ ConfigError::File { .. }) => assert_eq!(error.to_string(), "cannot read /nowhere/ca.crt"),
        _ => panic!("a file that is not there was read"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limits_of_etcd_are_told_apart() {
    let cluster = EtcdCluster::start(1, ClusterOptions { quota_bytes: Some(8 << 20), ..ClusterOptions::default() });
    let store = open(&cluster).await;
    let large = Bytes::from(vec![b'x'; 2 << 20]);
    match store.create(&Key::new("/registry/large"), large, None).await {
        Err(StorageError::TooLarge { size, .. }) => assert_eq!(size, 2 << 20),
        other => panic!("{other:?}"),
    }
    let value = Bytes::from(vec![b'x'; 1 << 20]);
    for i in 0..32 {
        match store.create(&Key::new(&format!("/registry/{i}")), value.clone(), None).await {
            Ok(_) => {}
            Err(StorageError::Full) => return,
            Err(other) => panic!("{other:?}"),
        }
    }
    panic!("the quota was not enforced");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_range_is_whole() {
    let cluster = EtcdCluster::single();
    let store = open(&cluster).await;
    let writers = (0..16).map(|w| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for i in 0..150 {
                store.create(&Key::new(&format!("/registry/k/{w:02}{i:03}")), "x".into(), None).await.unwrap();
            }
        })
    });
    futures::future::join_all(writers.collect::<Vec<_>>()).await;
    let page = store.range(&everything(), 0, None).await.unwrap();
    assert_eq!((page.entries.len(), page.remaining), (2400, 0));
    assert!(page.entries.is_sorted_by(|a, b| a.key < b.key));
    assert_eq!(page.revision, store.revision().await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_written_together_share_a_lease() {
    let cluster = EtcdCluster::single();
    let store = open(&cluster).await;
    for i in 0..10 {
        let ttl = Some(Ttl(Duration::from_secs(3600)));
        store.create(&Key::new(&format!("/registry/events/{i}")), "x".into(), ttl).await.unwrap();
    }
    let leases = String::from_utf8(cluster.etcdctl(&["lease", "list"])).unwrap();
    assert!(leases.starts_with("found 1 leases"), "{leases}");
    // An operator may revoke it: the next write takes a new one.
    let lease = leases.lines().nth(1).unwrap();
    let _ = cluster.etcdctl(&["lease", "revoke", lease]);
    let ttl = Some(Ttl(Duration::from_secs(3600)));
    store.create(&Key::new("/registry/events/more"), "x".into(), ttl).await.unwrap();
    assert_eq!(store.range(&everything(), 0, None).await.unwrap().entries.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_several_servers_compacts() {
    let cluster = EtcdCluster::single();
    let (one, two) = (open(&cluster).await, open(&cluster).await);
    let old = one.create(&Key::new("/registry/a"), "1".into(), None).await.unwrap();
    // The first round only takes note of the revision.
    let (first, compacted) = one.compact_round(Default::default()).await.unwrap();
    assert_eq!(compacted, None);
    let (late, compacted) = two.compact_round(Default::default()).await.unwrap();
    assert_eq!(compacted, None, "it lost the race for this interval");
    one.create(&Key::new("/registry/b"), "1".into(), None).await.unwrap();
    let (_, compacted) = one.compact_round(first).await.unwrap();
    let compacted = compacted.unwrap();
    assert!(compacted > old);
    assert_eq!(two.compact_round(late).await.unwrap().1, None);
    assert_eq!(cluster.etcdctl(&["get", "--print-value-only", "compact_rev_key"]), format!("{compacted}\n").as_bytes());
    match one.range(&everything(), 0, Some(old)).await {
        Err(StorageError::Compacted { asked, oldest }) => assert_eq!((asked, oldest), (old, compacted)),
        other => panic!("{other:?}"),
    }
    assert_eq!(one.range(&everything(), 0, Some(compacted)).await.unwrap().entries.len(), 1);
}
