//! The consensus' types: what a log entry carries, and the network between masters.
//!
//! One master votes for now. The factory below is the one place that learns to reach others.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use openraft::error::{InstallSnapshotError, RPCError, RaftError, Unreachable};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AnyError, BasicNode, StorageIOError};
use serde::{Deserialize, Serialize};
use timonier_master_core::op::Txn;
use tokio::sync::oneshot;

use super::{CommitError, Committed};

pub(super) type NodeId = u64;
pub(super) type Entry = openraft::Entry<Types>;
pub(super) type LogId = openraft::LogId<NodeId>;
pub(super) type Vote = openraft::Vote<NodeId>;
pub(super) type Raft = openraft::Raft<Types>;
pub(super) type StorageError = openraft::StorageError<NodeId>;
pub(super) type Membership = openraft::StoredMembership<NodeId, BasicNode>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<NodeId, BasicNode>;

/// This master's id until several masters can join.
pub(super) const FIRST_NODE_ID: NodeId = 1;

openraft::declare_raft_types!(
    pub(super) Types:
        D = Batch,
        R = (),
        NodeId = NodeId,
        Node = BasicNode,
        SnapshotData = tokio::fs::File,
);

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

/// Makes the connections to other masters.
pub(super) struct Network;

/// To one other master.
pub(super) struct Peer(NodeId);

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: NodeId, _node: &BasicNode) -> Peer {
        Peer(target)
    }
}

impl Peer {
    fn unreachable(&self) -> Unreachable {
        let text = format!("reach master {}: this build runs a single master", self.0);
        Unreachable::new(&io::Error::new(io::ErrorKind::Unsupported, text))
    }
}

impl RaftNetwork<Types> for Peer {
    async fn append_entries(
        &mut self,
        _: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, RPCError<NodeId, BasicNode, RaftError<NodeId>>> {
        Err(self.unreachable().into())
    }

    async fn install_snapshot(
        &mut self,
        _: InstallSnapshotRequest<Types>,
        _: RPCOption,
    ) -> Result<
        InstallSnapshotResponse<NodeId>,
        RPCError<NodeId, BasicNode, RaftError<NodeId, InstallSnapshotError>>,
    > {
        Err(self.unreachable().into())
    }

    async fn vote(
        &mut self,
        _: VoteRequest<NodeId>,
        _: RPCOption,
    ) -> Result<VoteResponse<NodeId>, RPCError<NodeId, BasicNode, RaftError<NodeId>>> {
        Err(self.unreachable().into())
    }
}
