//! Nodes that are lost again and again: their last losses are kept in an annotation, so that the
//! scheduler prefers others and pods do not wander to and fro.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;

use crate::object::{after_seconds, stored_time};

/// Times (RFC 3339, oldest first, with commas) at which the node was lost lately.
pub const LOST_ANNOTATION: &str = "timonier.io/lost-at";
/// A loss counts for so long.
pub const LOSS_SECONDS_MAX: i64 = 300;
/// More losses count no more than so many.
pub const LOSSES_MAX: usize = 5;
/// From so many losses on a node is said to be flapping.
pub const FLAPPING_LOSSES: usize = 3;

/// The losses that count at `now`, oldest first.
pub fn recent(node: &Node, now: Timestamp) -> Vec<Timestamp> {
    let noted = node.metadata.annotations.as_ref().and_then(|all| all.get(LOST_ANNOTATION));
    noted
        .into_iter()
        .flat_map(|text| text.split(','))
        .filter_map(|text| text.parse::<Timestamp>().ok())
        .filter(|at| after_seconds(*at, LOSS_SECONDS_MAX) > now)
        .collect()
}

/// Notes that the node is lost now; how many losses that makes.
pub fn note(node: &mut Node, now: Timestamp) -> usize {
    let mut losses = recent(node, now);
    losses.push(stored_time(now).0);
    let first = losses.len().saturating_sub(LOSSES_MAX);
    let text: Vec<String> = losses.iter().skip(first).map(ToString::to_string).collect();
    let annotations = node.metadata.annotations.get_or_insert_default();
    annotations.insert(LOST_ANNOTATION.to_owned(), text.join(","));
    text.len()
}
