//! Who is a member: joining, promoting, removing, and handing the leadership over. One change at a
//! time, and none that would leave too few masters that answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use openraft::error::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, Membership, RaftMetrics, ServerState};
use timonier_master_core::level::Level;
use timonier_proto::v1::change_member_request::Action;
use timonier_proto::v1::{ChangeMemberRequest, HandoverRequest, PeerStatusReply, RaftHeader};

use super::quorum::ANSWER_TIMEOUT;
use super::raft::{MasterNode, NodeId};
use super::{Shared, Store, election};

/// A new master votes once it lacks at most so many entries.
pub(super) const CAUGHT_UP_ENTRIES: u64 = 64;
/// A change that is not committed within this time is given up; it may still come.
pub(super) const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before the leader is asked again.
const RETRY: Duration = Duration::from_millis(50);
/// A master that is to lead has this time to write what it lacks.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(3);

type ServerMetrics = openraft::metrics::RaftServerMetrics<NodeId, MasterNode>;

/// A master of the cluster, as this one knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub id: u64,
    pub name: String,
    /// `HOST:PORT`.
    pub address: String,
    /// It counts for the quorum; else it is still catching up.
    pub voter: bool,
    pub leader: bool,
}

/// A member, and how it is doing as far as this master can tell: the leader hears from all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    pub member: Member,
    /// How long ago it answered; `None` when this master does not lead, or it never did.
    pub silence: Option<Duration>,
    /// Log entries that it lacks.
    pub behind: Option<u64>,
    /// It is this one, or it has answered lately.
    pub answers: bool,
}

/// Why the members are as they were.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Ask the one that is.
    #[error("this master is not the leader")]
    NotLeader,
    /// It would harm, or cannot be done now; the text says why.
    #[error("{0}")]
    Refused(String),
}

/// What is to become different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Promote(NodeId),
    Remove(NodeId),
    /// To this one, or to any.
    Transfer(Option<NodeId>),
    /// A member answers elsewhere now.
    Move(NodeId, MasterNode),
}

impl Change {
    pub fn read(request: &ChangeMemberRequest) -> Option<Self> {
        Some(match request.action() {
            Action::Unspecified => return None,
            Action::Promote => Self::Promote(request.id),
            Action::Remove => Self::Remove(request.id),
            Action::Transfer => Self::Transfer(Some(request.id).filter(|id| *id != 0)),
            Action::Move => {
                let (name, address) = (request.name.clone(), request.address.clone());
                Self::Move(request.id, MasterNode { address, name })
            }
        })
    }

    fn write(&self) -> ChangeMemberRequest {
        let of = |action: Action, id| ChangeMemberRequest {
            action: action.into(),
            id,
            ..ChangeMemberRequest::default()
        };
        match self {
            Self::Promote(id) => of(Action::Promote, *id),
            Self::Remove(id) => of(Action::Remove, *id),
            Self::Transfer(id) => of(Action::Transfer, id.unwrap_or_default()),
            Self::Move(id, node) => ChangeMemberRequest {
                name: node.name.clone(),
                address: node.address.clone(),
                ..of(Action::Move, *id)
            },
        }
    }
}

/// In order of their ids.
pub(super) fn of(metrics: &ServerMetrics, leader: Option<NodeId>) -> Vec<Member> {
    listed(metrics.membership_config.membership(), leader)
}

fn listed(members: &Membership<NodeId, MasterNode>, leader: Option<NodeId>) -> Vec<Member> {
    let voters: BTreeSet<NodeId> = members.voter_ids().collect();
    members
        .nodes()
        .map(|(id, node)| Member {
            id: *id,
            name: node.name.clone(),
            address: node.address.clone(),
            voter: voters.contains(id),
            leader: leader == Some(*id),
        })
        .collect()
}

pub(super) fn refused(why: impl Into<String>) -> ChangeError {
    ChangeError::Refused(why.into())
}

pub(super) fn named(member: &Member) -> String {
    if member.name.is_empty() {
        format!("master {}", member.id)
    } else {
        format!("master {} (id {})", member.name, member.id)
    }
}

impl Store {
    /// This master's id.
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// Whether this master votes. One that joins does so once it has what the others have; before
    /// that its state is none that the cluster ever had.
    pub fn votes(&self) -> bool {
        let id = self.shared.id;
        self.shared.members.borrow().iter().any(|member| member.id == id && member.voter)
    }

    /// Every master of the cluster, in order of their ids.
    pub fn members(&self) -> Vec<Member> {
        self.shared.members.borrow().clone()
    }

    /// Tells when the members change, or who of them leads.
    pub fn members_changed(&self) -> tokio::sync::watch::Receiver<Vec<Member>> {
        self.shared.members.subscribe()
    }

    /// Who leads, as far as this master knows.
    pub fn leader(&self) -> Option<u64> {
        *self.shared.leader_id.borrow()
    }

