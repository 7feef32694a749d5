//! A host dies, its agent and its containers with it: how long until as many pods as before are
//! Ready elsewhere, as the master tells it. Default settings; each round another host.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bollard::Docker;
use timonier_proto::{Kind, Object};
use timonier_tests::cluster::{Cluster, Options, condition};
use timonier_tests::measure::{median, percentile};
use timonier_tests::{docker, wait};

const AGENTS: usize = 4;
const REPLICAS: usize = 8;
const ROUNDS_DEFAULT: usize = 20;
const DEADLINE: Duration = Duration::from_secs(60);

const MANIFEST: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 8
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: timonier/web:v1
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
"#;

pub async fn run() -> Result<String> {
    super::set_up("")?;
    super::build_web_image()?;
    let engine = docker::connect()?;
    let rounds =
        std::env::var("ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(ROUNDS_DEFAULT);
    let mut cluster = Cluster::start(Options { agents: AGENTS, ..Options::default() }).await?;
    cluster.apply(MANIFEST).await?;
    wait_ready(&cluster, "").await?;
    let mut taken = Vec::with_capacity(rounds);
    for round in 1..=rounds {
        let (index, pods) = fullest(&cluster).await?;
        let lost = cluster.node_name(index);
        let start = Instant::now();
        cluster.kill_agent(index)?;
        docker::kill_processes(&engine, &lost).await?;
        wait_ready(&cluster, &lost).await?;
        let ms = start.elapsed().as_secs_f64() * 1000.0;
        eprintln!("round {round}: {pods} pods of {lost} were Ready elsewhere after {ms:.0} ms");
        taken.push(ms);
        come_back(&mut cluster, &engine, index).await?;
    }
    let line = serde_json::json!({
        "name": "node-loss",
        "p50_ms": median(&taken).round(),
        "p99_ms": percentile(&taken, 99.0).round(),
        "max_ms": percentile(&taken, 100.0).round(),
        "agents": AGENTS,
        "replicas": REPLICAS,
        "rounds": taken.len(),
    });
    Ok(line.to_string())
}

/// The host starts again: its node is Ready, and what was left of its pods is gone.
async fn come_back(cluster: &mut Cluster, engine: &Docker, index: usize) -> Result<()> {
    cluster.start_agent(index)?;
    cluster.wait_nodes_ready().await?;
    let node = cluster.node_name(index);
    wait::until("the leftovers of the lost node to be gone", DEADLINE, || async {
        let left = docker::all(engine, &[format!("io.timonier.node={node}")]).await?;
        ensure!(left.is_empty(), "{} containers are left", left.len());
        Ok(())
    })
    .await
}

/// The node with the most pods, by index, and how many those are.
async fn fullest(cluster: &Cluster) -> Result<(usize, usize)> {
    let mut by_node: BTreeMap<String, usize> = BTreeMap::new();
    for pod in cluster.list(Kind::Pod, "default").await? {
        *by_node.entry(node_of(&pod)?).or_default() += 1;
    }
    (0..AGENTS)
        .map(|index| (index, by_node.get(&cluster.node_name(index)).copied().unwrap_or(0)))
        .max_by_key(|(_, pods)| *pods)
        .context("there are no nodes")
}

fn node_of(pod: &Object) -> Result<String> {
    Ok(pod.to_value()?["spec"]["nodeName"].as_str().unwrap_or_default().to_owned())
}

/// All replicas Ready, none of them on the node that is lost.
async fn wait_ready(cluster: &Cluster, lost: &str) -> Result<()> {
    wait::until("all replicas to be Ready", DEADLINE, || async {
        let pods = cluster.list(Kind::Pod, "default").await?;
        let mut ready = 0;
        for pod in &pods {
            ready += usize::from(condition(pod, "Ready") == "True" && node_of(pod)? != lost);
        }
        ensure!(ready == REPLICAS, "{ready} of {REPLICAS}");
        Ok(())
    })
    .await
}
