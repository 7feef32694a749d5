//! The hub's side of the relays between masters: frames of what this master's agents said, and the
//! taking in of what others' agents said.
//!
//! A frame is made from the slots as they are when it is sent, so a master that reads slowly hears
//! less often, and nothing piles up for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use timonier_proto::v1::{LatencyBeats, RelayFrame, RelayedNode};
use tokio::sync::{broadcast, watch};

use super::slot::{Heard, Holder, Slot, SlotState, Voice};
use super::{Hub, MasterHeard};

/// Nodes of one frame: with as many pods as a beat may tell of, they fit a message.
const NODES_PER_FRAME_MAX: usize = 256;
/// Latency beats of one frame; older ones are worth nothing.
const BEATS_PER_FRAME_MAX: usize = 4096;

/// How far one other master has been told.
#[derive(Debug)]
pub(crate) struct Cursor {
    first: bool,
    told: u64,
    beats: broadcast::Receiver<Arc<LatencyBeats>>,
}

/// A frame that is to be sent, and where the next one begins.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub frame: RelayFrame,
    /// There is more than a frame takes.
    pub is_cut: bool,
    told: u64,
}

impl Cursor {
    pub fn new(hub: &Hub) -> Self {
        Self { first: true, told: 0, beats: hub.inner.latency.own() }
    }

    /// The frame was sent; one that was not is made again, newer.
    pub fn sent(&mut self, told: u64) {
        self.first = false;
        self.told = told;
    }
}

impl Outgoing {
    pub fn told(&self) -> u64 {
        self.told
    }
}

impl Hub {
    /// What the master that this cursor is of has not been told.
    pub(crate) fn outgoing(&self, me: u64, cursor: &mut Cursor) -> Outgoing {
        let now = Instant::now();
        // Before the slots are looked at: what is said meanwhile is told with the next frame too.
        let until = self.inner.told.load(Ordering::Acquire);
        let slots = self.slots();
        let mut news: Vec<(u64, String, Arc<Slot>)> = slots
            .iter()
            .filter_map(|(name, slot)| {
                let told = slot.lock().told;
                (told > cursor.told).then(|| (told, name.clone(), slot.clone()))
            })
            .collect();
        news.sort_unstable_by_key(|(told, ..)| *told);
        let is_cut = news.len() > NODES_PER_FRAME_MAX;
        news.truncate(NODES_PER_FRAME_MAX);
        let last = news.last().map_or(until, |(told, ..)| *told);
        let mut frame = RelayFrame { master: me, first: cursor.first, ..Default::default() };
        if cursor.first {
            let held = |slot: &Slot| matches!(slot.lock().holder, Some(Holder::Here { .. }));
            frame.connected =
                slots.iter().filter(|(_, s)| held(s)).map(|(name, _)| name.clone()).collect();
        }
        for (_, name, slot) in news {
            match relayed(&name, &slot.lock(), now) {
                Some(node) => frame.nodes.push(node),
                None => frame.gone.push(name),
            }
        }
        frame.beats = latest(&mut cursor.beats);
        Outgoing { frame, is_cut, told: if is_cut { last.min(until) } else { until } }
    }

    /// Wakes who relays when a session begins or ends, or a node becomes able or unable to run pods.
    pub(crate) fn transitions(&self) -> watch::Receiver<u64> {
        self.inner.transitions.subscribe()
    }

    /// Takes in what another master tells.
    pub(crate) fn take_in(&self, frame: RelayFrame) {
        let now = Instant::now();
        let master = frame.master;
        self.masters().insert(master, MasterHeard { at: now });
        let mut changed = false;
        if frame.first {
            for (name, slot) in self.slots() {
                if !frame.connected.contains(&name) {
                    changed |= release(&mut slot.lock(), master);
                }
            }
        }
        for name in &frame.gone {
            if let Some(slot) = self.slot(name) {
                changed |= release(&mut slot.lock(), master);
            }
        }
        for node in frame.nodes {
            let slot = self.slot_or_new(&node.node);
            changed |= self.take_node(&mut slot.lock(), master, node, now);
        }
        if let Some(beats) = frame.beats {
            self.inner.latency.add(beats, now);
        }
        if changed {
            self.bump();
        }
    }

