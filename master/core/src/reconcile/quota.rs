//! The status of quotas: what of each is used.

use k8s_openapi::api::core::v1::ResourceQuota;
use timonier_proto::{Kind, Kinded, ObjectKey};

use super::Reconciler;
use crate::object::key_of;
use crate::op::{Change, Op};
use crate::policy::status_of;
use crate::snapshot::Snapshot;
use crate::world::{Plan, World};

/// The quota loop; keys are quotas.
#[derive(Debug, Clone, Copy, Default)]
pub struct QuotaLoop;

impl Reconciler for QuotaLoop {
    fn name(&self) -> &'static str {
        "quota"
    }

    fn keys(&self, change: &Change, snapshot: &Snapshot) -> Vec<ObjectKey> {
        let namespace = &change.key.namespace;
        // What only changes takes no more and no less, but for pods that end and services.
        let counts = change.before.is_none()
            || change.after.is_none()
            || matches!(change.key.kind, Kind::Pod | Kind::Service | Kind::ResourceQuota);
        if namespace.is_empty() || change.key.kind == Kind::Event || !counts {
            return Vec::new();
        }
        snapshot.list::<ResourceQuota>(Some(namespace)).map(|quota| key_of(&**quota)).collect()
    }

    fn all_keys(&self, snapshot: &Snapshot) -> Vec<ObjectKey> {
        snapshot.list::<ResourceQuota>(None).map(|quota| key_of(&**quota)).collect()
    }

    fn reconcile(&self, world: &World, key: &ObjectKey) -> Plan {
        let quota = world.snapshot.get::<ResourceQuota>(&key.namespace, &key.name);
        let Some(quota) = quota else { return Plan::default() };
        let status = status_of(&world.snapshot, quota);
        if quota.status.as_ref() == Some(&status) {
            return Plan::default();
        }
        let mut new = ResourceQuota::clone(quota);
        new.status = Some(status);
        Plan { ops: vec![Op::ReplaceStatus(new.into_object())], ..Plan::default() }
    }
}
