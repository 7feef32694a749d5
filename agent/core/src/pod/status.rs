//! The pod's status in Kubernetes' form.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, HostIP, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::container::{Container, State, Termination};
use super::lifecycle::{PodState, Sandbox, Stage};
use super::{ImageFailure, StartFailure};

/// In the order in which a pod goes through them; it never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PodPhase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

impl PodPhase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }

    pub(super) fn parse(text: Option<&str>) -> Self {
        match text {
            Some("Running") => Self::Running,
            Some("Succeeded") => Self::Succeeded,
            Some("Failed") => Self::Failed,
            _ => Self::Pending,
        }
    }

    fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

const PREPARED: &str = "PodReadyToStartContainers";
const INITIALIZED: &str = "Initialized";
const READY: &str = "Ready";
const CONTAINERS_READY: &str = "ContainersReady";
const SCHEDULED: &str = "PodScheduled";

/// The conditions that the node decides, with the time of their last change.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Conditions {
    prepared: Condition,
    initialized: Condition,
    ready: Condition,
    containers_ready: Condition,
    scheduled: PodCondition,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Condition {
    holds: bool,
    since: Timestamp,
}

impl Condition {
    fn set(&mut self, holds: bool, now: Timestamp) {
        if self.holds != holds {
            *self = Self { holds, since: now };
        }
    }
}

impl Conditions {
    pub(super) fn new(prior: &PodStatus, now: Timestamp) -> Self {
        let list = prior.conditions.as_deref().unwrap_or_default();
        let find = |name: &str| list.iter().find(|condition| condition.type_ == name);
        let read = |name| {
            let condition = find(name);
            let since = condition.and_then(|c| c.last_transition_time.as_ref());
            Condition {
                holds: condition.is_some_and(|c| c.status == "True"),
                since: since.map_or(now, |time| time.0),
            }
        };
        let scheduled = find(SCHEDULED).cloned().unwrap_or_else(|| PodCondition {
            type_: SCHEDULED.to_owned(),
            status: "True".to_owned(),
            last_transition_time: Some(whole(now)),
            ..Default::default()
        });
        Self {
            prepared: read(PREPARED),
            initialized: read(INITIALIZED),
            ready: read(READY),
            containers_ready: read(CONTAINERS_READY),
            scheduled,
        }
    }

    pub(super) fn take_scheduled(&mut self, prior: &PodStatus) {
        let list = prior.conditions.as_deref().unwrap_or_default();
        if let Some(condition) = list.iter().find(|condition| condition.type_ == SCHEDULED) {
            self.scheduled = condition.clone();
        }
    }
}

impl PodState {
    /// The status as the cluster is to see it.
    pub fn status(&self) -> PodStatus {
        if let Some(frozen) = &self.frozen {
            return frozen.as_ref().clone();
        }
        let host_network = self.plan.host_network;
        let ip = self.ip.clone().or_else(|| host_network.then(|| self.plan.host_ip.clone()));
        let ip = ip.filter(|ip| !ip.is_empty());
        let statuses = |list: &[Container]| -> Vec<_> {
            list.iter().map(|container| self.container_status(container)).collect()
        };
        PodStatus {
            phase: Some(self.phase.as_str().to_owned()),
            conditions: Some(self.condition_list()),
            host_ip: Some(self.plan.host_ip.clone()),
            host_ips: Some(vec![HostIP { ip: self.plan.host_ip.clone() }]),
            pod_ips: ip.clone().map(|ip| vec![PodIP { ip }]),
            pod_ip: ip,
            start_time: Some(whole(self.start_time)),
            qos_class: Some(self.plan.qos.to_owned()),
            init_container_statuses: (!self.init.is_empty()).then(|| statuses(&self.init)),
            container_statuses: Some(statuses(&self.main)),
            observed_generation: self.plan.prior.observed_generation,
            ..Default::default()
        }
    }

    /// The pod's phase.
    pub fn phase(&self) -> PodPhase {
        self.phase
    }

