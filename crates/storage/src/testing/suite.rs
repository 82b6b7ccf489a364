//! The contract suite: one function for each promise of [`Storage`], run on every engine.
//!
//! Each takes a store that nobody else writes to and a prefix of its own, and panics with what is broken.

#![expect(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a check fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;

use crate::{Entry, Key, KeyRange, Revision, Storage, StorageError, Ttl, WatchEvent, WatchStream};

/// Declares a test for every function of the suite: `storage_suite!(embedded, open_embedded().await)`; the expression
/// gives `(impl Deref<Target = dyn Storage>, guard)`.
#[macro_export]
macro_rules! storage_suite {
    ($engine:ident, $open:expr) => {
        mod $engine {
            use super::*;
            $crate::storage_suite!(@each $open,
                a_key_is_created_once
                an_update_needs_the_current_revision
                a_deletion_needs_the_current_revision
                revisions_rise_with_every_write
                a_range_is_sorted_and_paged
                a_range_shows_the_past
                a_range_of_the_future_is_refused
                a_watch_delivers_every_change_once_and_in_order
                a_watch_carries_previous_values
                a_watch_resumes_after_a_revision
                a_watch_sees_only_its_range
                progress_is_delivered_on_request
                compacted_history_is_refused
                a_key_with_a_ttl_goes_away
                an_update_replaces_the_ttl
                concurrent_writers_lose_no_update);
        }
    };
    (@each $open:expr, $($name:ident)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let (store, _guard) = $open;
            $crate::testing::suite::$name(store).await;
        })*
    };
}

type Store = Arc<dyn Storage>;

const WAIT: Duration = Duration::from_secs(20);

fn key(name: &str) -> Key {
    Key::new(&format!("/registry/things/{name}"))
}

fn everything() -> KeyRange {
    KeyRange::prefix("/registry/things/")
}

async fn put(store: &Store, name: &str, value: &str) -> Revision {
    store.create(&key(name), Bytes::copy_from_slice(value.as_bytes()), None).await.unwrap()
}

async fn next(watch: &mut WatchStream) -> WatchEvent {
    loop {
        let event = tokio::time::timeout(WAIT, watch.next()).await.expect("an event in time").unwrap().unwrap();
        if !matches!(event, WatchEvent::Progress(_)) {
            return event;
        }
    }
}

fn text(entry: &Entry) -> (&str, &str) {
    (entry.key.as_str().rsplit('/').next().unwrap(), std::str::from_utf8(&entry.value).unwrap())
}

pub async fn a_key_is_created_once(store: Store) {
    let at = put(&store, "a", "1").await;
    assert!(matches!(store.create(&key("a"), "2".into(), None).await, Err(StorageError::Exists { .. })));
    let (entry, now) = store.get(&key("a")).await.unwrap();
    let entry = entry.unwrap();
    assert_eq!((text(&entry).1, entry.create_revision, entry.mod_revision), ("1", at, at));
    assert!(now >= at);
    assert_eq!(store.get(&key("b")).await.unwrap().0, None);
}

pub async fn an_update_needs_the_current_revision(store: Store) {
    let created = put(&store, "a", "1").await;
    let updated = store.update(&key("a"), "2".into(), created, None).await.unwrap();
    match store.update(&key("a"), "3".into(), created, None).await {
        Err(StorageError::Conflict { current, .. }) => {
            assert_eq!((text(&current).1, current.mod_revision), ("2", updated));
        }
        other => panic!("a stale update gave {other:?}"),
    }
    assert!(matches!(store.update(&key("b"), "1".into(), created, None).await, Err(StorageError::NotFound { .. })));
    let entry = store.get(&key("a")).await.unwrap().0.unwrap();
    assert_eq!((entry.create_revision, entry.mod_revision), (created, updated));
}

pub async fn a_deletion_needs_the_current_revision(store: Store) {
    let created = put(&store, "a", "1").await;
    let updated = store.update(&key("a"), "2".into(), created, None).await.unwrap();
    assert!(matches!(store.delete(&key("a"), created).await, Err(StorageError::Conflict { .. })));
    assert!(store.delete(&key("a"), updated).await.unwrap() > updated);
    assert!(matches!(store.delete(&key("a"), updated).await, Err(StorageError::NotFound { .. })));
}

