//! What must hold whatever happens.

use proptest::prelude::*;

use super::super::container::Container;
use super::*;

/// More than this from one step would be a storm.
const ACTIONS_MAX: usize = 24;

fn specs() -> impl Strategy<Value = Value> {
    let probe = prop_oneof![
        Just(Value::Null),
        Just(json!({"periodSeconds": 1, "failureThreshold": 2})),
        Just(json!({"initialDelaySeconds": 2, "periodSeconds": 3})),
    ];
    let policy = prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")];
    let hooks = any::<bool>();
    (policy, 0..3_usize, any::<bool>(), 1..3_usize, probe.clone(), probe.clone(), probe, hooks)
        .prop_map(|(policy, init, sidecar, main, startup, liveness, readiness, hooks)| {
            let container = |name: String| json!({"name": name, "image": "web:v1"});
            let mut inits: Vec<Value> = (0..init).map(|i| container(format!("i{i}"))).collect();
            if let (true, Some(first)) = (sidecar, inits.first_mut()) {
                first["restartPolicy"] = json!("Always");
            }
            let mut mains: Vec<Value> = (0..main).map(|i| container(format!("c{i}"))).collect();
            for (name, probe) in [
                ("startupProbe", startup),
                ("livenessProbe", liveness),
                ("readinessProbe", readiness),
            ] {
                if !probe.is_null() {
                    mains[0][name] = probe;
                }
            }
            if hooks {
                mains[0]["lifecycle"] = json!({"preStop": {}, "postStart": {}});
            }
            json!({"restartPolicy": policy, "initContainers": inits, "containers": mains,
                   "terminationGracePeriodSeconds": 5})
        })
}

/// What the world does next: answers something that is asked for, lets time pass, or interferes.
#[derive(Debug, Clone)]
enum Move {
    Answer { which: usize, well: bool },
    Wait { milliseconds: i64 },
    Exit { which: usize, code: i32 },
    LoseSandbox,
    Delete { grace_s: u32 },
    Noise { which: usize },
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        8 => (any::<usize>(), prop::bool::weighted(0.8))
            .prop_map(|(which, well)| Move::Answer { which, well }),
        4 => (0..20_000_i64).prop_map(|milliseconds| Move::Wait { milliseconds }),
        2 => (any::<usize>(), 0..2_i32).prop_map(|(which, code)| Move::Exit { which, code }),
        1 => Just(Move::LoseSandbox),
        1 => (0..10_u32).prop_map(|grace_s| Move::Delete { grace_s }),
        1 => any::<usize>().prop_map(|which| Move::Noise { which }),
    ];
    prop::collection::vec(one, 0..120)
}

/// A host that does what it is asked for, one thing at a time.
struct Host {
    tale: Tale,
    open: Vec<Action>,
    alive: Vec<(Slot, String)>,
    made: u32,
    phases: Vec<PodPhase>,
    restarts: Vec<i32>,
}

impl Host {
    fn new(spec: Value) -> Self {
        let tale = Tale::new(spec);
        let mut host = Self {
            tale,
            open: Vec::new(),
            alive: Vec::new(),
            made: 0,
            phases: vec![PodPhase::Pending],
            restarts: Vec::new(),
        };
        host.look();
        host
    }

    fn on(&mut self, event: Event) {
        self.tale.on(event);
        self.look();
    }

    /// Takes the new work and checks what must always hold.
    fn look(&mut self) {
        let asked = std::mem::take(&mut self.tale.asked);
        assert!(asked.len() <= ACTIONS_MAX, "{} actions at once: {asked:?}", asked.len());
        self.open.extend(asked.into_iter().filter(|action| !matches!(action, Action::Tell(_))));
        let phase = self.tale.state.phase();
        assert!(phase >= *self.phases.last().unwrap(), "the phase went back");
        self.phases.push(phase);
        let status = self.tale.state.status();
        let restarts: Vec<i32> =
            status.container_statuses.iter().flatten().map(|s| s.restart_count).collect();
        for (before, after) in self.restarts.iter().zip(&restarts) {
            assert!(after >= before && after - before <= 1, "restarts {before} to {after}");
        }
        self.restarts = restarts;
        if let Some(wake) = self.tale.state.next_wake() {
            assert!(wake > self.tale.now, "due at {wake}, and it is {}", self.tale.now);
        }
        let starts = |slot| {
            let starts = self
                .open
                .iter()
                .filter(|a| matches!(a, Action::Start { slot: s, .. } if *s == slot));
            starts.count() + self.alive.iter().filter(|(s, _)| *s == slot).count()
        };
        for slot in self.tale.slots() {
            assert!(starts(slot) <= 1, "{slot:?} would run twice");
        }
        assert!(!self.tale.state.is_gone() || self.alive.is_empty(), "gone, and yet it runs");
    }

