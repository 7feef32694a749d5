//! How one master's store reaches another's. What lies between is anyone's: gRPC in the product, a
//! simulated network in tests.

use std::fmt;

use futures::future::BoxFuture;
use timonier_proto::v1::{
    AppendReply, AppendRequest, ChangeMemberReply, ChangeMemberRequest, HandoverReply,
    HandoverRequest, InstallSnapshotReply, InstallSnapshotRequest, ProposeReply, ProposeRequest,
    ReadIndexReply, ReadIndexRequest, VoteReply, VoteRequest,
};

/// Whom to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub id: u64,
    /// As it is in the members' list.
    pub address: String,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "master {} at {}", self.id, self.address)
    }
}

/// Why there is no answer. Whether the request arrived is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TransportError(pub String);

pub type Sending<T> = BoxFuture<'static, Result<T, TransportError>>;

/// The way to the other masters. At the other end, [`super::Store::inbox`] takes the requests.
///
/// A future that is dropped may leave its request sent. Requests may be lost, delayed and doubled.
pub trait Transport: Send + Sync + 'static {
    fn append(&self, to: &Target, request: AppendRequest) -> Sending<AppendReply>;
    fn vote(&self, to: &Target, request: VoteRequest) -> Sending<VoteReply>;
    fn install(
        &self,
        to: &Target,
        request: InstallSnapshotRequest,
    ) -> Sending<InstallSnapshotReply>;
    fn propose(&self, to: &Target, request: ProposeRequest) -> Sending<ProposeReply>;
    fn read_index(&self, to: &Target, request: ReadIndexRequest) -> Sending<ReadIndexReply>;
    fn handover(&self, to: &Target, request: HandoverRequest) -> Sending<HandoverReply>;
    fn change(&self, to: &Target, request: ChangeMemberRequest) -> Sending<ChangeMemberReply>;
}

/// Of a master that has no others.
#[derive(Debug)]
pub struct NoTransport;

fn nobody<T>(to: &Target) -> Sending<T> {
    let error = TransportError(format!("reach {to}: this store was opened without a network"));
    Box::pin(async move { Err(error) })
}

impl Transport for NoTransport {
    fn append(&self, to: &Target, _: AppendRequest) -> Sending<AppendReply> {
        nobody(to)
    }

    fn vote(&self, to: &Target, _: VoteRequest) -> Sending<VoteReply> {
        nobody(to)
    }

    fn install(&self, to: &Target, _: InstallSnapshotRequest) -> Sending<InstallSnapshotReply> {
        nobody(to)
    }

    fn propose(&self, to: &Target, _: ProposeRequest) -> Sending<ProposeReply> {
        nobody(to)
    }

    fn read_index(&self, to: &Target, _: ReadIndexRequest) -> Sending<ReadIndexReply> {
        nobody(to)
    }

    fn handover(&self, to: &Target, _: HandoverRequest) -> Sending<HandoverReply> {
        nobody(to)
    }

    fn change(&self, to: &Target, _: ChangeMemberRequest) -> Sending<ChangeMemberReply> {
        nobody(to)
    }
}
