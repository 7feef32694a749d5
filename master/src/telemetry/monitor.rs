//! Frames of node and pod usage for those who watch: each frame is read from the slots when its
//! time comes, so watching costs the same however often the agents beat.

use std::collections::{BTreeSet, HashMap};
use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use timonier_master_core::object::{name_of, namespace_of, node_ready_status, uid_of};
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::v1::{MonitorFrame, MonitorRequest, NodeSample, PodSample};
use tokio::time::{MissedTickBehavior, interval};
use tonic::Status;

use super::Hub;
use crate::store::Store;

/// Shortest time between two frames.
const INTERVAL_MS_MIN: u32 = 50;

/// Frames until the watcher goes, or one.
pub type FrameStream = Pin<Box<dyn Stream<Item = Result<MonitorFrame, Status>> + Send>>;

impl Hub {
    /// One frame at once, and with an interval one each interval after it.
    pub fn monitor(&self, store: Store, request: MonitorRequest) -> FrameStream {
        let hub = self.clone();
        let frame = move |request: &MonitorRequest| Ok(hub.frame(&store.snapshot(), request));
        if request.interval_ms == 0 {
            return Box::pin(stream::once(std::future::ready(frame(&request))));
        }
        let every = Duration::from_millis(request.interval_ms.max(INTERVAL_MS_MIN).into());
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ticks = stream::unfold(ticks, |mut ticks| async move {
            ticks.tick().await;
            Some(((), ticks))
        });
        Box::pin(ticks.map(move |()| frame(&request)))
    }

    /// All nodes there are, or those asked for by name or address.
    pub fn frame(&self, snapshot: &Snapshot, request: &MonitorRequest) -> MonitorFrame {
        let mut unknown: BTreeSet<&str> = request.nodes.iter().map(String::as_str).collect();
        let mut nodes = Vec::new();
        for node in snapshot.list::<Node>(None) {
            let name = name_of(&node.metadata);
            let address = address_of(node);
            if !request.nodes.is_empty() {
                let by_name = unknown.remove(name);
                let by_address = unknown.remove(address);
                let asked = |word: &String| word == name || word == address;
                if !by_name && !by_address && !request.nodes.iter().any(asked) {
                    continue;
                }
            }
            nodes.push(self.sample(snapshot, node, address, request.with_pods));
        }
        MonitorFrame {
            at_unix_ms: Timestamp::now().as_millisecond(),
            nodes,
            unknown_nodes: if request.nodes.is_empty() {
                Vec::new()
            } else {
                unknown.into_iter().map(str::to_owned).collect()
            },
        }
    }

    fn sample(
        &self,
        snapshot: &Snapshot,
        node: &Node,
        address: &str,
        with_pods: bool,
    ) -> NodeSample {
        let name = name_of(&node.metadata);
        let mut sample = NodeSample {
            name: name.to_owned(),
            address: address.to_owned(),
            ready: node_ready_status(node) == "True",
            ..Default::default()
        };
        let mut usage_by_uid = HashMap::new();
        if let Some(slot) = self.slot(name) {
            let state = slot.lock();
            sample.usage = state.last_beat.map(|_| state.host);
            let age = state.last_beat.map_or(0, |at| at.elapsed().as_millis());
            sample.age_ms = u32::try_from(age).unwrap_or(u32::MAX);
            if with_pods {
                usage_by_uid =
                    state.pods.iter().map(|usage| (usage.uid.clone(), usage.clone())).collect();
            }
        }
        for pod in snapshot.pods_on(name) {
            sample.pod_count += 1;
            if with_pods {
                let uid = uuid::Uuid::parse_str(uid_of(&pod.metadata)).unwrap_or_default();
                sample.pods.push(PodSample {
                    namespace: namespace_of(&pod.metadata).to_owned(),
                    name: name_of(&pod.metadata).to_owned(),
                    usage: usage_by_uid.remove(uid.as_bytes().as_slice()),
                });
            }
        }
        sample
    }
}

/// The node's internal address, as people know it; empty when it has none.
pub(crate) fn address_of(node: &Node) -> &str {
    node.status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten())
        .find(|address| address.type_ == "InternalIP")
        .map_or("", |address| address.address.as_str())
}
