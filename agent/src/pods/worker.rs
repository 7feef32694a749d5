//! The task of one pod: feeds its lifecycle, runs what it asks for, publishes what came of it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use timonier_agent_core::pod::{Action, Event, PodPlan, PodState, Slot};
use timonier_proto::compiled::CompiledPod;
use timonier_proto::unique::{FENCE_GRACE_MS, is_unique};
use timonier_proto::v1::PodStatusUpdate;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use super::ops::{Ops, Outcome, no_container};
use super::shared::{Published, Shared};
use super::spec::{Prepared, host_ports};
use super::{ContainerView, PodView, RunningContainer, RunningPod};
use crate::runtime::{ContainerSummary, ImageInfo, RuntimeEventKind};

/// Messages waiting for one pod's task; more than that and the sender waits.
pub(super) const MAILBOX_MAX: usize = 64;
/// What a pod gets to end by itself when its lease has run out.
pub(super) const FENCE_GRACE_S: u32 = (FENCE_GRACE_MS / 1000) as u32;

pub(super) enum Message {
    /// The pod as it is assigned now.
    Assigned(Arc<CompiledPod>),
    /// The pod's object is gone: stop it and tell nobody.
    Forget,
    Runtime {
        container_id: String,
        kind: RuntimeEventKind,
    },
    /// All containers of the pod that there are, after events may have been missed.
    Resync(Vec<ContainerSummary>),
    /// A pull has begun.
    Pulling(Slot),
    /// Its lease has run out: stop it.
    Fence,
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    uid: String,
    compiled: Arc<CompiledPod>,
    state: PodState,
    mailbox: mpsc::Receiver<Message>,
    mailbox_sender: mpsc::WeakSender<Message>,
    ops: JoinSet<Outcome>,
    /// Lookups and pulls in flight, which a newer one of the same container replaces.
    image_ops: HashMap<Slot, AbortHandle>,
    images: HashMap<Slot, Arc<ImageInfo>>,
    prepared: Arc<Prepared>,
    /// Containers whose start is in flight.
    starting: HashSet<Slot>,
    pids: HashMap<String, u32>,
    /// Deaths heard of before their start was.
    early_deaths: HashSet<String>,
    forget: bool,
    /// It was stopped because its lease had run out.
    fenced: bool,
    published: Published,
}

/// What a worker is started with when its pod runs already.
pub(super) struct Adopted {
    pub(super) state: PodState,
    pub(super) actions: Vec<Action>,
    pub(super) prepared: Prepared,
    pub(super) pids: HashMap<String, u32>,
}

/// How a worker ended.
pub(super) struct Ended {
    pub(super) uid: String,
    /// The last status, unless the pod is to be forgotten.
    pub(super) last: Option<PodStatusUpdate>,
}

pub(super) fn plan(compiled: &CompiledPod, shared: &Shared) -> PodPlan {
    PodPlan::of(&compiled.pod, &shared.config.host_ip)
}

impl Worker {
    pub(super) fn new(
        shared: Arc<Shared>,
        compiled: Arc<CompiledPod>,
        adopted: Option<Adopted>,
        mailbox: mpsc::Receiver<Message>,
        mailbox_sender: mpsc::WeakSender<Message>,
    ) -> (Self, Vec<Action>) {
        let uid = compiled.pod.metadata.uid.clone().unwrap_or_default();
        let (state, actions, prepared, pids) = match adopted {
            Some(Adopted { state, actions, prepared, pids }) => (state, actions, prepared, pids),
            None => {
                let now = shared.clock.now();
                let mut state = PodState::new(plan(&compiled, &shared), now);
                let actions = match deletion(&compiled) {
                    Some(event) => state.step(now, event),
                    None => state.step(now, Event::Tick),
                };
                (state, actions, Prepared::default(), HashMap::new())
            }
        };
        let worker = Self {
            uid,
            compiled,
            state,
            mailbox,
            mailbox_sender,
            ops: JoinSet::new(),
            image_ops: HashMap::new(),
            images: HashMap::new(),
            prepared: Arc::new(prepared),
            starting: HashSet::new(),
            pids,
            early_deaths: HashSet::new(),
            forget: false,
            fenced: false,
            published: Published::default(),
            shared,
        };
        (worker, actions)
    }

