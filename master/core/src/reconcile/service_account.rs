//! Each namespace has a service account `default`, which its pods run as when they name no other.
//!
//! Tokens are not made here: they are signed when asked for, and stored nowhere.

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use timonier_proto::{Kind, Kinded, ObjectKey};

use super::Reconciler;
use crate::object::{key_of, namespace_is_live};
use crate::op::{Change, Op, Precondition};
use crate::snapshot::Snapshot;
use crate::world::{Plan, World};

/// The service account of pods that name none.
pub const DEFAULT: &str = "default";

/// The service account loop; keys are namespaces.
#[derive(Debug, Clone, Copy, Default)]
pub struct ServiceAccountLoop;

impl Reconciler for ServiceAccountLoop {
    fn name(&self) -> &'static str {
        "serviceaccount"
    }

    fn keys(&self, change: &Change, _: &Snapshot) -> Vec<ObjectKey> {
        match change.key.kind {
            Kind::Namespace => vec![change.key.clone()],
            Kind::ServiceAccount if change.key.name == DEFAULT => {
                vec![ObjectKey::cluster(Kind::Namespace, &change.key.namespace)]
            }
            _ => Vec::new(),
        }
    }

    fn all_keys(&self, snapshot: &Snapshot) -> Vec<ObjectKey> {
        snapshot.list::<Namespace>(None).map(|namespace| key_of(&**namespace)).collect()
    }

    fn reconcile(&self, world: &World, key: &ObjectKey) -> Plan {
        let has = world.snapshot.get::<ServiceAccount>(&key.name, DEFAULT).is_some();
        if has || !namespace_is_live(&world.snapshot, &key.name) {
            return Plan::default();
        }
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(DEFAULT.to_owned()),
                namespace: Some(key.name.clone()),
                ..Default::default()
            },
            ..Default::default()
        };
        Plan {
            ops: vec![Op::Create(account.into_object())],
            preconditions: vec![Precondition::Exists(key.clone())],
            ..Plan::default()
        }
    }
}