pub async fn revisions_rise_with_every_write(store: Store) {
    let mut last = store.revision().await.unwrap();
    for i in 0..20 {
        let at = put(&store, &format!("k{i}"), "x").await;
        assert!(at > last, "{at} after {last}");
        last = at;
    }
    assert_eq!(store.revision().await.unwrap(), last);
}

pub async fn a_range_is_sorted_and_paged(store: Store) {
    for name in ["c", "a", "e", "b", "d"] {
        put(&store, name, name).await;
    }
    store.create(&Key::new("/registry/other/x"), "x".into(), None).await.unwrap();
    let all = store.range(&everything(), 0, None).await.unwrap();
    assert_eq!(all.entries.iter().map(|e| text(e).0).collect::<Vec<_>>(), ["a", "b", "c", "d", "e"]);
    assert_eq!(all.remaining, 0);
    let page = store.range(&everything(), 2, None).await.unwrap();
    assert_eq!((page.entries.len(), page.remaining), (2, 3));
    let rest = KeyRange { start: key("b\0"), end: everything().end };
    let rest = store.range(&rest, 0, Some(page.revision)).await.unwrap();
    assert_eq!(rest.entries.iter().map(|e| text(e).0).collect::<Vec<_>>(), ["c", "d", "e"]);
}

pub async fn a_range_shows_the_past(store: Store) {
    let first = put(&store, "a", "1").await;
    let second = store.update(&key("a"), "2".into(), first, None).await.unwrap();
    put(&store, "b", "1").await;
    store.delete(&key("a"), second).await.unwrap();
    for (at, want) in [(first, vec![("a", "1")]), (second, vec![("a", "2")])] {
        let page = store.range(&everything(), 0, Some(at)).await.unwrap();
        assert_eq!(page.entries.iter().map(text).collect::<Vec<_>>(), want);
        assert_eq!(page.revision, at);
    }
    let now = store.range(&everything(), 0, None).await.unwrap();
    assert_eq!(now.entries.iter().map(text).collect::<Vec<_>>(), [("b", "1")]);
}

pub async fn a_range_of_the_future_is_refused(store: Store) {
    let at = Revision(put(&store, "a", "1").await.0 + 1000);
    assert!(matches!(store.range(&everything(), 0, Some(at)).await, Err(StorageError::Future { .. })));
}

pub async fn a_watch_delivers_every_change_once_and_in_order(store: Store) {
    let start = store.revision().await.unwrap();
    let mut watch = store.watch(&everything(), start).await.unwrap();
    let writer = tokio::spawn(async move {
        for i in 0..200 {
            put(&store, &format!("k{i:03}"), "x").await;
        }
    });
    let mut last = start;
    for i in 0..200 {
        match next(&mut watch).await {
            WatchEvent::Put { entry, previous: None } => {
                assert_eq!(text(&entry).0, format!("k{i:03}"));
                assert!(entry.mod_revision > last);
                last = entry.mod_revision;
            }
            other => panic!("event {i} is {other:?}"),
        }
    }
    writer.await.unwrap();
}

pub async fn a_watch_carries_previous_values(store: Store) {
    let mut watch = store.watch(&everything(), store.revision().await.unwrap()).await.unwrap();
    let created = put(&store, "a", "1").await;
    let updated = store.update(&key("a"), "2".into(), created, None).await.unwrap();
    let deleted = store.delete(&key("a"), updated).await.unwrap();
    assert!(matches!(next(&mut watch).await, WatchEvent::Put { previous: None, .. }));
    match next(&mut watch).await {
        WatchEvent::Put { entry, previous: Some(previous) } => {
            assert_eq!((text(&entry).1, text(&previous).1), ("2", "1"));
        }
        other => panic!("the update is {other:?}"),
    }
    match next(&mut watch).await {
        WatchEvent::Delete { previous, revision } => assert_eq!((text(&previous).1, revision), ("2", deleted)),
        other => panic!("the deletion is {other:?}"),
    }
}

pub async fn a_watch_resumes_after_a_revision(store: Store) {
    put(&store, "a", "1").await;
    let after = put(&store, "b", "1").await;
    put(&store, "c", "1").await;
    let mut watch = store.watch(&everything(), after).await.unwrap();
    put(&store, "d", "1").await;
    for want in ["c", "d"] {
        match next(&mut watch).await {
            WatchEvent::Put { entry, .. } => assert_eq!(text(&entry).0, want),
            other => panic!("{other:?}"),
        }
    }
}

