//! What the agents last said of their hosts and pods: soft state, in memory only.
//!
//! A heartbeat costs one short lock of its own node's slot: no map is searched, nobody is woken and
//! nothing is copied but the figures. Whoever wants to know ([`Hub::signals`], monitor streams)
//! reads the slots when they want to. Nothing here is ever written to the store, and whether a node
//! counts as ready is decided by a control loop, not here.

mod latency;
mod monitor;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use timonier_master_core::world::{NodeSignal, Telemetry};
use timonier_proto::v1::{Heartbeat, HostUsage, LatencyBeats, PodUsage};
use tokio::sync::Notify;

use crate::driver::Signals;

pub use latency::BeatStream;
pub use monitor::FrameStream;
pub(crate) use monitor::address_of;

/// [`Hub::signals`] answers the same copy for so long, unless a node came, went or changed.
const SIGNALS_AGE_MAX: Duration = Duration::from_millis(100);
/// Longest not-ready reason and message that are kept, in bytes.
const REASON_BYTES_MAX: usize = 1024;

/// All agents' telemetry. Clones are the same hub.
#[derive(Debug, Clone)]
pub struct Hub {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    since: Timestamp,
    nodes: RwLock<HashMap<String, Arc<Slot>>>,
    latency: latency::Latency,
    /// Grows when a node connects, disconnects, or becomes able or unable to run pods.
    version: AtomicU64,
    changed: Notify,
    cached: Mutex<Option<Cached>>,
}

#[derive(Debug)]
struct Cached {
    made: Instant,
    version: u64,
    telemetry: Arc<Telemetry>,
}

/// One node's place.
#[derive(Debug)]
struct Slot {
    state: Mutex<SlotState>,
}

#[derive(Debug, Default)]
struct SlotState {
    /// Number of the session that may write here; 0 when none is connected.
    session: u64,
    /// When the agent was told that it may beat; `None` before.
    welcomed: Option<Timestamp>,
    /// `None` before the first heartbeat that this master ever had of the node.
    last_beat: Option<Timestamp>,
    /// Of the last heartbeat of this session; 0 before the first.
    sequence: u64,
    host: HostUsage,
    pods: Vec<PodUsage>,
    not_ready: Option<(String, String)>,
}

impl Default for Hub {
    fn default() -> Self {
        Self::new()
    }
}

impl Hub {
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                since: Timestamp::now(),
                nodes: RwLock::default(),
                latency: latency::Latency::new(),
                version: AtomicU64::new(0),
                changed: Notify::new(),
                cached: Mutex::new(None),
            }),
        }
    }

    /// A session of `node` has begun; whether the node can run pods is known with its first
    /// heartbeat. A session of the same node before it loses its voice.
    pub fn connect(&self, node: &str) -> Link {
        let slot = {
            let mut nodes = self.inner.nodes.write().unwrap_or_else(PoisonError::into_inner);
            nodes
                .entry(node.to_owned())
                .or_insert_with(|| Arc::new(Slot { state: Mutex::default() }))
                .clone()
        };
        // Versions only grow, so each link gets a number that no other has.
        let session = self.bump();
        {
            let mut state = slot.lock();
            state.session = session;
            state.welcomed = None;
            state.sequence = 0;
        }
        Link { hub: self.clone(), slot, session }
    }

    /// Drops what is known of a node whose object is gone.
    pub fn forget(&self, node: &str) {
        let mut nodes = self.inner.nodes.write().unwrap_or_else(PoisonError::into_inner);
        if nodes.get(node).is_some_and(|slot| slot.lock().session == 0) {
            nodes.remove(node);
            drop(nodes);
            self.bump();
        }
    }

    /// Number of agents that have a session with this master.
    pub fn connected(&self) -> usize {
        let nodes = self.inner.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.values().filter(|slot| slot.lock().session != 0).count()
    }

    fn slot(&self, node: &str) -> Option<Arc<Slot>> {
        self.inner.nodes.read().unwrap_or_else(PoisonError::into_inner).get(node).cloned()
    }

    /// Answers the new version, and wakes the driver.
    fn bump(&self) -> u64 {
        let version = self.inner.version.fetch_add(1, Ordering::AcqRel) + 1;
        self.inner.changed.notify_one();
        version
    }

    fn build(&self) -> Telemetry {
        let nodes = self.inner.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let nodes = nodes
            .iter()
            .filter_map(|(name, slot)| {
                let state = slot.lock();
                let signal = NodeSignal {
                    last_beat: state.last_beat?,
                    connected: state.session != 0,
                    host: state.host,
                    not_ready: state.not_ready.clone(),
                };
                Some((name.clone(), signal))
            })
            .collect();
        Telemetry { since: self.inner.since, nodes, latency: self.inner.latency.samples() }
    }
}

