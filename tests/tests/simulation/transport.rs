//! The masters' way to each other, over the simulated network.

use timonier_identity::{Connecting, Line};
use timonier_master::store::{Inbox, InboxError, Sending, Target, Transport, TransportError};
use timonier_proto::v1::{
    AppendReply, AppendRequest, ChangeMemberReply, ChangeMemberRequest, HandoverReply,
    HandoverRequest, InstallSnapshotReply, InstallSnapshotRequest, ProposeReply, ProposeRequest,
    ReadIndexReply, ReadIndexRequest, VoteReply, VoteRequest,
};

use crate::consensus::Consensus;
use crate::network::Network;
use crate::os::{self, HostId};
use crate::workload::Door;

/// One master's end.
pub struct End {
    pub network: Network,
    pub host: HostId,
    /// By host.
    pub doors: Vec<Door>,
    /// Who listens.
    pub consensus: Consensus,
}

/// Where the master of a host is said to be.
pub fn address(host: HostId) -> String {
    format!("{host}:7443")
}

fn host_of(address: &str) -> Option<HostId> {
    address.split_once(':')?.0.parse().ok()
}

/// From the host that runs now to the master that is said to be there.
pub fn connect(network: &Network, address: &str) -> Connecting {
    let (network, to) = (network.clone(), host_of(address));
    Box::pin(async move {
        let nowhere = || std::io::Error::from(std::io::ErrorKind::HostUnreachable);
        let from = os::current().ok_or_else(nowhere)?;
        let line = network.connect(from, to.ok_or_else(nowhere)?).await?;
        Ok(Box::new(line) as Box<dyn Line>)
    })
}

impl End {
    fn carry<Q, A, F>(
        &self,
        to: &Target,
        request: Q,
        handle: impl Fn(Inbox, Q) -> F + Clone + Send + Sync + 'static,
    ) -> Sending<A>
    where
        Q: Clone + Send + Sync + 'static,
        A: Send + 'static,
        F: Future<Output = Result<A, InboxError>> + Send + 'static,
    {
        let nowhere = TransportError(format!("reach {to}: there is no such host"));
        let found =
            host_of(&to.address).and_then(|host| Some((host, self.doors.get(host)?.clone())));
        let (network, from) = (self.network.clone(), self.host);
        Box::pin(async move {
            let (host, door) = found.ok_or(nowhere)?;
            let carried = network.call(from, host, move || {
                let (store, request, handle) = (door.store(), request.clone(), handle.clone());
                async move {
                    let closed = || TransportError("its store is not open".to_owned());
                    let inbox = store.ok_or_else(closed)?.inbox();
                    let answer = handle(inbox, request).await;
                    answer.map_err(|error| TransportError(error.to_string()))
                }
            });
            carried.await
        })
    }
}

impl Transport for End {
    fn append(&self, to: &Target, request: AppendRequest) -> Sending<AppendReply> {
        self.consensus.sent(self.host, request.header.as_ref(), request.vote);
        self.consensus.sent_entries(&request);
        let (consensus, id, leader) = (self.consensus.clone(), to.id, request.vote);
        self.carry(to, request, move |inbox, request| {
            let consensus = consensus.clone();
            async move {
                let reply = inbox.append(request).await?;
                consensus.answered_append(id, leader, &reply);
                Ok(reply)
            }
        })
    }

    fn vote(&self, to: &Target, request: VoteRequest) -> Sending<VoteReply> {
        self.consensus.sent(self.host, request.header.as_ref(), request.vote);
        let (consensus, id) = (self.consensus.clone(), to.id);
        self.carry(to, request, move |inbox, request| {
            let consensus = consensus.clone();
            async move {
                let reply = inbox.vote(request).await?;
                consensus.answered_vote(id, &reply);
                Ok(reply)
            }
        })
    }

    fn install(
        &self,
        to: &Target,
        request: InstallSnapshotRequest,
    ) -> Sending<InstallSnapshotReply> {
        self.consensus.sent(self.host, request.header.as_ref(), request.vote);
        self.carry(to, request, |inbox, request| async move { inbox.install(request).await })
    }

    fn propose(&self, to: &Target, request: ProposeRequest) -> Sending<ProposeReply> {
        self.carry(to, request, |inbox, request| async move { inbox.propose(request).await })
    }

    fn read_index(&self, to: &Target, request: ReadIndexRequest) -> Sending<ReadIndexReply> {
        self.carry(to, request, |inbox, request| async move { inbox.read_index(request).await })
    }

    fn handover(&self, to: &Target, request: HandoverRequest) -> Sending<HandoverReply> {
        self.carry(to, request, |inbox, request| async move { inbox.handover(request).await })
    }

    fn change(&self, to: &Target, request: ChangeMemberRequest) -> Sending<ChangeMemberReply> {
        self.carry(to, request, |inbox, request| async move { inbox.change(request).await })
    }
}
