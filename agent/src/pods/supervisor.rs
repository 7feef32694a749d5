//! Who has which task: assignments, the engine's events and resyncs go to the pods they are of.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use timonier_proto::compiled::CompiledPod;
use timonier_proto::unique::is_unique;
use timonier_proto::v1::PodStatusUpdate;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::AssignmentSet;
use super::adoption::adopt;
use super::leftovers;
use super::shared::Shared;
use super::worker::{Ended, MAILBOX_MAX, Message, Worker};
use crate::runtime::{ContainerSummary, RuntimeEvent};

/// What the supervisor is told.
pub(super) enum Command {
    Assign(AssignmentSet, oneshot::Sender<()>),
    Runtime(RuntimeEvent),
    /// All containers of this node, after (re)connecting to the engine.
    Listed(Vec<ContainerSummary>),
    Stop(oneshot::Sender<()>),
}

pub(super) struct Supervisor {
    shared: Arc<Shared>,
    workers: HashMap<String, mpsc::Sender<Message>>,
    tasks: JoinSet<Ended>,
    /// Tasks that stop pods which nobody wants; by uid.
    leftovers: JoinSet<String>,
    leaving: BTreeSet<String>,
    /// Containers found of pods that are not assigned (yet), by uid.
    found: BTreeMap<String, Vec<ContainerSummary>>,
    /// Pods assigned before the engine told what runs.
    waiting: BTreeMap<String, Arc<CompiledPod>>,
    listed: bool,
    complete: bool,
    /// Pods that are gone while the master still has them: their last status.
    gone: HashMap<String, PodStatusUpdate>,
    /// Pods that may run only under the lease, by uid.
    unique: BTreeSet<String>,
    /// What was last made of the lease: unique pods run, or they were stopped.
    leased: bool,
}

