//! Pods that must be unique: never a second one while the first may run.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;
use timonier_proto::unique::{FENCE_AFTER_ANNOTATION, FENCE_GRACE_MS};

use super::{disconnect, pass};
use crate::harness::{Cluster, object};
use crate::hash::Random;
use crate::object::{is_active, is_ending, node_of, node_ready_status, uid_of};

fn unique(seed: u64, nodes: usize) -> Cluster {
    let mut cluster = Cluster::with_nodes(seed, nodes);
    cluster.settings.eviction_after_ms = 500;
    cluster.create(object::<Deployment>(json!({
        "metadata": {"name": "db", "namespace": "default"},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": {"app": "db"}},
            "template": {
                "metadata": {
                    "labels": {"app": "db"},
                    "annotations": {"timonier.io/unique": "true"},
                },
                "spec": {"containers": [{"name": "c", "image": "db:1"}]},
            },
        },
    })));
    // A master that has just begun to listen calls nobody lost.
    cluster.live(7);
    cluster
}

fn node_of_the_pod(cluster: &Cluster) -> String {
    let pods = cluster.pods();
    assert_eq!(pods.len(), 1);
    node_of(&pods[0]).unwrap().to_owned()
}

#[test]
fn it_is_replaced_only_when_its_agent_must_have_stopped_it() {
    let mut cluster = unique(1, 4);
    let node = node_of_the_pod(&cluster);
    disconnect(&mut cluster, &node);
    let mut waited_ms = 0;
    while cluster.pods().iter().all(|pod| node_of(pod) == Some(&node)) {
        assert_eq!(cluster.pods().len(), 1);
        if waited_ms > 3_700 {
            assert!(is_ending(&cluster.pods()[0].metadata), "it is asked to end, for all to see");
        }
        pass(&mut cluster, 100);
        waited_ms += 100;
    }
    // Three seconds until it is lost, the fence time, the margin; times are whole seconds.
    assert!((18_000..21_500).contains(&waited_ms), "{waited_ms}");
    cluster.settle_wholly();
    assert_eq!(cluster.pods().len(), 1);
}

/// The master that had the session of its node was started with a longer `--fence-after`.
#[test]
fn it_is_replaced_no_earlier_than_its_agent_goes_by() {
    let mut cluster = unique(1, 4);
    let node = node_of_the_pod(&cluster);
    cluster.edit::<Node>(&node, |n| {
        let annotations = n.metadata.annotations.get_or_insert_default();
        annotations.insert(FENCE_AFTER_ANNOTATION.to_owned(), "60000".to_owned());
    });
    disconnect(&mut cluster, &node);
    for _ in 0..650 {
        pass(&mut cluster, 100);
        assert_eq!(node_of_the_pod(&cluster), node);
    }
    for _ in 0..60 {
        pass(&mut cluster, 100);
    }
    assert_ne!(node_of_the_pod(&cluster), node);
}

#[test]
fn a_node_that_comes_back_is_asked_and_its_word_is_enough() {
    let mut cluster = unique(2, 4);
    let node = node_of_the_pod(&cluster);
    disconnect(&mut cluster, &node);
    for _ in 0..60 {
        pass(&mut cluster, 100);
    }
    assert!(is_ending(&cluster.pods()[0].metadata));
    cluster.beat(&node);
    cluster.settle();
    for _ in 0..300 {
        pass(&mut cluster, 100);
        assert_eq!(cluster.pods().len(), 1, "it runs until its agent says otherwise");
    }
    cluster.live(2);
    assert_eq!(cluster.ready(), 1);
}

#[test]
fn the_loss_of_its_node_object_does_not_hurry_it() {
    let mut cluster = unique(3, 3);
    let node = node_of_the_pod(&cluster);
    disconnect(&mut cluster, &node);
    cluster.remove(timonier_proto::Kind::Node, &node);
    for _ in 0..140 {
        pass(&mut cluster, 100);
        assert_eq!(cluster.pods().len(), 1);
    }
    for _ in 0..50 {
        pass(&mut cluster, 100);
    }
    assert_ne!(node_of_the_pod(&cluster), node);
}

/// An agent as far as leases go: what runs on it, and since when it has had none.
#[derive(Default)]
struct Agent {
    connected: bool,
    lease: Option<Timestamp>,
    running: BTreeMap<String, String>,
}

