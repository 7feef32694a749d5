//! Writes as data: operations, the transactions they are grouped in, and why one is refused.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use timonier_proto::{Object, ObjectKey};

use crate::level::Level;

/// One write. Each is a whole decision: applying it needs no clock and no randomness, so every
/// master that applies the log comes to the same state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Op {
    /// The object must not exist. uid and creationTimestamp are set by the proposer; the
    /// resourceVersion (the revision of the change) and generation 1 are set when applied.
    Create(Object),
    /// Metadata and spec; the stored status stays, and so do uid, creation and deletion times and a
    /// pod's node. `metadata.generation` grows when the spec changed. A non-empty resourceVersion or
    /// uid in the object must match. What equals the stored object changes nothing.
    Replace(Object),
    /// Only the status; the stored metadata and spec stay, and so does a pod's PodScheduled
    /// condition if the new status has none. A non-empty uid must match.
    ReplaceStatus(Object),
    /// Sets `spec.nodeName` of a pod that has none, and its PodScheduled condition.
    Bind { pod: ObjectKey, uid: String, node: String, at: Timestamp },
    /// Asks for the object to end: sets deletionTimestamp (as in Kubernetes, `at` plus the grace
    /// period: when it should be gone) and the grace period, once. Whoever owns
    /// what the object stands for (agent, namespace reconciler) removes it when it is gone.
    MarkDeleted { key: ObjectKey, uid: Option<String>, at: Timestamp, grace_seconds: i64 },
    /// Takes the object out of the store.
    Remove { key: ObjectKey, uid: Option<String> },
    /// Creates the event, or counts it again when one with the same name exists: count and
    /// lastTimestamp grow, the message is the newer one.
    RecordEvent(Object),
}

impl Op {
    pub fn key(&self) -> ObjectKey {
        match self {
            Op::Create(o) | Op::Replace(o) | Op::ReplaceStatus(o) | Op::RecordEvent(o) => o.key(),
            Op::Bind { pod, .. } => pod.clone(),
            Op::MarkDeleted { key, .. } | Op::Remove { key, .. } => key.clone(),
        }
    }
}

/// What must hold for a transaction to be applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Precondition {
    Exists(ObjectKey),
    Absent(ObjectKey),
    /// Unchanged since it was read.
    Revision(ObjectKey, u64),
    Uid(ObjectKey, String),
    /// Nothing but this object has it: several masters give such things away at the same time.
    Free {
        what: Claimed,
        by: ObjectKey,
    },
    /// Whoever reads this knows the level: builds of the first one do not read it, where they would
    /// pass over a mark.
    Knows(Level),
}

/// What only one object may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Claimed {
    /// A service's `clusterIP`.
    ServiceAddress(String),
    /// A service's `nodePort`.
    NodePort(u16),
    /// A node's `podCIDR`.
    PodRange(String),
}

impl std::fmt::Display for Claimed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ServiceAddress(address) => write!(f, "service address {address}"),
            Self::NodePort(port) => write!(f, "node port {port}"),
            Self::PodRange(range) => write!(f, "pod range {range}"),
        }
    }
}

/// What masters tell each other through the log, beside the operations of callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mark {
    /// All masters know this level.
    Level(Level),
    /// So many milliseconds have passed since the mark before, or since this leader was elected.
    Elapsed(u64),
}

/// All operations or none. With an `id`, a repeated proposal is answered and not applied again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Txn {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub ops: Vec<Op>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preconditions: Vec<Precondition>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<Mark>,
}

impl Txn {
    pub fn of(ops: Vec<Op>) -> Self {
        Self { ops, ..Self::default() }
    }

    pub fn marking(mark: Mark) -> Self {
        let preconditions = match mark {
            Mark::Level(level) => vec![Precondition::Knows(level)],
            Mark::Elapsed(_) => Vec::new(),
        };
        Self { preconditions, mark: Some(mark), ..Self::default() }
    }
}

/// Why a transaction was refused; nothing of it was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    #[error("{0} not found")]
    NotFound(ObjectKey),
    #[error("{0} already exists")]
    AlreadyExists(ObjectKey),
    #[error("{key} was changed meanwhile (revision {found}, expected {expected})")]
    Conflict { key: ObjectKey, expected: u64, found: u64 },
    #[error("{0} is another incarnation by now (its uid differs)")]
    OtherUid(ObjectKey),
    #[error("{key} is already bound to node {node}")]
    AlreadyBound { key: ObjectKey, node: String },
    #[error("{} {:?} is forbidden: {why}", key.kind.info().plural, key.name)]
    OverQuota { key: ObjectKey, why: String },
    #[error("{what} was given to {by} meanwhile")]
    Taken { what: String, by: ObjectKey },
    #[error("{key}: {why}")]
    Invalid { key: ObjectKey, why: String },
}

/// One object's change, as watchers and the driver see it. Every change has a revision of its own,
/// and they have no gaps.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub revision: u64,
    pub key: ObjectKey,
    pub before: Option<Object>,
    pub after: Option<Object>,
}
