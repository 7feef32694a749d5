//! Three masters and their agents as real processes: one dies, comes back, is taken out, and nobody
//! who works with the cluster has to know.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use timonier_proto::v1::{GetRequest, ObjectRef};
use timonier_proto::{Kind, Object};
use timonier_tests::cluster::{Cluster, Options, condition};
use timonier_tests::wait;

const MINUTE: Duration = Duration::from_secs(60);
const MASTERS: usize = 3;

async fn start(agents: usize) -> Result<Cluster> {
    Cluster::start(Options { agents, masters: MASTERS, ..Options::default() }).await
}

fn web(replicas: u32) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      containers:
      - name: web
        image: timonier/web:v1
        readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
"#
    )
}

async fn wait_ready(cluster: &Cluster, count: usize, image: &str) -> Result<Vec<Object>> {
    wait::until(&format!("{count} ready pods of {image}"), MINUTE, || async {
        let pods = cluster.list(Kind::Pod, "default").await?;
        let is_ready = |pod: &&Object| {
            condition(pod, "Ready") == "True"
                && pod.to_value().is_ok_and(|v| v["spec"]["containers"][0]["image"] == image)
        };
        let ready = pods.iter().filter(is_ready).count();
        ensure!(ready == count && pods.len() == count, "{ready} of {}", pods.len());
        Ok(pods)
    })
    .await
}

/// Whether a master has an object, up to all acknowledged writes.
async fn has(cluster: &Cluster, master: usize, name: &str) -> Result<bool> {
    let reference = ObjectRef {
        kind: Kind::ConfigMap.to_string(),
        namespace: "default".into(),
        name: name.into(),
    };
    let request = GetRequest { r#ref: Some(reference), linearizable: true };
    match cluster.client_of(master).await?.get(request).await {
        Ok(_) => Ok(true),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(false),
        Err(status) => Err(status).with_context(|| format!("ask master {master} for {name}")),
    }
}

/// Creates one after the other by timonctl until `done`; each must succeed. Their names.
async fn create_meanwhile(
    cluster: &Cluster,
    prefix: &str,
    done: &std::sync::atomic::AtomicBool,
) -> Result<Vec<String>> {
    let mut names = Vec::new();
    while !done.load(std::sync::atomic::Ordering::Relaxed) {
        let name = format!("{prefix}-{}", names.len());
        cluster.ctl(&["create", "configmap", &name, "--from-literal", "a=b"]).await?.ok()?;
        names.push(name);
    }
    Ok(names)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_and_timonctl_go_on_when_the_leader_dies() -> Result<()> {
    let mut cluster = start(2).await?;
    cluster.apply(&web(4)).await?;
    wait_ready(&cluster, 4, "timonier/web:v1").await?;
    let leader = cluster.leader().await?;
    cluster.ctl(&["set", "image", "deployment/web", "web=timonier/web:v2"]).await?.ok()?;
    cluster.kill_master_at(leader)?;
    let done = std::sync::atomic::AtomicBool::new(false);
    let updated = async {
        let pods = wait_ready(&cluster, 4, "timonier/web:v2").await;
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        pods
    };
    let (names, pods) = tokio::join!(create_meanwhile(&cluster, "during", &done), updated);
    let (names, _) = (names?, pods?);
    cluster.ctl(&["rollout", "status", "deployment/web", "--timeout", "30s"]).await?.ok()?;
    cluster.wait_nodes_ready().await?;
    ensure!(cluster.leader().await? != leader, "a dead master leads");

    cluster.run_master(leader)?;
    cluster.wait_master(leader).await?;
    for name in &names {
        for master in 0..MASTERS {
            ensure!(has(&cluster, master, name).await?, "{name} is not on master {master}");
        }
    }
    ensure!(!names.is_empty(), "nothing was created meanwhile");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_master_reaches_every_pod() -> Result<()> {
    const AGENTS: usize = 2;
    let cluster = start(AGENTS).await?;
    cluster.apply(&web(4)).await?;
    let pods = wait_ready(&cluster, 4, "timonier/web:v1").await?;
    for agent in 0..AGENTS {
        let node = cluster.node_name(agent);
        let is_there = |pod: &&Object| {
            pod.to_value().is_ok_and(|value| value["spec"]["nodeName"] == node.as_str())
        };
        let pod = pods.iter().find(is_there).with_context(|| format!("no pod on {node}"))?;
        let pod = pod.meta().name.clone().context("a pod has a name")?;
        for master in 0..MASTERS {
            let server = cluster.master_address(master);
            let through = ["--server", server.as_str()];
            let shown = ["exec", pod.as_str(), "--", "/web", "--cat", "/etc/hostname"];
            let ends = ["--exit-after-ms", "0", "--exit-code", "0"];
            let args = [&through[..], &shown[..], &ends[..]].concat();
            let printed = cluster.ctl(&args).await?.ok().with_context(|| server.clone())?;
            ensure!(printed.contains(&pod), "{printed}");
            let args = [&through[..], &["logs", pod.as_str()][..]].concat();
            cluster.ctl(&args).await?.ok().with_context(|| server.clone())?;
            let args = [&through[..], &["top", "nodes"][..]].concat();
            let table = cluster.ctl(&args).await?.ok().with_context(|| server.clone())?;
            ensure!(table.contains(&node), "master {master} knows nothing of {node}: {table}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_dies_comes_back_and_is_replaced() -> Result<()> {
    let mut cluster = start(1).await?;
    let leader = cluster.leader().await?;
    let follower = (leader + 1) % MASTERS;
    cluster.kill_master_at(follower)?;
    let create = async |cluster: &Cluster, name: &str| {
        cluster.ctl(&["create", "configmap", name, "--from-literal", "a=b"]).await?.ok()
    };
    create(&cluster, "without-it").await?;
    cluster.run_master(follower)?;
    cluster.wait_master(follower).await?;
    ensure!(has(&cluster, follower, "without-it").await?, "it has not what it missed");
    ensure!(cluster.leader().await? == leader, "one that came back took over");

    // All die at once, as when the power fails.
    for master in 0..MASTERS {
        cluster.kill_master_at(master)?;
    }
    for master in 0..MASTERS {
        cluster.run_master(master)?;
    }
    cluster.wait_nodes_ready().await?;
    ensure!(has(&cluster, follower, "without-it").await?, "it is lost");

    // Its disk is gone: out, and in again as a new one.
    cluster.replace_master(follower).await?;
    create(&cluster, "with-the-new-one").await?;
    for name in ["without-it", "with-the-new-one"] {
        ensure!(has(&cluster, follower, name).await?, "the new one has not {name}");
    }
    let members = cluster.ask(follower).await?.masters;
    ensure!(members.len() == MASTERS && members.iter().all(|m| m.voter), "{members:?}");
    Ok(())
}
