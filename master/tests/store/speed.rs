//! How fast the store is by itself, without gRPC, with encryption and without, and how long it takes
//! to open (`make bench NAME=store-writes` measures whole masters).

use std::time::{Duration, Instant};

use timonier_master::store::{Encryption, Store, StoreConfig};

use crate::{open, put};

const KEYS: usize = 1024;
const WINDOW: Duration = Duration::from_secs(5);

/// Latencies of all writes in the window, sorted.
async fn write(store: &Store, writers: usize) -> Vec<Duration> {
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..writers {
        let store = store.clone();
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            while begun.elapsed() < WINDOW {
                let sent = Instant::now();
                let n = fastrand::u64(..);
                let value = format!("{n:020}{}", "x".repeat(1000));
                put(&store, &format!("n{}", n as usize % KEYS), &value).await.unwrap();
                latencies.push(sent.elapsed());
            }
            latencies
        });
    }
    let mut latencies: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    latencies.sort_unstable();
    latencies
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures; cargo test --release -p timonier-master --test store -- --ignored --nocapture speed"]
async fn speed() {
    for encryption in [Encryption::Off, Encryption::DataFolder] {
        eprintln!("encryption: {encryption:?}");
        speed_with(encryption).await;
    }
}

async fn speed_with(encryption: Encryption) {
    let dir = tempfile::tempdir().unwrap();
    let config = || StoreConfig { encryption: encryption.clone(), ..StoreConfig::new(dir.path()) };
    let store = open(config()).await;
    for n in 0..KEYS {
        put(&store, &format!("n{n}"), "").await.unwrap();
    }
    for writers in [1, 64, 1, 64] {
        let before = store.status();
        let latencies = write(&store, writers).await;
        let after = store.status();
        let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100];
        eprintln!(
            "{writers} writers: {:.0} writes/s, p50 {:?}, p99 {:?}, max {:?}; {} entries, {} fsyncs, {} snapshots",
            latencies.len() as f64 / WINDOW.as_secs_f64(),
            at(50),
            at(99),
            at(100),
            after.last_index - before.last_index,
            after.fsyncs - before.fsyncs,
            after.snapshots - before.snapshots,
        );
    }
    store.shutdown().await.unwrap();
    let begun = Instant::now();
    let store = open(config()).await;
    eprintln!("opened again in {:?}; {:?}", begun.elapsed(), store.status());
    store.shutdown().await.unwrap();
}
