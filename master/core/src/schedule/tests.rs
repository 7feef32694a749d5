//! Where pods go, and the words in which people learn why they don't.

use std::sync::Arc;

use expect_test::{Expect, expect};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};
use timonier_proto::v1::HostUsage;

use super::*;
use crate::harness::{Cluster, object};
use crate::world::NodeSignal;

fn node(name: &str, spec: Value, labels: Value) -> Node {
    object(json!({
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
        "status": {
            "allocatable": {"cpu": "2", "memory": "4Gi", "ephemeral-storage": "10Gi", "pods": "10"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }))
}

fn pod(name: &str, spec: Value) -> Arc<Pod> {
    let mut spec = spec;
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "c", "image": "i"}]);
    }
    let metadata = json!({"name": name, "namespace": "default", "uid": name});
    Arc::new(object(json!({"metadata": metadata, "spec": spec})))
}

/// Three nodes: one plain, one with a disk label, one with whatever `third` says.
fn cluster(third: Value) -> Cluster {
    let mut cluster = Cluster::new(1);
    cluster.create(node("n1", json!({}), json!({"zone": "a", "cores": "4"})));
    cluster.create(node("n2", json!({}), json!({"zone": "b", "disk": "ssd", "cores": "16"})));
    cluster.create(node("n3", third, json!({"zone": "a"})));
    cluster
}

fn decide(cluster: &mut Cluster, pods: &[Arc<Pod>]) -> Vec<Outcome> {
    let mut view = ClusterView::of(&cluster.world());
    schedule(&mut view, pods).into_iter().map(|d| d.outcome).collect()
}

fn check(third: Value, spec: Value, expected: Expect) {
    let mut cluster = cluster(third);
    let answer = match decide(&mut cluster, &[pod("p", spec)]).remove(0) {
        Outcome::Node(node) => node,
        Outcome::Refused(why) => why,
    };
    expected.assert_eq(&answer);
}

fn containers(requests: Value) -> Value {
    json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": requests}}]})
}

#[test]
fn requests_against_what_is_allocatable() {
    check(
        json!({"unschedulable": true}),
        containers(json!({"cpu": "3"})),
        expect!["0/3 nodes are available: 2 insufficient cpu, 1 node(s) were unschedulable."],
    );
    check(
        json!({}),
        containers(json!({"cpu": "2001m", "memory": "5Gi", "ephemeral-storage": "1Ti"})),
        expect![
            "0/3 nodes are available: 3 insufficient cpu, 3 insufficient ephemeral-storage, 3 insufficient memory."
        ],
    );
    // A limit alone is a request; an init container counts when it is larger than all the rest.
    check(
        json!({}),
        json!({"containers": [{"name": "c", "resources": {"limits": {"memory": "5Gi"}}}]}),
        expect!["0/3 nodes are available: 3 insufficient memory."],
    );
    check(
        json!({}),
        json!({
            "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "3"}}}],
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}],
        }),
        expect!["0/3 nodes are available: 3 insufficient cpu."],
    );
}

#[test]
fn selectors_and_affinity() {
    check(json!({}), json!({"nodeSelector": {"disk": "ssd"}}), expect!["n2"]);
    check(
        json!({}),
        json!({"nodeSelector": {"disk": "tape"}}),
        expect!["0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."],
    );
    let required = |expression: Value| {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [expression]}],
        }}}})
    };
    let gone = json!({"unschedulable": true});
    for (expression, expected) in [
        (json!({"key": "zone", "operator": "In", "values": ["b", "c"]}), expect!["n2"]),
        (json!({"key": "zone", "operator": "NotIn", "values": ["b"]}), expect!["n1"]),
        (json!({"key": "disk", "operator": "Exists"}), expect!["n2"]),
        (json!({"key": "disk", "operator": "DoesNotExist"}), expect!["n1"]),
        (json!({"key": "cores", "operator": "Gt", "values": ["8"]}), expect!["n2"]),
        (json!({"key": "cores", "operator": "Lt", "values": ["8"]}), expect!["n1"]),
    ] {
        check(gone.clone(), required(expression), expected);
    }
    let preferred = json!({"affinity": {"nodeAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [{
            "weight": 10,
            "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]},
        }],
    }}});
    check(json!({}), preferred, expect!["n2"]);
}

