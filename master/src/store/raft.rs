//! The consensus' types: what a log entry carries, who a member is, and who waits for verdicts.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use openraft::{AnyError, StorageIOError};
use serde::{Deserialize, Serialize};
use timonier_master_core::op::Txn;
use tokio::sync::oneshot;

use super::blocking::AsyncFile;
use super::{CommitError, Committed};

pub(super) type NodeId = u64;
pub(super) type Entry = openraft::Entry<Types>;
pub(super) type LogId = openraft::LogId<NodeId>;
pub(super) type Vote = openraft::Vote<NodeId>;
pub(super) type Raft = openraft::Raft<Types>;
pub(super) type StorageError = openraft::StorageError<NodeId>;
pub(super) type Membership = openraft::StoredMembership<NodeId, MasterNode>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<NodeId, MasterNode>;

/// The id of the master that made the cluster.
pub(super) const FIRST_NODE_ID: NodeId = 1;

openraft::declare_raft_types!(
    pub(super) Types:
        D = Batch,
        R = (),
        NodeId = NodeId,
        Node = MasterNode,
        SnapshotData = AsyncFile,
);

/// A master as the members' list in the log has it. Logs of the first builds have an empty address
/// and nothing else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MasterNode {
    /// `HOST:PORT` where the others reach it.
    #[serde(rename = "addr", default)]
    pub address: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
}

/// The transactions of one log entry.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Batch {
    pub txns: Arc<[Txn]>,
    /// `txns` as the JSON array that the log stores; empty when not encoded yet.
    #[serde(skip)]
    pub encoded: Bytes,
    /// On the master that proposed the entry: who waits for its verdicts.
    #[serde(skip)]
    pub waiting: Option<Arc<Waiting>>,
}

impl PartialEq for Batch {
    fn eq(&self, other: &Self) -> bool {
        self.txns == other.txns
    }
}

pub(super) type Verdict = Result<Committed, CommitError>;

/// The callers of an entry's transactions, in order. They are answered by whoever comes first:
/// the state machine with the verdicts, or the batcher with the reason why there are none.
pub(super) struct Waiting(Mutex<Vec<oneshot::Sender<Verdict>>>);

impl Waiting {
    pub fn new(callers: Vec<oneshot::Sender<Verdict>>) -> Self {
        Self(Mutex::new(callers))
    }

    fn take(&self) -> Vec<oneshot::Sender<Verdict>> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn answer(&self, verdicts: Vec<Verdict>) {
        for (caller, verdict) in self.take().into_iter().zip(verdicts) {
            // A caller that gave up (deadline) needs no answer.
            let _ = caller.send(verdict);
        }
    }

    pub fn refuse(&self, error: &CommitError) {
        for caller in self.take() {
            let _ = caller.send(Err(error.clone()));
        }
    }
}

/// How a failed file operation is told to openraft, which stops the consensus then.
pub(super) fn storage_error(error: &(impl std::error::Error + 'static)) -> StorageError {
    StorageIOError::write(AnyError::new(error)).into()
}
