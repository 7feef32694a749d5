//! A pod on a model agent's host: the agent's own logic of a pod's life over an engine in memory that
//! takes its time. What the real agent does around that logic, a worker a pod, is done here in a few
//! words: the lease is looked at before each start, and a unique pod without one is stopped.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use timonier_agent::lease::Lease;
use timonier_agent_core::pod::{Action, Event, Exit, PodPlan, PodState, Slot, StartFailure};
use timonier_master_core::object::{is_ending, is_ready, is_unique, uid_of};
use timonier_proto::k8s_openapi::api::core::v1::Pod;
use timonier_proto::k8s_openapi::jiff::Timestamp;
use timonier_proto::unique::FENCE_GRACE_MS;
use timonier_proto::v1::PodStatusUpdate;

/// An address, an image: there almost at once.
const PREPARE_MAX: Duration = Duration::from_millis(60);
/// A container takes up to so long to start…
const START_MAX: Duration = Duration::from_millis(600);
/// …to end when it is asked to, if it listens…
const END_MAX: Duration = Duration::from_millis(1500);
/// …and to be killed.
const KILL_MAX: Duration = Duration::from_millis(100);
/// Of ten, so many do not listen.
const DEAF: u8 = 3;

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

/// What a pod meets when something happens to it.
pub struct Moment<'a> {
    pub node: &'a str,
    /// Since the agent began.
    pub now: Duration,
    /// By the agent's clock.
    pub time: Timestamp,
    pub lease: &'a Lease,
    pub running: &'a Running,
}

pub struct LivePod {
    namespace: String,
    name: String,
    uid: String,
    unique: bool,
    state: PodState,
    /// What the engine is about to answer, and when.
    coming: Vec<(Duration, Event)>,
    /// Those that run.
    containers: BTreeMap<String, Slot>,
    fenced: bool,
    /// Its object is gone.
    forget: bool,
    /// What a master has stored.
    told: Option<PodStatusUpdate>,
}

fn within(most: Duration) -> Duration {
    most.mul_f64(fastrand::f64())
}

fn deletion(pod: &Pod) -> Option<Event> {
    pod.metadata.deletion_timestamp.as_ref()?;
    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(30);
    Some(Event::Delete { grace_s: u32::try_from(grace.max(0)).unwrap_or(u32::MAX) })
}

