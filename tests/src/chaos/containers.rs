//! What Docker has of the nodes' pods, looked at behind the agents' backs: at every moment no pod
//! runs where another must not, and once all is well there is what the masters want and no more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use bollard::Docker;
use timonier_agent::runtime::{ContainerLabels, ContainerRole, label};
use timonier_master_core::object::{is_active, node_of};
use timonier_proto::Object;
use tokio::task::JoinHandle;

use crate::docker;

/// How often Docker is asked what runs.
const SAMPLE: Duration = Duration::from_millis(300);

/// What Docker runs and keeps is what these pods ask for: all that there are, as a master has them.
pub async fn are_of(pods: &[Object], nodes: &[String]) -> Result<()> {
    let docker = docker::connect()?;
    let agents = [label::NODE.to_owned()];
    let running = of(nodes, docker::running(&docker, &agents).await?.into_values());
    let all = of(nodes, docker::all(&docker, &agents).await?.into_values());
    let wrong = astray(pods, &running, &all);
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

/// Those of some nodes.
fn of(
    nodes: &[String],
    labels: impl Iterator<Item = HashMap<String, String>>,
) -> Vec<ContainerLabels> {
    let read = |labels: HashMap<String, String>| {
        ContainerLabels::from_lookup(|name| labels.get(name).map(String::as_str))
    };
    labels.filter_map(read).filter(|container| nodes.contains(&container.node)).collect()
}

/// A pod's uid and its node.
type Placed = (String, String);

fn placed(container: &ContainerLabels) -> Placed {
    (container.pod_uid.clone(), container.node.clone())
}

fn astray(pods: &[Object], running: &[ContainerLabels], all: &[ContainerLabels]) -> Vec<String> {
    let known: BTreeMap<Placed, bool> = pods
        .iter()
        .filter_map(|pod| {
            let Object::Pod(pod) = pod else { return None };
            let uid = pod.metadata.uid.clone()?;
            Some(((uid, node_of(pod)?.to_owned()), is_active(pod)))
        })
        .collect();
    let mains = running.iter().filter(|container| container.role == ContainerRole::Main);
    let mains: BTreeSet<Placed> = mains.map(placed).collect();
    let mut wrong = Vec::new();
    for container in all.iter().filter(|container| !known.contains_key(&placed(container))) {
        let ContainerLabels { pod_name, pod_uid, node, .. } = container;
        wrong.push(format!(
            "{node} has a container of {pod_name} ({pod_uid}), which is no pod there"
        ));
    }
    for ((uid, node), active) in known {
        match (active, mains.contains(&(uid.clone(), node.clone()))) {
            (true, false) => wrong.push(format!("pod {uid} does not run on {node}")),
            (false, true) => wrong.push(format!("pod {uid} still runs on {node}")),
            _ => {}
        }
    }
    wrong
}

/// Asks Docker all the time whether a pod that must be unique runs twice, or one pod on two nodes.
pub struct Watcher {
    seen: Arc<Mutex<BTreeSet<String>>>,
    task: JoinHandle<()>,
}

impl Watcher {
    pub fn start(nodes: Vec<String>) -> Result<Self> {
        let docker = docker::connect()?;
        let seen = Arc::new(Mutex::new(BTreeSet::new()));
        let into = seen.clone();
        let task = tokio::spawn(async move {
            loop {
                match sample(&docker, &nodes).await {
                    Ok(violations) => {
                        into.lock().unwrap_or_else(PoisonError::into_inner).extend(violations);
                    }
                    Err(error) => eprintln!("ask Docker what runs: {error:#}"),
                }
                tokio::time::sleep(SAMPLE).await;
            }
        });
        Ok(Self { seen, task })
    }

    /// What was seen since the last call.
    pub fn violations(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub async fn stop(self) {
        self.task.abort();
        // It was aborted: there is nothing to hear.
        let _ = self.task.await;
    }
}

async fn sample(docker: &Docker, nodes: &[String]) -> Result<Vec<String>> {
    let mains = [format!("{}={}", label::ROLE, ContainerRole::Main.as_str())];
    let running = docker::running(docker, &mains).await?;
    Ok(doubles(&of(nodes, running.into_values())))
}

/// `running` are main containers.
fn doubles(running: &[ContainerLabels]) -> Vec<String> {
    let mut nodes_of_pod = BTreeMap::<&str, BTreeSet<&str>>::new();
    let mut unique = BTreeSet::new();
    for container in running {
        nodes_of_pod.entry(&container.pod_uid).or_default().insert(&container.node);
        if container.unique {
            unique.insert((&container.pod_uid, &container.node));
        }
    }
    let mut violations = Vec::new();
    if unique.len() > 1 {
        violations.push(format!("the unique pod runs {} times: {unique:?}", unique.len()));
    }
    for (uid, nodes) in nodes_of_pod.iter().filter(|(_, nodes)| nodes.len() > 1) {
        violations.push(format!("pod {uid} runs on {nodes:?}"));
    }
    violations
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use timonier_proto::Kind;

    use super::*;

    fn container(uid: &str, node: &str) -> ContainerLabels {
        ContainerLabels { pod_uid: uid.into(), node: node.into(), ..ContainerLabels::default() }
    }

    fn pod(uid: &str, node: &str, ending: bool) -> Object {
        let at = ending.then_some("2026-01-01T00:00:00Z");
        let json = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": uid, "namespace": "default", "uid": uid, "deletionTimestamp": at},
            "spec": {"nodeName": node, "containers": [{"name": "web", "image": "i"}]},
        });
        Object::from_json(Kind::Pod, json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_pod_that_runs_twice_is_seen() {
        let one = [container("a", "n1"), container("b", "n1"), container("b", "n1")];
        assert_eq!(doubles(&one), [""; 0], "a container that was restarted is of the same pod");
        let two = [container("a", "n1"), container("a", "n2")];
        assert_eq!(doubles(&two), [r#"pod a runs on {"n1", "n2"}"#]);
        let unique = |uid, node| ContainerLabels { unique: true, ..container(uid, node) };
        assert_eq!(doubles(&[unique("a", "n1"), container("b", "n2")]), [""; 0]);
        let twice = doubles(&[unique("a", "n1"), unique("b", "n2")]);
        assert_eq!(twice, [r#"the unique pod runs 2 times: {("a", "n1"), ("b", "n2")}"#]);
    }

    #[test]
    fn what_runs_and_should_not_is_seen() {
        let pods = [pod("a", "n1", false), pod("b", "n2", true)];
        let wrong = |running: &[ContainerLabels]| astray(&pods, running, running);
        assert_eq!(wrong(&[container("a", "n1")]), [""; 0]);
        assert_eq!(wrong(&[]), ["pod a does not run on n1"]);
        let still = wrong(&[container("a", "n1"), container("b", "n2")]);
        assert_eq!(still, ["pod b still runs on n2"]);
        let elsewhere = wrong(&[container("a", "n1"), container("a", "n2")]);
        assert_eq!(elsewhere, ["n2 has a container of  (a), which is no pod there"]);
        let left = astray(&pods, &[container("a", "n1")], &[container("gone", "n1")]);
        assert_eq!(left, ["n1 has a container of  (gone), which is no pod there"]);
    }
}
