//! Garbage collection by owner: what all owners have left is deleted, and an owner that waits for
//! its dependents (Foreground deletion) goes once they are gone. Orphaning is the deleter's own
//! business: it takes the references out.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use timonier_proto::{Kind, Object, ObjectKey};

use super::{OPS_PER_PLAN_MAX, Reconciler};
use crate::object::{end_pod, is_ending, namespace_of, uid_of};
use crate::op::{Change, Op};
use crate::snapshot::Snapshot;
use crate::world::{Plan, World};

/// The garbage collector; keys are objects that have owners, or wait for their dependents.
#[derive(Debug, Clone, Copy, Default)]
pub struct GarbageLoop;

impl Reconciler for GarbageLoop {
    fn name(&self) -> &'static str {
        "garbage-collector"
    }

    fn keys(&self, change: &Change, snapshot: &Snapshot) -> Vec<ObjectKey> {
        let mut keys = Vec::new();
        match (&change.before, &change.after) {
            (Some(removed), None) => {
                keys.extend(controlled_by(snapshot, removed.uid()));
                // A removed dependent may be the last that its owner waited for.
                keys.extend(waiting_owners(removed, snapshot));
            }
            // It may have been made for an owner that was removed at the same moment.
            (None, Some(created)) if has_owners(created) => keys.push(change.key.clone()),
            (Some(before), Some(after)) if is_ending(after.meta()) && !is_ending(before.meta()) => {
                keys.push(change.key.clone());
            }
            _ => {}
        }
        keys
    }

    fn all_keys(&self, snapshot: &Snapshot) -> Vec<ObjectKey> {
        snapshot
            .all_objects()
            .filter(|o| has_owners(o) || is_ending(o.meta()))
            .map(Object::key)
            .collect()
    }

    fn reconcile(&self, world: &World, key: &ObjectKey) -> Plan {
        let Some(object) = world.snapshot.object(key) else { return Plan::default() };
        if is_ending(object.meta()) && !ends_by_itself(key.kind) {
            return finish_foreground(world, object);
        }
        let owners = object.meta().owner_references.as_deref().unwrap_or_default();
        let is_abandoned = !owners.is_empty()
            && owners.iter().all(|owner| is_gone(owner, &key.namespace, &world.snapshot));
        let ops = if is_abandoned { delete(object, world) } else { None };
        Plan { ops: ops.into_iter().collect(), ..Plan::default() }
    }
}

/// Kinds whose end somebody else sees to: the agent, the namespace loop, a person.
fn ends_by_itself(kind: Kind) -> bool {
    matches!(kind, Kind::Pod | Kind::Namespace | Kind::Node)
}

fn has_owners(object: &Object) -> bool {
    object.meta().owner_references.as_ref().is_some_and(|owners| !owners.is_empty())
}

fn controlled_by(snapshot: &Snapshot, uid: &str) -> Vec<ObjectKey> {
    let start = (Arc::from(uid), Arc::new(ObjectKey::cluster(Kind::Namespace, "")));
    snapshot
        .by_owner
        .range(start..)
        .take_while(|(owner, _)| **owner == *uid)
        .map(|(_, key)| ObjectKey::clone(key))
        .collect()
}

fn owner_key(owner: &OwnerReference, namespace: &str) -> Option<ObjectKey> {
    let kind = Kind::by_name(&owner.kind)?;
    let namespace = if kind.info().namespaced { namespace } else { "" };
    Some(ObjectKey::new(kind, namespace, &owner.name))
}

fn waiting_owners(removed: &Object, snapshot: &Snapshot) -> Vec<ObjectKey> {
    let namespace = namespace_of(removed.meta());
    let owners = removed.meta().owner_references.iter().flatten();
    owners
        .filter_map(|owner| owner_key(owner, namespace))
        .filter(|key| snapshot.object(key).is_some_and(|o| is_ending(o.meta())))
        .collect()
}

/// An owner of a kind that this build doesn't know is taken to be there.
fn is_gone(owner: &OwnerReference, namespace: &str, snapshot: &Snapshot) -> bool {
    let Some(key) = owner_key(owner, namespace) else { return false };
    snapshot.object(&key).is_none_or(|found| uid_of(found.meta()) != owner.uid)
}

fn delete(object: &Object, world: &World) -> Option<Op> {
    match object {
        Object::Pod(pod) => end_pod(pod, world.now),
        _ => Some(Op::Remove { key: object.key(), uid: object.meta().uid.clone() }),
    }
}

/// Ends the dependents that are left; the owner too when none is.
fn finish_foreground(world: &World, owner: &Object) -> Plan {
    let dependents: BTreeSet<ObjectKey> =
        controlled_by(&world.snapshot, owner.uid()).into_iter().collect();
    if dependents.is_empty() {
        return Plan { ops: delete(owner, world).into_iter().collect(), ..Plan::default() };
    }
    let ops = dependents
        .iter()
        .filter_map(|key| world.snapshot.object(key))
        .filter(|dependent| !is_ending(dependent.meta()) || matches!(dependent, Object::Pod(_)))
        .filter_map(|dependent| match dependent {
            Object::Pod(pod) => end_pod(pod, world.now),
            // In its turn it waits for what it owns.
            other => Some(Op::MarkDeleted {
                key: other.key(),
                uid: other.meta().uid.clone(),
                at: world.now,
                grace_seconds: 0,
            }),
        })
        .take(OPS_PER_PLAN_MAX)
        .collect();
    Plan { ops, ..Plan::default() }
}
