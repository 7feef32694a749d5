//! What the agents last said of their hosts and pods: soft state, in memory only.
//!
//! A heartbeat costs one short lock of its own node's slot: no map is searched, nobody is woken and
//! nothing is copied but the figures. Whoever wants to know ([`Hub::signals`], monitor streams)
//! reads the slots when they want to. Nothing here is ever written to the store, and whether a node
//! counts as ready is decided by a control loop, not here.
//!
//! Each master has all nodes: its own agents' words, and what the other masters relay of theirs.

mod exchange;
mod latency;
mod monitor;
mod slot;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use timonier_master_core::world::{NodeSignal, Telemetry};
use timonier_proto::v1::{Heartbeat, LatencyBeats};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use self::slot::{Heard, Holder, Slot, Voice};
use crate::driver::Signals;

pub(crate) use exchange::Cursor;
pub use latency::BeatStream;
pub use monitor::FrameStream;
pub(crate) use monitor::address_of;

/// [`Hub::signals`] answers the same copy for so long, unless a node came, went or changed.
const SIGNALS_AGE_MAX: Duration = Duration::from_millis(100);
/// Two clocks that differ by less are the same one.
const CLOCKS_APART_MAX: SignedDuration = SignedDuration::from_millis(10);
/// A master that has relayed nothing for so long is away: its agents are given time to find
/// another.
const RELAY_SILENCE_MAX: Duration = Duration::from_millis(1000);
/// An agent not heard of for so long does not hold its node's name any more.
const SILENCE_MAX_DEFAULT_MS: u64 = 3000;

/// All agents' telemetry. Clones are the same hub.
#[derive(Debug, Clone)]
pub struct Hub {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// When this master began to listen, or to lead.
    since: Mutex<Instant>,
    nodes: RwLock<HashMap<String, Arc<Slot>>>,
    /// The other masters, as far as they relay.
    masters: Mutex<HashMap<u64, MasterHeard>>,
    latency: latency::Latency,
    /// Grows when a node connects, disconnects, or becomes able or unable to run pods.
    version: AtomicU64,
    changed: Notify,
    transitions: watch::Sender<u64>,
    /// Numbers what this master's own agents say.
    told: AtomicU64,
    silence_max_ms: AtomicU64,
    cached: Mutex<Option<Cached>>,
}

#[derive(Debug, Clone, Copy)]
struct MasterHeard {
    at: Instant,
}

#[derive(Debug)]
struct Cached {
    made: Instant,
    /// What the clock of whoever asked showed then.
    now: Timestamp,
    version: u64,
    telemetry: Arc<Telemetry>,
}

impl Cached {
    /// The clock that shows `now` went on since as time did.
    fn is_by_clock(&self, now: Timestamp) -> bool {
        let then = ago(now, self.made);
        then.duration_since(self.now).abs() < CLOCKS_APART_MAX
    }
}

/// An agent's session, as it introduces itself.
#[derive(Debug, Clone, Copy)]
pub struct Introduction<'a> {
    pub node: &'a str,
    pub agent_id: &'a str,
    /// Counts the agent's dials.
    pub dial: u64,
}

