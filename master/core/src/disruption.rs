//! Pod disruption budgets: how many pods of a group may be taken down on purpose now. The counting
//! is Kubernetes'; both the loop that writes a budget's status and the door that evicts ask here.
//!
//! Only evictions ask: pods that die by themselves, and people who delete one, do not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use timonier_proto::selector::Selector;
use timonier_proto::{Kinded, Object};

use crate::object::{
    after_seconds, controller_of, is_active, is_ending, is_finished, is_ready, key_of, name_of,
    namespace_of, phase, stored_time, uid_of,
};
use crate::op::{Op, Precondition};
use crate::rollout::{replicas_of, scaled_value};
use crate::snapshot::Snapshot;

/// An eviction that came to nothing (the pod is still there, and is not ending) is forgotten after
/// so long, as in Kubernetes.
pub const EVICTION_SECONDS_MAX: i64 = 120;
/// The one condition of a budget.
const DISRUPTION_ALLOWED: &str = "DisruptionAllowed";

/// What a budget comes to, counted in one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Pods that there should be.
    pub expected: i32,
    /// Pods that are ready, and neither ending nor promised to an eviction.
    pub healthy: i32,
    /// Healthy pods that there must be.
    pub desired: i32,
}

impl Count {
    /// Further healthy pods that may be taken down now.
    pub fn allowed(self) -> i32 {
        if self.expected <= 0 { 0 } else { (self.healthy - self.desired).max(0) }
    }
}

/// Whether the budget is about the pod. No selector is about none, an empty one about all.
pub fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    namespace_of(&budget.metadata) == namespace_of(&pod.metadata)
        && budget
            .spec
            .as_ref()
            .and_then(|spec| spec.selector.as_ref())
            .and_then(|selector| Selector::from_label_selector(selector).ok())
            .is_some_and(|selector| selector.matches(pod.metadata.labels.as_ref()))
}

/// The budgets that are about the pod.
pub fn of_pod<'a>(
    snapshot: &'a Snapshot,
    pod: &'a Pod,
) -> impl Iterator<Item = &'a Arc<PodDisruptionBudget>> {
    snapshot
        .list::<PodDisruptionBudget>(Some(namespace_of(&pod.metadata)))
        .filter(move |budget| covers(budget, pod))
}

/// Evictions that were allowed and are not seen to have begun.
pub fn pending(
    snapshot: &Snapshot,
    budget: &PodDisruptionBudget,
    now: Timestamp,
) -> BTreeMap<String, Time> {
    let namespace = namespace_of(&budget.metadata);
    let noted = budget.status.as_ref().and_then(|status| status.disrupted_pods.as_ref());
    noted
        .into_iter()
        .flatten()
        .filter(|(name, at)| {
            after_seconds(at.0, EVICTION_SECONDS_MAX) > now
                && snapshot.get::<Pod>(namespace, name).is_some_and(|pod| is_active(pod))
        })
        .map(|(name, at)| (name.clone(), at.clone()))
        .collect()
}

pub fn count(snapshot: &Snapshot, budget: &PodDisruptionBudget, now: Timestamp) -> Count {
    let pods: Vec<&Arc<Pod>> = snapshot
        .list::<Pod>(Some(namespace_of(&budget.metadata)))
        .filter(|pod| covers(budget, pod))
        .collect();
    let leaving = pending(snapshot, budget, now);
    let healthy = pods.iter().filter(|pod| {
        is_active(pod) && is_ready(pod) && !leaving.contains_key(name_of(&pod.metadata))
    });
    let healthy = number(healthy.count());
    let spec = budget.spec.clone().unwrap_or_default();
    let (expected, desired) = match (&spec.max_unavailable, &spec.min_available) {
        (Some(unavailable), _) => {
            let expected = scale(snapshot, &pods);
            let unavailable = scaled_value(unavailable, expected, true).unwrap_or_default();
            (expected, (expected - unavailable).max(0))
        }
        (None, Some(IntOrString::Int(least))) => (number(pods.len()), (*least).max(0)),
        (None, Some(share)) => {
            let expected = scale(snapshot, &pods);
            (expected, scaled_value(share, expected, true).unwrap_or(expected))
        }
        (None, None) => (number(pods.len()), 0),
    };
    Count { expected, healthy, desired }
}

