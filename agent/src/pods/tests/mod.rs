//! The pods of a node on an engine in memory, with tokio's clock paused.

pub(crate) mod fake;
mod unique;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Value, json};
use tempfile::TempDir;
use timonier_proto::v1::AgentEvent;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::clock::Clock;
use super::{AssignmentSet, Pods, PodsConfig, StatusBoard, cleanup};
use crate::lease::Lease;
use crate::runtime::Runtime;
use fake::{FakeNetwork, FakeRuntime, STEP};

const NODE: &str = "n1";
/// Of the paused clock.
const DEADLINE: Duration = Duration::from_secs(3600);
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

struct Bed {
    runtime: Arc<FakeRuntime>,
    network: Arc<FakeNetwork>,
    pods: Pods,
    board: Arc<StatusBoard>,
    events: mpsc::Receiver<AgentEvent>,
    statuses: std::collections::HashMap<String, (PodStatus, bool)>,
    dir: TempDir,
    lease: Lease,
}

async fn start(
    runtime: &Arc<FakeRuntime>,
    network: &Arc<FakeNetwork>,
    dir: &TempDir,
    lease: &Lease,
) -> (Pods, Arc<StatusBoard>, mpsc::Receiver<AgentEvent>) {
    let config = PodsConfig {
        node: NODE.to_owned(),
        host_ip: "192.0.2.1".to_owned(),
        data_dir: dir.path().to_owned(),
        concurrent_starts: 4,
        lease: lease.clone(),
    };
    let base: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let clock = Clock::Tokio { base, start: Instant::now() };
    Pods::start_with(config, runtime.clone(), network.clone(), clock).await.unwrap()
}

impl Bed {
    async fn new() -> Self {
        Self::with_lease(Lease::always()).await
    }

    async fn with_lease(lease: Lease) -> Self {
        let (runtime, network) = (FakeRuntime::new(), Arc::new(FakeNetwork::default()));
        let dir = tempfile::tempdir().unwrap();
        let (pods, board, events) = start(&runtime, &network, &dir, &lease).await;
        Self { runtime, network, pods, board, events, statuses: Default::default(), dir, lease }
    }

    async fn restart(&mut self) {
        self.pods.shutdown().await;
        (self.pods, self.board, self.events) =
            start(&self.runtime, &self.network, &self.dir, &self.lease).await;
        self.statuses.clear();
    }

    async fn assign(&self, complete: bool, pods: &[Value], removed: &[&str]) {
        let pods = pods.iter().map(|pod| serde_json::from_value(pod.clone()).unwrap()).collect();
        let removed = removed.iter().map(|uid| (*uid).to_owned()).collect();
        self.pods.assign(AssignmentSet { complete, pods, removed }).await;
    }

    async fn until<T>(&mut self, mut look: impl FnMut(&mut Self) -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let (batch, updates) = self.board.take(1000);
            for update in updates {
                let status = serde_json::from_slice(&update.status_json).unwrap();
                self.statuses.insert(update.uid, (status, update.terminated));
            }
            self.board.stored(batch);
            if let Some(found) = look(self) {
                return found;
            }
            assert!(Instant::now() < deadline, "never came about: {:#?}", self.statuses);
            sleep(LOOK_INTERVAL).await;
        }
    }

    async fn status(&mut self, uid: &str, wanted: impl Fn(&PodStatus) -> bool) -> PodStatus {
        self.until(|bed| bed.statuses.get(uid).map(|s| s.0.clone()).filter(|s| wanted(s))).await
    }

    async fn ready(&mut self, uid: &str) -> PodStatus {
        self.status(uid, ready).await
    }

    async fn terminated(&mut self, uid: &str) {
        self.until(|bed| bed.statuses.get(uid).filter(|s| s.1).map(|_| ())).await;
    }

    fn reasons(&mut self) -> Vec<String> {
        let mut reasons = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            reasons.push(event.reason);
        }
        reasons
    }

    async fn until_containers(&self, count: usize) {
        let deadline = Instant::now() + DEADLINE;
        while self.containers().await != count {
            assert!(Instant::now() < deadline, "there are {}", self.containers().await);
            sleep(LOOK_INTERVAL).await;
        }
    }

    async fn containers(&self) -> usize {
        self.runtime.list(NODE).await.unwrap().len()
    }
}

