//! The scheduler as a control loop: all pods that wait for a node, in one activation and one
//! transaction. A pod that finds none learns why, and waits until something changes that could help.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use timonier_proto::{Kind, Kinded, ObjectKey};

use super::view::ClusterView;
use super::{Decision, Outcome, schedule};
use crate::object::{
    after_seconds, controller_of, is_active, is_finished, key_of, namespace_of, node_of,
    stored_time,
};
use crate::op::{Change, Op, Precondition};
use crate::reconcile::record::Recorder;
use crate::reconcile::{OPS_PER_PLAN_MAX, Reconciler};
use crate::snapshot::Snapshot;
use crate::world::{Plan, World};

/// Up to this many placements get an event each; a larger burst gets one for each owner.
const EVENTS_PER_ACTIVATION_MAX: usize = 16;
/// What could help a waiting pod wakes the scheduler; this is for what was not thought of.
const RETRY_SECONDS: i64 = 30;

/// The scheduler; its one key stands for all pods that wait.
#[derive(Debug, Clone, Copy, Default)]
pub struct SchedulerLoop;

fn all_waiting() -> ObjectKey {
    ObjectKey::new(Kind::Pod, "", "")
}

impl Reconciler for SchedulerLoop {
    fn name(&self) -> &'static str {
        "scheduler"
    }

    fn keys(&self, change: &Change, _snapshot: &Snapshot) -> Vec<ObjectKey> {
        let wakes = match change.key.kind {
            Kind::Pod => {
                let before = change.before.as_ref().and_then(|o| o.get::<Pod>());
                let after = change.after.as_ref().and_then(|o| o.get::<Pod>());
                let freed = before.is_some_and(|pod| holds_room(pod))
                    && !after.is_some_and(|pod| holds_room(pod));
                let arrived = after.is_some_and(|pod| waits(pod))
                    && before
                        .is_none_or(|pod| !waits(pod) || pod.spec != after.unwrap_or(pod).spec);
                freed || arrived
            }
            Kind::Node => {
                let before = change.before.as_ref().and_then(|o| o.get::<Node>());
                let after = change.after.as_ref().and_then(|o| o.get::<Node>());
                match (before, after) {
                    (Some(before), Some(after)) => {
                        before.spec != after.spec
                            || before.status != after.status
                            || before.metadata.labels != after.metadata.labels
                    }
                    _ => true,
                }
            }
            _ => false,
        };
        if wakes { vec![all_waiting()] } else { Vec::new() }
    }

    fn all_keys(&self, _snapshot: &Snapshot) -> Vec<ObjectKey> {
        vec![all_waiting()]
    }

    fn reads_telemetry(&self) -> bool {
        true
    }

    fn reconcile(&self, world: &World, _key: &ObjectKey) -> Plan {
        let mut waiting: Vec<&Arc<Pod>> =
            world.snapshot.list::<Pod>(None).filter(|pod| waits(pod)).collect();
        if waiting.is_empty() {
            return Plan::default();
        }
        waiting.sort_by_cached_key(|pod| {
            let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
            (-i64::from(priority), pod.metadata.creation_timestamp.clone(), key_of(&***pod))
        });
        let mut view = ClusterView::of(world);
        let decisions = schedule(&mut view, &waiting);
        let mut writer = Writer::new(world);
        for (pod, decision) in waiting.iter().zip(decisions) {
            if writer.is_full() {
                break;
            }
            writer.write(pod, decision);
        }
        writer.into_plan()
    }
}

fn waits(pod: &Pod) -> bool {
    let gates = pod.spec.as_ref().and_then(|s| s.scheduling_gates.as_ref());
    node_of(pod).is_none() && is_active(pod) && gates.is_none_or(Vec::is_empty)
}

fn holds_room(pod: &Pod) -> bool {
    node_of(pod).is_some() && !is_finished(pod)
}

struct Writer<'a> {
    world: &'a World,
    recorder: Recorder,
    ops: Vec<Op>,
    events: Vec<Op>,
    placed: Vec<(&'a Pod, String)>,
    refused: bool,
}

