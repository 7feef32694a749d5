//! Agents' events on their way to Event objects, at a bounded rate for each agent.

use std::time::Instant;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use timonier_master_core::object::{namespace_is_live, node_of, uid_of};
use timonier_master_core::op::Op;
use timonier_master_core::reconcile::record::{Recorder, Severity};
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::Object;
use timonier_proto::v1::AgentEvent;

use crate::stamp::stamp;

/// Events of one agent that are taken at once…
const BURST_MAX: f64 = 500.0;
/// …and in the long run each second.
const RATE_PER_S: f64 = 25.0;
/// Longest reason, in bytes.
const REASON_BYTES_MAX: usize = 128;
const COMPONENT: &str = "timonier-agent";

/// Lets one agent's events through as long as there are not too many.
#[derive(Debug)]
pub struct EventGate {
    node: String,
    tokens: f64,
    refilled: Instant,
    dropped: u64,
}

impl EventGate {
    pub fn new(node: &str) -> Self {
        Self { node: node.to_owned(), tokens: BURST_MAX, refilled: Instant::now(), dropped: 0 }
    }

    /// The events to write; those past the bound are dropped, and the log says so.
    pub fn admit(
        &mut self,
        events: Vec<AgentEvent>,
        snapshot: &Snapshot,
        now: Timestamp,
    ) -> Vec<Op> {
        let elapsed = self.refilled.elapsed().as_secs_f64();
        self.refilled = Instant::now();
        self.tokens = (self.tokens + elapsed * RATE_PER_S).min(BURST_MAX);
        let mut ops = Vec::new();
        for event in events {
            if self.tokens < 1.0 {
                self.dropped += 1;
                continue;
            }
            self.tokens -= 1.0;
            if let Some(op) = self.record(event, snapshot, now) {
                ops.push(stamp(op, now));
            }
        }
        if self.dropped > 0 && self.tokens >= 1.0 {
            tracing::warn!(node = self.node, dropped = self.dropped, "too many events of an agent");
            self.dropped = 0;
        }
        ops
    }

    fn record(&self, event: AgentEvent, snapshot: &Snapshot, now: Timestamp) -> Option<Op> {
        let recorder = Recorder { component: COMPONENT, now };
        let severity = if event.r#type == "Warning" { Severity::Warning } else { Severity::Normal };
        let mut reason = event.reason;
        reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
        let mut op = match event.kind.as_str() {
            "" | "Pod" => {
                if !namespace_is_live(snapshot, &event.namespace)
                    || !self.is_own(snapshot, &event.namespace, &event.name, &event.uid)
                {
                    return None;
                }
                let pod = Pod {
                    metadata: meta(event.namespace, event.name, event.uid),
                    ..Default::default()
                };
                recorder.event(&pod, severity, &reason, event.message)
            }
            // An agent speaks of no node but its own.
            "Node" => {
                let name = self.node.clone();
                let node = Node {
                    metadata: meta(String::new(), name.clone(), name),
                    ..Default::default()
                };
                recorder.event(&node, severity, &reason, event.message)
            }
            _ => return None,
        };
        if let Op::RecordEvent(Object::Event(stored)) = &mut op {
            let stored = std::sync::Arc::make_mut(stored);
            stored.source.get_or_insert_default().host = Some(self.node.clone());
            stored.reporting_instance = Some(self.node.clone());
            stored.involved_object.field_path =
                Some(event.field_path).filter(|path| !path.is_empty());
        }
        Some(op)
    }

    /// Whether it is a pod of this node's. Of one that is gone nobody knows whose it was, so
    /// nothing is said of it any more.
    fn is_own(&self, snapshot: &Snapshot, namespace: &str, name: &str, uid: &str) -> bool {
        snapshot.get::<Pod>(namespace, name).is_some_and(|pod| {
            uid_of(&pod.metadata) == uid && node_of(pod) == Some(self.node.as_str())
        })
    }
}

fn meta(namespace: String, name: String, uid: String) -> ObjectMeta {
    ObjectMeta {
        namespace: Some(namespace).filter(|text| !text.is_empty()),
        name: Some(name),
        uid: Some(uid).filter(|text| !text.is_empty()),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Namespace;
    use serde_json::json;
    use timonier_proto::Kinded;

    use super::*;

    /// A namespace with the pod web of node n1.
    fn state() -> Snapshot {
        let namespace: Namespace =
            serde_json::from_value(json!({"metadata": {"name": "default"}})).unwrap();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u"},
            "spec": {"nodeName": "n1", "containers": [{"name": "web"}]},
        }))
        .unwrap();
        Snapshot::rebuild(1, [namespace.into_object(), pod.into_object()], [])
    }

    fn event() -> AgentEvent {
        AgentEvent {
            namespace: "default".into(),
            name: "web".into(),
            uid: "u".into(),
            reason: "Pulled".into(),
            field_path: "spec.containers{web}".into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_flood_is_cut_to_its_burst() {
        let snapshot = state();
        let mut gate = EventGate::new("n1");
        let ops = gate.admit(vec![event(); 1000], &snapshot, Timestamp::now());
        assert_eq!(ops.len(), BURST_MAX as usize);
        let Op::RecordEvent(object) = &ops[0] else { panic!("{ops:?}") };
        let stored = object.get::<k8s_openapi::api::core::v1::Event>().unwrap();
        assert_eq!(stored.involved_object.field_path.as_deref(), Some("spec.containers{web}"));
    }

    #[test]
    fn an_agent_speaks_of_its_node_and_its_pods_only() {
        let snapshot = state();
        let told = |node: &str, event: AgentEvent| {
            EventGate::new(node).admit(vec![event], &snapshot, Timestamp::now()).len()
        };
        assert_eq!(told("n1", event()), 1);
        assert_eq!(told("n2", event()), 0);
        for wrong in [
            AgentEvent { uid: "v".into(), ..event() },
            AgentEvent { uid: String::new(), ..event() },
            AgentEvent { name: "gone".into(), ..event() },
            AgentEvent { namespace: "gone".into(), ..event() },
            AgentEvent { kind: "Secret".into(), ..event() },
        ] {
            assert_eq!(told("n1", wrong.clone()), 0, "{wrong:?}");
        }
        // Whatever node it names, it is its own that is meant.
        let node = AgentEvent { kind: "Node".into(), name: "n1".into(), ..event() };
        let ops = EventGate::new("n2").admit(vec![node], &snapshot, Timestamp::now());
        let Op::RecordEvent(object) = &ops[0] else { panic!("{ops:?}") };
        let stored = object.get::<k8s_openapi::api::core::v1::Event>().unwrap();
        assert_eq!(stored.involved_object.name.as_deref(), Some("n2"));
    }
}
