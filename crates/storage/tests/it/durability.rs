//! What was acknowledged is there after every kind of end.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use storage::embedded::{Embedded, EmbeddedOptions};
use storage::{Key, KeyRange, Storage, StorageError};

const WRITE_INTO: &str = "KELSON_TEST_WRITE_INTO";

fn open(dir: &Path) -> Result<Embedded, StorageError> {
    Embedded::open(dir, EmbeddedOptions::default())
}

#[tokio::test]
async fn a_restart_keeps_data_and_revisions() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let first = store.create(&Key::new("/a"), "1".into(), None).await.unwrap();
    let second = store.create(&Key::new("/b"), "2".into(), None).await.unwrap();
    let deleted = store.delete(&Key::new("/b"), second).await.unwrap();
    drop(store);
    let store = open(dir.path()).unwrap();
    assert_eq!(store.revision().await.unwrap(), deleted);
    assert_eq!(store.get(&Key::new("/a")).await.unwrap().0.unwrap().mod_revision, first);
    assert_eq!(store.get(&Key::new("/b")).await.unwrap().0, None);
    let refused = store.watch(&KeyRange::prefix("/"), first).await.err().unwrap();
    assert!(matches!(refused, StorageError::Compacted { .. }));
}

#[test]
fn a_directory_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let _first = open(dir.path()).unwrap();
    match open(dir.path()) {
        Err(StorageError::Unavailable { reason }) => assert!(reason.contains("another process"), "{reason}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("opened twice"),
    }
}

/// Not a test by itself: the process that [`a_killed_process_loses_no_acknowledged_write`] kills. It prints each key
/// after the store has acknowledged it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_until_it_is_killed() {
    let Ok(dir) = std::env::var(WRITE_INTO) else { return };
    let store = Arc::new(open(Path::new(&dir)).unwrap());
    let writers = (0..16).map(|w| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for i in 0..100_000 {
                let key = format!("/w{w}/{i}");
                store.create(&Key::new(&key), vec![b'x'; 4096].into(), None).await.unwrap();
                println!("acknowledged {key}");
            }
        })
    });
    futures::future::join_all(writers.collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn a_killed_process_loses_no_acknowledged_write() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "durability::writes_until_it_is_killed", "--nocapture"])
        .env(WRITE_INTO, dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut acknowledged = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
        if let Some((_, key)) = line.split_once("acknowledged ") {
            acknowledged.push(key.to_owned());
        }
        if acknowledged.len() == 1000 {
            child.kill().unwrap(); // what is still in the pipe was acknowledged too, and is read to its end
        }
    }
    child.wait().unwrap();
    assert!(acknowledged.len() >= 1000);
    let store = open(dir.path()).unwrap();
    for key in &acknowledged {
        assert!(store.get(&Key::new(key)).await.unwrap().0.is_some(), "{key} was acknowledged and is gone");
    }
}
