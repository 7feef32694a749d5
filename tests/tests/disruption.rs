//! Taking nodes out of service on purpose: budgets are kept, and nothing is lost on the way.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use timonier_proto::{Kind, Object};
use timonier_tests::cluster::{Cluster, Options, condition};
use timonier_tests::{docker, wait};

const MINUTE: Duration = Duration::from_secs(60);

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

fn is_leaving(pod: &Object) -> bool {
    pod.meta().deletion_timestamp.is_some()
}

async fn healthy(cluster: &Cluster) -> Result<usize> {
    let pods = cluster.list(Kind::Pod, "default").await?;
    Ok(pods.iter().filter(|p| condition(p, "Ready") == "True" && !is_leaving(p)).count())
}

async fn wait_healthy(cluster: &Cluster, count: usize) -> Result<()> {
    wait::until(&format!("{count} healthy pods"), MINUTE, || async {
        let now = healthy(cluster).await?;
        ensure!(now == count, "{now} are");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_keeps_to_the_budget_and_moves_everything() -> Result<()> {
    let cluster = Cluster::start(Options { agents: 2, ..Options::default() }).await?;
    cluster.apply(&web(4)).await?;
    wait_healthy(&cluster, 4).await?;
    let args = ["create", "pdb", "web", "--selector", "app=web", "--min-available", "3"];
    cluster.ctl(&args).await?.ok()?;
    wait::until("the budget to be counted", MINUTE, || async {
        let table = cluster.ctl(&["get", "pdb", "web"]).await?.ok()?;
        let allowed = table.lines().nth(1).and_then(|l| l.split_whitespace().nth(3));
        ensure!(allowed == Some("1"), "{table}");
        Ok(())
    })
    .await?;
    let node = cluster.node_name(0);
    let drain = ["drain", node.as_str(), "--timeout", "90s"];
    let mut draining = std::pin::pin!(cluster.ctl(&drain));
    let mut least = usize::MAX;
    let drained = loop {
        tokio::select! {
            done = &mut draining => break done?,
            now = healthy(&cluster) => least = least.min(now?),
        }
    };
    let text = format!("{}{}", drained.stdout, drained.stderr);
    ensure!(drained.code == 0, "{text}");
    ensure!(least >= 3, "only {least} pods were healthy at one time");
    ensure!(text.contains("may not go yet"), "nobody had to wait: {text}");
    let pods = cluster.list(Kind::Pod, "default").await?;
    for pod in &pods {
        let value = pod.to_value()?;
        ensure!(
            value["spec"]["nodeName"] != node.as_str(),
            "{} is left",
            pod.meta().name.clone().context("a name")?
        );
    }
    wait_healthy(&cluster, 4).await?;
    let page = cluster.ctl(&["describe", "pdb", "web"]).await?.ok()?;
    ensure!(page.contains("Allowed disruptions"), "{page}");

    // A budget that allows nothing holds the drain up until its time is over.
    cluster.ctl(&["uncordon", &node]).await?.ok()?;
    cluster.apply("apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: web}\nspec:\n  minAvailable: 4\n  selector: {matchLabels: {app: web}}").await?;
    let other = cluster.node_name(1);
    let why = cluster.ctl(&["drain", &other, "--timeout", "5s"]).await?.failed()?;
    ensure!(why.contains("needs 4 healthy pods and has 4 currently"), "{why}");
    ensure!(why.contains("timed out draining"), "{why}");
    ensure!(healthy(&cluster).await? == 4);
    Ok(())
}

/// Where the unique pod's containers run, by node.
async fn running(cluster: &Cluster, agents: usize) -> Result<Vec<String>> {
    let engine = docker::connect()?;
    let mut nodes = Vec::new();
    for index in 0..agents {
        let node = cluster.node_name(index);
        let labels = [format!("io.timonier.node={node}"), "io.timonier.unique=true".to_owned()];
        nodes.extend(docker::running(&engine, &labels).await?.into_keys().map(|_| node.clone()));
    }
    Ok(nodes)
}

/// A unique pod whose agent was frozen or killed is stopped by the watchdog, replaced after its time,
/// and never there twice; what comes back is told what to stop.
#[tokio::test(flavor = "multi_thread")]
async fn a_unique_pod_is_never_there_twice() -> Result<()> {
    const AGENTS: usize = 3;
    let master_args = vec!["--fence-after".into(), "3s".into()];
    let options = Options { agents: AGENTS, master_args, ..Options::default() };
    let mut cluster = Cluster::start(options).await?;
    let manifest =
        web(1).replace("  replicas: 1", "  replicas: 1\n  strategy: {type: Recreate}").replace(
            "labels: {app: web}}\n    spec",
            "labels: {app: web}, annotations: {timonier.io/unique: \"true\"}}\n    spec",
        );
    cluster.apply(&manifest).await?;
    for fault in ["freeze", "kill"] {
        wait_healthy(&cluster, 1).await?;
        let node = running(&cluster, AGENTS).await?.pop().context("it runs")?;
        let index = (0..AGENTS).find(|i| cluster.node_name(*i) == node).context("its agent")?;
        let pid = Pid::from_raw(i32::try_from(cluster.agent_pid(index))?).context("a pid")?;
        match fault {
            "freeze" => kill_process(pid, Signal::STOP)?,
            _ => cluster.kill_agent(index)?,
        }
        wait::until("it to run elsewhere", MINUTE, || async {
            let nodes = running(&cluster, AGENTS).await?;
            assert!(nodes.len() <= 1, "{fault}: {nodes:?} at once");
            ensure!(nodes.first().is_some_and(|now| *now != node), "{nodes:?}");
            Ok(())
        })
        .await?;
        match fault {
            "freeze" => kill_process(pid, Signal::CONT)?,
            _ => cluster.start_agent(index)?,
        }
        cluster.wait_nodes_ready().await?;
        wait_healthy(&cluster, 1).await?;
        let nodes = running(&cluster, AGENTS).await?;
        ensure!(nodes.len() == 1, "{fault}: {nodes:?}");
    }
    Ok(())
}

/// Sends a signal to an agent and waits until it has ended by it.
async fn end_agent(cluster: &Cluster, index: usize, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(cluster.agent_pid(index))?).context("a pid")?;
    kill_process(pid, signal)?;
    wait::until("the agent to end", MINUTE, || async {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        // Nobody has waited for it yet: a zombie has ended.
        ensure!(stat.map_or(true, |stat| stat.contains(") Z ")), "it runs");
        Ok(())
    })
    .await
}

/// How many of an agent's pods' containers run.
async fn containers(cluster: &Cluster, index: usize) -> Result<usize> {
    let label = [format!("io.timonier.node={}", cluster.node_name(index))];
    Ok(docker::running(&docker::connect()?, &label).await?.len())
}

/// A host that goes down in order gives its pods away; when it is back its node is as it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_goes_down_gives_its_pods_away_and_takes_new_ones_when_it_is_back() -> Result<()>
{
    let agent_args = vec!["--drain-on-shutdown".into(), "30".into()];
    let options = Options { agents: 2, agent_args, ..Options::default() };
    let mut cluster = Cluster::start(options).await?;
    cluster.apply(&web(4)).await?;
    wait_healthy(&cluster, 4).await?;
    // What a host without systemd says when it goes down.
    end_agent(&cluster, 0, Signal::POWER).await?;
    let left = containers(&cluster, 0).await?;
    ensure!(left == 0, "{left} containers run on");
    wait_healthy(&cluster, 4).await?;
    let events = cluster.ctl(&["events"]).await?.ok()?;
    ensure!(events.contains("which is shutting down"), "{events}");
    cluster.kill_agent(0)?;
    cluster.start_agent(0)?;
    cluster.wait_nodes_ready().await?;
    let nodes = cluster.ctl(&["get", "nodes"]).await?.ok()?;
    ensure!(!nodes.contains("SchedulingDisabled"), "{nodes}");
    Ok(())
}

/// A systemd that says of its host what is in the file beside it.
fn played_systemd(state: &str) -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("systemctl");
    let text = format!("#!/bin/sh\ncat {}/state\n", folder.path().display());
    std::fs::write(&program, text)?;
    std::fs::set_permissions(&program, Permissions::from_mode(0o755))?;
    std::fs::write(folder.path().join("state"), state)?;
    Ok(folder)
}

/// SIGTERM is what systemd sends in both cases; only in one of them do pods have to move.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_moves_pods_where_the_host_goes_down_and_leaves_them_where_only_the_agent_stops()
-> Result<()> {
    let systemd = played_systemd("running")?;
    let options = Options {
        agents: 2,
        agent_args: vec!["--drain-on-shutdown".into(), "30".into()],
        agent_programs: Some(systemd.path().to_owned()),
        ..Options::default()
    };
    let mut cluster = Cluster::start(options).await?;
    cluster.apply(&web(4)).await?;
    wait_healthy(&cluster, 4).await?;
    let before = containers(&cluster, 1).await?;
    ensure!(before > 0, "no pod is on the second node");
    end_agent(&cluster, 1, Signal::TERM).await?;
    let left = containers(&cluster, 1).await?;
    ensure!(left == before, "{left} of {before} containers run on");
    cluster.kill_agent(1)?;
    cluster.start_agent(1)?;
    // Its node was never missed, so that says nothing.
    let log = cluster.dir().join(cluster.node_name(1) + ".log");
    wait::until("the agent's second session", MINUTE, || async {
        let sessions = std::fs::read_to_string(&log)?.matches("session opened").count();
        ensure!(sessions == 2, "{sessions} sessions");
        Ok(())
    })
    .await?;
    wait_healthy(&cluster, 4).await?;

    std::fs::write(systemd.path().join("state"), "stopping")?;
    end_agent(&cluster, 0, Signal::TERM).await?;
    let left = containers(&cluster, 0).await?;
    ensure!(left == 0, "{left} containers run on");
    // It said so itself before it ended: nobody had to miss it, and nothing new goes there.
    let node = cluster.node_name(0);
    let page = cluster.ctl(&["describe", "node", &node]).await?.ok()?;
    for part in ["NodeShutdown", "node.kubernetes.io/not-ready", "which is shutting down"] {
        ensure!(page.contains(part), "no {part} in\n{page}");
    }
    wait_healthy(&cluster, 4).await?;
    for pod in cluster.list(Kind::Pod, "default").await?.iter().filter(|pod| !is_leaving(pod)) {
        ensure!(pod.to_value()?["spec"]["nodeName"] != node.as_str(), "a pod is on {node}");
    }
    Ok(())
}
