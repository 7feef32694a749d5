//! Whether nodes live: the Ready condition out of the agents' signals, the taints that follow from
//! it, and the eviction of pods from nodes that stay away.
//!
//! Signals are soft state; the node object is written at transitions only.

mod eviction;
pub mod fence;
pub mod losses;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use timonier_proto::{Kind, Kinded, ObjectKey};

use super::record::Recorder;
use super::{OPS_PER_PLAN_MAX, Reconciler};
use crate::object::{
    after_millis, is_ending, is_ready, key_of, name_of, node_ready_status, stored_time,
};
use crate::op::{Change, Op};
use crate::snapshot::Snapshot;
use crate::world::{Plan, World};

/// On a node whose agent says that it cannot run pods.
pub const TAINT_NOT_READY: &str = "node.kubernetes.io/not-ready";
/// On a node whose agent says nothing any more.
pub const TAINT_UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// The node loop; keys are nodes.
#[derive(Debug, Clone, Copy, Default)]
pub struct NodeLoop;

impl Reconciler for NodeLoop {
    fn name(&self) -> &'static str {
        "node"
    }

    fn keys(&self, change: &Change, snapshot: &Snapshot) -> Vec<ObjectKey> {
        if change.key.kind != Kind::Node {
            return Vec::new();
        }
        // Whether pods are evicted from a lost node depends on how many are lost.
        let mut keys = vec![change.key.clone()];
        let status = |o: &Option<timonier_proto::Object>| {
            let node = o.as_ref().and_then(|o| o.get::<Node>());
            node.map(|n| node_ready_status(n).to_owned())
        };
        if status(&change.before) != status(&change.after) {
            let others = snapshot.list::<Node>(None).filter(|n| node_ready_status(n) != "True");
            keys.extend(others.map(|n| key_of(&**n)).filter(|key| *key != change.key));
        }
        keys
    }

    fn all_keys(&self, snapshot: &Snapshot) -> Vec<ObjectKey> {
        snapshot.list::<Node>(None).map(|n| key_of(&**n)).collect()
    }

    fn follows_signals(&self) -> bool {
        true
    }

    fn reads_telemetry(&self) -> bool {
        true
    }

    fn reconcile(&self, world: &World, key: &ObjectKey) -> Plan {
        let Some(node) = world.snapshot.get::<Node>("", &key.name) else {
            return Plan::default();
        };
        if is_ending(&node.metadata) {
            return Plan::default();
        }
        let verdict = judge(world, node);
        let mut plan = Plan { again_at: verdict.again_at, ..Plan::default() };
        let recorder = Recorder { component: "node-controller", now: world.now };
        let is_new = write_condition(world, node, &verdict, &recorder, &mut plan.ops);
        if verdict.status == "Unknown" {
            plan.ops.extend(pods_not_ready(world, &key.name));
        }
        if verdict.status != "True" && !is_new {
            eviction::evict(world, node, &verdict, &recorder, &mut plan);
        }
        plan
    }
}

/// What the node's Ready condition should say.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Verdict {
    /// `True`, `False` or `Unknown`; empty while nothing can be said of a new node.
    status: String,
    reason: String,
    message: String,
    /// When silence from now on would change it.
    again_at: Option<Timestamp>,
    /// When the agent began to be away, to the millisecond, where that is known.
    silent_since: Option<Timestamp>,
}

fn judge(world: &World, node: &Node) -> Verdict {
    let grace_ms = world.settings.node_grace_ms;
    let signal = world.telemetry.nodes.get(name_of(&node.metadata));
    let stored = ready_condition(node);
    let keep = |again_at| Verdict {
        status: stored.map(|c| c.status.clone()).unwrap_or_default(),
        reason: stored.and_then(|c| c.reason.clone()).unwrap_or_default(),
        message: stored.and_then(|c| c.message.clone()).unwrap_or_default(),
        again_at: Some(again_at),
        silent_since: None,
    };
    // A master that has just begun to listen must give the agents time to find it; one that has
    // found it is silent for a reason of its own.
    let found = signal.is_some_and(|s| s.last_beat > world.telemetry.since);
    let listening = after_millis(world.telemetry.since, 2 * grace_ms);
    let created = node.metadata.creation_timestamp.as_ref().map_or(Timestamp::MIN, |t| t.0);
    let last = signal.map_or(created, |s| s.last_beat);
    // Silence may be its master's: then the agent gets the time to dial another, and to be taken in
    // there. Not for ever, if it never comes to its first beat.
    let excuses = signal.filter(|_| stored.is_none_or(|c| c.status != "Unknown")).map(|s| {
        let away = s.master_away_since.map(|at| after_millis(at, 2 * grace_ms));
        let greeted = s.greeted_at.map(|at| after_millis(at, grace_ms));
        away.max(greeted.map(|at| at.min(after_millis(last, 3 * grace_ms))))
    });
    let silent_since =
        after_millis(last, grace_ms).max(excuses.flatten().unwrap_or(Timestamp::MIN));
    if silent_since < world.now {
        if !found && listening > world.now {
            return keep(listening);
        }
        return Verdict {
            status: "Unknown".to_owned(),
            reason: "NodeStatusUnknown".to_owned(),
            message: "Agent stopped posting node status.".to_owned(),
            again_at: None,
            silent_since: signal.map(|_| silent_since),
        };
    }
    let next = after_millis(silent_since, 1);
    let Some(signal) = signal.filter(|s| s.connected) else { return keep(next) };
    let (status, reason, message) = match &signal.not_ready {
        None => ("True", "AgentReady", "agent is posting ready status"),
        Some((reason, message)) => ("False", reason.as_str(), message.as_str()),
    };
    Verdict {
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        again_at: Some(next),
        silent_since: None,
    }
}