    pub(super) fn note_conditions(&mut self, now: Timestamp) {
        self.phase = self.phase.max(self.current_phase());
        let ready = self.containers_ready() && !self.phase.is_final();
        let done = self.phase == PodPhase::Succeeded;
        let prepared = self.sandbox == Sandbox::Ready && !self.phase.is_final();
        self.conditions.prepared.set(prepared, now);
        self.conditions.initialized.set(self.initialized || done, now);
        self.conditions.containers_ready.set(ready, now);
        self.conditions.ready.set(ready, now);
    }

    fn current_phase(&self) -> PodPhase {
        if self.phase.is_final() {
            return self.phase;
        }
        let over = matches!(
            self.stage,
            Stage::Finished | Stage::TearingDown | Stage::TearDownFailed { .. } | Stage::Gone
        );
        let mut codes = self.main.iter().map(|container| match &container.state {
            State::Done(termination) => Some(termination.exit_code),
            _ => None,
        });
        if over {
            let succeeded = !self.failed_init() && codes.all(|code| code == Some(0));
            return if succeeded { PodPhase::Succeeded } else { PodPhase::Failed };
        }
        let begun = |container: &Container| container.ever_ran || container.running().is_some();
        if self.initialized && self.main.iter().all(begun) {
            PodPhase::Running
        } else {
            PodPhase::Pending
        }
    }

    fn condition_list(&self) -> Vec<PodCondition> {
        let conditions = &self.conditions;
        let names = |list: &[Container], bad: &dyn Fn(&Container) -> bool| {
            let names = list.iter().filter(|c| bad(c)).map(|c| c.plan.name.as_str());
            names.collect::<Vec<_>>().join(" ")
        };
        let unready = names(&self.main, &|c| !c.ready());
        let incomplete = names(&self.init, &|c| {
            !matches!(&c.state, State::Done(t) if t.exit_code == 0) && !c.ready()
        });
        let completed = self.phase == PodPhase::Succeeded;
        let not_ready = || match (completed, self.phase == PodPhase::Failed) {
            (true, _) => ("PodCompleted", String::new()),
            (_, true) => ("PodFailed", String::new()),
            _ => ("ContainersNotReady", format!("containers with unready status: [{unready}]")),
        };
        let not_initialized = || {
            let text = format!("containers with incomplete status: [{incomplete}]");
            ("ContainersNotInitialized", text)
        };
        let build = |name: &str, condition: Condition, why: Option<(&str, String)>| {
            let why = why.filter(|_| !condition.holds);
            PodCondition {
                type_: name.to_owned(),
                status: if condition.holds { "True" } else { "False" }.to_owned(),
                last_transition_time: Some(whole(condition.since)),
                reason: why.as_ref().map(|(reason, _)| (*reason).to_owned()),
                message: why.map(|(_, message)| message).filter(|message| !message.is_empty()),
                ..Default::default()
            }
        };
        vec![
            build(PREPARED, conditions.prepared, None),
            build(INITIALIZED, conditions.initialized, Some(not_initialized())),
            build(READY, conditions.ready, Some(not_ready())),
            build(CONTAINERS_READY, conditions.containers_ready, Some(not_ready())),
            conditions.scheduled.clone(),
        ]
    }

    fn container_status(&self, container: &Container) -> ContainerStatus {
        let running = container.running();
        let id = running.map(|r| r.id.as_str()).or(container.last.as_ref().map(|t| t.id.as_str()));
        let is_current = between_runs(container) || matches!(container.state, State::Done(_));
        let complete = matches!(&container.state, State::Done(t) if t.exit_code == 0);
        ContainerStatus {
            name: container.plan.name.clone(),
            image: container.plan.image.clone(),
            image_id: image_id(&container.image_id),
            container_id: id.filter(|id| !id.is_empty()).map(docker_id),
            // Of an init container, ready means that it is through.
            ready: container.ready()
                || (matches!(container.slot, super::Slot::Init(_)) && complete),
            started: Some(running.is_some_and(|running| running.started())),
            restart_count: i32::try_from(container.attempt).unwrap_or(i32::MAX),
            state: Some(self.container_state(container)),
            last_state: container.last.as_ref().filter(|_| !is_current).map(|last| {
                ContainerState { terminated: Some(terminated(last)), ..Default::default() }
            }),
            ..Default::default()
        }
    }

