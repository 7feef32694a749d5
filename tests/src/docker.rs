//! What a test or a benchmark looks up in Docker behind the product's back.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result};
use bollard::Docker;
use bollard::query_parameters::{
    InspectContainerOptions, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
};
use futures::{StreamExt, stream};

/// A connection to the machine's engine.
pub fn connect() -> Result<Docker> {
    Docker::connect_with_unix_defaults().context("connect to Docker; run deploy/setup.sh first")
}

/// Running containers that carry all `labels` (`key=value`): id → labels.
pub async fn running(
    docker: &Docker,
    labels: &[String],
) -> Result<BTreeMap<String, HashMap<String, String>>> {
    list(docker, labels, false).await
}

/// As [`running`], stopped ones too.
pub async fn all(
    docker: &Docker,
    labels: &[String],
) -> Result<BTreeMap<String, HashMap<String, String>>> {
    list(docker, labels, true).await
}

async fn list(
    docker: &Docker,
    labels: &[String],
    all: bool,
) -> Result<BTreeMap<String, HashMap<String, String>>> {
    let filters = HashMap::from([("label".to_owned(), labels.to_vec())]);
    let options = ListContainersOptionsBuilder::new().all(all).filters(&filters).build();
    let containers = docker.list_containers(Some(options)).await.context("list containers")?;
    Ok(containers.into_iter().filter_map(|c| Some((c.id?, c.labels.unwrap_or_default()))).collect())
}

/// The id and process of the one running container of a pod's container.
pub async fn container_of(docker: &Docker, pod: &str, container: &str) -> Result<(String, i64)> {
    let labels =
        [format!("io.timonier.pod.name={pod}"), format!("io.timonier.container={container}")];
    let found = running(docker, &labels).await?;
    let id = found.into_keys().next().with_context(|| format!("pod {pod} has no container"))?;
    let inspected = docker.inspect_container(&id, None::<InspectContainerOptions>).await?;
    let pid = inspected.state.and_then(|s| s.pid).unwrap_or(0);
    Ok((id, pid))
}

/// `kill -9` to every container of a node, as when its host loses its power.
pub async fn kill_processes(docker: &Docker, node: &str) -> Result<()> {
    for id in running(docker, &[format!("io.timonier.node={node}")]).await?.into_keys() {
        let inspected = docker.inspect_container(&id, None::<InspectContainerOptions>).await?;
        let pid = inspected.state.and_then(|s| s.pid).and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            // It may have ended meanwhile.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    Ok(())
}

/// Removes containers by force, eight at a time.
pub async fn remove(docker: &Docker, ids: impl IntoIterator<Item = String>) -> Result<()> {
    let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
    let ids: Vec<String> = ids.into_iter().collect();
    let mut removals = stream::iter(ids)
        .map(|id| {
            let (docker, options) = (docker.clone(), options.clone());
            async move { docker.remove_container(&id, Some(options)).await }
        })
        .buffer_unordered(8);
    while let Some(result) = removals.next().await {
        result.context("remove a container")?;
    }
    Ok(())
}
