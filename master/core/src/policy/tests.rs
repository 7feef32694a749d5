//! Namespaces with bounds, in a cluster that lives.

use expect_test::{Expect, expect};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{LimitRange, Pod, ResourceQuota};
use serde_json::{Value, json};
use timonier_proto::{Kind, Kinded, Object};

use super::*;
use crate::harness::{Cluster, object};
use crate::op::{Op, Rejection, Txn};

fn quota(hard: Value) -> ResourceQuota {
    object(json!({"metadata": {"name": "q", "namespace": "default"}, "spec": {"hard": hard}}))
}

fn range(limits: Value) -> LimitRange {
    object(json!({"metadata": {"name": "r", "namespace": "default"}, "spec": {"limits": limits}}))
}

fn pod(name: &str, resources: Value) -> Pod {
    object(json!({"metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"containers": [{"name": "c", "resources": resources}]}}))
}

fn refused(cluster: &Cluster, pod: Pod, expected: Expect) {
    let error = admit(&cluster.snapshot, None, &mut pod.into_object()).unwrap_err();
    expected.assert_eq(&error.message);
}

#[test]
fn a_quota_counts_objects_and_what_pods_ask_for() {
    let mut cluster = Cluster::new(1);
    cluster.create(quota(json!({"pods": "2", "requests.cpu": "1", "limits.memory": "1Gi",
        "count/configmaps": "1", "services.nodeports": "0"})));
    let small = json!({"requests": {"cpu": "400m"}, "limits": {"memory": "256Mi"}});
    cluster.create(pod("a", small.clone()));
    refused(
        &cluster,
        pod("b", json!({"limits": {"memory": "1Mi"}})),
        expect![[r#"pods "b" is forbidden: failed quota: q: must specify requests.cpu for: c"#]],
    );
    let large = json!({"requests": {"cpu": "700m"}, "limits": {"memory": "1Gi"}});
    refused(
        &cluster,
        pod("b", large),
        expect![[
            r#"pods "b" is forbidden: exceeded quota: q, requested: limits.memory=1Gi,requests.cpu=700m, used: limits.memory=256Mi,requests.cpu=400m, limited: limits.memory=1Gi,requests.cpu=1"#
        ]],
    );
    let fits = pod("b", small.clone());
    admit(&cluster.snapshot, None, &mut fits.clone().into_object()).unwrap();
    cluster.create(fits);
    refused(
        &cluster,
        pod("d", json!({"requests": {"cpu": "0"}, "limits": {"memory": "0"}})),
        expect![[
            r#"pods "d" is forbidden: exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2"#
        ]],
    );
    // Whoever did not ask is stopped where it is applied.
    let late = Txn::of(vec![Op::Create(pod("d", small).into_object())]);
    assert!(matches!(cluster.commit(late), Err(Rejection::OverQuota { .. })));
    cluster.settle();
    let stored = cluster.get::<ResourceQuota>("q").unwrap();
    let used = stored.status.as_ref().and_then(|s| s.used.clone()).unwrap();
    assert_eq!(used["pods"].0, "2");
    assert_eq!(used["requests.cpu"].0, "800m");
    assert_eq!(used["limits.memory"].0, "512Mi");
}

#[test]
fn a_replica_set_makes_as_many_pods_as_fit_and_says_why_no_more() {
    let mut cluster = Cluster::with_nodes(1, 1);
    cluster.create(quota(json!({"pods": "3"})));
    cluster.deployment("web", 5, json!({}));
    cluster.settle();
    assert_eq!(cluster.pods().len(), 3);
    let told = cluster.events.iter().any(|event| {
        event.contains("FailedCreate") && event.contains("exceeded quota: q, requested: pods=1")
    });
    assert!(told, "{:?}", cluster.events);
    let set = cluster.snapshot.list::<ReplicaSet>(Some("default")).next().unwrap();
    assert_eq!(set.status.as_ref().unwrap().replicas, 3);
    cluster.remove(Kind::ResourceQuota, "q");
    cluster.pass(60_000);
    cluster.settle();
    assert_eq!(cluster.pods().len(), 5);
}

#[test]
fn a_limit_range_fills_in_and_bounds() {
    let mut cluster = Cluster::new(1);
    cluster.create(range(json!([{"type": "Container", "default": {"cpu": "500m"},
        "defaultRequest": {"cpu": "250m"}, "max": {"cpu": "1"}, "min": {"cpu": "100m"},
        "maxLimitRequestRatio": {"cpu": "4"}}])));
    let mut filled: Object = pod("a", json!({})).into_object();
    admit(&cluster.snapshot, None, &mut filled).unwrap();
    let Object::Pod(filled) = filled else { unreachable!("a pod stays one") };
    let resources = filled.spec.as_ref().unwrap().containers[0].resources.clone().unwrap();
    assert_eq!(resources.limits.unwrap()["cpu"].0, "500m");
    assert_eq!(resources.requests.unwrap()["cpu"].0, "250m");
    refused(
        &cluster,
        pod("b", json!({"limits": {"cpu": "2"}})),
        expect![[
            r#"pods "b" is forbidden: maximum cpu usage per Container is 1, but limit is more"#
        ]],
    );
    refused(
        &cluster,
        pod("b", json!({"limits": {"cpu": "1"}, "requests": {"cpu": "50m"}})),
        expect![[
            r#"pods "b" is forbidden: [minimum cpu usage per Container is 100m, but request is less, cpu max limit to request ratio per Container is 4, but provided ratio is more]"#
        ]],
    );
}
