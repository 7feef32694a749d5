//! The store through its public face, on real disks: what it keeps, what it refuses, and what is
//! left after a crash.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod backup;
mod changes;
mod cluster;
mod commits;
mod crash;
mod damage;
mod disk_full;
mod membership;
mod recovery;
mod sealing;
mod snapshots;
mod speed;
mod upgrade;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use timonier_master::store::{CommitError, Committed, Store, StoreConfig};
use timonier_master_core::level::Level;
use timonier_master_core::op::{Op, Txn};
use timonier_proto::{Kind, Kinded, Object, ObjectKey};

/// Everything in these tests that is waited for comes within this time.
const DEADLINE: Duration = Duration::from_secs(30);

/// Small files, so that the log goes through many.
fn config(dir: &Path) -> StoreConfig {
    StoreConfig { segment_bytes: 1 << 20, ..StoreConfig::new(dir) }
}

async fn open(config: StoreConfig) -> Store {
    Store::open(config).await.unwrap_or_else(|error| panic!("{error}"))
}

fn object(name: &str, value: &str) -> Object {
    let mut map = ConfigMap::default();
    map.metadata.namespace = Some("default".to_owned());
    map.metadata.name = Some(name.to_owned());
    map.metadata.uid = Some(format!("uid-{name}"));
    map.data = Some(BTreeMap::from([("value".to_owned(), value.to_owned())]));
    map.into_object()
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(Kind::ConfigMap, "default", name)
}

fn create(name: &str, value: &str) -> Txn {
    Txn::of(vec![Op::Create(object(name, value))])
}

async fn put(store: &Store, name: &str, value: &str) -> Result<Committed, CommitError> {
    let op = if store.snapshot().object(&key(name)).is_some() {
        let mut object = object(name, value);
        object.meta_mut().uid = None;
        Op::Replace(object)
    } else {
        Op::Create(object(name, value))
    };
    store.commit(Txn::of(vec![op])).await
}

fn value(store: &Store, name: &str) -> Option<String> {
    let snapshot = store.snapshot();
    let map = snapshot.get::<ConfigMap>("default", name)?;
    map.data.as_ref()?.get("value").cloned()
}

/// A new store raises its level by itself, a moment after it was opened.
async fn at_newest_level(store: &Store) {
    until("the newest level", || store.snapshot().level == Level::NEWEST).await;
}

/// Asks again and again, with a deadline.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(DEADLINE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what} did not come within {DEADLINE:?}"));
}
