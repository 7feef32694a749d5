//! Builds of different ages: what older ones wrote is read, what newer ones wrote is refused, and
//! masters are upgraded one by one. The fixtures are files that builds of those levels wrote.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use timonier_master::store::{
    Encryption, Recovery, Start, Store, StoreConfig, StoreError, restore,
};
use timonier_master_core::level::Level;
use timonier_master_core::op::Txn;

use crate::cluster::{Cluster, close};
use crate::{DEADLINE, at_newest_level, config, create, open, put, until, value};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/store/fixtures").join(name)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            std::fs::copy(&from, &to).unwrap();
        }
    }
}

/// A copy of a data folder, as the store of that build left it: the fixture's log was cut where its
/// zeros begin.
fn data_folder(name: &str, log: &str, log_bytes: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(&fixture(name), dir.path());
    let log = std::fs::OpenOptions::new().write(true).open(dir.path().join(log)).unwrap();
    log.set_len(log_bytes).unwrap();
    dir
}

fn once() -> Txn {
    Txn { id: Some("once".to_owned()), ..create("once", "1") }
}

/// 30 entries in a snapshot, the rest in the log; from before encryption and several masters.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_the_first_builds_is_read() {
    let dir = data_folder("v1", "log/000000000001.log", 32 << 20);
    let named = || StoreConfig {
        name: "old".to_owned(),
        address: "127.0.0.1:7443".to_owned(),
        ..StoreConfig::new(dir.path())
    };
    let store = open(named()).await;
    assert_eq!(store.cluster_id(), "13d821e8-3d30-42f9-91d5-820b79cadb9d");
    for n in 1..=45 {
        assert_eq!(value(&store, &format!("n{n}")), Some(format!("v{n}")));
    }
    assert_eq!(value(&store, "one").as_deref(), Some("1"));
    // It learns its name and address, which were not written then.
    until("its address", || store.members()[0].address == "127.0.0.1:7443").await;
    put(&store, "one", "2").await.unwrap();
    store.shutdown().await.unwrap();
    let store = open(named()).await;
    assert_eq!(value(&store, "one").as_deref(), Some("2"));
    assert_eq!(store.members()[0].name, "old");
    store.shutdown().await.unwrap();
}

