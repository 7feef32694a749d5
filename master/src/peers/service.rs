//! The door that other masters come through: the gRPC service Raft.

use timonier_identity::{JoinRole, JoinToken};
use timonier_proto::MESSAGE_BYTES_MAX;
use timonier_proto::v1::raft_server::{Raft, RaftServer};
use timonier_proto::v1::{
    AppendReply, AppendRequest, ChangeMemberReply, ChangeMemberRequest, HandoverReply,
    HandoverRequest, InstallSnapshotReply, InstallSnapshotRequest, JoinMasterReply,
    JoinMasterRequest, PeerStatusReply, PeerStatusRequest, ProposeReply, ProposeRequest,
    ReadIndexReply, ReadIndexRequest, VoteReply, VoteRequest,
};
use tonic::{Request, Response, Status};

use super::reply;
use crate::pki;
use crate::store::{ChangeError, Inbox, InboxError, Store, WIRE_VERSION, WIRE_VERSIONS};

/// The service. Clones are the same.
#[derive(Debug, Clone)]
pub struct RaftService {
    store: Store,
    inbox: Inbox,
}

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(result: Result<T, InboxError>) -> Answer<T> {
    result.map(Response::new).map_err(|error| match error {
        InboxError::Foreign(why) => Status::failed_precondition(why),
        InboxError::Garbled(error) => Status::invalid_argument(error.to_string()),
        InboxError::Unavailable(why) => Status::unavailable(why),
    })
}

impl RaftService {
    pub fn new(store: Store) -> Self {
        Self { inbox: store.inbox(), store }
    }

    /// To be added to the server.
    pub fn service(&self) -> RaftServer<Self> {
        RaftServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl Raft for RaftService {
    async fn append(&self, request: Request<AppendRequest>) -> Answer<AppendReply> {
        answer(self.inbox.append(request.into_inner()).await)
    }

    async fn vote(&self, request: Request<VoteRequest>) -> Answer<VoteReply> {
        answer(self.inbox.vote(request.into_inner()).await)
    }

    async fn install_snapshot(
        &self,
        request: Request<InstallSnapshotRequest>,
    ) -> Answer<InstallSnapshotReply> {
        answer(self.inbox.install(request.into_inner()).await)
    }

    async fn propose(&self, request: Request<ProposeRequest>) -> Answer<ProposeReply> {
        answer(self.inbox.propose(request.into_inner()).await)
    }

    async fn read_index(&self, request: Request<ReadIndexRequest>) -> Answer<ReadIndexReply> {
        answer(self.inbox.read_index(request.into_inner()).await)
    }

    async fn handover(&self, request: Request<HandoverRequest>) -> Answer<HandoverReply> {
        answer(self.inbox.handover(request.into_inner()).await)
    }

    async fn change_member(
        &self,
        request: Request<ChangeMemberRequest>,
    ) -> Answer<ChangeMemberReply> {
        answer(self.inbox.change(request.into_inner()).await)
    }

    async fn peer_status(&self, request: Request<PeerStatusRequest>) -> Answer<PeerStatusReply> {
        answer(self.inbox.status(&request.into_inner()))
    }

    async fn join_master(&self, request: Request<JoinMasterRequest>) -> Answer<JoinMasterReply> {
        let JoinMasterRequest { version, name, address, token, level } = request.into_inner();
        if !WIRE_VERSIONS.contains(&version) {
            return Err(Status::failed_precondition(format!(
                "a master of version {version} wants to join, but this one speaks version \
                 {WIRE_VERSION}; hint: take the same build for both"
            )));
        }
        if name.is_empty() || address.is_empty() {
            return Err(Status::invalid_argument("a master that joins says its name and address"));
        }
        // Its certificate says that it had the CA once; the token, that it is wanted now.
        let token: Result<JoinToken, _> = token.parse();
        let token = token.map_err(|error| Status::unauthenticated(error.to_string()))?;
        pki::check_fresh(&self.store, &token, JoinRole::Master).await?;
        match self.store.admit(&name, &address, level).await {
            Ok(id) => Ok(Response::new(reply(&self.store, id))),
            Err(ChangeError::NotLeader) => Ok(Response::new(reply(&self.store, 0))),
            Err(ChangeError::Refused(why)) => Err(Status::failed_precondition(why)),
        }
    }
}
