//! Replacing the pods of nodes that stay away. A pod says by its tolerations how long it wants to
//! wait; the cluster's setting speaks for the others.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};

use super::{TAINT_NOT_READY, TAINT_UNREACHABLE, Verdict, ready_condition};
use crate::object::{
    after_millis, after_seconds, end_pod, is_finished, key_of, name_of, node_ready_status,
};
use crate::op::Op;
use crate::reconcile::OPS_PER_PLAN_MAX;
use crate::reconcile::record::Recorder;
use crate::schedule::tolerates;
use crate::world::{Plan, World};

/// A node whose agent answers but cannot run pods keeps them at least this long: its engine is most
/// likely being restarted, which takes seconds, and its pods may well go on running meanwhile.
const NOT_READY_EVICTION_MS_MIN: i64 = 30_000;
/// In clusters from this size on, the loss of half of the nodes is taken for a fault of the network
/// rather than of the nodes.
const DISRUPTION_NODES_MIN: usize = 3;
/// How often it is said again that eviction is paused.
const PAUSED_EVENT_SECONDS: i64 = 300;

pub(super) fn evict(
    world: &World,
    node: &Node,
    verdict: &Verdict,
    recorder: &Recorder,
    plan: &mut Plan,
) {
    let is_lost = verdict.status == "Unknown";
    let Some(since) = away_since(node, verdict) else { return };
    let taint = Taint {
        key: if is_lost { TAINT_UNREACHABLE } else { TAINT_NOT_READY }.to_owned(),
        effect: "NoExecute".to_owned(),
        ..Taint::default()
    };
    let name = name_of(&node.metadata);
    let mut due = Vec::new();
    for pod in world.snapshot.pods_on(name).filter(|pod| !is_finished(pod)) {
        match leaves_at(world, pod, &taint, since, is_lost) {
            Some(at) if at <= world.now => due.push(pod),
            Some(at) => plan.again_at = Some(plan.again_at.map_or(at, |other| other.min(at))),
            None => {}
        }
    }
    if due.is_empty() {
        return;
    }
    if is_lost && let Some(message) = disruption(world) {
        let event = recorder.warning_once(
            &world.snapshot,
            node,
            "EvictionPaused",
            message,
            PAUSED_EVENT_SECONDS,
        );
        plan.ops.extend(event);
        return;
    }
    let room = OPS_PER_PLAN_MAX.saturating_sub(plan.ops.len()) / 2;
    if due.len() > room {
        plan.again_at = Some(world.now);
    }
    let mut evicted = 0;
    for pod in due.into_iter().take(room) {
        let op = if is_lost {
            // Nobody will confirm its end; the agent stops it if it ever comes back.
            let (key, uid) = (key_of(&**pod), pod.metadata.uid.clone());
            plan.ops.retain(|op| op.key() != key);
            Some(Op::Remove { key, uid })
        } else {
            end_pod(pod, world.now)
        };
        evicted += usize::from(op.is_some());
        plan.ops.extend(op);
    }
    if evicted > 0 {
        let why = if is_lost { "unreachable" } else { "not ready" };
        let message = format!("Evicted {evicted} pods from node {name}, which is {why}");
        plan.ops.push(recorder.warning(node, "TaintManagerEviction", message));
    }
}

fn away_since(node: &Node, verdict: &Verdict) -> Option<Timestamp> {
    let stored = ready_condition(node)
        .filter(|c| c.status == verdict.status)
        .and_then(|c| c.last_transition_time.as_ref());
    verdict.silent_since.or(stored.map(|t| t.0))
}

/// When the pod is to leave a node that has been away since `since`; `None`: never.
fn leaves_at(
    world: &World,
    pod: &Pod,
    taint: &Taint,
    since: Timestamp,
    is_lost: bool,
) -> Option<Timestamp> {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let mut matching = tolerations.iter().filter(|t| tolerates(t, taint)).peekable();
    if matching.peek().is_some() {
        // The shortest of those that name a time, as in Kubernetes; without one, for ever.
        let seconds = matching.filter_map(|t| t.toleration_seconds).min()?;
        return Some(after_seconds(since, seconds.max(0)));
    }
    let setting_ms = world.settings.eviction_after_ms;
    let wait_ms = if is_lost { setting_ms } else { setting_ms.max(NOT_READY_EVICTION_MS_MIN) };
    Some(after_millis(since, wait_ms))
}

/// Why pods of lost nodes are not replaced now, if so: too many nodes are lost at once.
fn disruption(world: &World) -> Option<String> {
    let (mut total, mut lost) = (0, 0);
    for node in world.snapshot.list::<Node>(None) {
        total += 1;
        lost += usize::from(node_ready_status(node) == "Unknown");
    }
    (total >= DISRUPTION_NODES_MIN && lost * 2 >= total).then(|| {
        format!(
            "{lost} of {total} nodes are unreachable at once, which looks like a fault of the \
             network: their pods are not replaced until more nodes answer"
        )
    })
}
