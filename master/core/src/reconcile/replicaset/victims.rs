//! Which pods a set gives up, in Kubernetes' order: those that lose the least. Among equals the
//! nodes that hold most of the set's pods give first, one at a time, so that what is left is spread.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::object::{is_ready, node_of, phase, ready_since};

/// Lower goes first; 0 when the annotation is absent.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Smaller goes first.
type Standing = (bool, u8, bool, i64);
/// Among equals of a node: smaller goes first.
type Youth = (Reverse<Timestamp>, Reverse<i32>, Reverse<Timestamp>, usize);

/// Indexes of `count` pods (or all, when there are fewer), the first to go first.
pub(super) fn choose(pods: &[Arc<Pod>], count: usize) -> Vec<usize> {
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in pods {
        *on_node.entry(node_of(pod).unwrap_or_default()).or_default() += 1;
    }
    let mut left: Vec<(Standing, &str, Youth, usize)> = pods
        .iter()
        .enumerate()
        .map(|(i, pod)| (standing(pod), node_of(pod).unwrap_or_default(), youth(pod, i), i))
        .collect();
    let mut chosen = Vec::with_capacity(count.min(pods.len()));
    while chosen.len() < count {
        let next = left
            .iter()
            .enumerate()
            .min_by_key(|(_, (standing, node, youth, _))| {
                (*standing, Reverse(on_node[node]), *youth)
            })
            .map(|(position, _)| position);
        let Some(position) = next else { break };
        let (_, node, _, index) = left.swap_remove(position);
        if let Some(held) = on_node.get_mut(node) {
            *held -= 1;
        }
        chosen.push(index);
    }
    chosen
}

/// Without a node, then not running, then not ready, then cheap.
fn standing(pod: &Pod) -> Standing {
    let running = match phase(pod) {
        "Pending" => 0,
        "Running" => 2,
        _ => 1,
    };
    let cost = pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(DELETION_COST)?.parse().ok())
        .unwrap_or(0);
    (node_of(pod).is_some(), running, is_ready(pod), cost)
}

/// Ready for the shortest time, then restarted most often, then created last.
fn youth(pod: &Pod, index: usize) -> Youth {
    let restarts = pod
        .status
        .iter()
        .flat_map(|s| s.container_statuses.iter().flatten())
        .map(|c| c.restart_count)
        .max()
        .unwrap_or(0);
    let created = pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::MIN, |t| t.0);
    let since = ready_since(pod).unwrap_or(Timestamp::MIN);
    (Reverse(since), Reverse(restarts), Reverse(created), index)
}
