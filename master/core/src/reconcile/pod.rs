//! Pods that no agent will ever speak of again: ended before they were bound, or bound to a node
//! that is no more; and the oldest of the finished ones, once there are too many.

use k8s_openapi::api::core::v1::{Node, Pod};
use timonier_proto::{Kind, Object, ObjectKey};

use super::node::fence;
use super::record::Recorder;
use super::{OPS_PER_PLAN_MAX, Reconciler};
use crate::object::{is_ending, is_finished, key_of, node_of, node_ready_status};
use crate::op::{Change, Op};
use crate::snapshot::Snapshot;
use crate::world::{Plan, World};

/// Finished pods that are kept for people to look at.
const FINISHED_PODS_MAX: usize = 1_000;

/// The pod loop; keys are pods, and the empty name for the sweep of finished ones.
#[derive(Debug, Clone, Copy, Default)]
pub struct PodLoop;

impl Reconciler for PodLoop {
    fn name(&self) -> &'static str {
        "pod"
    }

    fn keys(&self, change: &Change, snapshot: &Snapshot) -> Vec<ObjectKey> {
        match change.key.kind {
            Kind::Pod => {
                let Some(pod) = change.after.as_ref().and_then(|o| o.get::<Pod>()) else {
                    return Vec::new();
                };
                let was_finished = change
                    .before
                    .as_ref()
                    .and_then(|o| o.get::<Pod>())
                    .is_some_and(|pod| is_finished(pod));
                if is_finished(pod) && !was_finished {
                    return vec![change.key.clone(), sweep_key()];
                }
                if is_ending(&pod.metadata) || change.before.is_none() {
                    return vec![change.key.clone()];
                }
                Vec::new()
            }
            Kind::Node => {
                let ready = |o: &Option<Object>| {
                    o.as_ref()
                        .and_then(|o| o.get::<Node>())
                        .map(|n| node_ready_status(n).to_owned())
                };
                if change.after.is_some() && ready(&change.before) == ready(&change.after) {
                    return Vec::new();
                }
                snapshot.pods_on(&change.key.name).map(|pod| key_of(&**pod)).collect()
            }
            _ => Vec::new(),
        }
    }

    fn all_keys(&self, snapshot: &Snapshot) -> Vec<ObjectKey> {
        let pods = snapshot.list::<Pod>(None);
        let mut keys: Vec<ObjectKey> =
            pods.filter(|pod| lingers(snapshot, pod).is_some()).map(|pod| key_of(&**pod)).collect();
        keys.push(sweep_key());
        keys
    }

    fn reconcile(&self, world: &World, key: &ObjectKey) -> Plan {
        if *key == sweep_key() {
            return sweep(world);
        }
        let Some(pod) = world.snapshot.get::<Pod>(&key.namespace, &key.name) else {
            return Plan::default();
        };
        let Some(why) = lingers(&world.snapshot, pod) else { return Plan::default() };
        if let Lingers::NodeGone(_) = why
            && let Some(plan) = fence::hold(world, pod)
        {
            return plan;
        }
        let mut ops = vec![Op::Remove { key: key.clone(), uid: pod.metadata.uid.clone() }];
        if let Lingers::NodeGone(node) = why {
            let recorder = Recorder { component: "pod-garbage-collector", now: world.now };
            let message = format!("node {node} is no longer a member of the cluster");
            ops.push(recorder.normal(&**pod, "NodeGone", message));
        }
        Plan { ops, ..Plan::default() }
    }
}

fn sweep_key() -> ObjectKey {
    ObjectKey::new(Kind::Pod, "", "")
}

enum Lingers {
    /// It is to end, and no agent holds it (any more).
    Unheld,
    NodeGone(String),
}

fn lingers(snapshot: &Snapshot, pod: &Pod) -> Option<Lingers> {
    match node_of(pod) {
        None => is_ending(&pod.metadata).then_some(Lingers::Unheld),
        Some(node) if snapshot.get::<Node>("", node).is_none() => {
            Some(Lingers::NodeGone(node.to_owned()))
        }
        // It ran to its end while it was being ended; an agent that answers says when nothing of it
        // is left.
        Some(node) => {
            let is_away =
                snapshot.get::<Node>("", node).is_none_or(|n| node_ready_status(n) == "Unknown");
            (is_ending(&pod.metadata) && is_finished(pod) && is_away).then_some(Lingers::Unheld)
        }
    }
}

/// Removes the oldest finished pods beyond the bound.
fn sweep(world: &World) -> Plan {
    let mut finished: Vec<_> =
        world.snapshot.list::<Pod>(None).filter(|pod| is_finished(pod)).collect();
    let Some(excess) = finished.len().checked_sub(FINISHED_PODS_MAX).filter(|n| *n > 0) else {
        return Plan::default();
    };
    finished.sort_by_key(|pod| pod.metadata.creation_timestamp.clone());
    let ops = finished
        .into_iter()
        .take(excess.min(OPS_PER_PLAN_MAX))
        .map(|pod| Op::Remove { key: key_of(&**pod), uid: pod.metadata.uid.clone() })
        .collect();
    Plan { ops, ..Plan::default() }
}
