//! What a node is sent, compiled from a snapshot: pods with everything they refer to, services with
//! where their connections go, members of isolated networks. Pure.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, Service};
use prost::Message;
use serde::Serialize;
use timonier_master_core::endpoints;
use timonier_master_core::object::{controller_of, is_finished, name_of, namespace_of, uid_of};
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::compiled::LatencyMeasurement;
use timonier_proto::latency::LatencyAutoscaler;
use timonier_proto::secret::RegistryCredentials;
use timonier_proto::v1::{
    AssignedPod, AssignedService, AssignedServicePort, IsolatedNetwork, ServiceEndpoint,
};

use super::{secrets, tokens};

/// Annotation of a namespace that is a network of its own.
const NETWORK_ANNOTATION: &str = "timonier.io/network";
const ISOLATED: &str = "isolated";
/// A latency measurement waits this many times the policy's threshold, within these bounds (ms).
const DEADLINE_FACTOR: u32 = 4;
const DEADLINE_MS_MIN: u32 = 1000;
const DEADLINE_MS_MAX: u32 = 10_000;

/// [`timonier_proto::compiled::CompiledPod`], borrowed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Compiled<'a> {
    pod: &'a Pod,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    config_maps: BTreeMap<&'a str, Option<Cow<'a, ConfigMap>>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    secrets: BTreeMap<&'a str, Option<&'a Secret>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    registries: Vec<RegistryCredentials>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tokens: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    latency: Vec<LatencyMeasurement>,
}

/// One pod with all it refers to, and the tokens of this time.
pub fn pod(snapshot: &Snapshot, pod: &Pod, now: Timestamp) -> AssignedPod {
    let full = tokens::with_default(snapshot, pod);
    let pod: &Pod = &full;
    let namespace = namespace_of(&pod.metadata);
    let config_map = |name| match snapshot.get::<ConfigMap>(namespace, name) {
        Some(map) => Some(Cow::Borrowed(&**map)),
        None if tokens::is_root_ca(name) => tokens::root_ca(snapshot).map(Cow::Owned),
        None => None,
    };
    let config_maps =
        config_map_names(pod).into_iter().map(|name| (name, config_map(name))).collect();
    let shown = secrets::shown(pod)
        .into_iter()
        .map(|name| (name, secrets::of_pods(snapshot, namespace, name)))
        .collect();
    let compiled = Compiled {
        pod,
        config_maps,
        secrets: shown,
        registries: secrets::registries(snapshot, pod),
        tokens: tokens::of(snapshot, pod, now),
        latency: latency(snapshot, pod),
    };
    let json = serde_json::to_vec(&compiled).expect("objects are plain data");
    AssignedPod { uid: uid_of(&pod.metadata).to_owned(), compiled_json: json.into() }
}

/// Names of the config maps that the pod refers to, in its own namespace.
pub fn config_map_names(pod: &Pod) -> BTreeSet<&str> {
    let Some(spec) = &pod.spec else { return BTreeSet::new() };
    let mut names = BTreeSet::new();
    for volume in spec.volumes.iter().flatten() {
        names.extend(volume.config_map.as_ref().map(|source| source.name.as_str()));
        let projected = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
        names.extend(projected.filter_map(|s| Some(s.config_map.as_ref()?.name.as_str())));
    }
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        let env = container.env.iter().flatten();
        names.extend(env.filter_map(|variable| {
            Some(variable.value_from.as_ref()?.config_map_key_ref.as_ref()?.name.as_str())
        }));
        let sources = container.env_from.iter().flatten();
        names.extend(sources.filter_map(|s| Some(s.config_map_ref.as_ref()?.name.as_str())));
    }
    names.remove("");
    names
}

/// The measurements that autoscalers want of the pod.
fn latency(snapshot: &Snapshot, pod: &Pod) -> Vec<LatencyMeasurement> {
    snapshot
        .list::<LatencyAutoscaler>(Some(namespace_of(&pod.metadata)))
        .filter(|policy| targets(snapshot, policy, pod))
        .filter_map(|policy| {
            let probe = policy.spec.probe.clone().unwrap_or_default();
            let port = probe.port.or_else(|| first_port(pod))?;
            let deadline = policy.spec.latency_milliseconds.saturating_mul(DEADLINE_FACTOR);
            Some(LatencyMeasurement {
                policy: name_of(&policy.metadata).to_owned(),
                port,
                path: (!probe.tcp).then(|| probe.path.unwrap_or_else(|| "/".to_owned())),
                deadline_ms: deadline.clamp(DEADLINE_MS_MIN, DEADLINE_MS_MAX),
            })
        })
        .collect()
}