    /// Until nothing of the pod is left, or the agent stops.
    pub(super) async fn run(mut self, actions: Vec<Action>) -> Ended {
        self.carry_out(actions);
        if let Some(event) = deletion(&self.compiled) {
            self.step(event);
        } else if self.may_not_run() {
            self.fence();
        }
        self.publish();
        while !self.state.is_gone() {
            let wake = self.state.next_wake();
            let clock = self.shared.clock.clone();
            let alarm = async {
                match wake {
                    Some(at) => sleep(clock.until(at)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = self.mailbox.recv() => match message {
                    Some(message) => self.take(message),
                    // The agent stops; the pod runs on.
                    None => return Ended { uid: self.uid, last: None },
                },
                Some(outcome) = self.ops.join_next(), if !self.ops.is_empty() => match outcome {
                    Ok(outcome) => self.absorb(outcome),
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => tracing::error!(%error, uid = self.uid, "an operation panicked"),
                },
                () = alarm => self.step(Event::Tick),
            }
            self.publish();
        }
        self.shared.publish(&self.uid, None);
        let last = (!self.forget).then(|| self.update(true));
        Ended { uid: self.uid, last }
    }

    fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    fn step(&mut self, event: Event) {
        let actions = self.state.step(self.now(), event);
        self.carry_out(actions);
    }

    // --- what comes in ---

    fn take(&mut self, message: Message) {
        match message {
            Message::Assigned(compiled) => self.assigned(compiled),
            Message::Forget => {
                self.forget = true;
                let grace_s = self.state.plan().grace_s;
                self.step(Event::Delete { grace_s });
            }
            Message::Pulling(slot) => self.step(Event::Pulling { slot }),
            Message::Fence => self.fence(),
            Message::Runtime { container_id, kind } => match kind {
                RuntimeEventKind::Died { .. } | RuntimeEventKind::Destroyed => {
                    self.died(container_id);
                }
                RuntimeEventKind::Started | RuntimeEventKind::OutOfMemory => {}
            },
            Message::Resync(found) => self.resync(&found),
        }
    }

    fn assigned(&mut self, compiled: Arc<CompiledPod>) {
        // The master wants it again: it was not gone after all.
        self.forget = false;
        let changed = self.compiled != compiled;
        self.compiled = compiled;
        if changed {
            let plan = Box::new(plan(&self.compiled, &self.shared));
            self.step(Event::Updated(plan));
            if !self.state.is_terminating() && !self.prepared.volumes.is_empty() {
                let (ops, prepared) = (self.ops(), self.prepared.clone());
                self.ops.spawn(async move { refresh(ops, prepared).await });
            }
        }
        if let Some(event) = deletion(&self.compiled) {
            self.step(event);
        }
    }

    fn may_not_run(&self) -> bool {
        is_unique(&self.compiled.pod.metadata) && !self.shared.config.lease.is_valid()
    }

    fn fence(&mut self) {
        if self.fenced || is_over(&self.state.status()) {
            return;
        }
        self.fenced = true;
        tracing::warn!(
            uid = self.uid,
            pod = self.state.plan().name,
            "no master has answered for too long: a pod that must be unique is stopped"
        );
        let grace_s = self.state.plan().grace_s.min(FENCE_GRACE_S);
        self.step(Event::Delete { grace_s });
    }

    fn slots(&self) -> Vec<Slot> {
        let plan = self.state.plan();
        let init = (0..plan.init.len()).map(Slot::Init);
        init.chain((0..plan.main.len()).map(Slot::Main)).collect()
    }

    fn died(&mut self, id: String) {
        if self.prepared.sandbox.as_deref() == Some(id.as_str()) {
            self.step(Event::SandboxLost);
            return;
        }
        let slot = self.slots().into_iter().find(|slot| self.state.running_id(*slot) == Some(&id));
        match slot {
            Some(slot) => {
                let ops = self.ops();
                self.ops.spawn(ops.exit(slot, id));
            }
            None if !self.starting.is_empty() => {
                self.early_deaths.insert(id);
            }
            None => {}
        }
    }

    fn resync(&mut self, found: &[ContainerSummary]) {
        let runs = |id: &str| found.iter().any(|one| one.id == id && one.running);
        if self.prepared.sandbox.as_deref().is_some_and(|id| !runs(id)) {
            self.step(Event::SandboxLost);
        }
        for slot in self.slots() {
            if let Some(id) = self.state.running_id(slot).map(str::to_owned)
                && !runs(&id)
            {
                let ops = self.ops();
                self.ops.spawn(ops.exit(slot, id));
            }
        }
        // Made by a call whose answer was lost.
        if self.starting.is_empty() {
            let known = self.state.container_ids();
            for one in found.iter().filter(|one| one.created_only && !known.contains(&one.id)) {
                let ops = self.ops();
                self.ops.spawn(ops.remove(one.id.clone()));
            }
        }
    }

    fn absorb(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Nothing => {}
            Outcome::Event(event) => {
                match &event {
                    Event::StartFailed { slot, .. } => {
                        self.starting.remove(slot);
                    }
                    Event::ImageFailed { slot, .. } => {
                        self.image_ops.remove(slot);
                    }
                    Event::Exited { id, .. } => {
                        self.pids.remove(id);
                    }
                    _ => {}
                }
                self.step(event);
            }
            Outcome::Prepared(prepared) => {
                let ip = prepared.ip.map(|ip| ip.to_string());
                self.prepared = Arc::new(*prepared);
                self.step(Event::Prepared { ip });
            }
            Outcome::Image { slot, image, pull } => {
                self.image_ops.remove(&slot);
                let image_id = image.digests.first().unwrap_or(&image.id).clone();
                self.images.insert(slot, image);
                self.step(Event::ImageReady { slot, image_id, pull });
            }
            Outcome::Started { slot, id, pid } => self.started(slot, id, pid),
            Outcome::Pid { id, pid } => {
                if let Some(known) = self.pids.get_mut(&id) {
                    *known = pid;
                }
            }
        }
    }

    fn started(&mut self, slot: Slot, id: String, pid: u32) {
        self.starting.remove(&slot);
        self.pids.insert(id.clone(), pid);
        self.step(Event::Started { slot, id: id.clone() });
        if self.early_deaths.remove(&id) {
            self.died(id);
        } else if pid == 0 {
            let ops = self.ops();
            self.ops.spawn(async move {
                let pid = ops.pid(&id).await;
                Outcome::Pid { id, pid }
            });
        }
        if self.starting.is_empty() {
            self.early_deaths.clear();
        }
    }

    // --- what goes out ---

    fn ops(&self) -> Ops {
        let plan = self.state.plan();
        Ops {
            shared: self.shared.clone(),
            compiled: self.compiled.clone(),
            uid: self.uid.clone(),
            grace_s: plan.grace_s,
            needs_sandbox: plan.needs_sandbox(),
            qos: plan.qos,
        }
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            self.carry_out_one(action);
        }
    }

