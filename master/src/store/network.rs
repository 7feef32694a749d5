//! The consensus' side of the network: what openraft sends to another master goes out through the
//! [`Transport`], and what came back last from whom is kept.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::SnapshotSegmentId;
use openraft::error::{
    InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, SnapshotMismatch,
    Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use timonier_proto::v1;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::raft::{LogId, MasterNode, NodeId, Types, Vote};
use super::transport::{Target, Transport, TransportError};
use super::wire::{self, WireError};

/// Entries that travel together take at most this, unless one alone is larger.
const APPEND_BYTES_MAX: usize = 1 << 20;
/// One that is not answered for so long is sent again.
const APPEND_DEADLINE: Duration = Duration::from_secs(5);
/// A master that was not reached is tried again after this time.
const RETRY_MS: u64 = 100;

/// What all connections share.
pub struct Links {
    pub id: NodeId,
    pub cluster_id: String,
    pub transport: Arc<dyn Transport>,
    heard: Mutex<BTreeMap<NodeId, Heard>>,
}

/// What a master answered last.
#[derive(Debug, Clone, Copy)]
struct Heard {
    at: Instant,
    /// The highest level that its build knows.
    level: u32,
}

impl Links {
    pub fn new(id: NodeId, cluster_id: String, transport: Arc<dyn Transport>) -> Self {
        Self { id, cluster_id, transport, heard: Mutex::default() }
    }

    pub fn header(&self, to: NodeId) -> v1::RaftHeader {
        wire::header(&self.cluster_id, self.id, to)
    }

    fn heard(&self) -> MutexGuard<'_, BTreeMap<NodeId, Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Without a level, it is the one of its answer before.
    fn hear(&self, id: NodeId, level: Option<u32>) {
        let mut heard = self.heard();
        let level = level.or_else(|| Some(heard.get(&id)?.level)).unwrap_or_default();
        heard.insert(id, Heard { at: Instant::now(), level });
    }

    /// How long ago that master last answered this one, when it led.
    pub fn silence(&self, id: NodeId) -> Option<Duration> {
        self.heard().get(&id).map(|heard| heard.at.elapsed())
    }

    /// The highest level that this master's build knows, if it answered within `lately`.
    pub fn level(&self, id: NodeId, lately: Duration) -> Option<u32> {
        let heard = self.heard();
        heard.get(&id).filter(|heard| heard.at.elapsed() < lately).map(|heard| heard.level)
    }
}

/// Makes the connections to other masters.
pub struct Network(pub Arc<Links>);

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: NodeId, node: &MasterNode) -> Peer {
        let target = Target { id: target, address: node.address.clone() };
        Peer { links: self.0.clone(), target, pending: None }
    }
}

/// Which append this is: of two that are alike in this, one answer is the other's.
type Mark = (Vote, Option<LogId>, Option<LogId>);
type Appended = Result<v1::AppendReply, TransportError>;

/// To one other master.
pub struct Peer {
    links: Arc<Links>,
    target: Target,
    /// Openraft gives an append up after one heartbeat and sends it again. Many bytes on a slow
    /// line would never arrive like this: the one under way is waited for instead.
    pending: Option<(Mark, Option<LogId>, JoinHandle<Appended>)>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some((_, _, sending)) = self.pending.take() {
            sending.abort();
        }
    }
}

fn unreachable<E: std::error::Error>(
    error: &(impl std::error::Error + 'static),
) -> RPCError<NodeId, MasterNode, E> {
    RPCError::Unreachable(Unreachable::new(error))
}

fn garbled<E: std::error::Error>(error: &WireError) -> RPCError<NodeId, MasterNode, E> {
    RPCError::Network(NetworkError::new(error))
}

impl Peer {
    fn send(&mut self, request: &AppendEntriesRequest<Types>) -> Result<(), WireError> {
        let last = request.entries.last().map(|entry| entry.log_id);
        let mark = (request.vote, request.prev_log_id, last);
        if let Some((under_way, _, sending)) = &self.pending {
            if *under_way == mark && last.is_some() {
                return Ok(());
            }
            sending.abort();
        }
        let header = self.links.header(self.target.id);
        let (message, partial) = wire::append(header, request, APPEND_BYTES_MAX)?;
        let sending = self.links.transport.append(&self.target, message);
        let sending = tokio::spawn(async move {
            tokio::time::timeout(APPEND_DEADLINE, sending)
                .await
                .unwrap_or_else(|_| Err(TransportError("the append was not answered".to_owned())))
        });
        self.pending = Some((mark, partial, sending));
        Ok(())
    }
}

impl RaftNetwork<Types> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, RPCError<NodeId, MasterNode, RaftError<NodeId>>>
    {
        self.send(&request).map_err(|error| garbled(&error))?;
        let Some((_, partial, sending)) = &mut self.pending else {
            return Err(unreachable(&io::Error::other("nothing was sent")));
        };
        let (partial, answer) = (*partial, sending.await);
        self.pending = None;
        let reply = answer
            .unwrap_or_else(|error| Err(TransportError(error.to_string())))
            .map_err(|error| unreachable(&error))?;
        self.links.hear(self.target.id, Some(reply.level));
        let reply = wire::read_append_reply(reply).map_err(|error| garbled(&error))?;
        Ok(match (reply, partial) {
            (AppendEntriesResponse::Success, Some(last)) => {
                AppendEntriesResponse::PartialSuccess(Some(last))
            }
            (reply, _) => reply,
        })
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<Types>,
        _: RPCOption,
    ) -> Result<
        InstallSnapshotResponse<NodeId>,
        RPCError<NodeId, MasterNode, RaftError<NodeId, InstallSnapshotError>>,
    > {
        let meta = serde_json::to_vec(&request.meta)
            .map_err(|error| unreachable(&io::Error::other(error)))?;
        let got =
            SnapshotSegmentId { id: request.meta.snapshot_id.clone(), offset: request.offset };
        let message = v1::InstallSnapshotRequest {
            header: Some(self.links.header(self.target.id)),
            vote: Some(wire::vote(&request.vote)),
            meta: meta.into(),
            offset: request.offset,
            data: request.data.into(),
            done: request.done,
        };
        let sending = self.links.transport.install(&self.target, message);
        let reply = sending.await.map_err(|error| unreachable(&error))?;
        self.links.hear(self.target.id, None);
        if reply.mismatch {
            let expect = SnapshotSegmentId { id: reply.expected_id, offset: reply.expected_offset };
            let error = InstallSnapshotError::from(SnapshotMismatch { expect, got });
            let error = RemoteError::new(self.target.id, RaftError::APIError(error));
            return Err(RPCError::RemoteError(error));
        }
        let vote = wire::read_vote(reply.vote).map_err(|error| garbled(&error))?;
        Ok(InstallSnapshotResponse { vote })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<NodeId>,
        _: RPCOption,
    ) -> Result<VoteResponse<NodeId>, RPCError<NodeId, MasterNode, RaftError<NodeId>>> {
        let message = wire::vote_request(self.links.header(self.target.id), &request);
        let sending = self.links.transport.vote(&self.target, message);
        let reply = sending.await.map_err(|error| unreachable(&error))?;
        wire::read_vote_reply(reply).map_err(|error| garbled(&error))
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(Duration::from_millis(RETRY_MS)))
    }
}
