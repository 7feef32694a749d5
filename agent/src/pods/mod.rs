//! The pods of this node: makes what runs match what is assigned, and tells how it is.
//!
//! What to do is decided in `timonier_agent_core::pod`; here it is done, one task a pod, with
//! the runtime, the network, volumes and probes. The containers' labels are the only database: an
//! agent that starts takes over what runs, and one that stops leaves it running. It talks to no
//! master: assignments come in and statuses go out through [`Pods`] and [`StatusBoard`].

mod board;
mod network;

use std::net::Ipv4Addr;
use std::path::PathBuf;

use timonier_agent_core::net::HostPortPlan;
use timonier_proto::compiled::CompiledPod;

pub use board::{Batch, StatusBoard};
pub use network::PodNetwork;

/// Containers created and started at a time; 4 to 8 is fastest on 2 cores.
pub const CONCURRENT_STARTS_DEFAULT: usize = 6;

#[derive(Debug, Clone)]
pub struct PodsConfig {
    pub node: String,
    /// The host's address: `status.hostIP`.
    pub host_ip: String,
    /// Holds the pods' volumes and files, and the init.
    pub data_dir: PathBuf,
    /// Containers created and started at a time; see [`CONCURRENT_STARTS_DEFAULT`].
    pub concurrent_starts: usize,
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
