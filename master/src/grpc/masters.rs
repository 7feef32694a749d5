//! Who the masters are, how each is doing, and what changes among them. Any master answers, with a
//! leader or without: each is asked itself.

use std::time::Duration;

use futures::future::join_all;
use timonier_master_core::access::{Attributes, OWN_GROUP};
use timonier_proto::v1::change_masters_request::Change;
use timonier_proto::v1::raft_client::RaftClient;
use timonier_proto::v1::{
    ChangeMastersReply, ChangeMastersRequest, ListMastersReply, MasterStatus, PeerStatusReply,
    PeerStatusRequest,
};
use timonier_proto::{ApiError, Reason};
use tonic::{Code, Request, Status};

use super::Inner;
use crate::guard::Entrant;
use crate::store::{ChangeError, Member};

/// A master that says nothing for so long does not answer.
const ASK_DEADLINE: Duration = Duration::from_millis(1500);

type Told = Result<PeerStatusReply, String>;

impl Inner {
    pub(super) async fn list_masters(&self) -> ListMastersReply {
        let members = self.masters.members();
        let told = join_all(members.iter().map(|member| self.ask(member))).await;
        let last = told.iter().flatten().map(|told| told.last_index).max().unwrap_or_default();
        let status = self.store.status();
        let masters: Vec<_> = members
            .into_iter()
            .zip(told)
            .map(|(member, told)| describe(member, told, last))
            .collect();
        let voters = masters.iter().filter(|master| master.voter).count();
        let answering = masters.iter().filter(|master| master.voter && master.answers).count();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        ListMastersReply {
            cluster_id: status.cluster_id,
            answered_by: status.id,
            leader: masters.iter().find(|master| master.leader).map_or(0, |master| master.id),
            term: status.term,
            voters: count(voters),
            quorum: count(voters / 2 + 1),
            answering: count(answering),
            masters,
        }
    }

    async fn ask(&self, member: &Member) -> Told {
        if member.id == self.masters.me() {
            return Ok(self.store.own_status());
        }
        let channel = self.masters.channel(member.id).map_err(|status| told(&status))?;
        let header = Some(self.store.header_to(member.id));
        let mut request = Request::new(PeerStatusRequest { header });
        request.set_timeout(ASK_DEADLINE);
        let mut client = RaftClient::new(channel);
        match tokio::time::timeout(ASK_DEADLINE, client.peer_status(request)).await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            // Of a build before this question.
            Ok(Err(status)) if status.code() == Code::Unimplemented => {
                Ok(PeerStatusReply::default())
            }
            Ok(Err(status)) => Err(told(&status)),
            Err(_) => Err(format!("no answer within {} ms", ASK_DEADLINE.as_millis())),
        }
    }

    /// Changes them and writes down who did, which master it was about, and what came of it.
    pub(super) async fn change_masters_for(
        &self,
        request: Request<ChangeMastersRequest>,
    ) -> Result<ChangeMastersReply, ApiError> {
        let who = Entrant::of(&request);
        let request = request.into_inner();
        let about = request.change.as_ref().map(about);
        let outcome = self.change_masters(request).await;
        let told = outcome.as_ref().map(drop).map_err(Clone::clone);
        who.audit(self.guard.audit(), "ChangeMasters", about.as_slice(), told).await;
        outcome
    }

    /// On its own: a caller that goes away leaves nothing half done.
    async fn change_masters(
        &self,
        request: ChangeMastersRequest,
    ) -> Result<ChangeMastersReply, ApiError> {
        let Some(change) = request.change else {
            return Err(ApiError::new(Reason::BadRequest, "change the masters: it says not how"));
        };
        let store = self.store.clone();
        let changing = tokio::spawn(async move {
            match change {
                Change::Promote(id) => store.promote(id).await,
                Change::Remove(id) => store.remove(id).await,
                Change::TransferTo(id) => {
                    store.transfer_leadership(Some(id).filter(|id| *id != 0)).await
                }
            }
        });
        let changed = changing.await.map_err(|error| {
            ApiError::new(Reason::InternalError, format!("change the masters: {error}"))
        })?;
        changed.map(|()| ChangeMastersReply {}).map_err(|error| {
            let reason = match error {
                ChangeError::NotLeader => Reason::Unavailable,
                ChangeError::Refused(_) => Reason::Conflict,
            };
            ApiError::new(reason, error.to_string())
        })
    }
}

/// A change as the audit log has it: `update masters/promotion.timonier.io 14`.
fn about(change: &Change) -> Attributes {
    let (part, id) = match change {
        Change::Promote(id) => ("promotion", id),
        Change::Remove(id) => ("removal", id),
        Change::TransferTo(id) => ("leadership", id),
    };
    let asked = Attributes::virtually("update", OWN_GROUP, "masters").part(part);
    Attributes { name: id.to_string(), ..asked }
}

/// Why there is no answer, in one line.
fn told(status: &Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    match cause.downcast_ref::<std::io::Error>() {
        Some(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            "connection refused".to_owned()
        }
        _ => status.message().to_owned(),
    }
}

/// `last`: the highest entry that any master has.
fn describe(member: Member, told: Told, last: u64) -> MasterStatus {
    let base = MasterStatus {
        id: member.id,
        name: member.name,
        address: member.address,
        voter: member.voter,
        leader: member.leader,
        ..MasterStatus::default()
    };
    match told {
        Ok(told) => MasterStatus {
            answers: true,
            trouble: told.refusing,
            lag: last.saturating_sub(told.last_index),
            last_index: told.last_index,
            applied_index: told.applied_index,
            revision: told.revision,
            log_bytes: told.log_bytes,
            uptime_ms: told.uptime_ms,
            version: told.version,
            ..base
        },
        // A leader that does not answer leads no more.
        Err(why) => MasterStatus { answers: false, trouble: why, leader: false, ..base },
    }
}
