//! The one task that follows the store for all sessions and tells each node what is new for it.
//!
//! For each batch of changes it works out which nodes are concerned; what all nodes get (services,
//! isolated networks) is encoded once and shared. A session's first message is its complete set;
//! the rest are increments in a chain. It never waits for an agent.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use timonier_master_core::endpoints;
use timonier_master_core::object::{key_of, namespace_of, node_of, node_ready_status, uid_of};
use timonier_master_core::op::Change;
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::latency::LatencyAutoscaler;
use timonier_proto::v1::master_message::Message as Down;
use timonier_proto::v1::{Assignments, MasterMessage, TellStatuses};
use timonier_proto::{Kind, Object, ObjectKey};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::registry::Claim;
use super::{compile, secrets, tokens};
use crate::store::{Changes, ChangesError, Store};
use crate::telemetry::Hub;

/// Sessions that wait to join or leave.
const COMMANDS_MAX: usize = 4096;
/// How often it is looked which pods are to get new tokens of their service accounts.
const TOKENS_INTERVAL: Duration = Duration::from_secs(10);
/// Changes of so long go into one message.
const GATHER: Duration = Duration::from_millis(3);

#[derive(Debug)]
pub enum Command {
    /// Send this session its complete set, then what changes.
    Join(Arc<Claim>),
    Leave(Arc<Claim>),
}

/// The task, as the others know it.
#[derive(Debug, Clone)]
pub struct Handle {
    pub commands: mpsc::Sender<Command>,
    /// Each session has been told of all that concerns it up to this revision.
    pub told: watch::Receiver<u64>,
}

/// Starts the task; it ends with the store or on shutdown.
pub fn start(store: Store, hub: Hub, shutdown: CancellationToken) -> Handle {
    let (sender, commands) = mpsc::channel(COMMANDS_MAX);
    let (told, is_told) = watch::channel(0);
    let follower = Follower {
        store,
        hub,
        sessions: HashMap::new(),
        services: BTreeMap::new(),
        networks: Vec::new(),
        counter: 0,
        tokens_of: Timestamp::now(),
        told,
    };
    tokio::spawn(follower.run(commands, shutdown));
    Handle { commands: sender, told: is_told }
}

struct Follower {
    store: Store,
    hub: Hub,
    /// By node.
    sessions: HashMap<String, Joined>,
    /// By namespace/name, as all nodes have them.
    services: BTreeMap<String, Bytes>,
    networks: Vec<Bytes>,
    /// Numbers the links of the sessions' chains.
    counter: u64,
    /// Every pod has been sent the tokens of this time, or later ones.
    tokens_of: Timestamp,
    told: watch::Sender<u64>,
}

struct Joined {
    claim: Arc<Claim>,
    /// `results_in` of the last message.
    at: u64,
}

/// What a batch of changes concerns.
#[derive(Default)]
struct Dirty {
    /// By node: pods (by uid) to be sent again or, where they are gone, to be removed.
    pods: BTreeMap<String, BTreeMap<String, ObjectKey>>,
    services: BTreeSet<ObjectKey>,
    networks: bool,
    /// Nodes whose object is gone.
    nodes_gone: BTreeSet<String>,
    /// Nodes that are no longer lost.
    nodes_back: BTreeSet<String>,
}

