//! The small loops, in a cluster that lives.

use k8s_openapi::api::core::v1::{Endpoints, Event, Namespace, Pod, Service};
use serde_json::json;
use timonier_proto::{Kind, Kinded, ObjectKey};

use crate::harness::{Cluster, object};
use crate::object::is_ending;
use crate::op::{Op, Txn};

fn mark(cluster: &mut Cluster, key: ObjectKey) {
    let at = cluster.now;
    let op = Op::MarkDeleted { key, uid: None, at, grace_seconds: 0 };
    cluster.commit(Txn::of(vec![op])).unwrap();
}

fn published(cluster: &Cluster) -> (usize, usize) {
    let endpoints = cluster.get::<Endpoints>("web").unwrap();
    let count = |not_ready: bool| {
        let subsets = endpoints.subsets.iter().flatten();
        let lists = subsets
            .map(|s| if not_ready { s.not_ready_addresses.as_ref() } else { s.addresses.as_ref() });
        lists.flatten().map(Vec::len).sum()
    };
    (count(false), count(true))
}

#[test]
fn endpoints_are_published_in_few_writes() {
    let mut cluster = Cluster::with_nodes(1, 3);
    cluster.service("web");
    cluster.deployment("web", 30, json!({}));
    cluster.settle_wholly();
    assert_eq!(published(&cluster), (0, 0));
    let revision = |cluster: &Cluster| {
        cluster.get::<Endpoints>("web").unwrap().metadata.resource_version.clone()
    };
    let before = revision(&cluster);
    cluster.agents();
    cluster.settle();
    assert_eq!(revision(&cluster), before, "the next write waits for its time");
    cluster.pass(500);
    cluster.settle();
    assert_eq!(published(&cluster), (30, 0));
    cluster.remove(Kind::Service, "web");
    cluster.settle_wholly();
    assert!(cluster.get::<Endpoints>("web").is_none(), "they go with their service");
}

#[test]
fn an_ending_pod_is_no_endpoint() {
    let mut cluster = Cluster::with_nodes(2, 1);
    cluster.service("web");
    cluster.deployment("web", 2, json!({}));
    cluster.live(2);
    let ready = |cluster: &Cluster| {
        let service = cluster.get::<Service>("web").unwrap();
        crate::endpoints::of(&cluster.snapshot, service).ports[0].ready.clone()
    };
    assert_eq!(ready(&cluster).len(), 2);
    assert!(ready(&cluster).iter().all(|e| e.port == 8080 && e.node == "n1"));
    let pod = cluster.pods()[0].metadata.name.clone().unwrap();
    mark(&mut cluster, ObjectKey::new(Kind::Pod, "default", &pod));
    assert!(ready(&cluster).iter().all(|e| e.pod != pod));
}

#[test]
fn a_port_name_is_each_pods_own() {
    let mut cluster = Cluster::new(3);
    for (name, port) in [("a", 80), ("b", 8080), ("c", 0)] {
        let ports =
            if port == 0 { json!([]) } else { json!([{"name": "http", "containerPort": port}]) };
        cluster.create(object::<Pod>(json!({
            "metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "ports": ports}]},
            "status": {"podIP": format!("10.244.1.{port}"), "phase": "Running",
                       "conditions": [{"type": "Ready", "status": if name == "b" { "False" } else { "True" }}]},
        })));
    }
    let service: Service = object(json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
    }));
    let endpoints = crate::endpoints::of(&cluster.snapshot, &service).ports.remove(0);
    let plain = |list: Vec<crate::endpoints::Endpoint>| {
        list.into_iter().map(|e| (e.pod, e.port)).collect::<Vec<_>>()
    };
    assert_eq!(plain(endpoints.ready), [("a".to_owned(), 80)]);
    assert_eq!(plain(endpoints.not_ready), [("b".to_owned(), 8080)]);
}

