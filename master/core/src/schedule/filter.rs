//! Where a pod cannot go, and why: each reason is counted, so that a refusal explains itself.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};

use super::demand::Demand;
use super::selector::matches_node_affinity;
use super::view::NodeView;

const UNSCHEDULABLE_TAINT: &str = "node.kubernetes.io/unschedulable";

/// Reasons with the number of nodes each holds for.
#[derive(Debug, Default)]
pub(super) struct Refusals(BTreeMap<String, usize>);

impl Refusals {
    fn note(&mut self, reason: impl Into<String>) {
        *self.0.entry(reason.into()).or_default() += 1;
    }

    /// `0/3 nodes are available: 1 insufficient cpu, 2 node(s) were unschedulable.`
    pub fn explain(&self, nodes: usize) -> String {
        if nodes == 0 {
            return "0/0 nodes are available: no node has joined the cluster.".to_owned();
        }
        let reasons: Vec<String> =
            self.0.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        format!("0/{nodes} nodes are available: {}.", reasons.join(", "))
    }
}

/// Whether the node can take the pod; a refusal is noted, of the cheapest filter that refuses (and
/// of each resource that is short).
pub(super) fn fits(node: &NodeView, pod: &Pod, demand: &Demand, refusals: &mut Refusals) -> bool {
    if !node.is_ready {
        refusals.note("node(s) were not ready");
        return false;
    }
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let spec = node.node.spec.as_ref();
    if spec.and_then(|s| s.unschedulable) == Some(true) {
        let cordon = Taint {
            key: UNSCHEDULABLE_TAINT.to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        };
        if !tolerations.iter().any(|t| tolerates(t, &cordon)) {
            refusals.note("node(s) were unschedulable");
            return false;
        }
    }
    let taints = spec.and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let untolerated = taints
        .iter()
        .filter(|t| t.effect == "NoSchedule" || t.effect == "NoExecute")
        .find(|taint| !tolerations.iter().any(|t| tolerates(t, taint)));
    if let Some(taint) = untolerated {
        let value = taint.value.as_deref().unwrap_or_default();
        refusals.note(format!("node(s) had untolerated taint {{{}: {value}}}", taint.key));
        return false;
    }
    if !matches_node_affinity(pod, &node.node) {
        refusals.note("node(s) didn't match Pod's node affinity/selector");
        return false;
    }
    if demand.host_ports.iter().any(|port| node.host_ports.contains(port)) {
        refusals.note("node(s) didn't have free ports for the requested pod ports");
        return false;
    }
    has_room(node, demand, refusals)
}

fn has_room(node: &NodeView, demand: &Demand, refusals: &mut Refusals) -> bool {
    let (has, taken, wants) = (&node.allocatable, &node.requested, &demand.requests);
    let mut fits = true;
    if taken.pods + wants.pods > has.pods {
        refusals.note("too many pods");
        fits = false;
    }
    for (name, has, taken, wants) in [
        ("cpu", has.cpu_millis, taken.cpu_millis, wants.cpu_millis),
        ("memory", has.memory_bytes, taken.memory_bytes, wants.memory_bytes),
        ("ephemeral-storage", has.storage_bytes, taken.storage_bytes, wants.storage_bytes),
    ] {
        if wants > 0 && taken + wants > has {
            refusals.note(format!("insufficient {name}"));
            fits = false;
        }
    }
    fits
}

/// Kubernetes' rule: an empty key with Exists tolerates everything, an empty effect all effects.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    let key = toleration.key.as_deref().unwrap_or_default();
    if !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "Equal" => {
            !key.is_empty()
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
        _ => false,
    }
}
