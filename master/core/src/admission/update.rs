//! What an update may not change.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::{Container, Pod, Service};
use k8s_openapi::api::rbac::v1::RoleRef;
use timonier_proto::Object;

use super::field::{Field, Problems};
use super::secret;
use super::unique;

const IMMUTABLE: &str = "field is immutable";
const POD_IMMUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`, `spec.initContainers[*].image`, `spec.tolerations` and `spec.terminationGracePeriodSeconds`";

pub fn check(old: &Object, new: &Object, problems: &mut Problems) {
    let spec = Field::root("spec");
    match (old, new) {
        (Object::Pod(old), Object::Pod(new)) => {
            pod(&spec, old, new, problems);
            unique::unchanged(old, new, problems);
        }
        (Object::Service(old), Object::Service(new)) => service(&spec, old, new, problems),
        (Object::Deployment(old), Object::Deployment(new)) => {
            let selector = |d: &k8s_openapi::api::apps::v1::Deployment| {
                d.spec.as_ref().map(|spec| spec.selector.clone())
            };
            same(&spec.name("selector"), selector(old), selector(new), problems);
        }
        (Object::ReplicaSet(old), Object::ReplicaSet(new)) => {
            let selector = |s: &k8s_openapi::api::apps::v1::ReplicaSet| {
                s.spec.as_ref().map(|spec| spec.selector.clone())
            };
            same(&spec.name("selector"), selector(old), selector(new), problems);
        }
        (Object::ConfigMap(old), Object::ConfigMap(new)) if old.immutable == Some(true) => {
            let why = "field is immutable when `immutable` is set";
            if new.immutable != Some(true) {
                problems.forbidden(&Field::root("immutable"), why);
            }
            if new.data != old.data {
                problems.forbidden(&Field::root("data"), why);
            }
            if new.binary_data != old.binary_data {
                problems.forbidden(&Field::root("binaryData"), why);
            }
        }
        (Object::Secret(old), Object::Secret(new)) => secret::check_change(old, new, problems),
        (Object::Node(old), Object::Node(new)) => {
            let range = |node: &k8s_openapi::api::core::v1::Node| {
                node.spec.as_ref().and_then(|spec| spec.pod_cidr.clone())
            };
            if range(old).is_some() {
                same(&spec.name("podCIDR"), range(old), range(new), problems);
            }
        }
        (Object::RoleBinding(old), Object::RoleBinding(new)) => {
            role_ref(&old.role_ref, &new.role_ref, problems);
        }
        (Object::ClusterRoleBinding(old), Object::ClusterRoleBinding(new)) => {
            role_ref(&old.role_ref, &new.role_ref, problems);
        }
        _ => {}
    }
}

fn role_ref(old: &RoleRef, new: &RoleRef, problems: &mut Problems) {
    if old != new {
        problems.invalid(&Field::root("roleRef"), new, "cannot change roleRef");
    }
}

fn same<T: PartialEq + Debug + serde::Serialize>(
    field: &Field<'_>,
    old: T,
    new: T,
    problems: &mut Problems,
) {
    if old != new {
        let shown = serde_json::value::to_raw_value(&new).map(|v| v.get().to_owned());
        problems.invalid(field, format_args!("{}", shown.unwrap_or_default()), IMMUTABLE);
    }
}

fn pod(field: &Field<'_>, old: &Pod, new: &Pod, problems: &mut Problems) {
    let (Some(was), Some(spec)) = (&old.spec, &new.spec) else { return };
    // What remains different once the fields that may change are taken over may not.
    let mut allowed = was.clone();
    allowed.tolerations.clone_from(&spec.tolerations);
    allowed.termination_grace_period_seconds = spec.termination_grace_period_seconds;
    take_images(&mut allowed.containers, &spec.containers);
    if let (Some(of), Some(new)) = (&mut allowed.init_containers, &spec.init_containers) {
        take_images(of, new);
    }
    if allowed != *spec {
        problems.forbidden(field, POD_IMMUTABLE);
    }
}

fn take_images(of: &mut [Container], new: &[Container]) {
    for (container, new) in of.iter_mut().zip(new) {
        container.image.clone_from(&new.image);
    }
}

fn service(field: &Field<'_>, old: &Service, new: &Service, problems: &mut Problems) {
    let address = |service: &Service| service.spec.as_ref().and_then(|s| s.cluster_ip.clone());
    if address(old).is_some_and(|ip| !ip.is_empty()) && address(old) != address(new) {
        problems.invalid(&field.name("clusterIP"), address(new).unwrap_or_default(), IMMUTABLE);
    }
}
