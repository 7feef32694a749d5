//! Model agents: each says on its own host that it lives, asks masters what it is to run, runs it,
//! and writes how that goes, as the real ones do through their sessions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use timonier_master::stamp::stamp;
use timonier_master::store::{CommitError, Store};
use timonier_master::telemetry::{Hub, Introduction, Link};
use timonier_master_core::object::{is_ending, is_ready, uid_of};
use timonier_master_core::op::{Op, Txn};
use timonier_proto::k8s_openapi::api::core::v1::{Node, Pod};
use timonier_proto::k8s_openapi::jiff::Timestamp;
use timonier_proto::v1::Heartbeat;
use timonier_proto::{Kind, Kinded, Object, ObjectKey};
use tokio_util::sync::CancellationToken;

use crate::network::Network;
use crate::os::HostId;
use crate::workload::Door;

const BEAT: Duration = Duration::from_millis(500);
/// How often an agent asks what it is to run.
const LOOK: Duration = Duration::from_millis(100);
const DEADLINE: Duration = Duration::from_secs(2);
/// A container takes up to so long to start, and to end.
const START_MAX: Duration = Duration::from_millis(600);

/// A pod on a host.
#[derive(Debug, Clone)]
struct Container {
    namespace: String,
    name: String,
    /// When it is up.
    up_at: Duration,
    /// When it is gone, once that was asked for.
    gone_at: Option<Duration>,
    reported: bool,
}

/// What runs where: by uid. Outlives the agent, as containers do, but not its host.
pub type Running = Arc<Mutex<BTreeMap<String, String>>>;

#[derive(Clone)]
pub struct AgentHost {
    pub network: Network,
    pub host: HostId,
    pub name: String,
    pub doors: Vec<Door>,
    pub hubs: Vec<HubDoor>,
    /// Pods that run here now, with their node; read by the world.
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
            uid: uid_of(meta).to_owned(),
            namespace: text(&meta.namespace),
            name: text(&meta.name),
            ending: is_ending(meta),
            ready: is_ready(pod),
        }
    });
    (snapshot.revision, pods.collect())
}

impl AgentHost {
    pub async fn run(self) {
        self.register().await;
        let beats = self.clone();
        tokio::spawn(async move { beats.beat().await });
        let begun = tokio::time::Instant::now();
        let mut containers: BTreeMap<String, Container> = BTreeMap::new();
        let mut seen = 0;
        loop {
            tokio::time::sleep(LOOK).await;
            if let Some((revision, pods)) = self.ask().await
                && revision >= seen
            {
                seen = revision;
                self.take(&mut containers, pods, begun.elapsed());
            }
            self.live(&mut containers, begun.elapsed()).await;
        }
    }

    fn any_door(&self) -> (usize, Door) {
        let master = fastrand::usize(..self.doors.len());
        (master, self.doors[master].clone())
    }

    async fn commit(&self, op: Op) -> Option<Result<(), CommitError>> {
        let (master, door) = self.any_door();
        let txn = Txn::of(vec![op]);
        let writing = self.network.call(self.host, master, move || {
            let (store, txn) = (door.store(), txn.clone());
            async move { Some(store?.commit(txn).await.map(drop)) }
        });
        tokio::time::timeout(DEADLINE, writing).await.ok().flatten()
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

    async fn beat(&self) {
        for sequence in 1.. {
            for master in 0..self.hubs.len() {
                tokio::spawn(self.clone().beat_at(master, sequence));
            }
            tokio::time::sleep(BEAT).await;
        }
    }

    async fn beat_at(self, master: usize, sequence: u64) {
        let (hub, name) = (self.hubs[master].clone(), self.name);
        let beating = self.network.call(self.host, master, move || {
            hub.beat(&name, sequence);
            std::future::ready(())
        });
        let _ = tokio::time::timeout(DEADLINE, beating).await;
    }

    async fn ask(&self) -> Option<Assigned> {
        let (master, door) = self.any_door();
        let name = self.name.clone();
        let asking = self.network.call(self.host, master, move || {
            let assigned = door.store().map(|store| assigned(&store, &name));
            async move { assigned }
        });
        tokio::time::timeout(DEADLINE, asking).await.ok().flatten()
    }

    /// Starts what is new, and ends what is to end.
    fn take(
        &self,
        containers: &mut BTreeMap<String, Container>,
        pods: Vec<AssignedPod>,
        now: Duration,
    ) {
        let random = || START_MAX.mul_f64(fastrand::f64());
        for (_, container) in
            containers.iter_mut().filter(|(uid, _)| !pods.iter().any(|p| p.uid == **uid))
        {
            container.gone_at.get_or_insert(now + random());
        }
        for AssignedPod { uid, namespace, name, ending, ready } in pods {
            let container = containers.entry(uid.clone()).or_insert_with(|| {
                // What is ending before it began is never started.
                if !ending {
                    let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
                    running.insert(uid, self.name.clone());
                }
                Container { namespace, name, up_at: now + random(), gone_at: None, reported: false }
            });
            // It was thought lost meanwhile: a session that begins anew tells everything again.
            container.reported &= ready;
            if ending {
                container.gone_at.get_or_insert(now + random());
            }
        }
    }

    /// Reports what is up and what is gone.
    async fn live(&self, containers: &mut BTreeMap<String, Container>, now: Duration) {
        let mut gone = Vec::new();
        for (uid, container) in containers.iter_mut() {
            if container.gone_at.is_some_and(|at| at <= now) {
                self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
                let key = ObjectKey::new(Kind::Pod, &*container.namespace, &*container.name);
                let removed = self.commit(Op::Remove { key, uid: Some(uid.clone()) }).await;
                if matches!(removed, Some(Ok(()) | Err(CommitError::Rejected(_)))) {
                    gone.push(uid.clone());
                }
            } else if container.gone_at.is_none() && !container.reported && container.up_at <= now {
                let status = self.commit(Op::ReplaceStatus(self.status(uid, container))).await;
                container.reported = matches!(status, Some(Ok(()) | Err(CommitError::Rejected(_))));
            }
        }
        containers.retain(|uid, _| !gone.contains(uid));
    }

    fn status(&self, uid: &str, container: &Container) -> Object {
        let now = Timestamp::now().to_string();
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
