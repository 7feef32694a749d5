//! One node's place in the hub: who speaks for it, and what was said last.
//!
//! Who may speak is decided here, the same way on every master: of one agent the newest session, of
//! two agents that claim one name the first that lives.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use timonier_proto::v1::{Heartbeat, HostUsage, PodUsage};
use tokio_util::sync::CancellationToken;

/// Longest not-ready reason and message that are kept, in bytes.
const REASON_BYTES_MAX: usize = 1024;
/// Pods that one beat may tell of; a node's range has fewer addresses.
const PODS_MAX: usize = 512;
/// Two sessions of different agents that began within so long began at the same time, as far as
/// two masters can tell.
const SAME_TIME: Duration = Duration::from_millis(1000);

/// A node that was not heard of for so long may have been called lost meanwhile, its session or the
/// relay notwithstanding; half of the shortest grace that is of use.
const QUIET: Duration = Duration::from_millis(1500);

#[derive(Debug, Default)]
pub(super) struct Slot {
    state: Mutex<SlotState>,
}

#[derive(Debug, Default)]
pub(super) struct SlotState {
    pub holder: Option<Holder>,
    /// When the agent of a session of this master's was told that it may beat; `None` before.
    pub welcomed: Option<Instant>,
    /// `None` before the first heartbeat that this master ever had of the node.
    pub last_beat: Option<Instant>,
    /// Of the last heartbeat of this session; 0 before the first.
    pub sequence: u64,
    pub host: HostUsage,
    pub pods: Vec<PodUsage>,
    pub not_ready: Option<(String, String)>,
    /// Number of the last thing that other masters are to be told; 0 when there is none.
    pub told: u64,
}

/// Which master has the session that speaks for the node.
#[derive(Debug)]
pub(super) enum Holder {
    Here { session: u64, voice: Voice, cancel: CancellationToken },
    There { master: u64, voice: Voice },
}

/// A session, as masters compare them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Voice {
    pub agent_id: String,
    /// Counts the agent's dials.
    pub dial: u64,
    /// By this master's monotonic clock.
    pub since: Instant,
}

impl Voice {
    /// Whether it speaks for the node in place of `other`, which may still live.
    fn replaces(&self, other: &Voice) -> bool {
        if self.agent_id == other.agent_id {
            return (self.dial, self.since) > (other.dial, other.since);
        }
        let (first, last) = (self.since.min(other.since), self.since.max(other.since));
        if last.duration_since(first) < SAME_TIME {
            return self.agent_id < other.agent_id;
        }
        self.since < other.since
    }
}

/// What a heartbeat changed beside figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// The node became able or unable to run pods, or was heard for the first time, or again.
    Transition,
    Figures,
}

impl Slot {
    pub fn lock(&self) -> MutexGuard<'_, SlotState> {
        // Every change under the lock is complete in itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SlotState {
    pub fn is_held_by(&self, wanted: u64) -> bool {
        matches!(&self.holder, Some(Holder::Here { session, .. }) if *session == wanted)
    }

    /// Takes what the agent said at that time.
    pub fn hear(&mut self, beat: Heartbeat, at: Instant) -> Heard {
        let quiet = |last: Instant| at.saturating_duration_since(last) >= QUIET;
        let first = self.sequence == 0 || self.last_beat.is_none_or(quiet);
        self.last_beat = Some(self.last_beat.map_or(at, |last| last.max(at)));
        self.sequence = beat.sequence.max(1);
        if let Some(host) = beat.host {
            self.host = host;
        }
        self.pods = beat.pods;
        self.pods.truncate(PODS_MAX);
        let same = match &self.not_ready {
            None => beat.not_ready_reason.is_empty(),
            Some((reason, message)) => {
                *reason == beat.not_ready_reason && *message == beat.not_ready_message
            }
        };
        if !same {
            self.not_ready = (!beat.not_ready_reason.is_empty())
                .then(|| (bounded(beat.not_ready_reason), bounded(beat.not_ready_message)));
        }
        if first || !same { Heard::Transition } else { Heard::Figures }
    }

    /// The last heartbeat, as other masters are to hear it.
    pub fn beat(&self) -> Option<Heartbeat> {
        let (not_ready_reason, not_ready_message) = self.not_ready.clone().unwrap_or_default();
        (self.sequence > 0).then(|| Heartbeat {
            sequence: self.sequence,
            host: Some(self.host),
            pods: self.pods.clone(),
            not_ready_reason,
            not_ready_message,
            // Leases are asked of the master that has the session.
            ..Default::default()
        })
    }

    /// Another master says that it has this session. False when that is not believed, because
    /// another one speaks for the node.
    pub fn give(&mut self, to: u64, voice: Voice, silence_max: Duration) -> bool {
        let alive = self.is_alive(silence_max);
        match &self.holder {
            Some(Holder::Here { voice: own, cancel, .. }) => {
                if !voice.replaces(own) {
                    return false;
                }
                cancel.cancel();
                self.sequence = 0;
            }
            Some(Holder::There { master, voice: own }) if *master != to => {
                if alive && !voice.replaces(own) {
                    return false;
                }
                self.sequence = 0;
            }
            Some(Holder::There { voice: own, .. }) => {
                if *own != voice && own.agent_id != voice.agent_id {
                    self.sequence = 0;
                }
            }
            None => self.sequence = 0,
        }
        self.holder = Some(Holder::There { master: to, voice });
        true
    }

    /// When the session began in which no beat was said yet.
    pub fn greeted_at(&self) -> Option<Instant> {
        let (Holder::Here { voice, .. } | Holder::There { voice, .. }) = self.holder.as_ref()?;
        (self.sequence == 0).then_some(voice.since)
    }

    /// Heard of lately.
    pub fn is_alive(&self, silence_max: Duration) -> bool {
        self.last_beat.is_some_and(|last| last.elapsed() <= silence_max)
    }
}

fn bounded(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(REASON_BYTES_MAX));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_session_of_an_agent_and_the_first_of_two_agents_speak() {
        let now = Instant::now() + Duration::from_secs(60);
        let voice = |agent: &str, dial, ago_ms| Voice {
            agent_id: agent.into(),
            dial,
            since: now - Duration::from_millis(ago_ms),
        };
        for (new, old, replaces) in [
            (voice("a", 2, 0), voice("a", 1, 9000), true),
            (voice("a", 1, 0), voice("a", 2, 9000), false),
            (voice("a", 0, 0), voice("a", 0, 9000), true),
            (voice("b", 9, 0), voice("a", 1, 9000), false),
            (voice("b", 1, 9000), voice("a", 9, 0), true),
            // At the same time: the same one on both masters.
            (voice("a", 1, 0), voice("b", 1, 100), true),
            (voice("b", 1, 0), voice("a", 1, 100), false),
        ] {
            assert_eq!(new.replaces(&old), replaces, "{new:?} {old:?}");
        }
    }

    #[test]
    fn a_node_that_is_heard_again_is_looked_at_though_its_session_went_on() {
        let (mut state, begun) = (SlotState::default(), Instant::now());
        let mut heard_at = |ms| {
            let beat = Heartbeat { sequence: ms, ..Default::default() };
            state.hear(beat, begun + Duration::from_millis(ms))
        };
        assert_eq!(heard_at(1000), Heard::Transition);
        assert_eq!(heard_at(2000), Heard::Figures);
        assert_eq!(heard_at(2100), Heard::Figures);
        assert_eq!(heard_at(5200), Heard::Transition);
        assert_eq!(heard_at(6200), Heard::Figures);
    }
}
