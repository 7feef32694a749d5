//! What other masters ask of this one's store. Whoever carries the requests (gRPC, a simulated
//! network) has made sure that they come from a master.

use openraft::SnapshotMeta;
use openraft::error::{Fatal, InstallSnapshotError, RaftError};
use timonier_master_core::op::Txn;
use timonier_proto::v1::propose_reply::Outcome;
use timonier_proto::v1::{
    AppendReply, AppendRequest, ChangeMemberReply, ChangeMemberRequest, HandoverReply,
    HandoverRequest, InstallSnapshotReply, InstallSnapshotRequest, NotLeader, PeerStatusReply,
    PeerStatusRequest, ProposeReply, ProposeRequest, RaftHeader, ReadIndexReply, ReadIndexRequest,
    VoteReply, VoteRequest,
};

use super::log::Promise;
use super::members::{Change, ChangeError};
use super::wire::{self, WireError};
use super::{CommitError, Store};

/// Why a request is not answered.
#[derive(Debug, thiserror::Error)]
pub enum InboxError {
    /// It is of another version, for another master or of another cluster.
    #[error("{0}")]
    Foreign(String),
    #[error("read the message: {0}")]
    Garbled(#[from] WireError),
    /// For the time being, or for good.
    #[error("{0}")]
    Unavailable(String),
}

/// Takes other masters' requests. Clones are the same.
#[derive(Debug, Clone)]
pub struct Inbox {
    store: Store,
}

impl Store {
    /// Where what other masters ask goes.
    pub fn inbox(&self) -> Inbox {
        Inbox { store: self.clone() }
    }
}

fn stopped(fatal: &Fatal<u64>) -> InboxError {
    InboxError::Unavailable(format!("the consensus of this master has stopped: {fatal}"))
}

fn fatal<E>(error: RaftError<u64, E>) -> Result<E, InboxError> {
    match error {
        RaftError::APIError(error) => Ok(error),
        RaftError::Fatal(error) => Err(stopped(&error)),
    }
}

impl Inbox {
    fn check(&self, header: Option<&RaftHeader>) -> Result<(), InboxError> {
        let shared = &self.store.shared;
        let header = header.ok_or(WireError::Missing("header"))?;
        if !wire::VERSIONS.contains(&header.version) {
            return Err(InboxError::Foreign(format!(
                "a message of version {} came from master {}, but this build speaks version {}; \
                 hint: upgrade the masters one version at a time",
                header.version,
                header.from,
                wire::VERSION
            )));
        }
        if header.cluster_id != shared.machine.cluster_id || header.to != shared.id {
            return Err(InboxError::Foreign(format!(
                "this is master {} of cluster {}, not master {} of cluster {}",
                shared.id, shared.machine.cluster_id, header.to, header.cluster_id
            )));
        }
        Ok(())
    }

    pub async fn append(&self, request: AppendRequest) -> Result<AppendReply, InboxError> {
        self.check(request.header.as_ref())?;
        let shared = &self.store.shared;
        let _promise = self.room_for(&request).await?;
        let reply = shared.raft.append_entries(wire::read_append(request)?).await;
        match reply {
            Ok(reply) => Ok(wire::append_reply(&reply, shared.level_max)),
            Err(RaftError::Fatal(error)) => Err(stopped(&error)),
            Err(RaftError::APIError(never)) => match never {},
        }
    }

    /// A disk that is full delays what is sent; the consensus itself would stop for it.
    async fn room_for(&self, request: &AppendRequest) -> Result<Option<Promise>, InboxError> {
        if request.entries.is_empty() {
            return Ok(None);
        }
        let shared = &self.store.shared;
        let bytes: usize = request.entries.iter().map(|e| e.payload.len() + ENTRY_BYTES).sum();
        // It may go into two files, and must not ask for more than one has.
        let bytes_max = usize::try_from(shared.txn_bytes_max * 2).unwrap_or(usize::MAX);
        let _one_at_a_time = shared.taking.lock().await;
        let promise = shared.space.promise(bytes.min(bytes_max)).await;
        promise.map(Some).map_err(InboxError::Unavailable)
    }

    pub async fn vote(&self, request: VoteRequest) -> Result<VoteReply, InboxError> {
        self.check(request.header.as_ref())?;
        let from = request.header.as_ref().map_or(0, |header| header.from);
        let is_member = self.store.members().iter().any(|member| member.id == from);
        if !is_member && !self.store.members().is_empty() {
            tracing::warn!(master = from, "it stands for election, but is no member any more");
            return Err(InboxError::Foreign(format!("master {from} is no member of this cluster")));
        }
        let request = wire::read_vote_request(request)?;
        let last = request.last_log_id;
        match self.store.shared.raft.vote(request).await {
            Ok(reply) => {
                if !reply.vote_granted && reply.last_log_id > last {
                    self.store.shared.urged.notify_one();
                }
                Ok(wire::vote_reply(&reply))
            }
            Err(RaftError::Fatal(error)) => Err(stopped(&error)),
            Err(RaftError::APIError(never)) => match never {},
        }
    }

