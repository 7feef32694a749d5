//! The end of a namespace: everything in it is deleted, and when nothing is left, it goes too. Which
//! namespaces may be deleted is decided at the door.

use k8s_openapi::api::core::v1::Namespace;
use timonier_proto::kinds::KINDS;
use timonier_proto::{Kind, Object, ObjectKey};

use super::{OPS_PER_PLAN_MAX, Reconciler};
use crate::object::{end_pod, is_ending, key_of};
use crate::op::{Change, Op};
use crate::snapshot::Snapshot;
use crate::world::{Plan, World};

/// The namespace loop; keys are namespaces.
#[derive(Debug, Clone, Copy, Default)]
pub struct NamespaceLoop;

impl Reconciler for NamespaceLoop {
    fn name(&self) -> &'static str {
        "namespace"
    }

    fn keys(&self, change: &Change, snapshot: &Snapshot) -> Vec<ObjectKey> {
        let name = match change.key.kind {
            Kind::Namespace => &change.key.name,
            _ => &change.key.namespace,
        };
        let ends = !name.is_empty()
            && snapshot.get::<Namespace>("", name).is_some_and(|n| is_ending(&n.metadata));
        if ends { vec![ObjectKey::cluster(Kind::Namespace, name)] } else { Vec::new() }
    }

    fn all_keys(&self, snapshot: &Snapshot) -> Vec<ObjectKey> {
        let namespaces = snapshot.list::<Namespace>(None);
        namespaces.filter(|n| is_ending(&n.metadata)).map(|n| key_of(&**n)).collect()
    }

    fn reconcile(&self, world: &World, key: &ObjectKey) -> Plan {
        let Some(namespace) = world.snapshot.get::<Namespace>("", &key.name) else {
            return Plan::default();
        };
        if !is_ending(&namespace.metadata) {
            return Plan::default();
        }
        let mut ops = Vec::new();
        let mut is_empty = true;
        let kinds = KINDS.iter().filter(|info| info.namespaced && info.kind != Kind::Event);
        // Events last: the ends of the other objects make new ones.
        for kind in kinds.map(|info| info.kind).chain([Kind::Event]) {
            if kind == Kind::Event && !is_empty {
                break;
            }
            for object in world.snapshot.objects_of(kind, Some(&key.name)) {
                is_empty = false;
                if ops.len() < OPS_PER_PLAN_MAX {
                    ops.extend(end(object, world));
                }
            }
        }
        if is_empty {
            ops.push(Op::Remove { key: key.clone(), uid: namespace.metadata.uid.clone() });
        }
        Plan { ops, ..Plan::default() }
    }
}

fn end(object: &Object, world: &World) -> Option<Op> {
    match object {
        Object::Pod(pod) => end_pod(pod, world.now),
        other => Some(Op::Remove { key: other.key(), uid: other.meta().uid.clone() }),
    }
}
