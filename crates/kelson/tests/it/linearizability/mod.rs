//! Histories of concurrent clients, with the server killed in their midst, are linearizable.

mod history;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, PostParams, WatchEvent as KubeEvent, WatchParams};
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use storage::etcd::Etcd;
use storage::testing::etcd_server::EtcdCluster;
use storage::{Key, KeyRange, Revision, Storage, WatchEvent};

use testing::wait::holds_within;
use tokio::sync::{oneshot, watch};

use crate::apiserver::{ApiServer, WAIT};
use history::{Call, Change, History, State, Told, changes_told};

const PORT: u16 = 18090;
const CLIENTS: usize = 6;
const CALLS: usize = 150;
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const KILLS: usize = 3;
const SEED: u64 = 20_261_127;

/// One client, which does one thing after the other.
struct User {
    api: Api<ConfigMap>,
    number: usize,
    deletes: bool,
    random: StdRng,
    /// By name: the revision that it saw last.
    seen: BTreeMap<&'static str, String>,
    /// How often the server has come back.
    lives: watch::Receiver<usize>,
    calls: Arc<Mutex<Vec<Call>>>,
}

fn number(version: Option<String>) -> u64 {
    version.unwrap_or_default().parse().unwrap()
}

fn value_of(map: &ConfigMap) -> String {
    map.data.as_ref().and_then(|data| data.get("value")).cloned().unwrap_or_default()
}

fn map(name: &str, value: &str, version: Option<String>) -> ConfigMap {
    let mut map = ConfigMap { data: Some([("value".to_owned(), value.to_owned())].into()), ..ConfigMap::default() };
    map.metadata.name = Some(name.to_owned());
    map.metadata.resource_version = version;
    map
}

impl User {
    async fn work(mut self) {
        for call in 0..CALLS {
            let name = NAMES[self.random.random_range(0..NAMES.len())];
            let value = format!("{}-{call}", self.number);
            let lives = *self.lives.borrow();
            let asked = Instant::now();
            let told = match self.random.random_range(0..10) {
                0..2 => self.create(name, &value).await,
                2..5 => self.replace(name, &value).await,
                5 if self.deletes => self.delete(name).await,
                5..9 => self.get(name).await,
                _ => self.list().await,
            };
            let away = matches!(told, Told::Unknown { .. });
            self.calls.lock().push(Call { asked, answered: Instant::now(), told });
            if away {
                let back = self.lives.wait_for(|now| *now > lives);
                drop(tokio::time::timeout(WAIT, back).await.expect("the server comes back").unwrap());
            }
        }
    }

    async fn create(&mut self, name: &'static str, value: &str) -> Told {
        let done = self.api.create(&PostParams::default(), &map(name, value, None)).await;
        self.written(name, value, None, done)
    }

    async fn replace(&mut self, name: &'static str, value: &str) -> Told {
        let Some(version) = self.seen.get(name).cloned() else { return self.get(name).await };
        let done = self.api.replace(name, &PostParams::default(), &map(name, value, Some(version.clone()))).await;
        self.written(name, value, Some(version), done)
    }

    fn written(
        &mut self,
        name: &'static str,
        value: &str,
        over: Option<String>,
        done: kube::Result<ConfigMap>,
    ) -> Told {
        let over = over.map(|version| number(Some(version)));
        match done {
            Ok(map) => {
                self.note(name, &map);
                Told::Wrote {
                    name: name.to_owned(),
                    value: value.to_owned(),
                    over,
                    revision: number(map.resource_version()),
                }
            }
            Err(error) => self.refused(name, over, &error).unwrap_or(Told::Unknown { value: Some(value.to_owned()) }),
        }
    }

    async fn delete(&mut self, name: &'static str) -> Told {
        match self.api.delete(name, &DeleteParams::default()).await {
            Ok(done) => {
                let uid = done.either(|map| map.uid(), |status| status.details.map(|details| details.uid));
                Told::Deleted { name: name.to_owned(), uid: uid.unwrap() }
            }
            Err(error) => self.refused(name, None, &error).unwrap_or(Told::Unknown { value: None }),
        }
    }

    async fn get(&mut self, name: &'static str) -> Told {
        match self.api.get(name).await {
            Ok(map) => {
                self.note(name, &map);
                Told::Saw { name: name.to_owned(), value: value_of(&map), revision: number(map.resource_version()) }
            }
            Err(error) => self.refused(name, None, &error).unwrap_or(Told::Unknown { value: None }),
        }
    }

    async fn list(&mut self) -> Told {
        match self.api.list(&ListParams::default()).await {
            Ok(list) => {
                let objects = list
                    .items
                    .iter()
                    .map(|map| (map.name_any(), (number(map.resource_version()), value_of(map))))
                    .collect();
                Told::Listed { revision: number(list.metadata.resource_version), objects }
            }
            Err(_) => Told::Unknown { value: None },
        }
    }

    fn note(&mut self, name: &'static str, map: &ConfigMap) {
        self.seen.insert(name, map.resource_version().unwrap());
    }

    /// What a refusal says; `None` for what is no answer at all.
    fn refused(&self, name: &str, over: Option<u64>, error: &kube::Error) -> Option<Told> {
        let kube::Error::Api(status) = error else { return None };
        match (status.code, status.reason.as_str()) {
            (404, _) => Some(Told::Absent { name: name.to_owned() }),
            (409, "AlreadyExists" | "Conflict") => Some(Told::Exists { name: name.to_owned(), but: over }),
            _ => None,
        }
    }
}

