//! The agent's session with a master: dials, says who this is, and from then on tells how the host
//! and its pods are, and does what it is assigned.
//!
//! It decides nothing about pods. Everything goes on running when no master is there.

#[doc(hidden)]
pub mod assigned;
mod link;
mod masters;
mod node;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use timonier_proto::v1::{Hello, NodeCapacity};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use self::masters::Masters;
use crate::join::Membership;
use crate::streams::Streams;
use crate::telemetry::HostFacts;

pub use masters::MASTERS_FILE;
pub use node::{
    Node, NodeConfig, NodeNetwork, Ranges, STATE_FILE, SampleHost, StartNetwork, start_network,
};

const RETRY_FIRST: Duration = Duration::from_millis(50);
/// Agents that lost the same master dial the others within so long, not all at once.
const SPREAD: Duration = Duration::from_millis(250);
/// Short, because a master that has just started calls a node lost after a few seconds of silence.
const RETRY_MAX: Duration = Duration::from_secs(1);
/// The same failure is logged again only after so long.
const LOG_AGAIN: Duration = Duration::from_secs(30);
/// How long the engine may take to tell its version.
const VERSION_DEADLINE: Duration = Duration::from_secs(3);
/// Streams (logs, exec, …) served at the same time.
const STREAMS_MAX: usize = 128;

/// What a session tells of its node once, and how it reaches the masters.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// What this node shows to the masters.
    pub membership: Membership,
    /// `host:port` of each; tried in turn, beside those that the masters tell of.
    pub masters: Vec<String>,
    /// Where the latter are kept.
    pub data_dir: PathBuf,
    pub node_name: String,
    /// Changes with each start of the agent.
    pub agent_id: String,
    /// By which others reach this host.
    pub address: String,
    pub capacity: NodeCapacity,
    pub labels: BTreeMap<String, String>,
    pub facts: HostFacts,
    /// In place of what the master says.
    pub heartbeat: Option<Duration>,
}

/// The one session of this agent, dialled again whenever it breaks.
pub struct Session {
    config: SessionConfig,
    masters: Masters,
    /// Dials so far.
    dials: AtomicU64,
    node: Node,
    streams: Streams,
    /// Streams outlive the session that opened them.
    stream_slots: Arc<Semaphore>,
}

impl Session {
    pub fn new(config: SessionConfig, node: Node) -> Self {
        let finder = node.clone();
        let find = Arc::new(move |uid: &str| finder.find(uid));
        let streams = Streams::new(config.node_name.clone(), node.runtime().clone(), find);
        Self {
            masters: Masters::open(config.masters.clone(), &config.data_dir),
            dials: AtomicU64::new(0),
            config,
            node,
            streams,
            stream_slots: Arc::new(Semaphore::new(STREAMS_MAX)),
        }
    }

    /// Dials masters in turn, for ever. Dropping it ends the session.
    pub async fn run(&self) {
        let mut delay = RETRY_FIRST;
        let mut told: Option<(String, Instant)> = None;
        let mut better = None;
        loop {
            let opened = match better.take() {
                Some(opened) => Ok(opened),
                None => link::open(self).await,
            };
            let ended = match opened {
                Ok(opened) => link::run(self, opened).await,
                Err(ended) => ended,
            };
            better = ended.better;
            if better.is_some() {
                continue;
            }
            let master = ended.master;
            if ended.welcomed {
                delay = RETRY_FIRST;
                told = None;
            }
            let text = format!("master {master}: {}", ended.why);
            if told.as_ref().is_none_or(|(t, at)| *t != text || at.elapsed() > LOG_AGAIN) {
                tracing::warn!("{text}; trying again");
                told = Some((text, Instant::now()));
            }
            if ended.welcomed && self.masters.are_several() {
                sleep(SPREAD.mul_f64(fastrand::f64())).await;
                continue;
            }
            sleep(delay.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            delay = (delay * 2).min(RETRY_MAX);
        }
    }

    async fn hello(&self) -> Hello {
        let config = &self.config;
        let version = timeout(VERSION_DEADLINE, self.node.runtime().version()).await;
        let runtime = match version {
            Ok(Ok(version)) => format!("{}://{}", version.name, version.version),
            _ => String::new(),
        };
        let running = self.node.running();
        Hello {
            node_name: config.node_name.clone(),
            boot_id: config.facts.boot_id.clone(),
            agent_id: config.agent_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            address: config.address.clone(),
            capacity: Some(config.capacity),
            labels: config.labels.clone().into_iter().collect(),
            running_pod_uids: running
                .iter()
                .flat_map(|running| running.pods.running())
                .map(|pod| pod.uid)
                .collect(),
            pod_range: running.map(|running| running.ranges.pod_range.clone()).unwrap_or_default(),
            runtime,
            kernel: config.facts.kernel.clone(),
            os_image: config.facts.os_image.clone(),
            architecture: config.facts.architecture.clone(),
            dial: self.dials.fetch_add(1, Ordering::Relaxed) + 1,
            lease_held_ms: self.node.lease().held_ms(),
        }
    }
}