    fn answer(&mut self, which: usize, well: bool) {
        if self.open.is_empty() {
            return;
        }
        let action = self.open.remove(which % self.open.len());
        let message = || "no".to_owned();
        let result = if well { Ok(()) } else { Err(message()) };
        match action {
            Action::Prepare if well => self.on(Event::Prepared { ip: Some("10.0.0.1".into()) }),
            Action::Prepare => self.on(Event::PrepareFailed(Failure {
                reason: "FailedMount".into(),
                message: message(),
            })),
            Action::EnsureImage { slot } if well => {
                self.on(Event::ImageReady { slot, image_id: "i".into(), pull: None });
            }
            Action::EnsureImage { slot } => {
                let kind = ImageFailure::Pull;
                self.on(Event::ImageFailed { slot, kind, message: message() });
            }
            Action::Start { slot, .. } if well => {
                self.made += 1;
                let id = format!("id{}", self.made);
                self.alive.push((slot, id.clone()));
                self.on(Event::Started { slot, id });
            }
            Action::Start { slot, .. } => {
                let kind = StartFailure::Create;
                self.on(Event::StartFailed { slot, kind, message: message(), id: None });
            }
            Action::Signal { id, kill, .. } => {
                if kill || well {
                    self.die(&id, 137);
                }
            }
            Action::RunHook { slot, id, hook } => {
                self.on(Event::HookDone { slot, id, hook, result })
            }
            Action::Probe { slot, id, kind } => self.on(Event::Probed { slot, id, kind, result }),
            Action::TearDown if well => self.on(Event::TornDown),
            Action::TearDown => self.on(Event::TearDownFailed { message: message() }),
            Action::RemoveContainer { id } => {
                assert!(!self.alive.iter().any(|(_, alive)| *alive == id), "{id} runs");
            }
            Action::ReleaseNetwork => assert!(self.alive.is_empty(), "something runs"),
            Action::Tell(_) => {}
        }
    }

    fn die(&mut self, id: &str, code: i32) {
        if let Some(at) = self.alive.iter().position(|(_, alive)| alive == id) {
            let (slot, id) = self.alive.remove(at);
            self.on(Event::Exited { slot, id, exit: exit(code) });
        }
    }

    fn make(&mut self, made: Move) {
        match made {
            Move::Answer { which, well } => self.answer(which, well),
            Move::Wait { milliseconds } => {
                self.tale.now += SignedDuration::from_millis(milliseconds);
                self.on(Event::Tick);
            }
            Move::Exit { which, code } if !self.alive.is_empty() => {
                let id = self.alive[which % self.alive.len()].1.clone();
                self.die(&id, code);
            }
            Move::Exit { .. } => {}
            Move::LoseSandbox => self.on(Event::SandboxLost),
            Move::Delete { grace_s } => self.on(Event::Delete { grace_s }),
            Move::Noise { which } => {
                let slots = [Slot::Main(0), Slot::Init(0), Slot::Main(7)];
                let slot = slots[which % slots.len()];
                let id = "nobody".to_owned();
                self.on(Event::Exited { slot, id, exit: exit(1) });
                self.on(Event::TornDown);
            }
        }
    }

    /// An init container that runs, and would end by itself some time.
    fn working_init(&self) -> Option<String> {
        let plan = &self.tale.state.plan;
        let works = |slot: &Slot| matches!(slot, Slot::Init(i) if !plan.init[*i].sidecar);
        self.alive.iter().find(|(slot, _)| works(slot)).map(|(_, id)| id.clone())
    }

    /// With the faults removed, and time passing as it is asked to.
    fn settle(&mut self, mut done: impl FnMut(&PodState) -> bool) -> bool {
        for _ in 0..2_000 {
            if done(&self.tale.state) {
                return true;
            }
            if self.open.is_empty() {
                match (self.tale.state.next_wake(), self.working_init()) {
                    (_, Some(id)) => self.die(&id, 0),
                    (Some(wake), None) => {
                        self.tale.now = wake;
                        self.on(Event::Tick);
                    }
                    (None, None) => return false,
                }
            } else {
                self.answer(0, true);
            }
        }
        false
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_deleted_pod_always_goes_and_leaves_nothing(spec in specs(), moves in moves()) {
        let mut host = Host::new(spec);
        for made in moves {
            host.make(made);
        }
        host.on(Event::Delete { grace_s: 3 });
        prop_assert!(host.settle(PodState::is_gone), "{:?}", host.tale.state);
        prop_assert!(host.alive.is_empty());
    }

    #[test]
    fn every_container_gets_ready_or_ends_for_good(spec in specs(), moves in moves()) {
        let mut host = Host::new(spec);
        let quiet = |made: &Move| !matches!(made, Move::Delete { .. });
        for made in moves.into_iter().filter(quiet) {
            host.make(made);
        }
        let settled = |container: &Container| container.ready() || container.is_over();
        let over = |state: &PodState| {
            state.phase() >= PodPhase::Succeeded || state.main.iter().all(settled)
        };
        prop_assert!(host.settle(over), "{:?}", host.tale.state);
    }
}