impl Supervisor {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            workers: HashMap::new(),
            tasks: JoinSet::new(),
            leftovers: JoinSet::new(),
            leaving: BTreeSet::new(),
            found: BTreeMap::new(),
            waiting: BTreeMap::new(),
            listed: false,
            complete: false,
            gone: HashMap::new(),
            unique: BTreeSet::new(),
            leased: false,
        }
    }

    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let lease = self.shared.config.lease.clone();
        loop {
            tokio::select! {
                // First: an agent that was frozen stops what it must before anything else.
                biased;
                () = lease.until(!self.leased), if !self.unique.is_empty() => {
                    self.lease_turned().await;
                }
                command = commands.recv() => match command {
                    Some(Command::Assign(set, done)) => {
                        self.assign(set).await;
                        // Who asked may have gone; the work is done all the same.
                        let _ = done.send(());
                    }
                    Some(Command::Runtime(event)) => self.runtime_event(event).await,
                    Some(Command::Listed(found)) => self.list(found).await,
                    Some(Command::Stop(done)) => {
                        self.stop().await;
                        let _ = done.send(());
                        return;
                    }
                    None => return self.stop().await,
                },
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    if let Ok(ended) = ended {
                        self.ended(ended);
                    }
                }
                Some(uid) = self.leftovers.join_next(), if !self.leftovers.is_empty() => {
                    if let Ok(uid) = uid {
                        self.left(uid).await;
                    }
                }
            }
        }
    }

    /// The pods run on; only their tasks end.
    async fn stop(&mut self) {
        self.workers.clear();
        self.leftovers.abort_all();
        while self.tasks.join_next().await.is_some() {}
    }

    fn ended(&mut self, ended: Ended) {
        self.workers.remove(&ended.uid);
        match ended.last {
            Some(update) => {
                self.shared.board.post(update.clone());
                self.gone.insert(ended.uid.clone(), update);
            }
            None => self.shared.board.forget(&ended.uid),
        }
        self.unique.remove(&ended.uid);
        self.note_unique();
    }

    /// What was left of a pod is gone; if it is wanted here again, it starts now.
    async fn left(&mut self, uid: String) {
        self.leaving.remove(&uid);
        match self.waiting.remove(&uid) {
            Some(compiled) => self.assign_one(uid, compiled).await,
            None => {
                self.unique.remove(&uid);
                self.note_unique();
            }
        }
    }

    // --- the lease ---

    /// The lease is asked for while there are pods that need it.
    fn note_unique(&mut self) {
        self.shared.config.lease.want(!self.unique.is_empty());
        if self.unique.is_empty() {
            self.leased = false;
        }
    }

    async fn lease_turned(&mut self) {
        self.leased = !self.leased;
        if self.leased {
            let held: Vec<String> =
                self.waiting.keys().filter(|uid| self.unique.contains(*uid)).cloned().collect();
            for uid in held {
                if let Some(compiled) = self.waiting.remove(&uid) {
                    self.assign_one(uid, compiled).await;
                }
            }
            return;
        }
        for uid in self.unique.clone() {
            if let Some(worker) = self.workers.get(&uid) {
                // A task whose mailbox is full looks at the lease by itself before it starts anything.
                let _ = worker.send(Message::Fence).await;
            } else if let Some(found) = self.found.remove(&uid) {
                tracing::warn!(uid, "no master has answered for too long: a unique pod is stopped");
                self.leave(uid, found);
            }
        }
    }

    /// Whether the pod has to wait for a lease.
    fn must_wait(&mut self, uid: &str, compiled: &CompiledPod) -> bool {
        let meta = &compiled.pod.metadata;
        if !is_unique(meta) {
            return false;
        }
        self.unique.insert(uid.to_owned());
        self.note_unique();
        // Those that are held start when the lease turns, and so does whatever comes before it has.
        let may_run = self.leased && self.shared.config.lease.is_valid();
        meta.deletion_timestamp.is_none() && !may_run
    }

    // --- assignments ---

    async fn assign(&mut self, set: AssignmentSet) {
        let mut wanted = BTreeSet::new();
        for compiled in set.pods {
            let uid = compiled.pod.metadata.uid.clone().unwrap_or_default();
            if uid.is_empty() || uid.contains(['/', '.']) {
                tracing::warn!(uid, "an assigned pod has no proper uid; it is passed over");
                continue;
            }
            wanted.insert(uid.clone());
            self.assign_one(uid, Arc::new(compiled)).await;
        }
        for uid in set.removed {
            self.forget(&uid).await;
        }
        if set.complete {
            let known: Vec<String> = self
                .workers
                .keys()
                .chain(self.waiting.keys())
                .chain(self.gone.keys())
                .cloned()
                .collect();
            for uid in known.iter().filter(|uid| !wanted.contains(*uid)) {
                self.forget(uid).await;
            }
            self.complete = true;
            self.clear_leftovers().await;
        }
    }

    async fn assign_one(&mut self, uid: String, compiled: Arc<CompiledPod>) {
        if let Some(update) = self.gone.get(&uid) {
            self.shared.board.post(update.clone());
            return;
        }
        if let Some(worker) = self.workers.get(&uid) {
            // An error means that the task has just ended, which is told apart.
            let _ = worker.send(Message::Assigned(compiled)).await;
            return;
        }
        if self.must_wait(&uid, &compiled) || !self.listed || self.leaving.contains(&uid) {
            self.waiting.insert(uid, compiled);
            return;
        }
        let found = self.found.remove(&uid).unwrap_or_default();
        self.spawn(uid, compiled, found);
    }

    fn spawn(&mut self, uid: String, compiled: Arc<CompiledPod>, found: Vec<ContainerSummary>) {
        let (sender, mailbox) = mpsc::channel(MAILBOX_MAX);
        let (shared, weak) = (self.shared.clone(), sender.downgrade());
        self.workers.insert(uid, sender);
        self.tasks.spawn(async move {
            let adopted = adopt(&shared, &compiled, found).await;
            let (worker, actions) = Worker::new(shared, compiled, adopted, mailbox, weak);
            worker.run(actions).await
        });
    }

    async fn forget(&mut self, uid: &str) {
        if self.waiting.remove(uid).is_some() && !self.leaving.contains(uid) {
            self.unique.remove(uid);
            self.note_unique();
        }
        if self.gone.remove(uid).is_some() {
            self.shared.board.forget(uid);
        }
        if let Some(worker) = self.workers.get(uid) {
            let _ = worker.send(Message::Forget).await;
        } else if let Some(found) = self.found.remove(uid) {
            self.leave(uid.to_owned(), found);
        }
    }

    // --- the engine ---

    async fn runtime_event(&mut self, event: RuntimeEvent) {
        if let Some(worker) = self.workers.get(&event.pod_uid) {
            let RuntimeEvent { container_id, kind, .. } = event;
            let _ = worker.send(Message::Runtime { container_id, kind }).await;
        }
    }

    async fn list(&mut self, list: Vec<ContainerSummary>) {
        let mut by_pod: BTreeMap<String, Vec<ContainerSummary>> = BTreeMap::new();
        for one in list {
            by_pod.entry(one.labels.pod_uid.clone()).or_default().push(one);
        }
        for (uid, worker) in &self.workers {
            let found = by_pod.remove(uid).unwrap_or_default();
            let _ = worker.send(Message::Resync(found)).await;
        }
        for (uid, found) in &by_pod {
            keep_address(&self.shared, uid, found);
            if found.iter().any(|one| one.labels.unique) {
                self.unique.insert(uid.clone());
            }
        }
        if !self.unique.is_empty() {
            self.note_unique();
        }
        by_pod.retain(|uid, _| !self.leaving.contains(uid));
        self.found = by_pod;
        self.listed = true;
        // Found by an agent that has just started, maybe long after its last lease.
        if !self.unique.is_empty() && !self.shared.config.lease.is_valid() {
            self.leased = true;
            self.lease_turned().await;
        }
        for (uid, compiled) in std::mem::take(&mut self.waiting) {
            self.assign_one(uid, compiled).await;
        }
        self.clear_leftovers().await;
    }

    /// Once all wanted pods are known: what else is there goes.
    async fn clear_leftovers(&mut self) {
        if !self.listed || !self.complete {
            return;
        }
        for (uid, found) in std::mem::take(&mut self.found) {
            self.leave(uid, found);
        }
        let uids: BTreeSet<String> = self.workers.keys().chain(&self.leaving).cloned().collect();
        leftovers::remove_folders(self.shared.pods_dir(), uids.clone()).await;
        if let Err(error) = self.shared.network.remove_leftovers(uids).await {
            tracing::warn!(error, "links of pods that are gone are left");
        }
    }

    fn leave(&mut self, uid: String, found: Vec<ContainerSummary>) {
        tracing::info!(uid, containers = found.len(), "stopping a pod that nobody wants here");
        self.leaving.insert(uid.clone());
        let shared = self.shared.clone();
        self.leftovers.spawn(async move {
            leftovers::stop(&shared, &uid, found).await;
            uid
        });
    }
}

/// The address of a pod that runs is taken before new pods get theirs.
fn keep_address(shared: &Shared, uid: &str, found: &[ContainerSummary]) {
    let ip = found.iter().filter(|one| one.running).find_map(|one| one.labels.pod_ip.parse().ok());
    if let Some(ip) = ip
        && let Err(error) = shared.network.adopt(uid, ip)
    {
        tracing::warn!(uid, %ip, error, "a running pod's address cannot be kept");
    }
}
