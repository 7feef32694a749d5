//! Taking over a pod whose containers were there before the agent was.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ContainerStatus;

use super::container::{Running, State, Termination};
use super::lifecycle::{PodState, Sandbox};
use super::probe::ProbeState;
use super::{Action, Event, Exit, PodPlan, ProbePlan, Slot};

/// A container found on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    pub slot: Slot,
    pub attempt: u32,
    pub id: String,
    pub image_id: String,
    /// Of the spec that it was made from.
    pub spec_hash: String,
    pub state: FoundState,
}

#[derive(Debug, Clone, PartialEq)]
pub enum FoundState {
    Running {
        started_at: Timestamp,
    },
    Exited(Exit),
    /// Never started.
    Created,
}

impl PodState {
    /// The state of a pod of which `found` is there. Containers that run go on as they are; those
    /// that ended meanwhile are treated as if they had just done so. `sandbox` says whether the
    /// pod's sandbox runs (true where it needs none); `ip` is what the labels say.
    pub fn adopt(
        plan: PodPlan,
        mut found: Vec<Found>,
        sandbox: bool,
        ip: Option<String>,
        now: Timestamp,
    ) -> (Self, Vec<Action>) {
        let mut state = Self::new(plan, now);
        let mut out = Vec::new();
        if state.frozen.is_some() {
            for one in &found {
                state.note_dead(one);
            }
            return (state, out);
        }
        let began = found.iter().any(|one| {
            matches!(one.slot, Slot::Main(_)) && !matches!(one.state, FoundState::Created)
        });
        state.initialized |= began;
        let runs = |one: &Found| matches!(one.state, FoundState::Running { .. });
        let any_running = found.iter().any(runs);
        if any_running {
            state.sandbox = Sandbox::Ready;
            state.ip = ip;
        }
        found.sort_by_key(|one| one.attempt);
        let newest: BTreeMap<Slot, u32> = found.iter().map(|one| (one.slot, one.attempt)).collect();
        let mut exits = Vec::new();
        for one in found {
            if newest.get(&one.slot) == Some(&one.attempt) {
                exits.extend(state.take_over(one, now, &mut out));
            } else {
                state.note_older(one, now, &mut out);
            }
        }
        for event in exits {
            out.extend(state.step(now, event));
        }
        if any_running && !sandbox {
            out.extend(state.step(now, Event::SandboxLost));
        }
        state.replace_changed(now, &mut out);
        out.extend(state.step(now, Event::Tick));
        (state, out)
    }

    fn note_dead(&mut self, one: &Found) {
        if let Some(container) = self.container_mut(one.slot) {
            container.dead.push(one.id.clone());
        }
    }

    /// An attempt before the newest: kept for its logs.
    fn note_older(&mut self, one: Found, now: Timestamp, out: &mut Vec<Action>) {
        match (self.container_mut(one.slot), one.state) {
            (Some(container), FoundState::Exited(exit)) => {
                container.last = Some(Termination::of(&one.id, exit, now, now));
                container.dead.push(one.id);
            }
            _ => out.push(Action::RemoveContainer { id: one.id }),
        }
    }

    /// The newest attempt, as running. The answer is the exit to be told of, if it has ended.
    fn take_over(&mut self, one: Found, now: Timestamp, out: &mut Vec<Action>) -> Option<Event> {
        let prior = self.prior(&one);
        let slot = one.slot;
        let Some(container) = self.container_mut(slot) else {
            out.push(Action::RemoveContainer { id: one.id });
            return None;
        };
        container.attempt = one.attempt;
        let (started_at, exit) = match one.state {
            FoundState::Created => {
                out.push(Action::RemoveContainer { id: one.id });
                container.attempt = one.attempt.saturating_sub(1);
                container.ever_ran = one.attempt > 0;
                return None;
            }
            FoundState::Running { started_at } => (started_at, None),
            FoundState::Exited(exit) => (exit.started_at.unwrap_or(now), Some(exit)),
        };
        // By the engine's clock, which may have been set back since.
        let started_at = started_at.min(now);
        container.ever_ran = true;
        container.image_id = one.image_id;
        container.found_hash = Some(one.spec_hash);
        let probe = |plan: Option<ProbePlan>, passed| {
            plan.map(|plan| ProbeState::new(plan, now, passed, true))
        };
        let plan = &container.plan;
        container.state = State::Running(Running {
            id: one.id.clone(),
            started_at,
            post_start: false,
            probes: [
                probe(plan.startup, prior.started),
                probe(plan.liveness, true),
                probe(plan.readiness, prior.ready),
            ],
            stopping: None,
        });
        exit.map(|exit| Event::Exited { slot, id: one.id, exit })
    }

    /// What the master last heard of this very container.
    fn prior(&self, one: &Found) -> Prior {
        let (list, index) = match one.slot {
            Slot::Init(index) => (&self.plan.prior.init_container_statuses, index),
            Slot::Main(index) => (&self.plan.prior.container_statuses, index),
        };
        let name = self.container(one.slot).map(|c| c.plan.name.as_str());
        let by_name = |list: &Vec<ContainerStatus>| {
            let found = list.iter().find(|status| Some(status.name.as_str()) == name);
            found.or(list.get(index)).cloned()
        };
        let status = list.as_ref().and_then(by_name).filter(|status| {
            status.container_id.as_deref().is_some_and(|id| id.ends_with(one.id.as_str()))
        });
        Prior {
            ready: status.as_ref().is_some_and(|status| status.ready),
            started: status.is_some_and(|status| status.started == Some(true)),
        }
    }

    fn replace_changed(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let grace_s = self.plan.grace_s;
        for container in self.init.iter_mut().chain(&mut self.main) {
            let found = container.found_hash.take();
            if found.is_some_and(|hash| hash != container.plan.spec_hash) {
                container.replace(now, grace_s, out);
            }
        }
    }
}

struct Prior {
    ready: bool,
    started: bool,
}
