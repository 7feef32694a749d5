//! Deployments that somebody changes all the time, and what must hold of their pods.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use timonier_master::stamp::stamp;
use timonier_master::store::Store;
use timonier_master_core::admission::admit_new;
use timonier_master_core::object::{
    is_active, is_finished, is_ready, node_of, node_ready_status, phase, uid_of,
};
use timonier_master_core::op::{Op, Txn};
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::Object;
use timonier_proto::decode::decode;
use timonier_proto::k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use timonier_proto::k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use timonier_proto::k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use timonier_proto::k8s_openapi::jiff::Timestamp;
use timonier_proto::unique::UNIQUE_ANNOTATION;

use crate::engine::Engine;
use crate::workload::Clients;

const NAMESPACE: &str = "default";
/// An ordinary deployment…
pub const WEB: &str = "web";
/// …and one whose pod must be unique.
const DB: &str = "db";
const REPLICAS_MAX: i32 = 6;
/// `maxSurge` and `maxUnavailable` of the ordinary one; with none of them the default.
const BOUNDS: [Option<(i32, i32)>; 4] = [None, Some((1, 0)), Some((0, 1)), Some((2, 2))];
/// A container that does not listen is killed after it.
const GRACE_S: u32 = 3;
/// Of the replicas, where a deployment names no bound.
const BOUND_DEFAULT: &str = "25%";
/// Between two changes.
const PAUSE_MAX: Duration = Duration::from_secs(6);
const RETRY: Duration = Duration::from_millis(300);

