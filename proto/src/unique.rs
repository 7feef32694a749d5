//! Pods of which there must never be two: how one is marked, and the times that keep it so.
//!
//! An agent may run such a pod only while it holds a lease, which a master renews by answering
//! heartbeats. The agent stops the pod when its lease has run out; the masters start another one
//! only after that, with a margin.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Annotation of a pod, or of a pod template: `"true"` or `"false"`.
pub const UNIQUE_ANNOTATION: &str = "timonier.io/unique";
/// How long a lease lasts after the heartbeat that renewed it was sent, where nothing else is set.
pub const FENCE_AFTER_MS_DEFAULT: u32 = 10_000;
/// What a pod gets to end by itself once its lease has run out; then it is killed.
pub const FENCE_GRACE_MS: u64 = 2_000;
/// So long after a lease has run out its pods are taken to be gone: the grace, the time to kill
/// them, and what the clocks of two masters may differ.
pub const FENCE_MARGIN_MS: i64 = 5_000;

/// Annotation of a node, written by the masters: what its agent may take for the lease's length, in
/// milliseconds. Absent: the default.
pub const FENCE_AFTER_ANNOTATION: &str = "timonier.io/fence-after-ms";

/// How long a lease lasts on the node with this metadata, at most; 0: for ever, so nobody waits.
pub fn fence_after_ms(node: &ObjectMeta) -> u32 {
    let noted = node.annotations.as_ref().and_then(|all| all.get(FENCE_AFTER_ANNOTATION));
    noted.and_then(|value| value.parse().ok()).unwrap_or(FENCE_AFTER_MS_DEFAULT)
}

/// Whether the object (or what a template makes) is marked as unique.
pub fn is_unique(meta: &ObjectMeta) -> bool {
    let annotations = meta.annotations.as_ref();
    annotations.and_then(|all| all.get(UNIQUE_ANNOTATION)).is_some_and(|value| value == "true")
}
