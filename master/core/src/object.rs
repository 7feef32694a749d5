//! Questions that every control loop asks of an object: is the pod ready, who controls it, how does
//! one end it. Reads only; what to do about the answers is the loops'.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use timonier_proto::{Kind, Kinded, ObjectKey};

use crate::op::Op;

/// Grace period of a pod that names none, as in Kubernetes.
pub const GRACE_SECONDS_DEFAULT: i64 = 30;

/// A time as it is stored: whole seconds, so that what is read back is what was written.
pub fn stored_time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// `at` + `seconds`, at the end of time at the latest.
pub fn after_seconds(at: Timestamp, seconds: i64) -> Timestamp {
    at.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

/// `at` + `millis`, at the end of time at the latest.
pub fn after_millis(at: Timestamp, millis: i64) -> Timestamp {
    at.checked_add(SignedDuration::from_millis(millis)).unwrap_or(Timestamp::MAX)
}

pub fn key_of<T: Kinded>(object: &T) -> ObjectKey {
    let meta = object.meta();
    ObjectKey::new(
        T::KIND,
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}

pub fn uid_of(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or_default()
}

pub fn name_of(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

pub fn namespace_of(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or_default()
}

pub fn is_ending(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some()
}

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

/// Succeeded or Failed: it will never run again.
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Neither finished nor ending.
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !is_ending(&pod.metadata)
}

/// The node that the pod is bound to.
pub fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// Whether the pod's condition of that type is `True`.
pub fn has_condition(pod: &Pod, type_: &str) -> bool {
    pod.status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .any(|c| c.type_ == type_ && c.status == "True")
}

pub fn is_ready(pod: &Pod) -> bool {
    has_condition(pod, "Ready")
}

/// Since when the pod has been ready; `None` when it isn't.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let condition = pod
        .status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|c| c.type_ == "Ready" && c.status == "True")?;
    Some(condition.last_transition_time.as_ref().map_or(Timestamp::MIN, |t| t.0))
}

/// When a ready pod counts (or will count) as available; `None` when it isn't ready.
pub fn available_at(pod: &Pod, min_ready_seconds: i32) -> Option<Timestamp> {
    let since = ready_since(pod)?;
    if min_ready_seconds <= 0 {
        return Some(Timestamp::MIN);
    }
    Some(after_seconds(since, i64::from(min_ready_seconds)))
}

/// The status (`True`, `False`, `Unknown`) of the node's Ready condition; empty when it has none.
pub fn node_ready_status(node: &Node) -> &str {
    node.status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .find(|c| c.type_ == "Ready")
        .map_or("", |c| c.status.as_str())
}

pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|r| r.controller == Some(true))
}

/// A reference that makes `owner` the controller.
pub fn controller_reference<T: Kinded>(owner: &T) -> OwnerReference {
    let info = T::KIND.info();
    OwnerReference {
        api_version: info.api_version(),
        kind: info.name.to_owned(),
        name: name_of(owner.meta()).to_owned(),
        uid: uid_of(owner.meta()).to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// How a pod is ended: one that an agent may hold is asked to end with its grace period, and its
/// agent's word removes it; any other is removed at once. `None` when it is ending already.
pub fn end_pod(pod: &Pod, now: Timestamp) -> Option<Op> {
    let key = key_of(pod);
    let uid = pod.metadata.uid.clone();
    if is_ending(&pod.metadata) && node_of(pod).is_some() {
        return None;
    }
    if node_of(pod).is_none() || is_finished(pod) {
        return Some(Op::Remove { key, uid });
    }
    let grace_seconds = pod
        .spec
        .as_ref()
        .and_then(|s| s.termination_grace_period_seconds)
        .unwrap_or(GRACE_SECONDS_DEFAULT);
    Some(Op::MarkDeleted { key, uid, at: now, grace_seconds })
}

/// Whether there must never be two of the pod.
pub fn is_unique(pod: &Pod) -> bool {
    timonier_proto::unique::is_unique(&pod.metadata)
}

/// When the pod was asked to end, at the latest; `None` when it was not.
pub fn asked_to_end_at(pod: &Pod) -> Option<Timestamp> {
    let gone_at = pod.metadata.deletion_timestamp.as_ref()?.0;
    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or_default();
    // Times are stored in whole seconds, so it was within the second that follows.
    Some(after_seconds(gone_at, 1 - grace))
}

/// Whether objects may still be created in the namespace.
pub fn namespace_is_live(snapshot: &crate::snapshot::Snapshot, namespace: &str) -> bool {
    snapshot
        .object(&ObjectKey::cluster(Kind::Namespace, namespace))
        .is_some_and(|o| !is_ending(o.meta()))
}