pub async fn a_watch_sees_only_its_range(store: Store) {
    let mut watch = store.watch(&everything(), store.revision().await.unwrap()).await.unwrap();
    store.create(&Key::new("/registry/thing"), "x".into(), None).await.unwrap();
    store.create(&Key::new("/registry/things0"), "x".into(), None).await.unwrap();
    put(&store, "mine", "1").await;
    match next(&mut watch).await {
        WatchEvent::Put { entry, .. } => assert_eq!(text(&entry).0, "mine"),
        other => panic!("{other:?}"),
    }
}

pub async fn progress_is_delivered_on_request(store: Store) {
    let mut watch = store.watch(&everything(), store.revision().await.unwrap()).await.unwrap();
    let at = store.create(&Key::new("/registry/other/x"), "x".into(), None).await.unwrap();
    let progress = async {
        loop {
            store.request_progress().await.unwrap();
            match tokio::time::timeout(Duration::from_millis(200), watch.next()).await {
                Ok(Some(Ok(WatchEvent::Progress(seen)))) if seen >= at => return,
                Ok(Some(Ok(_))) | Err(_) => {}
                Ok(other) => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(WAIT, progress).await.expect("progress in time");
}

pub async fn compacted_history_is_refused(store: Store) {
    let old = put(&store, "a", "1").await;
    for i in 0..5 {
        put(&store, &format!("b{i}"), "1").await;
    }
    let now = store.revision().await.unwrap();
    store.compact(now).await.unwrap();
    assert!(matches!(store.range(&everything(), 0, Some(old)).await, Err(StorageError::Compacted { .. })));
    let refused = match store.watch(&everything(), old).await {
        Err(e) => e,
        Ok(mut watch) => tokio::time::timeout(WAIT, watch.next()).await.unwrap().unwrap().unwrap_err(),
    };
    assert!(matches!(refused, StorageError::Compacted { .. }), "{refused:?}");
    assert_eq!(store.range(&everything(), 0, None).await.unwrap().entries.len(), 6);
}

pub async fn a_key_with_a_ttl_goes_away(store: Store) {
    let mut watch = store.watch(&everything(), store.revision().await.unwrap()).await.unwrap();
    let ttl = Some(Ttl(Duration::from_secs(1)));
    store.create(&key("brief"), "x".into(), ttl).await.unwrap();
    put(&store, "stays", "x").await;
    let mut seen = 0;
    let revision = loop {
        match next(&mut watch).await {
            WatchEvent::Put { .. } => seen += 1,
            WatchEvent::Delete { previous, revision } => {
                assert_eq!((text(&previous).0, seen), ("brief", 2));
                break revision;
            }
            WatchEvent::Progress(_) => {}
        }
    };
    assert!(store.revision().await.unwrap() >= revision);
    assert_eq!(store.get(&key("brief")).await.unwrap().0, None);
    assert!(store.get(&key("stays")).await.unwrap().0.is_some());
}

pub async fn an_update_replaces_the_ttl(store: Store) {
    let ttl = |s| Some(Ttl(Duration::from_secs(s)));
    let mut watch = store.watch(&everything(), store.revision().await.unwrap()).await.unwrap();
    let at = store.create(&key("kept"), "x".into(), ttl(1)).await.unwrap();
    store.update(&key("kept"), "y".into(), at, None).await.unwrap();
    store.create(&key("brief"), "x".into(), ttl(1)).await.unwrap();
    loop {
        if let WatchEvent::Delete { previous, .. } = next(&mut watch).await {
            assert_eq!(text(&previous).0, "brief");
            break;
        }
    }
    assert!(store.get(&key("kept")).await.unwrap().0.is_some());
}

pub async fn concurrent_writers_lose_no_update(store: Store) {
    put(&store, "counter", "0").await;
    let writers = (0..8).map(|_| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for _ in 0..25 {
                loop {
                    let entry = store.get(&key("counter")).await.unwrap().0.unwrap();
                    let next = text(&entry).1.parse::<u64>().unwrap() + 1;
                    match store.update(&key("counter"), next.to_string().into(), entry.mod_revision, None).await {
                        Ok(_) => break,
                        Err(StorageError::Conflict { .. }) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    assert_eq!(text(&store.get(&key("counter")).await.unwrap().0.unwrap()).1, "200");
}
