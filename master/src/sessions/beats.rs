//! What an agent may say of latencies: those of its own node's pods, for the policies that measure
//! them. Pure.

use k8s_openapi::api::core::v1::Pod;
use timonier_master_core::object::node_of;
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::latency::LatencyAutoscaler;
use timonier_proto::v1::{LatencyBeat, LatencyBeats};

use super::compile;

/// Without the beats of other nodes' pods, and of pods that the policy does not measure: a node
/// that lies would scale others' workloads.
pub fn own(snapshot: &Snapshot, node: &str, mut beats: LatencyBeats) -> LatencyBeats {
    beats.beats.retain(|beat| is_own(snapshot, node, beat));
    beats
}

fn is_own(snapshot: &Snapshot, node: &str, beat: &LatencyBeat) -> bool {
    let policy = snapshot.get::<LatencyAutoscaler>(&beat.namespace, &beat.policy);
    let pod = snapshot.get::<Pod>(&beat.namespace, &beat.pod);
    pod.zip(policy).is_some_and(|(pod, policy)| {
        node_of(pod) == Some(node) && compile::targets(snapshot, policy, pod)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use timonier_proto::{Kind, Object};

    use super::*;

    #[test]
    fn a_node_speaks_of_its_own_pods_and_their_policies_only() {
        let pod = |name: &str, node: &str, owner: &str| {
            let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner,
                "uid": "r", "controller": true});
            let meta = json!({"name": name, "namespace": "default", "ownerReferences": [owner]});
            let spec = json!({"nodeName": node, "containers": [{"name": "c", "image": "i"}]});
            let json = json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec});
            Object::from_json(Kind::Pod, json.to_string().as_bytes()).unwrap()
        };
        let policy = json!({
            "apiVersion": "autoscaling.timonier.io/v1", "kind": "LatencyAutoscaler",
            "metadata": {"name": "shop", "namespace": "default"},
            "spec": {"scaleTargetRef": {"kind": "ReplicaSet", "name": "shop"},
                "latencyMilliseconds": 5},
        });
        let policy = Object::from_json(Kind::LatencyAutoscaler, policy.to_string().as_bytes());
        let state = Snapshot::rebuild(
            1,
            [
                policy.unwrap(),
                pod("own", "n1", "shop"),
                pod("foreign", "n2", "shop"),
                pod("other", "n1", "db"),
            ],
            [],
        );
        let beat = |policy: &str, pod: &str| LatencyBeat {
            namespace: "default".into(),
            policy: policy.into(),
            pod: pod.into(),
            ..Default::default()
        };
        let said = [("shop", "own"), ("shop", "foreign"), ("shop", "other"), ("shop", "none")];
        let mut beats: Vec<_> = said.into_iter().map(|(policy, pod)| beat(policy, pod)).collect();
        beats.push(beat("none", "own"));
        let left = own(&state, "n1", LatencyBeats { beats });
        assert_eq!(left.beats, [beat("shop", "own")]);
    }
}
