//! When a master stands for election, and how long one that was elected may take itself for the
//! leader.
//!
//! It stands after it has heard of no leader for the election timeout and a random part more, drawn
//! anew each time, and only while enough masters answer it and none of them leads. Openraft draws
//! its time once and looks at fixed ticks, so that two that once stood at the same moment would do
//! so again and again, and one that is cut off counts terms up for nothing and unseats the leader
//! when it comes back; so openraft's own timer is off.
//!
//! A leader that a majority has not answered for the election timeout serves as one no longer: the
//! others may have elected another. Openraft itself goes on until it hears of that. Nothing that is
//! acknowledged depends on any of this.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::ServerState;
use timonier_proto::v1::ReadIndexRequest;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::network::Links;
use super::raft::{NodeId, Raft};
use super::transport::Target;

/// The random part is at most the election timeout divided by this.
const SPREAD: u32 = 3;
/// Of the election timeout, in percent: who has heard of a leader for less votes for nobody else.
/// Less than whole, so that the first to stand finds the others ready to vote.
const LEASE_PERCENT: u64 = 60;
/// The other masters are asked for at most the election timeout divided by this before one stands.
const ASK_PART: u32 = 5;
/// After this part of the election timeout it is looked again whether a majority answers.
const LOOK_PART: u32 = 10;

/// Openraft's lease, in milliseconds.
pub fn lease_ms(election_timeout: Duration) -> u64 {
    let millis = u64::try_from(election_timeout.as_millis()).unwrap_or(u64::MAX);
    (millis.saturating_mul(LEASE_PERCENT) / 100).max(3)
}

/// The sets of voters of which each must have a majority.
type Voters = Vec<BTreeSet<NodeId>>;

fn has_majority(voters: &Voters, here: impl Fn(NodeId) -> bool) -> bool {
    voters.iter().all(|set| set.iter().filter(|id| here(**id)).count() > set.len() / 2)
}

/// Stands for election when it is time to, until `closing`.
pub struct Elections {
    pub raft: Raft,
    pub shared: std::sync::Weak<Shared>,
    pub election_timeout: Duration,
    pub closing: CancellationToken,
}

impl Elections {
    pub async fn run(self) {
        let closing = self.closing.clone();
        tokio::select! {
            () = closing.cancelled() => {}
            () = self.stand_in_time() => {}
        }
    }

    async fn stand_in_time(&self) {
        // When it began, or stood last: it has been patient since.
        let mut since = Instant::now();
        let mut patience = self.patience();
        loop {
            let mut server = self.raft.server_metrics();
            if server.wait_for(|now| now.state != ServerState::Leader).await.is_err() {
                return;
            }
            // Of a leader, or of a candidate that got this master's vote.
            let Ok(heard) = self.raft.with_raft_state(|state| state.vote_last_modified()).await
            else {
                return;
            };
            since = heard.map_or(since, |heard| since.max(heard));
            if Instant::now() < since + patience {
                sleep_until(since + patience).await;
                continue;
            }
            if self.may_win().await {
                tracing::info!(patience_ms = patience.as_millis(), "standing for election");
                if self.raft.trigger().elect().await.is_err() {
                    return;
                }
            }
            (since, patience) = (Instant::now(), self.patience());
        }
    }

    fn patience(&self) -> Duration {
        self.election_timeout + (self.election_timeout / SPREAD).mul_f64(fastrand::f64())
    }

    /// It may vote, enough others answer, and none of them leads.
    async fn may_win(&self) -> bool {
        let Some(shared) = self.shared.upgrade() else { return false };
        let (voters, targets) = {
            let now = shared.raft.server_metrics();
            let now = now.borrow();
            let members = now.membership_config.membership();
            let targets: Vec<Target> = members
                .nodes()
                .map(|(id, node)| Target { id: *id, address: node.address.clone() })
                .collect();
            (members.get_joint_config().clone(), targets)
        };
        let is_voter = |id: NodeId| voters.iter().any(|set| set.contains(&id));
        if !is_voter(shared.id) {
            return false;
        }
        let others = targets.iter().filter(|target| target.id != shared.id && is_voter(target.id));
        let mut asking: FuturesUnordered<_> =
            others.map(|target| ask(&shared.links, target)).collect();
        let mut here = BTreeSet::from([shared.id]);
        let answers = async {
            while let Some((id, answer)) = asking.next().await {
                match answer {
                    Some(Leads(true)) => return false,
                    Some(Leads(false)) => here.insert(id),
                    None => continue,
                };
            }
            true
        };
        let none_leads =
            tokio::time::timeout(self.election_timeout / ASK_PART, answers).await.unwrap_or(true);
        none_leads && has_majority(&voters, |id| here.contains(&id))
    }
}

struct Leads(bool);

/// Whether that master leads, which it asks a majority about; `None` when it does not answer.
async fn ask(links: &Links, target: &Target) -> (NodeId, Option<Leads>) {
    let request = ReadIndexRequest { header: Some(links.header(target.id)) };
    let reply = links.transport.read_index(target, request).await;
    (target.id, reply.ok().map(|reply| Leads(reply.not_leader.is_none())))
}

/// Whether a master that openraft takes for the leader has heard of a majority lately.
pub struct Majority {
    pub raft: Raft,
    pub links: std::sync::Arc<Links>,
    pub election_timeout: Duration,
    /// Since when it leads; `None` while it does not.
    led_since: Option<Instant>,
}

impl Majority {
    pub fn new(raft: Raft, links: std::sync::Arc<Links>, election_timeout: Duration) -> Self {
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
