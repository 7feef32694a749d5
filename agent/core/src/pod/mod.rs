//! The life of a pod on its node: `(state, event) -> (state, actions)`.
//!
//! [`PodState::step`] takes what happened and when, and returns what is to be done; whoever runs
//! it does that and reports back with further events. [`PodState::next_wake`] says when to call
//! again if nothing happens. There is no clock, no I/O and no randomness here, and nothing is
//! known of an engine but that it has container ids.

mod adopt;
mod backoff;
mod container;
mod lifecycle;
mod plan;
mod probe;
mod running;
mod status;
#[cfg(test)]
mod tests;

use jiff::Timestamp;

pub use adopt::{Found, FoundState};
pub use backoff::Backoff;
pub use container::Termination;
pub use lifecycle::{DRAIN_MS, PodState};
pub use plan::{ContainerPlan, PodPlan, ProbePlan, PullPolicy, RestartPolicy, spec_hash};
pub use status::PodPhase;

/// Which container of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    Init(usize),
    Main(usize),
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// The pod's spec or metadata changed; the containers are the same ones by name.
    Updated(Box<PodPlan>),
    /// The pod is to be stopped, within that many seconds.
    Delete {
        grace_s: u32,
    },
    /// Answers to [`Action::Prepare`]; `ip` is none on the host's network.
    Prepared {
        ip: Option<String>,
    },
    PrepareFailed(Failure),
    /// Answers to [`Action::EnsureImage`]; a pull is announced when it begins.
    Pulling {
        slot: Slot,
    },
    ImageReady {
        slot: Slot,
        image_id: String,
        pull: Option<Pull>,
    },
    ImageFailed {
        slot: Slot,
        kind: ImageFailure,
        message: String,
    },
    /// Answers to [`Action::Start`].
    Started {
        slot: Slot,
        id: String,
    },
    StartFailed {
        slot: Slot,
        kind: StartFailure,
        message: String,
        id: Option<String>,
    },
    /// A container that had started has ended.
    Exited {
        slot: Slot,
        id: String,
        exit: Exit,
    },
    /// Answers to [`Action::RunHook`].
    HookDone {
        slot: Slot,
        id: String,
        hook: Hook,
        result: Result<(), String>,
    },
    /// Answers to [`Action::Probe`].
    Probed {
        slot: Slot,
        id: String,
        kind: ProbeKind,
        result: Result<(), String>,
    },
    /// The pod's network namespace is gone although containers may run.
    SandboxLost,
    /// Answers to [`Action::TearDown`].
    TornDown,
    TearDownFailed {
        message: String,
    },
}

/// What is to be done. Actions of one step may be done at the same time, in any order, but for
/// `Signal`s of one container.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Volumes, files, address and, where the pod needs one, its sandbox.
    Prepare,
    EnsureImage {
        slot: Slot,
    },
    /// Create and start a container.
    Start {
        slot: Slot,
        attempt: u32,
    },
    Signal {
        slot: Slot,
        id: String,
        kill: bool,
    },
    RunHook {
        slot: Slot,
        id: String,
        hook: Hook,
    },
    Probe {
        slot: Slot,
        id: String,
        kind: ProbeKind,
    },
    /// A dead container that nobody will ask for any more.
    RemoveContainer {
        id: String,
    },
    /// The pod has finished by itself: its network is not needed any more, its containers are.
    ReleaseNetwork,
    /// Remove everything of the pod from the host.
    TearDown,
    Tell(PodEvent),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pull {
    pub milliseconds: u64,
    pub bytes: u64,
}

/// Why preparing a pod failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The event's reason: `FailedMount`, `FailedCreatePodSandBox`; empty for no event (the
    /// engine does not answer, which is told of the node).
    pub reason: String,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFailure {
    /// Pulling failed.
    Pull,
    /// Not here, and the policy is Never.
    NeverPull,
    InvalidName,
    /// The engine does not answer.
    Unavailable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartFailure {
    /// The spec refers to something that is not there or not allowed.
    Config,
    /// The engine refused to make the container.
    Create,
    /// Made, but its program could not be started.
    Start,
    /// The engine does not answer.
    Unavailable,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub code: i32,
    pub oom_killed: bool,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub message: String,
    /// The container itself is gone.
    pub vanished: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    PostStart,
    PreStop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl ProbeKind {
    pub const ALL: [Self; 3] = [Self::Startup, Self::Liveness, Self::Readiness];

    /// As events begin: `Liveness probe failed: …`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// For the pod's events in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEvent {
    pub warning: bool,
    pub reason: String,
    pub message: String,
    /// None when it is of the whole pod.
    pub slot: Option<Slot>,
}
