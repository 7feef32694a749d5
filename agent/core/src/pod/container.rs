//! One container of a pod: its states, and how it comes to run. Moves that need a look at the rest
//! of the pod are not made here.

use jiff::{SignedDuration, Timestamp};

use super::probe::ProbeState;
use super::running::begin_probes;
use super::{
    Action, Backoff, ContainerPlan, Event, Hook, ImageFailure, PodEvent, ProbeKind, Slot,
    StartFailure,
};

/// `ErrImagePull` is shown this long before it becomes `ImagePullBackOff`, in seconds.
const ERROR_SHOWN_S: i64 = 2;
/// After an engine that did not answer, in seconds.
const UNAVAILABLE_RETRY_S: i64 = 1;
/// After a start that the engine refused, in seconds.
const START_RETRY_S: i64 = 10;

/// How an attempt ended, in Kubernetes' words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Termination {
    pub id: String,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub started_at: Option<Timestamp>,
    pub finished_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Container {
    pub(super) slot: Slot,
    pub(super) plan: ContainerPlan,
    pub(super) state: State,
    pub(super) image_id: String,
    /// Number of the attempt that runs or ran last: restarts so far.
    pub(super) attempt: u32,
    /// Whether an attempt has ever run.
    pub(super) ever_ran: bool,
    pub(super) last: Option<Termination>,
    pub(super) backoff: Backoff,
    pub(super) pull_backoff: Backoff,
    /// Dead containers that are still there, oldest first.
    pub(super) dead: Vec<String>,
    /// Of the container found when the agent started, until it is compared.
    pub(super) found_hash: Option<String>,
    /// The spec changed while it was being started: to be replaced, with that grace period.
    pub(super) stale: Option<u32>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum State {
    /// Its turn has not come, or nothing is asked for yet.
    Waiting,
    /// `EnsureImage` is out.
    Image,
    ImageBackOff {
        failed_at: Timestamp,
        until: Timestamp,
        kind: ImageFailure,
        message: String,
        /// `ErrImagePull` has given way to `ImagePullBackOff`.
        told: bool,
    },
    /// `Start` is out.
    Starting,
    StartBackOff {
        until: Timestamp,
        kind: StartFailure,
        message: String,
    },
    Running(Running),
    CrashBackOff {
        until: Timestamp,
        delay: SignedDuration,
    },
    /// Ended, and not to be started again.
    Done(Termination),
    /// Never ran, and not to be started any more.
    Dropped,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Running {
    pub(super) id: String,
    pub(super) started_at: Timestamp,
    pub(super) post_start: bool,
    pub(super) probes: [Option<ProbeState>; 3],
    pub(super) stopping: Option<Stopping>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stopping {
    pub(super) why: StopReason,
    pub(super) deadline: Timestamp,
    pub(super) phase: StopPhase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopReason {
    Delete,
    /// A probe or hook failed: restart as the policy says.
    Unhealthy,
    /// Its spec changed, or its sandbox is gone: restart whatever the policy.
    Replace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopPhase {
    PreStop,
    Terminated,
    Killed { again_at: Timestamp },
}

impl Running {
    pub(super) fn probe(&self, kind: ProbeKind) -> Option<&ProbeState> {
        self.probes[kind as usize].as_ref()
    }

    /// Its post-start hook and startup probe are through.
    pub(super) fn started(&self) -> bool {
        !self.post_start && self.probe(ProbeKind::Startup).is_none_or(ProbeState::passed)
    }

    pub(super) fn ready(&self) -> bool {
        self.started() && self.probe(ProbeKind::Readiness).is_none_or(ProbeState::passed)
    }
}

impl Container {
    pub(super) fn new(slot: Slot, plan: ContainerPlan) -> Self {
        Self {
            slot,
            plan,
            state: State::Waiting,
            image_id: String::new(),
            attempt: 0,
            ever_ran: false,
            last: None,
            backoff: Backoff::first_free(),
            pull_backoff: Backoff::first_waits(),
            dead: Vec::new(),
            found_hash: None,
            stale: None,
        }
    }

    pub(super) fn running(&self) -> Option<&Running> {
        match &self.state {
            State::Running(running) => Some(running),
            _ => None,
        }
    }

    pub(super) fn running_mut(&mut self, id: &str) -> Option<&mut Running> {
        match &mut self.state {
            State::Running(running) if running.id == id => Some(running),
            _ => None,
        }
    }

    pub(super) fn ready(&self) -> bool {
        self.running().is_some_and(|running| running.ready() && running.stopping.is_none())
    }

    /// Something of it runs, or may be about to.
    pub(super) fn is_live(&self) -> bool {
        matches!(self.state, State::Running(_) | State::Starting)
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Done(_) | State::Dropped)
    }

    pub(super) fn tell(&self, warning: bool, reason: &str, message: String, out: &mut Vec<Action>) {
        out.push(Action::Tell(PodEvent {
            warning,
            reason: reason.to_owned(),
            message,
            slot: Some(self.slot),
        }));
    }

    // --- getting it to run ---

    /// Number of the attempt that the next start is; one that did not come about is not counted.
    fn next_attempt(&self) -> u32 {
        self.attempt + u32::from(self.ever_ran)
    }

    /// Asks for what is next, if it is time.
    pub(super) fn drive_start(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let due = match &self.state {
            State::Waiting => true,
            State::ImageBackOff { until, .. }
            | State::StartBackOff { until, .. }
            | State::CrashBackOff { until, .. } => *until <= now,
            _ => false,
        };
        if due {
            self.state = State::Image;
            out.push(Action::EnsureImage { slot: self.slot });
        }
    }

    pub(super) fn image_event(&mut self, now: Timestamp, event: Event, out: &mut Vec<Action>) {
        let image = &self.plan.image;
        match event {
            Event::Pulling { .. } => {
                self.tell(false, "Pulling", format!("Pulling image \"{image}\""), out);
            }
            Event::ImageReady { image_id, pull, .. } if self.state == State::Image => {
                let message = match pull {
                    Some(pull) => format!(
                        "Successfully pulled image \"{image}\" in {}. Image size: {} bytes.",
                        seconds(pull.milliseconds),
                        pull.bytes
                    ),
                    None => format!("Container image \"{image}\" already present on machine"),
                };
                self.tell(false, "Pulled", message, out);
                self.image_id = image_id;
                self.pull_backoff = Backoff::first_waits();
                self.state = State::Starting;
                out.push(Action::Start { slot: self.slot, attempt: self.next_attempt() });
            }
            Event::ImageFailed { kind, message, .. } if self.state == State::Image => {
                self.image_failed(now, kind, message, out);
            }
            _ => {}
        }
    }

    fn image_failed(
        &mut self,
        now: Timestamp,
        kind: ImageFailure,
        message: String,
        out: &mut Vec<Action>,
    ) {
        let image = &self.plan.image;
        let delay = match kind {
            ImageFailure::Unavailable => SignedDuration::from_secs(UNAVAILABLE_RETRY_S),
            _ => self.pull_backoff.next_delay(),
        };
        let (text, error) = match kind {
            ImageFailure::Unavailable => (None, ""),
            ImageFailure::Pull => {
                (Some(format!("Failed to pull image \"{image}\": {message}")), "ErrImagePull")
            }
            ImageFailure::NeverPull => (Some(message.clone()), "ErrImageNeverPull"),
            ImageFailure::InvalidName => (
                Some(format!("Failed to apply default image tag \"{image}\": {message}")),
                "InvalidImageName",
            ),
        };
        if let Some(text) = text {
            self.tell(true, "Failed", text, out);
            self.tell(true, "Failed", format!("Error: {error}"), out);
        }
        let told = kind != ImageFailure::Pull;
        let until = now + delay;
        self.state = State::ImageBackOff { failed_at: now, until, kind, message, told };
    }

    /// From `ErrImagePull` to `ImagePullBackOff`.
    pub(super) fn tell_backoff(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let State::ImageBackOff { failed_at, told, .. } = &mut self.state else { return };
        if *told || now < switch_at(*failed_at) {
            return;
        }
        *told = true;
        let image = self.plan.image.clone();
        self.tell(false, "BackOff", format!("Back-off pulling image \"{image}\""), out);
        self.tell(true, "Failed", "Error: ImagePullBackOff".to_owned(), out);
    }

    pub(super) fn started(&mut self, now: Timestamp, id: String, out: &mut Vec<Action>) {
        if self.state != State::Starting {
            return;
        }
        let name = self.plan.name.clone();
        self.tell(false, "Created", format!("Created container: {name}"), out);
        self.tell(false, "Started", format!("Started container {name}"), out);
        self.attempt = self.next_attempt();
        self.ever_ran = true;
        // The last dead one is kept, for `logs --previous`.
        while self.dead.len() > 1 {
            out.push(Action::RemoveContainer { id: self.dead.remove(0) });
        }
        let mut running = Running {
            id: id.clone(),
            started_at: now,
            post_start: self.plan.post_start,
            probes: [None; 3],
            stopping: None,
        };
        if running.post_start {
            out.push(Action::RunHook { slot: self.slot, id, hook: Hook::PostStart });
        } else {
            begin_probes(&mut running, &self.plan, now);
        }
        self.state = State::Running(running);
        if let Some(grace_s) = self.stale.take() {
            self.stop(now, StopReason::Replace, grace_s, out);
        }
    }

    /// A start failed; true when that counts as an exit and the policy is to be asked.
    pub(super) fn start_failed(
        &mut self,
        now: Timestamp,
        kind: StartFailure,
        message: String,
        id: Option<String>,
        out: &mut Vec<Action>,
    ) -> bool {
        if self.state != State::Starting {
            return false;
        }
        if kind != StartFailure::Unavailable {
            self.tell(true, "Failed", format!("Error: {message}"), out);
        }
        if kind == StartFailure::Start {
            self.attempt = self.next_attempt();
            let reason = "StartError".to_owned();
            self.ended(Termination {
                id: id.unwrap_or_default(),
                exit_code: 128,
                reason,
                message,
                started_at: None,
                finished_at: now,
            });
            return true;
        }
        let delay = match kind {
            StartFailure::Unavailable => SignedDuration::from_secs(UNAVAILABLE_RETRY_S),
            _ => SignedDuration::from_secs(START_RETRY_S),
        };
        self.state = State::StartBackOff { until: now + delay, kind, message };
        false
    }
}

/// When `ErrImagePull` gives way to `ImagePullBackOff`.
pub(super) fn switch_at(failed_at: Timestamp) -> Timestamp {
    failed_at + SignedDuration::from_secs(ERROR_SHOWN_S)
}

/// `1.204s`, `350ms`: as Go prints durations.
fn seconds(milliseconds: u64) -> String {
    if milliseconds < 1000 {
        format!("{milliseconds}ms")
    } else {
        format!("{}s", milliseconds as f64 / 1000.0)
    }
}