/// Agents come and go at random; each runs what it is told while it has a lease. At no time do two
/// run the same.
#[test]
fn never_two_whatever_comes_and_goes() {
    let mut moved_in_all = 0;
    for seed in 0..12 {
        let mut cluster = unique(seed, 4);
        let mut random = Random::new(seed);
        let mut agents: BTreeMap<String, Agent> = (1..=4)
            .map(|n| (format!("n{n}"), Agent { connected: true, ..Agent::default() }))
            .collect();
        let mut moved = 0;
        let mut last = String::new();
        for _ in 0..2_000 {
            cluster.now += SignedDuration::from_millis(100);
            for (name, agent) in &mut agents {
                if random.next_u64().is_multiple_of(120) {
                    agent.connected = !agent.connected;
                }
                step(&mut cluster, name, agent);
            }
            pass(&mut cluster, 0);
            let running: Vec<&String> = agents.values().flat_map(|a| a.running.values()).collect();
            assert!(running.len() <= 1, "seed {seed}: {running:?} run at once");
            if let Some(one) = running.first().filter(|one| ***one != last) {
                last = (*one).clone();
                moved += 1;
            }
        }
        moved_in_all += moved;
    }
    assert!(moved_in_all > 30, "it moved {moved_in_all} times only");
}

fn step(cluster: &mut Cluster, name: &str, agent: &mut Agent) {
    let fence_ms = cluster.settings.fence_after_ms;
    if let Some(signal) = cluster.telemetry.nodes.get_mut(name) {
        signal.connected = agent.connected;
        if agent.connected {
            signal.last_beat = cluster.now;
        }
    }
    cluster.signalled();
    let alive = cluster.get::<Node>(name).is_some_and(|n| node_ready_status(n) != "Unknown");
    if agent.connected && alive {
        agent.lease = Some(cluster.now);
    }
    let age_ms =
        agent.lease.map_or(i64::MAX, |at| cluster.now.duration_since(at).as_millis() as i64);
    if age_ms > fence_ms + FENCE_GRACE_MS as i64 {
        agent.running.clear();
    }
    if !agent.connected {
        return;
    }
    let mine: Vec<_> =
        cluster.pods().into_iter().filter(|pod| node_of(pod) == Some(name)).collect();
    agent.running.retain(|uid, _| mine.iter().any(|pod| uid_of(&pod.metadata) == uid));
    for pod in mine {
        let uid = uid_of(&pod.metadata).to_owned();
        if is_active(&pod) {
            if age_ms < fence_ms {
                agent.running.insert(uid.clone(), format!("{uid} on {name}"));
            }
        } else {
            agent.running.remove(&uid);
        }
        let pod: &Pod = &pod;
        cluster.agent(pod);
    }
}

#[test]
fn a_node_lost_again_and_again_is_avoided() {
    let mut cluster = Cluster::with_nodes(5, 2);
    cluster.live(7);
    for _ in 0..3 {
        disconnect(&mut cluster, "n1");
        pass(&mut cluster, 3_200);
        cluster.beat("n1");
        cluster.settle();
    }
    assert!(
        cluster.events.iter().any(|e| e.starts_with("NodeFlapping: Node n1 was lost 3 times")),
        "{:#?}",
        cluster.events
    );
    cluster.deployment("web", 4, json!({}));
    cluster.live(2);
    assert!(cluster.spread()["n2"] >= 3, "{:?}", cluster.spread());
    cluster.pass(400_000);
    cluster.settle_wholly();
    cluster.deployment("later", 4, json!({}));
    cluster.live(2);
    assert!(cluster.spread()["n1"] >= 2, "it is forgiven: {:?}", cluster.spread());
}

/// The clock of the next leader shows something else: what the last one dated says nothing then.
#[test]
fn no_clock_that_is_set_hurries_it_or_holds_it_up() {
    for by_hours in [-2, 2] {
        let mut cluster = unique(4, 4);
        let node = node_of_the_pod(&cluster);
        disconnect(&mut cluster, &node);
        for _ in 0..60 {
            pass(&mut cluster, 100);
        }
        assert!(is_ending(&cluster.pods()[0].metadata));
        let by = SignedDuration::from_hours(by_hours);
        cluster.now += by;
        for signal in cluster.telemetry.nodes.values_mut() {
            signal.last_beat += by;
        }
        cluster.telemetry.since = cluster.now;
        cluster.resync();
        let mut waited_ms = 0;
        while cluster.pods().iter().all(|pod| node_of(pod) == Some(&node)) {
            pass(&mut cluster, 100);
            waited_ms += 100;
            assert!(waited_ms < 30_000, "set by {by_hours} h, it is never replaced");
        }
        // The fence time and the margin.
        assert!(waited_ms >= 15_000, "set by {by_hours} h, it was replaced after {waited_ms} ms");
    }
}
