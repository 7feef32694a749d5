//! What the masters' logs say to each other, overheard on its way: by which vote who leads, how each
//! master votes, what is where in the log, and up to where it is committed.
//!
//! Openraft lets a leader that starts again lead on by the vote that it had. So it is no rule that a
//! master leads once by one vote; but what it lost in the crash must not have been sent to anybody,
//! or two entries would bear the same id.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use timonier_proto::v1::append_reply::Result as Outcome;
use timonier_proto::v1::{
    AppendReply, AppendRequest, RaftEntry, RaftHeader, RaftLogId, RaftVote, VoteReply,
};

use crate::os::HostId;

/// Its number, and the candidate that began it; in the consensus' order.
type Term = (u64, u64);

/// Clones hear the same.
#[derive(Clone, Default)]
pub struct Consensus(Arc<Mutex<Heard>>);

#[derive(Default)]
struct Heard {
    /// By master's id.
    hosts: BTreeMap<u64, HostId>,
    /// By master, the last vote that it answered with, and whether that one was elected.
    votes: BTreeMap<u64, (Term, bool)>,
    /// By index and term, the hash of the entry.
    entries: BTreeMap<(u64, Term), u64>,
    /// By index, the term of the entry, and of the leader that first said so.
    committed: BTreeMap<u64, (Term, Term)>,
    /// The first thing that must not be.
    broken: Option<String>,
}

fn term_of(id: &RaftLogId) -> Term {
    (id.term, id.node)
}

impl Consensus {
    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, listen: impl FnOnce(&mut Heard) -> Result<(), String>) {
        let mut heard = self.lock();
        if let Err(why) = listen(&mut heard) {
            heard.broken.get_or_insert(why);
        }
    }

    /// A message that only the vote's candidate may send, for an election or as the leader.
    pub fn sent(&self, host: HostId, header: Option<&RaftHeader>, vote: Option<RaftVote>) {
        let from = header.map_or(0, |header| header.from);
        let vote = vote.unwrap_or_default();
        self.hear(|heard| heard.check_sender(host, from, vote));
    }

    /// What a leader sends of its log.
    pub fn sent_entries(&self, request: &AppendRequest) {
        let vote = request.vote.unwrap_or_default();
        let leader = (vote.term, vote.node);
        self.hear(|heard| {
            request.entries.iter().try_for_each(|entry| heard.check_entry(entry))?;
            let ids = request.entries.iter().filter_map(|entry| entry.id.as_ref());
            for id in request.previous.iter().chain(ids) {
                heard.check_kept(leader, id)?;
            }
            request.committed.iter().try_for_each(|id| heard.check_committed(leader, id))
        });
    }

    pub fn answered_vote(&self, master: u64, reply: &VoteReply) {
        let vote = reply.vote.unwrap_or_default();
        self.hear(|heard| heard.check_vote(master, vote));
    }

    /// Whoever takes entries has the leader's vote.
    pub fn answered_append(&self, master: u64, leader: Option<RaftVote>, reply: &AppendReply) {
        let own = if reply.result() == Outcome::HigherVote { reply.vote } else { leader };
        self.hear(|heard| heard.check_vote(master, own.unwrap_or_default()));
    }

    pub fn check(&self) -> Result<(), String> {
        self.lock().broken.take().map_or(Ok(()), Err)
    }
}

impl Heard {
    fn check_sender(&mut self, host: HostId, from: u64, vote: RaftVote) -> Result<(), String> {
        let known = *self.hosts.entry(from).or_insert(host);
        if known != host {
            return Err(format!("[3] hosts {known} and {host} both speak as master {from}"));
        }
        if vote.node != from {
            return Err(format!("[3] master {from} sends by the vote of another: {vote:?}"));
        }
        Ok(())
    }

    fn check_vote(&mut self, master: u64, vote: RaftVote) -> Result<(), String> {
        let now = ((vote.term, vote.node), vote.committed);
        let before = self.votes.insert(master, now).unwrap_or_default();
        if now >= before {
            return Ok(());
        }
        Err(format!("[3] master {master} had the vote {before:?} and answers with {now:?}"))
    }

    fn check_entry(&mut self, entry: &RaftEntry) -> Result<(), String> {
        let id = entry.id.unwrap_or_default();
        let mut hasher = DefaultHasher::new();
        (entry.kind, &entry.payload).hash(&mut hasher);
        let now = hasher.finish();
        if *self.entries.entry((id.index, term_of(&id))).or_insert(now) == now {
            return Ok(());
        }
        Err(format!("[11] two entries have the same id: {id:?}"))
    }

    /// A later leader has what is committed.
    fn check_kept(&self, leader: Term, id: &RaftLogId) -> Result<(), String> {
        match self.committed.get(&id.index) {
            Some((term, since)) if leader >= *since && *term != term_of(id) => Err(format!(
                "[11] {id:?} is in the log of leader {leader:?}, that of {term:?} was committed"
            )),
            _ => Ok(()),
        }
    }

    fn check_committed(&mut self, leader: Term, id: &RaftLogId) -> Result<(), String> {
        let (term, _) = *self.committed.entry(id.index).or_insert((term_of(id), leader));
        if term == term_of(id) {
            return Ok(());
        }
        Err(format!("[11] {id:?} is committed, and so was that of {term:?}"))
    }
}

#[test]
fn what_must_not_be_heard() {
    let vote = |term, node, committed| RaftVote { term, node, committed };
    let id = |term, node, index| RaftLogId { term, node, index };
    let entry =
        |id, payload: &'static [u8]| RaftEntry { id: Some(id), kind: 2, payload: payload.into() };
    let append = |by: RaftVote, entries: &[RaftEntry], committed| AppendRequest {
        vote: Some(by),
        entries: entries.to_vec(),
        committed,
        ..AppendRequest::default()
    };
    let (first, second) = (vote(1, 1, true), vote(2, 2, true));
    let (old, new) = (id(1, 1, 7), id(2, 2, 7));
    for (may_be, appends) in [
        (
            true,
            [append(first, &[entry(old, b"a")], None), append(second, &[entry(new, b"b")], None)],
        ),
        (
            false,
            [append(first, &[entry(old, b"a")], None), append(first, &[entry(old, b"b")], None)],
        ),
        (false, [append(first, &[], Some(old)), append(second, &[entry(new, b"b")], None)]),
        (false, [append(first, &[], Some(old)), append(second, &[], Some(new))]),
        // The one before does not know yet that it is over.
        (true, [append(second, &[], Some(new)), append(first, &[entry(old, b"a")], None)]),
    ] {
        let consensus = Consensus::default();
        appends.iter().for_each(|request| consensus.sent_entries(request));
        assert_eq!(consensus.check().is_ok(), may_be, "{appends:?}");
    }
    for (may_be, votes) in [
        (true, [vote(1, 2, false), vote(1, 2, true)]),
        (true, [vote(1, 2, true), vote(1, 3, false)]),
        (false, [vote(1, 3, false), vote(1, 2, true)]),
    ] {
        let consensus = Consensus::default();
        for vote in votes {
            consensus.answered_vote(1, &VoteReply { vote: Some(vote), ..VoteReply::default() });
        }
        assert_eq!(consensus.check().is_ok(), may_be, "{votes:?}");
    }
}
