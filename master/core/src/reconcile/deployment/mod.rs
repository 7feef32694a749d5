//! Deployment → ReplicaSets: creates the set of the current template and moves the replicas over to
//! it from the older ones, within the strategy's bounds. It never touches a pod.

mod replica_sets;
mod rolling;
mod scale;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use timonier_proto::selector::Selector;
use timonier_proto::{Kind, Kinded, ObjectKey};

use self::replica_sets::Rollout;
use super::Reconciler;
use crate::object::{
    controller_of, is_ending, is_finished, key_of, namespace_is_live, namespace_of,
};
use crate::op::Change;
use crate::rollout::is_recreate;
use crate::snapshot::Snapshot;
use crate::world::{Plan, World};

/// Written by the store of revisions that `rollout history` shows.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Earlier revisions of a set that was rolled back to.
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// Replicas the deployment asked for when the set was last scaled.
pub const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
/// The same with surge.
pub const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// Tells the sets of one deployment, and their pods, apart.
pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";

/// The deployment loop; keys are deployments.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeploymentLoop;

impl Reconciler for DeploymentLoop {
    fn name(&self) -> &'static str {
        "deployment"
    }

    fn keys(&self, change: &Change, snapshot: &Snapshot) -> Vec<ObjectKey> {
        match change.key.kind {
            Kind::Deployment => vec![change.key.clone()],
            Kind::ReplicaSet => [&change.before, &change.after]
                .into_iter()
                .flatten()
                .filter_map(|o| o.get::<ReplicaSet>())
                .flat_map(|set| deployments_of(set, snapshot))
                .collect(),
            Kind::Pod => recreated_by(change, snapshot).into_iter().collect(),
            _ => Vec::new(),
        }
    }

    fn all_keys(&self, snapshot: &Snapshot) -> Vec<ObjectKey> {
        snapshot.list::<Deployment>(None).map(|d| key_of(&**d)).collect()
    }

    fn reconcile(&self, world: &World, key: &ObjectKey) -> Plan {
        let Some(deployment) = world.snapshot.get::<Deployment>(&key.namespace, &key.name) else {
            return Plan::default();
        };
        if is_ending(&deployment.metadata) || !namespace_is_live(&world.snapshot, &key.namespace) {
            return Plan::default();
        }
        let Some(spec) = &deployment.spec else { return Plan::default() };
        let Ok(selector) = Selector::from_label_selector(&spec.selector) else {
            return Plan::default();
        };
        if selector.is_empty() {
            return Plan::default();
        }
        let mut rollout = Rollout::gather(world, deployment, &selector);
        rollout.note_pause();
        if spec.paused == Some(true) {
            rollout.find_new_set();
            rollout.scale_in_proportion();
            rollout.forget_old_revisions();
            rollout.sync_status();
        } else if rollout.is_scaling() {
            rollout.find_new_set();
            rollout.scale_in_proportion();
            rollout.sync_status();
        } else if is_recreate(deployment) {
            rollout.recreate();
        } else {
            rollout.roll();
        }
        rollout.into_plan()
    }
}

/// The deployment that controls the set, or those that might adopt it.
fn deployments_of(set: &ReplicaSet, snapshot: &Snapshot) -> Vec<ObjectKey> {
    let namespace = namespace_of(&set.metadata);
    if let Some(owner) = controller_of(&set.metadata) {
        return (owner.kind == "Deployment")
            .then(|| ObjectKey::new(Kind::Deployment, namespace, &owner.name))
            .into_iter()
            .collect();
    }
    snapshot
        .list::<Deployment>(Some(namespace))
        .filter(|d| selects(d, set))
        .map(|d| key_of(&**d))
        .collect()
}

fn selects(deployment: &Arc<Deployment>, set: &ReplicaSet) -> bool {
    deployment
        .spec
        .as_ref()
        .and_then(|s| Selector::from_label_selector(&s.selector).ok())
        .is_some_and(|s| !s.is_empty() && s.matches(set.meta().labels.as_ref()))
}

/// A Recreate deployment waits for its old pods to be gone, and their sets no longer count pods
/// that are ending: so it looks again when a pod is gone.
fn recreated_by(change: &Change, snapshot: &Snapshot) -> Option<ObjectKey> {
    let after = change.after.as_ref().and_then(|o| o.get::<Pod>());
    if after.is_some_and(|pod| !is_finished(pod)) {
        return None;
    }
    let pod = change.before.as_ref()?.get::<Pod>()?;
    let set_name = &controller_of(&pod.metadata).filter(|o| o.kind == "ReplicaSet")?.name;
    let set = snapshot.get::<ReplicaSet>(namespace_of(&pod.metadata), set_name)?;
    let owner = controller_of(&set.metadata).filter(|o| o.kind == "Deployment")?;
    let deployment = snapshot.get::<Deployment>(namespace_of(&set.metadata), &owner.name)?;
    is_recreate(deployment).then(|| key_of(&**deployment))
}
