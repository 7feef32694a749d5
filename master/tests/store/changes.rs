//! Watching: every change once, in order, from any revision that is remembered.

use timonier_master::store::{ChangesError, Compacted};
use timonier_master_core::op::{Op, Txn};

use crate::{config, key, object, open, put};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_sees_each_change_once_and_resumes_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(config(dir.path())).await;
    let mut watch = store.changes(None).unwrap();
    let writing = tokio::spawn({
        let store = store.clone();
        async move {
            for n in 0..200 {
                let ops = vec![
                    Op::Create(object(&format!("a{n}"), "")),
                    Op::Create(object(&format!("b{n}"), "")),
                ];
                store.commit(Txn::of(ops)).await.unwrap();
            }
        }
    });
    let mut seen = Vec::new();
    while seen.len() < 400 {
        // Stops and resumes at every place, within a transaction, too.
        let change = watch.next().await.unwrap();
        assert!(store.snapshot().revision >= change.revision);
        seen.push((change.revision, change.key.name.clone()));
        watch = store.changes(Some(change.revision)).unwrap();
    }
    writing.await.unwrap();
    let expected: Vec<_> = (0..200u64)
        .flat_map(|n| [(2 * n + 1, format!("a{n}")), (2 * n + 2, format!("b{n}"))])
        .collect();
    assert_eq!(seen, expected);
    store.shutdown().await.unwrap();
    assert_eq!(watch.next().await.unwrap_err(), ChangesError::Closed);

    // The log is replayed at the start, so a watch resumes across a restart.
    let store = open(config(dir.path())).await;
    let mut watch = store.changes(Some(100)).unwrap();
    let rest = watch.next_batch().await.unwrap();
    assert_eq!((rest.len(), rest[0].revision), (300, 101));
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_old_a_revision_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(config(dir.path())).await;
    let mut slow = store.changes(Some(0)).unwrap();
    // More bytes than the ring keeps.
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..500 {
        let store = store.clone();
        let value = "x".repeat(100 << 10);
        tasks.spawn(async move { put(&store, &format!("n{n}"), &value).await.unwrap() });
    }
    tasks.join_all().await;
    let Err(ChangesError::Compacted(Compacted { from: 0, compacted })) = slow.next().await else {
        panic!("the slow watch went on")
    };
    let refused = store.changes(Some(compacted - 1)).unwrap_err();
    assert!(refused.to_string().contains("too old"), "{refused}");
    let first = store.changes(Some(compacted)).unwrap().next().await.unwrap();
    assert_eq!(first.revision, compacted + 1);
    assert_eq!(first.after, store.snapshot().object(&first.key).cloned());
    assert_eq!(first.key.kind, key("").kind);
    store.shutdown().await.unwrap();
}
