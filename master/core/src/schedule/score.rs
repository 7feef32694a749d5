//! Where a pod goes best, among the nodes that can take it: where its siblings are few, where much
//! is left of what was promised, and where the machine is idle *as measured*.

use k8s_openapi::api::core::v1::Pod;

use super::demand::Demand;
use super::selector::preference;
use super::view::{ClusterView, NodeView};
use crate::object::controller_of;

/// Points that each sibling more than on the emptiest node costs. A node's whole range of measured
/// load is worth 100, so load moves a pod off an even spread only when a node is much busier.
const SIBLING_COST: i64 = 75;
/// Siblings beyond this cost nothing more.
const SIBLINGS_COUNTED_MAX: i64 = 4;
/// Points that each loss of the node in the last minutes costs: a second one outweighs a full range
/// of load, a third one an even spread.
const LOSS_COST: i64 = 100;
/// Losses beyond this cost nothing more.
const LOSSES_COUNTED_MAX: i64 = 5;
/// Points for meeting all preferences of the pod.
const PREFERENCE_POINTS: i64 = 200;
/// Percent that a node of unknown load is taken to have.
const LOAD_ASSUMED: f32 = 50.0;

/// The best of `fitting`; of equals one that the view's seed chooses. `None` when there is none.
pub(super) fn best(
    view: &mut ClusterView,
    fitting: &[usize],
    pod: &Pod,
    demand: &Demand,
) -> Option<usize> {
    let owner = controller_of(&pod.metadata).map(|o| o.uid.as_str());
    let siblings =
        |node: &NodeView| owner.and_then(|o| node.owners.get(o)).copied().unwrap_or_default();
    let nodes = view.nodes();
    let fewest = fitting.iter().map(|i| siblings(&nodes[*i])).min()?;
    let most_preferred = fitting.iter().map(|i| preference(pod, &nodes[*i].node)).max()?;
    let (mut top, mut best) = (i64::MIN, Vec::new());
    for index in fitting {
        let node = &nodes[*index];
        let crowd = (siblings(node) - fewest).min(SIBLINGS_COUNTED_MAX);
        let mut score = free_share(node, demand) + idleness(node) - crowd * SIBLING_COST;
        score -= i64::try_from(node.losses).unwrap_or(i64::MAX).min(LOSSES_COUNTED_MAX) * LOSS_COST;
        if most_preferred > 0 {
            score += preference(pod, &node.node) * PREFERENCE_POINTS / most_preferred;
        }
        if score > top {
            top = score;
            best.clear();
        }
        if score == top {
            best.push(*index);
        }
    }
    if best.len() == 1 {
        return best.first().copied();
    }
    let choice = view.random.next_u64() % best.len() as u64;
    usize::try_from(choice).ok().and_then(|i| best.get(i)).copied()
}

/// 0–100: what would be left of CPU and memory with the pod on it, the mean of both.
fn free_share(node: &NodeView, demand: &Demand) -> i64 {
    let share = |has: i64, taken: i64, wants: i64| {
        if has <= 0 { 0 } else { ((has - taken - wants) * 100 / has).clamp(0, 100) }
    };
    let (has, taken, wants) = (&node.allocatable, &node.weight, &demand.weight);
    let cpu = share(has.cpu_millis, taken.cpu_millis, wants.cpu_millis);
    let memory = share(has.memory_bytes, taken.memory_bytes, wants.memory_bytes);
    i64::midpoint(cpu, memory)
}

/// 0–100: how idle the machine is, CPU counting more than memory since it changes faster.
fn idleness(node: &NodeView) -> i64 {
    let (cpu, memory) = node.load.unwrap_or((LOAD_ASSUMED, LOAD_ASSUMED));
    let busy = (0.6 * cpu + 0.4 * memory).clamp(0.0, 100.0);
    // In steps of 5, so that noise between like machines does not decide.
    20_i64.saturating_sub((busy / 5.0) as i64) * 5
}
