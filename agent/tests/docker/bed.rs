//! A node for one test: its own name, bridge, ranges and folder, so that tests and whatever else
//! uses this machine's Docker do not meet.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Value, json};
use tempfile::TempDir;
use timonier_agent::net::{NetConfig, Network};
use timonier_agent::pods::{
    AssignmentSet, CONCURRENT_STARTS_DEFAULT, Pods, PodsConfig, StatusBoard, cleanup,
};
use timonier_agent::runtime::docker::{DOCKER_SOCKET_DEFAULT, Docker};
use timonier_agent::runtime::{ContainerSummary, Runtime};
use timonier_agent_core::net::bridge_name;
use timonier_proto::compiled::CompiledPod;
use timonier_proto::v1::AgentEvent;
use tokio::sync::mpsc;
use tokio::time::sleep;

/// Longest wait for something that is to come about.
const DEADLINE: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

static NEXT: AtomicU8 = AtomicU8::new(0);

pub struct Bed {
    pub node: String,
    pub runtime: Arc<Docker>,
    pub network: Network,
    pub pods: Pods,
    board: Arc<StatusBoard>,
    events: mpsc::Receiver<AgentEvent>,
    pub seen_events: Vec<AgentEvent>,
    statuses: std::collections::HashMap<String, (PodStatus, bool)>,
    dir: TempDir,
    ended: bool,
}