impl Signals for Hub {
    fn signals(&self) -> Arc<Telemetry> {
        let version = self.inner.version.load(Ordering::Acquire);
        let mut cached = self.inner.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cached) = &*cached
            && cached.version == version
            && cached.made.elapsed() < SIGNALS_AGE_MAX
        {
            return cached.telemetry.clone();
        }
        let telemetry = Arc::new(self.build());
        *cached = Some(Cached { made: Instant::now(), version, telemetry: telemetry.clone() });
        telemetry
    }

    async fn changed(&self) {
        self.inner.changed.notified().await;
    }
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, SlotState> {
        // Every change under the lock is complete in itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session's voice in the hub; the node is disconnected when it is dropped.
#[derive(Debug)]
pub struct Link {
    hub: Hub,
    slot: Arc<Slot>,
    session: u64,
}

impl Link {
    /// Takes a heartbeat in. Beats of a session that was replaced are dropped.
    pub fn beat(&self, beat: Heartbeat) {
        let mut state = self.slot.lock();
        if state.session != self.session {
            return;
        }
        let first = state.sequence == 0;
        state.last_beat = Some(Timestamp::now());
        state.sequence = beat.sequence.max(1);
        if let Some(host) = beat.host {
            state.host = host;
        }
        state.pods = beat.pods;
        let same = match &state.not_ready {
            None => beat.not_ready_reason.is_empty(),
            Some((reason, message)) => {
                *reason == beat.not_ready_reason && *message == beat.not_ready_message
            }
        };
        if !same {
            state.not_ready = (!beat.not_ready_reason.is_empty())
                .then(|| (bounded(beat.not_ready_reason), bounded(beat.not_ready_message)));
        }
        if first || !same {
            drop(state);
            self.hub.bump();
        }
    }

    /// Takes measured latencies in.
    pub fn latency(&self, beats: LatencyBeats) {
        self.hub.inner.latency.add(beats, Timestamp::now());
    }

    /// From now on the agent is expected to beat.
    pub fn welcome(&self) {
        self.slot.lock().welcomed = Some(Timestamp::now());
    }

    /// How long nothing has been heard, though something was expected.
    pub fn silence(&self) -> Duration {
        let state = self.slot.lock();
        let Some(welcomed) = state.welcomed else { return Duration::ZERO };
        let last = state.last_beat.map_or(welcomed, |beat| beat.max(welcomed));
        drop(state);
        Timestamp::now().duration_since(last).try_into().unwrap_or_default()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut state = self.slot.lock();
        if state.session == self.session {
            state.session = 0;
            drop(state);
            self.hub.bump();
        }
    }
}

fn bounded(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(REASON_BYTES_MAX));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(sequence: u64, cpu: f32, reason: &str) -> Heartbeat {
        Heartbeat {
            sequence,
            host: Some(HostUsage { cpu_percent: cpu, ..Default::default() }),
            not_ready_reason: reason.into(),
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn only_transitions_wake_the_driver() {
        let hub = Hub::new();
        let link = hub.connect("n1");
        hub.changed().await;
        assert!(hub.signals().nodes.is_empty(), "nothing is known before the first beat");
        link.beat(beat(1, 10.0, ""));
        hub.changed().await;
        link.beat(beat(2, 20.0, ""));
        assert!(futures::poll!(std::pin::pin!(hub.changed())).is_pending());
        link.beat(beat(3, 30.0, "RuntimeDown"));
        hub.changed().await;
        let signals = hub.signals();
        let node = &signals.nodes["n1"];
        assert_eq!(node.not_ready.as_ref().unwrap().0, "RuntimeDown");
        assert_eq!(node.host.cpu_percent, 30.0);
        drop(link);
        hub.changed().await;
        assert!(!hub.signals().nodes["n1"].connected);
        assert_eq!(hub.connected(), 0);
    }

    #[test]
    fn a_replaced_session_has_no_voice() {
        let hub = Hub::new();
        let old = hub.connect("n1");
        let new = hub.connect("n1");
        old.beat(beat(9, 90.0, ""));
        new.beat(beat(1, 10.0, ""));
        drop(old);
        let signals = hub.signals();
        assert!(signals.nodes["n1"].connected);
        assert_eq!(signals.nodes["n1"].host.cpu_percent, 10.0);
    }
}
