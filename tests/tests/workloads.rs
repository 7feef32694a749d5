//! The main job on real containers: spread, service, scaling, updates without a failed request,
//! replacement of what dies.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use timonier_proto::{Kind, Object};
use timonier_tests::cluster::{Cluster, Options, condition};
use timonier_tests::{docker, wait};

const SECONDS_30: Duration = Duration::from_secs(30);

fn web(namespace: &str, replicas: u32, extra: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, namespace: {namespace}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      containers:
      - name: web
        image: timonier/web:v1
        ports: [{{containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
{extra}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: {namespace}}}
spec:
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: 8080}}]
"#
    )
}

async fn ready_pods(cluster: &Cluster, namespace: &str) -> Result<Vec<Object>> {
    let pods = cluster.list(Kind::Pod, namespace).await?;
    Ok(pods.into_iter().filter(|pod| condition(pod, "Ready") == "True").collect())
}

async fn wait_ready(cluster: &Cluster, namespace: &str, count: usize) -> Result<Vec<Object>> {
    wait::until(&format!("{count} ready pods"), SECONDS_30, || async {
        let pods = ready_pods(cluster, namespace).await?;
        let all = cluster.list(Kind::Pod, namespace).await?.len();
        ensure!(pods.len() == count && all == count, "{} of {all} are", pods.len());
        Ok(pods)
    })
    .await
}

