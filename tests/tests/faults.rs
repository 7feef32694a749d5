//! What dies and comes back: agent, master, Docker, the disk.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use timonier_proto::Kind;
use timonier_tests::cluster::{Cluster, Options, condition};
use timonier_tests::engine::Engine;
use timonier_tests::{docker, wait};

const MINUTE: Duration = Duration::from_secs(60);

fn web(replicas: u32, image: &str) -> String {
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
        image: {image}
        readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
"#
    )
}

async fn wait_ready(cluster: &Cluster, count: usize, image: &str) -> Result<()> {
    wait::until(&format!("{count} ready pods of {image}"), MINUTE, || async {
        let pods = cluster.list(Kind::Pod, "default").await?;
        let ready = pods
            .iter()
            .filter(|pod| condition(pod, "Ready") == "True")
            .filter(|pod| {
                pod.to_value().is_ok_and(|v| v["spec"]["containers"][0]["image"] == image)
            })
            .count();
        ensure!(ready == count && pods.len() == count, "{ready} of {}", pods.len());
        Ok(())
    })
    .await
}

async fn container_ids(node: &str) -> Result<BTreeMap<String, String>> {
    let found = docker::running(&docker::connect()?, &[format!("io.timonier.node={node}")]).await?;
    Ok(found
        .into_iter()
        .map(|(id, labels)| (labels.get("io.timonier.pod.name").cloned().unwrap_or_default(), id))
        .collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_adopts_its_containers_when_it_comes_back() -> Result<()> {
    let mut cluster = Cluster::start(Options { agents: 1, ..Options::default() }).await?;
    cluster.apply(&web(3, "timonier/web:v1")).await?;
    wait_ready(&cluster, 3, "timonier/web:v1").await?;
    let node = cluster.node_name(0);
    let before = container_ids(&node).await?;
    cluster.kill_agent(0)?;
    assert_eq!(container_ids(&node).await?, before, "pods run on without their agent");
    cluster.start_agent(0)?;
    cluster.wait_nodes_ready().await?;
    // A write that reaches the agent and comes back shows that it has caught up.
    cluster.ctl(&["scale", "deployment/web", "--replicas", "4"]).await?.ok()?;
    wait_ready(&cluster, 4, "timonier/web:v1").await?;
    let after = container_ids(&node).await?;
    for (pod, id) in &before {
        assert_eq!(after.get(pod), Some(id), "{pod} keeps its container");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_goes_on_after_the_master_was_killed() -> Result<()> {
    let mut cluster = Cluster::start(Options { agents: 2, ..Options::default() }).await?;
    cluster.apply(&web(6, "timonier/web:v1")).await?;
    wait_ready(&cluster, 6, "timonier/web:v1").await?;
    cluster.ctl(&["set", "image", "deployment/web", "web=timonier/web:v2"]).await?.ok()?;
    wait::until("the rollout to have begun", MINUTE, || async {
        let pods = cluster.list(Kind::Pod, "default").await?;
        let new = pods.iter().any(|p| {
            p.to_value().is_ok_and(|v| v["spec"]["containers"][0]["image"] == "timonier/web:v2")
        });
        ensure!(new, "no new pod");
        Ok(())
    })
    .await?;
    cluster.kill_master()?;
    cluster.start_master().await?;
    wait_ready(&cluster, 6, "timonier/web:v2").await?;
    cluster.ctl(&["rollout", "status", "deployment/web", "--timeout", "30s"]).await?.ok()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_nodes_pods_run_elsewhere() -> Result<()> {
    let mut cluster = Cluster::start(Options { agents: 3, ..Options::default() }).await?;
    cluster.apply(&web(3, "timonier/web:v1")).await?;
    wait_ready(&cluster, 3, "timonier/web:v1").await?;
    cluster.kill_agent(0)?;
    let lost = cluster.node_name(0);
    wait::until("the pods to be Ready on other nodes", MINUTE, || async {
        let pods = cluster.list(Kind::Pod, "default").await?;
        let elsewhere = pods
            .iter()
            .filter(|pod| condition(pod, "Ready") == "True")
            .filter(|pod| pod.to_value().is_ok_and(|v| v["spec"]["nodeName"] != lost.as_str()))
            .count();
        ensure!(elsewhere == 3, "{elsewhere} of 3");
        Ok(())
    })
    .await?;
    cluster.start_agent(0)?;
    cluster.wait_nodes_ready().await?;
    let engine = docker::connect()?;
    wait::until("the returned node to stop what was replaced", MINUTE, || async {
        let left = docker::running(&engine, &[format!("io.timonier.node={lost}")]).await?;
        ensure!(left.is_empty(), "{} containers run on", left.len());
        Ok(())
    })
    .await
}

/// A file system of a few MiB, unmounted on drop.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(megabytes: u32) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(dir.path())
            .status()?;
        ensure!(status.success(), "mount a tmpfs: {status}");
        Ok(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_clearly_and_loses_nothing() -> Result<()> {
    // Sized so that the master starts, and runs out of room soon after.
    let disk = SmallDisk::mount(160)?;
    let master_dir = Some(disk.0.path().join("master"));
    let mut cluster = Cluster::start(Options { master_dir, ..Options::default() }).await?;
    // Half a MiB each: what is reserved on disk is used up within a few hundred writes.
    let text = "x".repeat(512 << 10);
    let write = async |cluster: &Cluster, name: &str| {
        let manifest = format!(
            "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name}}}, data: {{v: {text}}}}}"
        );
        cluster.ctl_with(&["create", "-f", "-"], Some(&manifest)).await
    };
    write(&cluster, "before").await?.ok()?;
    let free = rustix::fs::statvfs(disk.0.path())?;
    let filler = disk.0.path().join("filler");
    let _ = std::fs::write(&filler, vec![0_u8; (free.f_bavail * free.f_frsize) as usize]);

    let mut written = vec!["before".to_owned()];
    let mut refusal = None;
    for number in 0..500 {
        let name = format!("fill-{number}");
        let answer = write(&cluster, &name).await?;
        if answer.code != 0 {
            refusal = Some(answer.stderr);
            break;
        }
        written.push(name);
    }
    let refusal = refusal.context("the full disk refused nothing")?;
    assert!(refusal.to_lowercase().contains("space"), "{refusal}");
    let shown = cluster.ctl(&["get", "configmaps", "-o", "name"]).await?.ok()?;
    assert!(shown.contains("configmap/before"), "reads go on: {shown}");

    std::fs::remove_file(&filler)?;
    wait::until("writes to be taken again", MINUTE, || async {
        write(&cluster, "after").await?.ok().map(|_| ())
    })
    .await?;
    written.push("after".into());
    cluster.kill_master()?;
    cluster.start_master().await?;
    let shown = cluster.ctl(&["get", "configmaps", "-o", "name"]).await?.ok()?;
    for name in &written {
        assert!(shown.lines().any(|line| line == format!("configmap/{name}")), "{name} is lost");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_docker_makes_the_node_not_ready_and_is_reconciled_when_it_is_back() -> Result<()>
{
    let mut engine = Engine::start().await?;
    engine.copy_image("timonier/web:v1")?;
    let socket = engine.socket();
    let cluster = Cluster::start(Options {
        agents: 1,
        agent_args: vec!["--docker-socket".into(), socket],
        ..Options::default()
    })
    .await?;
    cluster.apply(&web(2, "timonier/web:v1")).await?;
    wait_ready(&cluster, 2, "timonier/web:v1").await?;
    engine.stop()?;
    wait::until("the node to be NotReady and to say why", MINUTE, || async {
        let described = cluster.ctl(&["describe", "node", &cluster.node_name(0)]).await?.ok()?;
        let says_why = described.contains("ContainerRuntimeDown");
        ensure!(says_why && described.contains("docker is not answering"), "{described}");
        Ok(())
    })
    .await?;
    engine.start_daemon().await?;
    cluster.wait_nodes_ready().await?;
    wait_ready(&cluster, 2, "timonier/web:v1").await?;
    drop(cluster);
    Ok(())
}
