//! Keeps the events few: the old ones expire, and beyond a bound the oldest go first.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use timonier_proto::{Kind, ObjectKey};

use super::{OPS_PER_PLAN_MAX, Reconciler};
use crate::object::{after_millis, after_seconds, key_of};
use crate::op::{Change, Op};
use crate::snapshot::Snapshot;
use crate::world::{Plan, World};

/// Age at which an event goes, as in Kubernetes.
const EVENT_AGE_SECONDS_MAX: i64 = 3_600;
/// Most events that a cluster keeps.
const EVENTS_MAX: usize = 5_000;
/// Time between two sweeps: how far the bound may be overrun is what comes in meanwhile.
const SWEEP_INTERVAL_MS: i64 = 10_000;

/// The event loop; its one key stands for all events.
#[derive(Debug, Clone, Copy, Default)]
pub struct EventLoop;

impl Reconciler for EventLoop {
    fn name(&self) -> &'static str {
        "event"
    }

    /// No change wakes it: it comes by at its own pace.
    fn keys(&self, _change: &Change, _snapshot: &Snapshot) -> Vec<ObjectKey> {
        Vec::new()
    }

    fn all_keys(&self, _snapshot: &Snapshot) -> Vec<ObjectKey> {
        vec![ObjectKey::new(Kind::Event, "", "")]
    }

    fn reconcile(&self, world: &World, _key: &ObjectKey) -> Plan {
        let mut events: Vec<(Timestamp, &Event)> =
            world.snapshot.list::<Event>(None).map(|e| (last_seen(e), &**e)).collect();
        let horizon = after_seconds(world.now, -EVENT_AGE_SECONDS_MAX);
        let excess = events.len().saturating_sub(EVENTS_MAX);
        let expired = events.iter().filter(|(seen, _)| *seen < horizon).count();
        let leaving = excess.max(expired);
        if leaving > 0 {
            events.sort_by_key(|(seen, _)| *seen);
        }
        let ops: Vec<Op> = events
            .iter()
            .take(leaving.min(OPS_PER_PLAN_MAX))
            .map(|(_, e)| Op::Remove { key: key_of(*e), uid: e.metadata.uid.clone() })
            .collect();
        Plan { ops, again_at: Some(after_millis(world.now, SWEEP_INTERVAL_MS)), ..Plan::default() }
    }
}

fn last_seen(event: &Event) -> Timestamp {
    event
        .last_timestamp
        .as_ref()
        .or(event.first_timestamp.as_ref())
        .or(event.metadata.creation_timestamp.as_ref())
        .map_or(Timestamp::MIN, |t| t.0)
}
