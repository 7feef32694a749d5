//! Each rule refuses what it is for.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use timonier_proto::Kinded;

use super::*;
use crate::harness::{Cluster, object};

fn cluster() -> Cluster {
    let mut cluster = Cluster::with_nodes(1, 1);
    cluster.deployment("web", 4, json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}}));
    cluster.live(2);
    cluster
}

fn refused(cluster: &mut Cluster, ops: Vec<Op>) -> String {
    let world = cluster.world();
    match check(&world, &Plan { ops, ..Plan::default() }) {
        Ok(()) => "fine".to_owned(),
        Err(violation) => violation.to_string(),
    }
}

#[test]
fn plans_that_must_not_be() {
    let mut cluster = cluster();
    let pod = Pod::clone(&cluster.pods()[0]);
    let key = crate::object::key_of(&pod);
    let remove = || Op::Remove { key: key.clone(), uid: None };
    assert!(refused(&mut cluster, vec![remove()]).contains("an agent that answers may run it"));
    let mark = || Op::MarkDeleted {
        key: key.clone(),
        uid: None,
        at: Timestamp::UNIX_EPOCH,
        grace_seconds: 0,
    };
    assert_eq!(refused(&mut cluster, vec![mark()]), "fine");
    assert!(refused(&mut cluster, vec![mark(), mark()]).ends_with("is written twice in one plan"));
    let mut pending = pod.clone();
    pending.status.as_mut().unwrap().phase = Some("Pending".to_owned());
    let back = refused(&mut cluster, vec![Op::ReplaceStatus(pending.into_object())]);
    assert!(back.ends_with("would go back from Running to Pending"), "{back}");
    let bind = Op::Bind {
        pod: key.clone(),
        uid: String::new(),
        node: "n9".to_owned(),
        at: Timestamp::UNIX_EPOCH,
    };
    assert!(refused(&mut cluster, vec![bind]).ends_with("to node n9, which is not there"));
    let nameless: Pod = object(json!({"metadata": {"namespace": "default"}}));
    let nameless = refused(&mut cluster, vec![Op::Create(nameless.into_object())]);
    assert!(nameless.ends_with("without a name"), "{nameless}");
    let many = (0..700).map(|_| mark()).collect();
    assert_eq!(refused(&mut cluster, many), "the plan has 700 operations");
}

#[test]
fn rollouts_that_stray() {
    let mut cluster = cluster();
    let sized = |replicas| {
        let mut set = ReplicaSet::clone(&cluster.sets()[0]);
        set.spec.as_mut().unwrap().replicas = Some(replicas);
        vec![Op::Replace(set.into_object())]
    };
    let (more, fewer, allowed) = (sized(6), sized(2), sized(3));
    assert_eq!(
        refused(&mut cluster, more),
        "deployment default/web would have 6 pods, more than 5"
    );
    assert_eq!(
        refused(&mut cluster, fewer),
        "deployment default/web would keep 2 available pods, fewer than 3"
    );
    assert_eq!(refused(&mut cluster, allowed), "fine");
}
