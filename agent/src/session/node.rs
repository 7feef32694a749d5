//! This node as a session drives it: its pods and its network, from the moment their ranges are
//! known, whether a master is there or not.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use timonier_agent_core::net::DesiredNet;
use timonier_proto::NODE_SHUTDOWN;
use timonier_proto::v1::{AgentEvent, Assignments, Heartbeat, HostUsage, LatencyBeat, Welcome};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::assigned::{Assigned, AssignedError};
use crate::latency::{Latency, Target};
use crate::lease::Lease;
use crate::net::{NetConfig, Network};
use crate::pods::{
    CONCURRENT_STARTS_DEFAULT, NetAnswer, NotReady, PodNetwork, PodView, Pods, PodsConfig,
    StatusBoard,
};
use crate::runtime::Runtime;
use crate::telemetry::PodSampler;

/// Once the pods of a host that goes down have ended, their masters hear of it within this time.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// While the host goes down, the engine is asked at least so often what still runs.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Pause before the network or the pods are started again after a failure.
const START_RETRY: Duration = Duration::from_secs(2);
/// How long the takeover of what runs may hold up the first dial.
const TAKEOVER_WAIT: Duration = Duration::from_secs(2);
/// How often what others may have undone on the host is made good.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(60);
/// Changes of pods within so long are looked at together.
const GATHER: Duration = Duration::from_millis(20);
/// Batches of latency beats that wait to be sent; older ones are worth nothing.
const BEATS_MAX: usize = 8;
/// In the data folder: the ranges of this node.
pub const STATE_FILE: &str = "node.json";

/// The network as a session needs it.
pub trait NodeNetwork: PodNetwork {
    /// Wants it to be so from now on; the answer comes when it is.
    fn apply(&self, desired: DesiredNet) -> NetAnswer<'_>;
}

impl NodeNetwork for Network {
    fn apply(&self, desired: DesiredNet) -> NetAnswer<'_> {
        let generation = self.sync(desired);
        Box::pin(async move { self.synced(generation).await.map_err(|error| error.to_string()) })
    }
}

/// Starts the network with these ranges; an error is a text for people.
pub type StartNetwork = Box<
    dyn Fn(Ranges) -> Pin<Box<dyn Future<Output = Result<Arc<dyn NodeNetwork>, String>> + Send>>
        + Send
        + Sync,
>;

/// Reads how the host is used since it was last asked.
pub type SampleHost = Box<dyn FnMut() -> HostUsage + Send>;

/// The address ranges that this node works with, kept in its folder so that an agent that starts
/// without a master can take its pods over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ranges {
    pub pod_range: String,
    pub cluster_range: String,
    pub service_range: String,
}

impl Ranges {
    pub fn of(welcome: &Welcome) -> Self {
        Self {
            pod_range: welcome.pod_range.clone(),
            cluster_range: welcome.cluster_range.clone(),
            service_range: welcome.service_range.clone(),
        }
    }
}

/// How to start the kernel's network.
pub fn start_network(node: String, bridge: String) -> StartNetwork {
    Box::new(move |ranges| {
        let (node, bridge) = (node.clone(), bridge.clone());
        Box::pin(async move {
            let read = |text: &str| text.parse().map_err(|error| format!("{text:?}: {error}"));
            let config = NetConfig {
                node,
                bridge,
                pod_cidr: read(&ranges.pod_range)?,
                cluster_cidr: read(&ranges.cluster_range)?,
                service_cidr: read(&ranges.service_range)?,
            };
            let network = Network::start(config).await.map_err(|error| error.to_string())?;
            Ok(Arc::new(network) as Arc<dyn NodeNetwork>)
        })
    })
}

#[derive(Debug, Clone)]
pub struct NodeConfig {
    pub name: String,
    pub data_dir: PathBuf,
    pub host_ip: String,
    /// Under which unique pods may run.
    pub lease: Lease,
}

