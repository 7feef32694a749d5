//! The driver with a real store: what it is told it does, until there is nothing left to do.

use std::path::Path;
use std::sync::Mutex;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, PodCondition};
use timonier_master_core::op::Op;
use timonier_master_core::snapshot::Snapshot;
use timonier_master_core::world::NodeSignal;
use timonier_proto::{Kinded, ObjectKey};
use tokio::sync::Notify;

use super::*;
use crate::store::StoreConfig;

/// No condition takes longer than this to come true on a machine that is busy with other tests.
const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Clone, Default)]
struct FakeHub {
    telemetry: Arc<Mutex<Telemetry>>,
    notify: Arc<Notify>,
}

impl FakeHub {
    /// The agent beats, from now for as long as the test takes.
    fn join(&self, node: &str) {
        let signal = NodeSignal {
            last_beat: "2100-01-01T00:00:00Z".parse().unwrap(),
            connected: true,
            host: Default::default(),
            not_ready: None,
            master_away_since: None,
            greeted_at: None,
        };
        self.telemetry.lock().unwrap().nodes.insert(node.to_owned(), signal);
        self.notify.notify_one();
    }

    fn leave(&self, node: &str) {
        let mut telemetry = self.telemetry.lock().unwrap();
        let signal = telemetry.nodes.get_mut(node).unwrap();
        signal.connected = false;
        signal.last_beat = Timestamp::now();
        drop(telemetry);
        self.notify.notify_one();
    }
}

impl Signals for FakeHub {
    fn signals(&self, _: Timestamp) -> Arc<Telemetry> {
        Arc::new(self.telemetry.lock().unwrap().clone())
    }

    async fn changed(&self) {
        self.notify.notified().await;
    }
}

struct Bench {
    store: Store,
    hub: FakeHub,
    shutdown: CancellationToken,
    driver: tokio::task::JoinHandle<()>,
}

async fn start(dir: &Path) -> Bench {
    let store = Store::open(StoreConfig::new(dir)).await.unwrap();
    let hub = FakeHub::default();
    let settings = Settings {
        cluster_range: "10.244.0.0/16".into(),
        service_range: "10.96.0.0/16".into(),
        node_grace_ms: 300,
        eviction_after_ms: 200,
        fence_after_ms: 10_000,
    };
    let shutdown = CancellationToken::new();
    let driver = tokio::spawn(run(store.clone(), hub.clone(), settings, shutdown.clone()));
    Bench { store, hub, shutdown, driver }
}

impl Bench {
    async fn stop(self) {
        self.shutdown.cancel();
        self.driver.await.unwrap();
        self.store.shutdown().await.unwrap();
    }

    async fn create<T: Kinded + serde::de::DeserializeOwned>(&self, json: serde_json::Value) {
        let object: T = serde_json::from_value(json).unwrap();
        let op = stamp(Op::Create(object.into_object()), Timestamp::now());
        self.store.commit(Txn::of(vec![op])).await.unwrap();
    }

    async fn node(&self, name: &str) {
        self.create::<Node>(serde_json::json!({
            "metadata": {"name": name},
            "status": {"allocatable": {"cpu": "64", "memory": "64Gi", "pods": "500"}},
        }))
        .await;
        self.hub.join(name);
    }