    fn container_state(&self, container: &Container) -> ContainerState {
        match &container.state {
            State::Running(running) => ContainerState {
                running: Some(ContainerStateRunning {
                    started_at: Some(whole(running.started_at)),
                }),
                ..Default::default()
            },
            State::Done(termination) => {
                ContainerState { terminated: Some(terminated(termination)), ..Default::default() }
            }
            _ if between_runs(container) => ContainerState {
                terminated: container.last.as_ref().map(terminated),
                ..Default::default()
            },
            _ => {
                let (reason, message) = self.waiting(container);
                ContainerState {
                    waiting: Some(ContainerStateWaiting {
                        reason: Some(reason.to_owned()),
                        message: (!message.is_empty()).then_some(message),
                    }),
                    ..Default::default()
                }
            }
        }
    }

    /// Why a container does not run; none when it does or has ended.
    pub fn waiting_reason(&self, slot: super::Slot) -> Option<&'static str> {
        let container = self.container(slot)?;
        match container.state {
            State::Running(_) | State::Done(_) => None,
            _ => Some(self.waiting(container).0),
        }
    }

    fn waiting(&self, container: &Container) -> (&'static str, String) {
        let image = &container.plan.image;
        match &container.state {
            State::ImageBackOff { kind, message, told, .. } => match kind {
                ImageFailure::Unavailable => ("ContainerCreating", message.clone()),
                ImageFailure::NeverPull => ("ErrImageNeverPull", message.clone()),
                ImageFailure::InvalidName => ("InvalidImageName", message.clone()),
                ImageFailure::Pull if *told => (
                    "ImagePullBackOff",
                    format!("Back-off pulling image \"{image}\": ErrImagePull: {message}"),
                ),
                ImageFailure::Pull => ("ErrImagePull", message.clone()),
            },
            State::StartBackOff { kind, message, .. } => match kind {
                StartFailure::Config => ("CreateContainerConfigError", message.clone()),
                StartFailure::Unavailable => ("ContainerCreating", message.clone()),
                _ => ("CreateContainerError", message.clone()),
            },
            State::CrashBackOff { delay, .. } => {
                let plan = &self.plan;
                let text = format!(
                    "back-off {} restarting failed container={} pod={}_{}({})",
                    minutes(delay.as_secs()),
                    container.plan.name,
                    plan.name,
                    plan.namespace,
                    plan.uid
                );
                ("CrashLoopBackOff", text)
            }
            _ if !self.initialized && matches!(container.slot, super::Slot::Main(_)) => {
                ("PodInitializing", String::new())
            }
            State::Waiting if matches!(container.slot, super::Slot::Init(i) if i > 0) => {
                ("PodInitializing", String::new())
            }
            _ => ("ContainerCreating", String::new()),
        }
    }
}

/// On its way from one run to the next without a wait: it shows how the last one ended.
fn between_runs(container: &Container) -> bool {
    let under_way = match &container.state {
        State::Image | State::Starting => true,
        State::CrashBackOff { delay, .. } => delay.is_zero(),
        _ => false,
    };
    under_way && container.last.is_some()
}

fn terminated(termination: &Termination) -> ContainerStateTerminated {
    let id = &termination.id;
    ContainerStateTerminated {
        container_id: (!id.is_empty()).then(|| docker_id(id)),
        exit_code: termination.exit_code,
        reason: Some(termination.reason.clone()),
        message: (!termination.message.is_empty()).then(|| termination.message.clone()),
        started_at: termination.started_at.map(whole),
        finished_at: Some(whole(termination.finished_at)),
        signal: None,
    }
}

fn docker_id(id: &str) -> String {
    format!("docker://{id}")
}

fn image_id(id: &str) -> String {
    match id.strip_prefix("sha256:") {
        Some(_) => format!("docker://{id}"),
        None if id.is_empty() => String::new(),
        None => format!("docker-pullable://{id}"),
    }
}

/// `10s`, `1m20s`, `5m0s`: as Go prints durations.
fn minutes(seconds: i64) -> String {
    match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

/// Kubernetes' times have no fractions of a second.
fn whole(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}
