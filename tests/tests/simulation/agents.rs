//! Model agents: each says on its own host that it lives, asks masters what it is to run, runs it,
//! and tells them how that goes. A pod's life and the lease are the real agent's; a session is here a
//! few calls, of which the masters' side is the real one's where it decides something.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use timonier_agent::lease::Lease;
use timonier_agent::pods::SteadyClock;
use timonier_master::sessions;
use timonier_master::stamp::stamp;
use timonier_master::store::{CommitError, Store};
use timonier_master::telemetry::{Hub, Introduction, Link};
use timonier_master_core::object::{is_ending, is_unique, uid_of};
use timonier_master_core::op::{Op, Txn};
use timonier_proto::Kinded;
use timonier_proto::k8s_openapi::api::core::v1::{Node, Pod};
use timonier_proto::k8s_openapi::jiff::Timestamp;
use timonier_proto::v1::{Heartbeat, PodStatusUpdate};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cluster::FENCE_MS;
use crate::engine::{LivePod, Moment, Running};
use crate::network::Network;
use crate::os::HostId;
use crate::workload::Door;

const BEAT: Duration = Duration::from_millis(500);
/// How often an agent asks what it is to run.
const LOOK: Duration = Duration::from_millis(100);
const DEADLINE: Duration = Duration::from_secs(2);
/// How often it looks at what runs.
const STEP: Duration = Duration::from_millis(20);

/// What an agent knows and does.
struct Work {
    begun: Instant,
    clock: SteadyClock,
    lease: Lease,
    /// By uid.
    pods: BTreeMap<String, LivePod>,
    /// Revision of the newest set that was heard.
    seen: u64,
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

/// What one master has assigned to a node, with its revision.
type Assigned = (u64, Vec<Arc<Pod>>);

fn assigned(store: &Store, node: &str) -> Assigned {
    let snapshot = store.snapshot();
    (snapshot.revision, snapshot.pods_on(node).cloned().collect())
}

/// A lease, if the node may have one in a state that is current, and what it is to run in it: who
/// has the lease has heard that before.
async fn lease(store: Store, node: String) -> Option<Assigned> {
    store.linearize().await.ok()?;
    sessions::may_have_lease(&store.snapshot(), &node).then(|| assigned(&store, &node))
}

/// Writes what the agent says of a pod. A master that does not know of it yet is not the one that
/// assigned it.
async fn store_status(
    store: Store,
    node: String,
    seen: u64,
    update: PodStatusUpdate,
) -> Option<()> {
    let snapshot = store.snapshot();
    let txn = sessions::plan_statuses(&snapshot, &node, &[update]);
    if snapshot.revision < seen {
        return None;
    }
    if txn.ops.is_empty() {
        return Some(());
    }
    store.commit(txn).await.ok().map(drop)
}

impl AgentHost {
    pub async fn run(self) {
        self.register().await;
        let work = Arc::new(Mutex::new(Work::new()));
        let (beats, beaten) = (self.clone(), work.clone());
        tokio::spawn(async move { beats.beat(beaten).await });
        let (runs, run) = (self.clone(), work.clone());
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(STEP).await;
                lock(&run).step(&runs);
            }
        });
        loop {
            tokio::time::sleep(LOOK).await;
            if let Some(assigned) = self.ask().await {
                lock(&work).take(&self, assigned);
            }
            self.report(&work).await;
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

    async fn beat(&self, work: Arc<Mutex<Work>>) {
        for sequence in 1.. {
            lock(&work).lease.beat(sequence);
            for master in 0..self.hubs.len() {
                let (agent, work) = (self.clone(), work.clone());
                tokio::spawn(async move {
                    if let Some(assigned) = agent.clone().beat_at(master, sequence).await {
                        let mut work = lock(&work);
                        work.take(&agent, assigned);
                        work.lease.granted(sequence);
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

    /// Tells of the pods that have changed.
    async fn report(&self, work: &Mutex<Work>) {
        let (seen, news): (u64, Vec<PodStatusUpdate>) = {
            let work = lock(work);
            (work.seen, work.pods.values().filter_map(LivePod::news).collect())
        };
        for update in news {
            let (master, door) = self.door();
            let (node, told) = (self.name.clone(), update.clone());
            let telling = self.network.call(self.host, master, move || {
                let (store, node, update) = (door.store(), node.clone(), update.clone());
                async move { store_status(store?, node, seen, update).await }
            });
            let stored = self.heard(tokio::time::timeout(DEADLINE, telling).await.ok().flatten());
            let mut work = lock(work);
            if let (Some(()), Some(pod)) = (stored, work.pods.get_mut(&told.uid)) {
                pod.told(told);
            }
        }
    }
}

impl Work {
    fn new() -> Self {
        let begun = Instant::now();
        let clock =
            Box::new(move || u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX));
        Self {
            begun,
            clock: SteadyClock::default(),
            lease: Lease::on_clock(clock, FENCE_MS.unsigned_abs()),
            pods: BTreeMap::new(),
            seen: 0,
        }
    }

    fn with(&mut self, agent: &AgentHost, happens: impl FnOnce(&mut Pods, &Moment<'_>)) {
        let moment = Moment {
            node: &agent.name,
            now: self.begun.elapsed(),
            time: self.clock.now(),
            lease: &self.lease,
            running: &agent.running,
        };
        happens(&mut self.pods, &moment);
        self.pods.retain(|_, pod| !pod.is_over());
    }

    fn step(&mut self, agent: &AgentHost) {
        self.with(agent, |pods, moment| pods.values_mut().for_each(|pod| pod.step(moment)));
    }

    /// What the node is to run, unless something newer was heard.
    fn take(&mut self, agent: &AgentHost, (revision, assigned): Assigned) {
        if revision < self.seen {
            return;
        }
        self.seen = revision;
        self.with(agent, |pods, moment| {
            let wanted: BTreeSet<&str> = assigned.iter().map(|pod| uid_of(&pod.metadata)).collect();
            for (uid, pod) in pods.iter_mut() {
                if !wanted.contains(uid.as_str()) {
                    pod.forget(moment);
                }
            }
            for pod in &assigned {
                let waits = is_unique(pod) && !is_ending(&pod.metadata) && !moment.lease.is_valid();
                match pods.get_mut(uid_of(&pod.metadata)) {
                    Some(live) => live.assigned(pod, moment),
                    None if waits => {}
                    None => {
                        let uid = uid_of(&pod.metadata).to_owned();
                        pods.insert(uid, LivePod::begin(pod, moment));
                    }
                }
            }
        });
        let unique = assigned.iter().any(|pod| is_unique(pod));
        self.lease.want(unique || self.pods.values().any(LivePod::is_unique));
    }
}

/// By uid.
type Pods = BTreeMap<String, LivePod>;

fn lock(work: &Mutex<Work>) -> MutexGuard<'_, Work> {
    work.lock().unwrap_or_else(PoisonError::into_inner)
}