/// This node. Clones are the same.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    config: NodeConfig,
    runtime: Arc<dyn Runtime>,
    start_network: StartNetwork,
    /// Held while pods and network are being started.
    starting: tokio::sync::Mutex<()>,
    running: watch::Sender<Option<Arc<Running>>>,
    /// Why they do not start.
    failure: Mutex<Option<NotReady>>,
    assigned: Mutex<Assigned>,
    samplers: Mutex<(SampleHost, PodSampler)>,
    /// The host goes down.
    leaving: watch::Sender<bool>,
}

/// Pods and network that have been started.
pub struct Running {
    pub ranges: Ranges,
    pub pods: Pods,
    pub board: Arc<StatusBoard>,
    pub events: tokio::sync::Mutex<mpsc::Receiver<AgentEvent>>,
    pub beats: tokio::sync::Mutex<mpsc::Receiver<Vec<LatencyBeat>>>,
    network: Arc<dyn NodeNetwork>,
    latency: Latency,
}

impl Node {
    pub fn new(
        config: NodeConfig,
        runtime: Arc<dyn Runtime>,
        start_network: StartNetwork,
        sample_host: SampleHost,
    ) -> Self {
        let samplers = (sample_host, PodSampler::new());
        Self {
            inner: Arc::new(Inner {
                config,
                runtime,
                start_network,
                starting: tokio::sync::Mutex::default(),
                running: watch::Sender::new(None),
                failure: Mutex::default(),
                assigned: Mutex::default(),
                samplers: Mutex::new(samplers),
                leaving: watch::Sender::new(false),
            }),
        }
    }

    pub fn lease(&self) -> &Lease {
        &self.inner.config.lease
    }

