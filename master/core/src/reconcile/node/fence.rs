//! Pods that must be unique, on nodes that are lost: first they are asked to end, and they are taken
//! out of the state (so that others take their place) only when the node's agent must have stopped
//! them, because it cannot have had a lease since.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use timonier_proto::unique::{FENCE_MARGIN_MS, fence_after_ms};

use super::ready_condition;
use crate::object::{
    after_millis, after_seconds, asked_to_end_at, end_pod, is_finished, is_unique, node_of,
    node_ready_status,
};
use crate::world::{Plan, World};

/// What is to be done with a unique pod of a node that is lost or gone before it may be removed;
/// `None` when it may be removed now.
pub fn hold(world: &World, pod: &Pod) -> Option<Plan> {
    if !is_unique(pod) || is_finished(pod) {
        return None;
    }
    match gone_at(world, pod) {
        Some(at) if at <= world.now => None,
        Some(at) => Some(Plan { again_at: Some(at), ..Plan::default() }),
        None => {
            Some(Plan { ops: end_pod(pod, world.now).into_iter().collect(), ..Plan::default() })
        }
    }
}

/// When the pod will have been stopped by its own agent at the latest. `None` while that is not
/// certain: it was not asked to end, or its node has an agent that answers.
pub fn gone_at(world: &World, pod: &Pod) -> Option<Timestamp> {
    let asked = asked_to_end_at(pod)?;
    let node = node_of(pod).and_then(|name| world.snapshot.get::<Node>("", name));
    let node = node.map(|node| &**node);
    let last_lease = match node {
        // It may have come back and been lost again since.
        Some(node) => by_this_clock(world, asked).max(by_this_clock(world, lost_at(node)?)),
        None => asked.max(world.telemetry.since),
    };
    Some(after_millis(last_lease, fence_ms(world, node).saturating_add(FENCE_MARGIN_MS)))
}

/// After how long without a lease the node's agent stops its unique pods, at the latest: the master
/// that had its session may have been started with another time than this one.
fn fence_ms(world: &World, node: Option<&Node>) -> i64 {
    let noted = node.map_or(0, |node| fence_after_ms(&node.metadata));
    world.settings.fence_after_ms.max(noted.into())
}

/// When, at the latest, what another master may have dated so happened: this leadership dated it
/// itself, or began with it. So no two masters' clocks need to agree.
fn by_this_clock(world: &World, at: Timestamp) -> Timestamp {
    let since = world.telemetry.since;
    // Whole seconds are rounded up.
    if at > after_seconds(world.now, 1) { since } else { at.max(since) }
}

/// When the node was written down as lost, at the latest; `None` when it is not.
fn lost_at(node: &Node) -> Option<Timestamp> {
    if node_ready_status(node) != "Unknown" {
        return None;
    }
    let since = ready_condition(node)?.last_transition_time.as_ref()?;
    // Stored in whole seconds.
    Some(after_seconds(since.0, 1))
}