fn by_node(pods: &[Object]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for pod in pods {
        let value = pod.to_value().unwrap_or_default();
        let node = value["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
        *counts.entry(node).or_default() += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_spreads_serves_scales_and_updates_without_a_failed_request() -> Result<()> {
    let cluster = Cluster::start(Options { agents: 3, ..Options::default() }).await?;
    cluster.apply(&web("default", 3, "")).await?;
    let pods = wait_ready(&cluster, "default", 3).await?;
    assert_eq!(by_node(&pods).into_values().collect::<Vec<_>>(), [1, 1, 1]);

    cluster.ctl(&["scale", "deployment/web", "--replicas", "12"]).await?.ok()?;
    let pods = wait_ready(&cluster, "default", 12).await?;
    assert_eq!(by_node(&pods).into_values().collect::<Vec<_>>(), [4, 4, 4]);

    let load =
        cluster.ctl(&["load", "svc/web", "--requests", "1500", "--interval", "5", "-o", "json"]);
    let update = cluster.ctl(&["update", "web", "timonier/web:v2"]);
    let (load, update) = tokio::try_join!(load, update)?;
    let update = update.ok()?;
    assert!(update.contains("total"), "{update}");
    let report: Value = serde_json::from_str(&load.ok()?).context("parse the load report")?;
    assert_eq!((&report["failed"], &report["ok"]), (&0.into(), &1500.into()), "{report}");

    let pods = wait_ready(&cluster, "default", 12).await?;
    for pod in &pods {
        let value = pod.to_value()?;
        assert_eq!(value["spec"]["containers"][0]["image"], "timonier/web:v2");
    }
    let history = cluster.ctl(&["rollout", "history", "deployment/web"]).await?.ok()?;
    assert!(history.contains('1') && history.contains('2'), "{history}");
    cluster.ctl(&["rollout", "undo", "deployment/web"]).await?.ok()?;
    cluster.ctl(&["rollout", "status", "deployment/web", "--timeout", "60s"]).await?.ok()?;
    for pod in wait_ready(&cluster, "default", 12).await? {
        assert_eq!(pod.to_value()?["spec"]["containers"][0]["image"], "timonier/web:v1");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_container_and_a_deleted_pod_are_replaced_and_deletion_leaves_nothing()
-> Result<()> {
    let engine = docker::connect()?;
    let cluster = Cluster::start(Options { agents: 2, ..Options::default() }).await?;
    cluster.apply(&web("default", 2, "")).await?;
    let pods = wait_ready(&cluster, "default", 2).await?;
    let name = pods[0].meta().name.clone().context("a name")?;
    let (id, _) = docker::container_of(&engine, &name, "web").await?;
    engine.kill_container(&id, None).await?;
    let id = id.as_str();
    wait::until("the killed container to be replaced", SECONDS_30, || async {
        let (new, _) = docker::container_of(&engine, &name, "web").await?;
        ensure!(new != id, "it is the old one");
        let pods = ready_pods(&cluster, "default").await?;
        ensure!(pods.len() == 2, "{} ready", pods.len());
        let restarts: i64 = pods
            .iter()
            .filter_map(|p| {
                p.to_value().ok()?["status"]["containerStatuses"][0]["restartCount"].as_i64()
            })
            .sum();
        ensure!(restarts == 1, "{restarts} restarts are counted");
        Ok(())
    })
    .await?;

    cluster.ctl(&["delete", "pod", &name]).await?.ok()?;
    let pods = wait_ready(&cluster, "default", 2).await?;
    assert!(pods.iter().all(|pod| pod.meta().name.as_ref() != Some(&name)));

    cluster.ctl(&["delete", "deployment/web", "service/web"]).await?.ok()?;
    let nodes: Vec<String> = (0..2).map(|i| cluster.node_name(i)).collect();
    wait::until("no container to be left", SECONDS_30, || async {
        for node in &nodes {
            let left = docker::all(&engine, &[format!("io.timonier.node={node}")]).await?;
            ensure!(left.is_empty(), "{} on {node}", left.len());
        }
        ensure!(cluster.list(Kind::Pod, "").await?.is_empty(), "pods are left");
        ensure!(cluster.list(Kind::ReplicaSet, "").await?.is_empty(), "replica sets are left");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn recreate_stops_the_old_before_it_starts_the_new() -> Result<()> {
    let cluster = Cluster::start(Options { agents: 1, ..Options::default() }).await?;
    let manifest = web("default", 2, "")
        .replace("  replicas: 2", "  replicas: 2\n  strategy: {type: Recreate}");
    cluster.apply(&manifest).await?;
    wait_ready(&cluster, "default", 2).await?;
    cluster.ctl(&["set", "image", "deployment/web", "web=timonier/web:v2"]).await?.ok()?;
    wait::until("the new pods", SECONDS_30, || async {
        let pods = cluster.list(Kind::Pod, "default").await?;
        let images: BTreeSet<String> = pods
            .iter()
            .filter(|p| {
                let phase = p.to_value().unwrap_or_default()["status"]["phase"].clone();
                phase != "Succeeded" && phase != "Failed"
            })
            .filter_map(|p| {
                Some(p.to_value().ok()?["spec"]["containers"][0]["image"].as_str()?.to_owned())
            })
            .collect();
        assert!(images.len() <= 1, "old and new at once: {images:?}");
        let new = ready_pods(&cluster, "default").await?.len() == 2;
        ensure!(new && images.contains("timonier/web:v2"), "{images:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_an_isolated_namespace_is_reached_from_its_own_and_from_the_host_only()
-> Result<()> {
    let cluster = Cluster::start(Options { agents: 2, ..Options::default() }).await?;
    cluster
        .apply(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: closed\n  annotations: \
             {timonier.io/network: isolated}\n---\napiVersion: v1\nkind: Namespace\nmetadata: \
             {name: open}",
        )
        .await?;
    cluster.apply(&web("closed", 2, "")).await?;
    cluster.apply(&web("open", 2, "")).await?;
    let closed = wait_ready(&cluster, "closed", 2).await?;
    let open = wait_ready(&cluster, "open", 2).await?;
    let ip = |pod: &Object| -> Result<String> {
        Ok(pod.to_value()?["status"]["podIP"].as_str().context("no address")?.to_owned())
    };
    let name = |pod: &Object| pod.meta().name.clone().unwrap_or_default();
    let get = async |from: &Object, namespace: &str, to: &Object| -> Result<bool> {
        let url = format!("http://{}:8080/", ip(to)?);
        let from = name(from);
        let args = ["exec", "-n", namespace, &from, "--", "/web", "--get", &url];
        Ok(cluster.ctl(&args).await?.code == 0)
    };
    assert!(get(&closed[0], "closed", &closed[1]).await?, "inside the closed network");
    assert!(get(&closed[0], "closed", &open[0]).await?, "out of the closed network");
    assert!(get(&open[0], "open", &open[1]).await?, "inside the open network");
    assert!(!get(&open[0], "open", &closed[0]).await?, "into the closed network");
    let from_host = cluster
        .ctl(&[
            "load",
            &format!("http://{}:8080/", ip(&closed[0])?),
            "--requests",
            "3",
            "--interval",
            "10",
            "-o",
            "json",
        ])
        .await?
        .ok()?;
    assert!(
        from_host.contains("\"failed\":0") || from_host.contains("\"failed\": 0"),
        "{from_host}"
    );
    Ok(())
}