    pub fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.inner.runtime
    }

    /// Takes over what an agent of this node left running, with or without a master.
    pub async fn take_over(&self) {
        let Some(ranges) = read_ranges(&self.inner.config.data_dir) else { return };
        let starting = self.clone();
        tokio::spawn(async move { starting.begin(ranges).await });
        // So that the first thing a master hears is not that a node with pods is starting.
        let _ = timeout(TAKEOVER_WAIT, self.started()).await;
    }

    /// Starts pods and network, or tries until it is done. What runs already is taken over.
    pub async fn begin(&self, ranges: Ranges) {
        let _turn = self.inner.starting.lock().await;
        loop {
            let failure = match self.running() {
                Some(running) if running.ranges == ranges => None,
                Some(running) => Some(range_changed(&running.ranges, &ranges)),
                None => match self.start(&ranges).await {
                    Ok(()) => None,
                    Err(message) => {
                        Some(NotReady { reason: "NetworkUnavailable".to_owned(), message })
                    }
                },
            };
            let again = failure.is_some() && self.running().is_none();
            let before = std::mem::replace(&mut *lock(&self.inner.failure), failure.clone());
            if let Some(failure) = failure.filter(|now| Some(now) != before.as_ref()) {
                tracing::error!(reason = failure.reason, "{}", failure.message);
            }
            if !again {
                return;
            }
            sleep(START_RETRY).await;
        }
    }

    async fn start(&self, ranges: &Ranges) -> Result<(), String> {
        let config = &self.inner.config;
        let network = (self.inner.start_network)(ranges.clone()).await?;
        let pods_config = PodsConfig {
            node: config.name.clone(),
            host_ip: config.host_ip.clone(),
            data_dir: config.data_dir.clone(),
            concurrent_starts: CONCURRENT_STARTS_DEFAULT,
            lease: config.lease.clone(),
        };
        let (pods, board, events) =
            Pods::start(pods_config, self.inner.runtime.clone(), network.clone())
                .await
                .map_err(|error| error.to_string())?;
        write_ranges(&config.data_dir, ranges)?;
        let (sender, beats) = mpsc::channel(BEATS_MAX);
        let running = Arc::new(Running {
            ranges: ranges.clone(),
            pods,
            board,
            events: tokio::sync::Mutex::new(events),
            beats: tokio::sync::Mutex::new(beats),
            network,
            latency: Latency::start(sender),
        });
        self.inner.running.send_replace(Some(running.clone()));
        tokio::spawn(self.clone().follow(running.clone()));
        tokio::spawn(upkeep(running));
        tracing::info!(range = ranges.pod_range, "pods and their network are up");
        Ok(())
    }

    /// Pods and network, once they are started.
    pub fn running(&self) -> Option<Arc<Running>> {
        self.inner.running.borrow().clone()
    }

    /// Waits until they are started.
    pub async fn started(&self) -> Arc<Running> {
        let mut receiver = self.inner.running.subscribe();
        loop {
            let running = receiver.borrow_and_update().clone();
            match running {
                Some(running) => return running,
                // The sender lives as long as this, so waiting does not fail.
                None => drop(receiver.changed().await),
            }
        }
    }

    pub fn find(&self, uid: &str) -> Option<PodView> {
        self.running()?.pods.find(uid)
    }

    /// A new session has begun.
    pub fn begin_session(&self) {
        lock(&self.inner.assigned).begin();
        self.tell_statuses();
    }

    /// Whatever a master was told of the pods, it is told again.
    pub fn tell_statuses(&self) {
        if let Some(running) = self.running() {
            running.board.requeue_all();
        }
    }

    /// Does what a message of the master asks for: pods that start first, then services and
    /// networks, and only when those are in place the pods that stop.
    pub async fn apply(
        &self,
        running: &Running,
        message: Assignments,
    ) -> Result<(), AssignedError> {
        let step = lock(&self.inner.assigned).take(message)?;
        let synced = step.net_changed.then(|| self.apply_network(running)).flatten();
        if let Some(set) = step.first {
            running.pods.assign(set).await;
        }
        if let Some(set) = step.then {
            if let Some(synced) = synced
                && let Err(error) = synced.await
            {
                tracing::error!(error, "services may still lead to pods that are stopped now");
            }
            running.pods.assign(set).await;
        }
        self.measure(running);
        Ok(())
    }

    fn apply_network<'a>(&self, running: &'a Running) -> Option<NetAnswer<'a>> {
        let host_ports =
            running.pods.running().into_iter().flat_map(|pod| pod.host_ports).collect();
        let desired = lock(&self.inner.assigned).network(host_ports)?;
        Some(running.network.apply(desired))
    }

    /// Tells the prober whose latency is wanted: of ready pods only, since one that starts or ends
    /// answers nobody.
    fn measure(&self, running: &Running) {
        let assigned = lock(&self.inner.assigned);
        let mut targets = Vec::new();
        if assigned.measures_any() {
            let ready = running.pods.running().into_iter().filter(|p| p.ready && !p.terminating);
            targets.extend(ready.filter_map(|pod| {
                Some(Target {
                    measurements: assigned.measured(&pod.uid)?.clone(),
                    ip: IpAddr::V4(pod.ip?),
                    uid: pod.uid,
                    namespace: pod.namespace,
                    pod: pod.name,
                })
            }));
        }
        running.latency.set(targets);
    }

    /// Follows the pods for what depends on those that run: host ports and measurements.
    async fn follow(self, running: Arc<Running>) {
        let mut changes = running.pods.changes();
        let mut host_ports = Vec::new();
        while changes.changed().await.is_ok() {
            sleep(GATHER).await;
            changes.borrow_and_update();
            let pods = running.pods.running();
            let now: Vec<_> = pods.into_iter().flat_map(|pod| pod.host_ports).collect();
            if now != host_ports {
                host_ports = now;
                // The network follows by itself and logs what fails.
                drop(self.apply_network(&running));
            }
            self.measure(&running);
        }
    }

    /// What is told of this node now.
    pub fn heartbeat(&self, sequence: u64) -> Heartbeat {
        let running = self.running();
        let mut samplers = lock(&self.inner.samplers);
        let host = (samplers.0)();
        let pods = running
            .as_ref()
            .map(|running| samplers.1.sample(&running.pods.running()))
            .unwrap_or_default();
        drop(samplers);
        let not_ready = self.not_ready(running.as_deref());
        let (reason, message) = not_ready.map(|n| (n.reason, n.message)).unwrap_or_default();
        Heartbeat {
            sequence,
            host: Some(host),
            pods,
            not_ready_reason: reason,
            not_ready_message: message,
            sent_unix_ms: jiff::Timestamp::now().as_millisecond(),
            lease_wanted: self.lease().is_wanted(),
        }
    }

    fn not_ready(&self, running: Option<&Running>) -> Option<NotReady> {
        if *self.inner.leaving.borrow() {
            return Some(NotReady {
                reason: NODE_SHUTDOWN.to_owned(),
                message: "the host is shutting down".to_owned(),
            });
        }
        if let Some(failure) = lock(&self.inner.failure).clone() {
            return Some(failure);
        }
        match running {
            Some(running) => running.pods.not_ready().borrow().clone(),
            None => Some(NotReady {
                reason: "Starting".to_owned(),
                message: "the agent is starting its network and pods".to_owned(),
            }),
        }
    }

    /// Waits until the reason for not being ready may be another.
    pub async fn readiness_changed(&self) {
        let mut leaving = self.inner.leaving.subscribe();
        let mut started = self.inner.running.subscribe();
        let running = started.borrow_and_update().clone();
        let other = async {
            match running {
                None => drop(started.changed().await),
                Some(running) => {
                    let mut reason = running.pods.not_ready();
                    reason.borrow_and_update();
                    drop(reason.changed().await);
                }
            }
        };
        tokio::select! {
            () = other => {}
            _ = leaving.changed() => {}
        }
    }

    /// The host goes down: the masters are told, give this node nothing new and take its pods away,
    /// which end with their grace while others start elsewhere. Returns once none runs, or after
    /// `time_max`. An agent that starts again is ready as ever.
    pub async fn leave(&self, time_max: Duration) {
        self.inner.leaving.send_replace(true);
        let Some(running) = self.running() else { return };
        let pods = &running.pods;
        if timeout(time_max, none_runs(pods)).await.is_ok() {
            // The masters have heard of their end, too.
            let mut changes = pods.changes();
            let heard = async { while pods.count() > 0 && changes.changed().await.is_ok() {} };
            let _ = timeout(LAST_WORDS, heard).await;
        } else {
            let left = pods.running().len();
            tracing::warn!(pods = left, "the host goes down although pods still run");
        }
    }

    /// Ends the agent's work; pods go on running.
    pub async fn shutdown(&self) {
        if let Some(running) = self.running() {
            running.pods.shutdown().await;
        }
    }
}