fn ready(status: &PodStatus) -> bool {
    let list = status.conditions.as_deref().unwrap_or_default();
    list.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn restarts(status: &PodStatus) -> i32 {
    status.container_statuses.as_ref().unwrap()[0].restart_count
}

fn waiting(status: &PodStatus) -> String {
    let state = status.container_statuses.as_ref().unwrap()[0].state.clone().unwrap();
    state.waiting.and_then(|waiting| waiting.reason).unwrap_or_default()
}

fn id(status: &PodStatus) -> String {
    let id = status.container_statuses.as_ref().unwrap()[0].container_id.clone().unwrap();
    id.strip_prefix("docker://").unwrap().to_owned()
}

fn pod(uid: &str, spec: Value) -> Value {
    json!({"pod": {"metadata": {"name": uid, "namespace": "default", "uid": uid}, "spec": spec}})
}

fn simple(uid: &str) -> Value {
    pod(uid, json!({"containers": [{"name": "c", "image": "web:v1"}]}))
}

fn deleted(pod: &Value) -> Value {
    let mut pod = pod.clone();
    pod["pod"]["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    pod["pod"]["metadata"]["deletionGracePeriodSeconds"] = json!(30);
    pod
}

#[tokio::test(start_paused = true)]
async fn many_pods_start_few_at_a_time_with_as_few_calls_as_can_be() {
    let mut bed = Bed::new().await;
    let pods: Vec<Value> = (0..40).map(|i| simple(&format!("p{i}"))).collect();
    let begun = Instant::now();
    bed.assign(true, &pods, &[]).await;
    for i in 0..40 {
        bed.ready(&format!("p{i}")).await;
    }
    assert!(begun.elapsed() < STEP * 2 * 40 / 4 + Duration::from_millis(200));
    assert_eq!(bed.runtime.world.lock().unwrap().busiest, 4);
    for call in ["create", "start", "inspect"] {
        assert_eq!(bed.runtime.calls(call), 40, "{call}");
    }
    assert_eq!(bed.runtime.calls("image"), 1, "one lookup for all");
    assert_eq!(bed.network.attached.lock().unwrap().len(), 40);
    assert_eq!(bed.pods.running().len(), 40);
    let pod = bed.pods.find_by_name("default", "p7").unwrap();
    assert!(pod.containers[0].running && pod.ip.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_deleted_pod_leaves_nothing_and_is_told_until_the_master_knows() {
    let mut bed = Bed::new().await;
    let web = pod(
        "web",
        json!({
            "containers": [{"name": "c", "image": "web:v1"}, {"name": "d", "image": "web:v1"}],
            "volumes": [{"name": "v", "emptyDir": {}}],
        }),
    );
    bed.assign(true, std::slice::from_ref(&web), &[]).await;
    bed.ready("web").await;
    let folder = bed.dir.path().join("pods/web");
    assert!(folder.exists());
    assert_eq!(bed.containers().await, 3, "two and the sandbox");
    bed.assign(false, &[deleted(&web)], &[]).await;
    bed.terminated("web").await;
    assert_eq!(bed.containers().await, 0);
    assert!(!folder.exists());
    assert!(bed.network.addresses.lock().unwrap().is_empty());
    assert!(bed.pods.find("web").is_none());
    // Assigned once more before the master has heard: it does not come back.
    bed.statuses.clear();
    bed.assign(true, &[deleted(&web)], &[]).await;
    bed.terminated("web").await;
    assert_eq!(bed.containers().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_object_is_gone_is_stopped_and_not_told_of() {
    let mut bed = Bed::new().await;
    bed.assign(true, &[simple("a"), simple("b")], &[]).await;
    bed.ready("a").await;
    bed.ready("b").await;
    bed.assign(false, &[], &["a"]).await;
    bed.until(|bed| bed.pods.find("a").is_none().then_some(())).await;
    bed.assign(true, &[], &[]).await;
    bed.until(|bed| bed.pods.find("b").is_none().then_some(())).await;
    assert_eq!(bed.containers().await, 0);
    assert!(bed.statuses.values().all(|(_, terminated)| !terminated));
}

#[tokio::test(start_paused = true)]
async fn the_agent_starts_again_and_keeps_what_runs() {
    let mut bed = Bed::new().await;
    bed.assign(true, &[simple("a"), simple("b"), simple("stray")], &[]).await;
    let before = bed.ready("a").await;
    bed.ready("b").await;
    bed.ready("stray").await;
    bed.restart().await;
    // One dies while nobody watches.
    let gone = bed.runtime.running().into_iter().find(|one| *one != id(&before)).unwrap();
    bed.runtime.die(&gone, 1);
    bed.assign(false, &[simple("a")], &[]).await;
    let after = bed.ready("a").await;
    assert_eq!((id(&before), &before.pod_ip), (id(&after), &after.pod_ip));
    assert_eq!(bed.containers().await, 3, "before a complete set nothing is stopped");
    bed.assign(true, &[simple("a"), simple("b")], &[]).await;
    bed.ready("b").await;
    let stray = |bed: &mut Bed| {
        let world = bed.runtime.world.lock().unwrap();
        let any = world.containers.values().any(|c| c.spec.name.contains("stray"));
        (!any).then_some(())
    };
    bed.until(stray).await;
    assert_eq!(id(&bed.ready("a").await), id(&before));
}

/// A host that goes down right after its agent has started waits for these pods, too.
#[tokio::test(start_paused = true)]
async fn what_was_not_taken_over_yet_counts_as_running() {
    let mut bed = Bed::new().await;
    bed.assign(true, &[simple("a")], &[]).await;
    bed.ready("a").await;
    bed.restart().await;
    assert!(bed.pods.running().is_empty(), "nothing was assigned to this agent yet");
    assert_eq!(bed.pods.count_in_engine().await.unwrap(), 1);
    bed.assign(true, &[], &[]).await;
    while bed.pods.count_in_engine().await.unwrap() > 0 {
        sleep(LOOK_INTERVAL).await;
    }
    assert_eq!(bed.runtime.running(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_stops_leaves_statuses_and_is_reconciled_when_back() {
    let mut bed = Bed::new().await;
    let mut not_ready = bed.pods.not_ready();
    bed.assign(true, &[simple("a")], &[]).await;
    bed.ready("a").await;
    bed.runtime.stop();
    not_ready.wait_for(Option::is_some).await.unwrap();
    // Assigned meanwhile: waits, and nothing is held against it.
    bed.assign(false, &[simple("b")], &[]).await;
    sleep(Duration::from_secs(30)).await;
    let status = bed.status("b", |_| true).await;
    assert_eq!(waiting(&status), "ContainerCreating");
    assert!(ready(&bed.status("a", |_| true).await), "the last status stands");
    bed.runtime.come_back();
    not_ready.wait_for(Option::is_none).await.unwrap();
    let back = bed.status("a", |s| ready(s) && restarts(s) == 1).await;
    assert!(bed.runtime.running().contains(&id(&back)));
    assert_eq!(restarts(&bed.ready("b").await), 0);
    let failures = bed.reasons().iter().filter(|reason| *reason == "Failed").count();
    assert_eq!(failures, 0, "an engine that is away is no pod's failure");
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_slows_down_and_deaf_containers_are_killed() {
    let mut bed = Bed::new().await;
    bed.assign(true, &[simple("a")], &[]).await;
    let first = bed.ready("a").await;
    bed.runtime.die(&id(&first), 1);
    let second = bed.status("a", |s| ready(s) && restarts(s) == 1).await;
    let died_at = Instant::now();
    bed.runtime.die(&id(&second), 1);
    bed.status("a", |s| waiting(s) == "CrashLoopBackOff").await;
    bed.status("a", |s| ready(s) && restarts(s) == 2).await;
    assert_eq!(died_at.elapsed().as_secs(), 10);
    assert_eq!(bed.containers().await, 2, "the one that runs and the last dead one");
    bed.runtime.world.lock().unwrap().deaf = true;
    let deleted_at = Instant::now();
    bed.assign(false, &[deleted(&simple("a"))], &[]).await;
    bed.terminated("a").await;
    let took = deleted_at.elapsed().as_millis();
    assert!((30_300..31_000).contains(&took), "{took} ms");
    assert_eq!(bed.runtime.calls("kill"), 1);
}

#[tokio::test(start_paused = true)]
async fn images_are_pulled_as_the_policy_says() {
    let mut bed = Bed::new().await;
    let with = |uid: &str, image: &str, policy: &str| {
        let container = json!({"name": "c", "image": image, "imagePullPolicy": policy});
        pod(uid, json!({"containers": [container]}))
    };
    bed.runtime.world.lock().unwrap().remote.extend(["far:v1".to_owned(), "web:v1".to_owned()]);
    bed.assign(true, &[with("far", "far:v1", "IfNotPresent")], &[]).await;
    bed.ready("far").await;
    assert!(bed.reasons().contains(&"Pulling".to_owned()));
    assert_eq!(bed.runtime.calls("pull"), 1);
    bed.assign(false, &[with("always", "web:v1", "Always")], &[]).await;
    bed.ready("always").await;
    assert_eq!(bed.runtime.calls("pull"), 2);
    bed.assign(false, &[with("none", "none:v1", "IfNotPresent")], &[]).await;
    bed.status("none", |s| waiting(s) == "ImagePullBackOff").await;
    bed.runtime.world.lock().unwrap().remote.insert("none:v1".to_owned());
    bed.ready("none").await;
    bed.assign(false, &[with("never", "off:v1", "Never")], &[]).await;
    bed.status("never", |s| waiting(s) == "ErrImageNeverPull").await;
}

#[tokio::test(start_paused = true)]
async fn cleaning_up_takes_every_container_and_folder_of_the_node() {
    let mut bed = Bed::new().await;
    bed.assign(true, &[simple("a"), simple("b")], &[]).await;
    bed.ready("a").await;
    bed.ready("b").await;
    bed.pods.shutdown().await;
    let removed = cleanup(bed.runtime.as_ref(), NODE, bed.dir.path()).await.unwrap();
    assert_eq!(removed, 2);
    assert_eq!(bed.containers().await, 0);
    assert_eq!(std::fs::read_dir(bed.dir.path().join("pods")).unwrap().count(), 0);
    assert_eq!(cleanup(bed.runtime.as_ref(), NODE, bed.dir.path()).await.unwrap(), 0);
}