    fn carry_out_one(&mut self, action: Action) {
        let ops = self.ops();
        let ip = self.prepared.ip;
        match action {
            Action::Tell(event) => self.shared.tell(self.state.plan(), event),
            Action::Prepare => {
                self.ops.spawn(ops.prepare(self.prepared.sandbox.clone()));
            }
            Action::EnsureImage { slot } => self.ensure_image(slot),
            Action::Start { slot, attempt } => self.start(slot, attempt),
            Action::Signal { id, kill, .. } => {
                self.ops.spawn(ops.signal(id, kill));
            }
            Action::RunHook { slot, id, hook } => {
                self.ops.spawn(ops.hook(slot, id, hook, ip));
            }
            Action::Probe { slot, id, kind } => {
                self.ops.spawn(ops.probe(slot, id, kind, ip));
            }
            Action::RemoveContainer { id } => {
                self.ops.spawn(ops.remove(id));
            }
            Action::ReleaseNetwork => {
                self.ops.spawn(ops.release_network(self.prepared.sandbox.clone()));
                self.prepared = Arc::new(Prepared { sandbox: None, ..(*self.prepared).clone() });
            }
            Action::TearDown => {
                // What is still under way (looks, pulls) has no meaning any more.
                self.ops.abort_all();
                let ids = self.state.container_ids();
                self.ops.spawn(ops.tear_down(ids, self.prepared.sandbox.clone()));
            }
        }
    }

    fn ensure_image(&mut self, slot: Slot) {
        let plan = self.state.plan();
        let container = match slot {
            Slot::Init(index) => plan.init.get(index),
            Slot::Main(index) => plan.main.get(index),
        };
        let Some(policy) = container.map(|container| container.pull) else {
            self.ops.spawn(async move { Outcome::Event(no_container(slot)) });
            return;
        };
        let (ops, sender) = (self.ops(), self.mailbox_sender.clone());
        let pulling = async move || {
            if let Some(sender) = sender.upgrade() {
                // A pod that is gone needs no such news.
                let _ = sender.send(Message::Pulling(slot)).await;
            }
        };
        let handle = self.ops.spawn(ops.ensure_image(slot, policy, pulling));
        if let Some(old) = self.image_ops.insert(slot, handle) {
            old.abort();
        }
    }

