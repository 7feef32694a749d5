//! The pod as a whole: what may start when, when it has finished, and how it is taken down.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::PodStatus;

use super::container::{Container, State, StopReason};
use super::status::Conditions;
use super::{
    Action, ContainerPlan, Event, Failure, PodEvent, PodPhase, PodPlan, RestartPolicy, Slot,
    StartFailure,
};

/// A ready pod that is deleted goes on for so long while services drop it, in milliseconds.
pub const DRAIN_MS: i64 = 300;
/// Preparing and taking down are tried again after 1, 2, 4 … s, at most this many.
const RETRY_MAX_S: i64 = 32;

/// Everything known of a pod on this node.
#[derive(Debug, Clone, PartialEq)]
pub struct PodState {
    pub(super) plan: PodPlan,
    pub(super) stage: Stage,
    pub(super) sandbox: Sandbox,
    pub(super) retries: u32,
    pub(super) ip: Option<String>,
    pub(super) start_time: Timestamp,
    pub(super) init: Vec<Container>,
    pub(super) main: Vec<Container>,
    /// The init containers are through: they are not looked at again.
    pub(super) initialized: bool,
    pub(super) phase: PodPhase,
    pub(super) conditions: Conditions,
    /// The status of a pod that finished before this agent knew it.
    pub(super) frozen: Option<Box<PodStatus>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Active,
    /// All its containers have ended for good.
    Finished,
    Draining {
        until: Timestamp,
        grace_s: u32,
    },
    Stopping {
        deadline: Timestamp,
    },
    TearingDown,
    TearDownFailed {
        until: Timestamp,
    },
    Gone,
}

/// Where the pod's volumes, address and sandbox are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sandbox {
    None,
    Preparing,
    Failed {
        until: Timestamp,
    },
    Ready,
    /// Its network is gone; made anew when no container is left in it.
    Lost,
}

impl PodState {
    /// A pod of which nothing is on this node yet. One that has finished already, as the master
    /// knows, stays so.
    pub fn new(plan: PodPlan, now: Timestamp) -> Self {
        let containers = |plans: &[ContainerPlan], slot: fn(usize) -> Slot| {
            let numbered = plans.iter().enumerate();
            numbered.map(|(i, plan)| Container::new(slot(i), plan.clone())).collect()
        };
        let phase = PodPhase::parse(plan.prior.phase.as_deref());
        let finished = matches!(phase, PodPhase::Succeeded | PodPhase::Failed);
        let mut state = Self {
            stage: if finished { Stage::Finished } else { Stage::Active },
            sandbox: Sandbox::None,
            retries: 0,
            ip: None,
            start_time: plan.prior.start_time.as_ref().map_or(now, |time| time.0),
            init: containers(&plan.init, Slot::Init),
            main: containers(&plan.main, Slot::Main),
            initialized: plan.init.is_empty(),
            phase,
            conditions: Conditions::new(&plan.prior, now),
            frozen: finished.then(|| Box::new(plan.prior.clone())),
            plan,
        };
        state.note_conditions(now);
        state
    }

    pub fn plan(&self) -> &PodPlan {
        &self.plan
    }

    pub fn ip(&self) -> Option<&str> {
        self.ip.as_deref()
    }

    /// Nothing of it is left on the host.
    pub fn is_gone(&self) -> bool {
        self.stage == Stage::Gone
    }

    pub fn is_terminating(&self) -> bool {
        !matches!(self.stage, Stage::Active | Stage::Finished)
    }

    pub fn is_ready(&self) -> bool {
        self.stage == Stage::Active && self.containers_ready()
    }

    pub(super) fn containers_ready(&self) -> bool {
        let sidecars = self.init.iter().filter(|c| c.plan.sidecar);
        self.initialized && self.main.iter().chain(sidecars).all(Container::ready)
    }

    /// The id of the container that runs in `slot`.
    pub fn running_id(&self, slot: Slot) -> Option<&str> {
        Some(&self.container(slot)?.running()?.id)
    }

    /// The dead containers of `slot` that are still there, oldest first.
    pub fn dead_ids(&self, slot: Slot) -> &[String] {
        self.container(slot).map(|c| c.dead.as_slice()).unwrap_or_default()
    }

    /// Ids of everything of it that is or was a container, but for the sandbox.
    pub fn container_ids(&self) -> Vec<String> {
        self.all().flat_map(|c| c.dead.iter().chain(c.running().map(|r| &r.id)).cloned()).collect()
    }

    pub(super) fn container(&self, slot: Slot) -> Option<&Container> {
        match slot {
            Slot::Init(index) => self.init.get(index),
            Slot::Main(index) => self.main.get(index),
        }
    }