/// Whether the autoscaler's target is what controls the pod.
pub fn targets(snapshot: &Snapshot, policy: &LatencyAutoscaler, pod: &Pod) -> bool {
    let target = &policy.spec.scale_target_ref;
    let Some(owner) = controller_of(&pod.metadata).filter(|o| o.kind == "ReplicaSet") else {
        return false;
    };
    if target.kind == "ReplicaSet" {
        return owner.name == target.name;
    }
    snapshot
        .get::<ReplicaSet>(namespace_of(&pod.metadata), &owner.name)
        .and_then(|set| controller_of(&set.metadata))
        .is_some_and(|owner| owner.kind == target.kind && owner.name == target.name)
}

fn first_port(pod: &Pod) -> Option<u16> {
    let containers = &pod.spec.as_ref()?.containers;
    let port = containers.iter().flat_map(|c| c.ports.iter().flatten()).next()?;
    u16::try_from(port.container_port).ok()
}

/// A service with its ready endpoints, as an encoded `AssignedService`; `None` for one that has no
/// place in the nodes' tables.
pub fn service(snapshot: &Snapshot, service: &Service) -> Option<Bytes> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let ports = endpoints::of(snapshot, service).ports.into_iter().map(|port| {
        let endpoints = port.ready.into_iter().map(|endpoint| ServiceEndpoint {
            address: endpoint.address,
            port: endpoint.port.into(),
            pod_uid: endpoint.pod_uid,
            node: endpoint.node,
        });
        AssignedServicePort {
            name: port.name,
            port: port.port.into(),
            protocol: port.protocol,
            node_port: port.node_port.into(),
            endpoints: endpoints.collect(),
        }
    });
    let assigned = AssignedService {
        namespace: namespace_of(&service.metadata).to_owned(),
        name: name_of(&service.metadata).to_owned(),
        cluster_ip: spec.cluster_ip.clone().filter(|ip| ip != "None").unwrap_or_default(),
        ports: ports.collect(),
        client_ip_affinity: spec.session_affinity.as_deref() == Some("ClientIP"),
    };
    Some(assigned.encode_to_vec().into())
}

/// Every isolated namespace with its pods' addresses, each an encoded `IsolatedNetwork`.
pub fn networks(snapshot: &Snapshot) -> Vec<Bytes> {
    snapshot
        .list::<Namespace>(None)
        .filter(|namespace| is_isolated(namespace))
        .map(|namespace| {
            let name = name_of(&namespace.metadata);
            let addresses: BTreeSet<&str> =
                snapshot.list::<Pod>(Some(name)).filter_map(|pod| own_address(pod)).collect();
            let network = IsolatedNetwork {
                name: name.to_owned(),
                addresses: addresses.into_iter().map(str::to_owned).collect(),
            };
            network.encode_to_vec().into()
        })
        .collect()
}

pub fn is_isolated(namespace: &Namespace) -> bool {
    let annotations = namespace.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(NETWORK_ANNOTATION)).is_some_and(|value| value == ISOLATED)
}

/// The pod's address in the pods' network; `None` while it has none, or has the host's.
fn own_address(pod: &Pod) -> Option<&str> {
    if is_finished(pod) || pod.spec.as_ref()?.host_network == Some(true) {
        return None;
    }
    pod.status.as_ref()?.pod_ip.as_deref().filter(|address| !address.is_empty())
}

/// Whether the change may matter to the pod's services or its network.
pub fn changes_network(before: Option<&Pod>, after: Option<&Pod>) -> bool {
    let facts = |pod: &Pod| {
        let ready = timonier_master_core::object::is_ready(pod);
        let address = pod.status.as_ref().and_then(|status| status.pod_ip.clone());
        (ready, pod.metadata.deletion_timestamp.is_some(), is_finished(pod), address)
    };
    match (before, after) {
        (Some(before), Some(after)) => {
            facts(before) != facts(after) || before.metadata.labels != after.metadata.labels
        }
        _ => true,
    }
}

