//! When a master stands for election, and how long one that was elected may take itself for the
//! leader.
//!
//! It stands after it has heard of no leader for the election timeout and a random part more, drawn
//! anew each time, and only while enough masters answer it and none of them leads; at once when
//! another one stands that cannot win, because it lacks entries. Openraft draws its time once and
//! looks at fixed ticks, so that two that once stood at the same moment would do so again and again;
//! it makes one whose log is behind wait for longer, and one that is cut off counts terms up for
//! nothing and unseats the leader when it comes back. So openraft's own timer is off.
//!
//! A leader that a majority has not answered for the election timeout serves as one no longer: the
//! others may have elected another. Openraft itself goes on until it hears of that. Nothing that is
//! acknowledged depends on any of this.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::error::Fatal;
use openraft::{Config, ServerState};
use timonier_proto::v1::ReadIndexRequest;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::network::Links;
use super::raft::{NodeId, Raft};
use super::transport::Target;

/// Of the election timeout: the random part of a follower's patience is at most this.
const SPREAD: f64 = 0.25;
/// Of the election timeout: who has heard of a leader for less than this votes for nobody else. So
/// much less than the whole that the first to stand finds the others ready to vote.
const LEASE: f64 = 0.6;
/// Of the election timeout: a candidate, and one that has voted for one, waits so long for the
/// outcome, and a random part as long again.
const CANDIDACY: f64 = 0.3;
/// The other masters are asked for at most the election timeout divided by this before one stands.
const ASK_PART: u32 = 5;
/// After this part of the election timeout it is looked again whether a majority answers.
const LOOK_PART: u32 = 10;
/// A candidate that could win stands again after this time, if it must…
const AGAIN: Duration = Duration::from_millis(100);
/// …so often.
const STANDS_MAX: u32 = 5;

/// Sets what openraft has to do with elections: the lease, and that it holds none by itself.
pub fn configure(config: &mut Config, election_timeout: Duration) {
    let lease = election_timeout.mul_f64(LEASE).as_millis();
    let lease = u64::try_from(lease).unwrap_or(u64::MAX).max(3);
    config.enable_elect = false;
    config.election_timeout_max = lease;
    config.election_timeout_min = lease - 1;
    config.heartbeat_interval = config.heartbeat_interval.clamp(1, lease - 2);
}

/// The sets of voters of which each must have a majority.
type Voters = Vec<BTreeSet<NodeId>>;

fn has_majority(voters: &Voters, here: impl Fn(NodeId) -> bool) -> bool {
    voters.iter().all(|set| set.iter().filter(|id| here(**id)).count() > set.len() / 2)
}

/// What decides whether to stand.
struct Seen {
    /// When a leader, or a candidate that has this master's vote, was last heard.
    heard: Option<Instant>,
    /// It was a leader.
    led: bool,
    votes: bool,
}

/// Stands for election when it is time to, until `closing`.
pub struct Elections {
    pub raft: Raft,
    pub shared: std::sync::Weak<Shared>,
    pub election_timeout: Duration,
    /// Told when a candidate was refused because this master has more.
    pub urged: Arc<Notify>,
    pub closing: CancellationToken,
}

impl Elections {
    pub async fn run(self) {
        let closing = self.closing.clone();
        tokio::select! {
            () = closing.cancelled() => {}
            // It is told where it is watched for.
            Err(stopped) = self.watch() => tracing::debug!(%stopped, "no more elections"),
        }
    }

    async fn watch(&self) -> Result<(), Fatal<NodeId>> {
        let mut server = self.raft.server_metrics();
        // When it began, or stood last: it has been patient since.
        let mut since = Instant::now();
        let mut chance = fastrand::f64();
        loop {
            let leads = server.borrow_and_update().state == ServerState::Leader;
            let seen = self.look().await?;
            if leads || !seen.votes {
                if server.changed().await.is_err() {
                    return Err(Fatal::Stopped);
                }
                since = Instant::now();
                continue;
            }
            let heard = seen.heard.map_or(since, |heard| heard.max(since));
            let due = heard + self.patience(seen.led, chance);
            if Instant::now() >= due {
                if self.may_win().await {
                    tracing::info!("no leader is heard: standing for election");
                    self.raft.trigger().elect().await?;
                }
                (since, chance) = (Instant::now(), fastrand::f64());
                continue;
            }
            tokio::select! {
                () = sleep_until(due) => {}
                () = self.urged.notified() => self.stand_instead().await?,
            }
        }
    }

    fn patience(&self, led: bool, chance: f64) -> Duration {
        let times = if led { 1.0 + SPREAD * chance } else { CANDIDACY * (1.0 + chance) };
        self.election_timeout.mul_f64(times)
    }

    async fn look(&self) -> Result<Seen, Fatal<NodeId>> {
        let id = self.shared.upgrade().map_or(0, |shared| shared.id);
        self.raft
            .with_raft_state(move |state| Seen {
                heard: state.vote_last_modified(),
                led: state.vote_ref().is_committed(),
                votes: state.membership_state.effective().voter_ids().any(|voter| voter == id),
            })
            .await
    }

