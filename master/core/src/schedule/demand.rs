//! What a pod asks of a node, in whole numbers.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Node, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use timonier_proto::quantity::{cpu_millis, units};

/// Counted for a container that requests nothing, when nodes are compared (never when they are
/// filtered): Kubernetes' numbers. Else pods without requests would weigh nothing.
const ASSUMED_CPU_MILLIS: i64 = 100;
const ASSUMED_MEMORY_BYTES: i64 = 200 << 20;

/// Pods that a node takes when it doesn't say how many.
const PODS_DEFAULT: i64 = 110;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resources {
    pub cpu_millis: i64,
    pub memory_bytes: i64,
    pub storage_bytes: i64,
    pub pods: i64,
}

impl Resources {
    /// What a node has for pods.
    pub fn allocatable(node: &Node) -> Self {
        let list =
            node.status.as_ref().and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
        let get = |key: &str| list.and_then(|l| l.get(key));
        Self {
            cpu_millis: cpu_millis(get("cpu")),
            memory_bytes: units(get("memory")),
            storage_bytes: units(get("ephemeral-storage")),
            pods: get("pods").map_or(PODS_DEFAULT, |q| units(Some(q))),
        }
    }

    pub fn add(&mut self, other: &Self) {
        self.cpu_millis += other.cpu_millis;
        self.memory_bytes += other.memory_bytes;
        self.storage_bytes += other.storage_bytes;
        self.pods += other.pods;
    }

    pub fn subtract(&mut self, other: &Self) {
        self.cpu_millis -= other.cpu_millis;
        self.memory_bytes -= other.memory_bytes;
        self.storage_bytes -= other.storage_bytes;
        self.pods -= other.pods;
    }

    fn at_least(&mut self, other: &Self) {
        self.cpu_millis = self.cpu_millis.max(other.cpu_millis);
        self.memory_bytes = self.memory_bytes.max(other.memory_bytes);
        self.storage_bytes = self.storage_bytes.max(other.storage_bytes);
    }
}

/// A pod's requests and the ports it wants of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demand {
    pub requests: Resources,
    /// With assumed numbers where nothing is requested; for comparing nodes.
    pub weight: Resources,
    /// (port, protocol).
    pub host_ports: Vec<(i32, String)>,
}

impl Demand {
    /// The containers run together, the init containers one after the other before them: the
    /// larger of the two counts. Init containers that go on running (sidecars) count with the
    /// containers.
    pub fn of(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else { return Self::default() };
        let mut demand = Self::default();
        for container in &spec.containers {
            demand.requests.add(&requests(container, false));
            demand.weight.add(&requests(container, true));
        }
        let (mut sidecars, mut peak) = (Resources::default(), Resources::default());
        for container in spec.init_containers.iter().flatten() {
            let own = requests(container, false);
            if container.restart_policy.as_deref() == Some("Always") {
                sidecars.add(&own);
                demand.requests.add(&own);
                demand.weight.add(&requests(container, true));
            } else {
                let mut step = sidecars;
                step.add(&own);
                peak.at_least(&step);
            }
        }
        demand.requests.at_least(&peak);
        demand.weight.at_least(&peak);
        demand.requests.pods = 1;
        demand.weight.pods = 1;
        let init = spec.init_containers.iter().flatten();
        demand.host_ports = spec
            .containers
            .iter()
            .chain(init)
            .flat_map(|c| c.ports.iter().flatten())
            .filter_map(|p| {
                let port = if spec.host_network == Some(true) {
                    Some(p.host_port.unwrap_or(p.container_port))
                } else {
                    p.host_port
                };
                let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
                port.filter(|p| *p > 0).map(|port| (port, protocol))
            })
            .collect();
        demand
    }
}

/// A limit without a request is a request of the same size.
fn requests(container: &Container, assume: bool) -> Resources {
    let resources = container.resources.as_ref();
    let get = |key: &str| {
        let of = |list: Option<&BTreeMap<String, Quantity>>| list.and_then(|l| l.get(key)).cloned();
        of(resources.and_then(|r| r.requests.as_ref()))
            .or_else(|| of(resources.and_then(|r| r.limits.as_ref())))
    };
    let or_assumed = |value: i64, assumed| if assume && value == 0 { assumed } else { value };
    Resources {
        cpu_millis: or_assumed(cpu_millis(get("cpu").as_ref()), ASSUMED_CPU_MILLIS),
        memory_bytes: or_assumed(units(get("memory").as_ref()), ASSUMED_MEMORY_BYTES),
        storage_bytes: units(get("ephemeral-storage").as_ref()),
        pods: 0,
    }
}
