//! The exercise's commands (monitor, scale on latency, update) and the load generator.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use timonier_proto::Kind;
use timonier_tests::cluster::{Cluster, Options};
use timonier_tests::wait;

/// One worker that holds each request for 20 ms: fast alone, slow under load.
const SLOW_UNDER_LOAD: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: slow}
spec:
  replicas: 1
  selector: {matchLabels: {app: slow}}
  template:
    metadata: {labels: {app: slow}}
    spec:
      containers:
      - name: web
        image: timonier/web:v1
        ports: [{containerPort: 8080}]
        env: [{name: WORKERS, value: "1"}, {name: DELAY_MS, value: "20"}]
---
apiVersion: v1
kind: Service
metadata: {name: slow}
spec: {selector: {app: slow}, ports: [{port: 80, targetPort: 8080}]}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn monitor_prints_the_exercises_table() -> Result<()> {
    let cluster = Cluster::start(Options { agents: 2, ..Options::default() }).await?;
    let table = wait::until("both nodes to have figures", Duration::from_secs(20), || async {
        let table = cluster.ctl(&["monitor", "--once"]).await?.ok()?;
        ensure!(table.lines().count() == 3, "{table}");
        Ok(table)
    })
    .await?;
    let mut lines = table.lines();
    assert_eq!(lines.next(), Some("ips CPU(%) MEM(%)"));
    for line in lines {
        let fields: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(fields.len(), 3, "{line}");
        for figure in &fields[1..] {
            let value: f64 = figure.parse().with_context(|| format!("a figure: {line}"))?;
            assert!((0.0..=100.0).contains(&value), "{line}");
            assert_eq!(figure.split_once('.').map(|(_, d)| d.len()), Some(1), "{line}");
        }
    }
    let unknown = cluster.ctl(&["monitor", "10.255.255.1", "--once"]).await?;
    assert!(unknown.stderr.contains("10.255.255.1"), "{unknown:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_weak_workload_is_scaled_up_within_its_maximum_and_back_when_good() -> Result<()> {
    let cluster = Cluster::start(Options { agents: 2, ..Options::default() }).await?;
    cluster.apply(SLOW_UNDER_LOAD).await?;
    cluster.ctl(&["rollout", "status", "deployment/slow", "--timeout", "30s"]).await?.ok()?;
    let scale = cluster.ctl(&[
        "scale",
        "slow",
        "--latency",
        "50",
        "--by",
        "2",
        "--max",
        "3",
        "--cooldown",
        "1",
        "--lang",
        "fr",
        "--duration",
        "12s",
    ]);
    let load =
        cluster.ctl(&["load", "svc/slow", "--requests", "800", "--interval", "10", "-o", "json"]);
    let (scale, _) = tokio::try_join!(scale, load)?;
    let beats = scale.ok()?;
    let states: Vec<&str> =
        beats.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    assert!(states.contains(&"bon") && states.contains(&"faible"), "{beats}");
    assert!(states.len() >= 60, "a beat every 100 ms, but {} in 12 s", states.len());
    for line in beats.lines() {
        assert_eq!(line.split_whitespace().next(), Some("slow"), "{line}");
    }
    let deployment = cluster.ctl(&["get", "deployment", "slow", "-o", "json"]).await?.ok()?;
    let deployment: Value = serde_json::from_str(&deployment)?;
    assert_eq!(deployment["spec"]["replicas"], 3, "scaled up by 2, and no further");
    let left = cluster.list(Kind::LatencyAutoscaler, "").await?;
    assert!(left.is_empty(), "the command takes its autoscaler away");

    cluster
        .apply(
            "apiVersion: autoscaling.timonier.io/v1\nkind: LatencyAutoscaler\nmetadata: {name: \
             slow}\nspec:\n  scaleTargetRef: {kind: Deployment, name: slow}\n  \
             latencyMilliseconds: 200\n  step: 2\n  minReplicas: 1\n  maxReplicas: 3\n  \
             scaleDownSeconds: 2\n  cooldownSeconds: 1",
        )
        .await?;
    wait::until("the declared policy to scale in", Duration::from_secs(30), || async {
        let json = cluster.ctl(&["get", "deployment", "slow", "-o", "json"]).await?.ok()?;
        let deployment: Value = serde_json::from_str(&json)?;
        ensure!(deployment["spec"]["replicas"] == 1, "{}", deployment["spec"]["replicas"]);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_name_that_does_not_run_nothing_happens() -> Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let update = cluster.ctl(&["update", "ghost", "timonier/web:v2"]).await?;
    assert!(format!("{}{}", update.stdout, update.stderr).contains("ghost"), "{update:?}");
    let scale = cluster
        .ctl(&["scale", "ghost", "--latency", "50", "--by", "2", "--duration", "1s"])
        .await?
        .failed()?;
    assert!(scale.contains("ghost"), "{scale}");
    assert!(cluster.list(Kind::Deployment, "").await?.is_empty());
    assert!(cluster.list(Kind::LatencyAutoscaler, "").await?.is_empty());
    Ok(())
}
