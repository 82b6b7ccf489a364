//! What was acknowledged is there after every kind of end.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use storage::embedded::{Embedded, EmbeddedOptions};
use storage::{Key, KeyRange, Storage, StorageError};

const WRITE_INTO: &str = "KELSON_TEST_WRITE_INTO";
const FILL: &str = "KELSON_TEST_FILL";

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

/// The part of the log that is written to.
fn log_of(dir: &Path) -> std::path::PathBuf {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|e| e == "jnl")).max().unwrap()
}

#[tokio::test]
async fn damage_to_the_end_of_the_log_is_never_overlooked() {
    let closed = tempfile::tempdir().unwrap();
    let store = open(closed.path()).unwrap();
    for key in ["/a", "/b", "/c"] {
        store.create(&Key::new(key), vec![b'x'; 300].into(), None).await.unwrap();
    }
    drop(store);
    let good = std::fs::read(log_of(closed.path())).unwrap();
    let end = good.iter().rposition(|byte| *byte != 0).unwrap();
    let flipped = (0..400).step_by(7).map(|back| {
        let mut bad = good.clone();
        bad[end - back] ^= 0x10;
        (format!("a bit {back} bytes before the end"), bad)
    });
    let cut = [1, 40, 400].map(|by| (format!("{by} bytes less"), good[..=end - by].to_vec()));
    for (what, bad) in flipped.chain(cut) {
        let dir = tempfile::tempdir().unwrap();
        copy(closed.path(), dir.path());
        std::fs::write(log_of(dir.path()), bad).unwrap();
        // Debug builds of the log assert that its lengths agree.
        let Ok(opened) = std::panic::catch_unwind(|| open(dir.path())) else { continue };
        match opened {
            Err(StorageError::Corrupt { .. }) => {}
            Err(other) => panic!("{what}: {other}"),
            // It meant nothing: all is there.
            Ok(store) => assert!(store.get(&Key::new("/c")).await.unwrap().0.is_some(), "{what}"),
        }
    }
}

#[tokio::test]
async fn an_unfinished_write_is_cut_off_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let crashed = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    store.create(&Key::new("/a"), "1".into(), None).await.unwrap();
    // What a machine that loses its power leaves: the files as they are now, the last group half written.
    copy(dir.path(), crashed.path());
    let log = log_of(crashed.path());
    let mut bytes = std::fs::read(&log).unwrap();
    bytes.extend_from_slice(&[1, 2, 0, 0, 0, 9]);
    std::fs::write(&log, bytes).unwrap();
    let recovered = open(crashed.path()).unwrap();
    assert!(recovered.get(&Key::new("/a")).await.unwrap().0.is_some());
    recovered.create(&Key::new("/b"), "2".into(), None).await.unwrap();
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Not a test by itself: runs where `FILL` names a small file system of its own.
#[tokio::test]
async fn fills_its_disk() {
    let Ok(dir) = std::env::var(FILL) else { return };
    let store = open(Path::new(&dir)).unwrap();
    let mut acknowledged = Vec::new();
    let refused = loop {
        let key = Key::new(&format!("/{}", acknowledged.len()));
        let value = vec![b'x'; 200_000];
        match store.create(&key, value.into(), None).await {
            Ok(revision) => acknowledged.push((key, revision)),
            Err(error) => break error,
        }
        assert!(acknowledged.len() < 1000, "the disk never fills");
    };
    assert!(matches!(refused, StorageError::Full), "{refused}");
    for (key, _) in &acknowledged {
        assert!(store.get(key).await.unwrap().0.is_some(), "{} was acknowledged and is gone", key.0);
    }
    let remount = Command::new("mount").args(["-o", "remount,size=512m", &dir]).status().unwrap();
    assert!(remount.success());
    let (first, revision) = acknowledged.remove(0);
    store.delete(&first, revision).await.unwrap();
    store.create(&Key::new("/after"), "x".into(), None).await.unwrap();
    drop(store);
    let store = open(Path::new(&dir)).unwrap();
    assert!(store.get(&first).await.unwrap().0.is_none());
    let kept = acknowledged.iter().map(|(key, _)| key.clone()).chain([Key::new("/after")]);
    for key in kept {
        assert!(store.get(&key).await.unwrap().0.is_some(), "{} was acknowledged and is gone", key.0);
    }
}

#[test]
fn a_full_disk_refuses_writes_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"mount -t tmpfs -o size=24m tmpfs "$1" && exec "$2" --exact durability::fills_its_disk --nocapture"#;
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .env(FILL, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}
