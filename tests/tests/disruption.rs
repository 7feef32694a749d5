//! Taking nodes out of service on purpose: budgets are kept, and nothing is lost on the way.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use timonier_proto::{Kind, Object};
use timonier_tests::cluster::{Cluster, Options, condition};
use timonier_tests::wait;

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
