//! The control loops, each a pure function of the [`World`] and one key.
//!
//! A change is never an input: it only says which keys to look at again ([`Reconciler::keys`]). A
//! loop reads a snapshot that has its own last write in it (the driver sees to that), so there is
//! no book of expectations. What a loop answers is data; the driver checks it
//! ([`crate::invariants`]), stamps it and proposes it.

pub mod aggregation;
pub mod deployment;
pub mod disruption;
pub mod endpoints;
pub mod events;
pub mod gc;
pub mod latency;
pub mod namespace;
pub mod node;
pub mod pod;
pub mod quota;
pub mod record;
pub mod replicaset;
pub mod service_account;

use timonier_proto::ObjectKey;

use crate::op::Change;
use crate::snapshot::Snapshot;
use crate::world::{Plan, World};

/// Most operations in one plan: bounds the size of a transaction. A loop with more to do is looked
/// at again as soon as the first part is written.
pub const OPS_PER_PLAN_MAX: usize = 500;

/// One control loop.
pub trait Reconciler: Send + Sync {
    /// For logs: `deployment`, `replicaset`, …
    fn name(&self) -> &'static str;

    /// Which keys a change may concern. May name keys that do not exist, and too many; must not
    /// miss one. `snapshot` is at or after the change.
    fn keys(&self, change: &Change, snapshot: &Snapshot) -> Vec<ObjectKey>;

    /// Every key there is to look at: at the start of a leadership and at each resync.
    fn all_keys(&self, snapshot: &Snapshot) -> Vec<ObjectKey>;

    /// Whether it wants to look again, at [`Self::all_keys`], when the agents' signals changed.
    fn follows_signals(&self) -> bool {
        false
    }

    /// Whether it looks at what the agents last said ([`World::telemetry`]); else it may be given
    /// an older state of it.
    fn reads_telemetry(&self) -> bool {
        false
    }

    /// What to write so that the object gets closer to what it should be.
    fn reconcile(&self, world: &World, key: &ObjectKey) -> Plan;
}

/// Every control loop there is, the scheduler among them.
pub fn all() -> Vec<Box<dyn Reconciler>> {
    vec![
        Box::new(node::NodeLoop),
        Box::new(deployment::DeploymentLoop),
        Box::new(replicaset::ReplicaSetLoop),
        Box::new(crate::schedule::SchedulerLoop),
        Box::new(endpoints::EndpointsLoop),
        Box::new(pod::PodLoop),
        Box::new(gc::GarbageLoop),
        Box::new(namespace::NamespaceLoop),
        Box::new(latency::LatencyLoop),
        Box::new(aggregation::AggregationLoop),
        Box::new(service_account::ServiceAccountLoop),
        Box::new(quota::QuotaLoop),
        Box::new(disruption::DisruptionLoop),
        Box::new(events::EventLoop),
    ]
}

#[cfg(test)]
mod tests;
