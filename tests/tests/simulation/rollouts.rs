//! A deployment that somebody changes all the time, and what must hold of its pods.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use timonier_master::stamp::stamp;
use timonier_master::store::Store;
use timonier_master_core::admission::admit_new;
use timonier_master_core::object::{is_active, is_ready, node_ready_status, phase, uid_of};
use timonier_master_core::op::{Op, Txn};
use timonier_master_core::rollout::{Bounds, replicas_of};
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::Object;
use timonier_proto::decode::decode;
use timonier_proto::k8s_openapi::api::apps::v1::Deployment;
use timonier_proto::k8s_openapi::api::core::v1::{Node, Pod};
use timonier_proto::k8s_openapi::jiff::Timestamp;

use crate::agents::Running;
use crate::workload::Clients;

const NAMESPACE: &str = "default";
const NAME: &str = "web";
const REPLICAS_MAX: i32 = 6;
/// Between two changes.
const PAUSE_MAX: Duration = Duration::from_secs(6);
const RETRY: Duration = Duration::from_millis(300);

fn deployment(replicas: i32, version: u32) -> Object {
    let manifest = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"namespace": NAMESPACE, "name": NAME},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": NAME}},
            "template": {
                "metadata": {"labels": {"app": NAME}},
                "spec": {"containers": [{"name": "web", "image": format!("web:v{version}")}]},
            },
        },
    });
    admit_new(decode(&manifest).expect("a deployment")).expect("a deployment that is allowed")
}

/// Changes the image or the number of replicas, for ever.
pub async fn change(clients: Clients) {
    let (mut replicas, mut version) = (3, 1);
    let create = stamp(Op::Create(deployment(replicas, version)), Timestamp::now());
    write(&clients, "web-create", create).await;
    for change in 0_u32.. {
        tokio::time::sleep(PAUSE_MAX.mul_f64(fastrand::f64())).await;
        if fastrand::bool() {
            version += 1;
        } else {
            replicas = fastrand::i32(1..=REPLICAS_MAX);
        }
        let replace = Op::Replace(deployment(replicas, version));
        write(&clients, &format!("web-{change}"), replace).await;
    }
}

async fn write(clients: &Clients, id: &str, op: Op) {
    let txn = Txn { id: Some(id.to_owned()), ops: vec![op], preconditions: Vec::new() };
    while !matches!(clients.commit(&txn).await, Some(Ok(_))) {
        tokio::time::sleep(RETRY).await;
    }
}

fn of_web(snapshot: &Snapshot) -> impl Iterator<Item = &Pod> {
    snapshot.list::<Pod>(Some(NAMESPACE)).map(|pod| &**pod)
}

/// Pods that count, and how many there may be at most.
fn count(snapshot: &Snapshot) -> Option<(i32, i32)> {
    let deployment = snapshot.get::<Deployment>(NAMESPACE, NAME)?;
    let (replicas, bounds) = (replicas_of(deployment), Bounds::of(deployment));
    let active = of_web(snapshot).filter(|pod| is_active(pod)).count();
    Some((i32::try_from(active).unwrap_or(i32::MAX), replicas + bounds.max_surge))
}

/// What was seen of the pods.
#[derive(Default)]
pub struct PodObserver {
    /// By uid, the highest revision and the phase then.
    phases: BTreeMap<String, (u64, u8)>,
    /// Of each master's copy, by its host.
    counts: BTreeMap<usize, (u64, i32, i32)>,
}

fn rank(phase: &str) -> u8 {
    match phase {
        "Running" => 1,
        "Succeeded" | "Failed" => 2,
        _ => 0,
    }
}

impl PodObserver {
    pub fn observe(&mut self, host: usize, store: &Store) -> Result<(), String> {
        let snapshot = store.snapshot();
        for pod in of_web(&snapshot) {
            let revision = pod.metadata.resource_version.as_deref();
            let revision = revision.and_then(|text| text.parse().ok()).unwrap_or(0);
            let now = rank(phase(pod));
            let uid = uid_of(&pod.metadata).to_owned();
            let last = self.phases.entry(uid).or_insert((revision, now));
            if revision > last.0 {
                if now < last.1 {
                    let name = pod.metadata.name.clone().unwrap_or_default();
                    return Err(format!("[7] the phase of {name} went back to {:?}", phase(pod)));
                }
                *last = (revision, now);
            }
        }
        let Some((active, allowed)) = count(&snapshot) else { return Ok(()) };
        let last = self.counts.insert(host, (snapshot.revision, active, allowed));
        if let Some((revision, before, allowed_before)) = last
            && revision < snapshot.revision
            && active > before
            && active > allowed.max(allowed_before)
        {
            return Err(format!("[8] {active} pods, {allowed} are allowed"));
        }
        Ok(())
    }
}

/// No pod on two nodes.
pub fn check_nodes(running: &[Running]) -> Result<(), String> {
    let mut nodes: BTreeMap<String, String> = BTreeMap::new();
    for host in running {
        for (uid, node) in host.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if let Some(other) = nodes.insert(uid.clone(), node.clone()) {
                return Err(format!("[6] pod {uid} runs on {other} and on {node}"));
            }
        }
    }
    Ok(())
}

/// Why the deployment is not as it should be, if it is not.
pub fn unsettled(store: &Store, running: &[Running]) -> Option<String> {
    let snapshot = store.snapshot();
    let deployment = snapshot.get::<Deployment>(NAMESPACE, NAME)?;
    let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let image = |spec: &timonier_proto::k8s_openapi::api::core::v1::PodSpec| {
        spec.containers.first().and_then(|container| container.image.clone())
    };
    let wanted = deployment.spec.as_ref().and_then(|s| image(s.template.spec.as_ref()?));
    let pods: Vec<&Pod> = of_web(&snapshot).collect();
    let good = pods.iter().filter(|pod| {
        is_active(pod) && is_ready(pod) && pod.spec.as_ref().and_then(image) == wanted
    });
    let (good, all) = (good.count(), pods.len());
    if usize::try_from(replicas) != Ok(good) || good != all {
        return Some(format!("{replicas} pods of {wanted:?} are wanted, {good} of {all} are so"));
    }
    let lost: Vec<&str> = snapshot
        .list::<Node>(None)
        .filter(|node| node_ready_status(node) != "True")
        .filter_map(|node| node.metadata.name.as_deref())
        .collect();
    if !lost.is_empty() {
        return Some(format!("{lost:?} are not ready"));
    }
    let runs: usize = running.iter().map(|host| lock(host).len()).sum();
    (runs != all).then(|| format!("{runs} pods run, {all} are wanted"))
}

fn lock<T>(mutex: &Arc<Mutex<T>>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
