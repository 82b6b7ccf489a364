//! A store that fails, or does not tell until it is asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use apiserver::StoreConfig;
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use http::Method;
use storage::embedded::{Embedded, EmbeddedOptions};
use storage::{Entry, Key, KeyRange, Page, Revision, Storage, StorageError, Ttl, WatchStream};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::fixture::{Server, config, until};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A store that can be made to fail, in one of three ways, and to be silent.
struct Failing {
    good: Embedded,
    /// So many deletes.
    deletes: AtomicUsize,
    full: AtomicBool,
    away: AtomicBool,
    /// Watchers hear of no change until somebody asks how far the store is.
    silent: watch::Sender<bool>,
}

impl Failing {
    fn write(&self) -> Result<(), StorageError> {
        if self.full.load(Ordering::SeqCst) { Err(StorageError::Full) } else { self.read() }
    }

    fn read(&self) -> Result<(), StorageError> {
        let reason = || "connection refused".to_owned();
        if self.away.load(Ordering::SeqCst) { Err(StorageError::Unavailable { reason: reason() }) } else { Ok(()) }
    }
}

#[async_trait]
impl Storage for Failing {
    async fn create(&self, key: &Key, value: Bytes, ttl: Option<Ttl>) -> Result<Revision, StorageError> {
        self.write()?;
        self.good.create(key, value, ttl).await
    }

    async fn update(
        &self,
        key: &Key,
        value: Bytes,
        expect: Revision,
        ttl: Option<Ttl>,
    ) -> Result<Revision, StorageError> {
        self.write()?;
        self.good.update(key, value, expect, ttl).await
    }

    async fn delete(&self, key: &Key, expect: Revision) -> Result<Revision, StorageError> {
        self.read()?;
        let fails = self.deletes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if fails { Err(StorageError::Timeout) } else { self.good.delete(key, expect).await }
    }

    async fn get(&self, key: &Key) -> Result<(Option<Entry>, Revision), StorageError> {
        self.read()?;
        self.good.get(key).await
    }

    async fn range(&self, range: &KeyRange, limit: usize, at: Option<Revision>) -> Result<Page, StorageError> {
        self.read()?;
        self.good.range(range, limit, at).await
    }

    async fn watch(&self, range: &KeyRange, after: Revision) -> Result<WatchStream, StorageError> {
        self.read()?;
        let silent = self.silent.subscribe();
        let held = self.good.watch(range, after).await?.then(move |event| {
            let mut silent = silent.clone();
            async move {
                // Without its store, nobody holds anything back.
                let _ = silent.wait_for(|silent| !silent).await;
                event
            }
        });
        Ok(held.boxed())
    }

    async fn revision(&self) -> Result<Revision, StorageError> {
        self.read()?;
        self.silent.send_replace(false);
        self.good.revision().await
    }

    async fn request_progress(&self) -> Result<(), StorageError> {
        self.read()?;
        self.good.request_progress().await
    }

    async fn compact(&self, at: Revision) -> Result<(), StorageError> {
        self.good.compact(at).await
    }

    async fn size(&self) -> Result<u64, StorageError> {
        self.good.size().await
    }
}

async fn failing() -> (Server, Arc<Failing>) {
    let dir = tempfile::tempdir().unwrap();
    let good = Embedded::open(&dir.path().join("own"), EmbeddedOptions::default()).unwrap();
    let store = Arc::new(Failing {
        good,
        deletes: AtomicUsize::new(0),
        full: AtomicBool::new(false),
        away: AtomicBool::new(false),
        silent: watch::Sender::new(false),
    });
    let mut config = config(dir.path(), &[]);
    config.store = StoreConfig::Given(Arc::clone(&store) as Arc<dyn Storage>);
    (Server::start_with(dir, config).await, store)
}