    fn start(&mut self, slot: Slot, attempt: u32) {
        if self.may_not_run() {
            self.fence();
            return;
        }
        let plan = self.state.plan();
        let container = match slot {
            Slot::Init(index) => plan.init.get(index),
            Slot::Main(index) => plan.main.get(index),
        };
        let hash = container.map(|container| container.spec_hash.clone()).unwrap_or_default();
        let Some(image) = self.images.get(&slot).cloned() else { return };
        self.starting.insert(slot);
        let prepared = self.prepared.clone();
        self.ops.spawn(self.ops().start(slot, attempt, image, prepared, hash));
    }

    // --- what others see ---

    fn publish(&mut self) {
        if self.state.is_gone() {
            return;
        }
        if !self.forget {
            self.shared.board.post(self.update(false));
        }
        let published = self.view();
        if published != self.published {
            self.shared.publish(&self.uid, Some(published.clone()));
            self.published = published;
        }
    }

    fn update(&self, terminated: bool) -> PodStatusUpdate {
        let meta = &self.compiled.pod.metadata;
        let mut status = self.state.status();
        // Said only when nothing of it runs: others may take its place then.
        if self.fenced && (terminated || is_over(&status)) {
            status.phase = Some("Failed".to_owned());
            status.reason = Some("Fenced".to_owned());
            status.message = Some(
                "The node had reached no master for too long, and the pod must be unique."
                    .to_owned(),
            );
        }
        PodStatusUpdate {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: self.uid.clone(),
            // A status is plain data: writing it to memory cannot fail.
            status_json: serde_json::to_vec(&status).unwrap_or_default().into(),
            terminated,
        }
    }

    fn view(&self) -> Published {
        let meta = &self.compiled.pod.metadata;
        let (namespace, name) =
            (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
        let ip = self.prepared.ip.filter(|_| self.state.ip().is_some());
        let containers: Vec<ContainerView> =
            self.slots().into_iter().filter_map(|slot| self.container_view(slot)).collect();
        let running: Vec<RunningContainer> = containers
            .iter()
            .filter(|container| container.running)
            .filter_map(|container| {
                let id = container.id.clone()?;
                let pid = self.pids.get(&id).copied().unwrap_or(0);
                Some(RunningContainer { name: container.name.clone(), id, pid })
            })
            .collect();
        let any = !running.is_empty() || self.prepared.sandbox.is_some();
        let view = PodView {
            uid: self.uid.clone(),
            namespace: namespace.clone(),
            name: name.clone(),
            ip,
            containers,
        };
        let running = any.then(|| RunningPod {
            uid: self.uid.clone(),
            namespace,
            name,
            ip,
            containers: running,
            ready: self.state.is_ready(),
            terminating: self.state.is_terminating(),
            host_ports: ip.map(|ip| host_ports(&self.compiled, ip)).unwrap_or_default(),
        });
        Published { view, running }
    }

    fn container_view(&self, slot: Slot) -> Option<ContainerView> {
        let ops = self.ops();
        let container = ops.container(slot)?;
        let running = self.state.running_id(slot).map(str::to_owned);
        let mut dead = self.state.dead_ids(slot).to_vec();
        let is_running = running.is_some();
        let id = running.or_else(|| dead.pop());
        Some(ContainerView {
            name: container.name.clone(),
            init: matches!(slot, Slot::Init(_)),
            tty: container.tty == Some(true),
            id,
            running: is_running,
            previous_id: dead.pop(),
            waiting_reason: self.state.waiting_reason(slot).map(str::to_owned),
        })
    }
}

/// Brings config maps in running pods up to date; nothing else of a volume changes.
async fn refresh(ops: Ops, prepared: Arc<Prepared>) -> Outcome {
    if let Err(failure) = ops.prepare_disk(prepared.ip).await {
        tracing::debug!(message = failure.message, "volumes stay as they are");
    }
    Outcome::Nothing
}

fn is_over(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// The event of a pod that is being deleted.
fn deletion(compiled: &CompiledPod) -> Option<Event> {
    let meta = &compiled.pod.metadata;
    meta.deletion_timestamp.as_ref()?;
    let grace = meta
        .deletion_grace_period_seconds
        .or_else(|| compiled.pod.spec.as_ref()?.termination_grace_period_seconds)
        .unwrap_or(30);
    Some(Event::Delete { grace_s: u32::try_from(grace.max(0)).unwrap_or(u32::MAX) })
}
