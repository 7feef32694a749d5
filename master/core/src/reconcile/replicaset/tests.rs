//! Pods made, taken over, let go, and given up in the right order.

use serde_json::{Value, json};

use super::*;
use crate::harness::{Cluster, object};
use crate::op::Txn;

fn set(cluster: &mut Cluster, replicas: i32) {
    cluster.create(object::<ReplicaSet>(json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web", "tier": "front"}},
                "spec": {"containers": [{"name": "c", "image": "web:1"}]},
            },
        },
    })));
}

fn stray(cluster: &mut Cluster, name: &str) {
    cluster.create(object::<Pod>(json!({
        "metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "web:1"}]},
    })));
}

fn status(cluster: &Cluster) -> (i32, i32, i32, i32) {
    let status = cluster.get::<ReplicaSet>("web").unwrap().status.clone().unwrap();
    let count = |n: Option<i32>| n.unwrap_or(0);
    let full = count(status.fully_labeled_replicas);
    (status.replicas, full, count(status.ready_replicas), count(status.available_replicas))
}

#[test]
fn pods_carry_the_template_and_their_owner() {
    let mut cluster = Cluster::with_nodes(1, 2);
    set(&mut cluster, 3);
    cluster.settle_wholly();
    assert_eq!(status(&cluster), (3, 3, 0, 0));
    let uid = cluster.get::<ReplicaSet>("web").unwrap().metadata.uid.clone().unwrap();
    for pod in cluster.pods() {
        let name = pod.metadata.name.clone().unwrap();
        assert!(name.starts_with("web-") && name.len() == 9, "{name}");
        let owner = controller_of(&pod.metadata).unwrap();
        assert_eq!((owner.kind.as_str(), &owner.uid), ("ReplicaSet", &uid));
        assert_eq!(pod.metadata.labels.as_ref().unwrap()["tier"], "front");
    }
    cluster.live(2);
    assert_eq!(status(&cluster), (3, 3, 3, 3));
}

#[test]
fn a_stray_pod_is_taken_over_instead_of_a_new_one_made() {
    let mut cluster = Cluster::with_nodes(2, 1);
    stray(&mut cluster, "mine");
    cluster.settle();
    set(&mut cluster, 2);
    cluster.settle_wholly();
    assert_eq!(cluster.active(), 2);
    assert!(controller_of(&cluster.get::<Pod>("mine").unwrap().metadata).is_some());
    // One more than asked for: taken over, and one is given up.
    stray(&mut cluster, "late");
    cluster.settle_wholly();
    assert_eq!(cluster.active(), 2);
    assert!(cluster.pods().iter().all(|p| controller_of(&p.metadata).is_some()));
}

#[test]
fn a_pod_whose_labels_are_changed_is_let_go_and_replaced() {
    let mut cluster = Cluster::with_nodes(3, 1);
    set(&mut cluster, 2);
    cluster.live(2);
    let name = cluster.pods()[0].metadata.name.clone().unwrap();
    cluster
        .edit::<Pod>(&name, |p| p.metadata.labels = Some([("app".into(), "debug".into())].into()));
    cluster.settle_wholly();
    assert!(controller_of(&cluster.get::<Pod>(&name).unwrap().metadata).is_none());
    assert_eq!(cluster.active(), 3);
    assert_eq!(status(&cluster).0, 2);
}

#[test]
fn a_finished_pod_is_replaced_and_left_to_look_at() {
    let mut cluster = Cluster::with_nodes(4, 1);
    set(&mut cluster, 1);
    cluster.live(2);
    let mut pod = Pod::clone(&cluster.pods()[0]);
    pod.status.as_mut().unwrap().phase = Some("Failed".into());
    cluster.commit(Txn::of(vec![Op::ReplaceStatus(pod.into_object())])).unwrap();
    cluster.live(2);
    assert_eq!((cluster.pods().len(), cluster.ready()), (2, 1));
}

#[test]
fn more_than_a_plan_holds_comes_in_parts() {
    let mut cluster = Cluster::with_nodes(5, 3);
    set(&mut cluster, 1_200);
    cluster.settle_wholly();
    assert_eq!(cluster.active(), 1_200);
    assert_eq!(cluster.spread().values().collect::<Vec<_>>(), [&400, &400, &400]);
    cluster.edit::<ReplicaSet>("web", |s| s.spec.as_mut().unwrap().replicas = Some(6));
    cluster.settle_wholly();
    assert_eq!(cluster.active(), 6);
    assert_eq!(cluster.spread().values().collect::<Vec<_>>(), [&2, &2, &2]);
}

fn pod(name: &str, node: Option<&str>, phase: &str, ready_second: Option<i64>) -> Arc<Pod> {
    let mut conditions: Vec<Value> = Vec::new();
    if let Some(second) = ready_second {
        let at = format!("2026-11-21T10:00:{second:02}Z");
        conditions.push(json!({"type": "Ready", "status": "True", "lastTransitionTime": at}));
    }
    Arc::new(object(json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": node, "containers": []},
        "status": {"phase": phase, "conditions": conditions},
    })))
}

#[test]
fn those_that_lose_the_least_go_first() {
    let pods = vec![
        pod("old", Some("n1"), "Running", Some(1)),
        pod("new", Some("n2"), "Running", Some(9)),
        pod("starting", Some("n2"), "Running", None),
        pod("pending", Some("n1"), "Pending", None),
        pod("nowhere", None, "Pending", None),
        pod("crowded", Some("n1"), "Running", Some(2)),
    ];
    let order: Vec<&str> =
        victims::choose(&pods, 9).into_iter().map(|i| name_of(&pods[i].metadata)).collect();
    assert_eq!(order, ["nowhere", "pending", "starting", "crowded", "new", "old"]);
}

#[test]
fn lists_of_names_stay_short() {
    let names = |n: usize| (0..n).map(|i| format!("p{i}")).collect::<Vec<_>>();
    assert_eq!(named(&names(1)), "pod: p0");
    assert_eq!(named(&names(2)), "pods: p0, p1");
    assert_eq!(named(&names(200)), "pods: p0, p1, p2, p3, p4 and 195 more");
}