#[tokio::test]
async fn a_full_store_takes_no_writes_but_answers_reads_and_deletes() {
    let (server, store) = failing().await;
    server.create(CONFIG_MAPS, r#"{"metadata":{"name":"a"}}"#).await;
    store.full.store(true, Ordering::SeqCst);
    let answer = server.post(CONFIG_MAPS, r#"{"metadata":{"name":"b"}}"#).await;
    assert_eq!(answer.error(), (500, "etcdserver: mvcc: database space exceeded".to_owned()));
    assert_eq!(server.get(&format!("{CONFIG_MAPS}/a")).await.code, 200);
    assert_eq!(server.ask(Method::DELETE, &format!("{CONFIG_MAPS}/a"), &[], "").await.code, 200);
    store.full.store(false, Ordering::SeqCst);
    server.create(CONFIG_MAPS, r#"{"metadata":{"name":"b"}}"#).await;
}

/// Of a namespace and an account that a client has been told of, though the caches do not have them yet.
#[tokio::test]
async fn what_has_just_been_made_is_there_for_what_needs_it() {
    let (server, store) = failing().await;
    store.silent.send_replace(true);
    server.create("/api/v1/namespaces", r#"{"metadata":{"name":"new"}}"#).await;
    server.create("/api/v1/namespaces/new/configmaps", r#"{"metadata":{"name":"a"}}"#).await;
    assert!(!*store.silent.borrow(), "nothing had to be asked for");
    store.silent.send_replace(true);
    server.create("/api/v1/namespaces/new/serviceaccounts", r#"{"metadata":{"name":"own"}}"#).await;
    let pod =
        r#"{"metadata":{"name":"p"},"spec":{"serviceAccountName":"own","containers":[{"name":"c","image":"i"}]}}"#;
    server.create("/api/v1/namespaces/new/pods", pod).await;
}

#[tokio::test]
async fn without_its_store_a_server_is_not_healthy_and_recovers() {
    let (server, store) = failing().await;
    server.create(CONFIG_MAPS, r#"{"metadata":{"name":"a"}}"#).await;
    store.away.store(true, Ordering::SeqCst);
    assert_eq!(server.post(CONFIG_MAPS, r#"{"metadata":{"name":"b"}}"#).await.code, 500);
    let health = server.get("/readyz").await;
    assert_eq!(health.code, 500);
    assert!(health.text().contains("[-]etcd failed: reason withheld"), "{}", health.text());
    // What may be old is still there.
    let answer = server.get(&format!("{CONFIG_MAPS}/a?resourceVersion=0")).await;
    assert_eq!(answer.code, 200, "{}", answer.text());
    store.away.store(false, Ordering::SeqCst);
    server.create(CONFIG_MAPS, r#"{"metadata":{"name":"b"}}"#).await;
    assert_eq!(server.get("/readyz").await.code, 200);
}

#[tokio::test]
async fn a_definition_stays_until_all_its_objects_are_gone() {
    let (server, store) = failing().await;
    let definition = r#"{"metadata":{"name":"cups.shop.example.com"},"spec":{"group":"shop.example.com","scope":"Cluster",
        "names":{"plural":"cups","kind":"Cup"},"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object"}}}]}}"#;
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let cups = "/apis/shop.example.com/v1/cups";
    server.create(definitions, definition).await;
    until("it is served", || async { server.get(cups).await.code == 200 }).await;
    server.create(cups, r#"{"apiVersion":"shop.example.com/v1","kind":"Cup","metadata":{"name":"a"}}"#).await;
    store.deletes.store(1, Ordering::SeqCst);
    let definition = format!("{definitions}/cups.shop.example.com");
    server.ask(Method::DELETE, &definition, &[], "").await;
    until("it is gone", || async { server.get(&definition).await.code == 404 }).await;
    let kept = store.get(&Key::new("/registry/shop.example.com/cups/a")).await.unwrap().0;
    assert!(kept.is_none(), "{kept:?}");
}

#[tokio::test]
async fn a_damaged_store_is_not_served() {
    let server = Server::start(&[]).await;
    server.create(CONFIG_MAPS, r#"{"metadata":{"name":"last"}}"#).await;
    let dir = server.end().await;
    let files = std::fs::read_dir(dir.path().join("store")).unwrap().map(|entry| entry.unwrap().path());
    let log = files.filter(|path| path.extension().is_some_and(|e| e == "jnl")).max().unwrap();
    let bytes = std::fs::read(&log).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    std::fs::write(&log, &bytes[..end - 20]).unwrap();
    let stop = CancellationToken::new();
    match apiserver::start(config(dir.path(), &[]), stop).await {
        Err(apiserver::Error::Store(StorageError::Corrupt { reason })) => {
            assert!(reason.contains("its last writes are lost"), "{reason}");
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("served"),
    }
}