    /// Another one has waited long enough for a leader, but lacks entries that this one has.
    async fn stand_instead(&self) -> Result<(), Fatal<NodeId>> {
        let seen = self.look().await?;
        let lease = self.election_timeout.mul_f64(LEASE);
        if seen.led && seen.heard.is_some_and(|heard| heard.elapsed() < lease) {
            return Ok(());
        }
        tracing::info!("a candidate lacks entries: standing for election");
        stand(&self.raft).await
    }

    /// It may vote, enough others answer, and none of them leads.
    async fn may_win(&self) -> bool {
        let Some(shared) = self.shared.upgrade() else { return false };
        let voters = {
            let now = shared.raft.server_metrics();
            let now = now.borrow();
            now.membership_config.membership().get_joint_config().clone()
        };
        let here = who_answers(&shared, self.election_timeout / ASK_PART).await;
        let has_vote = voters.iter().any(|set| set.contains(&shared.id));
        let leads = here.values().any(|leads| *leads);
        has_vote && !leads && has_majority(&voters, |id| here.contains_key(&id))
    }
}

/// The members that answer within `patience`, this one included, and whether they lead. None is
/// waited for once one is known to lead.
pub async fn who_answers(shared: &Shared, patience: Duration) -> BTreeMap<NodeId, bool> {
    let targets: Vec<Target> = {
        let now = shared.raft.server_metrics();
        let now = now.borrow();
        let nodes = now.membership_config.membership().nodes();
        let others = nodes.filter(|(id, _)| **id != shared.id);
        others.map(|(id, node)| Target { id: *id, address: node.address.clone() }).collect()
    };
    let mut asking: FuturesUnordered<_> =
        targets.iter().map(|target| ask(&shared.links, target)).collect();
    let mut here = BTreeMap::from([(shared.id, false)]);
    let answers = async {
        while let Some((id, leads)) = asking.next().await {
            here.extend(leads.map(|leads| (id, leads)));
            if leads == Some(true) {
                return;
            }
        }
    };
    // Late is like never.
    let _ = timeout(patience, answers).await;
    here
}

/// Stands for election until there is a leader, a few times at most: one that stood before may have
/// the votes of this term.
pub async fn stand(raft: &Raft) -> Result<(), Fatal<NodeId>> {
    let mut server = raft.server_metrics();
    for _ in 0..STANDS_MAX {
        raft.trigger().elect().await?;
        let elected = server.wait_for(|now| now.state == ServerState::Leader);
        if matches!(timeout(AGAIN, elected).await, Ok(Ok(_))) {
            break;
        }
        let other = raft.metrics().borrow().current_leader;
        if other.is_some() {
            break;
        }
    }
    Ok(())
}

/// Whether that master leads, which it asks a majority about; `None` when it does not answer.
async fn ask(links: &Links, target: &Target) -> (NodeId, Option<bool>) {
    let request = ReadIndexRequest { header: Some(links.header(target.id)) };
    let reply = links.transport.read_index(target, request).await;
    (target.id, reply.ok().map(|reply| reply.not_leader.is_none()))
}

/// Whether a master that openraft takes for the leader has heard of a majority lately.
pub struct Majority {
    pub raft: Raft,
    pub links: Arc<Links>,
    pub election_timeout: Duration,
    /// Since when it leads; `None` while it does not.
    led_since: Option<Instant>,
}

impl Majority {
    pub fn new(raft: Raft, links: Arc<Links>, election_timeout: Duration) -> Self {
        Self { raft, links, election_timeout, led_since: None }
    }

    /// Between two looks; `None` while there is nobody to hear of.
    pub fn look_interval(&self) -> Option<Duration> {
        let is_alone = self.voters().iter().all(|set| set.len() < 2);
        (self.led_since.is_some() && !is_alone).then_some(self.election_timeout / LOOK_PART)
    }

    fn voters(&self) -> Voters {
        let now = self.raft.server_metrics();
        now.borrow().membership_config.membership().get_joint_config().clone()
    }

    /// Whether this master may serve as the leader.
    pub fn leads(&mut self, state: ServerState) -> bool {
        if state != ServerState::Leader {
            self.led_since = None;
            return false;
        }
        // A majority has just voted for it.
        let led_since = *self.led_since.get_or_insert_with(Instant::now);
        let recent = |silence: Duration| silence < self.election_timeout;
        has_majority(&self.voters(), |id| {
            id == self.links.id
                || recent(led_since.elapsed())
                || self.links.silence(id).is_some_and(recent)
        })
    }
}

#[test]
fn both_sets_of_voters_need_a_majority() {
    let joint = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([3, 4])];
    for (here, enough) in [
        (vec![1, 2, 3], false),
        (vec![1, 2, 3, 4], true),
        (vec![3, 4], false),
        (vec![1, 3, 4], true),
    ] {
        assert_eq!(has_majority(&joint, |id| here.contains(&id)), enough, "{here:?}");
    }
}
