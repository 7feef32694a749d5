//! 200 replicas of a small image, each with its own address, from `apply` to all Ready as the
//! master tells it; beside the bare Docker API with no network at all, and Docker Swarm.
//!
//! While ours runs, a checker compares what is shown Ready with what runs in Docker.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{CreateContainerOptions, StartContainerOptions};
use futures::{StreamExt, TryStreamExt, stream};
use timonier_proto::{Kind, Object};
use timonier_tests::cluster::{Cluster, Options, condition};
use timonier_tests::measure::Figures;
use timonier_tests::{docker, wait};

pub const REPLICAS: usize = 200;
pub const IMAGE: &str = "timonier/web:v1";
const DEADLINE: Duration = Duration::from_secs(180);
const SLOW_FSYNC_MS: &str = "20";
/// The bare API is tried at each of these; its best counts.
const FLOOR_CONCURRENCY: [usize; 2] = [4, 8];
const FLOOR_LABEL: &str = "io.timonier.bench=floor";

pub async fn run() -> Result<String> {
    super::set_up("")?;
    super::build_web_image()?;
    let docker = docker::connect()?;
    let mut figures = Figures::default();
    for round in 1..=super::rounds() {
        let floor = floor(&docker).await?;
        eprintln!("round {round}: bare Docker {floor:.1} s");
        let ours = ours(&docker, &[]).await?;
        eprintln!("round {round}: timonier {ours:.1} s");
        let slow = ours_slow(&docker).await?;
        eprintln!("round {round}: timonier with {SLOW_FSYNC_MS} ms an fsync {slow:.1} s");
        let swarm = super::swarm::start_replicas(&docker, IMAGE, REPLICAS).await?;
        eprintln!("round {round}: swarm {swarm:.1} s");
        figures.add(&[
            ("ours_s", ours),
            ("floor_s", floor),
            ("swarm_s", swarm),
            ("vs_floor", ours / floor),
            ("vs_swarm", ours / swarm),
            ("slow_fsync_ratio", slow / ours),
        ]);
    }
    Ok(figures.line("start-200", &[]))
}

async fn ours_slow(docker: &Docker) -> Result<f64> {
    ours(docker, &["--log-fsync-delay".into(), SLOW_FSYNC_MS.into()]).await
}

/// Seconds from `apply` to the last of the replicas Ready.
async fn ours(docker: &Docker, master_args: &[String]) -> Result<f64> {
    let mut cluster = Cluster::start(Options {
        agents: 1,
        master_args: master_args.to_vec(),
        agent_args: vec!["--max-pods".into(), "250".into()],
        ..Options::default()
    })
    .await?;
    let manifest = serde_json::json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "bench", "namespace": "default"},
        "spec": {"replicas": REPLICAS, "selector": {"matchLabels": {"app": "bench"}}, "template": {
            "metadata": {"labels": {"app": "bench"}},
            "spec": {"containers": [{"name": "web", "image": IMAGE}]}}}
    });
    let mut client = cluster.client().await?;
    let start = Instant::now();
    client
        .apply(timonier_proto::v1::ApplyRequest {
            json: serde_json::to_vec(&manifest)?.into(),
            ..Default::default()
        })
        .await?;
    let checks = wait_ready(&cluster, docker, start);
    let (seconds, samples) = tokio::time::timeout(DEADLINE, checks)
        .await
        .with_context(|| format!("{REPLICAS} replicas were not Ready after {DEADLINE:?}"))??;
    ensure!(samples > 0, "what is shown Ready was never compared with what runs");
    assert_own_addresses(&cluster).await?;
    cluster.stop()?;
    Ok(seconds)
}

/// Follows the pods by a watch; compares Ready ones with Docker's running ones as it goes.
async fn wait_ready(cluster: &Cluster, docker: &Docker, start: Instant) -> Result<(f64, usize)> {
    let mut client = cluster.client().await?;
    let request = timonier_proto::v1::WatchRequest {
        kind: Kind::Pod.to_string(),
        namespace: "default".into(),
        ..Default::default()
    };
    let mut events = client.watch(request).await?.into_inner();
    let mut ready = BTreeSet::new();
    let mut samples = 0;
    let mut next_sample = Instant::now() + Duration::from_millis(500);
    while let Some(event) = events.message().await? {
        if event.json.is_empty() {
            continue;
        }
        let pod = Object::from_json(Kind::Pod, &event.json)?;
        let name = pod.meta().name.clone().unwrap_or_default();
        if condition(&pod, "Ready") == "True" {
            ready.insert(name);
        } else {
            ready.remove(&name);
        }
        if ready.len() == REPLICAS {
            let seconds = start.elapsed().as_secs_f64();
            compare(docker, &ready).await?;
            return Ok((seconds, samples + 1));
        }
        if Instant::now() > next_sample && !ready.is_empty() {
            compare(docker, &ready).await?;
            samples += 1;
            next_sample = Instant::now() + Duration::from_millis(500);
        }
    }
    anyhow::bail!("the watch ended with {} of {REPLICAS} Ready", ready.len())
}

/// What is shown Ready must be running.
async fn compare(docker: &Docker, ready: &BTreeSet<String>) -> Result<()> {
    let running = docker::running(docker, &["io.timonier.container=web".into()]).await?;
    let names: BTreeSet<String> = running
        .into_values()
        .filter_map(|labels| labels.get("io.timonier.pod.name").cloned())
        .collect();
    let missing: Vec<&String> = ready.difference(&names).collect();
    ensure!(missing.is_empty(), "shown Ready but not running: {missing:?}");
    Ok(())
}

async fn assert_own_addresses(cluster: &Cluster) -> Result<()> {
    let pods = cluster.list(Kind::Pod, "default").await?;
    let addresses: BTreeSet<String> = pods
        .iter()
        .filter_map(|pod| pod.to_value().ok()?["status"]["podIP"].as_str().map(str::to_owned))
        .collect();
    ensure!(addresses.len() == REPLICAS, "{} addresses for {REPLICAS} pods", addresses.len());
    Ok(())
}

/// Seconds that the bare API needs, at its best concurrency.
async fn floor(docker: &Docker) -> Result<f64> {
    let mut best = f64::INFINITY;
    for concurrency in FLOOR_CONCURRENCY {
        let start = Instant::now();
        stream::iter(0..REPLICAS)
            .map(|_| start_bare(docker))
            .buffer_unordered(concurrency)
            .try_collect::<Vec<_>>()
            .await?;
        best = best.min(start.elapsed().as_secs_f64());
        let made = docker::all(docker, &[FLOOR_LABEL.into()]).await?;
        ensure!(made.len() == REPLICAS, "{} of {REPLICAS} bare containers exist", made.len());
        docker::remove(docker, made.into_keys()).await?;
        wait::until("the bare containers to be gone", DEADLINE, || async {
            let left = docker::all(docker, &[FLOOR_LABEL.into()]).await?.len();
            ensure!(left == 0, "{left} are left");
            Ok(())
        })
        .await?;
    }
    Ok(best)
}

async fn start_bare(docker: &Docker) -> Result<()> {
    let (key, value) = FLOOR_LABEL.split_once('=').expect("the label has a value");
    let body = ContainerCreateBody {
        image: Some(IMAGE.into()),
        network_disabled: Some(true),
        labels: Some([(key.to_owned(), value.to_owned())].into()),
        host_config: Some(HostConfig::default()),
        ..Default::default()
    };
    let created = docker.create_container(None::<CreateContainerOptions>, body).await?;
    docker.start_container(&created.id, None::<StartContainerOptions>).await?;
    Ok(())
}
