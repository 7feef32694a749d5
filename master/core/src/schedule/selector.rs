//! Node selectors: `nodeSelector`, required node affinity, and the terms that preferences use.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Node, NodeAffinity, NodeSelectorRequirement, NodeSelectorTerm, Pod,
};

use crate::object::name_of;

/// `nodeSelector` and the required node affinity both must match.
pub(super) fn matches_node_affinity(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let labels = node.metadata.labels.as_ref();
    let has = |key: &String, value: &String| labels.and_then(|l| l.get(key)) == Some(value);
    if !spec.node_selector.iter().flatten().all(|(key, value)| has(key, value)) {
        return false;
    }
    let required = node_affinity(pod)
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|r| r.node_selector_terms.iter().any(|term| matches_term(term, node)))
}

/// The sum of the weights of the preferences that the node meets.
pub(super) fn preference(pod: &Pod, node: &Node) -> i64 {
    node_affinity(pod)
        .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref())
        .into_iter()
        .flatten()
        .filter(|preferred| matches_term(&preferred.preference, node))
        .map(|preferred| i64::from(preferred.weight))
        .sum()
}

fn node_affinity(pod: &Pod) -> Option<&NodeAffinity> {
    pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()
}

/// All requirements of a term; an empty term matches nothing, as in Kubernetes.
fn matches_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let none = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    expressions.iter().all(|r| meets(r, labels.get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| {
            let value = (r.key == "metadata.name").then(|| name_of(&node.metadata));
            meets(r, value)
        })
}

fn meets(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let compared = |holds: fn(i64, i64) -> bool| {
        let bound = values.first().and_then(|v| v.parse().ok());
        let own = value.and_then(|v| v.parse().ok());
        own.zip(bound).is_some_and(|(own, bound)| holds(own, bound))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|v| values.iter().any(|w| w == v)),
        "NotIn" => value.is_none_or(|v| values.iter().all(|w| w != v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared(|own, bound| own > bound),
        "Lt" => compared(|own, bound| own < bound),
        _ => false,
    }
}
