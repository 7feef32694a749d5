//! The fields that are the server's: no writer sets them, and an update keeps what is stored.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    LoadBalancerStatus, NamespaceStatus, NodeSpec, PodStatus, ServiceSpec, ServiceStatus,
};
use k8s_openapi::api::{apps::v1 as apps, core::v1::Service};
use timonier_proto::Object;

use super::qos::qos_class;

/// A new object begins without history, and with the status that its kind begins with.
pub fn prepare_new(object: &mut Object) {
    let meta = object.meta_mut();
    meta.uid = None;
    meta.creation_timestamp = None;
    meta.deletion_timestamp = None;
    meta.deletion_grace_period_seconds = None;
    meta.generation = None;
    meta.resource_version = None;
    meta.managed_fields = None;
    meta.self_link = None;
    if meta.name.as_deref() == Some("") {
        meta.name = None;
    }
    match object {
        Object::Pod(pod) => {
            let qos = qos_class(pod.spec.as_ref()).to_owned();
            Arc::make_mut(pod).status = Some(PodStatus {
                phase: Some("Pending".to_owned()),
                qos_class: Some(qos),
                ..Default::default()
            });
        }
        Object::Namespace(namespace) => {
            let phase = Some("Active".to_owned());
            Arc::make_mut(namespace).status = Some(NamespaceStatus { phase, ..Default::default() });
        }
        Object::Service(service) => {
            Arc::make_mut(service).status = Some(ServiceStatus {
                load_balancer: Some(LoadBalancerStatus::default()),
                ..Default::default()
            });
        }
        Object::Deployment(deployment) => {
            Arc::make_mut(deployment).status = Some(apps::DeploymentStatus::default());
        }
        Object::ReplicaSet(set) => {
            Arc::make_mut(set).status = Some(apps::ReplicaSetStatus::default());
        }
        Object::Node(node) => Arc::make_mut(node).status = None,
        Object::LatencyAutoscaler(scaler) => Arc::make_mut(scaler).status = None,
        Object::ResourceQuota(quota) => Arc::make_mut(quota).status = None,
        Object::PodDisruptionBudget(budget) => Arc::make_mut(budget).status = None,
        Object::ConfigMap(_)
        | Object::Endpoints(_)
        | Object::Event(_)
        | Object::Secret(_)
        | Object::ServiceAccount(_)
        | Object::LimitRange(_)
        | Object::Role(_)
        | Object::RoleBinding(_)
        | Object::ClusterRole(_)
        | Object::ClusterRoleBinding(_) => {}
    }
}

/// What the writer of an update left out or may not set is as it was. The uid and the
/// resourceVersion stay the writer's: they say which object is meant.
pub fn carry_over(old: &Object, new: &mut Object) {
    let was = old.meta();
    let meta = new.meta_mut();
    meta.creation_timestamp.clone_from(&was.creation_timestamp);
    meta.deletion_timestamp.clone_from(&was.deletion_timestamp);
    meta.deletion_grace_period_seconds = was.deletion_grace_period_seconds;
    meta.generation = was.generation;
    meta.generate_name.clone_from(&was.generate_name);
    meta.managed_fields.clone_from(&was.managed_fields);
    meta.self_link = None;
    if meta.uid.as_deref().unwrap_or_default().is_empty() {
        meta.uid.clone_from(&was.uid);
    }
    match (old, new) {
        (Object::Pod(old), Object::Pod(new)) => Arc::make_mut(new).status.clone_from(&old.status),
        (Object::Namespace(old), Object::Namespace(new)) => {
            let new = Arc::make_mut(new);
            new.status.clone_from(&old.status);
            new.spec.clone_from(&old.spec);
        }
        (Object::Service(old), Object::Service(new)) => {
            let new = Arc::make_mut(new);
            new.status.clone_from(&old.status);
            carry_over_service(old, new);
        }
        (Object::Deployment(old), Object::Deployment(new)) => {
            Arc::make_mut(new).status.clone_from(&old.status);
        }
        (Object::ReplicaSet(old), Object::ReplicaSet(new)) => {
            Arc::make_mut(new).status.clone_from(&old.status);
        }
        (Object::Node(old), Object::Node(new)) => {
            let new = Arc::make_mut(new);
            new.status.clone_from(&old.status);
            let was = old.spec.as_ref().and_then(|spec| spec.pod_cidr.as_ref());
            let spec = new.spec.get_or_insert_with(NodeSpec::default);
            if spec.pod_cidr.is_none() && was.is_some() {
                spec.pod_cidr = was.cloned();
                spec.pod_cidrs = old.spec.as_ref().and_then(|spec| spec.pod_cidrs.clone());
            }
        }
        (Object::LatencyAutoscaler(old), Object::LatencyAutoscaler(new)) => {
            Arc::make_mut(new).status.clone_from(&old.status);
        }
        (Object::ResourceQuota(old), Object::ResourceQuota(new)) => {
            Arc::make_mut(new).status.clone_from(&old.status);
        }
        (Object::PodDisruptionBudget(old), Object::PodDisruptionBudget(new)) => {
            Arc::make_mut(new).status.clone_from(&old.status);
        }
        _ => {}
    }
}

/// The addresses and node ports that a service has got stay its own as long as it asks for any.
fn carry_over_service(old: &Service, new: &mut Service) {
    let (Some(was), Some(spec)) = (&old.spec, &mut new.spec) else { return };
    let type_of = |spec: &ServiceSpec| spec.type_.clone().unwrap_or("ClusterIP".to_owned());
    let (old_type, new_type) = (type_of(was), type_of(spec));
    if spec.cluster_ip.as_deref().unwrap_or_default().is_empty() && new_type != "ExternalName" {
        spec.cluster_ip.clone_from(&was.cluster_ip);
        spec.cluster_ips.clone_from(&was.cluster_ips);
    }
    if new_type == "ClusterIP" {
        // Merged from the live object, not asked for: the service was a NodePort and is one no more.
        if old_type == "NodePort" {
            for port in spec.ports.iter_mut().flatten() {
                let kept = was.ports.iter().flatten().any(|p| p.node_port == port.node_port);
                port.node_port = port.node_port.filter(|_| !kept);
            }
            spec.external_traffic_policy = None;
        }
        return;
    }
    for port in spec.ports.iter_mut().flatten().filter(|p| p.node_port.unwrap_or(0) == 0) {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        port.node_port = was
            .ports
            .iter()
            .flatten()
            .find(|p| p.port == port.port && p.protocol.as_deref().unwrap_or("TCP") == protocol)
            .and_then(|p| p.node_port);
    }
}