    async fn deployment(&self, replicas: i32) {
        self.create::<Deployment>(serde_json::json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "c", "image": "web:1"}]},
                },
            },
        }))
        .await;
    }

    /// Waits until it holds; between looks the agents do their work.
    async fn until(&self, what: &str, holds: impl Fn(&Snapshot) -> bool) {
        let begin = Instant::now();
        loop {
            let snapshot = self.store.snapshot();
            if holds(&snapshot) {
                return;
            }
            assert!(begin.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
            self.agents(&snapshot).await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn agents(&self, snapshot: &Snapshot) {
        let telemetry = self.hub.signals(Timestamp::now());
        for pod in snapshot.list::<Pod>(None) {
            let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default();
            if !telemetry.nodes.get(node).is_some_and(|n| n.connected) {
                continue;
            }
            let op = if pod.metadata.deletion_timestamp.is_some() {
                Op::Remove { key: Pod::clone(pod).into_object().key(), uid: None }
            } else if is_ready(pod) {
                continue;
            } else {
                let mut pod = Pod::clone(pod);
                let status = pod.status.get_or_insert_default();
                status.phase = Some("Running".into());
                status.conditions.get_or_insert_default().push(PodCondition {
                    type_: "Ready".into(),
                    status: "True".into(),
                    ..Default::default()
                });
                Op::ReplaceStatus(pod.into_object())
            };
            // May be refused: the loops work at the same time.
            let _ = self.store.commit(Txn::of(vec![op])).await;
        }
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn ready_on(snapshot: &Snapshot, node: &str) -> usize {
    snapshot.pods_on(node).filter(|pod| is_ready(pod)).count()
}

fn available(snapshot: &Snapshot) -> i32 {
    let web = snapshot.get::<Deployment>("default", "web");
    web.and_then(|d| d.status.as_ref()?.available_replicas).unwrap_or(0)
}

#[tokio::test]
async fn from_a_deployment_to_ready_pods_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let bench = start(dir.path()).await;
    let both = |s: &Snapshot| NAMESPACES.iter().all(|n| s.get::<Namespace>("", n).is_some());
    bench.until("the first namespaces", both).await;
    bench.deployment(6).await;
    bench.node("n1").await;
    bench.node("n2").await;
    bench.until("six pods are available", |s| available(s) == 6).await;
    let key = ObjectKey::new(timonier_proto::Kind::Deployment, "default", "web");
    bench.store.commit(Txn::of(vec![Op::Remove { key, uid: None }])).await.unwrap();
    bench.until("all pods are gone", |s| s.list::<Pod>(None).next().is_none()).await;
    bench.stop().await;
}

#[tokio::test]
async fn a_lost_nodes_pods_are_replaced_without_any_write_telling_so() {
    let dir = tempfile::tempdir().unwrap();
    let bench = start(dir.path()).await;
    bench.node("n1").await;
    bench.node("n2").await;
    bench.until("the namespace is there", |s| s.get::<Namespace>("", "default").is_some()).await;
    bench.deployment(4).await;
    bench.until("four pods are available", |s| available(s) == 4).await;
    bench.hub.leave("n2");
    bench.until("all run on n1", |s| ready_on(s, "n1") == 4 && available(s) == 4).await;
    bench.stop().await;
}

#[tokio::test]
async fn at_rest_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let bench = start(dir.path()).await;
    bench.node("n1").await;
    bench.until("the namespace is there", |s| s.get::<Namespace>("", "default").is_some()).await;
    bench.deployment(3).await;
    bench.until("three pods are available", |s| available(s) == 3).await;
    let mut changes = bench.store.changes(None).unwrap();
    // Whatever is under way comes to an end: no change for a while, within the deadline.
    let begin = Instant::now();
    while tokio::time::timeout(Duration::from_millis(500), changes.next()).await.is_ok() {
        assert!(begin.elapsed() < DEADLINE, "it goes on writing");
    }
    bench.stop().await;
}

#[tokio::test]
async fn a_rollout_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let bench = start(dir.path()).await;
    bench.until("the namespace is there", |s| s.get::<Namespace>("", "default").is_some()).await;
    bench.deployment(5).await;
    bench.until("the pods exist", |s| s.list::<Pod>(None).count() == 5).await;
    let (store, hub) = (bench.store.clone(), bench.hub.clone());
    bench.shutdown.cancel();
    bench.driver.await.unwrap();
    let shutdown = CancellationToken::new();
    let settings = Settings {
        cluster_range: "10.244.0.0/16".into(),
        service_range: "10.96.0.0/16".into(),
        node_grace_ms: 300,
        eviction_after_ms: 200,
        fence_after_ms: 10_000,
    };
    let driver = tokio::spawn(run(store.clone(), hub.clone(), settings, shutdown.clone()));
    let bench = Bench { store, hub, shutdown, driver };
    bench.node("n1").await;
    bench.until("five pods are available", |s| available(s) == 5).await;
    bench.stop().await;
}