    pub(super) fn container_mut(&mut self, slot: Slot) -> Option<&mut Container> {
        match slot {
            Slot::Init(index) => self.init.get_mut(index),
            Slot::Main(index) => self.main.get_mut(index),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Container> {
        self.init.iter().chain(&self.main)
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Container> {
        self.init.iter_mut().chain(&mut self.main)
    }

    /// Takes in what happened at `now` and says what to do. `now` must not go back.
    pub fn step(&mut self, now: Timestamp, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.take_in(now, event, &mut out);
        for container in self.all_mut() {
            container.drive_running(now, &mut out);
            container.tell_backoff(now, &mut out);
        }
        match self.stage {
            Stage::Active => self.advance(now, &mut out),
            Stage::Draining { until, grace_s } if until <= now => {
                self.begin_stopping(now, grace_s, &mut out);
            }
            Stage::TearDownFailed { until } if until <= now => self.tear_down(&mut out),
            _ => {}
        }
        if let Stage::Stopping { deadline } = self.stage {
            self.stop_rest(now, deadline, &mut out);
        }
        // What the stage began may be due already.
        for container in self.all_mut() {
            container.drive_running(now, &mut out);
        }
        self.note_conditions(now);
        out
    }

    fn take_in(&mut self, now: Timestamp, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Tick => {}
            Event::Updated(plan) => self.updated(now, *plan, out),
            Event::Delete { grace_s } => self.delete(now, grace_s, out),
            Event::Prepared { ip } => {
                if self.sandbox == Sandbox::Preparing {
                    self.sandbox = Sandbox::Ready;
                    self.retries = 0;
                }
                self.ip = ip;
            }
            Event::PrepareFailed(failure) => self.prepare_failed(now, failure, out),
            Event::Pulling { slot }
            | Event::ImageReady { slot, .. }
            | Event::ImageFailed { slot, .. } => {
                if self.stage == Stage::Active
                    && let Some(container) = self.container_mut(slot)
                {
                    container.image_event(now, event, out);
                }
            }
            Event::Started { slot, id } => {
                if let Some(container) = self.container_mut(slot) {
                    container.started(now, id, out);
                }
            }
            Event::StartFailed { slot, kind, message, id } => {
                let Some(container) = self.container_mut(slot) else { return };
                if container.start_failed(now, kind, message, id, out) {
                    self.ask_policy(now, slot, None, out);
                } else if self.stage != Stage::Active {
                    self.drop_waiting();
                }
            }
            Event::Exited { slot, id, exit } => {
                let Some(container) = self.container_mut(slot) else { return };
                if let Some(ended) = container.exited(now, &id, exit) {
                    self.ask_policy(now, slot, ended.why, out);
                }
            }
            Event::HookDone { slot, id, hook, result } => {
                let grace_s = self.plan.grace_s;
                if let Some(container) = self.container_mut(slot) {
                    container.hook_done(now, &id, hook, result, grace_s, out);
                }
            }
            Event::Probed { slot, id, kind, result } => {
                let grace_s = self.plan.grace_s;
                if let Some(container) = self.container_mut(slot) {
                    container.probed(now, &id, kind, result, grace_s, out);
                }
            }
            Event::SandboxLost => self.sandbox_lost(now, out),
            Event::TornDown => {
                if self.stage == Stage::TearingDown {
                    self.stage = Stage::Gone;
                }
            }
            Event::TearDownFailed { message } => self.tear_down_failed(now, message, out),
        }
    }

    // --- getting up ---

    fn advance(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let any_live = self.all().any(Container::is_live);
        match self.sandbox {
            Sandbox::Ready => {}
            Sandbox::Failed { until } if until > now => return,
            Sandbox::Preparing => return,
            Sandbox::Lost if any_live => return,
            Sandbox::None | Sandbox::Failed { .. } | Sandbox::Lost => {
                self.sandbox = Sandbox::Preparing;
                out.push(Action::Prepare);
                return;
            }
        }
        if self.finish(now, out) {
            return;
        }
        self.initialized |= self.init_turn().is_none();
        let may: Vec<Slot> = self.all().filter(|c| self.may_start(c)).map(|c| c.slot).collect();
        for container in self.all_mut().filter(|c| may.contains(&c.slot)) {
            container.drive_start(now, out);
        }
    }

    /// The init container whose turn it is; none when all are through. A sidecar is through for
    /// as long as it runs.
    fn init_turn(&self) -> Option<usize> {
        self.init.iter().position(|container| match &container.state {
            State::Done(termination) => termination.exit_code != 0,
            State::Running(running) => !(container.plan.sidecar && running.started()),
            _ => true,
        })
    }

    /// Whether `container` may be started now.
    fn may_start(&self, container: &Container) -> bool {
        match container.slot {
            Slot::Main(_) => self.initialized,
            Slot::Init(_) if self.initialized => container.plan.sidecar,
            Slot::Init(index) => self.init_turn().is_some_and(|turn| index <= turn),
        }
    }

    /// Whether the pod's work is over; sidecars are stopped then.
    fn finish(&mut self, now: Timestamp, out: &mut Vec<Action>) -> bool {
        let failed_init = self.failed_init();
        if !failed_init && !self.main.iter().all(Container::is_over) {
            return false;
        }
        let grace_s = self.plan.grace_s;
        for container in self.all_mut() {
            match container.state {
                State::Running(_) if container.is_stopping_for_good() => {}
                State::Running(_) => container.stop(now, StopReason::Delete, grace_s, out),
                State::Starting => {}
                _ => give_up(container),
            }
        }
        if !self.all().any(Container::is_live) {
            self.stage = Stage::Finished;
            out.push(Action::ReleaseNetwork);
        }
        true
    }

    pub(super) fn failed_init(&self) -> bool {
        self.init.iter().any(|container| {
            matches!(&container.state, State::Done(t) if t.exit_code != 0)
                && !container.plan.sidecar
        })
    }

    /// A container has ended: again, or not.
    fn ask_policy(
        &mut self,
        now: Timestamp,
        slot: Slot,
        why: Option<StopReason>,
        out: &mut Vec<Action>,
    ) {
        let pod = format!("{}_{}({})", self.plan.name, self.plan.namespace, self.plan.uid);
        let (stage, policy) = (self.stage, self.plan.restart);
        let work_left = !self.failed_init() && !self.main.iter().all(Container::is_over);
        let main_only = self.main.len() == 1;
        let Some(container) = self.container_mut(slot) else { return };
        let State::Done(termination) = &container.state else { return };
        let failed = termination.exit_code != 0;
        let again = match (slot, policy) {
            _ if stage != Stage::Active || why == Some(StopReason::Delete) => false,
            _ if why == Some(StopReason::Replace) => true,
            (Slot::Init(_), _) if container.plan.sidecar => work_left || main_only,
            (Slot::Init(_), RestartPolicy::Never) | (Slot::Main(_), RestartPolicy::Never) => false,
            (Slot::Init(_), _) | (Slot::Main(_), RestartPolicy::OnFailure) => failed,
            (Slot::Main(_), RestartPolicy::Always) => true,
        };
        if again {
            container.restart(now, &pod, why == Some(StopReason::Replace), out);
        }
    }

    fn prepare_failed(&mut self, now: Timestamp, failure: Failure, out: &mut Vec<Action>) {
        if self.sandbox != Sandbox::Preparing {
            return;
        }
        self.sandbox = Sandbox::Failed { until: now + self.retry_delay() };
        if !failure.reason.is_empty() {
            tell(&failure.reason, failure.message, out);
        }
    }

    fn retry_delay(&mut self) -> SignedDuration {
        let delay = (1_i64 << self.retries.min(30)).min(RETRY_MAX_S);
        self.retries += 1;
        SignedDuration::from_secs(delay)
    }

    fn sandbox_lost(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        if self.stage != Stage::Active || self.sandbox != Sandbox::Ready {
            return;
        }
        self.sandbox = Sandbox::Lost;
        out.push(Action::Tell(PodEvent {
            warning: false,
            reason: "SandboxChanged".to_owned(),
            message: "Pod sandbox changed, it will be killed and re-created.".to_owned(),
            slot: None,
        }));
        let grace_s = self.plan.grace_s;
        for container in self.all_mut() {
            container.sandbox_lost(now, grace_s, out);
        }
    }

    // --- changes ---

    fn updated(&mut self, now: Timestamp, plan: PodPlan, out: &mut Vec<Action>) {
        if self.stage != Stage::Active {
            return;
        }
        for container in self.init.iter_mut().chain(&mut self.main) {
            let list = match container.slot {
                Slot::Init(_) => &plan.init,
                Slot::Main(_) => &plan.main,
            };
            let name = container.plan.name.clone();
            let Some(wanted) = list.iter().find(|wanted| wanted.name == name) else { continue };
            let changed = container.plan.spec_hash != wanted.spec_hash;
            container.plan = wanted.clone();
            // What it waits for may have come with the change.
            if let State::StartBackOff { until, kind: StartFailure::Config, .. } =
                &mut container.state
            {
                *until = now;
            }
            if changed {
                container.replace(now, plan.grace_s, out);
            }
        }
        if let Sandbox::Failed { until } = &mut self.sandbox {
            *until = now;
        }
        // Only what the master decides; the rest of the status is ours.
        self.conditions.take_scheduled(&plan.prior);
        self.plan = plan;
    }

    // --- taking down ---

    fn delete(&mut self, now: Timestamp, grace_s: u32, out: &mut Vec<Action>) {
        let ready = self.containers_ready();
        match &mut self.stage {
            Stage::Active if grace_s > 0 && ready => {
                let until = now + SignedDuration::from_millis(DRAIN_MS);
                self.stage = Stage::Draining { until, grace_s };
            }
            Stage::Active => self.begin_stopping(now, grace_s, out),
            Stage::Draining { grace_s: grace, .. } => {
                *grace = grace_s.min(*grace);
                if *grace == 0 {
                    self.begin_stopping(now, 0, out);
                }
            }
            Stage::Stopping { deadline } => {
                let nearer = now + SignedDuration::from_secs(i64::from(grace_s));
                *deadline = nearer.min(*deadline);
                for container in self.all_mut() {
                    // Brings the end of those nearer that are being stopped already.
                    if container.running().is_some_and(|r| r.stopping.is_some()) {
                        container.stop(now, StopReason::Delete, grace_s, out);
                    }
                }
            }
            Stage::Finished => self.tear_down(out),
            Stage::TearingDown | Stage::TearDownFailed { .. } | Stage::Gone => {}
        }
    }

    fn begin_stopping(&mut self, now: Timestamp, grace_s: u32, out: &mut Vec<Action>) {
        let deadline = now + SignedDuration::from_secs(i64::from(grace_s));
        self.stage = Stage::Stopping { deadline };
        self.drop_waiting();
        for container in self.all() {
            if container.running().is_some() {
                let text = format!("Stopping container {}", container.plan.name);
                out.push(Action::Tell(PodEvent {
                    warning: false,
                    reason: "Killing".to_owned(),
                    message: text,
                    slot: Some(container.slot),
                }));
            }
        }
    }

    fn drop_waiting(&mut self) {
        for container in self.all_mut().filter(|container| !container.is_live()) {
            give_up(container);
        }
    }

    /// Main and init containers first, sidecars when those are gone, the rest of the pod last.
    fn stop_rest(&mut self, now: Timestamp, deadline: Timestamp, out: &mut Vec<Action>) {
        let left_ms = deadline.duration_since(now).as_millis().max(0);
        let grace_s = u32::try_from((left_ms + 999) / 1000).unwrap_or(u32::MAX);
        for sidecars in [false, true] {
            let mut live = false;
            for container in self.all_mut().filter(|c| c.plan.sidecar == sidecars) {
                live |= container.is_live();
                if !container.is_stopping_for_good() {
                    container.stop(now, StopReason::Delete, grace_s, out);
                }
            }
            if live {
                return;
            }
        }
        // A sandbox that is being made must be there to be removed.
        if self.sandbox != Sandbox::Preparing {
            self.tear_down(out);
        }
    }

    fn tear_down(&mut self, out: &mut Vec<Action>) {
        self.stage = Stage::TearingDown;
        out.push(Action::TearDown);
    }

    fn tear_down_failed(&mut self, now: Timestamp, message: String, out: &mut Vec<Action>) {
        if self.stage != Stage::TearingDown {
            return;
        }
        self.stage = Stage::TearDownFailed { until: now + self.retry_delay() };
        tell("FailedKillPod", format!("error killing pod: {message}"), out);
    }

    // --- time ---

    /// When to call [`Self::step`] with [`Event::Tick`] if nothing happens before.
    pub fn next_wake(&self) -> Option<Timestamp> {
        let own = match self.stage {
            Stage::Draining { until, .. } | Stage::TearDownFailed { until } => Some(until),
            Stage::Active => match self.sandbox {
                Sandbox::Failed { until } => Some(until),
                _ => None,
            },
            _ => None,
        };
        let ready = self.sandbox == Sandbox::Ready && self.stage == Stage::Active;
        let containers = self.all().filter_map(|container| {
            let wake = container.next_wake()?;
            let counts = container.running().is_some() || (ready && self.may_start(container));
            counts.then_some(wake)
        });
        own.into_iter().chain(containers).min()
    }
}

/// It is not to be started any more.
fn give_up(container: &mut Container) {
    if !container.is_over() {
        container.state = container.last.clone().map_or(State::Dropped, State::Done);
    }
}

fn tell(reason: &str, message: String, out: &mut Vec<Action>) {
    let event = PodEvent { warning: true, reason: reason.to_owned(), message, slot: None };
    out.push(Action::Tell(event));
}