#[test]
fn taints_and_tolerations() {
    let tainted = json!({"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]});
    let only_third = json!({"kubernetes.io/hostname": "n3"});
    let mut cluster = Cluster::new(1);
    cluster.create(node("n3", tainted, only_third));
    let untolerated = decide(&mut cluster, &[pod("p", json!({}))]).remove(0);
    let why = "0/1 nodes are available: 1 node(s) had untolerated taint {gpu: yes}.";
    assert_eq!(untolerated, Outcome::Refused(why.to_owned()));
    for toleration in [
        json!({"key": "gpu", "value": "yes"}),
        json!({"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}),
        json!({"operator": "Exists"}),
    ] {
        let tolerant = pod("p", json!({"tolerations": [toleration]}));
        assert_eq!(decide(&mut cluster, &[tolerant]), [Outcome::Node("n3".into())]);
    }
    let elsewhere = json!({"tolerations": [{"key": "gpu", "value": "no"}]});
    assert!(matches!(decide(&mut cluster, &[pod("p", elsewhere)])[0], Outcome::Refused(_)));
}

#[test]
fn host_ports_are_taken_once_a_node() {
    let mut cluster = cluster(json!({}));
    let ports = json!([{"containerPort": 80, "hostPort": 8080}]);
    let spec = json!({"containers": [{"name": "c", "ports": ports}]});
    let pods: Vec<_> = (0..4).map(|i| pod(&format!("p{i}"), spec.clone())).collect();
    let outcomes = decide(&mut cluster, &pods);
    let placed = outcomes.iter().filter(|o| matches!(o, Outcome::Node(_))).count();
    assert_eq!(placed, 3);
    let why =
        "0/3 nodes are available: 3 node(s) didn't have free ports for the requested pod ports.";
    assert_eq!(outcomes[3], Outcome::Refused(why.to_owned()));
}

#[test]
fn a_full_node_says_so() {
    let mut cluster = Cluster::new(1);
    cluster.create(node("n1", json!({}), json!({})));
    let pods: Vec<_> = (0..11).map(|i| pod(&format!("p{i}"), json!({}))).collect();
    let last = decide(&mut cluster, &pods).pop().unwrap();
    assert_eq!(last, Outcome::Refused("0/1 nodes are available: 1 too many pods.".into()));
    let nowhere = decide(&mut Cluster::new(1), &pods[..1]).remove(0);
    let why = "0/0 nodes are available: no node has joined the cluster.";
    assert_eq!(nowhere, Outcome::Refused(why.to_owned()));
}

fn load(cluster: &mut Cluster, node: &str, cpu_percent: f32, memory_percent: f32) {
    let signal = NodeSignal {
        last_beat: cluster.now,
        connected: true,
        host: HostUsage { cpu_percent, memory_percent, ..HostUsage::default() },
        not_ready: None,
        master_away_since: None,
        greeted_at: None,
    };
    cluster.telemetry.nodes.insert(node.to_owned(), signal);
}

#[test]
fn measured_load_decides_between_equals() {
    let mut cluster = cluster(json!({}));
    load(&mut cluster, "n1", 90.0, 60.0);
    load(&mut cluster, "n2", 20.0, 60.0);
    load(&mut cluster, "n3", 70.0, 60.0);
    assert_eq!(decide(&mut cluster, &[pod("p", json!({}))]), [Outcome::Node("n2".into())]);
    // What was measured long ago says nothing about now.
    cluster.now += jiff::SignedDuration::from_secs(60);
    load(&mut cluster, "n3", 10.0, 10.0);
    assert_eq!(decide(&mut cluster, &[pod("p", json!({}))]), [Outcome::Node("n3".into())]);
}

#[test]
fn siblings_are_spread_evenly_in_spite_of_some_load() {
    for seed in 0..20 {
        let mut cluster = Cluster::with_nodes(seed, 3);
        for (name, cpu) in [("n1", 10.0), ("n2", 30.0), ("n3", 55.0)] {
            load(&mut cluster, name, cpu, 40.0);
        }
        cluster.deployment("web", 12, json!({}));
        cluster.settle_wholly();
        assert_eq!(cluster.spread().values().collect::<Vec<_>>(), [&4, &4, &4], "seed {seed}");
        cluster.live(2);
        cluster.scale("web", 3);
        cluster.live(2);
        assert_eq!(cluster.spread().values().collect::<Vec<_>>(), [&1, &1, &1], "seed {seed}");
    }
}

#[test]
fn a_refusal_is_written_once_and_lifted_when_room_appears() {
    let mut cluster = Cluster::new(3);
    cluster.deployment("web", 2, json!({}));
    cluster.settle_wholly();
    let failed: Vec<_> = cluster.events.iter().filter(|e| e.starts_with("Failed")).collect();
    assert_eq!(
        failed,
        ["FailedScheduling: 0/0 nodes are available: no node has joined the cluster."],
    );
    let condition = |cluster: &Cluster| {
        let status = cluster.pods()[0].status.clone().unwrap();
        let condition = status.conditions.unwrap().remove(0);
        (condition.type_, condition.status, condition.reason.unwrap_or_default())
    };
    let unschedulable = ("PodScheduled".to_owned(), "False".to_owned(), "Unschedulable".to_owned());
    assert_eq!(condition(&cluster), unschedulable);
    cluster.add_node("n1");
    cluster.settle_wholly();
    assert_eq!(cluster.spread().get("n1"), Some(&2));
    assert_eq!(condition(&cluster).1, "True");
    // A pod that ends makes room for one that waits.
    cluster.edit::<Node>("n1", |n| n.spec.as_mut().unwrap().unschedulable = Some(true));
    cluster.scale("web", 3);
    cluster.settle_wholly();
    assert_eq!(cluster.spread().get("-"), Some(&1));
    cluster.edit::<Node>("n1", |n| n.spec.as_mut().unwrap().unschedulable = None);
    cluster.settle_wholly();
    assert_eq!(cluster.spread().get("n1"), Some(&3));
}

#[test]
fn a_burst_is_one_transaction_with_few_events() {
    let mut cluster = Cluster::with_nodes(5, 3);
    cluster.deployment("web", 200, json!({}));
    cluster.settle_wholly();
    let spread = cluster.spread();
    assert!(spread.values().all(|n| (66..=67).contains(n)), "{spread:?}");
    assert!(cluster.events.len() < 12, "{:#?}", cluster.events);
    let created = cluster.events.iter().find(|e| e.starts_with("SuccessfulCreate")).unwrap();
    assert!(created.ends_with("and 195 more"), "{created}");
    assert!(cluster.events.iter().any(|e| e.contains("Successfully assigned 200 pods: 6")));
}