    pub async fn install(
        &self,
        request: InstallSnapshotRequest,
    ) -> Result<InstallSnapshotReply, InboxError> {
        self.check(request.header.as_ref())?;
        let meta: SnapshotMeta<_, _> =
            serde_json::from_slice(&request.meta).map_err(|_| WireError::Missing("meta"))?;
        let vote = wire::read_vote(request.vote)?;
        let request = openraft::raft::InstallSnapshotRequest {
            vote,
            meta,
            offset: request.offset,
            data: request.data.into(),
            done: request.done,
        };
        match self.store.shared.raft.install_snapshot(request).await {
            Ok(reply) => Ok(InstallSnapshotReply {
                vote: Some(wire::vote(&reply.vote)),
                ..InstallSnapshotReply::default()
            }),
            Err(error) => {
                let InstallSnapshotError::SnapshotMismatch(mismatch) = fatal(error)?;
                Ok(InstallSnapshotReply {
                    vote: Some(wire::vote(&vote)),
                    mismatch: true,
                    expected_id: mismatch.expect.id,
                    expected_offset: mismatch.expect.offset,
                })
            }
        }
    }

    /// Of a master that does not lead.
    pub async fn propose(&self, request: ProposeRequest) -> Result<ProposeReply, InboxError> {
        self.check(request.header.as_ref())?;
        let txn: Txn =
            serde_json::from_slice(&request.txn).map_err(|_| WireError::Missing("transaction"))?;
        let outcome = if *self.store.shared.leader.borrow() {
            let timeout = self.store.shared.commit_timeout;
            let result = match self.store.check_size(&txn, request.txn.len()) {
                Ok(()) => {
                    let committing = self.store.commit_here(txn, request.txn);
                    tokio::time::timeout(timeout, committing)
                        .await
                        .map_err(|_| InboxError::Unavailable("it took too long".to_owned()))?
                }
                Err(error) => Err(error),
            };
            let encode = |error| InboxError::Unavailable(format!("encode the answer: {error}"));
            match result {
                Ok(committed) => {
                    Outcome::Committed(serde_json::to_vec(&committed).map_err(encode)?.into())
                }
                Err(CommitError::Rejected(rejection)) => {
                    Outcome::Rejected(serde_json::to_vec(&rejection).map_err(encode)?.into())
                }
                Err(CommitError::StorageFailure(why)) => Outcome::Failed(why),
                Err(CommitError::NotLeader { .. }) => Outcome::NotLeader(self.not_leader()),
                Err(
                    error @ (CommitError::Timeout(_)
                    | CommitError::NoLeader(_)
                    | CommitError::ShuttingDown),
                ) => {
                    return Err(InboxError::Unavailable(error.to_string()));
                }
            }
        } else {
            Outcome::NotLeader(self.not_leader())
        };
        let revision = match &outcome {
            Outcome::Committed(_) | Outcome::Rejected(_) => self.store.snapshot().revision,
            Outcome::Failed(_) | Outcome::NotLeader(_) => 0,
        };
        Ok(ProposeReply { outcome: Some(outcome), revision })
    }

    pub async fn read_index(
        &self,
        request: ReadIndexRequest,
    ) -> Result<ReadIndexReply, InboxError> {
        self.check(request.header.as_ref())?;
        match self.store.linearize_here().await {
            Ok(()) => {
                Ok(ReadIndexReply { not_leader: None, revision: self.store.snapshot().revision })
            }
            Err(CommitError::NotLeader { .. }) => {
                Ok(ReadIndexReply { not_leader: Some(self.not_leader()), revision: 0 })
            }
            Err(error) => Err(InboxError::Unavailable(error.to_string())),
        }
    }

    pub async fn handover(&self, request: HandoverRequest) -> Result<HandoverReply, InboxError> {
        self.check(request.header.as_ref())?;
        self.store.stand_for_election().await;
        Ok(HandoverReply {})
    }

    pub async fn change(
        &self,
        request: ChangeMemberRequest,
    ) -> Result<ChangeMemberReply, InboxError> {
        self.check(request.header.as_ref())?;
        let change = Change::read(&request).ok_or(WireError::Missing("action"))?;
        let reply = match self.store.change_here(&change).await {
            Ok(()) => ChangeMemberReply::default(),
            Err(ChangeError::NotLeader) => ChangeMemberReply {
                not_leader: Some(self.not_leader()),
                ..ChangeMemberReply::default()
            },
            Err(ChangeError::Refused(refused)) => {
                ChangeMemberReply { refused, ..ChangeMemberReply::default() }
            }
        };
        Ok(reply)
    }

    /// How this master is, by its own word.
    pub fn status(&self, request: &PeerStatusRequest) -> Result<PeerStatusReply, InboxError> {
        self.check(request.header.as_ref())?;
        Ok(self.store.own_status())
    }

    fn not_leader(&self) -> NotLeader {
        NotLeader { leader: self.store.leader().unwrap_or_default() }
    }
}

/// What an entry takes in the log beside its payload, at most, in bytes.
const ENTRY_BYTES: usize = 128;
