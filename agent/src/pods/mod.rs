//! The pods of this node: makes what runs match what is assigned, and tells how it is.
//!
//! What to do is decided in `timonier_agent_core::pod`; here it is done, one task a pod, with
//! the runtime, the network, volumes and probes. The containers' labels are the only database: an
//! agent that starts takes over what runs, and one that stops leaves it running. It talks to no
//! master: assignments come in and statuses go out through [`Pods`] and [`StatusBoard`].

mod adoption;
mod board;
mod clock;
mod engine;
mod env;
mod images;
mod leftovers;
mod network;
mod ops;
mod shared;
mod spec;
mod supervisor;
#[cfg(test)]
pub(crate) mod tests;
mod worker;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;
use timonier_agent_core::net::HostPortPlan;
use timonier_proto::compiled::CompiledPod;
use timonier_proto::v1::AgentEvent;
use tokio::sync::{mpsc, oneshot, watch};

pub use board::{Batch, StatusBoard};
pub use clock::SteadyClock;
pub use leftovers::cleanup;
pub use network::{NetAnswer, PodNetwork};

use crate::lease::Lease;
use crate::net::{NetError, install_init};
use crate::runtime::{Runtime, RuntimeError};
use clock::Clock;
pub(crate) use env::{NodeFacts, downward};
use shared::{Setup, Shared};
use supervisor::{Command, Supervisor};

/// Containers created and started at a time; 4 to 8 is fastest on 2 cores.
pub const CONCURRENT_STARTS_DEFAULT: usize = 6;
/// Events not yet taken; more are dropped.
const EVENTS_MAX: usize = 1024;
/// Commands to the supervisor; more make the sender wait.
const COMMANDS_MAX: usize = 256;

#[derive(Debug, Clone)]
pub struct PodsConfig {
    pub node: String,
    /// The host's address: `status.hostIP`.
    pub host_ip: String,
    /// Holds the pods' volumes and files, and the init.
    pub data_dir: PathBuf,
    /// Containers created and started at a time; see [`CONCURRENT_STARTS_DEFAULT`].
    pub concurrent_starts: usize,
    /// Under which unique pods may run.
    pub lease: Lease,
}

/// What a master assigned, as decoded from `Assignments`.
#[derive(Debug, Clone, Default)]
pub struct AssignmentSet {
    /// `pods` are all pods of this node: whatever else runs is to be stopped.
    pub complete: bool,
    /// New or changed.
    pub pods: Vec<CompiledPod>,
    /// Uids of pods whose object is gone: stop and forget them.
    pub removed: Vec<String>,
}

/// A pod of which at least one container (its sandbox included) runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningPod {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// `None` for pods in the host's network.
    pub ip: Option<Ipv4Addr>,
    /// Main and init containers that run, without the sandbox.
    pub containers: Vec<RunningContainer>,
    /// All ready, and not being deleted.
    pub ready: bool,
    pub terminating: bool,
    pub host_ports: Vec<HostPortPlan>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningContainer {
    pub name: String,
    pub id: String,
    /// 0 where it is not known yet.
    pub pid: u32,
}

/// What is known of a pod's containers, for logs and exec.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodView {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub ip: Option<Ipv4Addr>,
    /// In the order of the spec, init containers first.
    pub containers: Vec<ContainerView>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerView {
    pub name: String,
    pub init: bool,
    pub tty: bool,
    /// The latest attempt's container, running or dead; `None` before the first.
    pub id: Option<String>,
    pub running: bool,
    /// The attempt before, for `logs --previous`.
    pub previous_id: Option<String>,
    /// Why it is not running: `ContainerCreating`, `CrashLoopBackOff`, …
    pub waiting_reason: Option<String>,
}

/// Why the node can take no pods now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotReady {
    pub reason: String,
    pub message: String,
}