impl Follower {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            let revision = self.start_over();
            let Ok(mut changes) = self.store.changes(Some(revision)) else { continue };
            match self.follow(&mut changes, &mut commands, &shutdown).await {
                Ok(()) | Err(ChangesError::Closed) => return,
                Err(ChangesError::Compacted(compacted)) => {
                    tracing::warn!(%compacted, "fell behind, every agent gets a complete set");
                }
            }
        }
    }

    /// Compiles everything anew and sends complete sets to all; the revision to go on from.
    fn start_over(&mut self) -> u64 {
        let snapshot = self.store.snapshot();
        self.services = snapshot
            .list::<Service>(None)
            .filter_map(|s| Some((service_name(&key_of(&**s)), compile::service(&snapshot, s)?)))
            .collect();
        self.networks = compile::networks(&snapshot);
        let nodes: Vec<String> = self.sessions.keys().cloned().collect();
        for node in nodes {
            self.send_complete(&snapshot, &node);
            self.ask_statuses(&node);
        }
        self.told.send_replace(snapshot.revision);
        snapshot.revision
    }

    async fn follow(
        &mut self,
        changes: &mut Changes,
        commands: &mut mpsc::Receiver<Command>,
        shutdown: &CancellationToken,
    ) -> Result<(), ChangesError> {
        let mut ticks = tokio::time::interval(TOKENS_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                _ = ticks.tick() => self.renew_tokens(),
                command = commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return Ok(()),
                },
                first = changes.next_batch() => {
                    let mut batch = first?;
                    sleep(GATHER).await;
                    batch.extend(changes.try_next_batch()?);
                    self.tell(&batch);
                    self.told.send_replace(changes.revision());
                }
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Join(claim) => {
                let node = claim.node.clone();
                // Newer than the services at hand, maybe: what is missing comes with the changes.
                let snapshot = self.store.snapshot();
                if snapshot.get::<Node>("", &node).is_none() {
                    // Deleted since it registered, and that change may have been told before.
                    claim.cancel.cancel();
                    return;
                }
                self.sessions.insert(node.clone(), Joined { claim: claim.clone(), at: 0 });
                self.send_complete(&snapshot, &node);
                claim.joined.send_replace(true);
            }
            Command::Leave(claim) => {
                let same = |joined: &Joined| joined.claim.session == claim.session;
                if self.sessions.get(&claim.node).is_some_and(same) {
                    self.sessions.remove(&claim.node);
                }
            }
        }
    }

    fn send_complete(&mut self, snapshot: &Snapshot, node: &str) {
        self.counter += 1;
        let now = Timestamp::now();
        let pods = snapshot.pods_on(node).map(|pod| compile::pod(snapshot, pod, now)).collect();
        let assignments = Assignments {
            complete: true,
            results_in: self.counter,
            pods,
            services: self.services.values().cloned().collect(),
            networks_changed: true,
            networks: self.networks.clone(),
            ..Default::default()
        };
        self.send(node, assignments);
    }

    /// Its pods were called not ready while the agent was not heard of; only the agent knows what
    /// they are.
    fn ask_statuses(&mut self, node: &str) {
        let Some(joined) = self.sessions.get(node) else { return };
        let message = MasterMessage { message: Some(Down::TellStatuses(TellStatuses {})) };
        if joined.claim.send(message).is_err() {
            self.sessions.remove(node);
        }
    }

    fn send(&mut self, node: &str, assignments: Assignments) {
        let Some(joined) = self.sessions.get_mut(node) else { return };
        joined.at = assignments.results_in;
        let message = MasterMessage { message: Some(Down::Assignments(assignments)) };
        if joined.claim.cancel.is_cancelled() || joined.claim.send(message).is_err() {
            self.sessions.remove(node);
        }
    }

    /// Sends the pods whose tokens are to be replaced by now.
    fn renew_tokens(&mut self) {
        let (earlier, now) = (self.tokens_of, Timestamp::now());
        self.tokens_of = now;
        let snapshot = self.store.snapshot();
        let mut dirty = Dirty::default();
        for node in self.sessions.keys() {
            let turned = |pod: &&Arc<Pod>| tokens::have_turned(&snapshot, pod, earlier, now);
            let pods = snapshot.pods_on(node).filter(turned);
            let pods = pods.map(|pod| (uid_of(&pod.metadata).to_owned(), key_of(&**pod)));
            let pods: BTreeMap<_, _> = pods.collect();
            if !pods.is_empty() {
                dirty.pods.insert(node.clone(), pods);
            }
        }
        self.send_dirty(&dirty, &snapshot);
    }

    fn tell(&mut self, batch: &[Arc<Change>]) {
        let snapshot = self.store.snapshot();
        let dirty = dirty(batch, &snapshot);
        self.send_dirty(&dirty, &snapshot);
    }

    fn send_dirty(&mut self, dirty: &Dirty, snapshot: &Snapshot) {
        let now = Timestamp::now();
        for node in &dirty.nodes_gone {
            // An agent whose node object was deleted registers again; one that is gone is forgotten.
            match self.sessions.remove(node) {
                Some(joined) => joined.claim.cancel.cancel(),
                None => self.hub.forget(node),
            }
        }
        for node in &dirty.nodes_back {
            self.ask_statuses(node);
        }
        let shared = self.shared(dirty, snapshot);
        let nodes: Vec<String> = if shared == Assignments::default() {
            dirty.pods.keys().filter(|n| self.sessions.contains_key(*n)).cloned().collect()
        } else {
            self.sessions.keys().cloned().collect()
        };
        self.counter += 1;
        for node in nodes {
            let mut message = shared.clone();
            for (uid, key) in dirty.pods.get(&node).into_iter().flatten() {
                match snapshot.get::<Pod>(&key.namespace, &key.name) {
                    Some(pod)
                        if uid_of(&pod.metadata) == uid && node_of(pod) == Some(node.as_str()) =>
                    {
                        message.pods.push(compile::pod(snapshot, pod, now));
                    }
                    _ => message.removed_pod_uids.push(uid.clone()),
                }
            }
            message.applies_to = self.sessions.get(&node).map_or(0, |joined| joined.at);
            message.results_in = self.counter;
            self.send(&node, message);
        }
    }

    /// What all nodes get: services and networks that are not as they were.
    fn shared(&mut self, dirty: &Dirty, snapshot: &Snapshot) -> Assignments {
        let mut message = Assignments::default();
        for key in &dirty.services {
            let name = service_name(key);
            let compiled = snapshot
                .get::<Service>(&key.namespace, &key.name)
                .and_then(|service| compile::service(snapshot, service));
            match compiled {
                Some(bytes) => {
                    if self.services.get(&name) != Some(&bytes) {
                        self.services.insert(name, bytes.clone());
                        message.services.push(bytes);
                    }
                }
                None => {
                    if self.services.remove(&name).is_some() {
                        message.removed_services.push(name);
                    }
                }
            }
        }
        if dirty.networks {
            let networks = compile::networks(snapshot);
            if networks != self.networks {
                self.networks.clone_from(&networks);
                message.networks_changed = true;
                message.networks = networks;
            }
        }
        message
    }
}

