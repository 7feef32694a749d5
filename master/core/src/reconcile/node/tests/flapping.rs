//! Nodes that go and come again and again: what they cost is bounded, however long they do.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use k8s_openapi::api::core::v1::Pod;

use super::{disconnect, pass, running};
use crate::harness::Cluster;
use crate::object::uid_of;

const FLAPS: usize = 20;

/// Every pod that there is, and those to come.
fn all_pods(cluster: &mut Cluster) -> Rc<RefCell<BTreeSet<String>>> {
    let seen: Rc<RefCell<BTreeSet<String>>> = Rc::default();
    let noted = Rc::clone(&seen);
    cluster.watch = Box::new(move |snapshot| {
        let pods = snapshot.list::<Pod>(None).map(|pod| uid_of(&pod.metadata).to_owned());
        noted.borrow_mut().extend(pods);
    });
    (cluster.watch)(&cluster.snapshot);
    seen
}

/// Away for so long, then back for two seconds.
fn flap(cluster: &mut Cluster, node: &str, away_ms: i64) {
    disconnect(cluster, node);
    for _ in 0..away_ms / 100 {
        pass(cluster, 100);
    }
    cluster.beat(node);
    cluster.live(2);
}

/// It is lost after 3 s, and its pods are replaced 2 s later.
#[test]
fn a_node_that_is_back_in_time_costs_no_pod_however_often_it_goes() {
    for away_ms in [2_900, 3_100, 4_900] {
        let mut cluster = running(1, 4, 8);
        let seen = all_pods(&mut cluster);
        let revision = cluster.snapshot.revision;
        for _ in 0..FLAPS {
            flap(&mut cluster, "n2", away_ms);
            assert_eq!(cluster.ready(), 8, "away for {away_ms} ms");
        }
        assert_eq!(seen.borrow().len(), 8, "away for {away_ms} ms");
        let is_lost = away_ms > cluster.settings.node_grace_ms;
        assert_eq!(cluster.snapshot.revision > revision, is_lost, "away for {away_ms} ms");
    }
}

/// Away for long enough to lose their pods each time, one after the other: what leaves one of them
/// may go to the other once, and then no more.
#[test]
fn pods_do_not_wander_between_nodes_that_flap() {
    for seed in 1..=10 {
        let mut cluster = running(seed, 6, 12);
        let seen = all_pods(&mut cluster);
        for _ in 0..FLAPS {
            for node in ["n1", "n2"] {
                flap(&mut cluster, node, 6_000);
            }
        }
        let replaced = seen.borrow().len() - 12;
        assert!(replaced <= 8, "seed {seed}: {replaced} pods were replaced, of 4 on the two nodes");
        assert_eq!(cluster.ready(), 12, "seed {seed}");
        let flapping = cluster.events.iter().filter(|event| event.starts_with("NodeFlapping"));
        assert!(flapping.count() > 0, "seed {seed}: {:?}", cluster.events);
    }
}
