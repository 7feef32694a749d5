//! When a master stands for election: after it has heard of no leader for the election timeout and
//! a random part more, drawn anew each time; at once when another one stands that cannot win.
//!
//! Openraft's own timer is off: it draws its time once and looks at fixed ticks, so that masters
//! that stood at the same moment do so again, and it makes one whose log is behind wait for two
//! timeouts more, while it is the others that could win.

use std::sync::Arc;
use std::time::Duration;

use openraft::error::Fatal;
use openraft::{Config, ServerState};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::raft::{NodeId, Raft};

/// Of the election timeout: the random part of a follower's patience is at most this.
const SPREAD: f64 = 0.25;
/// Of the election timeout: who has heard of a leader for less than this votes for nobody else. So
/// much less than the whole that the first to stand finds the others ready to vote.
const LEASE: f64 = 0.6;
/// Of the election timeout: a candidate, and one that has voted for one, waits so long for the
/// outcome, and a random part as long again.
const CANDIDACY: f64 = 0.3;
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

/// What decides whether to stand.
struct Seen {
    /// When a leader, or a candidate that has this master's vote, was last heard.
    heard: Option<Instant>,
    /// It was a leader.
    led: bool,
    votes: bool,
}

/// The timer of one master.
pub struct Election {
    pub id: NodeId,
    pub raft: Raft,
    pub timeout: Duration,
    /// Told when a candidate was refused because this master has more.
    pub urged: Arc<Notify>,
}

impl Election {
    /// Runs until `closing`, or until the consensus has stopped.
    pub async fn run(self, closing: CancellationToken) {
        tokio::select! {
            () = closing.cancelled() => {}
            // It is told where it is watched for.
            Err(stopped) = self.watch() => tracing::debug!(%stopped, "no more elections"),
        }
    }

    async fn watch(&self) -> Result<(), Fatal<NodeId>> {
        let mut server = self.raft.server_metrics();
        let mut begun = Instant::now();
        let mut chance = fastrand::f64();
        loop {
            let leads = server.borrow_and_update().state == ServerState::Leader;
            let seen = self.look().await?;
            if leads || !seen.votes {
                if server.changed().await.is_err() {
                    return Err(Fatal::Stopped);
                }
                begun = Instant::now();
                continue;
            }
            let heard = seen.heard.map_or(begun, |heard| heard.max(begun));
            let due = heard + self.patience(seen.led, chance);
            if Instant::now() >= due {
                chance = fastrand::f64();
                begun = Instant::now();
                tracing::info!(id = self.id, "no leader is heard: standing for election");
                self.raft.trigger().elect().await?;
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
        self.timeout.mul_f64(times)
    }

    async fn look(&self) -> Result<Seen, Fatal<NodeId>> {
        let id = self.id;
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
        let lease = self.timeout.mul_f64(LEASE);
        if seen.led && seen.heard.is_some_and(|heard| heard.elapsed() < lease) {
            return Ok(());
        }
        tracing::info!(id = self.id, "a candidate lacks entries: standing for election");
        stand(&self.raft).await
    }
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
