//! Model agents: each says on its own host that it lives, asks masters what it is to run, runs it,
//! and writes how that goes, as the real ones do through their sessions.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use timonier_master::stamp::stamp;
use timonier_master::store::{CommitError, Store};
use timonier_master::telemetry::{Hub, Introduction, Link};
use timonier_master_core::object::{
    is_ending, is_ready, is_unique, node_ready_status, stored_time, uid_of,
};
use timonier_master_core::op::{Op, Txn};
use timonier_proto::k8s_openapi::api::core::v1::{Node, Pod};
use timonier_proto::k8s_openapi::jiff::Timestamp;
use timonier_proto::unique::FENCE_GRACE_MS;
use timonier_proto::v1::Heartbeat;
use timonier_proto::{Kind, Kinded, Object, ObjectKey};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cluster::FENCE_MS;
use crate::network::Network;
use crate::os::HostId;
use crate::workload::Door;

const BEAT: Duration = Duration::from_millis(500);
/// How often an agent asks what it is to run.
const LOOK: Duration = Duration::from_millis(100);
const DEADLINE: Duration = Duration::from_secs(2);
/// How often it looks at what runs.
const STEP: Duration = Duration::from_millis(20);
/// A container takes up to so long to start…
const START_MAX: Duration = Duration::from_millis(600);
/// …and to end, killed if need be.
const STOP_MAX: Duration = Duration::from_millis(FENCE_GRACE_MS);
/// How long a lease lasts.
const FENCE: Duration = Duration::from_millis(FENCE_MS.unsigned_abs());

/// A pod on a host.
#[derive(Debug, Clone)]
struct Container {
    namespace: String,
    name: String,
    /// It may run only under a lease.
    unique: bool,
    running: bool,
    /// When it is up.
    up_at: Duration,
    /// When it is gone, once that was asked for.
    gone_at: Option<Duration>,
    /// For good.
    ending: bool,
    reported: bool,
}

/// What runs on one host now. Outlives the agent, as containers do, but not the host.
#[derive(Debug, Clone, Default)]
pub struct Running(Arc<Mutex<BTreeMap<String, Ran>>>);

#[derive(Debug, Clone)]
pub struct Ran {
    pub node: String,
    pub unique: bool,
}

impl Running {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Ran>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn clear(&self) {
        self.lock().clear();
    }

    /// By uid.
    pub fn all(&self) -> BTreeMap<String, Ran> {
        self.lock().clone()
    }
}

/// What an agent knows and does.
#[derive(Default)]
struct Work {
    containers: BTreeMap<String, Container>,
    /// Revision of the newest set that was heard.
    seen: u64,
    /// When the beat was sent that was answered last.
    lease: Option<Duration>,
}

#[derive(Clone)]
pub struct AgentHost {
    pub network: Network,
    pub host: HostId,
    pub name: String,
    pub doors: Vec<Door>,
    pub hubs: Vec<HubDoor>,
    pub master: Arc<AtomicUsize>,
    /// Read by the world.
    pub running: Running,
}

/// What a master's own process knows of the agents; new with each of its starts.
#[derive(Clone, Default)]
pub struct HubDoor(Arc<Mutex<Heard>>);

#[derive(Default)]
struct Heard {
    hub: Option<Hub>,
    /// By node.
    links: BTreeMap<String, Arc<Link>>,
}

impl HubDoor {
    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set(&self, hub: Option<Hub>) {
        *self.lock() = Heard { hub, links: BTreeMap::new() };
    }

    fn beat(&self, node: &str, sequence: u64) {
        let mut inner = self.lock();
        let Some(hub) = inner.hub.clone() else { return };
        let link = inner.links.entry(node.to_owned()).or_insert_with(|| {
            let who = Introduction { node, agent_id: node, dial: sequence };
            Arc::new(hub.connect(who, CancellationToken::new()))
        });
        link.beat(Heartbeat { sequence, ..Default::default() });
    }
}

/// A pod that a node is to run.
struct AssignedPod {
    unique: bool,
    uid: String,
    namespace: String,
    name: String,
    ending: bool,
    /// As the master has it.
    ready: bool,
}

