//! The consensus' messages as they travel, and back. What a record of the log holds travels as it
//! is stored; nothing is encoded again.

use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use openraft::{CommittedLeaderId, LeaderId};
use timonier_master_core::level::Level;
use timonier_proto::v1::append_reply::Result as Outcome;
use timonier_proto::v1::{
    AppendReply, AppendRequest, RaftEntry, RaftHeader, RaftLogId, RaftVote, VoteReply, VoteRequest,
};

use super::log::{Kind, decode_entry, encode_payload};
use super::raft::{Entry, LogId, NodeId, Types, Vote};

/// Of the messages that this build sends. What the log's entries and snapshots mean is bound to the
/// cluster's [`timonier_master_core::level::Level`] instead.
pub const VERSION: u32 = 1;
/// Those that it takes. Masters are upgraded one by one, so a build that sends a newer version than
/// the one before it takes that one's too, and those before it must have learned to take its.
pub const VERSIONS: std::ops::RangeInclusive<u32> = 1..=VERSION;

/// What arrived cannot be what was sent.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("the message lacks its {0}")]
    Missing(&'static str),
    #[error("entry {index}: {why}")]
    Entry { index: u64, why: String },
}

pub fn header(cluster_id: &str, from: NodeId, to: NodeId) -> RaftHeader {
    RaftHeader { version: VERSION, cluster_id: cluster_id.to_owned(), from, to }
}

pub fn vote(vote: &Vote) -> RaftVote {
    let LeaderId { term, node_id } = vote.leader_id;
    RaftVote { term, node: node_id, committed: vote.committed }
}

pub fn read_vote(vote: Option<RaftVote>) -> Result<Vote, WireError> {
    let RaftVote { term, node, committed } = vote.ok_or(WireError::Missing("vote"))?;
    let vote = Vote { leader_id: LeaderId::new(term, node), committed };
    Ok(vote)
}

pub fn log_id(id: LogId) -> RaftLogId {
    RaftLogId { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

pub fn read_log_id(id: RaftLogId) -> LogId {
    LogId::new(CommittedLeaderId::new(id.term, id.node), id.index)
}

fn entry(entry: &Entry) -> Result<RaftEntry, WireError> {
    let (kind, payload) = encode_payload(entry)
        .map_err(|error| WireError::Entry { index: entry.log_id.index, why: error.to_string() })?;
    Ok(RaftEntry { id: Some(log_id(entry.log_id)), kind: kind as u32, payload })
}

fn read_entry(entry: RaftEntry) -> Result<Entry, WireError> {
    let id = read_log_id(entry.id.ok_or(WireError::Missing("entry's id"))?);
    let bad = |why: String| WireError::Entry { index: id.index, why };
    let kind = match entry.kind {
        1 => Kind::Blank,
        2 => Kind::Transactions,
        3 => Kind::Membership,
        other => return Err(bad(format!("kind {other} is of a newer master"))),
    };
    decode_entry(id, kind, entry.payload.into()).map_err(|error| bad(error.to_string()))
}

/// As many entries as fit in `bytes_max`, at least one; answers the last one's id if that is not
/// all of them.
pub fn append(
    header: RaftHeader,
    request: &AppendEntriesRequest<Types>,
    bytes_max: usize,
) -> Result<(AppendRequest, Option<LogId>), WireError> {
    let mut entries = Vec::new();
    let mut bytes = 0;
    let mut partial = None;
    for one in &request.entries {
        let encoded = entry(one)?;
        bytes += encoded.payload.len();
        if bytes > bytes_max && !entries.is_empty() {
            break;
        }
        entries.push(encoded);
        partial = Some(one.log_id);
    }
    let partial = partial.filter(|_| entries.len() < request.entries.len());
    let message = AppendRequest {
        header: Some(header),
        vote: Some(vote(&request.vote)),
        previous: request.prev_log_id.map(log_id),
        entries,
        committed: request.leader_commit.map(log_id),
    };
    Ok((message, partial))
}

pub fn read_append(message: AppendRequest) -> Result<AppendEntriesRequest<Types>, WireError> {
    Ok(AppendEntriesRequest {
        vote: read_vote(message.vote)?,
        prev_log_id: message.previous.map(read_log_id),
        entries: message.entries.into_iter().map(read_entry).collect::<Result<_, _>>()?,
        leader_commit: message.committed.map(read_log_id),
    })
}

pub fn append_reply(reply: &AppendEntriesResponse<NodeId>, level_max: Level) -> AppendReply {
    let (result, higher, matched) = match reply {
        AppendEntriesResponse::Success => (Outcome::Success, None, None),
        AppendEntriesResponse::PartialSuccess(matched) => (Outcome::Partial, None, *matched),
        AppendEntriesResponse::Conflict => (Outcome::Conflict, None, None),
        AppendEntriesResponse::HigherVote(higher) => (Outcome::HigherVote, Some(higher), None),
    };
    AppendReply {
        result: result.into(),
        vote: higher.map(vote),
        matched: matched.map(log_id),
        level: level_max.into(),
    }
}

pub fn read_append_reply(reply: AppendReply) -> Result<AppendEntriesResponse<NodeId>, WireError> {
    Ok(match reply.result() {
        Outcome::Unspecified => return Err(WireError::Missing("result")),
        Outcome::Success => AppendEntriesResponse::Success,
        Outcome::Partial => AppendEntriesResponse::PartialSuccess(reply.matched.map(read_log_id)),
        Outcome::Conflict => AppendEntriesResponse::Conflict,
        Outcome::HigherVote => AppendEntriesResponse::HigherVote(read_vote(reply.vote)?),
    })
}

type RaftVoteRequest = openraft::raft::VoteRequest<NodeId>;
type RaftVoteResponse = openraft::raft::VoteResponse<NodeId>;

pub fn vote_request(header: RaftHeader, request: &RaftVoteRequest) -> VoteRequest {
    VoteRequest {
        header: Some(header),
        vote: Some(vote(&request.vote)),
        last: request.last_log_id.map(log_id),
    }
}

pub fn read_vote_request(message: VoteRequest) -> Result<RaftVoteRequest, WireError> {
    Ok(RaftVoteRequest {
        vote: read_vote(message.vote)?,
        last_log_id: message.last.map(read_log_id),
    })
}

pub fn vote_reply(reply: &RaftVoteResponse) -> VoteReply {
    VoteReply {
        vote: Some(vote(&reply.vote)),
        granted: reply.vote_granted,
        last: reply.last_log_id.map(log_id),
    }
}

pub fn read_vote_reply(reply: VoteReply) -> Result<RaftVoteResponse, WireError> {
    Ok(RaftVoteResponse {
        vote: read_vote(reply.vote)?,
        vote_granted: reply.granted,
        last_log_id: reply.last.map(read_log_id),
    })
}
