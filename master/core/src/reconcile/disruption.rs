//! PodDisruptionBudget → its status: how many pods there are, how many there must be, and so how
//! many may go. It evicts nobody and protects nobody; the door that evicts counts for itself.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use timonier_proto::{Kind, Kinded, Object, ObjectKey};

use super::Reconciler;
use crate::disruption::{self, EVICTION_SECONDS_MAX};
use crate::object::{after_seconds, is_active, is_ending, is_ready, key_of};
use crate::op::{Change, Op, Precondition};
use crate::snapshot::Snapshot;
use crate::world::{Plan, World};

/// The disruption loop; keys are budgets.
#[derive(Debug, Clone, Copy, Default)]
pub struct DisruptionLoop;

impl Reconciler for DisruptionLoop {
    fn name(&self) -> &'static str {
        "disruption"
    }

    fn keys(&self, change: &Change, snapshot: &Snapshot) -> Vec<ObjectKey> {
        match change.key.kind {
            Kind::PodDisruptionBudget => vec![change.key.clone()],
            Kind::Pod => {
                let pod = |o: &Option<Object>| o.as_ref().and_then(|o| o.get::<Pod>()).cloned();
                let (before, after) = (pod(&change.before), pod(&change.after));
                let counts =
                    |pod: &Pod| (is_active(pod), is_ready(pod), pod.metadata.labels.clone());
                if before.as_deref().map(counts) == after.as_deref().map(counts) {
                    return Vec::new();
                }
                let budgets = snapshot.list::<PodDisruptionBudget>(Some(&change.key.namespace));
                budgets
                    .filter(|budget| {
                        [&before, &after]
                            .into_iter()
                            .flatten()
                            .any(|p| disruption::covers(budget, p))
                    })
                    .map(|budget| key_of(&**budget))
                    .collect()
            }
            // The number of pods that there should be is theirs.
            Kind::Deployment | Kind::ReplicaSet => {
                let replicas = |o: &Option<Object>| match o {
                    Some(Object::Deployment(d)) => d.spec.as_ref().and_then(|s| s.replicas),
                    Some(Object::ReplicaSet(set)) => set.spec.as_ref().and_then(|s| s.replicas),
                    _ => None,
                };
                if replicas(&change.before) == replicas(&change.after) {
                    return Vec::new();
                }
                let budgets = snapshot.list::<PodDisruptionBudget>(Some(&change.key.namespace));
                budgets.map(|budget| key_of(&**budget)).collect()
            }
            _ => Vec::new(),
        }
    }

    fn all_keys(&self, snapshot: &Snapshot) -> Vec<ObjectKey> {
        snapshot.list::<PodDisruptionBudget>(None).map(|budget| key_of(&**budget)).collect()
    }

    fn reconcile(&self, world: &World, key: &ObjectKey) -> Plan {
        let snapshot = &world.snapshot;
        let Some(budget) = snapshot.get::<PodDisruptionBudget>(&key.namespace, &key.name) else {
            return Plan::default();
        };
        if is_ending(&budget.metadata) {
            return Plan::default();
        }
        let disrupted: BTreeMap<_, _> = disruption::pending(snapshot, budget, world.now);
        let again_at = disrupted.values().map(|at| after_seconds(at.0, EVICTION_SECONDS_MAX)).min();
        let count = disruption::count(snapshot, budget, world.now);
        let status = disruption::status(budget, count, disrupted, world.now);
        if budget.status.as_ref() == Some(&status) {
            return Plan { again_at, ..Plan::default() };
        }
        let mut changed = PodDisruptionBudget::clone(budget);
        changed.status = Some(status);
        let object = changed.into_object();
        // An eviction that was allowed meanwhile must not be forgotten.
        let precondition = Precondition::Revision(key.clone(), object.resource_version());
        Plan { ops: vec![Op::ReplaceStatus(object)], preconditions: vec![precondition], again_at }
    }
}
