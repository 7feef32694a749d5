//! Pod disruption budgets: which pods, and how many of them must stay.

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::field::{Field, Problems};
use super::workload;

pub fn check(field: &Field<'_>, budget: &PodDisruptionBudget, problems: &mut Problems) {
    let Some(spec) = &budget.spec else {
        problems.required(field, "");
        return;
    };
    if spec.min_available.is_some() && spec.max_unavailable.is_some() {
        problems.invalid(
            field,
            "minAvailable, maxUnavailable",
            "minAvailable and maxUnavailable cannot be both set",
        );
    }
    for (name, value) in
        [("minAvailable", &spec.min_available), ("maxUnavailable", &spec.max_unavailable)]
    {
        let field = field.name(name);
        let number = workload::share(&field, value.as_ref(), problems);
        if matches!(value, Some(IntOrString::String(_))) && number.is_some_and(|n| n > 100) {
            problems.invalid(&field, number.unwrap_or(0), "must not be greater than 100%");
        }
    }
    if let Some(policy) = &spec.unhealthy_pod_eviction_policy {
        let field = field.name("unhealthyPodEvictionPolicy");
        problems.one_of(&field, policy, &["AlwaysAllow", "IfHealthyBudget"]);
    }
    if let Some(selector) = &spec.selector {
        workload::label_selector(&field.name("selector"), selector, problems);
    }
}
