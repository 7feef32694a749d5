//! The store's way to the other masters, over gRPC.

use std::time::Duration;

use timonier_proto::MESSAGE_BYTES_MAX;
use timonier_proto::v1::raft_client::RaftClient;
use timonier_proto::v1::{
    AppendReply, AppendRequest, ChangeMemberReply, ChangeMemberRequest, HandoverReply,
    HandoverRequest, InstallSnapshotReply, InstallSnapshotRequest, ProposeReply, ProposeRequest,
    ReadIndexReply, ReadIndexRequest, VoteReply, VoteRequest,
};
use tonic::Request;
use tonic::transport::Channel;

use super::{Lines, PeerError};
use crate::store::{Sending, Target, Transport, TransportError};

/// A change of the members waits for several writes.
const CHANGE_DEADLINE: Duration = Duration::from_secs(20);
/// Of everything else; who waits less gives up by itself.
const DEADLINE: Duration = Duration::from_secs(10);

pub struct Grpc {
    lines: Lines,
}

impl Grpc {
    pub fn new(lines: Lines) -> Self {
        Self { lines }
    }

    fn client(&self, to: &Target) -> Result<RaftClient<Channel>, PeerError> {
        let channel = self.lines.to(to.id, &to.address)?;
        Ok(RaftClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }
}

macro_rules! send {
    ($self:ident, $to:ident, $request:ident, $method:ident, $deadline:expr) => {{
        let (client, to) = ($self.client($to), $to.clone());
        Box::pin(async move {
            let told = |why: String| TransportError(format!("ask {to}: {why}"));
            let mut client = client.map_err(|error| told(error.to_string()))?;
            let mut request = Request::new($request);
            request.set_timeout($deadline);
            let answered = tokio::time::timeout($deadline, client.$method(request)).await;
            let answered = answered.map_err(|_| told("no answer".to_owned()))?;
            Ok(answered.map_err(|status| told(status.message().to_owned()))?.into_inner())
        })
    }};
}

impl Transport for Grpc {
    fn append(&self, to: &Target, request: AppendRequest) -> Sending<AppendReply> {
        send!(self, to, request, append, DEADLINE)
    }

    fn vote(&self, to: &Target, request: VoteRequest) -> Sending<VoteReply> {
        send!(self, to, request, vote, DEADLINE)
    }

    fn install(
        &self,
        to: &Target,
        request: InstallSnapshotRequest,
    ) -> Sending<InstallSnapshotReply> {
        send!(self, to, request, install_snapshot, DEADLINE)
    }

    fn propose(&self, to: &Target, request: ProposeRequest) -> Sending<ProposeReply> {
        send!(self, to, request, propose, DEADLINE)
    }

    fn read_index(&self, to: &Target, request: ReadIndexRequest) -> Sending<ReadIndexReply> {
        send!(self, to, request, read_index, DEADLINE)
    }

    fn handover(&self, to: &Target, request: HandoverRequest) -> Sending<HandoverReply> {
        send!(self, to, request, handover, DEADLINE)
    }

    fn change(&self, to: &Target, request: ChangeMemberRequest) -> Sending<ChangeMemberReply> {
        send!(self, to, request, change_member, CHANGE_DEADLINE)
    }
}
