//! [`World`]: all that a reconciler may know. The state, the time, and what the agents last said.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use timonier_proto::ObjectKey;
use timonier_proto::v1::HostUsage;

use crate::op::{Op, Precondition};
use crate::snapshot::Snapshot;

/// The immutable input of every decision, its clock included.
#[derive(Debug, Clone)]
pub struct World {
    pub snapshot: Snapshot,
    pub now: Timestamp,
    pub telemetry: Arc<Telemetry>,
    pub settings: Settings,
    /// Fresh for each activation: all randomness a decision may use.
    pub seed: u64,
}

/// Cluster-wide settings, fixed when a master starts.
#[derive(Debug, Clone)]
pub struct Settings {
    /// e.g. `10.244.0.0/16`.
    pub cluster_range: String,
    /// e.g. `10.96.0.0/16`.
    pub service_range: String,
    /// A node that has not been heard of for this long is NotReady.
    pub node_grace_ms: i64,
    /// Pods of a node that has been NotReady for this long are replaced elsewhere.
    pub eviction_after_ms: i64,
    /// An agent that has had no lease for so long stops the pods that must be unique.
    pub fence_after_ms: i64,
}

/// Soft state out of the agents' sessions: never in the log, lost with the master.
#[derive(Debug, Clone, Default)]
pub struct Telemetry {
    /// When this master began to listen, or to lead, or its clock was set: nothing can be called lost
    /// before a grace after it, and times in the state from before are of another clock.
    pub since: Timestamp,
    pub nodes: HashMap<String, NodeSignal>,
    /// By LatencyAutoscaler (namespace/name): each pod's samples of the last seconds.
    pub latency: HashMap<ObjectKey, BTreeMap<String, Vec<LatencySample>>>,
}

#[derive(Debug, Clone)]
pub struct NodeSignal {
    pub last_beat: Timestamp,
    pub connected: bool,
    pub host: HostUsage,
    /// Why the node cannot run pods, as its agent says; `None` when it can.
    pub not_ready: Option<(String, String)>,
    /// The master that has the agent's session has said nothing since; `None` while it is there, or
    /// when this master has the session.
    pub master_away_since: Option<Timestamp>,
    /// When its agent began the session that it has now; `None` once it has said a beat in it.
    pub greeted_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LatencySample {
    pub at: Timestamp,
    pub latency_us: u32,
    pub failed: bool,
}

/// What a reconciler answers. Empty means: as it should be.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// Applied as one transaction.
    pub ops: Vec<Op>,
    pub preconditions: Vec<Precondition>,
    /// Look at this key again at that time, whatever happens.
    pub again_at: Option<Timestamp>,
}
