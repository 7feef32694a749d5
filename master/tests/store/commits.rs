//! Commits: what is acknowledged is there, for everyone, and after a restart.

use std::time::{Duration, Instant};

use timonier_master::store::{CommitError, Store, StoreError};
use timonier_master_core::op::{Op, Rejection, Txn};

use crate::{at_newest_level, config, create, key, object, open, put, value};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_committed_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(config(dir.path())).await;
    let cluster = store.cluster_id().to_owned();
    assert!(*store.leadership().borrow());
    at_newest_level(&store).await;
    let committed = store.commit(create("a", "1")).await.unwrap();
    let stored = committed.objects[0].clone().unwrap();
    assert_eq!(stored.resource_version(), committed.revision);
    assert_eq!(store.snapshot().object(&key("a")), Some(&stored));
    put(&store, "a", "2").await.unwrap();
    store.commit(create("gone", "")).await.unwrap();
    let remove = Op::Remove { key: key("gone"), uid: None };
    let removed = store.commit(Txn::of(vec![remove])).await.unwrap();
    assert_eq!(removed.objects, [None]);
    store.linearize().await.unwrap();
    let before = store.snapshot();
    store.shutdown().await.unwrap();
    assert_eq!(store.commit(create("b", "")).await, Err(CommitError::ShuttingDown));

    let begun = Instant::now();
    let store = open(config(dir.path())).await;
    eprintln!("opened in {:?}", begun.elapsed());
    assert_eq!(store.snapshot(), before);
    assert_eq!(store.cluster_id(), cluster);
    assert_eq!(value(&store, "a").as_deref(), Some("2"));
    store.commit(create("b", "")).await.unwrap();
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_many_concurrent_transactions_gets_its_own_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(config(dir.path())).await;
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..64 {
        let store = store.clone();
        tasks.spawn(async move {
            let mut won = 0;
            for n in 0..20 {
                let own = format!("own-{writer}-{n}");
                let committed = store.commit(create(&own, "")).await.unwrap();
                assert_eq!(committed.objects[0].as_ref().unwrap().key(), key(&own));
                match store.commit(create(&format!("contested-{n}"), "")).await {
                    Ok(_) => won += 1,
                    Err(CommitError::Rejected(Rejection::AlreadyExists(_))) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            won
        });
    }
    let won: i32 = tasks.join_all().await.into_iter().sum();
    assert_eq!(won, 20, "each contested name has one winner");
    assert_eq!(store.snapshot().len(), 64 * 20 + 20);
    let status = store.status();
    assert!(status.last_index < 64 * 40, "transactions share entries: {status:?}");
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_transaction_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(config(dir.path())).await;
    at_newest_level(&store).await;
    put(&store, "a", "1").await.unwrap();
    let before = store.snapshot();
    let both = vec![Op::Create(object("b", "")), Op::Create(object("a", ""))];
    let refused = store.commit(Txn::of(both)).await;
    assert_eq!(refused, Err(CommitError::Rejected(Rejection::AlreadyExists(key("a")))));
    assert_eq!(store.snapshot(), before);
    let huge = "x".repeat(1 << 20);
    let error = store.commit(create("huge", &huge)).await.unwrap_err();
    assert!(error.to_string().contains("at most"), "{error}");
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_id_is_answered_and_not_applied_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(config(dir.path())).await;
    let txn = Txn { id: Some("once".to_owned()), ..create("a", "1") };
    let first = store.commit(txn.clone()).await.unwrap();
    assert!(!first.repeated);
    for _ in 0..2 {
        let again = store.commit(txn.clone()).await.unwrap();
        assert_eq!((again.revision, again.repeated), (first.revision, true));
        assert_eq!(again.objects, first.objects);
        store.shutdown().await.unwrap();
        store = open(config(dir.path())).await;
    }
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(config(dir.path())).await;
    let second = Store::open(config(dir.path())).await;
    assert!(matches!(second, Err(StoreError::Locked(_))), "{second:?}");
    store.shutdown().await.unwrap();
    open(config(dir.path())).await.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_disk_is_waited_for_and_shared() {
    let dir = tempfile::tempdir().unwrap();
    let delay = Duration::from_millis(40);
    let mut config = config(dir.path());
    config.fsync_delay = Some(delay);
    let store = open(config).await;
    let begun = Instant::now();
    store.commit(create("alone", "")).await.unwrap();
    assert!(begun.elapsed() >= delay, "{:?}", begun.elapsed());
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..100 {
        let store = store.clone();
        tasks.spawn(async move { store.commit(create(&format!("n{n}"), "")).await.unwrap() });
    }
    tasks.join_all().await;
    assert!(begun.elapsed() < delay * 20, "100 writes took {:?}", begun.elapsed());
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_store_does_not_touch_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(config(dir.path())).await;
    at_newest_level(&store).await;
    put(&store, "a", "1").await.unwrap();
    let before = store.status();
    let mut changes = store.changes(None).unwrap();
    // Longer than a heartbeat and an election timeout.
    let silence = tokio::time::timeout(Duration::from_secs(4), changes.next()).await;
    assert!(silence.is_err(), "{silence:?}");
    assert_eq!(store.status(), before);
    store.shutdown().await.unwrap();
}