/// Why the pods cannot be started at all.
#[derive(Debug, Error)]
pub enum PodsError {
    #[error("cannot make {path} for the pods: {source}")]
    DataDir { path: String, source: std::io::Error },
    #[error("cannot install the init of containers: {0}")]
    Init(#[source] NetError),
}

/// The pods of this node. Clones are the same pods.
#[derive(Clone)]
pub struct Pods {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

impl Pods {
    /// Begins to follow the engine, which need not be up yet. Pods that run are kept; those of
    /// them that no COMPLETE assignment names are stopped when the first has come. The receiver
    /// gets the pods' events.
    pub async fn start(
        config: PodsConfig,
        runtime: Arc<dyn Runtime>,
        network: Arc<dyn PodNetwork>,
    ) -> Result<(Self, Arc<StatusBoard>, mpsc::Receiver<AgentEvent>), PodsError> {
        Self::start_with(config, runtime, network, Clock::Host(Arc::default())).await
    }

    async fn start_with(
        config: PodsConfig,
        runtime: Arc<dyn Runtime>,
        network: Arc<dyn PodNetwork>,
        clock: Clock,
    ) -> Result<(Self, Arc<StatusBoard>, mpsc::Receiver<AgentEvent>), PodsError> {
        let data_dir = std::path::absolute(&config.data_dir)
            .map_err(|source| PodsError::DataDir { path: shown(&config.data_dir), source })?;
        let config = PodsConfig { data_dir, ..config };
        let dir = config.data_dir.join("pods");
        std::fs::create_dir_all(&dir)
            .map_err(|source| PodsError::DataDir { path: shown(&dir), source })?;
        let init = install_init(&config.data_dir).map_err(PodsError::Init)?;
        let (events, taken) = mpsc::channel(EVENTS_MAX);
        let facts = NodeFacts::of_host(&config);
        let setup = Setup { config, runtime, network, init, facts, clock, events };
        let shared = Arc::new(Shared::new(setup));
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        tokio::spawn(Supervisor::new(shared.clone()).run(inbox));
        tokio::spawn(engine::follow(shared.clone(), commands.clone()));
        let board = shared.board.clone();
        Ok((Self { shared, commands }, board, taken))
    }

    /// Takes over what is to run; returns when all tasks know of it.
    pub async fn assign(&self, set: AssignmentSet) {
        let (done, taken) = oneshot::channel();
        if self.commands.send(Command::Assign(set, done)).await.is_ok() {
            // An error means that the agent stops.
            let _ = taken.await;
        }
    }

    /// The pods of which something runs, by uid.
    pub fn running(&self) -> Vec<RunningPod> {
        self.shared.read(|all| all.values().filter_map(|one| one.running.clone()).collect())
    }

    /// How many pods of this node have a container that runs, by what the engine says: those too
    /// that an agent which has just started has not taken over yet.
    pub async fn count_in_engine(&self) -> Result<usize, RuntimeError> {
        let list = self.shared.runtime.list(&self.shared.config.node).await?;
        let running = list.iter().filter(|one| one.running);
        Ok(running.map(|one| &one.labels.pod_uid).collect::<BTreeSet<_>>().len())
    }

    /// How many there are, running or not.
    pub fn count(&self) -> usize {
        self.shared.read(|all| all.len())
    }

    /// One pod, running or not.
    pub fn find(&self, uid: &str) -> Option<PodView> {
        self.shared.read(|all| all.get(uid).map(|one| one.view.clone()))
    }

    pub fn find_by_name(&self, namespace: &str, name: &str) -> Option<PodView> {
        let is = |view: &PodView| view.namespace == namespace && view.name == name;
        self.shared.read(|all| all.values().map(|one| &one.view).find(|view| is(view)).cloned())
    }

    /// Changes whenever [`Self::running`] or [`Self::find`] may answer differently.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes()
    }

    /// Why the node can take no pods now; none when it can.
    pub fn not_ready(&self) -> watch::Receiver<Option<NotReady>> {
        self.shared.not_ready.subscribe()
    }

    /// Ends the tasks and leaves the pods running.
    pub async fn shutdown(&self) {
        let (done, stopped) = oneshot::channel();
        if self.commands.send(Command::Stop(done)).await.is_ok() {
            let _ = stopped.await;
        }
    }
}

fn shown(path: &std::path::Path) -> String {
    path.display().to_string()
}
