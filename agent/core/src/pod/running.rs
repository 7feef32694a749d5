//! One container while it runs, is stopped, and after it has ended.

use jiff::{SignedDuration, Timestamp};

use super::container::{
    Container, Running, State, StopPhase, StopReason, Stopping, Termination, switch_at,
};
use super::probe::ProbeState;
use super::{Action, Backoff, ContainerPlan, Exit, Hook, ProbeKind, ProbePlan};

/// A SIGKILL without effect is sent again after this, in seconds.
const KILL_AGAIN_S: i64 = 10;
/// A preStop hook that used up the grace period leaves the process this much, in seconds.
const AFTER_HOOK_S: i64 = 2;

/// Why an attempt that has ended was being stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) why: Option<StopReason>,
}

impl Container {
    // --- while it runs ---

    /// Probes that are due, and the next step of stopping.
    pub(super) fn drive_running(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let slot = self.slot;
        let State::Running(running) = &mut self.state else { return };
        let id = running.id.clone();
        let Some(stopping) = &mut running.stopping else {
            if running.post_start {
                return;
            }
            let gated = !running.started();
            for kind in ProbeKind::ALL {
                if gated && kind != ProbeKind::Startup {
                    continue;
                }
                if !gated && kind == ProbeKind::Startup {
                    continue;
                }
                let probe = running.probes[kind as usize].as_mut();
                if probe.is_some_and(|probe| probe.take_due(now)) {
                    out.push(Action::Probe { slot, id: id.clone(), kind });
                }
            }
            return;
        };
        let kill = Action::Signal { slot, id: id.clone(), kill: true };
        match stopping.phase {
            StopPhase::PreStop if stopping.deadline <= now => {
                stopping.phase = StopPhase::Terminated;
                stopping.deadline = now + SignedDuration::from_secs(AFTER_HOOK_S);
                out.push(Action::Signal { slot, id, kill: false });
            }
            StopPhase::Terminated if stopping.deadline <= now => {
                stopping.phase = killed(now);
                out.push(kill);
            }
            StopPhase::Killed { again_at } if again_at <= now => {
                stopping.phase = killed(now);
                out.push(kill);
            }
            _ => {}
        }
    }

    pub(super) fn is_stopping_for_good(&self) -> bool {
        let stopping = self.running().and_then(|running| running.stopping.as_ref());
        stopping.is_some_and(|stopping| stopping.why == StopReason::Delete)
    }

    /// Begins to stop it, or brings the end nearer.
    pub(super) fn stop(
        &mut self,
        now: Timestamp,
        why: StopReason,
        grace_s: u32,
        out: &mut Vec<Action>,
    ) {
        let slot = self.slot;
        let deadline = now + SignedDuration::from_secs(i64::from(grace_s));
        let pre_stop = self.plan.pre_stop;
        let State::Running(running) = &mut self.state else { return };
        let id = running.id.clone();
        if let Some(stopping) = &mut running.stopping {
            if why == StopReason::Delete {
                stopping.why = why;
            }
            stopping.deadline = stopping.deadline.min(deadline);
            if grace_s == 0 && !matches!(stopping.phase, StopPhase::Killed { .. }) {
                stopping.phase = killed(now);
                out.push(Action::Signal { slot, id, kill: true });
            }
            return;
        }
        let phase = if grace_s == 0 {
            out.push(Action::Signal { slot, id, kill: true });
            killed(now)
        } else if pre_stop {
            out.push(Action::RunHook { slot, id, hook: Hook::PreStop });
            StopPhase::PreStop
        } else {
            out.push(Action::Signal { slot, id, kill: false });
            StopPhase::Terminated
        };
        running.stopping = Some(Stopping { why, deadline, phase });
    }