    /// Whether this master leads, or has heard of a leader lately. One that the others do not speak to
    /// any more may still take the last one it knew for the leader.
    pub async fn hears_a_leader(&self) -> bool {
        let heard = self.shared.raft.with_raft_state(|state| state.vote_last_modified()).await;
        let lately = self.shared.election_timeout * 2;
        *self.shared.leader.borrow()
            || heard.ok().flatten().is_some_and(|heard| heard.elapsed() < lately)
    }

    /// Tells who leads.
    pub fn leader_changed(&self) -> tokio::sync::watch::Receiver<Option<u64>> {
        self.shared.leader_id.subscribe()
    }

    /// The members and how they are doing. Only the leader knows of the others.
    pub fn member_statuses(&self) -> Vec<MemberStatus> {
        let metrics = self.shared.raft.metrics().borrow().clone();
        let status = |member: Member| {
            let silence =
                self.shared.links.silence(member.id).filter(|_| {
                    metrics.state == ServerState::Leader && member.id != self.shared.id
                });
            MemberStatus {
                behind: behind(&metrics, member.id),
                answers: member.id == self.shared.id
                    || silence.is_some_and(|silence| silence < self.shared.election_timeout * 2),
                silence,
                member,
            }
        };
        self.members().into_iter().map(status).collect()
    }

    /// How this master is, for whoever asks all of them.
    pub fn own_status(&self) -> PeerStatusReply {
        let status = self.status();
        PeerStatusReply {
            leader: status.leader_id.unwrap_or_default(),
            term: status.term,
            last_index: status.last_index,
            applied_index: status.applied_index,
            revision: status.revision,
            log_bytes: status.log_bytes,
            uptime_ms: u64::try_from(self.shared.opened.elapsed().as_millis()).unwrap_or(u64::MAX),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            refusing: status.refusing.unwrap_or_default(),
            members: self.members().iter().map(|member| member.id).collect(),
        }
    }

    /// For a message of this master's to that one.
    pub fn header_to(&self, id: u64) -> RaftHeader {
        self.shared.links.header(id)
    }

    /// Gives a master that is to join an id, and begins to send it everything. It votes by itself
    /// once it has caught up. `level` is the highest that its build knows. On the leader only.
    pub async fn admit(&self, name: &str, address: &str, level: u32) -> Result<u64, ChangeError> {
        let _alone = self.one_at_a_time().await?;
        if !*self.shared.leader.borrow() {
            return Err(ChangeError::NotLeader);
        }
        let needed = self.snapshot().level;
        if level.max(Level::FIRST.into()) < needed.into() {
            return Err(refused(format!(
                "join as master {name}: the cluster is at level {needed}, which the build of the \
                 new master does not know; hint: take the build that the other masters run"
            )));
        }
        let taken = self.members().into_iter().find(|member| member.name == name);
        if let Some(taken) = taken {
            if taken.voter {
                return Err(refused(format!(
                    "join as master {name}: a master of this name, id {} at {}, is a member \
                     already; hint: give this one another --name",
                    taken.id, taken.address
                )));
            }
            // It never got further than this.
            let gone = ChangeMembers::RemoveNodes(BTreeSet::from([taken.id]));
            self.change_members(gone).await?;
        }
        // Never given twice: a removed master that comes back must be no one else. The log's
        // indexes only grow, and joining takes one.
        let last = self.shared.raft.metrics().borrow().last_log_index.unwrap_or_default();
        let highest = self.members().iter().map(|member| member.id).max().unwrap_or_default();
        let id = last.max(highest) + 1;
        let node = MasterNode { address: address.to_owned(), name: name.to_owned() };
        self.change_members(ChangeMembers::AddNodes(BTreeMap::from([(id, node)]))).await?;
        tracing::info!(id, name, address, "a master joins");
        Ok(id)
    }

    /// Makes a master that has caught up vote.
    pub async fn promote(&self, id: u64) -> Result<(), ChangeError> {
        self.change(&Change::Promote(id)).await
    }

    /// Takes a master out of the cluster, unless the others would be too few.
    pub async fn remove(&self, id: u64) -> Result<(), ChangeError> {
        self.change(&Change::Remove(id)).await
    }

    /// Makes another master lead: this one, or the best one.
    pub async fn transfer_leadership(&self, to: Option<u64>) -> Result<(), ChangeError> {
        self.change(&Change::Transfer(to)).await
    }

    /// On whichever master leads.
    pub(super) async fn change(&self, change: &Change) -> Result<(), ChangeError> {
        let changing = self.change_in_time(change);
        let late = |_| {
            refused(format!(
                "no leader could do it within {} s; hint: see `timonctl cluster-info`",
                (CHANGE_TIMEOUT * 2).as_secs()
            ))
        };
        tokio::time::timeout(CHANGE_TIMEOUT * 2, changing).await.map_err(late)?
    }

