//! Replacing the pods of nodes that stay away. A pod says by its tolerations how long it wants to
//! wait; the cluster's setting speaks for the others.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use timonier_proto::NODE_SHUTDOWN;

use super::{TAINT_NOT_READY, TAINT_UNREACHABLE, Verdict, fence, ready_condition};
use crate::object::{
    after_millis, after_seconds, end_pod, is_finished, is_unique, key_of, name_of,
    node_ready_status,
};
use crate::op::{Op, Precondition};
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
/// Clusters with more nodes go on, slowly, when half of them are lost.
const LARGE_CLUSTER_NODES: usize = 50;
/// Between the evictions of one lost node and the next.
const NODE_INTERVAL_MS: i64 = 200;
/// The same where half of the nodes of a large cluster are lost: Kubernetes' secondary rate.
const NODE_INTERVAL_SLOW_MS: i64 = 100_000;
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
    let is_leaving = verdict.reason == NODE_SHUTDOWN;
    let Some(since) = away_since(node, verdict) else { return };
    let taint = Taint {
        key: if is_lost { TAINT_UNREACHABLE } else { TAINT_NOT_READY }.to_owned(),
        effect: "NoExecute".to_owned(),
        ..Taint::default()
    };
    let name = name_of(&node.metadata);
    let later = |plan: &mut Plan, at: Timestamp| {
        plan.again_at = Some(plan.again_at.map_or(at, |other| other.min(at)));
    };
    let mut due = Vec::new();
    for pod in world.snapshot.pods_on(name).filter(|pod| !is_finished(pod)) {
        match leaves_at(world, pod, &taint, since, is_lost) {
            // Its agent stops them in order as long as it is there.
            Some(_) if is_leaving => due.push(pod),
            Some(at) if at <= world.now => due.push(pod),
            Some(at) => later(plan, at),
            None => {}
        }
    }
    if due.is_empty() {
        return;
    }
    if is_lost {
        match pace(world, node, since) {
            // How long pods wait counts from the node's turn.
            Pace::Turn(turn) => due.retain(|pod| {
                let at = leaves_at(world, pod, &taint, since.max(turn), is_lost);
                let is_due = at.is_some_and(|at| at <= world.now);
                at.filter(|_| !is_due).into_iter().for_each(|at| later(plan, at));
                is_due
            }),
            Pace::At(at, message) => {
                plan.ops.extend(said(world, node, recorder, "EvictionSlowed", message));
                return later(plan, at);
            }
            Pace::Paused(message) => {
                plan.ops.extend(said(world, node, recorder, "EvictionPaused", message));
                // One that is silent may be written down as lost, or be heard again.
                return later(plan, after_millis(world.now, world.settings.node_grace_ms));
            }
        }
    }
    let room = OPS_PER_PLAN_MAX.saturating_sub(plan.ops.len()) / 2;
    if due.len() > room {
        plan.again_at = Some(world.now);
    }
    let mut evicted = 0;
    let mut fenced = false;
    for pod in due.into_iter().take(room) {
        let op = if !is_lost {
            end_pod(pod, world.now)
        } else if let Some(hold) = fence::hold(world, pod) {
            hold.again_at.into_iter().for_each(|at| later(plan, at));
            hold.ops.into_iter().next()
        } else {
            // Nobody will confirm its end; the agent stops it if it ever comes back.
            fenced |= is_unique(pod);
            Some(Op::Remove { key: key_of(&**pod), uid: pod.metadata.uid.clone() })
        };
        if let Some(op) = op {
            plan.ops.retain(|other| other.key() != op.key());
            plan.ops.push(op);
            evicted += 1;
        }
    }
    if fenced {
        // Only if the node has not come back meanwhile.
        let revision = node.metadata.resource_version.as_deref().and_then(|r| r.parse().ok());
        plan.preconditions.push(Precondition::Revision(key_of(node), revision.unwrap_or_default()));
    }
    if evicted > 0 {
        let why = match (is_lost, is_leaving) {
            (true, _) => "is unreachable",
            (false, true) => "is shutting down",
            (false, false) => "is not ready",
        };
        let message = format!("Evicted {evicted} pods from node {name}, which {why}");
        plan.ops.push(recorder.warning(node, "TaintManagerEviction", message));
    }
}

fn said(
    world: &World,
    node: &Node,
    recorder: &Recorder,
    reason: &str,
    message: String,
) -> Option<Op> {
    recorder.warning_once(&world.snapshot, node, reason, message, PAUSED_EVENT_SECONDS)
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

/// Whether the pods of a lost node are replaced now.
enum Pace {
    /// It was its turn at that time.
    Turn(Timestamp),
    /// The text says why not before that time.
    At(Timestamp, String),
    /// Not while as many nodes are lost as the text says.
    Paused(String),
}

/// As in Kubernetes: one node after the other; where half of the nodes are lost at once, small
/// clusters wait for them to come back and large ones go on slowly.
fn pace(world: &World, node: &Node, since: Timestamp) -> Pace {
    let mut total = 0;
    let mut lost = Vec::new();
    let mut silent = 0;
    for other in world.snapshot.list::<Node>(None) {
        total += 1;
        let name = name_of(&other.metadata);
        if node_ready_status(other) == "Unknown" {
            let since = ready_condition(other).and_then(|c| c.last_transition_time.clone());
            lost.push((since.map(|t| t.0), name));
        } else if is_silent(world, name) {
            // Cut off with the others, only its last beat came a little later than theirs.
            silent += 1;
        }
    }
    let away = lost.len() + silent;
    let half = away * 2 >= total && total >= DISRUPTION_NODES_MIN;
    // With nobody left there is nobody to take their place, in clusters of any size.
    if away == total || half && total <= LARGE_CLUSTER_NODES {
        return Pace::Paused(format!(
            "{away} of {total} nodes are unreachable at once, which looks like a fault of the \
             network: their pods are not replaced until more nodes answer"
        ));
    }
    let interval_ms = if half { NODE_INTERVAL_SLOW_MS } else { NODE_INTERVAL_MS };
    let at = turn(lost, name_of(&node.metadata), since, world.now, interval_ms);
    if at <= world.now {
        return Pace::Turn(at);
    }
    Pace::At(at, format!("{away} of {total} nodes are unreachable: their pods are replaced slowly"))
}

/// When it is this lost node's turn, if there are so many milliseconds between one turn and the next
/// and nobody's comes before its loss. `since` is when this one was lost, to the millisecond.
fn turn(
    mut lost: Vec<(Option<Timestamp>, &str)>,
    own: &str,
    since: Timestamp,
    now: Timestamp,
    interval_ms: i64,
) -> Timestamp {
    lost.sort_unstable();
    let mut next = Timestamp::MIN;
    for (at, name) in lost {
        // One that lies ahead is of another master's clock.
        let at = at.filter(|at| *at <= now).unwrap_or(since);
        let turn = next.max(at);
        if name == own {
            return turn;
        }
        next = after_millis(turn, interval_ms);
    }
    since
}

/// Two beats of a node are missing; the third makes it lost.
fn is_silent(world: &World, node: &str) -> bool {
    let silence_ms = world.settings.node_grace_ms * 2 / 3;
    let signal = world.telemetry.nodes.get(node);
    signal.is_some_and(|signal| after_millis(signal.last_beat, silence_ms) < world.now)
}