/// Where the session of a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Where {
    Here,
    /// At the master with this id.
    There(u64),
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
                since: Mutex::new(Instant::now()),
                nodes: RwLock::default(),
                masters: Mutex::default(),
                latency: latency::Latency::new(),
                version: AtomicU64::new(0),
                changed: Notify::new(),
                transitions: watch::Sender::new(0),
                told: AtomicU64::new(0),
                silence_max_ms: AtomicU64::new(SILENCE_MAX_DEFAULT_MS),
                cached: Mutex::new(None),
            }),
        }
    }

    /// An agent not heard of for so long does not hold its node's name any more.
    pub fn set_silence_max(&self, silence_max: Duration) {
        let ms = u64::try_from(silence_max.as_millis()).unwrap_or(u64::MAX);
        self.inner.silence_max_ms.store(ms, Ordering::Relaxed);
    }

    /// A session of the node has begun at this master; whether the node can run pods is known with
    /// its first heartbeat. A session of the same node before it loses its voice. `cancel` is called
    /// when a newer session begins at another master.
    pub fn connect(&self, who: Introduction<'_>, cancel: CancellationToken) -> Link {
        let slot = self.slot_or_new(who.node);
        // Versions only grow, so each link gets a number that no other has.
        let session = self.bump();
        {
            let mut state = slot.lock();
            let agent_id = who.agent_id.to_owned();
            let voice = Voice { agent_id, dial: who.dial, since: Instant::now() };
            state.holder = Some(Holder::Here { session, voice, cancel });
            state.welcomed = None;
            state.sequence = 0;
            state.told = self.next_told();
        }
        self.tell();
        Link { hub: self.clone(), slot, session }
    }

    /// The master at which another agent of this name is connected, if it was heard of lately.
    pub fn taken(&self, who: Introduction<'_>) -> Option<u64> {
        let slot = self.slot(who.node)?;
        let state = slot.lock();
        match &state.holder {
            Some(Holder::There { master, voice })
                if voice.agent_id != who.agent_id && state.is_alive(self.silence_max()) =>
            {
                Some(*master)
            }
            _ => None,
        }
    }

    /// Which master has the node's session; `None` when none is known to have it.
    pub fn find(&self, node: &str) -> Option<Where> {
        let slot = self.slot(node)?;
        let state = slot.lock();
        state.holder.as_ref().map(|holder| match holder {
            Holder::Here { .. } => Where::Here,
            Holder::There { master, .. } => Where::There(*master),
        })
    }

    /// Drops what is known of a node whose object is gone.
    pub fn forget(&self, node: &str) {
        let mut nodes = self.inner.nodes.write().unwrap_or_else(PoisonError::into_inner);
        let is_ours = |slot: &Arc<Slot>| matches!(slot.lock().holder, Some(Holder::Here { .. }));
        if nodes.get(node).is_some_and(|slot| !is_ours(slot)) {
            nodes.remove(node);
            drop(nodes);
            self.bump();
        }
    }

    /// Number of agents that have a session with a master that is there.
    pub fn connected(&self) -> usize {
        let heard = self.masters().clone();
        let nodes = self.inner.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let is_connected = |slot: &&Arc<Slot>| match &slot.lock().holder {
            Some(Holder::Here { .. }) => true,
            Some(Holder::There { master, .. }) => away_since(&heard, *master).is_none(),
            None => false,
        };
        nodes.values().filter(is_connected).count()
    }

    fn slot(&self, node: &str) -> Option<Arc<Slot>> {
        self.inner.nodes.read().unwrap_or_else(PoisonError::into_inner).get(node).cloned()
    }

    fn slot_or_new(&self, node: &str) -> Arc<Slot> {
        if let Some(slot) = self.slot(node) {
            return slot;
        }
        let mut nodes = self.inner.nodes.write().unwrap_or_else(PoisonError::into_inner);
        nodes.entry(node.to_owned()).or_default().clone()
    }

    fn slots(&self) -> Vec<(String, Arc<Slot>)> {
        let nodes = self.inner.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.iter().map(|(name, slot)| (name.clone(), slot.clone())).collect()
    }

    fn masters(&self) -> MutexGuard<'_, HashMap<u64, MasterHeard>> {
        self.inner.masters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn silence_max(&self) -> Duration {
        Duration::from_millis(self.inner.silence_max_ms.load(Ordering::Relaxed))
    }

    fn next_told(&self) -> u64 {
        self.inner.told.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Answers the new version, and wakes the driver.
    fn bump(&self) -> u64 {
        let version = self.inner.version.fetch_add(1, Ordering::AcqRel) + 1;
        self.inner.changed.notify_one();
        version
    }

    /// Wakes who relays.
    fn tell(&self) {
        self.inner.transitions.send_modify(|count| *count += 1);
    }

    /// As it is now, by a clock that shows `now`.
    fn build(&self, now: Timestamp) -> Telemetry {
        let heard = self.masters().clone();
        let nodes = self.inner.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let nodes = nodes
            .iter()
            .filter_map(|(name, slot)| {
                let state = slot.lock();
                let master_away_since = match &state.holder {
                    Some(Holder::There { master, .. }) => away_since(&heard, *master),
                    _ => None,
                };
                let master_away_since = master_away_since.map(|at| ago(now, at));
                let signal = NodeSignal {
                    last_beat: ago(now, state.last_beat?),
                    connected: state.holder.is_some(),
                    host: state.host,
                    not_ready: state.not_ready.clone(),
                    master_away_since,
                    greeted_at: state.greeted_at().map(|at| ago(now, at)),
                };
                Some((name.clone(), signal))
            })
            .collect();
        let since = *self.inner.since.lock().unwrap_or_else(PoisonError::into_inner);
        Telemetry { since: ago(now, since), nodes, latency: self.inner.latency.samples(now) }
    }
}