/// Whether the change may matter to the agent that runs the pod: its own statuses do not.
pub fn changes_pod(before: &Pod, after: &Pod) -> bool {
    let (a, b) = (&before.metadata, &after.metadata);
    a.uid != b.uid
        || a.deletion_timestamp != b.deletion_timestamp
        || a.deletion_grace_period_seconds != b.deletion_grace_period_seconds
        || a.labels != b.labels
        || a.annotations != b.annotations
        || before.spec != after.spec
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use timonier_proto::compiled::CompiledPod;
    use timonier_proto::{Kind, Object};

    use super::*;

    fn object(kind: Kind, value: &serde_json::Value) -> Object {
        Object::from_json(kind, value.to_string().as_bytes()).unwrap()
    }

    fn pod_object() -> Object {
        object(
            Kind::Pod,
            &json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": "web-1", "namespace": "shop", "uid": "u1", "labels": {"app": "web"},
                    "ownerReferences": [{
                        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-a",
                        "uid": "r", "controller": true,
                    }],
                },
                "spec": {
                    "nodeName": "n1",
                    "volumes": [{"name": "v", "configMap": {"name": "files"}}],
                    "containers": [{
                        "name": "web",
                        "ports": [{"containerPort": 8080}],
                        "envFrom": [{"configMapRef": {"name": "missing"}}],
                    }],
                },
                "status": {
                    "phase": "Running", "podIP": "10.244.1.2",
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            }),
        )
    }

    fn state() -> Snapshot {
        let objects = [
            pod_object(),
            object(
                Kind::ConfigMap,
                &json!({
                    "apiVersion": "v1", "kind": "ConfigMap",
                    "metadata": {"name": "files", "namespace": "shop"}, "data": {"a": "b"},
                }),
            ),
            object(
                Kind::ReplicaSet,
                &json!({
                    "apiVersion": "apps/v1", "kind": "ReplicaSet",
                    "metadata": {
                        "name": "web-a", "namespace": "shop", "uid": "r",
                        "ownerReferences": [{
                            "apiVersion": "apps/v1", "kind": "Deployment", "name": "web",
                            "uid": "d", "controller": true,
                        }],
                    },
                }),
            ),
            object(
                Kind::LatencyAutoscaler,
                &json!({
                    "apiVersion": "autoscaling.timonier.io/v1", "kind": "LatencyAutoscaler",
                    "metadata": {"name": "web", "namespace": "shop"},
                    "spec": {
                        "scaleTargetRef": {"kind": "Deployment", "name": "web"},
                        "latencyMilliseconds": 500,
                    },
                }),
            ),
            object(
                Kind::Namespace,
                &json!({
                    "apiVersion": "v1", "kind": "Namespace",
                    "metadata": {"name": "shop", "annotations": {NETWORK_ANNOTATION: ISOLATED}},
                }),
            ),
            object(
                Kind::Service,
                &json!({
                    "apiVersion": "v1", "kind": "Service",
                    "metadata": {"name": "web", "namespace": "shop"},
                    "spec": {
                        "clusterIP": "10.96.0.7", "selector": {"app": "web"},
                        "ports": [{"port": 80, "targetPort": 8080}],
                    },
                }),
            ),
        ];
        Snapshot::rebuild(9, objects, [])
    }

    #[test]
    fn a_pod_comes_with_all_it_refers_to() {
        let state = state();
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let assigned = pod(&state, state.get::<Pod>("shop", "web-1").unwrap(), now);
        let compiled: CompiledPod = serde_json::from_slice(&assigned.compiled_json).unwrap();
        assert_eq!(compiled.pod.metadata.name.as_deref(), Some("web-1"));
        assert!(compiled.config_maps["files"].is_some());
        assert!(compiled.config_maps["missing"].is_none());
        assert_eq!(
            compiled.latency,
            [LatencyMeasurement {
                policy: "web".into(),
                port: 8080,
                path: Some("/".into()),
                deadline_ms: 2000
            }]
        );
    }

    #[test]
    fn services_and_networks_hold_the_ready_pods() {
        let state = state();
        let bytes = service(&state, state.get::<Service>("shop", "web").unwrap()).unwrap();
        let assigned = AssignedService::decode(bytes).unwrap();
        assert_eq!(assigned.cluster_ip, "10.96.0.7");
        assert_eq!(assigned.ports[0].endpoints[0].address, "10.244.1.2");
        assert_eq!(assigned.ports[0].endpoints[0].port, 8080);
        let networks = networks(&state);
        let network = IsolatedNetwork::decode(networks[0].clone()).unwrap();
        assert_eq!(
            network,
            IsolatedNetwork { name: "shop".into(), addresses: vec!["10.244.1.2".into()] }
        );
    }
}
