//! A full disk: writes are refused with a text that helps, nothing is lost, and they are taken
//! again once there is space. On a small file system of its own, so it needs root.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use timonier_master::store::{CommitError, Store, StoreConfig};

use crate::{DEADLINE, config, create, key, open};

/// A tmpfs of a few MiB; gone when it is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(dir: &Path) -> Self {
        mount("tmpfs", dir, "tmpfs", MountFlags::empty(), Some(c"size=12m"))
            .unwrap_or_else(|error| panic!("mount a small disk: {error}; run the tests as root"));
        Self(dir.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Writes until the disk is full; answers the text of the refusal.
async fn fill(store: &Store, acknowledged: &mut Vec<String>) -> String {
    let filler = "x".repeat(16 << 10);
    loop {
        let name = format!("n{}", acknowledged.len());
        match store.commit(create(&name, &filler)).await {
            Ok(_) => acknowledged.push(name),
            Err(CommitError::StorageFailure(text)) => return text,
            Err(error) => panic!("{error}"),
        }
        assert!(acknowledged.len() < 10_000, "the disk does not get full");
    }
}

fn assert_there(store: &Store, acknowledged: &[String]) {
    let snapshot = store.snapshot();
    let lost: Vec<_> = acknowledged.iter().filter(|n| snapshot.object(&key(n)).is_none()).collect();
    assert!(lost.is_empty(), "lost {lost:?}");
    assert_eq!(snapshot.len(), acknowledged.len(), "something refused was applied");
}

async fn a_full_disk(snapshot_entries: u64) {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(dir.path());
    let ballast = dir.path().join("ballast");
    std::fs::write(&ballast, vec![1; 4 << 20]).unwrap();
    let config = || StoreConfig { snapshot_entries, ..config(&dir.path().join("data")) };
    let mut acknowledged = Vec::new();

    let store = open(config()).await;
    let text = fill(&store, &mut acknowledged).await;
    assert!(text.contains("no space left on") && text.contains("hint: free space"), "{text}");
    assert!(store.status().refusing.is_some());
    assert_there(&store, &acknowledged);
    store.linearize().await.unwrap();
    assert!(matches!(
        store.commit(create("no", &"x".repeat(64 << 10))).await,
        Err(CommitError::StorageFailure(_))
    ));
    store.shutdown().await.unwrap();

    // A restart on the full disk: it serves, and still refuses to write.
    let store = open(config()).await;
    assert_there(&store, &acknowledged);
    fill(&store, &mut acknowledged).await;
    std::fs::remove_file(&ballast).unwrap();
    let begun = std::time::Instant::now();
    while let Err(error) = store.commit(create("again", "")).await {
        assert!(begun.elapsed() < DEADLINE, "{error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    acknowledged.push("again".to_owned());
    assert_eq!(store.status().refusing, None);
    assert_there(&store, &acknowledged);
    store.shutdown().await.unwrap();
    let store = open(config()).await;
    assert_there(&store, &acknowledged);
    store.shutdown().await.unwrap();
    drop(disk);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_and_loses_nothing() {
    a_full_disk(u64::MAX).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_while_snapshots_are_due() {
    a_full_disk(30).await;
}
