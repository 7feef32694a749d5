//! Backups: what is in them, what opens them, and what a bad one changes: nothing.

use std::path::{Path, PathBuf};

use timonier_master::store::{Encryption, Start, Store, StoreConfig, StoreError, restore};
use timonier_proto::backup;

use crate::cluster::{Cluster, close};
use crate::{config, put, value};

async fn save(store: &Store, path: &Path) {
    let mut saving = store.backup().await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = saving.pieces.recv().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    std::fs::write(path, bytes).unwrap();
}

fn into(dir: &Path, encryption: &Encryption) -> StoreConfig {
    StoreConfig { encryption: encryption.clone(), ..config(dir) }
}

fn key_file(dir: &Path) -> Encryption {
    let path = dir.join("key");
    std::fs::write(&path, [7; 32]).unwrap();
    Encryption::KeyFile(path)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_master_saves_all_that_was_acknowledged_and_it_is_restored() {
    let cluster = Cluster::new(20_000);
    let stores = cluster.of_three().await;
    let writing = {
        let store = stores[0].clone();
        tokio::spawn(async move {
            for n in 0..200 {
                put(&store, &format!("n{n}"), "1").await.unwrap();
            }
        })
    };
    put(&stores[0], "acknowledged", "by the leader").await.unwrap();
    let path = cluster.dir("backup");
    save(&stores[2], &path).await;
    writing.await.unwrap();
    let header = backup::check(std::fs::File::open(&path).unwrap()).unwrap().header;
    assert_eq!((header.master_name.as_str(), header.needs.as_str()), ("c", "none"));

    let dir = cluster.dir("restored");
    let restored = restore(&path, &into(&dir, &Encryption::DataFolder)).await.unwrap();
    assert_ne!(restored.cluster_id, stores[0].cluster_id());
    let store = cluster.open("restored", Start::First).await;
    assert_eq!(store.cluster_id(), restored.cluster_id);
    assert_eq!(value(&store, "acknowledged").as_deref(), Some("by the leader"));
    assert_eq!(store.snapshot().len() as u64, header.objects);
    // Revisions that somebody may have seen are not given again.
    let written = put(&store, "after", "1").await.unwrap();
    assert!(written.revision > stores[0].snapshot().revision);
    assert_eq!(store.members().len(), 1);
    // It is a master as any other: it is stopped and started, and others join it.
    store.shutdown().await.unwrap();
    let config = into(&dir, &Encryption::DataFolder);
    let store = Store::open(config).await.unwrap();
    assert_eq!(value(&store, "after").as_deref(), Some("1"));
    close([store]).await;
    let [a, b, c] = stores;
    close([a, b, c]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_one_opens_with_the_same_key_only() {
    let dir = tempfile::tempdir().unwrap();
    let key = key_file(dir.path());
    let store = Store::open(into(&dir.path().join("a"), &key)).await.unwrap();
    put(&store, "secret", "correct horse").await.unwrap();
    let path = dir.path().join("backup");
    save(&store, &path).await;
    store.shutdown().await.unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert!(!bytes.windows(13).any(|window| window == b"correct horse"));
    let header = backup::check(&bytes[..]).unwrap().header;
    assert_eq!(header.needs, "key file");

    let other = dir.path().join("other key");
    std::fs::write(&other, [8; 32]).unwrap();
    for wrong in [Encryption::DataFolder, Encryption::KeyFile(other)] {
        let to = dir.path().join("b");
        let error = restore(&path, &into(&to, &wrong)).await.unwrap_err();
        assert!(matches!(error, StoreError::Keys { .. }), "{error}");
        assert!(!to.exists());
    }
    let to = dir.path().join("c");
    restore(&path, &into(&to, &key)).await.unwrap();
    let store = Store::open(into(&to, &key)).await.unwrap();
    assert_eq!(value(&store, "secret").as_deref(), Some("correct horse"));
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_file_or_a_full_folder_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let encryption = Encryption::DataFolder;
    let store = Store::open(into(&dir.path().join("a"), &encryption)).await.unwrap();
    for n in 0..200 {
        put(&store, &format!("n{n}"), &"x".repeat(5000)).await.unwrap();
    }
    let path = dir.path().join("backup");
    save(&store, &path).await;
    store.shutdown().await.unwrap();
    let good = std::fs::read(&path).unwrap();
    let mut changed = good.clone();
    changed[good.len() / 2] ^= 0x10;
    for (bytes, text) in [
        (&good[..good.len() / 2], "ends too early"),
        (&good[..good.len() - 1], "ends too early"),
        (&changed[..], "checksum does not match"),
        (&b""[..], "not a timonier backup"),
        (&b"some other file\n"[..], "not a timonier backup"),
    ] {
        let bad = dir.path().join("bad");
        std::fs::write(&bad, bytes).unwrap();
        let to = dir.path().join("b");
        let error = restore(&bad, &into(&to, &encryption)).await.unwrap_err();
        assert!(error.to_string().contains(text), "{text}: {error}");
        assert!(!to.exists());
    }
    let taken = dir.path().join("a");
    let before = listing(&taken);
    let error = restore(&path, &into(&taken, &encryption)).await.unwrap_err();
    assert!(matches!(error, StoreError::NotEmpty(_)), "{error}");
    assert_eq!(listing(&taken), before);
    // One that was cut off is not opened by a master.
    let half = dir.path().join("half");
    restore(&path, &into(&half, &encryption)).await.unwrap();
    std::fs::write(half.join("unfinished"), "restore it again").unwrap();
    let error = Store::open(into(&half, &encryption)).await.unwrap_err();
    assert!(error.to_string().contains("cut off; hint: restore it again"), "{error}");
}

fn listing(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Somebody who takes nothing does not hold up the store, and a backup that nobody wants ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_taker_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).await.unwrap();
    for n in 0..400 {
        put(&store, &format!("n{n}"), &"x".repeat(10_000)).await.unwrap();
    }
    let mut saving = store.backup().await.unwrap();
    assert!(saving.pieces.recv().await.is_some());
    put(&store, "meanwhile", "1").await.unwrap();
    drop(saving);
    store.shutdown().await.unwrap();
}
