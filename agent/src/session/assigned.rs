//! What the master has assigned to this node so far: each message is checked against the chain and
//! becomes what is to be done now. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use prost::Message;
use thiserror::Error;
use timonier_agent_core::net::{DesiredNet, HostPortPlan, ServicePlan, ServicePortPlan};
use timonier_proto::compiled::{CompiledPod, LatencyMeasurement};
use timonier_proto::v1::{AssignedService, Assignments, IsolatedNetwork};

use crate::pods::AssignmentSet;

/// Why a message of the master cannot be followed; the agent dials again and gets a complete set.
#[derive(Debug, Error)]
pub enum AssignedError {
    #[error("the master's assignments have a gap: they go on from {found}, this node is at {at:?}")]
    Gap { at: Option<u64>, found: u64 },
    #[error("read pod {uid} of the master's assignments: {source}")]
    Pod { uid: String, source: serde_json::Error },
    #[error("read a service or network of the master's assignments: {0}")]
    Net(#[from] prost::DecodeError),
}

/// The state after the messages so far.
#[derive(Debug, Default)]
pub struct Assigned {
    /// `results_in` of the last message of this session; `None` before its complete set.
    at: Option<u64>,
    /// By namespace/name.
    services: BTreeMap<String, ServicePlan>,
    isolated: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    /// By uid, pods whose latency is wanted.
    measured: HashMap<String, Vec<LatencyMeasurement>>,
    /// A complete set has come since the agent started.
    known: bool,
}

/// What one message asks for.
#[derive(Debug, Default)]
pub struct Step {
    /// Pods that are to run, or change while they run.
    pub first: Option<AssignmentSet>,
    /// Services and networks are not as they were.
    pub net_changed: bool,
    /// Pods that are to stop: only after the network has changed.
    pub then: Option<AssignmentSet>,
}

impl Assigned {
    /// A new session has begun: what was assigned stays until its complete set has come.
    pub fn begin(&mut self) {
        self.at = None;
    }

    /// The network as it should be, `None` until that is known.
    pub fn network(&self, host_ports: Vec<HostPortPlan>) -> Option<DesiredNet> {
        self.known.then(|| DesiredNet {
            services: self.services.values().cloned().collect(),
            host_ports,
            isolated: self.isolated.clone(),
        })
    }

    pub fn measured(&self, uid: &str) -> Option<&Vec<LatencyMeasurement>> {
        self.measured.get(uid)
    }

    pub fn measures_any(&self) -> bool {
        !self.measured.is_empty()
    }

    pub fn take(&mut self, message: Assignments) -> Result<Step, AssignedError> {
        if !message.complete && self.at != Some(message.applies_to) {
            return Err(AssignedError::Gap { at: self.at, found: message.applies_to });
        }
        let mut pods = Vec::with_capacity(message.pods.len());
        for pod in &message.pods {
            let read = serde_json::from_slice::<CompiledPod>(&pod.compiled_json);
            pods.push(read.map_err(|source| AssignedError::Pod { uid: pod.uid.clone(), source })?);
        }
        let net_changed = self.take_net(&message)?;
        if message.complete {
            self.measured.clear();
        }
        for uid in &message.removed_pod_uids {
            self.measured.remove(uid);
        }
        for compiled in &pods {
            let uid = compiled.pod.metadata.uid.clone().unwrap_or_default();
            if compiled.latency.is_empty() {
                self.measured.remove(&uid);
            } else {
                self.measured.insert(uid, compiled.latency.clone());
            }
        }
        self.at = Some(message.results_in);
        self.known |= message.complete;
        Ok(step(message.complete, net_changed, pods, message.removed_pod_uids))
    }