impl Bed {
    pub async fn start() -> Self {
        let node = format!("test-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let octet = std::process::id() % 100 + 100;
        let range = |text: String| text.parse().expect("it is a range");
        let network = Network::start(NetConfig {
            bridge: bridge_name(&node),
            pod_cidr: range(format!("10.{octet}.{number}.0/24")),
            cluster_cidr: range(format!("10.{octet}.{number}.0/24")),
            service_cidr: range(format!("198.18.{number}.0/24")),
            node: node.clone(),
        })
        .await
        .expect("the network starts; hint: run as root");
        let runtime = Arc::new(Docker::new(DOCKER_SOCKET_DEFAULT));
        let version = runtime.version().await.expect("docker answers; hint: deploy/setup.sh");
        assert_eq!(version.name, "docker");
        let web = runtime.image("timonier/web:v1").await.expect("docker answers");
        assert!(web.is_some(), "timonier/web:v1 is missing; hint: deploy/images/build.sh web");
        let dir = tempfile::tempdir().unwrap();
        let (pods, board, events) = start_pods(&node, &runtime, &network, dir.path().into()).await;
        Self {
            node,
            runtime,
            network,
            pods,
            board,
            events,
            seen_events: Vec::new(),
            statuses: Default::default(),
            dir,
            ended: false,
        }
    }

    /// The agent's part stops and starts again; containers are not touched.
    pub async fn restart(&mut self) {
        self.pods.shutdown().await;
        let dir = self.dir.path().into();
        (self.pods, self.board, self.events) =
            start_pods(&self.node, &self.runtime, &self.network, dir).await;
        self.statuses.clear();
    }

    pub async fn assign(&self, pods: &[Value]) {
        self.assign_set(false, pods, &[]).await;
    }

    pub async fn assign_set(&self, complete: bool, pods: &[Value], removed: &[&str]) {
        let pods = pods.iter().map(|pod| serde_json::from_value(pod.clone()).unwrap()).collect();
        let removed = removed.iter().map(|uid| (*uid).to_owned()).collect();
        self.pods.assign(AssignmentSet { complete, pods, removed }).await;
    }

    /// The status of a pod once `wanted` holds of it.
    pub async fn status(&mut self, uid: &str, wanted: impl Fn(&PodStatus) -> bool) -> PodStatus {
        self.until(uid, |status, _| wanted(status)).await
    }

    pub async fn ready(&mut self, uid: &str) -> PodStatus {
        self.status(uid, |status| condition(status, "Ready")).await
    }

    pub async fn terminated(&mut self, uid: &str) -> PodStatus {
        self.until(uid, |_, terminated| terminated).await
    }

    async fn until(&mut self, uid: &str, wanted: impl Fn(&PodStatus, bool) -> bool) -> PodStatus {
        let begun = Instant::now();
        loop {
            self.drain();
            if let Some((status, terminated)) = self.statuses.get(uid)
                && wanted(status, *terminated)
            {
                return status.clone();
            }
            if begun.elapsed() > DEADLINE {
                let status = self.statuses.get(uid).map(|(status, _)| json!(status));
                panic!("never came about; status {status:?}, events {:#?}", self.messages());
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    pub async fn event(&mut self, reason: &str, text: &str) {
        let begun = Instant::now();
        loop {
            self.drain();
            if self.seen_events.iter().any(|e| e.reason == reason && e.message.contains(text)) {
                return;
            }
            assert!(begun.elapsed() < DEADLINE, "no event {reason}: {:#?}", self.messages());
            sleep(LOOK_INTERVAL).await;
        }
    }

    fn drain(&mut self) {
        let (batch, updates) = self.board.take(1000);
        for update in updates {
            let status = serde_json::from_slice(&update.status_json).unwrap();
            self.statuses.insert(update.uid, (status, update.terminated));
        }
        self.board.stored(batch);
        while let Ok(event) = self.events.try_recv() {
            self.seen_events.push(event);
        }
    }

    fn messages(&self) -> Vec<String> {
        self.seen_events.iter().map(|e| format!("{} {} {}", e.name, e.reason, e.message)).collect()
    }

    pub async fn containers(&self) -> Vec<ContainerSummary> {
        self.runtime.list(&self.node).await.unwrap()
    }

    /// What a container wrote.
    pub async fn logs(&self, id: &str) -> String {
        use futures::StreamExt;
        use timonier_agent::runtime::Output;
        let mut lines = self.runtime.logs(id, Default::default());
        let mut text = String::new();
        while let Some(item) = lines.next().await {
            let (Output::Stdout(bytes) | Output::Stderr(bytes)) = item.unwrap();
            text.push_str(&String::from_utf8_lossy(&bytes));
        }
        text
    }

    pub async fn end(mut self) {
        self.pods.shutdown().await;
        self.ended = true;
        cleanup(self.runtime.as_ref(), &self.node, self.dir.path()).await.unwrap();
        assert!(self.containers().await.is_empty(), "cleanup left containers");
        let left = std::fs::read_dir(self.dir.path().join("pods")).unwrap().count();
        assert_eq!(left, 0, "cleanup left folders");
        self.network.teardown().await.unwrap();
    }
}

/// A test that failed leaves nothing either.
impl Drop for Bed {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let (pods, runtime, network) =
            (self.pods.clone(), self.runtime.clone(), self.network.clone());
        let (node, dir) = (self.node.clone(), self.dir.path().to_owned());
        let work = async move {
            pods.shutdown().await;
            let cleaned = cleanup(runtime.as_ref(), &node, &dir).await;
            let torn_down = network.teardown().await;
            eprintln!("after the failure: {cleaned:?}, {torn_down:?}");
        };
        let handle = tokio::runtime::Handle::current();
        std::thread::spawn(move || handle.block_on(work)).join().ok();
    }
}

async fn start_pods(
    node: &str,
    runtime: &Arc<Docker>,
    network: &Network,
    data_dir: PathBuf,
) -> (Pods, Arc<StatusBoard>, mpsc::Receiver<AgentEvent>) {
    let config = PodsConfig {
        node: node.to_owned(),
        host_ip: "127.0.0.1".to_owned(),
        data_dir,
        concurrent_starts: CONCURRENT_STARTS_DEFAULT,
        lease: timonier_agent::lease::Lease::always(),
    };
    Pods::start(config, runtime.clone(), Arc::new(network.clone())).await.expect("pods start")
}

/// A pod, compiled; `spec` is its spec.
pub fn pod(name: &str, spec: Value) -> (String, Value) {
    let uid = uuid::Uuid::new_v4().to_string();
    let pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": uid, "labels": {"app": name}},
        "spec": spec,
    });
    (uid, json!({"pod": pod}))
}

/// A container of the web image.
pub fn web(args: &[&str]) -> Value {
    json!({"name": "web", "image": "timonier/web:v1", "args": args})
}

pub fn deleted(pod: &Value, grace_s: i64) -> Value {
    let mut pod = pod.clone();
    pod["pod"]["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    pod["pod"]["metadata"]["deletionGracePeriodSeconds"] = json!(grace_s);
    let _: CompiledPod = serde_json::from_value(pod.clone()).unwrap();
    pod
}

pub fn condition(status: &PodStatus, name: &str) -> bool {
    let list = status.conditions.as_deref().unwrap_or_default();
    list.iter().any(|condition| condition.type_ == name && condition.status == "True")
}

/// Of the first main container.
pub fn restarts(status: &PodStatus) -> i32 {
    status.container_statuses.as_ref().unwrap()[0].restart_count
}

pub fn waiting(status: &PodStatus) -> Option<String> {
    let state = status.container_statuses.as_ref()?[0].state.clone()?;
    state.waiting?.reason
}

pub fn container_id(status: &PodStatus) -> String {
    let id = status.container_statuses.as_ref().unwrap()[0].container_id.clone().unwrap();
    id.strip_prefix("docker://").unwrap().to_owned()
}

/// The body of `GET path` from the pod, over the pods' network.
pub async fn get(status: &PodStatus, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let ip = status.pod_ip.clone().unwrap();
    let mut stream = tokio::net::TcpStream::connect((ip.as_str(), 8080)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
