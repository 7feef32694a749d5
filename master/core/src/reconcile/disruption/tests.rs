//! Budgets in a living cluster, and evictions that ask them.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::json;
use timonier_proto::ObjectKey;

use crate::disruption::{Answer, evict};
use crate::harness::{Cluster, object};
use crate::hash::Random;
use crate::object::{is_active, is_ready, key_of};
use crate::op::{Op, Txn};

fn budget(cluster: &mut Cluster, spec: serde_json::Value) {
    cluster.create(object::<PodDisruptionBudget>(json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": spec,
    })));
}

fn said(cluster: &Cluster) -> String {
    let status = cluster.get::<PodDisruptionBudget>("web").unwrap().status.clone().unwrap();
    let condition = &status.conditions.as_ref().unwrap()[0];
    format!(
        "{} of {} healthy, {} needed, {} may go, {} {}",
        status.current_healthy,
        status.expected_pods,
        status.desired_healthy,
        status.disruptions_allowed,
        condition.status,
        condition.reason,
    )
}

/// As the door does it.
fn try_evict(cluster: &mut Cluster, pod: &Pod) -> Result<(), String> {
    match evict(&cluster.snapshot, pod, cluster.now) {
        Answer::Allowed { mut ops, preconditions } => {
            let (key, uid) = (key_of(pod), pod.metadata.uid.clone());
            ops.push(Op::MarkDeleted { key, uid, at: cluster.now, grace_seconds: 30 });
            cluster.commit(Txn { preconditions, ..Txn::of(ops) }).map_err(|e| e.to_string())
        }
        Answer::Refused(why) => Err(why),
        Answer::TooManyBudgets(names) => Err(format!("{names:?}")),
    }
}

#[test]
fn a_status_follows_its_pods() {
    let selector = json!({"matchLabels": {"app": "web"}});
    for (spec, expected) in [
        (json!({"minAvailable": 2}), "4 of 4 healthy, 2 needed, 2 may go, True SufficientPods"),
        (json!({"minAvailable": 9}), "4 of 4 healthy, 9 needed, 0 may go, False InsufficientPods"),
        (json!({"minAvailable": "70%"}), "4 of 4 healthy, 3 needed, 1 may go, True SufficientPods"),
        (json!({"maxUnavailable": 1}), "4 of 4 healthy, 3 needed, 1 may go, True SufficientPods"),
        (
            json!({"maxUnavailable": "30%"}),
            "4 of 4 healthy, 2 needed, 2 may go, True SufficientPods",
        ),
        (
            json!({"maxUnavailable": 0}),
            "4 of 4 healthy, 4 needed, 0 may go, False InsufficientPods",
        ),
    ] {
        let mut cluster = Cluster::with_nodes(1, 3);
        cluster.deployment("web", 4, json!({}));
        let mut spec = spec;
        spec["selector"] = selector.clone();
        budget(&mut cluster, spec.clone());
        cluster.live(3);
        cluster.settle_wholly();
        assert_eq!(said(&cluster), expected, "{spec}");
    }
}

#[test]
fn the_number_wanted_is_the_deployments() {
    let mut cluster = Cluster::with_nodes(2, 3);
    cluster.deployment("web", 4, json!({}));
    budget(&mut cluster, json!({"maxUnavailable": 1, "selector": {"matchLabels": {"app": "web"}}}));
    cluster.live(3);
    cluster.broken_images.insert("web:1".into());
    cluster.scale("web", 6);
    cluster.live(2);
    cluster.settle_wholly();
    assert_eq!(said(&cluster), "4 of 6 healthy, 5 needed, 0 may go, False InsufficientPods");
}

#[test]
fn evictions_never_take_more_than_the_budget_has() {
    for seed in 0..20 {
        let mut cluster = Cluster::with_nodes(seed, 4);
        cluster.deployment("web", 6, json!({}));
        let spec = json!({"minAvailable": 4, "selector": {"matchLabels": {"app": "web"}}});
        budget(&mut cluster, spec);
        cluster.live(3);
        let mut random = Random::new(seed);
        let (mut evicted, mut refused) = (0, 0);
        for round in 0..60 {
            let pods: Vec<_> = cluster.pods().into_iter().filter(|p| is_active(p)).collect();
            let pod = &pods[random.next_u64() as usize % pods.len()];
            match try_evict(&mut cluster, pod) {
                Ok(()) => evicted += 1,
                Err(why) => {
                    assert!(why.contains("needs 4 healthy pods"), "{why}");
                    refused += 1;
                }
            }
            // Whether the loops have looked or not.
            for _ in 0..random.next_u64() % 4 {
                cluster.step();
            }
            let healthy = cluster.pods().iter().filter(|p| is_active(p) && is_ready(p)).count();
            assert!(healthy >= 4, "seed {seed}, round {round}: {healthy} healthy");
            if random.next_u64().is_multiple_of(5) {
                cluster.live(1);
            }
        }
        assert!(evicted > 2 && refused > 2, "seed {seed}: {evicted} evicted, {refused} refused");
        cluster.live(3);
        cluster.settle_wholly();
        assert_eq!(said(&cluster), "6 of 6 healthy, 4 needed, 2 may go, True SufficientPods");
    }
}

#[test]
fn two_evictions_of_one_state_do_not_take_the_same() {
    let mut cluster = Cluster::with_nodes(3, 3);
    cluster.deployment("web", 3, json!({}));
    budget(&mut cluster, json!({"maxUnavailable": 1, "selector": {"matchLabels": {"app": "web"}}}));
    cluster.live(3);
    let pods = cluster.pods();
    let answers: Vec<Answer> =
        pods.iter().map(|pod| evict(&cluster.snapshot, pod, cluster.now)).collect();
    let mut done = 0;
    for (pod, answer) in pods.iter().zip(answers) {
        let Answer::Allowed { mut ops, preconditions } = answer else { panic!("{answer:?}") };
        let (key, uid) = (key_of(&**pod), pod.metadata.uid.clone());
        ops.push(Op::MarkDeleted { key, uid, at: cluster.now, grace_seconds: 30 });
        done += usize::from(cluster.commit(Txn { preconditions, ..Txn::of(ops) }).is_ok());
    }
    assert_eq!(done, 1);
}

#[test]
fn what_serves_nobody_may_always_go_and_two_budgets_are_one_too_many() {
    let mut cluster = Cluster::with_nodes(4, 2);
    cluster.deployment("web", 2, json!({}));
    let spec = json!({"minAvailable": 2, "selector": {"matchLabels": {"app": "web"}}});
    budget(&mut cluster, spec.clone());
    cluster.settle();
    let pending = cluster.pods().remove(0);
    assert!(matches!(evict(&cluster.snapshot, &pending, cluster.now), Answer::Allowed { .. }));
    cluster.live(3);
    let ready = cluster.pods().remove(0);
    assert!(try_evict(&mut cluster, &ready).is_err());
    cluster.create(object::<PodDisruptionBudget>(json!({
        "metadata": {"name": "all", "namespace": "default"}, "spec": {"selector": {}},
    })));
    let answer = evict(&cluster.snapshot, &ready, cluster.now);
    assert_eq!(answer, Answer::TooManyBudgets(vec!["all".into(), "web".into()]));
    cluster.remove(timonier_proto::Kind::PodDisruptionBudget, "all");
    assert!(
        cluster
            .snapshot
            .object(&ObjectKey::new(timonier_proto::Kind::PodDisruptionBudget, "default", "all"))
            .is_none()
    );
}