impl LivePod {
    pub fn begin(pod: &Pod, moment: &Moment<'_>) -> Self {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let mut live = Self {
            namespace: text(&pod.metadata.namespace),
            name: text(&pod.metadata.name),
            uid: uid_of(&pod.metadata).to_owned(),
            unique: is_unique(pod),
            state: PodState::new(PodPlan::of(pod, "10.0.0.1"), moment.time),
            coming: Vec::new(),
            containers: BTreeMap::new(),
            fenced: false,
            forget: false,
            told: None,
        };
        live.take(deletion(pod).unwrap_or(Event::Tick), moment);
        live
    }

    pub fn is_unique(&self) -> bool {
        self.unique
    }

    /// Nothing of it is here, and nobody asks for it.
    pub fn is_over(&self) -> bool {
        self.forget && self.state.is_gone()
    }

    /// A master says how it is to be.
    pub fn assigned(&mut self, pod: &Pod, moment: &Moment<'_>) {
        self.forget = false;
        if is_ending(&pod.metadata) {
            if self.state.is_gone() {
                self.told = None;
            } else if !self.state.is_terminating() {
                self.take(deletion(pod).unwrap_or(Event::Tick), moment);
            }
        }
        if self.state.is_ready() && !is_ready(pod) {
            // It was thought lost meanwhile: a session that begins anew tells everything again.
            self.told = None;
        }
    }

    pub fn forget(&mut self, moment: &Moment<'_>) {
        if !self.forget {
            self.forget = true;
            let grace_s = self.state.plan().grace_s;
            self.take(Event::Delete { grace_s }, moment);
        }
    }

    /// What is due happens.
    pub fn step(&mut self, moment: &Moment<'_>) {
        if self.unique && !moment.lease.is_valid() {
            self.fence(moment);
        }
        while let Some(next) = self.next_due(moment.now) {
            let (_, event) = self.coming.swap_remove(next);
            self.happen(event, moment);
        }
        if self.state.next_wake().is_some_and(|at| at <= moment.time) {
            self.take(Event::Tick, moment);
        }
    }

    fn next_due(&self, now: Duration) -> Option<usize> {
        let due = self.coming.iter().enumerate().filter(|(_, (at, _))| *at <= now);
        due.min_by_key(|(_, (at, _))| *at).map(|(index, _)| index)
    }

    fn fence(&mut self, moment: &Moment<'_>) {
        let over = matches!(self.state.status().phase.as_deref(), Some("Succeeded" | "Failed"));
        if self.fenced || over {
            return;
        }
        self.fenced = true;
        let most = u32::try_from(FENCE_GRACE_MS / 1000).unwrap_or_default();
        let grace_s = self.state.plan().grace_s.min(most);
        self.take(Event::Delete { grace_s }, moment);
    }

    fn happen(&mut self, event: Event, moment: &Moment<'_>) {
        match &event {
            Event::Exited { id, .. } if self.containers.remove(id).is_none() => return,
            Event::TornDown => self.containers.clear(),
            _ => {}
        }
        if self.containers.is_empty() {
            moment.running.lock().remove(&self.uid);
        }
        self.take(event, moment);
    }

    fn take(&mut self, event: Event, moment: &Moment<'_>) {
        for action in self.state.step(moment.time, event) {
            self.carry_out(action, moment);
        }
    }

    fn after(&mut self, moment: &Moment<'_>, wait: Duration, event: Event) {
        self.coming.push((moment.now + wait, event));
    }

    fn carry_out(&mut self, action: Action, moment: &Moment<'_>) {
        match action {
            Action::Prepare => {
                let ip = Some("10.244.0.9".to_owned());
                self.after(moment, within(PREPARE_MAX), Event::Prepared { ip });
            }
            Action::EnsureImage { slot } => {
                let image_id = "sha256:0".to_owned();
                let ready = Event::ImageReady { slot, image_id, pull: None };
                self.after(moment, within(PREPARE_MAX), ready);
            }
            Action::Start { slot, attempt } => self.start(slot, attempt, moment),
            Action::Signal { slot, id, kill } => {
                let most = if kill { KILL_MAX } else { END_MAX };
                if kill || fastrand::u8(..10) >= DEAF {
                    let exit = Exit {
                        code: if kill { 137 } else { 0 },
                        oom_killed: false,
                        started_at: None,
                        finished_at: Some(moment.time),
                        message: String::new(),
                        vanished: false,
                    };
                    self.after(moment, within(most), Event::Exited { slot, id, exit });
                }
            }
            Action::RunHook { slot, id, hook } => {
                self.after(
                    moment,
                    within(END_MAX),
                    Event::HookDone { slot, id, hook, result: Ok(()) },
                );
            }
            Action::Probe { slot, id, kind } => {
                self.after(
                    moment,
                    Duration::ZERO,
                    Event::Probed { slot, id, kind, result: Ok(()) },
                );
            }
            Action::TearDown => self.after(moment, within(KILL_MAX), Event::TornDown),
            Action::RemoveContainer { .. } | Action::ReleaseNetwork | Action::Tell(_) => {}
        }
    }

    /// Taken to run from the moment on in which it may: when exactly, nobody knows.
    fn start(&mut self, slot: Slot, attempt: u32, moment: &Moment<'_>) {
        if self.unique && !moment.lease.is_valid() {
            let message = "its lease has run out".to_owned();
            let kind = StartFailure::Unavailable;
            let failed = Event::StartFailed { slot, kind, message, id: None };
            return self.after(moment, Duration::ZERO, failed);
        }
        let id = format!("{}-{slot:?}-{attempt}", self.uid);
        self.containers.insert(id.clone(), slot);
        let ran = Ran { node: moment.node.to_owned(), unique: self.unique };
        moment.running.lock().insert(self.uid.clone(), ran);
        self.after(moment, within(START_MAX), Event::Started { slot, id });
    }

    /// What the masters do not know yet.
    pub fn news(&self) -> Option<PodStatusUpdate> {
        let terminated = self.state.is_gone();
        let mut status = self.state.status();
        let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        if self.fenced && (terminated || over) {
            status.phase = Some("Failed".to_owned());
            status.reason = Some("Fenced".to_owned());
        }
        let update = PodStatusUpdate {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            status_json: serde_json::to_vec(&status).expect("a status is plain data").into(),
            terminated,
        };
        (!self.forget && self.told.as_ref() != Some(&update)).then_some(update)
    }

    pub fn told(&mut self, update: PodStatusUpdate) {
        self.told = Some(update);
    }
}