    pub(super) fn hook_done(
        &mut self,
        now: Timestamp,
        id: &str,
        hook: Hook,
        result: Result<(), String>,
        grace_s: u32,
        out: &mut Vec<Action>,
    ) {
        let slot = self.slot;
        let plan = self.plan.clone();
        let Some(running) = self.running_mut(id) else { return };
        match hook {
            Hook::PostStart if running.post_start => {
                running.post_start = false;
                begin_probes(running, &plan, now);
                if let Err(message) = result {
                    let text = format!("PostStartHook failed: {message}");
                    self.tell(true, "FailedPostStartHook", text, out);
                    self.stop(now, StopReason::Unhealthy, grace_s, out);
                }
            }
            Hook::PostStart => {}
            Hook::PreStop => {
                if let Some(stopping) = &mut running.stopping
                    && stopping.phase == StopPhase::PreStop
                {
                    stopping.phase = StopPhase::Terminated;
                    out.push(Action::Signal { slot, id: id.to_owned(), kill: false });
                }
                if let Err(message) = result {
                    let text = format!("PreStopHook failed: {message}");
                    self.tell(true, "FailedPreStopHook", text, out);
                }
            }
        }
    }

    pub(super) fn probed(
        &mut self,
        now: Timestamp,
        id: &str,
        kind: ProbeKind,
        result: Result<(), String>,
        grace_s: u32,
        out: &mut Vec<Action>,
    ) {
        let plan = self.plan.clone();
        let Some(running) = self.running_mut(id) else { return };
        let Some(probe) = &mut running.probes[kind as usize] else { return };
        let verdict = probe.answer(now, result.is_ok());
        let grace_s = probe.plan().grace_s.unwrap_or(grace_s);
        if running.stopping.is_some() {
            return;
        }
        if kind == ProbeKind::Startup && probe.passed() {
            start_gated_probes(running, &plan, now);
        }
        let Err(message) = result else { return };
        let what = kind.as_str();
        if verdict.told {
            self.tell(true, "Unhealthy", format!("{what} probe failed: {message}"), out);
        }
        if verdict.failed && kind != ProbeKind::Readiness {
            let name = &plan.name;
            let text =
                format!("Container {name} failed {} probe, will be restarted", what.to_lowercase());
            self.tell(false, "Killing", text, out);
            self.stop(now, StopReason::Unhealthy, grace_s, out);
        }
    }

    /// Its spec has changed: what runs of the old one makes way.
    pub(super) fn replace(&mut self, now: Timestamp, grace_s: u32, out: &mut Vec<Action>) {
        match self.state {
            State::Running(_) => {
                let name = &self.plan.name;
                let text = format!("Container {name} definition changed, will be restarted");
                self.tell(false, "Killing", text, out);
                self.stop(now, StopReason::Replace, grace_s, out);
            }
            State::Starting => self.stale = Some(grace_s),
            State::Done(_) | State::Dropped => {}
            _ => {
                self.backoff = Backoff::first_free();
                self.pull_backoff = Backoff::first_waits();
                self.state = State::Waiting;
            }
        }
    }

    /// What it runs in, or was to be started in, is gone.
    pub(super) fn sandbox_lost(&mut self, now: Timestamp, grace_s: u32, out: &mut Vec<Action>) {
        match self.state {
            State::Running(_) => self.stop(now, StopReason::Replace, grace_s, out),
            State::Starting => self.stale = Some(grace_s),
            State::Image => self.state = State::Waiting,
            _ => {}
        }
    }

    // --- after it ran ---

    /// Notes the end of the running attempt; why it was being stopped, if it was.
    pub(super) fn exited(&mut self, now: Timestamp, id: &str, exit: Exit) -> Option<Ended> {
        let running = self.running_mut(id)?;
        let why = running.stopping.as_ref().map(|stopping| stopping.why);
        let vanished = exit.vanished;
        let termination = Termination::of(id, exit, running.started_at, now);
        let started_at = termination.started_at.unwrap_or(now);
        if Backoff::is_reset_by(started_at, termination.finished_at) {
            self.backoff = Backoff::first_free();
        }
        self.ended(termination);
        if vanished {
            self.dead.pop();
        }
        Some(Ended { why })
    }

