//! Cluster roles that are put together from others: their rules are those of all the cluster roles
//! that their selectors find, in order of name.

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use timonier_proto::selector::Selector;
use timonier_proto::{Kind, Kinded, ObjectKey};

use super::Reconciler;
use crate::object::{key_of, name_of};
use crate::op::{Change, Op};
use crate::snapshot::Snapshot;
use crate::world::{Plan, World};

/// The aggregation loop; keys are cluster roles.
#[derive(Debug, Clone, Copy, Default)]
pub struct AggregationLoop;

impl Reconciler for AggregationLoop {
    fn name(&self) -> &'static str {
        "aggregation"
    }

    fn keys(&self, change: &Change, snapshot: &Snapshot) -> Vec<ObjectKey> {
        match change.key.kind {
            Kind::ClusterRole => self.all_keys(snapshot),
            _ => Vec::new(),
        }
    }

    fn all_keys(&self, snapshot: &Snapshot) -> Vec<ObjectKey> {
        snapshot
            .list::<ClusterRole>(None)
            .filter(|role| role.aggregation_rule.is_some())
            .map(|role| key_of(&**role))
            .collect()
    }

    fn reconcile(&self, world: &World, key: &ObjectKey) -> Plan {
        let Some(role) = world.snapshot.get::<ClusterRole>("", &key.name) else {
            return Plan::default();
        };
        let Some(wanted) = gathered(&world.snapshot, role) else { return Plan::default() };
        if role.rules.as_deref().unwrap_or_default() == wanted {
            return Plan::default();
        }
        let mut new = ClusterRole::clone(role);
        new.rules = Some(wanted);
        Plan { ops: vec![Op::Replace(new.into_object())], ..Plan::default() }
    }
}

/// `None` for a role with rules of its own. A selector that makes no sense finds nothing.
fn gathered(snapshot: &Snapshot, role: &ClusterRole) -> Option<Vec<PolicyRule>> {
    let selectors: Vec<Selector> = role
        .aggregation_rule
        .as_ref()?
        .cluster_role_selectors
        .iter()
        .flatten()
        .filter_map(|selector| Selector::from_label_selector(selector).ok())
        .collect();
    let mut rules: Vec<PolicyRule> = Vec::new();
    for other in snapshot.list::<ClusterRole>(None) {
        let labels = other.metadata.labels.as_ref();
        let found = name_of(&other.metadata) != name_of(&role.metadata)
            && selectors.iter().any(|selector| selector.matches(labels));
        for rule in other.rules.iter().flatten().filter(|_| found) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    Some(rules)
}