    async fn change_in_time(&self, change: &Change) -> Result<(), ChangeError> {
        loop {
            let leader = self.leader();
            if leader.is_none() {
                // There may be an election, or never one again.
                let here = election::who_answers(&self.shared, ANSWER_TIMEOUT).await;
                self.check_quorum(&here.into_keys().collect())?;
            } else if leader == Some(self.shared.id) {
                match self.change_here(change).await {
                    Err(ChangeError::NotLeader) => {}
                    result => return result,
                }
            } else if let Some(target) = leader.and_then(|leader| self.target(leader)) {
                let header = Some(self.shared.links.header(target.id));
                let request = ChangeMemberRequest { header, ..change.write() };
                match self.shared.links.transport.change(&target, request).await {
                    Ok(reply) if reply.not_leader.is_some() => {}
                    Ok(reply) if reply.refused.is_empty() => return Ok(()),
                    Ok(reply) => return Err(refused(reply.refused)),
                    Err(error) => tracing::debug!(%error, "a change was not passed on"),
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn one_at_a_time(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, ChangeError> {
        let waiting = tokio::time::timeout(CHANGE_TIMEOUT, self.shared.changing.lock());
        waiting.await.map_err(|_| {
            refused("another change of the masters is under way; hint: try again in a moment")
        })
    }

    pub(super) async fn change_here(&self, change: &Change) -> Result<(), ChangeError> {
        let _alone = self.one_at_a_time().await?;
        if !*self.shared.leader.borrow() {
            return Err(ChangeError::NotLeader);
        }
        let answering = match change {
            Change::Transfer(_) => BTreeSet::new(),
            _ => self.answering().await,
        };
        if !matches!(change, Change::Transfer(_)) {
            self.check_quorum(&answering)?;
        }
        match change {
            Change::Promote(id) => self.promote_here(*id, &answering).await,
            Change::Remove(id) => self.remove_here(*id, &answering).await,
            Change::Transfer(to) => self.transfer_here(*to).await,
            Change::Move(id, node) => {
                self.member(*id)?;
                let moved = BTreeMap::from([(*id, node.clone())]);
                self.change_members(ChangeMembers::SetNodes(moved)).await
            }
        }
    }

    fn member(&self, id: NodeId) -> Result<Member, ChangeError> {
        let found = self.members().into_iter().find(|member| member.id == id);
        found.ok_or_else(|| refused(format!("there is no master with the id {id}")))
    }

    async fn promote_here(
        &self,
        id: NodeId,
        answering: &BTreeSet<NodeId>,
    ) -> Result<(), ChangeError> {
        let member = self.member(id)?;
        if member.voter {
            return Ok(());
        }
        match behind(&self.shared.raft.metrics().borrow().clone(), id) {
            Some(behind) if behind <= CAUGHT_UP_ENTRIES && answering.contains(&id) => {}
            Some(behind) if answering.contains(&id) => {
                let name = named(&member);
                return Err(refused(format!(
                    "promote {name}: it is {behind} log entries behind; hint: it is promoted by \
                     itself once it has caught up"
                )));
            }
            _ => {
                let name = named(&member);
                let hint = "hint: see that it runs, and is reached at its address";
                return Err(refused(format!("promote {name}: it does not answer; {hint}")));
            }
        }
        self.change_members(ChangeMembers::AddVoterIds(BTreeSet::from([id]))).await
    }

    async fn remove_here(
        &self,
        id: NodeId,
        answering: &BTreeSet<NodeId>,
    ) -> Result<(), ChangeError> {
        let member = self.member(id)?;
        if !member.voter {
            return self.change_members(ChangeMembers::RemoveNodes(BTreeSet::from([id]))).await;
        }
        self.check_quorum_without(&member, answering)?;
        if id == self.shared.id {
            self.transfer_here(None).await?;
            // The new leader takes this one out.
            return Err(ChangeError::NotLeader);
        }
        self.change_members(ChangeMembers::RemoveVoters(BTreeSet::from([id]))).await
    }

    async fn change_members(
        &self,
        change: ChangeMembers<NodeId, MasterNode>,
    ) -> Result<(), ChangeError> {
        let changing = self.shared.raft.change_membership(change, false);
        match tokio::time::timeout(CHANGE_TIMEOUT, changing).await {
            Err(_) => Err(refused(format!(
                "the change was not agreed on within {} s; it may still come; hint: see `timonctl \
                 master list`",
                CHANGE_TIMEOUT.as_secs()
            ))),
            Ok(Ok(done)) => {
                if let Some(members) = done.membership {
                    self.until_known(&members).await;
                }
                Ok(())
            }
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => {
                Err(ChangeError::NotLeader)
            }
            Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error)))) => {
                Err(refused(format!("change the masters: {error}")))
            }
            Ok(Err(RaftError::Fatal(error))) => Err(refused(super::batcher::failure_text(&error))),
        }
    }

    /// What this master tells of the members comes a little after the change is agreed on, and the
    /// next change is judged by it.
    async fn until_known(&self, members: &Membership<NodeId, MasterNode>) {
        let wanted = listed(members, None);
        let mut members = self.shared.members.subscribe();
        let known = members.wait_for(|members| {
            let same = |(now, wanted): (&Member, &Member)| {
                Member { leader: wanted.leader, ..now.clone() } == *wanted
            };
            members.len() == wanted.len() && members.iter().zip(&wanted).all(same)
        });
        // Another leader may have changed them again since.
        let _ = tokio::time::timeout(ANSWER_TIMEOUT, known).await;
    }

    /// Writes pause for about 0.7 election timeouts: the others believe in this leader for so long
    /// after they last heard of it, and vote for no one else.
    async fn transfer_here(&self, to: Option<NodeId>) -> Result<(), ChangeError> {
        let to = self.successor(to)?;
        if to.id == self.shared.id {
            return Ok(());
        }
        let Some(target) = self.target(to.id) else { return Err(refused("it is gone")) };
        let until_even = tokio::time::timeout(CATCH_UP_TIMEOUT, self.until_even(to.id));
        let late = |_| refused(format!("hand over to {}: it does not catch up", named(&to)));
        until_even.await.map_err(late)?;
        let paused = Paused::begin(&self.shared);
        let handed = self.hand_over(&target).await;
        drop(paused);
        if handed {
            tracing::info!(to = to.id, "the leadership was handed over");
            return Ok(());
        }
        Err(refused(format!("hand over to {}: it was not elected; try again", named(&to))))
    }

    fn successor(&self, to: Option<NodeId>) -> Result<Member, ChangeError> {
        if let Some(id) = to {
            let member = self.member(id)?;
            if !member.voter {
                return Err(refused(format!("{} does not vote yet", named(&member))));
            }
            return Ok(member);
        }
        let statuses = self.member_statuses();
        let others = statuses
            .into_iter()
            .filter(|one| one.member.voter && one.member.id != self.shared.id && one.answers);
        let best = others.min_by_key(|one| one.behind.unwrap_or(u64::MAX));
        best.map(|one| one.member).ok_or_else(|| refused("no other master that votes answers"))
    }

    async fn until_even(&self, id: NodeId) {
        let mut metrics = self.shared.raft.metrics();
        let _ = metrics.wait_for(|now| behind(now, id).is_some_and(|b| b == 0)).await;
    }

    async fn hand_over(&self, target: &super::Target) -> bool {
        // What is under way ends, and the others' belief in this leader runs out.
        let _ = tokio::time::timeout(CATCH_UP_TIMEOUT, self.until_even(target.id)).await;
        tokio::time::sleep(self.shared.election_timeout.mul_f64(0.67)).await;
        let header = Some(self.shared.links.header(target.id));
        let asking = self.shared.links.transport.handover(target, HandoverRequest { header });
        match tokio::time::timeout(self.shared.election_timeout, asking).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, %target, "could not hand over");
                return false;
            }
            Err(_) => {
                tracing::warn!(%target, "could not hand over: it does not answer");
                return false;
            }
        }
        let mut leader = self.shared.leader_id.subscribe();
        let elected = leader.wait_for(|leader| leader.is_some_and(|id| id == target.id));
        tokio::time::timeout(self.shared.election_timeout, elected).await.is_ok()
    }

    pub(super) async fn stand_for_election(&self) {
        // A consensus that has stopped is told of elsewhere.
        let _ = election::stand(&self.shared.raft).await;
    }
}

/// Nothing is proposed and no heartbeat is sent, until this is dropped: also when whoever asked for
/// the handover goes away in the middle of it.
struct Paused<'a>(&'a Shared);

impl<'a> Paused<'a> {
    fn begin(shared: &'a Shared) -> Self {
        shared.paused.send_replace(true);
        shared.raft.runtime_config().heartbeat(false);
        Self(shared)
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.0.raft.runtime_config().heartbeat(true);
        self.0.paused.send_replace(false);
    }
}

/// Log entries that a member lacks, as far as the leader knows.
pub(super) fn behind(metrics: &RaftMetrics<NodeId, MasterNode>, id: NodeId) -> Option<u64> {
    if metrics.id == id {
        return Some(0);
    }
    let matched = metrics.replication.as_ref()?.get(&id)?.as_ref()?.index;
    Some(metrics.last_log_index.unwrap_or_default().saturating_sub(matched))
}

/// For the tasks of a store.
pub(super) fn weak(store: &Store) -> Weak<Shared> {
    Arc::downgrade(&store.shared)
}