/// Everything that an etcd went through.
async fn changes_of(store: &Etcd) -> Vec<Change> {
    let until = store.revision().await.unwrap();
    let range = KeyRange::prefix("/registry/configmaps/history/");
    let mut events = store.watch(&range, Revision(1)).await.unwrap();
    let mut changes = Vec::new();
    let name = |key: &Key| key.0.rsplit('/').next().unwrap().to_owned();
    store.request_progress().await.unwrap();
    while let Some(event) = events.next().await {
        match event.unwrap() {
            WatchEvent::Put { entry, .. } => {
                let map: ConfigMap = serde_json::from_slice(&entry.value).unwrap();
                let state = State { uid: map.uid().unwrap(), value: value_of(&map) };
                changes.push(Change { revision: entry.mod_revision.0, name: name(&entry.key), state: Some(state) });
            }
            WatchEvent::Delete { previous, revision } => {
                changes.push(Change { revision: revision.0, name: name(&previous.key), state: None });
            }
            WatchEvent::Progress(at) if at >= until => break,
            WatchEvent::Progress(_) => {}
        }
    }
    changes
}

/// Everything that a server tells a watcher of, which has been there from the start.
async fn changes_watched(maps: Api<ConfigMap>, until: impl Future<Output = u64>) -> Vec<Change> {
    let mut events = maps.watch(&WatchParams::default().timeout(290), "1").await.unwrap().boxed();
    let mut changes: Vec<Change> = Vec::new();
    let until = until.await;
    while changes.last().is_none_or(|change| change.revision < until) {
        let event = events.try_next().await.unwrap().expect("the watch goes on");
        let (map, is_there) = match event {
            KubeEvent::Added(map) | KubeEvent::Modified(map) => (map, true),
            KubeEvent::Deleted(map) => (map, false),
            KubeEvent::Bookmark(_) | KubeEvent::Error(_) => panic!("{event:?}"),
        };
        let state = is_there.then(|| State { uid: map.uid().unwrap(), value: value_of(&map) });
        changes.push(Change { revision: number(map.resource_version()), name: map.name_any(), state });
    }
    changes
}

/// Lets clients work, and gives what they were told. The server is killed so often, each time behind an equal share of the
/// calls.
async fn worked(server: &mut ApiServer, deletes: bool, kills: usize) -> Vec<Call> {
    let calls: Arc<Mutex<Vec<Call>>> = Arc::default();
    let (lives, seen_lives) = watch::channel(0);
    let user = |number: usize| User {
        api: maps(server),
        number,
        deletes,
        random: StdRng::seed_from_u64(SEED + number as u64),
        seen: BTreeMap::new(),
        lives: seen_lives.clone(),
        calls: Arc::clone(&calls),
    };
    let users: Vec<_> = (0..CLIENTS).map(|number| tokio::spawn(user(number).work())).collect();
    for kill in 1..=kills {
        let share = CLIENTS * CALLS * kill / (kills + 1);
        assert!(holds_within(WAIT, || calls.lock().len() >= share), "the clients stand still");
        server.kill_and_start_again();
        server.wait_until_ready();
        lives.send_replace(kill);
    }
    for user in users {
        user.await.unwrap();
    }
    std::mem::take(&mut *calls.lock())
}

fn start(address: IpAddr, port: u16, flags: &[String]) -> ApiServer {
    let server = ApiServer::start(address, port, flags);
    server.wait_until_ready();
    server.kubectl_ok(&["create", "namespace", "history"], "");
    server
}

fn maps(server: &ApiServer) -> Api<ConfigMap> {
    Api::namespaced(server.client(), "history")
}

#[track_caller]
fn check(changes: Vec<Change>, calls: Vec<Call>) {
    let unknown = calls.iter().filter(|call| matches!(call.told, Told::Unknown { .. })).count();
    assert!(unknown < calls.len() / 4, "{unknown} of {} calls had no answer", calls.len());
    let faults = History::new(changes, calls).faults();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_server_on_its_own_store_that_is_killed() {
    let mut server = start(Ipv4Addr::LOCALHOST.into(), PORT, &[]);
    let calls = worked(&mut server, false, KILLS).await;
    check(changes_told(&calls), calls);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_server_on_etcd_that_is_killed() {
    let cluster = EtcdCluster::single();
    let flags =
        ["--storage-media-type=application/json".to_owned(), format!("--etcd-servers={}", cluster.servers()[0])];
    let mut server = start(cluster.address(), PORT, &flags);
    let calls = worked(&mut server, true, KILLS).await;
    check(changes_of(&Etcd::new(&cluster.options()).await.unwrap()).await, calls);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_what_a_watcher_sees() {
    let mut server = start(Ipv4Addr::LOCALHOST.into(), PORT + 1, &[]);
    let (told, last) = oneshot::channel();
    let watched = tokio::spawn(changes_watched(maps(&server), async { last.await.unwrap() }));
    let calls = worked(&mut server, true, 0).await;
    let end = maps(&server).create(&PostParams::default(), &map("end", "end", None)).await.unwrap();
    told.send(number(end.resource_version())).unwrap();
    let mut changes = watched.await.unwrap();
    changes.pop();
    check(changes, calls);
}