/// What one master has assigned to a node, with its revision.
type Assigned = (u64, Vec<AssignedPod>);

fn assigned(store: &Store, node: &str) -> Assigned {
    let snapshot = store.snapshot();
    let pods = snapshot.pods_on(node).map(|pod| {
        let meta = &pod.metadata;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        AssignedPod {
            unique: is_unique(pod),
            uid: uid_of(meta).to_owned(),
            namespace: text(&meta.namespace),
            name: text(&meta.name),
            ending: is_ending(meta),
            ready: is_ready(pod),
        }
    });
    (snapshot.revision, pods.collect())
}

fn is_done(answer: &Option<Result<(), CommitError>>) -> bool {
    matches!(answer, Some(Ok(()) | Err(CommitError::Rejected(_))))
}

/// A lease, if the node counts as alive in a state that is current, and what it is to run in it: who
/// has the lease has heard that before.
async fn lease(store: Store, node: String) -> Option<Assigned> {
    store.linearize().await.ok()?;
    let snapshot = store.snapshot();
    let alive = snapshot.get::<Node>("", &node).is_some_and(|n| node_ready_status(n) != "Unknown");
    alive.then(|| assigned(&store, &node))
}

impl AgentHost {
    pub async fn run(self) {
        self.register().await;
        let (work, begun) = (Arc::new(Mutex::new(Work::default())), Instant::now());
        let (beats, beaten) = (self.clone(), work.clone());
        tokio::spawn(async move { beats.beat(beaten, begun).await });
        let (runs, run) = (self.clone(), work.clone());
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(STEP).await;
                runs.step(&mut lock(&run), begun.elapsed());
            }
        });
        loop {
            tokio::time::sleep(LOOK).await;
            if let Some(assigned) = self.ask().await {
                lock(&work).take(assigned);
            }
            self.report(&work, begun.elapsed()).await;
        }
    }

    /// The master that this agent speaks to; another one once it did not answer.
    fn door(&self) -> (usize, Door) {
        let master = self.master.load(Ordering::Relaxed) % self.doors.len();
        (master, self.doors[master].clone())
    }

    fn heard<T>(&self, answer: Option<T>) -> Option<T> {
        if answer.is_none() {
            self.master.store(fastrand::usize(..self.doors.len()), Ordering::Relaxed);
        }
        answer
    }

    async fn commit(&self, op: Op) -> Option<Result<(), CommitError>> {
        let (master, door) = self.door();
        let txn = Txn::of(vec![op]);
        let writing = self.network.call(self.host, master, move || {
            let (store, txn) = (door.store(), txn.clone());
            async move { Some(store?.commit(txn).await.map(drop)) }
        });
        self.heard(tokio::time::timeout(DEADLINE, writing).await.ok().flatten())
    }

    async fn register(&self) {
        let index = self.host;
        let resources = json!({"cpu": "8", "memory": "8Gi", "pods": "110"});
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": self.name, "labels": {"kubernetes.io/hostname": self.name}},
            "spec": {"podCIDR": format!("10.244.{index}.0/24"), "podCIDRs": [format!("10.244.{index}.0/24")]},
            "status": {"capacity": resources, "allocatable": resources,
                "addresses": [{"type": "InternalIP", "address": format!("10.0.0.{index}")}]},
        }))
        .expect("a node");
        let create = stamp(Op::Create(node.into_object()), Timestamp::now());
        loop {
            match self.commit(create.clone()).await {
                Some(Ok(()) | Err(CommitError::Rejected(_))) => return,
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }

    async fn beat(&self, work: Arc<Mutex<Work>>, begun: Instant) {
        for sequence in 1.. {
            for master in 0..self.hubs.len() {
                let beating = self.clone().beat_at(master, sequence);
                let (work, sent) = (work.clone(), begun.elapsed());
                tokio::spawn(async move {
                    if let Some(assigned) = beating.await {
                        let mut work = lock(&work);
                        work.take(assigned);
                        work.lease = work.lease.max(Some(sent));
                    }
                });
            }
            tokio::time::sleep(BEAT).await;
        }
    }

    /// Answers with a lease, where there is one.
    async fn beat_at(self, master: usize, sequence: u64) -> Option<Assigned> {
        let (hub, door, name) = (self.hubs[master].clone(), self.doors[master].clone(), self.name);
        let beating = self.network.call(self.host, master, move || {
            hub.beat(&name, sequence);
            let (store, name) = (door.store(), name.clone());
            async move { lease(store?, name).await }
        });
        tokio::time::timeout(DEADLINE, beating).await.ok().flatten()
    }

    async fn ask(&self) -> Option<Assigned> {
        let (master, door) = self.door();
        let name = self.name.clone();
        let asking = self.network.call(self.host, master, move || {
            let assigned = door.store().map(|store| assigned(&store, &name));
            async move { assigned }
        });
        self.heard(tokio::time::timeout(DEADLINE, asking).await.ok().flatten())
    }

    /// Starts and ends what is to start or end by now.
    fn step(&self, work: &mut Work, now: Duration) {
        let leased = work.lease.is_some_and(|lease| now < lease + FENCE);
        for (uid, container) in &mut work.containers {
            let may_run = !container.ending && (leased || !container.unique);
            if !container.running && may_run {
                container.running = true;
                container.reported = false;
                container.up_at = now + START_MAX.mul_f64(fastrand::f64());
                let ran = Ran { node: self.name.clone(), unique: container.unique };
                self.running.lock().insert(uid.clone(), ran);
            } else if container.running && !may_run {
                container.gone_at.get_or_insert(now + STOP_MAX.mul_f64(fastrand::f64()));
            }
            if container.gone_at.is_some_and(|at| at <= now) {
                container.gone_at = None;
                container.running = false;
                self.running.lock().remove(uid);
            }
        }
    }

    /// Reports what is up and what is gone.
    async fn report(&self, work: &Mutex<Work>, now: Duration) {
        let containers = lock(work).containers.clone();
        for (uid, container) in containers {
            if container.ending && !container.running {
                let key = ObjectKey::new(Kind::Pod, &*container.namespace, &*container.name);
                let removed = self.commit(Op::Remove { key, uid: Some(uid.clone()) }).await;
                if is_done(&removed) {
                    lock(work).containers.remove(&uid);
                }
            } else if container.running && !container.reported && container.up_at <= now {
                let status = self.commit(Op::ReplaceStatus(self.status(&uid, &container))).await;
                if let Some(container) = lock(work).containers.get_mut(&uid) {
                    container.reported = is_done(&status);
                }
            }
        }
    }

    fn status(&self, uid: &str, container: &Container) -> Object {
        let now = stored_time(Timestamp::now());
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"namespace": container.namespace, "name": container.name, "uid": uid},
            "status": {
                "phase": "Running", "podIP": "10.244.0.9",
                "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": now},
                    {"type": "ContainersReady", "status": "True", "lastTransitionTime": now},
                ],
            },
        }))
        .expect("a status");
        pod.into_object()
    }
}

impl Work {
    /// What the node is to run, unless something newer was heard.
    fn take(&mut self, (revision, pods): Assigned) {
        if revision < self.seen {
            return;
        }
        self.seen = revision;
        for (uid, container) in &mut self.containers {
            container.ending |= !pods.iter().any(|pod| pod.uid == *uid);
        }
        for AssignedPod { unique, uid, namespace, name, ending, ready } in pods {
            let container = self.containers.entry(uid).or_insert_with(|| Container {
                namespace,
                name,
                unique,
                running: false,
                up_at: Duration::ZERO,
                gone_at: None,
                ending,
                reported: false,
            });
            // It was thought lost meanwhile: a session that begins anew tells everything again.
            container.reported &= ready;
            container.ending |= ending;
        }
    }
}

fn lock(work: &Mutex<Work>) -> MutexGuard<'_, Work> {
    work.lock().unwrap_or_else(PoisonError::into_inner)
}