    fn take_net(&mut self, message: &Assignments) -> Result<bool, AssignedError> {
        let mut services = Vec::with_capacity(message.services.len());
        for bytes in &message.services {
            services.push(AssignedService::decode(bytes.clone())?);
        }
        let mut isolated = BTreeMap::new();
        for bytes in &message.networks {
            let network = IsolatedNetwork::decode(bytes.clone())?;
            let addresses = network.addresses.iter().filter_map(|ip| ip.parse().ok()).collect();
            isolated.insert(network.name, addresses);
        }
        if message.complete {
            self.services.clear();
        }
        for service in services {
            let name = format!("{}/{}", service.namespace, service.name);
            self.services.insert(name, plan(service));
        }
        for name in &message.removed_services {
            self.services.remove(name);
        }
        if message.networks_changed {
            self.isolated = isolated;
        }
        Ok(message.complete
            || message.networks_changed
            || !message.services.is_empty()
            || !message.removed_services.is_empty())
    }
}

fn step(complete: bool, net_changed: bool, pods: Vec<CompiledPod>, removed: Vec<String>) -> Step {
    if complete {
        let then = Some(AssignmentSet { complete, pods, removed });
        return Step { first: None, net_changed, then };
    }
    let (ending, staying): (Vec<_>, Vec<_>) =
        pods.into_iter().partition(|p| p.pod.metadata.deletion_timestamp.is_some());
    let set = |pods: Vec<CompiledPod>, removed: Vec<String>| {
        let any = !pods.is_empty() || !removed.is_empty();
        any.then_some(AssignmentSet { complete: false, pods, removed })
    };
    Step { first: set(staying, Vec::new()), net_changed, then: set(ending, removed) }
}

fn plan(service: AssignedService) -> ServicePlan {
    let ports = service.ports.into_iter().filter_map(|port| {
        let number = |n: u32| u16::try_from(n).ok();
        let endpoints = port
            .endpoints
            .iter()
            .filter_map(|endpoint| Some((endpoint.address.parse().ok()?, number(endpoint.port)?)));
        Some(ServicePortPlan {
            port: number(port.port)?,
            protocol: port.protocol.parse().ok()?,
            node_port: number(port.node_port).filter(|port| *port != 0),
            endpoints: endpoints.collect(),
        })
    });
    ServicePlan {
        ports: ports.collect(),
        name: service.name,
        ns: service.namespace,
        cluster_ip: service.cluster_ip.parse().ok(),
        client_ip_affinity: service.client_ip_affinity,
    }
}

#[cfg(test)]
mod tests {
    use timonier_proto::v1::{AssignedPod, AssignedServicePort, ServiceEndpoint};

    use super::*;

    fn pod(uid: &str, deleting: bool) -> AssignedPod {
        let mut value = serde_json::json!({"pod": {"metadata": {"name": uid, "uid": uid}}});
        if deleting {
            value["pod"]["metadata"]["deletionTimestamp"] = "2026-11-21T10:00:00Z".into();
        }
        AssignedPod { uid: uid.into(), compiled_json: value.to_string().into() }
    }

    fn service(endpoints: &[&str]) -> bytes::Bytes {
        let endpoints = endpoints
            .iter()
            .map(|ip| ServiceEndpoint { address: (*ip).into(), port: 8080, ..Default::default() })
            .collect();
        AssignedService {
            namespace: "default".into(),
            name: "web".into(),
            cluster_ip: "10.96.0.7".into(),
            ports: vec![AssignedServicePort {
                port: 80,
                protocol: "TCP".into(),
                endpoints,
                ..Default::default()
            }],
            ..Default::default()
        }
        .encode_to_vec()
        .into()
    }

    #[test]
    fn a_complete_set_then_increments_and_no_gap() {
        let mut assigned = Assigned::default();
        let increment =
            |applies_to, results_in| Assignments { applies_to, results_in, ..Default::default() };
        assert!(matches!(assigned.take(increment(0, 1)), Err(AssignedError::Gap { .. })));
        assert_eq!(assigned.network(Vec::new()), None);
        let complete = Assignments {
            complete: true,
            results_in: 5,
            pods: vec![pod("a", false)],
            services: vec![service(&["10.244.1.2"])],
            ..Default::default()
        };
        let step = assigned.take(complete).unwrap();
        assert!(step.net_changed && step.first.is_none() && step.then.unwrap().complete);
        let network = assigned.network(Vec::new()).unwrap();
        assert_eq!(network.services[0].ports[0].endpoints.len(), 1);

        let next = Assignments {
            pods: vec![pod("b", false), pod("a", true)],
            services: vec![service(&[])],
            ..increment(5, 6)
        };
        let step = assigned.take(next).unwrap();
        let uids = |set: Option<AssignmentSet>| -> Vec<String> {
            set.unwrap().pods.into_iter().filter_map(|p| p.pod.metadata.uid).collect()
        };
        assert!(step.net_changed);
        assert_eq!(uids(step.first), ["b"]);
        assert_eq!(uids(step.then), ["a"]);
        assert!(matches!(assigned.take(increment(5, 7)), Err(AssignedError::Gap { .. })));
        // A new session goes on from its own complete set only; what is known stays.
        assigned.begin();
        assert!(matches!(assigned.take(increment(6, 7)), Err(AssignedError::Gap { .. })));
        assert!(assigned.network(Vec::new()).is_some());
    }
}
