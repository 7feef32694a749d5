//! Snapshots bound the log, and the store comes back from one.

use std::path::Path;

use timonier_master::store::{Store, StoreConfig, StoreError};
use timonier_master_core::op::Txn;

use crate::{config, create, open, put, until, value};

fn often(dir: &Path) -> StoreConfig {
    StoreConfig { snapshot_entries: 50, snapshot_log_bytes: 1 << 20, ..config(dir) }
}

fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_stays_short_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(often(dir.path())).await;
    let txn = Txn { id: Some("once".to_owned()), ..create("first", "1") };
    let first = store.commit(txn.clone()).await.unwrap();
    let mut snapshots = 0;
    for round in 0..3 {
        let filler = "x".repeat(20 << 10);
        for n in 0..400 {
            put(&store, &format!("n{}", n % 40), &format!("{round}-{n}-{filler}")).await.unwrap();
        }
        until("the log's purge", || files(&dir.path().join("log")) <= 6).await;
        snapshots += store.status().snapshots;
        let before = store.snapshot();
        store.shutdown().await.unwrap();
        store = open(often(dir.path())).await;
        assert_eq!(store.snapshot(), before);
    }
    assert!(snapshots >= 5, "only {snapshots} snapshots were written");
    assert_eq!(files(&dir.path().join("snapshots")), 1);
    let again = store.commit(txn).await.unwrap();
    assert_eq!((again.revision, again.repeated), (first.revision, true));
    assert_eq!(value(&store, "first").as_deref(), Some("1"));
    // What the snapshot stands for can no longer be watched.
    assert!(store.changes(Some(1)).is_err());
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(often(dir.path())).await;
    for n in 0..120 {
        put(&store, &format!("n{n}"), "some-value").await.unwrap();
    }
    until("a snapshot", || store.status().snapshots > 0).await;
    store.shutdown().await.unwrap();
    let snapshots = dir.path().join("snapshots");
    let path = std::fs::read_dir(&snapshots).unwrap().next().unwrap().unwrap().path();
    let intact = std::fs::read(&path).unwrap();
    let middle = intact.len() / 2;
    let mut flipped = intact.clone();
    flipped[middle] ^= 1;
    for damaged in [flipped, intact[..intact.len() / 2].to_vec(), Vec::new()] {
        std::fs::write(&path, damaged).unwrap();
        let error = Store::open(often(dir.path())).await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { what: "snapshot", .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(path.to_str().unwrap()) && text.contains("hint: "), "{text}");
    }
    std::fs::write(&path, intact).unwrap();
    let store = open(often(dir.path())).await;
    assert_eq!(store.snapshot().len(), 120);
    store.shutdown().await.unwrap();
}
