//! Nodes that go and come back, and what becomes of their pods.

mod flapping;
mod unique;

use expect_test::expect;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Toleration;
use serde_json::json;

use super::*;
use crate::harness::Cluster;
use crate::object::{is_active, node_of};

fn running(seed: u64, nodes: usize, replicas: i32) -> Cluster {
    let mut cluster = Cluster::with_nodes(seed, nodes);
    cluster.deployment("web", replicas, json!({}));
    cluster.live(3);
    cluster.events.clear();
    cluster
}

fn disconnect(cluster: &mut Cluster, node: &str) {
    cluster.telemetry.nodes.get_mut(node).unwrap().connected = false;
    cluster.signalled();
    cluster.settle();
}

fn pass(cluster: &mut Cluster, millis: i64) {
    cluster.pass(millis);
    cluster.settle();
}

fn ready(cluster: &Cluster, node: &str) -> String {
    let node = cluster.get::<Node>(node).unwrap();
    let condition = ready_condition(node).unwrap();
    let taints: Vec<_> =
        node.spec.iter().flat_map(|s| s.taints.iter().flatten()).map(|t| t.key.as_str()).collect();
    format!("{} {} {taints:?}", condition.status, condition.reason.as_deref().unwrap_or_default())
}

#[test]
fn a_lost_node_loses_its_pods_after_its_time() {
    let mut cluster = running(1, 4, 4);
    disconnect(&mut cluster, "n2");
    assert_eq!(ready(&cluster, "n2"), "True AgentReady []", "an agent that restarts is not lost");
    pass(&mut cluster, 2_900);
    assert_eq!(ready(&cluster, "n2"), "True AgentReady []");
    pass(&mut cluster, 200);
    assert_eq!(
        ready(&cluster, "n2"),
        "Unknown NodeStatusUnknown [\"node.kubernetes.io/unreachable\"]"
    );
    assert_eq!(cluster.ready(), 3, "its pods leave their services at once");
    assert_eq!(cluster.spread()["n2"], 1, "and are kept for a while");
    pass(&mut cluster, 1_800);
    assert_eq!(cluster.spread()["n2"], 1);
    pass(&mut cluster, 200);
    assert_eq!(cluster.spread().get("n2"), None);
    assert_eq!(cluster.active(), 4, "they are replaced elsewhere");
    cluster.live(2);
    assert_eq!(cluster.ready(), 4);
    cluster.settle_wholly();
    let said: Vec<_> =
        cluster.events.iter().filter(|e| e.contains("n2") && !e.contains("web")).cloned().collect();
    expect![[r#"
        NodeNotReady: Node n2 status is now: NodeNotReady
        TaintManagerEviction: Evicted 1 pods from node n2, which is unreachable"#]]
    .assert_eq(&said.join("\n"));
    // Back again: ready at the first beat, without the taint, and scheduled to.
    cluster.beat("n2");
    cluster.settle_wholly();
    assert_eq!(ready(&cluster, "n2"), "True AgentReady []");
}

#[test]
fn a_node_that_hangs_is_lost_too() {
    let mut cluster = running(2, 1, 1);
    // Connected as far as TCP can tell, but silent.
    cluster.now += SignedDuration::from_millis(3_100);
    cluster.signalled();
    cluster.settle();
    assert!(ready(&cluster, "n1").starts_with("Unknown"));
}

#[test]
fn an_engine_that_stops_makes_its_node_not_ready() {
    let mut cluster = running(3, 2, 2);
    let why = ("DockerNotReady".to_owned(), "docker does not answer".to_owned());
    cluster.telemetry.nodes.get_mut("n1").unwrap().not_ready = Some(why);
    cluster.signalled();
    cluster.settle_wholly();
    assert_eq!(ready(&cluster, "n1"), "False DockerNotReady [\"node.kubernetes.io/not-ready\"]");
    cluster.scale("web", 3);
    cluster.live(2);
    assert_eq!(cluster.spread()["n1"], 1, "nothing new goes there, nothing old leaves yet");
    for _ in 0..8 {
        pass(&mut cluster, 4_000);
    }
    let ending: Vec<_> = cluster.pods().into_iter().filter(|p| !is_active(p)).collect();
    assert_eq!(ending.len(), 1);
    assert_eq!(
        node_of(&ending[0]),
        Some("n1"),
        "its agent still answers, so it is asked to end it"
    );
    cluster.telemetry.nodes.get_mut("n1").unwrap().not_ready = None;
    cluster.signalled();
    cluster.live(2);
    assert_eq!(ready(&cluster, "n1"), "True AgentReady []");
}

#[test]
fn a_host_that_goes_down_gives_its_pods_away_at_once() {
    let mut cluster = running(3, 2, 2);
    let why = (timonier_proto::NODE_SHUTDOWN.to_owned(), "the host is shutting down".to_owned());
    cluster.telemetry.nodes.get_mut("n1").unwrap().not_ready = Some(why);
    cluster.signalled();
    cluster.settle_wholly();
    assert_eq!(ready(&cluster, "n1"), "False NodeShutdown [\"node.kubernetes.io/not-ready\"]");
    pass(&mut cluster, 1);
    let ending: Vec<_> = cluster.pods().into_iter().filter(|p| !is_active(p)).collect();
    assert_eq!(ending.len(), 1);
    assert_eq!(node_of(&ending[0]), Some("n1"), "its agent ends it with its grace");
    cluster.live(2);
    assert_eq!(cluster.spread()["n2"], 2, "and it is replaced meanwhile");
    // The same host is back.
    cluster.telemetry.nodes.get_mut("n1").unwrap().not_ready = None;
    cluster.signalled();
    cluster.live(2);
    assert_eq!(ready(&cluster, "n1"), "True AgentReady []");
}

#[test]
fn nothing_is_lost_right_after_a_change_of_leader() {
    let mut cluster = running(4, 3, 3);
    cluster.now += SignedDuration::from_secs(60);
    cluster.telemetry = crate::world::Telemetry { since: cluster.now, ..Default::default() };
    cluster.signalled();
    cluster.settle();
    pass(&mut cluster, 5_900);
    assert!(ready(&cluster, "n1").starts_with("True"), "{}", ready(&cluster, "n1"));
    cluster.beat("n1");
    pass(&mut cluster, 200);
    assert!(ready(&cluster, "n1").starts_with("True"));
    assert!(ready(&cluster, "n2").starts_with("Unknown"), "who did not come back in time is lost");
}

#[test]
fn a_node_that_has_found_the_new_leader_has_no_more_time_than_ever() {
    let mut cluster = running(4, 3, 3);
    cluster.telemetry = crate::world::Telemetry { since: cluster.now, ..Default::default() };
    pass(&mut cluster, 100);
    cluster.beat("n1");
    disconnect(&mut cluster, "n1");
    for _ in 0..2 {
        assert!(ready(&cluster, "n1").starts_with("True"));
        pass(&mut cluster, 1_600);
    }
    assert!(ready(&cluster, "n1").starts_with("Unknown"), "{}", ready(&cluster, "n1"));
    assert!(ready(&cluster, "n2").starts_with("True"), "it may still be looking for its master");
}

#[test]
fn a_node_that_greets_another_master_has_the_time_to_be_taken_in() {
    let mut cluster = running(4, 3, 3);
    let greet = |cluster: &mut Cluster| {
        cluster.telemetry.nodes.get_mut("n1").unwrap().greeted_at = Some(cluster.now);
        cluster.signalled();
        cluster.settle();
    };
    disconnect(&mut cluster, "n1");
    // Greets again and again, and never says a beat.
    for after_ms in [2_900, 2_900, 2_900] {
        pass(&mut cluster, after_ms);
        assert!(ready(&cluster, "n1").starts_with("True"));
        greet(&mut cluster);
    }
    pass(&mut cluster, 400);
    assert!(ready(&cluster, "n1").starts_with("Unknown"), "not for ever");
    greet(&mut cluster);
    assert!(ready(&cluster, "n1").starts_with("Unknown"), "a beat makes it ready, nothing less");
}

#[test]
fn a_fault_of_the_network_evicts_nobody() {
    let mut cluster = running(5, 3, 6);
    disconnect(&mut cluster, "n1");
    disconnect(&mut cluster, "n2");
    for _ in 0..20 {
        pass(&mut cluster, 1_000);
    }
    assert_eq!(cluster.spread().values().collect::<Vec<_>>(), [&2, &2, &2]);
    let paused: Vec<_> =
        cluster.events.iter().filter(|e| e.starts_with("EvictionPaused")).cloned().collect();
    expect!["EvictionPaused: 2 of 3 nodes are unreachable at once, which looks like a fault of the network: their pods are not replaced until more nodes answer"]
        .assert_eq(&paused.join("\n"));
    cluster.settle_wholly();
    // One comes back: the other's pods are replaced.
    cluster.beat("n1");
    cluster.settle();
    cluster.live(2);
    assert_eq!(cluster.spread().get("n2"), None);
    assert_eq!(cluster.active(), 6);
}

#[test]
fn with_nobody_left_nobody_is_replaced_in_a_cluster_of_any_size() {
    for nodes in [1, 2] {
        let mut cluster = running(8, nodes, 2);
        for node in 1..=nodes {
            disconnect(&mut cluster, &format!("n{node}"));
        }
        for _ in 0..20 {
            pass(&mut cluster, 1_000);
        }
        assert_eq!(cluster.active(), 2, "they may run on, and would be killed");
        assert_eq!(cluster.spread().len(), nodes, "none was removed");
        assert!(cluster.events.iter().any(|e| e.starts_with("EvictionPaused")));
    }
}

/// Nodes whose pods were removed so far.
fn emptied(cluster: &Cluster, lost: &[String]) -> usize {
    let spread = cluster.spread();
    lost.iter().filter(|node| !spread.contains_key(*node)).count()
}

#[test]
fn the_loss_of_half_a_large_cluster_is_slow_also_beside_one_lost_long_ago() {
    let mut cluster = running(9, 60, 60);
    disconnect(&mut cluster, "n60");
    for _ in 0..700 {
        pass(&mut cluster, 1_000);
    }
    assert_eq!(emptied(&cluster, &["n60".to_owned()]), 1);
    cluster.events.clear();
    let lost: Vec<_> = (1..=30).map(|n| format!("n{n}")).collect();
    for node in &lost {
        disconnect(&mut cluster, node);
    }
    for _ in 0..50 {
        pass(&mut cluster, 1_000);
    }
    assert_eq!(emptied(&cluster, &lost), 1);
    assert!(cluster.events.iter().any(|e| e.starts_with("EvictionSlowed")));
    for _ in 0..100 {
        pass(&mut cluster, 1_000);
    }
    assert_eq!(emptied(&cluster, &lost), 2);
}

#[test]
fn pods_that_wait_long_are_no_exception_from_the_pace() {
    let mut cluster = running(10, 10, 10);
    let lost: Vec<_> = (1..=4).map(|n| format!("n{n}")).collect();
    cluster.settings.eviction_after_ms = 2_000;
    for node in &lost {
        disconnect(&mut cluster, node);
    }
    let mut most = 0;
    let mut before = 0;
    for _ in 0..80 {
        pass(&mut cluster, 100);
        let now = emptied(&cluster, &lost);
        most = most.max(now - before);
        before = now;
    }
    assert_eq!((before, most), (4, 1), "one after the other");
}

#[test]
fn a_pod_says_how_long_it_waits() {
    for (seconds, left_after_10, left_after_40) in
        [(Some(20), true, false), (None, true, true), (Some(0), false, false)]
    {
        let mut cluster = running(6, 3, 1);
        cluster.edit::<k8s_openapi::api::apps::v1::Deployment>("web", |d| {
            let spec = d.spec.as_mut().unwrap().template.spec.as_mut().unwrap();
            spec.tolerations = Some(vec![Toleration {
                key: Some(TAINT_UNREACHABLE.to_owned()),
                operator: Some("Exists".to_owned()),
                effect: Some("NoExecute".to_owned()),
                toleration_seconds: seconds,
                ..Toleration::default()
            }]);
        });
        cluster.live(4);
        let pods = cluster.pods();
        let (name, node) = (pods[0].metadata.name.clone().unwrap(), node_of(&pods[0]).unwrap());
        disconnect(&mut cluster, node);
        let mut left = Vec::new();
        for _ in 0..2 {
            for _ in 0..(if left.is_empty() { 10 } else { 30 }) {
                pass(&mut cluster, 1_000);
            }
            left.push(cluster.get::<Pod>(&name).is_some());
        }
        assert_eq!(left, [left_after_10, left_after_40], "tolerationSeconds {seconds:?}");
    }
}

#[test]
fn a_node_that_is_removed_takes_its_pods_with_it() {
    let mut cluster = running(7, 3, 3);
    cluster.remove(Kind::Node, "n3");
    cluster.settle_wholly();
    assert_eq!(cluster.spread().get("n3"), None);
    assert_eq!(cluster.active(), 3);
}