fn service_name(key: &ObjectKey) -> String {
    format!("{}/{}", key.namespace, key.name)
}

fn dirty(batch: &[Arc<Change>], snapshot: &Snapshot) -> Dirty {
    let mut dirty = Dirty::default();
    for change in batch {
        match change.key.kind {
            Kind::Pod => pod_changed(change, snapshot, &mut dirty),
            Kind::Service => {
                dirty.services.insert(change.key.clone());
            }
            Kind::ConfigMap => {
                let name = change.key.name.as_str();
                mark(&mut dirty, snapshot, Some(&change.key.namespace), |pod| {
                    compile::config_map_names(pod).contains(name)
                });
            }
            Kind::Secret => {
                let name = change.key.name.as_str();
                mark(&mut dirty, snapshot, Some(&change.key.namespace), |pod| {
                    secrets::uses(snapshot, pod, name)
                });
                if tokens::depend_on(&change.key.namespace, name) {
                    mark(&mut dirty, snapshot, None, |pod| tokens::has_any(snapshot, pod));
                }
            }
            Kind::ServiceAccount => {
                let name = change.key.name.as_str();
                mark(&mut dirty, snapshot, Some(&change.key.namespace), |pod| {
                    secrets::account_of(pod) == name
                });
            }
            Kind::LatencyAutoscaler => autoscaler_changed(change, snapshot, &mut dirty),
            Kind::Namespace => {
                let isolated = |object: &Option<Object>| {
                    object
                        .as_ref()
                        .and_then(Object::get::<Namespace>)
                        .is_some_and(|n| compile::is_isolated(n))
                };
                dirty.networks |= isolated(&change.before) || isolated(&change.after);
            }
            Kind::Node if snapshot.get::<Node>("", &change.key.name).is_none() => {
                dirty.nodes_gone.insert(change.key.name.clone());
            }
            Kind::Node if is_lost(&change.before) && !is_lost(&change.after) => {
                dirty.nodes_back.insert(change.key.name.clone());
            }
            _ => {}
        }
    }
    dirty
}

fn is_lost(node: &Option<Object>) -> bool {
    let node = node.as_ref().and_then(Object::get::<Node>);
    node.is_some_and(|node| node_ready_status(node) == "Unknown")
}

fn pod_changed(change: &Change, snapshot: &Snapshot, dirty: &mut Dirty) {
    let before = change.before.as_ref().and_then(Object::get::<Pod>);
    let after = change.after.as_ref().and_then(Object::get::<Pod>);
    let concerns_agent = match (before, after) {
        (Some(before), Some(after)) => compile::changes_pod(before, after),
        _ => true,
    };
    if concerns_agent {
        for pod in [before, after].into_iter().flatten() {
            if let Some(node) = node_of(pod) {
                let uid = uid_of(&pod.metadata).to_owned();
                dirty.pods.entry(node.to_owned()).or_default().insert(uid, change.key.clone());
            }
        }
    }
    if compile::changes_network(before.map(|p| &**p), after.map(|p| &**p)) {
        for pod in [before, after].into_iter().flatten() {
            dirty.services.extend(endpoints::selecting(snapshot, pod).map(|s| key_of(&**s)));
        }
        let namespace = snapshot.get::<Namespace>("", &change.key.namespace);
        dirty.networks |= namespace.is_some_and(|n| compile::is_isolated(n));
    }
}

/// The pods of the policy's old and new target are measured otherwise now, or not any more. Its
/// status, which is written often, does not matter.
fn autoscaler_changed(change: &Change, snapshot: &Snapshot, dirty: &mut Dirty) {
    let before = change.before.as_ref().and_then(Object::get::<LatencyAutoscaler>);
    let after = change.after.as_ref().and_then(Object::get::<LatencyAutoscaler>);
    if before.map(|policy| &policy.spec) == after.map(|policy| &policy.spec) {
        return;
    }
    for policy in [before, after].into_iter().flatten() {
        let namespace = namespace_of(&policy.metadata).to_owned();
        mark(dirty, snapshot, Some(&namespace), |pod| compile::targets(snapshot, policy, pod));
    }
}

/// The pods of a namespace, or of all, that a change concerns.
fn mark(
    dirty: &mut Dirty,
    snapshot: &Snapshot,
    namespace: Option<&str>,
    concerns: impl Fn(&Pod) -> bool,
) {
    for pod in snapshot.list::<Pod>(namespace) {
        if let Some(node) = node_of(pod)
            && concerns(pod)
        {
            let key = key_of(&**pod);
            let uid = uid_of(&pod.metadata).to_owned();
            dirty.pods.entry(node.to_owned()).or_default().insert(uid, key);
        }
    }
}
