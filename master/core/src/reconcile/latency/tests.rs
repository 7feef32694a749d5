//! The policy's table, and a whole autoscaler in a cluster.

use expect_test::expect;
use serde_json::json;
use timonier_proto::latency::{LatencyAutoscalerSpec, ScaleTargetRef};

use super::*;
use crate::harness::Cluster;
use crate::world::LatencySample;

fn spec() -> LatencyAutoscalerSpec {
    LatencyAutoscalerSpec {
        scale_target_ref: ScaleTargetRef {
            api_version: None,
            kind: "Deployment".into(),
            name: "web".into(),
        },
        latency_milliseconds: 100,
        step: Some(2),
        max_replicas: Some(6),
        cooldown_seconds: Some(5),
        scale_down_seconds: Some(20),
        ..Default::default()
    }
}

fn scaled_cluster(seed: u64) -> Cluster {
    let mut cluster = Cluster::with_nodes(seed, 2);
    cluster.deployment("web", 2, json!({}));
    cluster.live(2);
    let mut scaler = LatencyAutoscaler { spec: spec(), ..Default::default() };
    scaler.metadata.name = Some("web".into());
    scaler.metadata.namespace = Some("default".into());
    cluster.create(scaler);
    cluster.settle();
    cluster.events.clear();
    cluster
}

/// Every ready pod answers in that time, ten times in the last second.
fn measure(cluster: &mut Cluster, latency_us: u32) {
    let key = ObjectKey::new(Kind::LatencyAutoscaler, "default", "web");
    let samples: Vec<LatencySample> = (0..10)
        .map(|i| LatencySample {
            at: after_millis(cluster.now, -100 * i),
            latency_us,
            failed: false,
        })
        .collect();
    let pods = cluster.pods();
    let named = pods.iter().map(|p| (p.metadata.name.clone().unwrap(), samples.clone()));
    let named = named.collect();
    cluster.telemetry.latency.insert(key, named);
}

/// Seconds go by, with that latency all the time; the replicas wanted after each.
fn replicas_over(cluster: &mut Cluster, seconds: usize, latency_us: u32) -> Vec<i32> {
    let mut wanted = Vec::new();
    for _ in 0..seconds {
        cluster.pass(1_000);
        measure(cluster, latency_us);
        cluster.settle();
        cluster.agents();
        cluster.settle();
        let web = cluster.get::<Deployment>("web").unwrap();
        wanted.push(web.spec.as_ref().unwrap().replicas.unwrap());
    }
    wanted
}

#[test]
fn weak_grows_by_steps_up_to_the_maximum_and_good_takes_them_back() {
    let mut cluster = scaled_cluster(1);
    assert_eq!(replicas_over(&mut cluster, 3, 20_000), [2, 2, 2]);
    let grown = replicas_over(&mut cluster, 14, 250_000);
    assert_eq!(grown, [4, 4, 4, 4, 4, 4, 6, 6, 6, 6, 6, 6, 6, 6]);
    let shrunk = replicas_over(&mut cluster, 60, 20_000);
    assert_eq!(shrunk.iter().filter(|n| **n == 6).count(), 21, "{shrunk:?}");
    assert_eq!(shrunk.iter().filter(|n| **n == 4).count(), 21, "{shrunk:?}");
    assert_eq!(shrunk.last(), Some(&2), "never below what it began with");
    let scaler = cluster.get::<LatencyAutoscaler>("web").unwrap().status.clone().unwrap();
    assert_eq!(scaler.state.as_deref(), Some("Good"));
    assert_eq!(scaler.base_replicas, Some(2));
    let said: Vec<_> = cluster.events.iter().filter(|e| e.contains("latency")).cloned().collect();
    expect![[r#"
        SuccessfulRescale: latency 250.0 ms above 100 ms: scaled deployment web from 2 to 4
        SuccessfulRescale: latency 250.0 ms above 100 ms: scaled deployment web from 4 to 6
        ScalingLimited: latency is above 100 ms, and 6 replicas is the maximum
        SuccessfulRescale: latency 20.0 ms, not above 100 ms for 20 s: scaled deployment web from 6 to 4
        SuccessfulRescale: latency 20.0 ms, not above 100 ms for 20 s: scaled deployment web from 4 to 2"#]]
    .assert_eq(&said.join("\n"));
}

#[test]
fn a_relapse_begins_the_good_time_anew() {
    let mut cluster = scaled_cluster(2);
    replicas_over(&mut cluster, 1, 250_000);
    replicas_over(&mut cluster, 15, 20_000);
    replicas_over(&mut cluster, 1, 250_000);
    let after = replicas_over(&mut cluster, 19, 20_000);
    assert!(after.iter().all(|n| *n == 6), "{after:?}");
}

#[test]
fn silence_changes_nothing_and_is_explained() {
    let mut cluster = scaled_cluster(3);
    replicas_over(&mut cluster, 1, 250_000);
    let before = cluster.get::<LatencyAutoscaler>("web").unwrap().status.clone();
    for _ in 0..30 {
        cluster.pass(1_000);
        cluster.settle();
    }
    assert_eq!(cluster.get::<LatencyAutoscaler>("web").unwrap().status, before);
    assert!(
        cluster.events.contains(
            &"LatencyUnknown: no latency of deployment web was measured in the last 3 s: it is left at 4 replicas"
                .to_owned()
        ),
        "{:#?}",
        cluster.events
    );
    cluster.remove(Kind::Deployment, "web");
    cluster.pass(1_000);
    cluster.settle();
    let why = "TargetNotFound: deployment web not found: nothing is scaled".to_owned();
    assert!(cluster.events.contains(&why));
}

#[test]
fn the_status_is_written_seldom() {
    let mut cluster = scaled_cluster(4);
    replicas_over(&mut cluster, 2, 20_000);
    let begin = cluster.snapshot.revision;
    for step in 0..40 {
        cluster.pass(250);
        measure(&mut cluster, 20_000 + step);
        cluster.settle();
    }
    let writes = cluster.snapshot.revision - begin;
    assert!((4..=6).contains(&writes), "{writes} writes in 10 s");
}

#[test]
fn one_slow_pod_of_many_is_no_weakness() {
    let mut cluster = scaled_cluster(5);
    cluster.scale("web", 3);
    cluster.live(2);
    cluster.pass(1_000);
    measure(&mut cluster, 20_000);
    let key = ObjectKey::new(Kind::LatencyAutoscaler, "default", "web");
    let pods = cluster.telemetry.latency.get_mut(&key).unwrap();
    for sample in pods.values_mut().next().unwrap() {
        sample.latency_us = 900_000;
    }
    let world = cluster.world();
    assert_eq!(median_us(&world, &key), Some(20_000));
}