/// Returns when no pod of this node runs, nor one that was not taken over yet.
async fn none_runs(pods: &Pods) {
    let mut changes = pods.changes();
    loop {
        if pods.running().is_empty() && matches!(pods.count_in_engine().await, Ok(0)) {
            return;
        }
        if let Ok(Err(_)) = timeout(LOOK_INTERVAL, changes.changed()).await {
            return;
        }
    }
}

async fn upkeep(running: Arc<Running>) {
    let mut ticks = interval(UPKEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await; // the first is at once, and the network has just been started
    loop {
        ticks.tick().await;
        if let Err(error) = running.network.ensure_forwarding().await {
            tracing::warn!(error, "the pods' network could not be looked after");
        }
    }
}

fn range_changed(has: &Ranges, wanted: &Ranges) -> NotReady {
    NotReady {
        reason: "PodRangeChanged".to_owned(),
        message: format!(
            "this node works with pods {} of {} and services {}, but the master has pods {} of {} and services {}; hint: stop the agent, run `timonier-agent cleanup`, and start it again",
            has.pod_range,
            has.cluster_range,
            has.service_range,
            wanted.pod_range,
            wanted.cluster_range,
            wanted.service_range
        ),
    }
}

fn read_ranges(data_dir: &Path) -> Option<Ranges> {
    let text = std::fs::read(data_dir.join(STATE_FILE)).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Whole or not at all: written aside, then renamed.
fn write_ranges(data_dir: &Path, ranges: &Ranges) -> Result<(), String> {
    let path = data_dir.join(STATE_FILE);
    let aside = data_dir.join(format!("{STATE_FILE}.new"));
    let json = serde_json::to_vec(ranges).expect("ranges are plain data");
    std::fs::write(&aside, json)
        .and_then(|()| std::fs::rename(&aside, &path))
        .map_err(|error| format!("write {}: {error}", path.display()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks guard is never left half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