/// Since when that master is away; `None` while it relays.
fn away_since(heard: &HashMap<u64, MasterHeard>, master: u64) -> Option<Instant> {
    let last = heard.get(&master)?.at;
    (last.elapsed() > RELAY_SILENCE_MAX).then_some(last)
}

/// What a clock that shows `now` showed at that moment. Ages are measured with the monotonic clock
/// only: that a wall clock is set makes nobody look silent.
fn ago(now: Timestamp, at: Instant) -> Timestamp {
    let age = SignedDuration::try_from(at.elapsed()).unwrap_or(SignedDuration::MAX);
    now.checked_sub(age).unwrap_or(Timestamp::MIN)
}

impl Signals for Hub {
    fn signals(&self, now: Timestamp) -> Arc<Telemetry> {
        let version = self.inner.version.load(Ordering::Acquire);
        let mut cached = self.inner.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cached) = &*cached
            && cached.version == version
            && cached.made.elapsed() < SIGNALS_AGE_MAX
            && cached.is_by_clock(now)
        {
            return cached.telemetry.clone();
        }
        let telemetry = Arc::new(self.build(now));
        let made = Instant::now();
        *cached = Some(Cached { made, now, version, telemetry: telemetry.clone() });
        telemetry
    }

    async fn changed(&self) {
        self.inner.changed.notified().await;
    }

    fn lead(&self) {
        let mut since = self.inner.since.lock().unwrap_or_else(PoisonError::into_inner);
        *since = Instant::now();
        drop(since);
        self.bump();
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
        if !state.is_held_by(self.session) {
            return;
        }
        let heard = state.hear(beat, Instant::now());
        state.told = self.hub.next_told();
        drop(state);
        if heard == Heard::Transition {
            self.hub.bump();
            self.hub.tell();
        }
    }

    /// Takes measured latencies in.
    pub fn latency(&self, beats: LatencyBeats) {
        self.hub.inner.latency.add_own(beats, Instant::now());
    }

    /// From now on the agent is expected to beat.
    pub fn welcome(&self) {
        self.slot.lock().welcomed = Some(Instant::now());
    }

    /// How long nothing has been heard, though something was expected.
    pub fn silence(&self) -> Duration {
        let state = self.slot.lock();
        let Some(welcomed) = state.welcomed else { return Duration::ZERO };
        let last = state.last_beat.map_or(welcomed, |beat| beat.max(welcomed));
        drop(state);
        last.elapsed()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut state = self.slot.lock();
        if state.is_held_by(self.session) {
            state.holder = None;
            state.told = self.hub.next_told();
            drop(state);
            self.hub.bump();
            self.hub.tell();
        }
    }
}

#[cfg(test)]
mod tests {
    use timonier_proto::v1::HostUsage;

    use super::*;

    fn join(hub: &Hub, agent_id: &str, dial: u64) -> (Link, CancellationToken) {
        let cancel = CancellationToken::new();
        (hub.connect(Introduction { node: "n1", agent_id, dial }, cancel.clone()), cancel)
    }

