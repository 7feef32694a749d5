//! Where a service's connections go: derived from the snapshot, by the sessions for the nodes'
//! tables and by the reconciler for the `Endpoints` object that people read.
//!
//! Nothing here is stored, so no write lies between a pod's readiness and the nodes' tables.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::sync::Arc;
use timonier_proto::Kinded;

use crate::object::{has_condition, is_finished};
use crate::snapshot::Snapshot;

/// A service's ports with what stands behind each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceEndpoints {
    /// In the order of the service's spec.
    pub ports: Vec<PortEndpoints>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortEndpoints {
    /// Empty when the service's only port has no name.
    pub name: String,
    pub port: u16,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// 0: none.
    pub node_port: u16,
    /// Ready pods that are not ending, by address.
    pub ready: Vec<Endpoint>,
    /// Pods with an address that are not ready (nor ending), by address. They get no connections.
    pub not_ready: Vec<Endpoint>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    pub address: String,
    pub port: u16,
    pub pod: String,
    pub pod_uid: String,
    pub node: String,
}

/// The endpoints of `service`; no ports when it selects nothing (then people keep its `Endpoints`
/// by hand) or stands for a name outside.
pub fn of(snapshot: &Snapshot, service: &Service) -> ServiceEndpoints {
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let Some(spec) = &service.spec else { return ServiceEndpoints::default() };
    if !has_selector(service) {
        return ServiceEndpoints::default();
    }
    let publish_not_ready = spec.publish_not_ready_addresses == Some(true);
    let pods: Vec<(&Arc<Pod>, &str, bool)> = snapshot
        .list::<Pod>(Some(namespace))
        .filter(|pod| selects(service, pod) && pod.metadata.deletion_timestamp.is_none())
        .filter(|pod| !is_finished(pod))
        .filter_map(|pod| {
            let address = pod.status.as_ref()?.pod_ip.as_deref().filter(|ip| !ip.is_empty())?;
            Some((pod, address, publish_not_ready || has_condition(pod, "Ready")))
        })
        .collect();
    let ports = spec.ports.iter().flatten().map(|port| endpoints_of_port(port, &pods)).collect();
    ServiceEndpoints { ports }
}

/// The services whose selector matches the pod's labels: whose endpoints a change of the pod may
/// change.
pub fn selecting<'a>(
    snapshot: &'a Snapshot,
    pod: &'a Pod,
) -> impl Iterator<Item = &'a Arc<Service>> + use<'a> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    snapshot.list::<Service>(Some(namespace)).filter(move |service| selects(service, pod))
}

/// Whether the service chooses its pods by labels.
pub fn has_selector(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| {
        spec.type_.as_deref() != Some("ExternalName")
            && spec.selector.as_ref().is_some_and(|selector| !selector.is_empty())
    })
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let no_labels = BTreeMap::new();
    let labels = pod.meta().labels.as_ref().unwrap_or(&no_labels);
    has_selector(service)
        && service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).is_some_and(|selector| {
            selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        })
}

fn endpoints_of_port(port: &ServicePort, pods: &[(&Arc<Pod>, &str, bool)]) -> PortEndpoints {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let mut answer = PortEndpoints {
        name: port.name.clone().unwrap_or_default(),
        port: u16::try_from(port.port).unwrap_or_default(),
        protocol: protocol.to_owned(),
        node_port: port.node_port.and_then(|p| u16::try_from(p).ok()).unwrap_or_default(),
        ..Default::default()
    };
    for (pod, address, ready) in pods {
        let Some(target) = target_port(port, protocol, pod) else { continue };
        let endpoint = Endpoint {
            address: (*address).to_owned(),
            port: target,
            pod: pod.metadata.name.clone().unwrap_or_default(),
            pod_uid: pod.metadata.uid.clone().unwrap_or_default(),
            node: pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default(),
        };
        if *ready { answer.ready.push(endpoint) } else { answer.not_ready.push(endpoint) }
    }
    answer.ready.sort_unstable();
    answer.not_ready.sort_unstable();
    answer
}

/// A number, or the name of one of the pod's own container ports; a pod that lacks the name is no
/// endpoint of that port.
fn target_port(port: &ServicePort, protocol: &str, pod: &Pod) -> Option<u16> {
    match &port.target_port {
        None => u16::try_from(port.port).ok(),
        Some(IntOrString::Int(0)) => u16::try_from(port.port).ok(),
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
        Some(IntOrString::String(name)) => {
            if let Ok(number) = name.parse() {
                return Some(number);
            }
            pod.spec
                .as_ref()?
                .containers
                .iter()
                .flat_map(|c| c.ports.iter().flatten())
                .find(|p| {
                    p.name.as_ref() == Some(name)
                        && p.protocol.as_deref().unwrap_or("TCP") == protocol
                })
                .and_then(|p| u16::try_from(p.container_port).ok())
        }
    }
}