impl<'a> Writer<'a> {
    fn new(world: &'a World) -> Self {
        Self {
            world,
            recorder: Recorder { component: "default-scheduler", now: world.now },
            ops: Vec::new(),
            events: Vec::new(),
            placed: Vec::new(),
            refused: false,
        }
    }

    /// Pods that keep the answer they had cost nothing and don't count.
    fn is_full(&self) -> bool {
        self.ops.len() >= OPS_PER_PLAN_MAX
    }

    fn write(&mut self, pod: &'a Pod, decision: Decision) {
        match decision.outcome {
            Outcome::Node(node) => {
                self.placed.push((pod, node.clone()));
                let (pod, uid) = (decision.pod, decision.uid);
                self.ops.push(Op::Bind { pod, uid, node, at: self.world.now });
            }
            Outcome::Refused(message) => {
                self.refused = true;
                self.refuse(pod, message);
            }
        }
    }

    /// Once for each change of the reason.
    fn refuse(&mut self, pod: &Pod, message: String) {
        let mut status = pod.status.clone().unwrap_or_default();
        let conditions = status.conditions.get_or_insert_default();
        let stored = conditions.iter().find(|c| c.type_ == "PodScheduled");
        if stored.is_some_and(|c| c.status == "False" && c.message.as_ref() == Some(&message)) {
            return;
        }
        let now = stored_time(self.world.now);
        let since = stored.filter(|c| c.status == "False");
        let condition = PodCondition {
            type_: "PodScheduled".to_owned(),
            status: "False".to_owned(),
            reason: Some("Unschedulable".to_owned()),
            message: Some(message.clone()),
            last_transition_time: since.and_then(|c| c.last_transition_time.clone()).or(Some(now)),
            ..PodCondition::default()
        };
        conditions.retain(|c| c.type_ != "PodScheduled");
        conditions.push(condition);
        status.phase.get_or_insert_with(|| "Pending".to_owned());
        let mut object = pod.clone();
        object.status = Some(status);
        self.ops.push(Op::ReplaceStatus(object.into_object()));
        if self.events.len() < EVENTS_PER_ACTIVATION_MAX {
            self.events.push(self.recorder.warning(pod, "FailedScheduling", message));
        }
    }

    fn into_plan(mut self) -> Plan {
        self.note_placed();
        let nodes: BTreeSet<&String> = self.placed.iter().map(|(_, node)| node).collect();
        let preconditions = nodes
            .into_iter()
            .map(|node| Precondition::Exists(ObjectKey::cluster(Kind::Node, node)))
            .collect();
        let again_at = if self.is_full() {
            Some(self.world.now)
        } else {
            self.refused.then(|| after_seconds(self.world.now, RETRY_SECONDS))
        };
        self.ops.append(&mut self.events);
        Plan { ops: self.ops, preconditions, again_at }
    }

    fn note_placed(&mut self) {
        if self.placed.len() <= EVENTS_PER_ACTIVATION_MAX {
            for (pod, node) in &self.placed {
                let message = format!("Successfully assigned {} to {node}", place_name(pod));
                self.events.push(self.recorder.normal(*pod, "Scheduled", message));
            }
            return;
        }
        let mut by_owner: BTreeMap<(String, String), BTreeMap<&str, usize>> = BTreeMap::new();
        for (pod, node) in &self.placed {
            if let Some(owner) = controller_of(&pod.metadata).filter(|o| o.kind == "ReplicaSet") {
                let owner = (namespace_of(&pod.metadata).to_owned(), owner.name.clone());
                *by_owner.entry(owner).or_default().entry(node).or_default() += 1;
            }
        }
        for ((namespace, name), nodes) in by_owner.into_iter().take(EVENTS_PER_ACTIVATION_MAX) {
            let Some(set) = self.world.snapshot.get::<ReplicaSet>(&namespace, &name) else {
                continue;
            };
            let count: usize = nodes.values().sum();
            let shares: Vec<String> =
                nodes.iter().map(|(node, n)| format!("{n} to {node}")).collect();
            let message = format!("Successfully assigned {count} pods: {}", shares.join(", "));
            self.events.push(self.recorder.normal(&**set, "Scheduled", message));
        }
    }
}

fn place_name(pod: &Pod) -> String {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    format!("{}/{name}", namespace_of(&pod.metadata))
}
