//! Writes and linearizable reads on a master that does not lead: they go to the one that does, and
//! are sent again while there is none. A write that is sent twice has an id, so it is done once.

use std::time::Duration;

use bytes::Bytes;
use timonier_master_core::op::{Rejection, Txn};
use timonier_proto::v1::propose_reply::Outcome;
use timonier_proto::v1::{ProposeReply, ProposeRequest, ReadIndexRequest};
use tokio::time::Instant;

use super::transport::Target;
use super::{CommitError, Committed, Store};

/// Pause before the leader is asked again, if none is elected meanwhile.
const RETRY: Duration = Duration::from_millis(25);

/// A caller is told so when no leader was reached for so long.
const LEADERLESS_MAX: Duration = Duration::from_secs(5);

/// What a try came to.
enum Tried<T> {
    Done(T),
    /// Not the leader, or it did not answer.
    Again,
}

fn check_reached(begun: Instant) -> Result<(), CommitError> {
    let waited = begun.elapsed();
    if waited < LEADERLESS_MAX {
        return Ok(());
    }
    Err(CommitError::NoLeader(u64::try_from(waited.as_millis()).unwrap_or(u64::MAX)))
}

impl Store {
    /// This master is the only one that votes.
    pub(super) fn is_alone(&self) -> bool {
        let members = self.shared.members.borrow();
        members.iter().all(|member| !member.voter || member.id == self.shared.id)
            && *self.shared.leader.borrow()
    }

    pub(super) async fn commit_in_time(&self, mut txn: Txn) -> Result<Committed, CommitError> {
        if self.is_alone() {
            let encoded = self.encode(&txn)?;
            return self.commit_here(txn, encoded).await;
        }
        if txn.id.is_none() {
            txn.id = Some(uuid::Uuid::new_v4().to_string());
        }
        let encoded = self.encode(&txn)?;
        let mut leader = self.shared.leader_id.subscribe();
        let begun = Instant::now();
        loop {
            let now = *leader.borrow_and_update();
            let trying = self.try_commit(now, &txn, &encoded);
            tokio::select! {
                tried = trying => match tried {
                    Tried::Done(result) => return result,
                    Tried::Again => {}
                },
                // Whether it was written is not known, and does not matter.
                _ = leader.changed() => continue,
                () = self.shared.closing.cancelled() => return Err(CommitError::ShuttingDown),
            }
            check_reached(begun)?;
            let _ = tokio::time::timeout(RETRY, leader.changed()).await;
        }
    }

    async fn try_commit(
        &self,
        leader: Option<u64>,
        txn: &Txn,
        encoded: &Bytes,
    ) -> Tried<Result<Committed, CommitError>> {
        let Some(leader) = leader else { return Tried::Again };
        if leader == self.shared.id {
            return match self.commit_here(txn.clone(), encoded.clone()).await {
                Err(CommitError::NotLeader { .. }) => Tried::Again,
                result => Tried::Done(result),
            };
        }
        let Some(target) = self.target(leader) else { return Tried::Again };
        let header = Some(self.shared.links.header(leader));
        let request = ProposeRequest { header, txn: encoded.clone() };
        match self.shared.links.transport.propose(&target, request).await {
            Ok(reply) => self.take_reply(reply).await,
            Err(error) => {
                tracing::debug!(%error, %target, "a write was not passed on; trying again");
                Tried::Again
            }
        }
    }

    async fn take_reply(&self, reply: ProposeReply) -> Tried<Result<Committed, CommitError>> {
        let result = match reply.outcome {
            None | Some(Outcome::NotLeader(_)) => return Tried::Again,
            Some(Outcome::Failed(why)) => Err(CommitError::StorageFailure(why)),
            Some(Outcome::Committed(json)) => match serde_json::from_slice::<Committed>(&json) {
                Ok(committed) => Ok(committed),
                Err(error) => Err(CommitError::StorageFailure(format!(
                    "the leader's answer cannot be read: {error}"
                ))),
            },
            Some(Outcome::Rejected(json)) => match serde_json::from_slice::<Rejection>(&json) {
                Ok(rejection) => Err(CommitError::Rejected(rejection)),
                Err(error) => Err(CommitError::StorageFailure(format!(
                    "the leader's refusal cannot be read: {error}"
                ))),
            },
        };
        // What it answers is in this master's own state, too.
        if self.shared.machine.ring.reached(reply.revision).await {
            Tried::Done(result)
        } else {
            Tried::Done(Err(CommitError::ShuttingDown))
        }
    }

    pub(super) async fn linearize_in_time(&self) -> Result<(), CommitError> {
        let mut leader = self.shared.leader_id.subscribe();
        let begun = Instant::now();
        loop {
            let now = *leader.borrow_and_update();
            tokio::select! {
                tried = self.try_linearize(now) => match tried {
                    Tried::Done(result) => return result,
                    Tried::Again => {}
                },
                _ = leader.changed() => continue,
                () = self.shared.closing.cancelled() => return Err(CommitError::ShuttingDown),
            }
            check_reached(begun)?;
            let _ = tokio::time::timeout(RETRY, leader.changed()).await;
        }
    }

    async fn try_linearize(&self, leader: Option<u64>) -> Tried<Result<(), CommitError>> {
        let Some(leader) = leader else { return Tried::Again };
        if leader == self.shared.id {
            return match self.linearize_here().await {
                Err(CommitError::NotLeader { .. }) => Tried::Again,
                result => Tried::Done(result),
            };
        }
        let Some(target) = self.target(leader) else { return Tried::Again };
        let request = ReadIndexRequest { header: Some(self.shared.links.header(leader)) };
        match self.shared.links.transport.read_index(&target, request).await {
            Ok(reply) if reply.not_leader.is_none() => {
                if self.shared.machine.ring.reached(reply.revision).await {
                    Tried::Done(Ok(()))
                } else {
                    Tried::Done(Err(CommitError::ShuttingDown))
                }
            }
            Ok(_) => Tried::Again,
            Err(error) => {
                tracing::debug!(%error, %target, "a read was not passed on; trying again");
                Tried::Again
            }
        }
    }

    pub(super) fn target(&self, id: u64) -> Option<Target> {
        let members = self.shared.members.borrow();
        let member = members.iter().find(|member| member.id == id)?;
        Some(Target { id, address: member.address.clone() })
    }
}
