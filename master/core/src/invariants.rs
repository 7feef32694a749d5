//! A linter for plans: what no control loop may ever ask for. A plan that breaks a rule is a bug in
//! the loop; it is logged with the rule and not proposed, so the bug does no harm.
//!
//! Rules look at the plan against the snapshot it was made from. What may go wrong between that
//! snapshot and the write is what preconditions are for.

use std::collections::HashMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use timonier_proto::{Kind, Object, ObjectKey};

use crate::object::{
    controller_of, is_ending, is_finished, is_unique, name_of, namespace_of, node_of,
    node_ready_status, phase, uid_of,
};
use crate::op::Op;
use crate::reconcile::OPS_PER_PLAN_MAX;
use crate::reconcile::deployment::DESIRED_REPLICAS;
use crate::reconcile::node::fence;
use crate::rollout::{Bounds, is_recreate, replicas_of};
use crate::snapshot::Snapshot;
use crate::world::{Plan, World};

/// Operations beyond the bound of a plan that events and statuses may take.
const OPS_SLACK: usize = 64;

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("the plan has {0} operations")]
    TooLarge(usize),
    #[error("{0} is written twice in one plan")]
    WrittenTwice(ObjectKey),
    #[error("{pod} is bound to node {node}, {why}")]
    BadBinding { pod: ObjectKey, node: String, why: &'static str },
    #[error("{0} would be removed while an agent that answers may run it")]
    RunningPodRemoved(ObjectKey),
    #[error("{0} would be removed while its node's agent may still run it, and it must be unique")]
    UniquePodRemoved(ObjectKey),
    #[error("the phase of {pod} would go back from {from} to {to}")]
    PhaseGoesBack { pod: ObjectKey, from: String, to: String },
    #[error("{key} would be created {why}")]
    BadCreation { key: ObjectKey, why: &'static str },
    #[error("{deployment} would have {planned} pods, more than {allowed}")]
    AboveSurge { deployment: ObjectKey, planned: i32, allowed: i32 },
    #[error("{deployment} would keep {planned} available pods, fewer than {required}")]
    BelowAvailable { deployment: ObjectKey, planned: i32, required: i32 },
}

/// The first rule that the plan breaks.
pub fn check(world: &World, plan: &Plan) -> Result<(), Violation> {
    if plan.ops.len() > OPS_PER_PLAN_MAX + OPS_SLACK {
        return Err(Violation::TooLarge(plan.ops.len()));
    }
    check_keys(plan)?;
    for op in &plan.ops {
        check_op(world, op)?;
    }
    check_rollouts(&world.snapshot, plan)
}

/// One operation a key; but a change of the spec may bring its status along.
fn check_keys(plan: &Plan) -> Result<(), Violation> {
    let mut seen: HashMap<ObjectKey, &Op> = HashMap::with_capacity(plan.ops.len());
    for op in &plan.ops {
        let key = op.key();
        match (seen.get(&key), op) {
            (None, _) | (Some(Op::Replace(_)), Op::ReplaceStatus(_)) => {}
            _ => return Err(Violation::WrittenTwice(key)),
        }
        seen.insert(key, op);
    }
    Ok(())
}

fn check_op(world: &World, op: &Op) -> Result<(), Violation> {
    let snapshot = &world.snapshot;
    match op {
        Op::Bind { pod, node, .. } => {
            let bad = |why| Violation::BadBinding { pod: pod.clone(), node: node.clone(), why };
            if snapshot.get::<Node>("", node).is_none() {
                return Err(bad("which is not there"));
            }
            match snapshot.get::<Pod>(&pod.namespace, &pod.name) {
                None => Err(bad("and the pod is not there")),
                Some(stored) if node_of(stored).is_some() => Err(bad("and has a node already")),
                Some(stored) if is_ending(&stored.metadata) => Err(bad("and is ending")),
                Some(_) => Ok(()),
            }
        }
        Op::Remove { key, .. } if key.kind == Kind::Pod => {
            let Some(pod) = snapshot.get::<Pod>(&key.namespace, &key.name) else { return Ok(()) };
            let runs = node_of(pod)
                .filter(|_| !is_finished(pod))
                .and_then(|node| snapshot.get::<Node>("", node))
                .is_some_and(|node| node_ready_status(node) == "True");
            if runs {
                return Err(Violation::RunningPodRemoved(key.clone()));
            }
            let may_run_elsewhere = is_unique(pod) && node_of(pod).is_some() && !is_finished(pod);
            if may_run_elsewhere && fence::gone_at(world, pod).is_none_or(|at| at > world.now) {
                return Err(Violation::UniquePodRemoved(key.clone()));
            }
            Ok(())
        }
        Op::ReplaceStatus(Object::Pod(pod)) => {
            let (namespace, name) = (namespace_of(&pod.metadata), name_of(&pod.metadata));
            let Some(stored) = snapshot.get::<Pod>(namespace, name) else { return Ok(()) };
            let (from, to) = (phase(stored), phase(pod));
            if phase_rank(to) >= phase_rank(from) {
                return Ok(());
            }
            Err(Violation::PhaseGoesBack { pod: op.key(), from: from.into(), to: to.into() })
        }
        Op::Create(object) => {
            let key = object.key();
            let bad = |why| Violation::BadCreation { key: key.clone(), why };
            let has_prefix = object.meta().generate_name.as_ref().is_some_and(|n| !n.is_empty());
            if key.name.is_empty() && !has_prefix {
                return Err(bad("without a name"));
            }
            if key.kind.info().namespaced == key.namespace.is_empty() {
                return Err(bad("outside of where its kind lives"));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn phase_rank(phase: &str) -> u8 {
    match phase {
        "Pending" => 0,
        "Running" | "Unknown" => 1,
        _ => 2,
    }
}

/// What a plan does to the sets of one deployment.
#[derive(Default)]
struct Rollout {
    pods_before: i32,
    pods_after: i32,
    available_before: i32,
    available_after: i32,
    scaled_for_another_size: bool,
}

fn check_rollouts(snapshot: &Snapshot, plan: &Plan) -> Result<(), Violation> {
    let mut planned: HashMap<ObjectKey, &ReplicaSet> = HashMap::new();
    let mut owners = Vec::new();
    for op in &plan.ops {
        let (Op::Create(Object::ReplicaSet(set)) | Op::Replace(Object::ReplicaSet(set))) = op
        else {
            continue;
        };
        planned.insert(op.key(), set);
        if let Some(owner) = controller_of(&set.metadata).filter(|o| o.kind == "Deployment") {
            owners.push((namespace_of(&set.metadata).to_owned(), owner.name.clone()));
        }
    }
    owners.sort_unstable();
    owners.dedup();
    for (namespace, name) in owners {
        if let Some(deployment) = snapshot.get::<Deployment>(&namespace, &name) {
            check_rollout(snapshot, deployment, &planned)?;
        }
    }
    Ok(())
}

fn check_rollout(
    snapshot: &Snapshot,
    deployment: &Deployment,
    planned: &HashMap<ObjectKey, &ReplicaSet>,
) -> Result<(), Violation> {
    let replicas = replicas_of(deployment);
    let mut sum = Rollout::default();
    for set in snapshot.owned_by::<ReplicaSet>(uid_of(&deployment.metadata)) {
        let key = crate::object::key_of(&**set);
        let before = size(set);
        let after = planned.get(&key).map_or(before, |set| size(set));
        let available = set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or_default();
        sum.pods_before += before;
        sum.pods_after += after;
        sum.available_before += available.min(before);
        sum.available_after += available.min(after);
        let desired = set.metadata.annotations.as_ref().and_then(|a| a.get(DESIRED_REPLICAS));
        sum.scaled_for_another_size |=
            before > 0 && desired.is_some_and(|desired| *desired != replicas.to_string());
    }
    let created = planned.iter().filter(|(key, set)| {
        snapshot.object(key).is_none()
            && controller_of(&set.metadata).is_some_and(|o| o.uid == uid_of(&deployment.metadata))
    });
    sum.pods_after += created.map(|(_, set)| size(set)).sum::<i32>();
    let bounds = Bounds::of(deployment);
    let key = crate::object::key_of(deployment);
    let allowed = (replicas + bounds.max_surge).max(sum.pods_before);
    if sum.pods_after > allowed {
        let planned = sum.pods_after;
        return Err(Violation::AboveSurge { deployment: key, planned, allowed });
    }
    // Recreate takes all pods down, and a deployment that is scaled is not being rolled.
    if is_recreate(deployment) || sum.scaled_for_another_size {
        return Ok(());
    }
    let required = (replicas - bounds.max_unavailable).min(sum.available_before);
    if sum.available_after < required {
        let planned = sum.available_after;
        return Err(Violation::BelowAvailable { deployment: key, planned, required });
    }
    Ok(())
}

fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

#[cfg(test)]
mod tests;
