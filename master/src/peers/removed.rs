//! A master that was taken out of the cluster while it was away learns of it from the others: by
//! itself it would wait for a leader for ever.

use std::time::Duration;

use timonier_proto::v1::raft_client::RaftClient;
use timonier_proto::v1::{PeerStatusReply, PeerStatusRequest};
use tokio_util::sync::CancellationToken;
use tonic::Request;

use super::Peers;

/// Others are asked when there has been no leader for so long, and again after it.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);
const ASK_DEADLINE: Duration = Duration::from_secs(2);
/// So often in a row it must be told.
const TOLD_MIN: u32 = 2;

impl Peers {
    /// Until the shutdown, or until this master knows that it was removed: then its store fails.
    pub async fn notice_removal(self, shutdown: CancellationToken) {
        let mut told = 0;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
            let is_gone = self.is_left_out().await && self.is_told_gone().await;
            told = if is_gone { told + 1 } else { 0 };
            if told >= TOLD_MIN {
                self.store.fail(
                    "this master was removed from the cluster; hint: to come back it joins anew: \
                     empty its data folder and start it with --join",
                );
                return;
            }
        }
    }

    /// Nobody leads it, or it knows itself to be no member. One that joins knows of nobody yet.
    async fn is_left_out(&self) -> bool {
        let members = self.members();
        let is_member = members.iter().any(|member| member.id == self.me());
        !members.is_empty() && (!is_member || !self.store.hears_a_leader().await)
    }

    /// Whether a master that has a leader, and all of this one's log, does not count this one as a member.
    async fn is_told_gone(&self) -> bool {
        let me = self.me();
        let own = self.store.status().last_index;
        for other in self.members().iter().filter(|member| member.id != me) {
            let Some(reply) = self.ask(other.id).await else { continue };
            let is_ahead = reply.leader != 0 && reply.last_index >= own;
            if is_ahead && !reply.members.is_empty() && !reply.members.contains(&me) {
                return true;
            }
        }
        false
    }

    async fn ask(&self, id: u64) -> Option<PeerStatusReply> {
        let channel = self.channel(id).ok()?;
        let header = Some(self.store.header_to(id));
        let mut client = RaftClient::new(channel);
        let asking = client.peer_status(Request::new(PeerStatusRequest { header }));
        let reply = tokio::time::timeout(ASK_DEADLINE, asking).await.ok()?;
        Some(reply.ok()?.into_inner())
    }
}