fn deployment(name: &str, replicas: i32, version: u32, bounds: Option<(i32, i32)>) -> Object {
    let mut manifest = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"namespace": NAMESPACE, "name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": GRACE_S,
                    "containers": [{"name": "c", "image": format!("{name}:v{version}")}],
                },
            },
        },
    });
    if let Some((surge, unavailable)) = bounds {
        manifest["spec"]["strategy"] =
            json!({"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}});
    }
    if name == DB {
        manifest["spec"]["strategy"] = json!({"type": "Recreate"});
        manifest["spec"]["template"]["metadata"]["annotations"] =
            json!({UNIQUE_ANNOTATION: "true"});
    }
    admit_new(decode(&manifest).expect("a deployment")).expect("a deployment that is allowed")
}

/// Changes the deployments for ever.
pub fn change(clients: &Clients) {
    tokio::spawn(change_one(clients.clone(), WEB));
    tokio::spawn(change_one(clients.clone(), DB));
}

/// Changes the image or the number of replicas, of which a unique one has one, and the bounds.
async fn change_one(clients: Clients, name: &'static str) {
    let is_unique = name == DB;
    let (mut replicas, mut version) = (if is_unique { 1 } else { 3 }, 1);
    let first = deployment(name, replicas, version, None);
    let create = stamp(Op::Create(first), Timestamp::now());
    write(&clients, &format!("{name}-create"), create).await;
    for change in 0_u32.. {
        tokio::time::sleep(PAUSE_MAX.mul_f64(fastrand::f64())).await;
        if is_unique || fastrand::bool() {
            version += 1;
        } else {
            replicas = fastrand::i32(1..=REPLICAS_MAX);
        }
        let bounds = if is_unique { None } else { BOUNDS[fastrand::usize(..BOUNDS.len())] };
        let replace = Op::Replace(deployment(name, replicas, version, bounds));
        write(&clients, &format!("{name}-{change}"), replace).await;
    }
}

async fn write(clients: &Clients, id: &str, op: Op) {
    let txn = Txn { id: Some(id.to_owned()), ..Txn::of(vec![op]) };
    while !matches!(clients.commit(&txn).await, Some(Ok(_))) {
        tokio::time::sleep(RETRY).await;
    }
}

fn pods(snapshot: &Snapshot) -> impl Iterator<Item = &Pod> {
    snapshot.list::<Pod>(Some(NAMESPACE)).map(|pod| &**pod)
}

fn pods_of<'a>(snapshot: &'a Snapshot, name: &'a str) -> impl Iterator<Item = &'a Pod> {
    let is_of = move |pod: &&Pod| {
        pod.metadata.labels.as_ref().and_then(|labels| labels.get("app")).is_some_and(|a| a == name)
    };
    pods(snapshot).filter(is_of)
}

/// What a deployment asks for, by Kubernetes' arithmetic.
#[derive(Clone, Copy, Default)]
pub struct Wanted {
    pub replicas: i32,
    pub surge_max: i32,
    pub unavailable_max: i32,
}

impl Wanted {
    pub fn of(deployment: &Deployment) -> Self {
        let spec = deployment.spec.as_ref();
        let replicas = spec.and_then(|spec| spec.replicas).unwrap_or(1);
        let rolling = spec.and_then(|spec| spec.strategy.as_ref()?.rolling_update.as_ref());
        let surge_max = bound(rolling.and_then(|r| r.max_surge.as_ref()), replicas, 99);
        let unavailable_max = bound(rolling.and_then(|r| r.max_unavailable.as_ref()), replicas, 0);
        let unavailable_max = if surge_max == 0 { unavailable_max.max(1) } else { unavailable_max };
        Self { replicas, surge_max, unavailable_max: unavailable_max.min(replicas) }
    }

    /// So many pods are available unless a fault takes them.
    pub fn available_min(self) -> i32 {
        self.replicas - self.unavailable_max
    }
}

/// `up` is added to the hundredth parts before they are divided: 99 rounds up, 0 down.
fn bound(value: Option<&IntOrString>, replicas: i32, up: i32) -> i32 {
    let percentage = match value {
        Some(IntOrString::Int(number)) => return *number,
        Some(IntOrString::String(text)) => text,
        None => BOUND_DEFAULT,
    };
    let percent: i32 = percentage.trim_end_matches('%').parse().expect("a percentage");
    (percent * replicas + up) / 100
}

/// Of the ordinary deployment at one revision.
#[derive(Clone, Copy)]
struct Count {
    /// Pods that count.
    active: i32,
    /// What its sets ask for.
    asked: i32,
    /// What the surge allows.
    surge: i32,
}

fn count(snapshot: &Snapshot) -> Option<Count> {
    let deployment = snapshot.get::<Deployment>(NAMESPACE, WEB)?;
    let wanted = Wanted::of(deployment);
    let uid = uid_of(&deployment.metadata);
    let sets = snapshot.owned_by::<ReplicaSet>(uid).filter_map(|set| set.spec.as_ref()?.replicas);
    let active = pods_of(snapshot, WEB).filter(|pod| is_active(pod)).count();
    Some(Count {
        active: i32::try_from(active).unwrap_or(i32::MAX),
        asked: sets.sum(),
        surge: wanted.replicas + wanted.surge_max,
    })
}

/// What was seen of the pods.
#[derive(Default)]
pub struct PodObserver {
    /// By uid, the highest revision and the phase then.
    phases: BTreeMap<String, (u64, u8)>,
    /// Of each master's copy, by its host: its revision, and what it had then.
    counts: BTreeMap<usize, (u64, Count)>,
    /// By revision, of whichever copy had it.
    seen: BTreeMap<u64, Count>,
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
        for pod in pods(&snapshot) {
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
        let Some(now) = count(&snapshot) else { return Ok(()) };
        self.seen.insert(snapshot.revision, now);
        let last = self.counts.insert(host, (snapshot.revision, now));
        let Some((revision, before)) = last.filter(|(last, _)| *last < snapshot.revision) else {
            return Ok(());
        };
        // This copy may have been behind for a while.
        let meanwhile = || self.seen.range(revision..=snapshot.revision).map(|(_, seen)| seen);
        let Count { active, asked, surge } = now;
        if asked > before.asked && meanwhile().all(|seen| asked > seen.surge) {
            return Err(format!("[8] its sets ask for {asked} pods, {surge} are allowed"));
        }
        if active > before.active && meanwhile().all(|seen| active > seen.surge.max(seen.asked)) {
            return Err(format!("[8] {active} pods, {asked} are asked for, {surge} are allowed"));
        }
        Ok(())
    }
}

/// No pod on two nodes, and never two that must be unique.
pub fn check_nodes(engines: &[Engine]) -> Result<(), String> {
    let mut nodes: BTreeMap<String, String> = BTreeMap::new();
    let mut unique = Vec::new();
    for engine in engines {
        for (uid, ran) in engine.running() {
            if ran.unique {
                unique.push(format!("{uid} on {}", ran.node));
            }
            if let Some(other) = nodes.insert(uid.clone(), ran.node.clone()) {
                return Err(format!("[6] pod {uid} runs on {other} and on {}", ran.node));
            }
        }
    }
    if unique.len() < 2 {
        return Ok(());
    }
    Err(format!("[9] pods of which there must be one run at once: {}", unique.join(" and ")))
}

/// Why the deployments are not as they should be, if they are not.
pub fn unsettled(store: &Store, engines: &[Engine]) -> Option<String> {
    let snapshot = store.snapshot();
    if let Some(why) = [WEB, DB].iter().find_map(|name| unsettled_one(&snapshot, name)) {
        return Some(why);
    }
    let (_, lost) = nodes(store);
    if !lost.is_empty() {
        return Some(format!("{lost:?} are not ready"));
    }
    let all = pods(&snapshot).filter(|pod| !is_finished(pod)).count();
    let runs: usize = engines.iter().map(|engine| engine.running().len()).sum();
    (runs != all).then(|| format!("{runs} pods run, {all} are wanted"))
}

/// How many nodes are Ready, and how the others are.
pub fn nodes(store: &Store) -> (usize, Vec<String>) {
    let snapshot = store.snapshot();
    let (ready, others): (Vec<&Arc<Node>>, Vec<_>) =
        snapshot.list::<Node>(None).partition(|node| node_ready_status(node) == "True");
    let text = |node: &Arc<Node>| {
        let name = node.metadata.name.clone().unwrap_or_default();
        format!("{name} ({})", node_ready_status(node))
    };
    (ready.len(), others.into_iter().map(text).collect())
}

fn unsettled_one(snapshot: &Snapshot, name: &str) -> Option<String> {
    let deployment = snapshot.get::<Deployment>(NAMESPACE, name)?;
    let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let image =
        |spec: &PodSpec| spec.containers.first().and_then(|container| container.image.clone());
    let wanted = deployment.spec.as_ref().and_then(|s| image(s.template.spec.as_ref()?));
    let pods: Vec<&Pod> = pods_of(snapshot, name).filter(|pod| !is_finished(pod)).collect();
    let (good, others): (Vec<&Pod>, Vec<&Pod>) = pods.iter().partition(|pod| {
        is_active(pod) && is_ready(pod) && pod.spec.as_ref().and_then(image) == wanted
    });
    if usize::try_from(replicas) == Ok(good.len()) && others.is_empty() {
        return None;
    }
    let others: Vec<String> = others.into_iter().map(described).collect();
    let good = good.len();
    Some(format!(
        "{replicas} pods of {wanted:?} are wanted, {good} are so, and these not: {others:?}"
    ))
}

fn described(pod: &Pod) -> String {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let ends = if is_active(pod) { "" } else { ", ending" };
    let status = serde_json::to_string(&pod.status).unwrap_or_default();
    format!("{name} on {:?}{ends}: {status}", node_of(pod))
}