fn ready_condition(node: &Node) -> Option<&NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == "Ready")
}

/// Writes the condition and the taint where they differ; whether the status is a new one.
fn write_condition(
    world: &World,
    node: &Node,
    verdict: &Verdict,
    recorder: &Recorder,
    ops: &mut Vec<Op>,
) -> bool {
    if verdict.status.is_empty() {
        return false;
    }
    let now = stored_time(world.now);
    let mut changed = node.clone();
    let is_lost_now = verdict.status == "Unknown" && node_ready_status(node) != "Unknown";
    let losses = if is_lost_now { losses::note(&mut changed, world.now) } else { 0 };
    if losses >= losses::FLAPPING_LOSSES {
        let message = format!(
            "Node {} was lost {losses} times in {} s: pods are put elsewhere where there is room",
            name_of(&node.metadata),
            losses::LOSS_SECONDS_MAX
        );
        ops.push(recorder.warning(node, "NodeFlapping", message));
    }
    set_taint(&mut changed, verdict, &now);
    if changed.spec != node.spec || is_lost_now {
        ops.push(Op::Replace(changed.clone().into_object()));
    }
    let stored = ready_condition(node);
    let is_new = stored.is_none_or(|c| c.status != verdict.status);
    let is_same = stored.is_some_and(|c| {
        c.reason.as_ref() == Some(&verdict.reason) && c.message.as_ref() == Some(&verdict.message)
    });
    if !is_new && is_same {
        return false;
    }
    let since = stored.filter(|_| !is_new).and_then(|c| c.last_transition_time.clone());
    let conditions = changed.status.get_or_insert_default().conditions.get_or_insert_default();
    conditions.retain(|c| c.type_ != "Ready");
    conditions.push(NodeCondition {
        type_: "Ready".to_owned(),
        status: verdict.status.clone(),
        reason: Some(verdict.reason.clone()),
        message: Some(verdict.message.clone()),
        last_heartbeat_time: Some(now.clone()),
        last_transition_time: since.or(Some(now)),
    });
    ops.push(Op::ReplaceStatus(changed.into_object()));
    if is_new {
        let name = name_of(&node.metadata);
        let reason = if verdict.status == "True" { "NodeReady" } else { "NodeNotReady" };
        let message = format!("Node {name} status is now: {reason}");
        ops.push(recorder.normal(node, reason, message));
    }
    is_new
}

fn set_taint(node: &mut Node, verdict: &Verdict, now: &Time) {
    let wanted = match verdict.status.as_str() {
        "True" => None,
        "False" => Some(TAINT_NOT_READY),
        _ => Some(TAINT_UNREACHABLE),
    };
    let spec = node.spec.get_or_insert_default();
    let mut taints = spec.taints.take().unwrap_or_default();
    let is_ours = |t: &Taint| t.key == TAINT_NOT_READY || t.key == TAINT_UNREACHABLE;
    taints.retain(|t| !is_ours(t) || Some(t.key.as_str()) == wanted);
    if let Some(key) = wanted
        && !taints.iter().any(|t| t.key == key)
    {
        taints.push(Taint {
            key: key.to_owned(),
            effect: "NoExecute".to_owned(),
            time_added: Some(now.clone()),
            value: None,
        });
    }
    spec.taints = (!taints.is_empty()).then_some(taints);
}

/// Pods of a silent node are not ready as far as anyone can tell: their services drop them, long
/// before they are replaced. The agent sends their statuses again when it is back.
fn pods_not_ready(world: &World, node: &str) -> Vec<Op> {
    let ready = world.snapshot.pods_on(node).filter(|pod| is_ready(pod));
    ready
        .take(OPS_PER_PLAN_MAX / 2)
        .map(|pod| {
            let mut pod = Pod::clone(pod);
            let conditions = pod.status.iter_mut().flat_map(|s| s.conditions.iter_mut().flatten());
            for condition in conditions.filter(|c| c.type_ == "Ready" && c.status == "True") {
                condition.status = "False".to_owned();
                condition.reason = Some("NodeNotReady".to_owned());
                condition.message = Some(format!("node {node} stopped posting its status"));
                condition.last_transition_time = Some(stored_time(world.now));
            }
            Op::ReplaceStatus(pod.into_object())
        })
        .collect()
}
