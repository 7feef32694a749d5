//! Pods that must be unique: the annotation, and the workloads that can keep the promise.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{DeploymentSpec, ReplicaSetSpec};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use timonier_proto::unique::{UNIQUE_ANNOTATION, is_unique};

use super::field::{Field, Problems};

type Map = BTreeMap<String, String>;

pub fn annotation(field: &Field<'_>, annotations: Option<&Map>, problems: &mut Problems) {
    if let Some(value) = annotations.and_then(|all| all.get(UNIQUE_ANNOTATION)) {
        problems.one_of(&field.key(UNIQUE_ANNOTATION), value, &["true", "false"]);
    }
}

fn is_marked(template: Option<&PodTemplateSpec>) -> bool {
    template.and_then(|t| t.metadata.as_ref()).is_some_and(is_unique)
}

/// A rolling update has the new pod beside the old one.
pub fn deployment(field: &Field<'_>, spec: &DeploymentSpec, problems: &mut Problems) {
    if !is_marked(Some(&spec.template)) {
        return;
    }
    one_replica(field, spec.replicas, problems);
    let strategy = spec.strategy.as_ref().and_then(|s| s.type_.as_deref());
    if strategy != Some("Recreate") {
        problems.invalid(
            &field.name("strategy").name("type"),
            strategy.unwrap_or("RollingUpdate"),
            format_args!("must be Recreate where the pod is marked {UNIQUE_ANNOTATION}"),
        );
    }
}

pub fn replica_set(field: &Field<'_>, spec: &ReplicaSetSpec, problems: &mut Problems) {
    if is_marked(spec.template.as_ref()) {
        one_replica(field, spec.replicas, problems);
    }
}

fn one_replica(field: &Field<'_>, replicas: Option<i32>, problems: &mut Problems) {
    if let Some(replicas) = replicas.filter(|replicas| *replicas > 1) {
        let why = format_args!("must be 0 or 1 where the pod is marked {UNIQUE_ANNOTATION}");
        problems.invalid(&field.name("replicas"), replicas, why);
    }
}

/// What runs was started with the one promise or the other.
pub fn unchanged(old: &Pod, new: &Pod, problems: &mut Problems) {
    if is_unique(&old.metadata) != is_unique(&new.metadata) {
        let metadata = Field::root("metadata");
        let annotations = metadata.name("annotations");
        problems.forbidden(&annotations.key(UNIQUE_ANNOTATION), "may not be changed");
    }
}