    /// Whether something changed beside figures.
    fn take_node(
        &self,
        state: &mut SlotState,
        master: u64,
        node: RelayedNode,
        now: Instant,
    ) -> bool {
        // A clock may not reach back before its machine's start.
        let ago = |ms: u64| now.checked_sub(Duration::from_millis(ms)).unwrap_or(now);
        let since = ago(node.session_age_ms);
        let voice = Voice { agent_id: node.agent_id, dial: node.dial, since };
        let was_there =
            matches!(&state.holder, Some(Holder::There { master: m, .. }) if *m == master);
        if !state.give(master, voice, self.silence_max()) {
            return false;
        }
        let heard = node.beat.map(|beat| state.hear(beat, ago(node.beat_age_ms.into())));
        !was_there || heard == Some(Heard::Transition)
    }
}

/// `None` when this master has no session of the node.
fn relayed(name: &str, state: &SlotState, now: Instant) -> Option<RelayedNode> {
    let Some(Holder::Here { voice, .. }) = &state.holder else { return None };
    let age = |at: Instant| now.saturating_duration_since(at).as_millis();
    Some(RelayedNode {
        node: name.to_owned(),
        agent_id: voice.agent_id.clone(),
        dial: voice.dial,
        session_age_ms: u64::try_from(age(voice.since)).unwrap_or(u64::MAX),
        beat_age_ms: state.last_beat.map_or(0, |at| u32::try_from(age(at)).unwrap_or(u32::MAX)),
        beat: state.beat(),
    })
}

/// The master has no session of the node any more; whether it had one.
fn release(state: &mut SlotState, from: u64) -> bool {
    let held = matches!(&state.holder, Some(Holder::There { master, .. }) if *master == from);
    if held {
        state.holder = None;
    }
    held
}

/// The beats since the last frame; where there are too many, the newest.
fn latest(beats: &mut broadcast::Receiver<Arc<LatencyBeats>>) -> Option<LatencyBeats> {
    use broadcast::error::TryRecvError;
    let mut all = LatencyBeats::default();
    loop {
        match beats.try_recv() {
            Ok(more) => all.beats.extend(more.beats.iter().cloned()),
            Err(TryRecvError::Lagged(_)) => {}
            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
        }
    }
    let surplus = all.beats.len().saturating_sub(BEATS_PER_FRAME_MAX);
    all.beats.drain(..surplus);
    (!all.beats.is_empty()).then_some(all)
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use timonier_proto::MESSAGE_BYTES_MAX;
    use timonier_proto::v1::{Heartbeat, PodUsage};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::telemetry::Introduction;

    #[test]
    fn agents_that_tell_without_measure_do_not_break_the_relay_for_the_others() {
        let hub = Hub::new();
        let mut cursor = Cursor::new(&hub);
        let pod = PodUsage { uid: vec![7; 16].into(), cpu_millis: 1, memory_bytes: 1 << 40 };
        let beat = Heartbeat {
            sequence: 1,
            pods: vec![pod; 50_000],
            not_ready_reason: "x".repeat(1 << 20),
            ..Heartbeat::default()
        };
        let nodes: Vec<String> = (0..NODES_PER_FRAME_MAX + 44).map(|n| format!("n{n}")).collect();
        let links = nodes.iter().map(|node| {
            let who = Introduction { node, agent_id: "a", dial: 1 };
            let link = hub.connect(who, CancellationToken::new());
            link.beat(beat.clone());
            link
        });
        let links: Vec<_> = links.collect();
        let first = hub.outgoing(1, &mut cursor);
        assert!(first.frame.encoded_len() < MESSAGE_BYTES_MAX);
        assert!((first.frame.nodes.len(), first.is_cut) == (NODES_PER_FRAME_MAX, true));
        cursor.sent(first.told());
        let rest = hub.outgoing(1, &mut cursor);
        assert!((rest.frame.nodes.len(), rest.is_cut) == (44, false));
        drop(links);
    }
}