/// A sealed log and snapshot, whose key was rotated once, and a keyring that a key file opens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_folder_of_the_first_level_is_read_and_goes_on_at_the_newest() {
    let dir = data_folder("level-1/sealed", "log/000000000002.log", 1 << 20);
    let encryption = Encryption::KeyFile(fixture("level-1/key"));
    let sealed = || StoreConfig { encryption: encryption.clone(), ..config(dir.path()) };
    let store = open(sealed()).await;
    assert_eq!(store.cluster_id(), "9b6612f2-b0e7-4ee8-93c5-53a2a864d17f");
    for n in 0..50 {
        let key = if n < 10 { "of key 1" } else { "of key 2" };
        assert_eq!(value(&store, &format!("n{n}")).as_deref(), Some(key), "n{n}");
    }
    assert!(store.commit(once()).await.unwrap().repeated, "its request ids are known");
    at_newest_level(&store).await;
    // A snapshot of its own has all of that.
    store.rotate_key().await.unwrap();
    store.shutdown().await.unwrap();
    let store = open(sealed()).await;
    assert_eq!(store.snapshot().level, Level::NEWEST);
    assert!(store.commit(once()).await.unwrap().repeated);
    assert_eq!(store.snapshot().len(), 51);
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_the_first_level_is_restored() {
    let key = Encryption::KeyFile(fixture("level-1/key"));
    let phrase = Encryption::Passphrase(fixture("level-1/phrase"));
    for (name, encryption, objects) in
        [("plain", Encryption::DataFolder, 1), ("sealed", key, 51), ("passphrase", phrase, 1)]
    {
        let dir = tempfile::tempdir().unwrap();
        let into = StoreConfig { encryption, ..config(&dir.path().join("restored")) };
        let file = fixture(&format!("level-1/{name}.backup"));
        let restored = restore(&file, &into).await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(restored.header.objects, objects);
        let store = open(into).await;
        assert_eq!(value(&store, "once").as_deref(), Some("1"), "{name}");
        assert!(store.commit(once()).await.unwrap().repeated, "{name}");
        at_newest_level(&store).await;
        store.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn masters_are_upgraded_one_by_one() {
    let mut cluster = Cluster::new(20);
    cluster.level_max = Level::FIRST;
    let [mut a, mut b, mut c] = cluster.of_three().await;
    a.commit(once()).await.unwrap();
    cluster.level_max = Level::NEWEST;
    for (n, old) in [&mut c, &mut b, &mut a].into_iter().enumerate() {
        let name = old.members().into_iter().find(|one| one.id == old.id()).unwrap().name;
        cluster.kill(old.clone()).await;
        *old = cluster.open(&name, Start::First).await;
        put(old, &format!("after upgrade {n}"), "1").await.unwrap();
        old.transfer_leadership(Some(old.id())).await.unwrap();
        if n < 2 {
            // Longer than the leader takes to look.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            assert_eq!(old.snapshot().level, Level::FIRST, "an older master is left");
        }
        assert!(old.commit(once()).await.unwrap().repeated);
    }
    let stores = [a, b, c];
    for store in &stores {
        at_newest_level(store).await;
    }
    let leader = stores.iter().find(|store| store.status().leader).unwrap();
    let refused = leader.admit("d", "d:7443", Level::FIRST.into()).await.unwrap_err().to_string();
    assert!(refused.contains("the cluster is at level 2, which the build of"), "{refused}");
    // One that joins gets a snapshot of this level.
    let d = cluster.join("d", leader).await;
    until("what was written before", || value(&d, "after upgrade 2").is_some()).await;
    assert_eq!(d.snapshot().level, Level::NEWEST);
    assert!(d.commit(once()).await.unwrap().repeated);
    close(stores).await;
    d.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_newer_build_wrote_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let plain =
        || StoreConfig { encryption: Encryption::Off, snapshot_entries: 5, ..config(dir.path()) };
    let store = open(plain()).await;
    at_newest_level(&store).await;
    for n in 0..10 {
        put(&store, &format!("n{n}"), "1").await.unwrap();
    }
    until("a snapshot", || store.status().snapshots > 0).await;
    store.shutdown().await.unwrap();
    let snapshots = std::fs::read_dir(dir.path().join("snapshots")).unwrap().flatten();
    let snapshot = snapshots.map(|entry| entry.path()).max().unwrap();
    let before = std::fs::read_to_string(&snapshot).unwrap();
    for (of_this, of_newer, why) in [
        (r#""level":2"#, r#""level":99"#, "the cluster is at level 99, this build knows"),
        ("timonier snapshot 2", "timonier snapshot 9", "is of another build"),
    ] {
        let (lines, _) = before.trim_end().rsplit_once('\n').unwrap();
        let lines = format!("{}\n", lines.replacen(of_this, of_newer, 1));
        let sum = crc32fast::hash(lines.as_bytes());
        let newer = format!("{lines}{{\"crc32\":{sum}}}\n");
        std::fs::write(&snapshot, &newer).unwrap();
        let refused =
            [Store::open(plain()).await.unwrap_err(), Recovery::open(plain()).await.err().unwrap()];
        for error in refused {
            let text = error.to_string();
            assert!(matches!(error, StoreError::Corrupt { .. }), "{text}");
            assert!(text.contains(why) && text.contains("hint: take the build"), "{text}");
        }
        assert_eq!(std::fs::read_to_string(&snapshot).unwrap(), newer, "nothing was changed");
    }
    std::fs::write(&snapshot, before).unwrap();
    let store = open(plain()).await;
    assert_eq!(store.snapshot().len(), 10);
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_counts_no_more_time_than_has_passed() {
    let dir = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let store = open(config(dir.path())).await;
    at_newest_level(&store).await;
    for n in 0.. {
        assert!(begun.elapsed() < DEADLINE, "no time was counted");
        put(&store, "n", &n.to_string()).await.unwrap();
        if store.snapshot().elapsed_ms > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let counted = store.snapshot().elapsed_ms;
    assert!(u128::from(counted) <= begun.elapsed().as_millis());
    store.shutdown().await.unwrap();
    let store = open(config(dir.path())).await;
    assert!(store.snapshot().elapsed_ms >= counted);
    store.shutdown().await.unwrap();
}
