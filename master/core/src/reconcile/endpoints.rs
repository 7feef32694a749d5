//! Publishes each service's endpoints as an `Endpoints` object, for people and their tools. The
//! nodes' tables don't wait for it: they are derived from the pods themselves.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use timonier_proto::{Kind, Kinded, Object, ObjectKey};

use super::Reconciler;
use crate::endpoints::{Endpoint, has_selector, of, selecting};
use crate::object::{after_millis, controller_reference, is_ending, key_of, namespace_is_live};
use crate::op::{Change, Op};
use crate::snapshot::Snapshot;
use crate::world::{Plan, World};

/// When the object was last written, to the millisecond.
const LAST_CHANGE: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Shortest time between two writes for one service: a burst of pods is one write.
const WRITE_INTERVAL_MS: i64 = 500;

/// The endpoints loop; keys are services.
#[derive(Debug, Clone, Copy, Default)]
pub struct EndpointsLoop;

impl Reconciler for EndpointsLoop {
    fn name(&self) -> &'static str {
        "endpoints"
    }

    fn keys(&self, change: &Change, snapshot: &Snapshot) -> Vec<ObjectKey> {
        match change.key.kind {
            Kind::Service => vec![change.key.clone()],
            Kind::Endpoints => {
                vec![ObjectKey::new(Kind::Service, &change.key.namespace, &change.key.name)]
            }
            Kind::Pod => {
                let mut keys: Vec<ObjectKey> = [&change.before, &change.after]
                    .into_iter()
                    .flatten()
                    .filter_map(|o| o.get::<Pod>())
                    .flat_map(|pod| selecting(snapshot, pod).map(|s| key_of(&**s)))
                    .collect();
                keys.sort_unstable();
                keys.dedup();
                keys
            }
            _ => Vec::new(),
        }
    }

    fn all_keys(&self, snapshot: &Snapshot) -> Vec<ObjectKey> {
        snapshot.list::<Service>(None).map(|s| key_of(&**s)).collect()
    }

    fn reconcile(&self, world: &World, key: &ObjectKey) -> Plan {
        let Some(service) = world.snapshot.get::<Service>(&key.namespace, &key.name) else {
            return Plan::default();
        };
        // Without a selector people keep the object themselves. When the service goes, the
        // garbage collector takes its endpoints.
        if !has_selector(service)
            || is_ending(&service.metadata)
            || !namespace_is_live(&world.snapshot, &key.namespace)
        {
            return Plan::default();
        }
        let stored = world.snapshot.get::<Endpoints>(&key.namespace, &key.name);
        let subsets = subsets(&world.snapshot, service);
        let Some(stored) = stored else {
            let endpoints = publish(world, service, ObjectMeta::default(), subsets);
            return Plan { ops: vec![Op::Create(endpoints)], ..Plan::default() };
        };
        if stored.subsets.as_deref().unwrap_or_default() == subsets {
            return Plan::default();
        }
        if let Some(next) = last_change(stored).map(|at| after_millis(at, WRITE_INTERVAL_MS))
            && next > world.now
        {
            return Plan { again_at: Some(next), ..Plan::default() };
        }
        let endpoints = publish(world, service, stored.metadata.clone(), subsets);
        Plan { ops: vec![Op::Replace(endpoints)], ..Plan::default() }
    }
}

fn last_change(endpoints: &Endpoints) -> Option<Timestamp> {
    endpoints.metadata.annotations.as_ref()?.get(LAST_CHANGE)?.parse().ok()
}

fn publish(
    world: &World,
    service: &Service,
    mut metadata: ObjectMeta,
    subsets: Vec<EndpointSubset>,
) -> Object {
    metadata.name = service.metadata.name.clone();
    metadata.namespace = service.metadata.namespace.clone();
    metadata.labels = service.metadata.labels.clone();
    if metadata.owner_references.is_none() {
        metadata.owner_references = Some(vec![controller_reference(service)]);
    }
    let millis = Timestamp::from_millisecond(world.now.as_millisecond()).unwrap_or(world.now);
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.insert(LAST_CHANGE.to_owned(), millis.to_string());
    Endpoints { metadata, subsets: (!subsets.is_empty()).then_some(subsets) }.into_object()
}

/// Ports with the same addresses share a subset.
fn subsets(snapshot: &Snapshot, service: &Service) -> Vec<EndpointSubset> {
    type Addresses = (Vec<(String, String, String, String)>, Vec<(String, String, String, String)>);
    let plain = |endpoints: &[Endpoint]| {
        let each = endpoints.iter();
        each.map(|e| (e.address.clone(), e.pod.clone(), e.pod_uid.clone(), e.node.clone()))
            .collect::<Vec<_>>()
    };
    // Where pods give one name to different ports, each number is a port of its own.
    let mut by_addresses: BTreeMap<Addresses, Vec<EndpointPort>> = BTreeMap::new();
    for port in &of(snapshot, service).ports {
        let mut numbers: Vec<u16> =
            port.ready.iter().chain(&port.not_ready).map(|e| e.port).collect();
        numbers.sort_unstable();
        numbers.dedup();
        for number in numbers {
            let with = |endpoints: &[Endpoint]| {
                let of_port: Vec<Endpoint> =
                    endpoints.iter().filter(|e| e.port == number).cloned().collect();
                plain(&of_port)
            };
            by_addresses.entry((with(&port.ready), with(&port.not_ready))).or_default().push(
                EndpointPort {
                    name: (!port.name.is_empty()).then(|| port.name.clone()),
                    port: i32::from(number),
                    protocol: Some(port.protocol.clone()),
                    app_protocol: None,
                },
            );
        }
    }
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let addresses = |list: Vec<(String, String, String, String)>| {
        let each = list.into_iter().map(|(ip, pod, uid, node)| EndpointAddress {
            ip,
            hostname: None,
            node_name: (!node.is_empty()).then_some(node),
            target_ref: Some(ObjectReference {
                kind: Some("Pod".to_owned()),
                name: Some(pod),
                namespace: Some(namespace.to_owned()),
                uid: Some(uid),
                ..Default::default()
            }),
        });
        Some(each.collect::<Vec<_>>()).filter(|list| !list.is_empty())
    };
    by_addresses
        .into_iter()
        .map(|((ready, not_ready), ports)| EndpointSubset {
            addresses: addresses(ready),
            not_ready_addresses: addresses(not_ready),
            ports: Some(ports),
        })
        .collect()
}