    /// Hands on what `from` (the master with this id) has to tell.
    fn relay(from: &Hub, id: u64, cursor: &mut Cursor, to: &Hub) {
        let outgoing = from.outgoing(id, cursor);
        cursor.sent(outgoing.told());
        to.take_in(outgoing.frame);
    }

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
        let (link, _) = join(&hub, "a", 1);
        hub.changed().await;
        assert!(
            hub.signals(Timestamp::now()).nodes.is_empty(),
            "nothing is known before the first beat"
        );
        link.beat(beat(1, 10.0, ""));
        hub.changed().await;
        link.beat(beat(2, 20.0, ""));
        assert!(futures::poll!(std::pin::pin!(hub.changed())).is_pending());
        link.beat(beat(3, 30.0, "RuntimeDown"));
        hub.changed().await;
        let signals = hub.signals(Timestamp::now());
        let node = &signals.nodes["n1"];
        assert_eq!(node.not_ready.as_ref().unwrap().0, "RuntimeDown");
        assert_eq!(node.host.cpu_percent, 30.0);
        drop(link);
        hub.changed().await;
        assert!(!hub.signals(Timestamp::now()).nodes["n1"].connected);
        assert_eq!(hub.connected(), 0);
    }

    #[test]
    fn a_replaced_session_has_no_voice() {
        let hub = Hub::new();
        let (old, _) = join(&hub, "a", 1);
        let (new, _) = join(&hub, "a", 2);
        old.beat(beat(9, 90.0, ""));
        new.beat(beat(1, 10.0, ""));
        drop(old);
        let signals = hub.signals(Timestamp::now());
        assert!(signals.nodes["n1"].connected);
        assert_eq!(signals.nodes["n1"].host.cpu_percent, 10.0);
    }

    #[test]
    fn what_one_master_hears_all_have() {
        let (one, two) = (Hub::new(), Hub::new());
        let mut cursor = Cursor::new(&one);
        let (link, _) = join(&one, "a", 1);
        link.beat(beat(1, 42.0, ""));
        relay(&one, 1, &mut cursor, &two);
        let signals = two.signals(Timestamp::now());
        assert_eq!(signals.nodes["n1"].host.cpu_percent, 42.0);
        assert!(signals.nodes["n1"].connected);
        assert_eq!((two.find("n1"), two.connected()), (Some(Where::There(1)), 1));
        // Nothing new, nothing told.
        let outgoing = one.outgoing(1, &mut cursor);
        assert!(outgoing.frame.nodes.is_empty() && !outgoing.frame.first);
        link.beat(beat(2, 43.0, "RuntimeDown"));
        relay(&one, 1, &mut cursor, &two);
        assert!(two.build(Timestamp::now()).nodes["n1"].not_ready.is_some());
        drop(link);
        relay(&one, 1, &mut cursor, &two);
        assert_eq!((two.find("n1"), two.connected()), (None, 0));
        // A new stream says who is there at all.
        let (_link, _) = join(&one, "a", 2);
        relay(&one, 1, &mut Cursor::new(&one), &two);
        assert_eq!(two.find("n1"), Some(Where::There(1)));
        let restarted = Hub::new();
        relay(&restarted, 1, &mut Cursor::new(&restarted), &two);
        assert_eq!(two.find("n1"), None);
    }

    #[test]
    fn a_newer_session_elsewhere_ends_the_older_one() {
        let (one, two) = (Hub::new(), Hub::new());
        let (old, cancelled) = join(&one, "a", 1);
        let (new, _) = join(&two, "a", 2);
        new.beat(beat(1, 1.0, ""));
        let (mut from_one, mut from_two) = (Cursor::new(&one), Cursor::new(&two));
        relay(&one, 1, &mut from_one, &two);
        assert_eq!(two.find("n1"), Some(Where::Here));
        relay(&two, 2, &mut from_two, &one);
        assert!(cancelled.is_cancelled());
        drop(old);
        assert_eq!(one.find("n1"), Some(Where::There(2)));
        // Another agent of that name is refused as long as this one lives.
        let other = Introduction { node: "n1", agent_id: "b", dial: 1 };
        assert_eq!(one.taken(other), Some(2));
        assert_eq!(one.taken(Introduction { agent_id: "a", ..other }), None);
        one.set_silence_max(Duration::ZERO);
        assert_eq!(one.taken(other), None);
    }
}