/// How many pods the controllers of these pods are asked for, together. Pods without a controller
/// that can be asked are left out.
fn scale(snapshot: &Snapshot, pods: &[&Arc<Pod>]) -> i32 {
    let (mut seen, mut sum) = (BTreeSet::new(), 0_i32);
    for pod in pods {
        let Some(owner) = controller_of(&pod.metadata).filter(|o| o.kind == "ReplicaSet") else {
            continue;
        };
        let namespace = namespace_of(&pod.metadata);
        let Some(set) = snapshot.get::<ReplicaSet>(namespace, &owner.name) else { continue };
        let deployment = controller_of(&set.metadata)
            .filter(|owner| owner.kind == "Deployment")
            .and_then(|owner| snapshot.get::<Deployment>(namespace, &owner.name));
        let (uid, replicas) = match deployment {
            Some(deployment) => (uid_of(&deployment.metadata), replicas_of(deployment)),
            None => {
                let replicas = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1).max(0);
                (uid_of(&set.metadata), replicas)
            }
        };
        if seen.insert(uid.to_owned()) {
            sum = sum.saturating_add(replicas);
        }
    }
    sum
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// The status that follows from a count.
pub fn status(
    budget: &PodDisruptionBudget,
    count: Count,
    disrupted: BTreeMap<String, Time>,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let (verdict, reason) = match count.allowed() {
        0 => ("False", "InsufficientPods"),
        _ => ("True", "SufficientPods"),
    };
    let stored = budget.status.as_ref().and_then(|status| status.conditions.as_ref());
    let since = stored
        .into_iter()
        .flatten()
        .find(|c| c.type_ == DISRUPTION_ALLOWED && c.status == verdict)
        .map(|c| c.last_transition_time.clone());
    let condition = Condition {
        type_: DISRUPTION_ALLOWED.to_owned(),
        status: verdict.to_owned(),
        reason: reason.to_owned(),
        message: String::new(),
        last_transition_time: since.unwrap_or_else(|| stored_time(now)),
        observed_generation: budget.metadata.generation,
    };
    PodDisruptionBudgetStatus {
        conditions: Some(vec![condition]),
        current_healthy: count.healthy,
        desired_healthy: count.desired,
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        disruptions_allowed: count.allowed(),
        expected_pods: count.expected,
        observed_generation: budget.metadata.generation,
    }
}

/// What a budget answers to an eviction.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// To be written in one transaction with the pod's deletion: what was counted is taken in the
    /// same breath, so that no two evictions take the same.
    Allowed { ops: Vec<Op>, preconditions: Vec<Precondition> },
    /// Not now; the text says which budget, and what it needs.
    Refused(String),
    /// The pod has more than one budget, which Kubernetes cannot decide either.
    TooManyBudgets(Vec<String>),
}

/// Whether the pod may be evicted now.
pub fn evict(snapshot: &Snapshot, pod: &Pod, now: Timestamp) -> Answer {
    let free = Answer::Allowed { ops: Vec::new(), preconditions: Vec::new() };
    // What serves nobody is no loss.
    if is_finished(pod) || is_ending(&pod.metadata) || phase(pod) == "Pending" {
        return free;
    }
    let budgets: Vec<_> = of_pod(snapshot, pod).collect();
    let budget = match budgets.as_slice() {
        [] => return free,
        [one] => *one,
        many => {
            return Answer::TooManyBudgets(
                many.iter().map(|b| name_of(&b.metadata).to_owned()).collect(),
            );
        }
    };
    let count = count(snapshot, budget, now);
    if !is_ready(pod) {
        let spec = budget.spec.as_ref();
        let policy = spec.and_then(|s| s.unhealthy_pod_eviction_policy.as_deref());
        if policy == Some("AlwaysAllow") || (count.desired > 0 && count.healthy >= count.desired) {
            return free;
        }
    }
    let name = name_of(&budget.metadata);
    if count.allowed() == 0 {
        return Answer::Refused(format!(
            "Cannot evict pod as it would violate the pod's disruption budget. The disruption \
             budget {name} needs {} healthy pods and has {} currently",
            count.desired, count.healthy
        ));
    }
    let mut disrupted = pending(snapshot, budget, now);
    disrupted.insert(name_of(&pod.metadata).to_owned(), stored_time(now));
    let taken = Count { healthy: count.healthy - i32::from(is_ready(pod)), ..count };
    let mut changed = PodDisruptionBudget::clone(budget);
    changed.status = Some(status(budget, taken, disrupted, now));
    let revision = budget.metadata.resource_version.as_deref().and_then(|r| r.parse().ok());
    let precondition = Precondition::Revision(key_of(&**budget), revision.unwrap_or_default());
    let object: Object = changed.into_object();
    Answer::Allowed { ops: vec![Op::ReplaceStatus(object)], preconditions: vec![precondition] }
}
