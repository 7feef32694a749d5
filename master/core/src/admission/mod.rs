//! Admission: what a written object becomes before it is stored. Server-owned fields are taken out
//! of the writer's hands, defaults are filled in, and what is left is validated.
//!
//! Pure: it knows the object and, for a change, the object it replaces. It does not know the rest
//! of the state (that a namespace exists, which addresses are free): that is the doors' part.

mod access;
mod container;
mod defaults;
mod disruption;
mod field;
mod latency;
mod meta;
mod pod;
mod probe;
mod qos;
mod quota;
mod secret;
mod server_owned;
mod service;
mod unique;
mod update;
mod volume;
mod workload;

use timonier_proto::{ApiError, Object};

pub use field::{Field, Problems};
pub use qos::qos_class;

/// An object that somebody wants to create, as it should be stored but for its stamp (uid, time,
/// generated name) and its allocated addresses. The namespace is set already.
pub fn admit_new(mut object: Object) -> Result<Object, ApiError> {
    server_owned::prepare_new(&mut object);
    defaults::fill(&mut object);
    validate(&object)?;
    Ok(object)
}

/// `new` as it should replace `old`; the status stays `old`'s. Same key; a resourceVersion or uid
/// in `new` is left for the store to compare.
pub fn admit_change(old: &Object, mut new: Object) -> Result<Object, ApiError> {
    server_owned::carry_over(old, &mut new);
    defaults::fill(&mut new);
    let mut problems = Problems::default();
    check(&new, &mut problems);
    update::check(old, &new, &mut problems);
    problems.into_result(&new)?;
    Ok(new)
}

/// Refuses what no reconciler or agent could make sense of.
pub fn validate(object: &Object) -> Result<(), ApiError> {
    let mut problems = Problems::default();
    check(object, &mut problems);
    problems.into_result(object)
}

fn check(object: &Object, problems: &mut Problems) {
    meta::check(object, problems);
    let root = Field::root("spec");
    match object {
        Object::Pod(pod) => match &pod.spec {
            Some(spec) => pod::check(&root, spec, problems),
            None => problems.required(&root, ""),
        },
        Object::Deployment(deployment) => workload::deployment(&root, deployment, problems),
        Object::ReplicaSet(set) => workload::replica_set(&root, set, problems),
        Object::Service(service) => service::check(&root, service, problems),
        Object::ConfigMap(map) => volume::config_map(map, problems),
        Object::Secret(secret) => secret::check(secret, problems),
        Object::LatencyAutoscaler(scaler) => latency::check(&root, &scaler.spec, problems),
        Object::ResourceQuota(o) => quota::resource_quota(&root, o.spec.as_ref(), problems),
        Object::LimitRange(o) => quota::limit_range(&root, o.spec.as_ref(), problems),
        Object::ServiceAccount(account) => access::service_account(account, problems),
        Object::Role(role) => access::rules(role.rules.as_deref(), true, problems),
        Object::ClusterRole(role) => {
            access::rules(role.rules.as_deref(), false, problems);
            access::selectors(role.aggregation_rule.as_ref(), problems);
        }
        Object::RoleBinding(binding) => {
            access::binding(&binding.role_ref, binding.subjects.as_deref(), true, problems);
        }
        Object::ClusterRoleBinding(binding) => {
            access::binding(&binding.role_ref, binding.subjects.as_deref(), false, problems);
        }
        Object::PodDisruptionBudget(budget) => disruption::check(&root, budget, problems),
        Object::Namespace(_) | Object::Node(_) | Object::Endpoints(_) | Object::Event(_) => {}
    }
}

#[cfg(test)]
mod tests;
