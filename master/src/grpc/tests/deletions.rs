//! What a deletion ends, and what it leaves.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn deletions_end_what_they_should() {
    let mut bench = Bench::start().await;
    // Nothing runs of a pod without a node.
    let mut held = pod("p");
    held["spec"]["nodeSelector"] = json!({"no": "where"});
    let made = bench.create(held.clone()).await.unwrap();
    let other = DeleteRequest {
        r#ref: reference("Pod", "", "p"),
        uid: "another".into(),
        ..Default::default()
    };
    refused(
        bench.client.delete(other).await,
        expect!["Conflict: pod default/p is another incarnation by now (its uid differs)"],
    );
    assert!(bench.delete("Pod", "p").await.unwrap());
    // On a node, the agent has the last word.
    bench.create(node("n1")).await.unwrap();
    let mut bound = pod("q");
    bound["spec"]["nodeName"] = json!("n1");
    bench.create(bound).await.unwrap();
    let request = DeleteRequest {
        r#ref: reference("Pod", "", "q"),
        grace_period_seconds: Some(7),
        ..Default::default()
    };
    let reply = bench.client.evict(request.clone()).await.unwrap().into_inner();
    assert!(!reply.gone);
    assert_eq!(tree(&reply.json)["metadata"]["deletionGracePeriodSeconds"], 7);
    let now = DeleteRequest { grace_period_seconds: Some(0), ..request };
    assert!(bench.client.delete(now).await.unwrap().into_inner().gone);

    // Left behind without its owner.
    let owner = bench.create(deployment("web", 0)).await.unwrap();
    let mut orphan = held;
    orphan["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "Deployment",
        "name": "web", "uid": owner["metadata"]["uid"], "controller": true}]);
    bench.create(orphan).await.unwrap();
    let request = DeleteRequest {
        r#ref: reference("Deployment", "", "web"),
        propagation: "Orphan".into(),
        ..Default::default()
    };
    assert!(bench.client.delete(request).await.unwrap().into_inner().gone);
    let left = bench.client.get(get("Pod", "", "p")).await.unwrap().into_inner();
    assert_eq!(tree(&left.json)["metadata"]["ownerReferences"].as_array().map_or(0, Vec::len), 0);
    assert_ne!(tree(&left.json)["metadata"]["uid"], made["metadata"]["uid"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_ends_takes_nothing_more_in() {
    let mut bench = Bench::start().await;
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}});
    bench.create(space).await.unwrap();
    // A pod on a node that never answers keeps the namespace from being gone.
    let mut held = pod("p");
    held["metadata"]["namespace"] = json!("team");
    held["spec"]["nodeName"] = json!("silent");
    bench.create(node("silent")).await.unwrap();
    bench.create(held).await.unwrap();
    assert!(!bench.delete("Namespace", "team").await.unwrap());
    let mut late = config_map("late", "1");
    late["metadata"]["namespace"] = json!("team");
    refused(
        bench.create(late).await,
        expect![
            "Forbidden: create configmap team/late: unable to create new content in namespace team because it is being terminated"
        ],
    );
}
