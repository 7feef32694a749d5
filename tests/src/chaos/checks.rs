//! What must hold after each round.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use timonier_proto::v1::{GetRequest, ListRequest, ObjectRef};
use timonier_proto::{Kind, Object};

use super::cluster::{AGENTS, ChaosCluster, MASTERS, REPLICAS, UNIQUE, WEB};
use super::containers;
use super::objects::{self, NAMESPACE};
use super::record::Wrong;
use super::writers::Writers;
use crate::cluster::condition;
use crate::wait::until;

const CONVERGE_DEADLINE: Duration = Duration::from_secs(60);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const PAGE_OBJECTS: u32 = 500;
/// Of what is wrong with the objects of one master.
const SHOWN_MAX: usize = 10;

/// What was found after a round.
#[derive(Debug, Default)]
pub struct Found {
    /// Objects of which something acknowledged is undone.
    pub lost: BTreeSet<String>,
    pub violations: Vec<String>,
}

/// The cluster gets whole again, has what was acknowledged, and its masters agree.
pub async fn all(chaos: &ChaosCluster, writers: &Writers) -> Found {
    let mut found = Found::default();
    if let Err(error) = converged(chaos).await {
        found.violations.push(format!("{error:#}"));
    }
    if let Err(error) = agree(chaos, writers, &mut found).await {
        found.violations.push(format!("the masters cannot be compared: {error:#}"));
    }
    found
}

/// Every master answers for the whole cluster, every node is Ready, every replica is there, and
/// nothing runs beside it.
pub async fn converged(chaos: &ChaosCluster) -> Result<()> {
    until("the cluster to be whole again", CONVERGE_DEADLINE, || async {
        for master in 0..MASTERS {
            let answered = tokio::time::timeout(CALL_TIMEOUT, whole(chaos, master)).await;
            let answered = answered.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in time")));
            answered.with_context(|| format!("master {master}"))?;
        }
        let pods = list(chaos, 0, Kind::Pod, "").await.context("list the pods")?;
        containers::are_of(&pods, &chaos.nodes()).await
    })
    .await
}

async fn whole(chaos: &ChaosCluster, master: usize) -> Result<()> {
    let members = chaos.cluster.ask(master).await?.masters;
    let voters = members.iter().filter(|member| member.voter).count();
    ensure!(voters == MASTERS && members.len() == MASTERS, "the members are {members:?}");
    let nodes = list(chaos, master, Kind::Node, "").await?;
    let ready = nodes.iter().filter(|node| condition(node, "Ready") == "True").count();
    ensure!(ready == AGENTS, "{ready} of {AGENTS} nodes are Ready");
    for (name, wanted) in [(WEB, REPLICAS), (UNIQUE, 1)] {
        let deployment = get(chaos, master, Kind::Deployment, "default", name).await?;
        let available = deployment.to_value()?["status"]["availableReplicas"].as_u64();
        ensure!(available == Some(wanted as u64), "{name}: {available:?} of {wanted} available");
    }
    Ok(())
}

/// Compares what each master has with what was acknowledged, and with what the others have, by
/// linearizable reads.
async fn agree(chaos: &ChaosCluster, writers: &Writers, found: &mut Found) -> Result<()> {
    for master in 0..MASTERS {
        // What is acknowledged while the list is read may not be in it.
        let marks = writers.marks();
        let objects = list(chaos, master, Kind::ConfigMap, NAMESPACE)
            .await
            .with_context(|| format!("list through master {master}"))?;
        let mut stored = BTreeMap::new();
        for object in objects {
            match objects::parse(&object.to_value()?) {
                Ok((name, one)) => drop(stored.insert(name, one)),
                Err(error) => found.violations.push(format!("master {master}: {error:#}")),
            }
        }
        let wrong = writers.read_all(&marks, &stored);
        for (_, wrong) in wrong.iter().take(SHOWN_MAX) {
            found.violations.push(format!("master {master}: {}", wrong.what()));
        }
        let lost = wrong.into_iter().filter(|(_, wrong)| matches!(wrong, Wrong::Lost(_)));
        found.lost.extend(lost.map(|(name, _)| name));
    }
    Ok(())
}

async fn get(
    chaos: &ChaosCluster,
    master: usize,
    kind: Kind,
    namespace: &str,
    name: &str,
) -> Result<Object> {
    let reference =
        ObjectRef { kind: kind.to_string(), namespace: namespace.into(), name: name.into() };
    let request = GetRequest { r#ref: Some(reference), linearizable: true };
    let reply = chaos.cluster.client_of(master).await?.get(request).await?.into_inner();
    Ok(Object::from_json(kind, &reply.json)?)
}

async fn list(
    chaos: &ChaosCluster,
    master: usize,
    kind: Kind,
    namespace: &str,
) -> Result<Vec<Object>> {
    let mut client = chaos.cluster.client_of(master).await?;
    let mut request = ListRequest {
        kind: kind.to_string(),
        namespace: namespace.into(),
        limit: PAGE_OBJECTS,
        linearizable: true,
        ..Default::default()
    };
    let mut objects = Vec::new();
    loop {
        let reply = client.list(request.clone()).await?.into_inner();
        for json in &reply.items {
            objects.push(Object::from_json(kind, json)?);
        }
        if reply.continue_token.is_empty() {
            return Ok(objects);
        }
        request.continue_token = reply.continue_token;
    }
}