    pub(super) fn ended(&mut self, termination: Termination) {
        self.ever_ran = true;
        if !termination.id.is_empty() {
            self.dead.push(termination.id.clone());
        }
        self.last = Some(termination.clone());
        self.state = State::Done(termination);
    }

    /// It is to run again after its back-off, or at once. That counts from when its end is known: the
    /// engine dates it by a clock that may be set.
    pub(super) fn restart(
        &mut self,
        now: Timestamp,
        pod: &str,
        at_once: bool,
        out: &mut Vec<Action>,
    ) {
        if !matches!(self.state, State::Done(_)) {
            return;
        }
        let delay = if at_once { SignedDuration::ZERO } else { self.backoff.next_delay() };
        if !delay.is_zero() {
            let name = &self.plan.name;
            let text = format!("Back-off restarting failed container {name} in pod {pod}");
            self.tell(true, "BackOff", text, out);
        }
        self.state = State::CrashBackOff { until: now + delay, delay };
    }

    // --- time ---

    pub(super) fn next_wake(&self) -> Option<Timestamp> {
        match &self.state {
            State::ImageBackOff { failed_at, until, told, .. } => {
                Some(if *told { *until } else { switch_at(*failed_at).min(*until) })
            }
            State::StartBackOff { until, .. } | State::CrashBackOff { until, .. } => Some(*until),
            State::Running(running) => match &running.stopping {
                Some(Stopping { phase: StopPhase::Killed { again_at }, .. }) => Some(*again_at),
                Some(stopping) => Some(stopping.deadline),
                None if running.post_start => None,
                None if !running.started() => {
                    running.probe(ProbeKind::Startup).and_then(ProbeState::due_at)
                }
                None => [ProbeKind::Liveness, ProbeKind::Readiness]
                    .into_iter()
                    .filter_map(|kind| running.probe(kind)?.due_at())
                    .min(),
            },
            _ => None,
        }
    }
}

fn killed(now: Timestamp) -> StopPhase {
    StopPhase::Killed { again_at: now + SignedDuration::from_secs(KILL_AGAIN_S) }
}

pub(super) fn begin_probes(running: &mut Running, plan: &ContainerPlan, now: Timestamp) {
    match plan.startup {
        Some(startup) => {
            let probe = ProbeState::new(startup, now, false, true);
            running.probes[ProbeKind::Startup as usize] = Some(probe);
            // Waits for the startup probe; not ready until then.
            running.probes[ProbeKind::Readiness as usize] =
                plan.readiness.map(|probe| ProbeState::new(probe, now, false, true));
        }
        None => start_gated_probes(running, plan, now),
    }
}

/// Liveness and readiness count their initial delay from the container's start.
fn start_gated_probes(running: &mut Running, plan: &ContainerPlan, now: Timestamp) {
    let from = running.started_at;
    let start = |plan: ProbePlan, passed| {
        let at = from + SignedDuration::from_secs(plan.initial_delay_s);
        let late = now.max(at) - SignedDuration::from_secs(plan.initial_delay_s);
        ProbeState::new(plan, late, passed, true)
    };
    running.probes[ProbeKind::Liveness as usize] = plan.liveness.map(|p| start(p, true));
    running.probes[ProbeKind::Readiness as usize] = plan.readiness.map(|p| start(p, false));
}

impl Termination {
    /// `started_at` is used where the engine does not say. Nothing of it is later than now: the
    /// engine's clock may have been set back since.
    pub(super) fn of(id: &str, exit: Exit, started_at: Timestamp, now: Timestamp) -> Self {
        let started_at = exit.started_at.unwrap_or(started_at).min(now);
        let reason = match exit.code {
            _ if exit.oom_killed => "OOMKilled",
            _ if exit.vanished => "ContainerStatusUnknown",
            0 => "Completed",
            _ => "Error",
        };
        Self {
            id: id.to_owned(),
            exit_code: exit.code,
            reason: reason.to_owned(),
            message: exit.message,
            started_at: Some(started_at),
            finished_at: exit.finished_at.unwrap_or(now).clamp(started_at, now),
        }
    }
}
