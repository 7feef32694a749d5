//! [`ClusterView`]: the nodes with what is taken on each. Built from a world, then kept up to date
//! pod by pod, so that a burst is placed without counting anything twice.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};

use super::demand::{Demand, Resources};
use crate::hash::Random;
use crate::object::{
    after_millis, controller_of, is_ending, is_finished, name_of, node_ready_status,
};
use crate::reconcile::node::losses;
use crate::world::World;

/// One node as the scheduler sees it.
#[derive(Debug, Clone)]
pub struct NodeView {
    pub name: String,
    pub node: Arc<Node>,
    pub is_ready: bool,
    pub allocatable: Resources,
    pub requested: Resources,
    /// As `requested`, with assumed numbers for pods that request nothing.
    pub weight: Resources,
    /// (port, protocol).
    pub host_ports: HashSet<(i32, String)>,
    /// By the controller's uid: its pods that are here to stay.
    pub owners: HashMap<String, i64>,
    /// CPU and memory percent as the agent measured them; `None` when it has not said so lately.
    pub load: Option<(f32, f32)>,
    /// How often the node was lost in the last minutes.
    pub losses: usize,
}

/// All nodes, in order of name.
#[derive(Debug, Clone)]
pub struct ClusterView {
    nodes: Vec<NodeView>,
    index: HashMap<String, usize>,
    pub(super) random: Random,
}

impl ClusterView {
    pub fn of(world: &World) -> Self {
        let nodes: Vec<NodeView> = world
            .snapshot
            .list::<Node>(None)
            .map(|node| {
                let mut view = NodeView::empty(node.clone());
                view.load = measured_load(world, &view.name);
                view.losses = losses::recent(node, world.now).len();
                for pod in world.snapshot.pods_on(&view.name).filter(|pod| !is_finished(pod)) {
                    view.take(pod, &Demand::of(pod));
                }
                view
            })
            .collect();
        let index = nodes.iter().enumerate().map(|(i, n)| (n.name.clone(), i)).collect();
        Self { nodes, index, random: Random::new(world.seed) }
    }

    pub fn nodes(&self) -> &[NodeView] {
        &self.nodes
    }

    /// Takes room on the node for the pod.
    pub fn take(&mut self, node: usize, pod: &Pod, demand: &Demand) {
        if let Some(view) = self.nodes.get_mut(node) {
            view.take(pod, demand);
        }
    }

    /// Gives back the room of a pod that was on the node of that name.
    pub fn free(&mut self, node: &str, pod: &Pod) {
        let Some(view) = self.index.get(node).and_then(|i| self.nodes.get_mut(*i)) else { return };
        let demand = Demand::of(pod);
        view.requested.subtract(&demand.requests);
        view.weight.subtract(&demand.weight);
        for port in &demand.host_ports {
            view.host_ports.remove(port);
        }
        if let Some(owner) = controller_of(&pod.metadata)
            && let Some(count) = view.owners.get_mut(&owner.uid)
        {
            *count -= 1;
        }
    }
}

impl NodeView {
    fn empty(node: Arc<Node>) -> Self {
        Self {
            name: name_of(&node.metadata).to_owned(),
            is_ready: node_ready_status(&node) == "True" && !is_ending(&node.metadata),
            allocatable: Resources::allocatable(&node),
            requested: Resources::default(),
            weight: Resources::default(),
            host_ports: HashSet::new(),
            owners: HashMap::new(),
            load: None,
            losses: 0,
            node,
        }
    }

    fn take(&mut self, pod: &Pod, demand: &Demand) {
        self.requested.add(&demand.requests);
        self.weight.add(&demand.weight);
        self.host_ports.extend(demand.host_ports.iter().cloned());
        if let Some(owner) = controller_of(&pod.metadata)
            && !is_ending(&pod.metadata)
        {
            *self.owners.entry(owner.uid.clone()).or_default() += 1;
        }
    }
}

fn measured_load(world: &World, node: &str) -> Option<(f32, f32)> {
    let signal = world.telemetry.nodes.get(node)?;
    let is_fresh = after_millis(signal.last_beat, world.settings.node_grace_ms) >= world.now;
    is_fresh.then_some((signal.host.cpu_percent, signal.host.memory_percent))
}
