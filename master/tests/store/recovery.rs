//! Most masters are lost: one that is left goes on alone, and the old ones cannot harm it.

use timonier_master::store::{Recovery, Start, Store, StoreConfig, StoreError};

use crate::cluster::{Cluster, close};
use crate::{DEADLINE, config, put, until, value};

fn offline(cluster: &Cluster, name: &str) -> StoreConfig {
    config(&cluster.dir(name))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_goes_on_alone_and_the_others_join_anew() {
    // Some entries in a snapshot, some in the log.
    let cluster = Cluster::new(60);
    let [a, b, c] = cluster.of_three().await;
    for n in 0..150 {
        put(&b, &format!("n{n}"), "1").await.unwrap();
    }
    c.linearize().await.unwrap();
    let (before, id, old_cluster) = (c.snapshot(), c.id(), c.cluster_id().to_owned());
    let refused = Recovery::open(offline(&cluster, "c")).await.err().unwrap();
    assert!(matches!(refused, StoreError::Locked(_)), "{refused}");
    cluster.kill(a).await;
    cluster.kill(b).await;
    cluster.kill(c).await;

    let recovery = Recovery::open(offline(&cluster, "c")).await.unwrap();
    let survey = recovery.survey().clone();
    assert_eq!((survey.id, survey.members.len()), (id, 3));
    assert_eq!((survey.revision, survey.objects), (before.revision, before.len()));
    // Having looked costs nothing.
    drop(recovery);
    let recovered = Recovery::open(offline(&cluster, "c")).await.unwrap().run().await.unwrap();
    assert_ne!(recovered.cluster_id, old_cluster);
    assert!(recovered.kept.join("cluster.json").exists());

    let c = cluster.open("c", Start::First).await;
    assert!(c.status().leader);
    assert_eq!(c.snapshot().len(), before.len());
    let written = put(&c, "after", "1").await.unwrap();
    assert!(written.revision > before.revision);
    assert_eq!(c.id(), id);

    // The old masters come back as they were: they are two of three, and do not touch the new one.
    let a = cluster.open("a", Start::First).await;
    let b = cluster.open("b", Start::First).await;
    until("the old masters' leader", || a.status().leader || b.status().leader).await;
    put(&a, "in the old cluster", "1").await.unwrap();
    put(&c, "in the new cluster", "1").await.unwrap();
    assert_eq!(value(&c, "in the old cluster"), None);
    assert_eq!(value(&a, "in the new cluster"), None);
    cluster.kill(a).await;
    cluster.kill(b).await;

    for name in ["a", "b"] {
        std::fs::remove_dir_all(cluster.dir(name)).unwrap();
    }
    let a = cluster.join("a", &c).await;
    let b = cluster.join("b", &c).await;
    b.linearize().await.unwrap();
    assert_eq!(value(&b, "in the new cluster").as_deref(), Some("1"));
    assert_eq!(value(&a, "n149").as_deref(), Some("1"));
    close([a, b, c]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_the_log_of_a_cut_off_leader_has_counts() {
    let cluster = Cluster::new(20_000);
    let [a, b, c] = cluster.of_three().await;
    let mut stores = vec![a, b, c];
    let leader = stores.iter().position(|store| store.status().leader).unwrap();
    let leading = stores.remove(leader);
    for other in stores {
        cluster.kill(other).await;
    }
    let last = leading.status().last_index;
    let unsure = {
        let store = leading.clone();
        tokio::spawn(async move { put(&store, "unsure", "1").await })
    };
    until("the write in its log", || leading.status().last_index > last).await;
    let name = leading.members().into_iter().find(|m| m.id == leading.id()).unwrap().name;
    cluster.kill(leading).await;
    assert!(tokio::time::timeout(DEADLINE, unsure).await.unwrap().unwrap().is_err());
    let recovery = Recovery::open(offline(&cluster, &name)).await.unwrap();
    assert!(recovery.survey().committed_index < recovery.survey().last_index);
    recovery.run().await.unwrap();
    let store = Store::open(offline(&cluster, &name)).await.unwrap();
    assert_eq!(value(&store, "unsure").as_deref(), Some("1"));
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_nothing_to_recover_where_no_store_is() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let refused = Recovery::open(config(&missing)).await.err().unwrap();
    assert!(matches!(refused, StoreError::NoStore(_)), "{refused}");
    assert!(!missing.exists());
}