#[test]
fn a_namespace_ends_with_all_that_is_in_it() {
    let mut cluster = Cluster::with_nodes(4, 2);
    cluster.service("web");
    cluster.deployment("web", 4, json!({}));
    cluster.live(2);
    mark(&mut cluster, ObjectKey::cluster(Kind::Namespace, "default"));
    cluster.settle();
    assert!(cluster.pods().iter().all(|p| is_ending(&p.metadata)), "nothing new is made in it");
    assert_eq!(cluster.pods().len(), 4, "the agents have not stopped them yet");
    assert!(cluster.get::<Namespace>("default").is_some());
    cluster.agents();
    cluster.settle_wholly();
    assert!(cluster.get::<Namespace>("default").is_none());
    assert_eq!(cluster.snapshot.list::<Event>(None).count(), 0);
}

#[test]
fn foreground_deletion_waits_for_the_dependents() {
    let mut cluster = Cluster::with_nodes(5, 2);
    cluster.deployment("web", 3, json!({}));
    cluster.live(2);
    mark(&mut cluster, ObjectKey::new(Kind::Deployment, "default", "web"));
    cluster.settle_wholly();
    assert_eq!((cluster.active(), cluster.pods().len(), cluster.sets().len()), (0, 3, 1));
    assert!(cluster.get::<k8s_openapi::api::apps::v1::Deployment>("web").is_some());
    cluster.agents();
    cluster.settle_wholly();
    assert_eq!((cluster.pods().len(), cluster.sets().len()), (0, 0));
    assert!(cluster.get::<k8s_openapi::api::apps::v1::Deployment>("web").is_none());
}

#[test]
fn an_orphan_stays() {
    let mut cluster = Cluster::with_nodes(6, 1);
    cluster.deployment("web", 2, json!({}));
    cluster.live(2);
    for pod in cluster.pods() {
        let name = pod.metadata.name.clone().unwrap();
        // As the door does it: the reference goes in the same breath as the owner.
        cluster.edit::<Pod>(&name, |p| {
            p.metadata.owner_references = None;
            p.metadata.labels = None;
        });
    }
    cluster.remove(Kind::Deployment, "web");
    cluster.settle_wholly();
    let kept = cluster.pods().iter().filter(|p| p.metadata.labels.is_none()).count();
    assert_eq!(kept, 2);
}

#[test]
fn old_events_go() {
    let mut cluster = Cluster::with_nodes(7, 1);
    cluster.deployment("web", 2, json!({}));
    cluster.live(2);
    assert!(cluster.snapshot.list::<Event>(None).count() > 0);
    cluster.pass(3_500_000);
    cluster.settle();
    assert!(cluster.snapshot.list::<Event>(None).count() > 0);
    cluster.pass(200_000);
    cluster.settle_wholly();
    assert_eq!(cluster.snapshot.list::<Event>(None).count(), 0);
}

#[test]
fn finished_pods_are_kept_up_to_a_bound() {
    let mut cluster = Cluster::with_nodes(8, 1);
    for index in 0..1_010 {
        cluster.create(object::<Pod>(json!({
            "metadata": {"name": format!("p{index}"), "namespace": "default"},
            "spec": {"nodeName": "n1", "containers": []},
            "status": {"phase": "Succeeded"},
        })));
    }
    cluster.settle_wholly();
    assert_eq!(cluster.pods().len(), 1_000);
}

#[test]
fn a_pod_that_finished_while_ending_waits_for_its_agents_word() {
    let mut cluster = Cluster::with_nodes(9, 4);
    cluster.deployment("web", 4, json!({}));
    cluster.live(2);
    let mut pod = Pod::clone(&cluster.pods()[0]);
    let node = pod.spec.as_ref().unwrap().node_name.clone().unwrap();
    let key = crate::object::key_of(&pod);
    mark(&mut cluster, key.clone());
    pod.status.as_mut().unwrap().phase = Some("Succeeded".to_owned());
    cluster.commit(Txn::of(vec![Op::ReplaceStatus(pod.into_object())])).unwrap();
    cluster.settle_wholly();
    assert!(cluster.snapshot.object(&key).is_some(), "its containers may still be there");
    cluster.telemetry.nodes.get_mut(&node).unwrap().connected = false;
    cluster.pass(10_000);
    cluster.settle_wholly();
    assert!(cluster.snapshot.object(&key).is_none(), "nobody will say so any more");
}
