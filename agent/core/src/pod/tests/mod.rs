//! The life of a pod, told as what happens and what is to be done.

mod deleting;
mod properties;
mod restarts;
mod starting;
mod table;
mod taking_over;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use serde_json::{Value, json};

use super::*;

pub(super) const START: &str = "2026-01-01T00:00:00Z";

/// A pod's state, a clock that only the test moves, and all that was asked for since the last
/// look.
pub(super) struct Tale {
    pub(super) state: PodState,
    pub(super) now: Timestamp,
    pub(super) asked: Vec<Action>,
    next_id: u32,
}

pub(super) fn plan(spec: Value) -> PodPlan {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u1"},
        "spec": spec,
    }))
    .unwrap();
    PodPlan::of(&pod, "192.0.2.1")
}

/// One container with nothing special.
pub(super) fn simple() -> Value {
    json!({"containers": [{"name": "c", "image": "web:v1"}]})
}

impl Tale {
    pub(super) fn new(spec: Value) -> Self {
        let now = START.parse().unwrap();
        let state = PodState::new(plan(spec), now);
        let mut tale = Self { state, now, asked: Vec::new(), next_id: 0 };
        tale.on(Event::Tick);
        tale
    }

    /// Until its main containers run.
    pub(super) fn running(spec: Value) -> Self {
        let mut tale = Self::new(spec);
        tale.prepared();
        for slot in tale.slots() {
            tale.run(slot);
            if let Slot::Init(_) = slot {
                tale.exit(slot, 0);
            }
        }
        tale.asked.clear();
        tale
    }

    fn slots(&self) -> Vec<Slot> {
        let init = (0..self.state.plan.init.len()).map(Slot::Init);
        init.chain((0..self.state.plan.main.len()).map(Slot::Main)).collect()
    }

    pub(super) fn on(&mut self, event: Event) {
        let actions = self.state.step(self.now, event);
        self.asked.extend(actions);
    }

    pub(super) fn after_ms(&mut self, milliseconds: i64) {
        self.now += SignedDuration::from_millis(milliseconds);
        self.on(Event::Tick);
    }

    pub(super) fn prepared(&mut self) {
        self.on(Event::Prepared { ip: Some("10.244.0.2".to_owned()) });
    }

    pub(super) fn image(&mut self, slot: Slot) {
        self.on(Event::ImageReady { slot, image_id: "sha256:ab".to_owned(), pull: None });
    }

    /// From its image to its running.
    pub(super) fn run(&mut self, slot: Slot) -> String {
        self.image(slot);
        self.next_id += 1;
        let id = format!("id{}", self.next_id);
        self.on(Event::Started { slot, id: id.clone() });
        id
    }

    pub(super) fn exit(&mut self, slot: Slot, code: i32) {
        let id = self.state.running_id(slot).expect("it runs").to_owned();
        self.on(Event::Exited { slot, id, exit: exit(code) });
    }

    pub(super) fn probed(&mut self, slot: Slot, kind: ProbeKind, ok: bool) {
        let id = self.state.running_id(slot).expect("it runs").to_owned();
        let result = if ok { Ok(()) } else { Err("no".to_owned()) };
        self.on(Event::Probed { slot, id, kind, result });
    }

    /// What was asked for since the last look, but for events.
    pub(super) fn work(&mut self) -> Vec<Action> {
        let asked = std::mem::take(&mut self.asked);
        asked.into_iter().filter(|action| !matches!(action, Action::Tell(_))).collect()
    }

    /// `Reason: message` of the events since the last look.
    pub(super) fn told(&mut self) -> Vec<String> {
        let asked = std::mem::take(&mut self.asked);
        let text = |action| match action {
            Action::Tell(event) => Some(format!("{}: {}", event.reason, event.message)),
            _ => None,
        };
        asked.into_iter().filter_map(text).collect()
    }

    pub(super) fn phase(&self) -> String {
        self.state.status().phase.unwrap()
    }

    pub(super) fn container(&self) -> ContainerStatus {
        self.state.status().container_statuses.unwrap().remove(0)
    }

    /// `running`, `waiting Reason` or `terminated Reason code`.
    pub(super) fn shown(&self) -> String {
        shown(&self.container())
    }

    pub(super) fn holds(&self, condition: &str) -> bool {
        let conditions = self.state.status().conditions.unwrap();
        conditions.iter().any(|c| c.type_ == condition && c.status == "True")
    }
}

pub(super) fn exit(code: i32) -> Exit {
    Exit {
        code,
        oom_killed: false,
        started_at: None,
        finished_at: None,
        message: String::new(),
        vanished: false,
    }
}

pub(super) fn shown(status: &ContainerStatus) -> String {
    let state = status.state.clone().unwrap();
    if let Some(waiting) = state.waiting {
        return format!("waiting {}", waiting.reason.unwrap_or_default());
    }
    if let Some(terminated) = state.terminated {
        let reason = terminated.reason.unwrap_or_default();
        return format!("terminated {reason} {}", terminated.exit_code);
    }
    "running".to_owned()
}

pub(super) const C: Slot = Slot::Main(0);

pub(super) fn start(attempt: u32) -> Action {
    Action::Start { slot: C, attempt }
}

pub(super) fn ensure_image() -> Action {
    Action::EnsureImage { slot: C }
}

pub(super) fn signal(id: &str, kill: bool) -> Action {
    Action::Signal { slot: C, id: id.to_owned(), kill }
}
